"""Regions of an unbounded plane: the same in whatever order they are asked for, and nothing computed twice."""

from __future__ import annotations

import json
import random
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from launching import Running, execute, launch, verify
from PIL import Image
from tiny import make_tiny_model

from engine.export import main as export
from engine.job import RunOptions
from engine.parsing import parse
from engine.pipeline.output_checks import check_place
from engine.pipeline.plane import read_region
from engine.pipeline.plane_request import check_unchanged, place_named, prepare_request
from engine.planning.geometry import Box, missing
from engine.planning.plane import Windows, area_ratio, cone_of, needed_windows, offsets, touching
from engine.storage.output import Output, output_to_read
from engine.storage.plane_layout import levels_of
from engine.storage.plane_swap import locked, old_of, recover
from engine.viewing.cache import Cache
from engine.viewing.pixels import ABSENT, DAMAGED, THERE, Source, pixels

boxes = st.builds(lambda y, x, h, w: Box(y, x, y + h, x + w), *[st.integers(-90, 90)] * 2, *[st.integers(1, 60)] * 2)
lattices = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), min_size=1, max_size=4)


# ---- the cone of a region ---------------------------------------------------------------------


def latents_of_windows(windows: Windows) -> set[tuple[int, int]]:
    box = windows.box
    return {(box.y0 + y, box.x0 + x) for y, x in np.argwhere(windows.covers(box)).tolist()}


@given(boxes, lattices)
def test_a_cone_holds_every_window_that_touches_what_the_next_level_reads_and_no_other(region, offsets_of_levels):
    needed = needed_windows(region, offsets_of_levels, 8)
    read = {(y, x) for y in range(region.y0, region.y1) for x in range(region.x0, region.x1)}
    for windows, (oy, ox) in zip(needed[::-1], offsets_of_levels[::-1], strict=True):
        cells = {((y - oy) // 8, (x - ox) // 8) for y, x in read}
        assert len(windows) == len(cells)
        read = {(oy + 8 * i + y, ox + 8 * j + x) for i, j in cells for y in range(8) for x in range(8)}
        assert latents_of_windows(windows) == read


@given(boxes, boxes, lattices)
def test_what_is_known_is_not_needed_nor_what_it_alone_would_need(first, second, offsets_of_levels):
    known = needed_windows(first, offsets_of_levels, 8)
    needed = needed_windows(second, offsets_of_levels, 8, [(windows,) for windows in known])
    alone = needed_windows(second, offsets_of_levels, 8)
    for windows, before, whole in zip(needed, known, alone, strict=True):
        here, there, all_ = (latents_of_windows(part) for part in (windows, before, whole))
        assert not here & there
        assert here <= all_ <= here | there | all_
    # what a needed window reads is known, or made by a needed window of the level before
    for level in range(1, len(needed)):
        made = latents_of_windows(needed[level - 1]) | latents_of_windows(known[level - 1])
        assert latents_of_windows(needed[level]) <= made
    if first == second:
        assert not any(map(len, needed))


@pytest.mark.parametrize(
    ("hold", "side", "least", "most"),
    [(1, 1024, 18, 23), (1, 4096, 3.2, 3.6), (1, 65536, 1.08, 1.12), (3, 1024, 4.6, 5.4)],
)
def test_a_region_costs_what_the_documents_say(hold, side, least, most):
    latents = side // 8
    region = Box(1000, -77, 1000 + latents, -77 + latents)
    ratios = [area_ratio(needed_windows(region, offsets(seed, 25, 32, hold), 32), region) for seed in range(8)]
    assert least < np.mean(ratios) < most


@given(boxes, lattices)
def test_a_canvas_holds_all_that_is_evaluated_and_no_window_is_pushed(region, offsets_of_levels):
    cone = cone_of(region, 8, (16, 12), offsets_of_levels, 8)
    for level, windows in enumerate(cone.needed):
        assert windows.box & cone.canvas == windows.box
        lattice = cone.lattice(level)
        ids = np.arange(len(lattice))
        asked = cone.asked(level, lattice.corners(ids))
        assert asked.sum() == len(windows)
        core = lattice.core(ids[asked])
        assert (core[:, 2:] - core[:, :2] == 8).all()


def test_windows_touch_the_box_that_they_are_asked_for_far_away_too():
    far = 2**49
    windows = touching(Box(far, -far - 9, far + 8, -far), 8, (3, 5))
    assert windows.box.y0 <= far
    assert windows.box.x1 >= -far
    assert len(windows) == 4


@given(boxes, st.lists(boxes, max_size=4))
def test_what_is_missing_of_a_region_is_what_no_other_holds(region, known):
    rest = missing(region, known)
    cells = {(y, x) for part in rest for y in range(part.y0, part.y1) for x in range(part.x0, part.x1)}
    assert len(cells) == sum(part.area for part in rest)
    inside = {(y, x) for y in range(region.y0, region.y1) for x in range(region.x0, region.x1)}
    covered = {(y, x) for y, x in inside if any(b.y0 <= y < b.y1 and b.x0 <= x < b.x1 for b in known)}
    assert cells == inside - covered


# ---- planes on disk ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with windows of 32 px."""
    return make_tiny_model(tmp_path_factory.mktemp("small"), patch=4)


JOB = ("--steps", 3, "--seed", 5, "--shard", 128, "--chunk", 64, "--guidance", 1, "--hold", 1)


def ask(ranks: int, model: Path, plane: Path, region: Box, *options: object) -> tuple[np.ndarray, str]:
    """Ask for a region; what the plane then has there, and what the command said."""
    text = f"{region.y0}:{region.y1},{region.x0}:{region.x1}"
    done = launch(ranks, "--model", model, *JOB, *options, "--plane", plane, f"--region={text}")
    assert done.returncode == 0, done.stderr
    return read_region(plane, region), done.stdout


@pytest.mark.runs
def test_what_was_never_asked_for_is_absent_to_the_viewer_and_not_damaged(small, tmp_path):
    plane, damaged = tmp_path / "plane.zarr", []
    for x in (0, 300):
        ask(1, small, plane, Box(0, x, 40, x + 40), "--label", 1)
    output = output_to_read(plane)
    source = Source(output, output.layout.image, 0, Cache(2**20, lambda pair: pair[0].nbytes))
    for level, (height, width) in enumerate(output.layout.sizes()):
        _, state = pixels(source, level, Box(0, 0, height, width), damaged.append)
        assert state[0, 0] == state[0, -1] == THERE
        assert level or (state[:, 128:256] == ABSENT).all()
        assert (state != DAMAGED).all()
    assert not damaged


@pytest.mark.runs
@pytest.mark.parametrize(
    "options",
    [
        ("--labels", "example", "--solver", "dpmpp2m"),
        pytest.param(("--label", 1, "--solver", "ddim", "--eta", 0.7, "--hold", 2), marks=pytest.mark.long),
    ],
    ids=["history", "ancestral noise"],
)
def test_regions_that_overlap_agree_in_whatever_order_they_are_asked_for(small, tmp_path, options):
    drawn, plane, seen = random.Random(str(options)), tmp_path / "plane.zarr", []
    for number in range(3):
        y, x, h, w = (drawn.randint(*span) for span in [(-60, 40)] * 2 + [(20, 80)] * 2)
        region = Box(y, x, y + h, x + w)
        pixels, _ = ask(1 + 2 * (number % 2), small, plane, region, *options)
        alone, _ = ask(1, small, tmp_path / f"{number}.zarr", region, *options)
        assert np.array_equal(pixels, alone)
        seen.append((region, pixels))
        for before, then in seen:
            assert np.array_equal(read_region(plane, before), then), "a later request changed it"
    assert verify(plane)[0] == 0


@pytest.mark.runs
def test_a_plane_evaluates_nothing_twice_and_reaches_far(small, tmp_path):
    plane, far = tmp_path / "plane.zarr", 2**31
    region = Box(far, -far - 40, far + 40, -far)
    pixels, said = ask(1, small, plane, region, "--label", 1)
    assert "none is known" in said
    assert pixels.std() > 0
    again, said = ask(1, small, plane, region, "--label", 1)
    assert "there already" in said
    assert np.array_equal(pixels, again)
    beside = Box(region.y0, region.x0 + 16, region.y1, region.x1 + 16)
    there, said = ask(2, small, plane, beside, "--label", 1)
    assert "are known" in said
    assert np.array_equal(there[..., :-16], pixels[..., 16:])
    text = f"--region={beside.y0}:{beside.y1},{beside.x0}:{beside.x1}"
    assert export([str(plane), str(tmp_path / "beside.png"), text]) == 0
    assert np.array_equal(np.asarray(Image.open(tmp_path / "beside.png")), there.transpose(1, 2, 0))
    multiscale = json.loads((plane / "zarr.json").read_text())["attributes"]["ome"]["multiscales"][0]
    assert multiscale["name"] == "plane"
    shift = multiscale["datasets"][0]["coordinateTransformations"][1]["translation"]
    assert shift[1:] == [far * 0.5, (-far - 128) * 0.5], "the arrays begin at a shard's corner"


@pytest.mark.runs
def test_a_request_that_is_killed_goes_on_and_leaves_the_plane_as_it_was(small, tmp_path):
    plane, first, second = tmp_path / "plane.zarr", Box(0, 0, 50, 50), Box(-70, -40, 60, 90)
    kept, _ = ask(1, small, plane, first, "--label", 1)
    alone, _ = ask(1, small, tmp_path / "alone.zarr", second, "--label", 1)
    before = verify(plane)
    options = ("--model", small, *JOB, "--label", 1, "--checkpoint-every", 0)
    request = (*options, "--plane", plane, "--region=-70:60,-40:90")
    mark = plane / "slidefield" / "request.zarr" / "slidefield" / "checkpoint.json"
    run = Running(2, *request)
    assert run.wait_until(mark.exists)
    run.kill()
    assert verify(plane) == before
    assert np.array_equal(read_region(plane, first), kept)
    pixels, _ = ask(3, small, plane, second, "--label", 1)
    assert np.array_equal(pixels, alone)
    assert np.array_equal(read_region(plane, first), kept)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone.zarr", "plane.zarr"]


@pytest.mark.runs
def test_a_full_disk_leaves_the_plane_as_it_was_and_keeps_what_was_finished(small, tmp_path):
    """A limit on the size of files stands in for a full disk: of the request's, then of the plane's larger ones."""
    plane, first, second = tmp_path / "plane.zarr", Box(0, 0, 50, 50), Box(-250, -40, 60, 250)
    kept, _ = ask(1, small, plane, first, "--label", 1, "--shard", 256)
    options = ("--label", 1)
    alone, _ = ask(1, small, tmp_path / "alone.zarr", second, *options)
    before = verify(plane)
    words = ("--model", small, *JOB, *options, "--checkpoint-every", 0, "--plane", plane, "--region=-250:60,-40:250")
    request = plane / "slidefield" / "request.zarr"
    for limit, state in ((16_000, "unfinished"), (60_000, "finished")):
        code = (
            "import resource, sys, engine.sample\n"
            "from mpi4py import MPI\n"  # which makes large files of its own as it starts
            f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
            "sys.exit(engine.sample.main(sys.argv[1:]))\n"
        )
        done = execute(sys.executable, "-c", code, *words)
        assert done.returncode == 1, done.stdout
        assert "File too large" in done.stderr, done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
        assert verify(plane) == before
        assert np.array_equal(read_region(plane, first), kept)
        assert Output(request).provenance["state"] == state
    pixels, said = ask(2, small, plane, second, *options)
    assert "level 1/" not in said, "what was finished is sampled again"
    assert np.array_equal(pixels, alone)
    assert np.array_equal(read_region(plane, first), kept)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone.zarr", "plane.zarr"]


@pytest.mark.runs
@pytest.mark.parametrize("place", ["plane_growth.swap", "plane_swap.carry"])
def test_a_kill_while_a_request_is_added_loses_nothing_that_is_kept(small, tmp_path, place):
    """At the two places where the kept levels are not where the ledger says."""
    plane, first, second = tmp_path / "plane.zarr", Box(0, 0, 50, 50), Box(0, 20, 50, 80)
    kept, _ = ask(1, small, plane, first, "--label", 1)
    module, name = place.split(".")
    code = (
        "import os, sys, engine.sample\n"
        f"import engine.{'pipeline' if module == 'plane_growth' else 'storage'}.{module} as module\n"
        f"module.{name} = lambda *folders: os._exit(9)\n"
        "sys.exit(engine.sample.main(sys.argv[1:]))\n"
    )
    words = ("--model", small, *JOB, "--label", 1, "--plane", plane, "--region=0:50,20:80")
    assert execute(sys.executable, "-c", code, *words).returncode == 9
    pixels, said = ask(2, small, plane, second, "--label", 1)
    assert "level 1/" not in said, "what was finished is sampled again"
    assert "none is known" not in said, "what was kept is lost"
    alone, _ = ask(1, small, tmp_path / "alone.zarr", second, "--label", 1)
    assert np.array_equal(pixels, alone)
    assert np.array_equal(read_region(plane, first), kept)
    beside, said = ask(1, small, plane, Box(0, 70, 50, 120), "--label", 1)
    assert "are known" in said
    assert np.array_equal(beside[..., :10], pixels[..., -10:])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone.zarr", "plane.zarr"]
    assert sorted(path.name for path in levels_of(plane).iterdir()) == ["00001", "00002", "00003"]


@pytest.mark.runs
def test_kept_levels_that_are_damaged_are_refused_and_trimmed_and_need_not_be_kept(small, tmp_path):
    plane, beside = tmp_path / "plane.zarr", ("--label", 1, "--plane", tmp_path / "plane.zarr", "--region=0:50,40:90")
    kept, _ = ask(1, small, plane, Box(0, 0, 50, 50), "--label", 1)
    for file in levels_of(plane).glob("*/00002/c/0/0/*/*"):
        file.unlink()
    for ranks in (1, 2):
        done = launch(ranks, "--model", small, *JOB, *beside)
        assert done.returncode == 1, done.stdout
        assert re.fullmatch(r"error: .*levels/00001/00002 lacks .*engine\.trim .*plane\.zarr .*\n", done.stderr)
    assert launch(1, plane, module="engine.trim").returncode == 0
    pixels, said = ask(1, small, plane, Box(0, 40, 50, 90), "--label", 1, "--no-keep-levels")
    assert "none is known" in said
    assert np.array_equal(pixels[..., :10], kept[..., 40:])
    assert not levels_of(plane).exists()
    assert "none is known" in launch(1, "--model", small, *JOB, *beside[:-1], "--region=0:50,60:99", "--dry-run").stdout


def test_a_request_is_refused_where_another_run_has_changed_the_plane_since_it_was_checked(small, tmp_path):
    plane = tmp_path / "plane.zarr"
    words = ["--model", small, *JOB, "--label", 1, "--plane", plane, "--region=0:40,0:40"]
    job, options = parse(list(map(str, words)))
    request = prepare_request(job, options, 1, 1)
    check_unchanged(request)
    ask(1, small, plane, Box(9, 9, 20, 20), "--label", 1)
    with pytest.raises(ValueError, match="was changed by another run"):
        check_unchanged(request)


@pytest.mark.runs
def test_what_is_wrong_is_said_in_one_line_and_the_plane_stays(small, tmp_path):
    plane = tmp_path / "plane.zarr"
    kept, _ = ask(1, small, plane, Box(0, 0, 30, 30), "--label", 1)
    before = verify(plane)
    job = ("--model", small, *JOB, "--label", 1, "--plane", plane)
    for options, expected in [
        (("--region", "10:5,0:9"), "end after they begin"),
        (("--region", f"0:9,{2**52}:{2**52 + 1}"), "2^52"),
        ((), "--region Y0:Y1,X0:X1"),
        (("--region", "0:9,0:9", "--seed", 6), "is of another job: its seed is 5, yours is 6"),
        (("--region", "0:9,0:9", "--hold", 2), "its hold is 1, yours is 2"),
        (("--region", "0:9,0:9", "--cover", "random"), "drawn over a whole canvas"),
        (("--region", "0:9,0:9", "--count", 2), "--count"),
        (("--region", "0:9,0:9", "--size", "64x64"), "--size is of an image with edges"),
        (("--region", "0:9,0:9", "--out", tmp_path / "a.zarr"), "--out is of an image with edges"),
        (("--region", "0:9,0:9", "--preview", tmp_path / "a.png"), "--preview is of an image with edges"),
    ]:
        done = launch(2, *job, *options)
        assert done.returncode == 1, (options, done.stdout)
        assert done.stderr.startswith("error: "), done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
        assert expected in done.stderr, done.stderr
    assert verify(plane) == before
    assert np.array_equal(read_region(plane, Box(0, 0, 30, 30)), kept)
    with pytest.raises(ValueError, match=r"0:40,30:40 is not there|30:40,0:40 is not there"):
        read_region(plane, Box(0, 0, 40, 40))
    image = tmp_path / "image.zarr"
    assert launch(1, *job[:-2], "--size", "32x32", "--preview", "none", "--out", image).returncode == 0
    done = launch(1, *job[:-1], image, "--region", "0:9,0:9")
    assert "has edges" in done.stderr, done.stderr
    for option, within in (("--plane", image / "plane.zarr"), ("--out", plane / "image.zarr")):
        where = ("--region", "0:9,0:9") if option == "--plane" else ("--size", "32x32")
        done = launch(2, *job[:-2], *where, option, within)
        assert (
            done.stderr
            == f"error: {option} {within} lies in {within.parent}, another output; choose another {option}\n"
        )
    shutil.rmtree(image)


def test_a_place_that_no_plane_can_have_is_said(tmp_path):
    (tmp_path / "file.zarr").write_text("")
    (tmp_path / "round.zarr").symlink_to("round.zarr")
    for path, expected in [
        (tmp_path / "file.zarr", "is a file; choose another `plane`"),
        (tmp_path / "round.zarr", "symbolic links lead in a circle"),
        (Path("s3://bucket/plane.zarr"), "is a URL, and a plane is a local folder"),
    ]:
        with pytest.raises(ValueError, match=expected):
            place_named(path)


def test_a_plane_without_room_says_what_makes_room(tmp_path):
    options = RunOptions(out=str(tmp_path / "plane.zarr" / "slidefield" / "request.zarr"))
    with pytest.raises(ValueError, match=r"plane.zarr: .* takes at least 8192.0 PiB .*engine.trim .*plane.zarr"):
        check_place(options, 2**63, tmp_path / "plane.zarr")


def test_a_plane_between_its_two_renamings_waits_for_who_renames_it(tmp_path):
    plane = tmp_path / "plane.zarr"
    renaming = locked(plane)
    plane.rename(old_of(plane))
    with pytest.raises(ValueError, match="is being written by another run"):
        recover(plane)
    assert not plane.exists()
    renaming.close()
    recover(plane)
    assert plane.exists()
