"""What a plane keeps for later requests: files in another's place, kills while it changes hands, links and copies."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
from launching import Running, launch
from tiny import make_tiny_model

import engine
from engine.distributed.launch import ranks_of
from engine.distributed.ranks import AgreedError
from engine.exports.asked import Asked
from engine.exports.kinds import export
from engine.pipeline.plane import read_region
from engine.pipeline.plane_request import check_writable
from engine.planning.geometry import Box
from engine.storage.output import output_to_read
from engine.storage.plane_layout import known_of, levels_of
from engine.storage.plane_swap import locked, next_of, old_of, recover, swap
from engine.storage.plane_trim import trim
from engine.verify import main as verify

pytestmark = pytest.mark.runs

JOB = ("--steps", 3, "--shard", 128, "--chunk", 64, "--guidance", 1, "--hold", 1, "--label", 1)
FIRST, SECOND = Box(0, 0, 50, 50), Box(-70, -40, 60, 90)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with windows of 32 px."""
    return make_tiny_model(tmp_path_factory.mktemp("small"), patch=4)


def words(model: Path, plane: Path, region: Box, *options: object) -> tuple[object, ...]:
    text = f"--region={region.y0}:{region.y1},{region.x0}:{region.x1}"
    return ("--model", model, *JOB, "--seed", 5, *options, "--plane", plane, text)


@pytest.fixture(scope="module")
def planes(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a plane that has the first region, one of another seed, and one that was asked for the second alone."""
    folder = tmp_path_factory.mktemp("planes")
    for name, region, seed in (("plane", FIRST, 5), ("other", FIRST, 6), ("alone", SECOND, 5)):
        done = launch(1, *words(model, folder / f"{name}.zarr", region, "--seed", seed))
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def plane(planes: Path, tmp_path: Path) -> Path:
    return shutil.copytree(planes / "plane.zarr", tmp_path / "plane.zarr")


def exchange_levels(plane: Path, other: Path) -> None:
    one, two = (levels_of(plane) / "00001" / level for level in ("00002", "00003"))
    one.rename(plane / "aside")
    two.rename(one)
    (plane / "aside").rename(two)


def take_known(plane: Path, other: Path) -> None:
    shutil.copy(known_of(other), known_of(plane))


def take_levels(plane: Path, other: Path) -> None:
    shutil.rmtree(levels_of(plane))
    shutil.copytree(levels_of(other), levels_of(plane))


def break_known(plane: Path, other: Path) -> None:
    known_of(plane).write_bytes(b"\x80" * 9)


def test_a_dry_run_says_what_a_request_then_takes(model, plane, tmp_path):
    log, dry = tmp_path / "levels.jsonl", words(model, plane, SECOND, "--dry-run", "--ranks", 3)
    said = launch(1, *dry).stdout
    facts = json.loads(launch(1, *dry, "--json").stdout)
    assert facts["ranks"] == 3
    assert f"{facts['plane']['known_windows']:,} of" in said
    assert "region         130 x 130 px" in said
    done = launch(2, *words(model, plane, SECOND, "--json-log", log))
    assert done.returncode == 0, done.stderr
    levels = [json.loads(line) for line in log.read_text().splitlines()]
    evaluated = sum(level.get("evaluations", 0) for level in levels)
    assert facts["evaluations"] == facts["plane"]["windows"] == evaluated > 0
    assert "are there already" in launch(1, *dry).stdout
    assert json.loads(launch(1, *dry, "--json").stdout)["evaluations"] == 0


@pytest.mark.parametrize(
    ("done", "expected"),
    [
        (exchange_levels, "is of another request or level"),
        (take_levels, "is of another request or level"),
        (take_known, "known.json is another plane's"),
        (break_known, "known.json is damaged"),
    ],
)
def test_what_lies_in_the_place_of_kept_levels_is_refused_and_trimmed(model, planes, plane, done, expected):
    done(plane, planes / "other.zarr")
    before = read_region(plane, FIRST)
    said = launch(1, *words(model, plane, SECOND))
    assert said.returncode == 1, said.stdout
    assert expected in said.stderr
    assert f"engine.trim {plane} drops" in said.stderr
    assert said.stderr.count("\n") == 1, said.stderr
    assert np.array_equal(read_region(plane, FIRST), before)
    trim(plane)
    assert not known_of(plane).exists()
    assert "none is known" in launch(1, *words(model, plane, SECOND, "--dry-run")).stdout


def test_a_request_goes_on_only_with_what_was_known_when_it_was_begun(model, planes, plane):
    run = Running(1, *words(model, plane, SECOND, "--checkpoint-every", 0))
    assert run.wait_until((plane / "slidefield" / "request.zarr" / "slidefield" / "checkpoint.json").exists)
    run.kill()
    known_of(plane).unlink()
    done = launch(1, *words(model, plane, SECOND))
    assert done.returncode == 0, done.stderr
    assert np.array_equal(read_region(plane, SECOND), read_region(planes / "alone.zarr", SECOND))


def test_a_plane_is_the_one_that_a_link_leads_to(model, planes, plane, tmp_path):
    link = tmp_path / "link.zarr"
    link.symlink_to(plane)
    done = launch(1, *words(model, link, SECOND))
    assert done.returncode == 0, done.stderr
    assert "none is known" not in done.stdout
    assert np.array_equal(read_region(plane, SECOND), read_region(planes / "alone.zarr", SECOND))
    assert trim(link)[0] > 0
    assert link.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.zarr", "plane.zarr"]


def put_in_place(state: Path, plane: Path) -> None:
    """Put a copy of another plane in a plane's place, as a request does when it is added."""
    kept = shutil.ignore_patterns("levels")
    shutil.copytree(state, next_of(plane), ignore=kept, copy_function=shutil.copy)  # new files, not as old
    swap(plane)


@contextmanager
def growing(planes: Path, plane: Path, pause: float) -> Iterator[None]:
    """A thread puts planes that begin elsewhere in each other's place, as requests do, until the block ends."""
    ended = threading.Event()

    def grow() -> None:
        for name in cycle(("alone", "plane")):
            if name == "alone" and ended.wait(pause):
                return
            put_in_place(planes / f"{name}.zarr", plane)

    thread = threading.Thread(target=grow)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_what_is_read_while_a_plane_grows_is_what_it_has_there(planes, plane):
    expected = read_region(plane, FIRST)
    with growing(planes, plane, 0):
        for _ in range(20):
            assert np.array_equal(read_region(plane, FIRST), expected)
            assert np.array_equal(engine.open(plane).region((0, 50), (0, 50)), expected)


def test_a_plane_that_grows_is_verified_in_one_state_of_it(planes, plane, capsys):
    whole = {engine.open(planes / f"{name}.zarr").verify() for name in ("plane", "alone")}
    with growing(planes, plane, 0.05):
        for _ in range(8):
            assert engine.open(plane).verify() in whole
            assert verify([str(plane)]) == 0
            assert capsys.readouterr().out.split()[-1] in whole


@pytest.mark.parametrize("target", ["region.png", "slide.ome.tiff", "tiles"])
def test_an_export_of_a_plane_that_is_changed_meanwhile_is_refused(planes, plane, tmp_path, target):
    asked = Asked(plane, tmp_path / target, region="0:50,0:50", tiles=10 if target == "tiles" else None)
    put_in_place(planes / "alone.zarr", plane)
    with pytest.raises(AgreedError, match=r"plane.zarr was changed by another run while it was read; give the command"):
        export(ranks_of(None), asked)
    assert not asked.target.exists()
    export(ranks_of(None), replace(asked, seen=None))
    assert asked.target.exists()


def test_a_plane_that_was_open_when_its_arrays_came_to_begin_elsewhere_is_not_sliced(planes, plane):
    opened = engine.open(plane)
    expected = opened[:, :50, :50]
    assert np.array_equal(opened.region((0, 50), (0, 50)), expected)
    put_in_place(planes / "alone.zarr", plane)
    with pytest.raises(ValueError, match=r"has grown, and its arrays begin elsewhere; open it again"):
        opened[:, :50, :50]
    assert np.array_equal(opened.region((0, 50), (0, 50)), expected)
    assert np.array_equal(engine.open(plane)[:, 128:178, 128:178], expected)
    for rows in ((0.5, 50), (None, 50), 50):
        with pytest.raises(ValueError, match=r"`rows` is .*; give the first and the one after the last"):
            opened.region(rows, (0, 50))


def test_a_kill_after_a_plane_was_exchanged_leaves_nothing_beside_it(plane, tmp_path):
    shutil.copytree(plane, old_of(plane), ignore=shutil.ignore_patterns("levels"))
    next_of(plane).mkdir()
    (tmp_path / f".{next_of(plane).name}.k1ll3d.creating").mkdir()
    with locked(old_of(plane)), pytest.raises(ValueError, match="is being written by another run"):  # as who exchanges
        recover(plane)
    with pytest.raises(ValueError, match="is being written by another run"):
        locked(plane)
    assert trim(plane, FIRST)[1] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["plane.zarr"]


def lose_ledger(plane: Path) -> None:
    (plane / "slidefield" / "ledger.jsonl").unlink()


def lose_shard(plane: Path) -> None:
    next(file for file in plane.glob("0/c/*/*/*") if file.is_file()).unlink()


def cut_shard(plane: Path) -> None:
    next(file for file in plane.glob("0/c/*/*/*") if file.is_file()).write_bytes(b"")


@pytest.mark.parametrize("damage", [lose_ledger, lose_shard, cut_shard])
def test_a_plane_that_lost_its_ledger_or_a_shard_is_not_added_to(model, plane, damage):
    before = read_region(plane, FIRST)
    damage(plane)
    done = launch(1, *words(model, plane, SECOND))
    assert done.returncode == 1, done.stdout
    assert "has lost 0/c/" in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert not (plane / "slidefield" / "request.zarr").exists(), "it is found after the work alone"
    if damage is lose_ledger:
        assert np.array_equal(read_region(plane, FIRST), before)
        return
    with pytest.raises(ValueError, match="has lost 0/c/"):
        read_region(plane, FIRST)
    done = launch(1, *words(model, plane, FIRST))
    assert done.returncode == 1, done.stdout
    assert "has lost 0/c/" in done.stderr


@pytest.mark.parametrize(("region", "alone"), [(FIRST, "plane.zarr"), (SECOND, "alone.zarr")])
def test_a_plane_whose_metadata_was_lost_has_it_again(model, planes, plane, region, alone):
    before = read_region(plane, FIRST)
    (plane / "zarr.json").write_text("")
    done = launch(1, *words(model, plane, region))
    assert done.returncode == 0, done.stderr
    assert np.array_equal(read_region(plane, FIRST), before)
    assert np.array_equal(read_region(plane, region), read_region(planes / alone, region))


def test_a_plane_that_is_being_exchanged_is_not_locked_nor_taken_for_a_new_one(planes, plane):
    expected, held = read_region(plane, FIRST), locked(plane)
    plane.rename(old_of(plane))  # as the run does that has locked it
    for ask in (locked, recover):
        with pytest.raises(ValueError, match=r"plane.zarr is being written by another run"):
            ask(plane)
        assert not plane.exists(), "nothing is in the way of the next state"
    held.close()  # it is killed
    (plane / "slidefield").mkdir(parents=True)
    (plane / "slidefield" / "lock").touch()  # and so is one that asked for the lock in between
    recover(plane)
    assert not old_of(plane).exists()
    assert np.array_equal(read_region(plane, FIRST), expected)
    locked(plane).close()


def test_a_lost_shard_of_the_pyramid_is_made_anew_and_any_number_of_ranks_make_the_same(model, planes, tmp_path):
    wide, beside, up = Box(0, 600, 40, 640), Box(0, 400, 40, 440), Box(-200, -300, -160, -260)
    for name, ranks in (("one", 1), ("three", 3)):
        plane = shutil.copytree(planes / "plane.zarr", tmp_path / name)
        for region in (wide, beside, up):
            done = launch(ranks, *words(model, plane, region))
            assert done.returncode == 0, done.stderr
            if region is wide:
                output = output_to_read(plane)
                shard = output.layout.boxes(1)[0]
                (plane / output.layout.shard_file(output.layout.level(output.layout.image, 1), shard)).unlink()
        assert verify([str(plane)]) == 0
    one, three = (output_to_read(tmp_path / name) for name in ("one", "three"))
    for level, size in enumerate(one.layout.sizes()):
        name, every = one.layout.level(one.layout.image, level), Box(0, 0, *size)
        assert np.array_equal(one.read(name, every), three.read(name, every)), level
        assert not level or (one.read(name, every) != 255).any()


def test_an_array_of_kept_levels_that_cannot_be_opened_is_refused_before_work_starts(model, plane):
    last = sorted(levels_of(plane).glob("*/*"))[-1]
    (last / "zarr.json").write_text("")
    done = launch(1, *words(model, plane, SECOND, "--checkpoint-every", 0))
    assert done.returncode == 1, done.stdout
    assert f"{last} cannot be read" in done.stderr
    assert "engine.trim" in done.stderr
    assert "level 1/" not in done.stdout
    assert not (plane / "slidefield" / "request.zarr" / "slidefield" / "checkpoint.json").exists()


def test_a_negative_start_needs_no_sign_of_equality(plane):
    done = launch(1, plane, "--region", "-40:50,-40:50", module="engine.trim")
    assert done.returncode == 0, done.stderr
    done = launch(1, plane, plane.parent / "part.png", "--region", "-9:50,0:50", module="engine.export")
    assert "passes the image's edge" in done.stderr, done.stderr


def test_a_plane_without_a_finished_request_keeps_no_levels(tmp_path):
    locked(tmp_path / "plane.zarr").close()
    with pytest.raises(ValueError, match="has no finished request yet"):
        trim(tmp_path / "plane.zarr")


def test_a_plane_whose_first_request_is_not_finished_is_said_to_be_one(tmp_path):
    plane = tmp_path / "plane.zarr"
    locked(plane).close()
    with pytest.raises(ValueError, match="is a plane that has no finished request yet"):
        output_to_read(plane)
    (plane / "slidefield" / "request.zarr").mkdir()
    with pytest.raises(ValueError, match="is a plane that has no finished request yet"):
        output_to_read(plane)
    (plane / "slidefield" / "request.zarr").rmdir()
    (plane / "slidefield" / "ledger").mkdir()
    with pytest.raises(ValueError, match="is damaged beyond repair"):
        output_to_read(plane)


def refused_by_anyone(plane):
    """What ``check_writable`` says to a user who owns nothing."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.setuid(65534)
            check_writable(plane)
        except ValueError as problem:
            os.write(write, str(problem).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with open(read, encoding="utf-8") as said:
        return said.read()


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become another user")
def test_a_plane_beside_which_nothing_can_be_made_is_refused_before_work_starts():
    with tempfile.TemporaryDirectory() as folder:
        plane = Path(folder) / "held" / "plane.zarr"
        plane.mkdir(parents=True)
        for path, mode in ((Path(folder), 0o755), (plane.parent, 0o777), (plane, 0o777)):
            path.chmod(mode)
        assert refused_by_anyone(plane) == ""
        assert refused_by_anyone(plane.parent / "new.zarr") == ""
        plane.parent.chmod(0o755)
        for path in (plane, plane.parent / "new.zarr"):
            said = refused_by_anyone(path)
            assert said == f"`plane` {path}: {plane.parent} cannot be written; choose another `plane`"
        plane.parent.chmod(0o777)
        plane.chmod(0o755)
        assert refused_by_anyone(plane) == f"`plane` {plane}: {plane} cannot be written; choose another `plane`"


def test_two_regions_may_lie_as_far_apart_as_positions_reach(model, planes, tmp_path):
    plane, far = tmp_path / "plane.zarr", 2**52
    regions = [Box(far - 64, far - 64, far, far), Box(-far, -far, 64 - far, 64 - far), FIRST]
    for region in regions:
        done = launch(2, *words(model, plane, region))
        assert done.returncode == 0, done.stderr
    assert np.array_equal(read_region(plane, FIRST), read_region(planes / "plane.zarr", FIRST))
    assert all(read_region(plane, region).std() > 0 for region in regions)
    assert verify([str(plane)]) == 0
