"""Embeddings out of files of any length: rows of a list, read where they are needed."""

import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from families import make_model
from launching import ROOT, environment, launch, refused, sha

import engine
from engine.inputs.embeddings import checked_hash
from engine.inputs.input_file import InputFile
from engine.inputs.maps import digest_of
from engine.inputs.stored_grid import GridRows, StoredGrid
from engine.storage.readers import read_rows

LIST = np.random.default_rng(3).standard_normal((160, 12)).astype(np.float32)
GRID = (3, 2)  # of the model's windows
SIZE = ("--size", "190x120", "--steps", 1, "--preview", "none")


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    """The authors' file: all patches of a data set one below another, and the larger patches around 16 each."""
    file = tmp_path_factory.mktemp("features") / "features_hipt_ctr.h5"
    with h5py.File(file, "w") as opened:
        opened["feat_20x"] = LIST
        opened["feat_5x"] = LIST[:10]
        opened["half"] = LIST.astype(np.float16)
        opened["counts"] = np.arange(24).reshape(2, 12)
        opened["wide"] = np.zeros((160, 13), np.float32)
        opened.create_dataset("packed", data=LIST, chunks=(7, 12), compression="gzip")
        opened["broken"] = np.where(np.arange(160)[:, None] == 11, np.nan, LIST)
    return file


def grid_of(file, dataset, rows, is_set=False):
    path = f"{file}:/{dataset}" if dataset else file
    return StoredGrid(InputFile(Path(path), "`embeddings`", read_rows), rows, 12, is_set)


@pytest.mark.parametrize("dataset", ["feat_20x", "packed"])
def test_a_grid_in_a_file_is_indexed_like_the_array(features, dataset):
    numbers = np.random.default_rng(0).integers(0, 160, (40, 37))
    scattered = grid_of(features, dataset, GridRows((40, 37), numbers=numbers))
    for y, x in [(0, 0), (39, 36), (17, 15), (16, 16)]:
        assert (scattered[y, x] == LIST[numbers[y, x]]).all()
    assert (grid_of(features, dataset, GridRows((4, 5), 20))[2, 3] == LIST[20 + 13]).all()
    assert (grid_of(features, dataset, GridRows((4, 5), 20, True))[2, 3] == LIST[20 + 14]).all()
    assert (grid_of(features, dataset, GridRows((100, 1), 7), True)[99] == LIST[106]).all()


def test_the_hash_is_that_of_the_rows_that_are_used(features, tmp_path):
    """Also of what an earlier version kept of a file with exactly the grid: its unfinished outputs go on."""
    rows = GridRows((4, 4), 32)
    expected = digest_of(LIST[32:48].reshape(4, 4, 12))
    assert checked_hash(grid_of(features, "feat_20x", rows)) == expected
    np.save(tmp_path / "grid.npy", LIST[32:48].reshape(4, 4, 12).astype(np.float64))
    assert checked_hash(grid_of(tmp_path / "grid.npy", "", GridRows((4, 4)))) == expected
    assert checked_hash(grid_of(features, "feat_20x", GridRows((4, 4), 33))) != expected
    assert checked_hash(grid_of(features, "feat_20x", GridRows((9, 1)), True)) == digest_of(LIST[:9])


def test_rows_of_a_file_longer_than_memory_are_read_in_little(tmp_path):
    """24 GB as the authors' file, of which nothing but the rows that are used is on the disk, or is ever read."""
    file = tmp_path / "long.h5"
    with h5py.File(file, "w") as opened:
        listed = opened.create_dataset("feat_20x", (15_625_000, 384), np.float32)
        listed[15_000_000:15_004_096] = np.random.default_rng(0).standard_normal((4096, 384), np.float32)
    assert file.stat().st_size > 23 * 10**9
    assert file.stat().st_blocks * 512 < 10**8
    code = f"""if True:
        import resource
        from pathlib import Path
        from engine.inputs.embeddings import checked_hash
        from engine.inputs.input_file import InputFile
        from engine.inputs.stored_grid import GridRows, StoredGrid
        from engine.storage.readers import read_rows
        file = InputFile(Path({str(file)!r} + ":/feat_20x"), "`embeddings`", read_rows)
        held = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        grid = StoredGrid(file, GridRows((64, 64), 15_000_000), 384)
        file.array.shape
        before = held()
        checked_hash(grid)
        total = sum(abs(grid[y, x]).sum() for y in range(64) for x in range(64))
        print(held() - before, total > 0)
    """
    done = subprocess.run([sys.executable, "-c", code], env=environment(), cwd=ROOT, capture_output=True, text=True)
    grown, read = done.stdout.split()
    assert read == "True", done.stderr
    assert int(grown) < 10**8


# ---- through the front door ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    pytest.importorskip("diffusers")
    return make_model("large-image-diffusion", tmp_path_factory.mktemp("family") / "large")


def sampled(out, ranks, *arguments):
    done = launch(ranks, *arguments, *SIZE, "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    return sha(out), json.loads((out / "zarr.json").read_text())["attributes"]["slidefield"]["identity"]


@pytest.mark.runs
def test_rows_of_a_long_list_are_the_grid_on_1_and_3_ranks(model, features, tmp_path):
    np.save(tmp_path / "grid.npy", LIST[40:46].reshape(*GRID, 12))
    np.save(tmp_path / "rows.npy", np.arange(40, 46).reshape(GRID))
    np.save(tmp_path / "listed.npy", np.array([40, 42, 44, 41, 43, 45]))
    np.save(tmp_path / "turned.npy", LIST[40:46].reshape(GRID[::-1] + (12,)).swapaxes(0, 1))
    own = ("--model", model, "--embeddings")
    whole = sampled(tmp_path / "whole.zarr", 2, *own, tmp_path / "grid.npy")
    listed = f"{features}:/feat_20x"
    ways = {
        "first": (1, listed, "--rows", 40),
        "three": (3, listed, "--rows", 40),
        "packed": (1, f"{features}:/packed", "--rows", 40),
        "numbers": (3, listed, "--rows", tmp_path / "rows.npy"),
        "columns": (1, listed, "--rows", tmp_path / "listed.npy", "--grid-order", "columns"),
    }
    for name, (ranks, *arguments) in ways.items():
        assert sampled(tmp_path / f"{name}.zarr", ranks, *own, *arguments) == whole, name
    turned = sampled(tmp_path / "t.zarr", 1, *own, listed, "--rows", 40, "--grid-order", "columns")
    assert turned == sampled(tmp_path / "u.zarr", 1, *own, tmp_path / "turned.npy")
    assert turned != whole


@pytest.mark.runs
def test_a_set_takes_rows_of_a_long_list(model, features, tmp_path):
    np.save(tmp_path / "five.npy", LIST[[3, 150, 3, 9, 10]])
    np.save(tmp_path / "rows.npy", np.array([3, 150, 3, 9, 10]))
    own = ("--model", model, "--count", 5, "--cover", "random", "--shard", 128, "--chunk", 64, "--embeddings")
    whole = sampled(tmp_path / "a.zarr", 1, *own, tmp_path / "five.npy")
    chosen = sampled(tmp_path / "b.zarr", 3, *own, f"{features}:/feat_20x", "--rows", tmp_path / "rows.npy")
    assert whole == chosen


@pytest.mark.runs
def test_python_takes_row_numbers_as_they_are(model, features):
    options = {"model": model, "size": (190, 120), "steps": 2, "embeddings": f"{features}:/feat_20x", "seed": 0}
    pipeline = engine.Pipeline(model)
    del options["model"]
    images = [pipeline(**options, rows=rows)[...] for rows in (40, "40", np.arange(40, 46), [40, 41, 42, 43, 44, 45])]
    assert all((image == images[0]).all() for image in images)


@pytest.mark.runs
def test_wrong_rows_are_refused(model, features, tmp_path):
    for name, numbers in {
        "few": np.arange(5),
        "beyond": np.array([0, 1, 2, 3, 4, 160]),
        "negative": np.array([0, 1, 2, 3, 4, -1]),
        "floats": np.arange(6.0),
        "grid": np.arange(6).reshape(2, 3),
    }.items():
        np.save(tmp_path / f"{name}.npy", numbers)
    own = ("--model", model, *SIZE, "--out", tmp_path / "o.zarr", "--embeddings")
    listed = f"{features}:/feat_20x"
    for arguments, said in (
        ((listed,), ["holds 160 embeddings, not 3 x 2", "--rows"]),
        ((listed, "--rows", 155), ["--rows 155", "155 to 160", "holds 160, 0 to 159"]),
        ((listed, "--rows", -1), ["--rows"]),
        ((listed, "--rows", tmp_path / "few.npy"), ["few.npy", "5", "3 x 2"]),
        ((listed, "--rows", tmp_path / "beyond.npy"), ["row 160", "0 to 159"]),
        ((listed, "--rows", tmp_path / "negative.npy"), ["row -1", "0 to 159"]),
        ((listed, "--rows", tmp_path / "floats.npy"), ["float64", "whole numbers"]),
        ((listed, "--rows", tmp_path / "grid.npy"), ["2 x 3", "3 x 2"]),
        ((listed, "--rows", tmp_path / "none.npy"), ["--rows", "none.npy", "not there"]),
        ((listed, "--rows", 0, "--region-rows", 3), ["--region-rows", "--region-embeddings"]),
        ((f"{features}:/feat_10x", "--rows", 0), ["/feat_10x", "/feat_20x", "/feat_5x"]),
        ((f"{features}:/wide", "--rows", 0), ["13", "12"]),
        ((f"{features}:/counts", "--rows", 0), ["int64"]),
        ((f"{features}:/broken", "--rows", 8), ["not finite", "row 11"]),
        ((listed, "--rows", 0, "--count", 5, "--grid-order", "columns"), ["--grid-order", "set of 5"]),
        ((listed, "--rows", 0, "--count", 5, "--grid", "7x7"), ["--grid 7x7", "set of 5"]),
        ((listed, "--rows", "1.5"), ["--rows", "whole number"]),
        ((listed, "--rows", tmp_path / "grid.npy", "--grid-order", "columns"), ["--grid-order", "2 x 3"]),
    ):
        line = refused(tmp_path, *own, *arguments, ranks=1)
        assert all(words in line for words in said), line


def test_a_dataset_without_values_is_refused(tmp_path):
    with h5py.File(tmp_path / "empty.h5", "w") as file:
        file["feat_20x"] = h5py.Empty("f4")
    with pytest.raises(ValueError, match=r"empty.h5:/feat_20x.*holds no values; name another"):
        read_rows(tmp_path / "empty.h5:/feat_20x", "`embeddings`")
