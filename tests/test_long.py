"""Long campaigns, for ``make test-long``: more ranks than cores, kills at random moments, a large image."""

import os
import random
import shutil
import signal
import time
from contextlib import suppress

import numpy as np
import pytest
from bad_inputs import faults
from damages import ROWS, damage_finished, damage_unfinished, kill_and_resume
from launching import Running, launch, launch_alone, lines_of, ranks_below, sha, start_and_kill, verify
from power import lose_power_and_resume

from engine.command_line import STOPPED
from engine.pipeline.plane import read_region
from engine.planning.geometry import Box

pytestmark = [pytest.mark.long, pytest.mark.runs]

SIZE = ("--size", "1000x1544", "--shard", "256", "--chunk", "64", "--preview", "none")
COVERS = {
    "shifted": ("--cover", "shifted", "--eta", "0.7"),
    "random": ("--cover", "random", "--solver", "ddpm"),
    "strided": ("--cover", "strided", "--stride", "13", "--weights", "gaussian", "--solver", "dpmpp2m"),
}


@pytest.mark.parametrize("cover", COVERS)
def test_the_image_is_the_same_on_up_to_12_ranks(tiny_model, tmp_path, cover):
    shas = set()
    for ranks in (1, 5, 8, 12):
        out = tmp_path / f"{ranks}.zarr"
        done = launch_alone(ranks, "--model", tiny_model, *SIZE, "--steps", 4, *COVERS[cover], "--out", out)
        assert done.returncode == 0, done.stdout + done.stderr
        shas.add(sha(out))
    assert len(shas) == 1


@pytest.mark.parametrize("cover", COVERS)
@pytest.mark.parametrize("kind", ["image", "set"])
def test_a_run_that_is_killed_and_asked_to_stop_again_and_again_ends_with_the_same_bytes(
    tiny_model, tmp_path, cover, kind
):
    """Each time on another number of ranks, after another time; by SIGKILL to all or to one, or by SIGTERM to one."""
    drawn = random.Random(f"{cover} {kind}")
    own = {"image": SIZE, "set": ("--size", "128x136", "--count", 40, *SIZE[2:], "--label", "0,1,2")}[kind]
    arguments = ("--model", tiny_model, *own, "--steps", 20, "--checkpoint-every", 0, *COVERS[cover])
    assert launch(2, *arguments, "--out", tmp_path / "whole.zarr").returncode == 0
    out, log, stopped = tmp_path / "out.zarr", tmp_path / "log.jsonl", 0
    while not out.exists() or verify(out)[0] != 0:
        run = Running(drawn.randint(1, 4), *arguments, "--out", out, "--json-log", log)
        before = len(lines_of(log))
        run.wait_until(lambda before=before: len(lines_of(log)) > before)
        time.sleep(drawn.random() * 3)
        victims, how = ranks_below(run.process.pid), drawn.choice(["all", "one", "ask"])
        if how == "all" or not victims:
            run.kill()
        else:
            with suppress(ProcessLookupError):  # it may just have ended
                os.kill(drawn.choice(victims), signal.SIGKILL if how == "one" else signal.SIGTERM)
            run.end()
        assert verify(out)[0] in (0, STOPPED), verify(out)[1]
        stopped += 1
        assert stopped < 100, "it gets on: a level or more each time"
    assert stopped > 3
    assert sha(out) == sha(tmp_path / "whole.zarr")


@pytest.mark.parametrize("seed", range(4))
def test_requests_to_a_plane_that_are_killed_again_and_again_end_with_the_same_pixels(tiny_model, tmp_path, seed):
    """Three that overlap, each killed at random moments, also while it is added: what was known stays readable."""
    drawn, plane, log = random.Random(f"plane {seed}"), tmp_path / "plane.zarr", tmp_path / "log.jsonl"
    job = ("--model", tiny_model, "--steps", 30, "--label", 1, "--shard", 256, "--chunk", 64, "--checkpoint-every", 0)
    known: dict[Box, np.ndarray] = {}
    killed = 0
    for region in (Box(0, 0, 200, 300), Box(-150, 100, 120, 420), Box(60, -200, 330, 200)):
        asked = f"--region={region.y0}:{region.y1},{region.x0}:{region.x1}"
        alone = tmp_path / f"alone-{len(known)}.zarr"
        assert launch(2, *job, "--plane", alone, asked).returncode == 0
        for _ in range(8):
            run = Running(drawn.randint(1, 4), *job, "--plane", plane, asked, "--json-log", log)
            before = len(lines_of(log))
            run.wait_until(lambda before=before: len(lines_of(log)) > before)
            time.sleep(drawn.random() * 1.5)
            victims, how = ranks_below(run.process.pid), drawn.choice(["all", "one", "ask"])
            ended = not victims
            if how == "all" or ended:
                run.kill()
            else:
                with suppress(ProcessLookupError):  # it may just have ended
                    os.kill(drawn.choice(victims), signal.SIGKILL if how == "one" else signal.SIGTERM)
                run.end()
            killed += not ended
            for there, pixels in known.items():
                assert np.array_equal(read_region(plane, there), pixels)
        done = launch(drawn.randint(1, 4), *job, "--plane", plane, asked)
        assert done.returncode == 0, done.stdout + done.stderr
        known[region] = read_region(alone, region)
        for there, pixels in known.items():
            assert np.array_equal(read_region(plane, there), pixels)
        assert verify(plane)[0] == 0, verify(plane)[1]
    assert killed > 5
    assert sorted(path.name for path in tmp_path.iterdir() if "plane" in path.name) == ["plane.zarr"]


def test_a_large_image_of_the_embedded_model_is_the_same_on_1_and_4_ranks_and_after_a_kill(tmp_path):
    arguments = ("--size", "4096x3333", "--steps", 6, "--preview", "none", "--shard", 1024, "--chunk", 256)
    shas = set()
    for ranks in (1, 4):
        done = launch_alone(ranks, *arguments, "--out", tmp_path / f"{ranks}.zarr")
        assert done.returncode == 0, done.stderr
        shas.add(sha(tmp_path / f"{ranks}.zarr"))
    out, log = tmp_path / "out.zarr", tmp_path / "log.jsonl"
    arguments = (*arguments, "--checkpoint-every", 0)
    start_and_kill(lambda: len(lines_of(log)) >= 3, out, 3, *arguments, log=log)
    assert launch_alone(2, *arguments, "--out", out).returncode == 0
    shas.add(sha(out))
    assert len(shas) == 1
    shutil.rmtree(out)


@pytest.mark.parametrize(("state", "kind", "way"), sorted(random.Random("damages").sample(ROWS, 120)))
def test_no_damage_is_taken_for_whole(job, whole, killed, tmp_path, state, kind, way):
    drawn = random.Random(f"{state} {kind} {way}")
    ranks, seed = drawn.randint(1, 3), drawn.randrange(10**6)
    if state == "finished":
        damage_finished(whole, tmp_path / "out.zarr", kind, way, seed, ranks, job)
    else:
        damage_unfinished(whole, killed, tmp_path / "out.zarr", kind, way, seed, ranks, job)


@pytest.mark.parametrize("seed", range(100, 160))
def test_a_run_that_is_killed_once_ends_in_the_same_bytes(job, whole, tmp_path, seed):
    kill_and_resume(whole, tmp_path, seed, job)


@pytest.mark.parametrize("seed", range(100, 130))
def test_a_run_whose_disk_loses_its_power_ends_in_the_same_bytes(job, whole, tmp_path, seed):
    lose_power_and_resume(whole, tmp_path, seed, job)


def test_300_bad_inputs_are_refused_in_one_line_each(tmp_path, tiny_model, monkeypatch):
    assert not faults(range(300), tmp_path, tiny_model, monkeypatch)
