"""Every benchmark runs, tiny."""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, environment, launch
from PIL import Image

from benchmarks.realism import density_rows, sliced_wasserstein, spectrum_rows


def bench(name, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *map(str, arguments)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def out(tiny_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "o.zarr"
    options = ("--size", "1024x1024", "--steps", 2, "--shard", 512, "--preview", "none")
    assert launch(2, "--model", tiny_model, *options, "--out", path).returncode == 0
    return path


def test_seams_runs(out, tmp_path):
    assert "windows of the decoder" in bench("seams", out, "--json", tmp_path / "r.json")
    found = json.loads((tmp_path / "r.json").read_text())
    assert {"machine", "rows", "benchmark"} <= set(found)
    assert {"cpu", "cores", "commit"} <= set(found["machine"])


def test_realism_runs(out, tmp_path):
    rng = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (512, 512, 3)).astype(np.uint8)).save(tmp_path / f"t{i}.png")
        Image.fromarray(np.full((512, 512), i, np.uint8)).save(tmp_path / f"t{i}_mask.png")
    text = bench("realism", out, "--tiles", tmp_path, "--json", tmp_path / "r.json")
    assert "optical density R mean" in text
    assert "sliced Wasserstein" in text


def test_the_measures_of_realism_see_what_they_are_for():
    rng = np.random.default_rng(0)
    tiles = rng.integers(60, 220, (32, 128, 128, 3)).astype(np.uint8)
    same = rng.integers(60, 220, (32, 128, 128, 3)).astype(np.uint8)
    soft = ((tiles.astype(int) + np.roll(tiles, 1, 1) + np.roll(tiles, 1, 2)) // 3).astype(np.uint8)
    assert all(abs(r["compared"] - 1) < 0.02 for r in density_rows(tiles, same))
    assert all(abs(r["compared"]) < 0.5 for r in spectrum_rows(tiles, same)[:4])  # wide bands: many modes
    assert spectrum_rows(tiles, soft)[0]["compared"] < -1.3
    assert sliced_wasserstein(tiles, soft) > 2 * sliced_wasserstein(tiles, same)


def test_picture_runs(out, tmp_path):
    bench("picture", out, tmp_path / "p.jpg")
    assert Image.open(tmp_path / "p.jpg").size == (1024 + 512, 1024)


def test_evaluations_runs_and_ours_are_few(tmp_path):
    labels = np.zeros((1024, 1536), np.uint8)
    labels[300:700, 200:1200], labels[700:, :] = 1, 3
    Image.fromarray(labels).save(tmp_path / "map.png")
    bench("evaluations", tmp_path / "map.png", "--sizes", "1024,4096", "--drawn", 1024, "--json", tmp_path / "r.json")
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert [row["px"] for row in rows] == ["1024 x 1536", "1024 x 1024", "4096 x 4096"]
    assert all(row["ours / DiffInfinite"] < 0.6 for row in rows[:2])
    assert rows[2]["DiffInfinite"] == ""
    assert all(row["windows / (area / patch area)"] <= (1 + 64 * 8 / 1024) ** 2 for row in rows)


def test_network_runs_and_every_form_computes_the_same(tmp_path):
    bench("network", "--rounds", 1, "--batches", 1, "--size", 16, "--dim", 32, "--json", tmp_path / "r.json")
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert {row["form"] for row in rows} >= {"plain", "as trained", "prepared"}
    assert len({row["network"] for row in rows}) >= 4  # and diffusers', where it is installed
    assert all(float(row["difference"]) < 1e-5 for row in rows)


def test_kernels_runs_and_no_kernel_moves_less_than_it_must(tmp_path):
    bench("kernels", "--side", 128, "--count-side", 128, "--repeats", 1, "--json", tmp_path / "r.json")
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert {row["kernel"] for row in rows} >= {"gather to bfloat16", "fuse, overlap of half", "noise alone"}
    for row in rows:
        assert row["moved / least"] >= 1, row
        assert row["version"] == "torch" or row["moved / least"] < 1.7, row  # few windows: many overlap
