"""Evaluations that are not needed are not made, and what a run did is what its plan said."""

import json

import numpy as np
import pytest
import zarr
from launching import launch, lines_of, refused, sha, verify
from PIL import Image

from engine.diffusion.latent_map import LatentMap
from engine.pipeline.level_plans import windows_touching
from engine.planning.cover import cover_of, windows_of
from engine.planning.geometry import Box, Frames

pytestmark = pytest.mark.runs
SIZE = ("--size", "300x420", "--shard", 128, "--chunk", 64, "--preview", "none", "--steps", 4, "--labels", "example")


def evaluations(log):
    """Evaluations of each level, as the log counts them."""
    lines = [json.loads(line) for line in lines_of(log)]
    return [line["evaluations"] for line in lines if "level" in line]


def planned(*arguments):
    done = launch(1, *arguments, "--dry-run", "--json", "--ranks", 3)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["evaluations_per_level"]


@pytest.fixture
def region(tmp_path):
    mask = np.zeros((300, 420), np.uint8)
    mask[100:190, 250:400] = 1
    np.save(tmp_path / "roi.npy", mask)
    return mask, ("--roi", tmp_path / "roi.npy")


@pytest.mark.parametrize("cover", ["shifted", "random", pytest.param("strided", marks=pytest.mark.long)])
def test_what_lies_outside_the_region_costs_nothing_and_is_white(tiny_model, tmp_path, region, cover):
    mask, option = region
    arguments = ("--model", tiny_model, *SIZE, "--cover", cover)
    shas = set()
    for ranks in (1, 3):
        out, log = tmp_path / f"{ranks}.zarr", tmp_path / f"{ranks}.jsonl"
        done = launch(ranks, *arguments, *option, "--out", out, "--json-log", log)
        assert done.returncode == 0, done.stdout + done.stderr
        assert evaluations(log) == planned(*arguments, *option)
        shas.add(sha(out))
    assert len(shas) == 1
    assert sum(evaluations(log)) < 0.8 * sum(planned(*arguments))
    Image.fromarray(mask[::10, ::10]).save(tmp_path / "small.png")
    done = launch(2, *arguments, "--roi", tmp_path / "small.png", "--out", tmp_path / "scaled.zarr")
    assert "30 x 42 px, is scaled to 300 x 420 px" in done.stdout
    assert sha(tmp_path / "scaled.zarr") in shas
    stored = zarr.open(tmp_path / "1.zarr")
    image, labels = stored["0"][:], stored["labels/tissue/0"][:]
    assert (labels[mask == 0] == 0).all()
    assert labels[mask == 1].any()
    assert (image[:, mask == 0] == 255).all()
    assert (image[:, mask == 1] != 255).mean() > 0.5
    assert stored["labels"].attrs["ome"]["labels"] == ["tissue", "roi"]
    assert (stored["labels/roi/0"][:] == mask).all()


def test_the_stored_region_is_verified_and_mended(tiny_model, tmp_path, region):
    out = tmp_path / "out.zarr"
    command = ("--model", tiny_model, *SIZE[:1], "600x840", *SIZE[2:], *region[1], "--out", out)
    assert launch(2, *command).returncode == 0
    whole = zarr.open(out)["labels/roi/1"][:]
    assert (whole == region[0]).all(), "the region is scaled by 2, and the pyramid halves it"
    (out / "labels" / "roi" / "0" / "c" / "1" / "5").unlink()
    status, line = verify(out)
    assert status == 1
    assert "labels/roi/0" in line
    done = launch(1, *command)
    assert done.returncode == 0, done.stderr
    assert zarr.open(out)["labels/roi/0"][256:384, 640:768].any()
    assert verify(out)[0] == 0


@pytest.mark.parametrize("cover", ["shifted", "random", "strided"])
def test_the_windows_touching_a_region_are_those_used_at_any_of_its_latents(cover):
    region = np.zeros((70, 90), np.uint8)
    region[20:31, 40:42] = region[60, 5] = 1
    windows = cover_of(cover, region.shape, 16, seed=3, level=1, stride=11, weights="hann")
    ids = windows.overlapping(Box(0, 0, *region.shape))
    used = {}  # window -> where its estimate is used, latent by latent
    for index, (y0, x0, y1, x1) in zip(ids.tolist(), windows.core(ids).tolist(), strict=True):
        weight = windows.weight(index, Box(y0, x0, y1, x1))
        used[index] = np.zeros(region.shape, bool)
        used[index][y0:y1, x0:x1] = True if weight is None else weight > 0
    expected = [bool((used[index] & (region > 0)).any()) for index in ids.tolist()]
    whole = LatentMap(Frames(region.shape, 1, 16), lambda image, box, step: region[box.y0 : box.y1, box.x0 : box.x1])
    assert windows_touching(whole, windows, ids).tolist() == expected
    assert 0 < sum(expected) < len(ids)
    if cover == "random":
        boxes = windows_of(windows, ids)
        inside = [region[y0:y1, x0:x1].any() for y0, x0, y1, x1 in boxes.tolist()]
        assert sum(inside) > sum(expected), "a window that covers the region where others are used does not touch it"


def test_guidance_in_some_levels_costs_only_there(tiny_model, tmp_path):
    arguments = ("--model", tiny_model, *SIZE, "--guidance", 2)
    always, never = planned(*arguments), planned("--model", tiny_model, *SIZE, "--guidance", 1)
    some = (*arguments, "--guidance-interval", "1:3")
    assert planned(*some) == [never[0], always[1], always[2], never[3]]
    assert always[0] > never[0]
    log = tmp_path / "log.jsonl"
    assert launch(2, *some, "--out", tmp_path / "o.zarr", "--json-log", log).returncode == 0
    assert evaluations(log) == planned(*some)
    whole = ("--guidance-interval", "0:4")
    shas = []
    for name, options in (("all", whole), ("off", ())):
        assert launch(2, *arguments, *options, "--out", tmp_path / f"{name}.zarr").returncode == 0
        shas.append(sha(tmp_path / f"{name}.zarr"))
    assert shas[0] == shas[1] != sha(tmp_path / "o.zarr")


def test_wrong_regions_and_intervals_are_refused(tiny_model, tmp_path):
    own = ("--model", tiny_model, *SIZE, "--out", tmp_path / "o.zarr")
    np.save(tmp_path / "none.npy", np.zeros((300, 420), np.uint8))
    np.save(tmp_path / "small.npy", np.ones((30, 45), np.uint8))
    for options, said in (
        (("--roi", tmp_path / "none.npy"), ["none.npy", "nothing is wanted"]),
        (("--roi", tmp_path / "small.npy"), ["30 x 45", "300 x 420", "proportions"]),
        (("--roi", tmp_path / "gone.npy"), ["gone.npy", "not there"]),
        (("--guidance-interval", "3:2"), ["3:2"]),
        (("--guidance-interval", "1:9"), ["1:9", "4 levels"]),
        (("--guidance-interval", "first"), ["first", "5:20"]),
    ):
        line = refused(tmp_path, *own, *options)
        assert all(words in line for words in said), line
