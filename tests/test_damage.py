"""Outputs that are damaged: named, mended, or refused in one line; never taken for whole."""

import random
import time

import pytest
from damages import FINISHED, UNFINISHED, WAYS, damage_finished, damage_unfinished
from launching import Running, launch, launch_alone, lines_of, sha, start_and_kill, verify
from power import disk

pytestmark = pytest.mark.runs
SIZE = ("--size", "300x420", "--shard", 128, "--chunk", 64, "--labels", "example", "--preview", "none")
JOB = (*SIZE, "--steps", 4, "--solver", "dpmpp2m", "--checkpoint-every", 0)


@pytest.fixture(scope="module")
def job(tiny_model):
    return ("--model", tiny_model, *JOB)


@pytest.fixture(scope="module")
def whole(job, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out.zarr"
    assert launch(2, *job, "--out", out).returncode == 0
    return out


@pytest.fixture(scope="module")
def killed(job, tmp_path_factory):
    """The output of a run that was killed while it wrote the image: all of the labels and some of the image."""
    out = tmp_path_factory.mktemp("killed") / "out.zarr"
    ledgers = out / "slidefield" / "ledger"
    start_and_kill(lambda: sum('"0"' in line for f in ledgers.glob("*") for line in lines_of(f)) > 1, out, 2, *job)
    return out


@pytest.mark.parametrize(
    ("kind", "way"),
    [
        ("image", "deleted"),
        ("image", "flipped"),
        ("pyramid", "truncated"),
        ("labels", "swapped"),
        ("labels' group", "flipped"),
        ("group", "emptied"),
        ("copy of metadata", "a folder"),
        ("ledger", "truncated"),
    ],
)
def test_a_damaged_finished_output_is_named_and_mended_to_the_same_bytes(job, whole, tmp_path, kind, way):
    damage_finished(whole, tmp_path / "out.zarr", kind, way, 0, 2, job)


@pytest.mark.parametrize(
    ("kind", "way"),
    [
        ("image", "flipped"),
        ("labels", "truncated"),
        ("labels", "swapped"),
        ("group", "flipped"),
        ("ledger of a rank", "a folder"),
        ("mark", "flipped"),
        ("latents", "swapped"),
        ("array of the other slot", "emptied"),
    ],
)
def test_a_damaged_unfinished_output_ends_in_the_same_bytes_or_is_refused(job, whole, killed, tmp_path, kind, way):
    damage_unfinished(whole, killed, tmp_path / "out.zarr", kind, way, 0, 3, job)


def lose_power_and_resume(place, job, whole, seed):
    """A run whose disk loses its power at a moment drawn from the seed is gone on with to the same bytes."""
    drawn = random.Random(f"power {seed}")
    with disk(place) as made:
        out, log = made.folder / "out.zarr", place / "log.jsonl"
        run = Running(2, *job, "--out", out, "--json-log", log)
        moment = drawn.choice(["made", "level", "checkpoint", "decoding"])
        written = {
            "made": lambda: out.exists(),
            "level": lambda: len(lines_of(log)) >= 1,
            "checkpoint": lambda: (out / "slidefield" / "checkpoint.json").exists(),
            "decoding": lambda: any('"0"' in line for f in out.glob("slidefield/ledger/*") for line in lines_of(f)),
        }[moment]
        run.wait_until(written)
        time.sleep(drawn.random() * {"made": 0.1, "level": 0.3, "checkpoint": 0.5, "decoding": 0.2}[moment])
        made.lose_power()
        run.kill()
        made.start_again()
        state = verify(out)
        done = launch_alone(3, *job, "--out", out)
        text = f"{moment} {seed}: after it {state}: {done.returncode}: {done.stdout}{done.stderr}"
        assert done.returncode == 0, text
        assert sha(out) == sha(whole), text
        return moment, state


def test_a_disk_that_loses_its_power_holds_what_the_run_counts_on(job, whole, tmp_path):
    lose_power_and_resume(tmp_path, job, whole, 0)
