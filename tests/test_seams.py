"""Do the engine's lines show? On the shipped model, and on a run that is made to show them."""

import numpy as np
import pytest
from launching import launch
from PIL import Image

from benchmarks.seams import measure, seam_ratio

pytestmark = pytest.mark.runs


def test_the_statistic_sees_a_step_and_is_one_without():
    rng = np.random.default_rng(0)
    image = rng.normal(128, 20, (3, 512, 512))
    lines = (range(64, 512, 64), range(64, 512, 64))
    ratio, error = seam_ratio(image, lines)
    assert error < 0.01
    assert abs(ratio - 1) < 3 * error
    stepped = image + np.where((np.arange(512) // 64) % 2, 6, -6)[None, :, None]
    assert seam_ratio(stepped, lines)[0] > 1.03


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("seams") / "sample.zarr"
    done = launch(2, "--size", "1024x1024", "--shard", 512, "--chunk", 256, "--out", out)
    assert done.returncode == 0, done.stderr
    return out


def test_no_line_of_the_engine_shows_in_a_sample_of_the_embedded_model(finished):
    """To 0.02, and three times what as many lines drawn anywhere would vary by."""
    rows = {row["lines"]: row for row in measure(finished)}
    assert rows["latents"]["error"] < 0.01
    for row in rows.values():
        assert abs(row["ratio"] - 1) <= 0.02 + 3 * row["error"], row


def test_the_same_statistic_sees_the_seams_of_an_unshifted_unblended_run(tmp_path):
    out = tmp_path / "cut.zarr"
    options = ("--size", "1024x1024", "--cover", "strided", "--stride", 32, "--decode-overlap", 0, "--steps", 4)
    assert launch(2, *options, "--out", out).returncode == 0
    ratios = {row["lines"]: row["ratio"] for row in measure(out)}
    assert ratios["windows of a fixed lattice"] > 1.1
    assert ratios["windows of the decoder"] > 1.1


def test_the_sample_is_a_picture_of_tissue(finished):
    """Not a test of beauty (look at it): of what breaks it. Pinks and purples, some light, contrast."""
    picture = np.asarray(Image.open(finished.with_suffix(".png"))).astype(float)
    assert picture.shape[1:] == (2048, 3), "the image, and its label map with a legend"
    image = picture[:1024, :1024]
    r, g, b = image.reshape(-1, 3).mean(0)
    assert r > g + 10
    assert b > g + 5
    assert 15 < image.std() < 90
    assert image.mean() > 90
