"""Do the engine's lines show? On the shipped model, and on a run that is made to show them."""

import json
import shutil

import numpy as np
import pytest
from launching import launch
from PIL import Image

from engine.distributed.launch import ranks_of
from engine.distributed.ranks import AgreedError
from engine.evaluation.seams import differences, frames_of, lines_of, ratios_of, seam_measures, sums_over
from engine.planning.geometry import Box, Grid
from engine.storage.metadata import write_provenance
from engine.storage.output import Output

pytestmark = pytest.mark.runs


def whole_image_score(image, lines):
    """The same score with the image whole in memory, float by float: what the streamed one is held against."""
    on, elsewhere = [], []
    for axis in (0, 1):
        values = np.moveaxis(image.astype(np.float64), 1 + axis, 0)
        steps = np.concatenate([[np.nan], np.abs(np.diff(values, axis=0)).mean((1, 2)), [np.nan]])
        padded = np.pad(steps, 6, constant_values=np.nan)
        near = [padded[6 + d : 6 + d + len(steps)] for d in (-6, -5, -4, -3, -2, 2, 3, 4, 5, 6)]
        ratio = steps / np.nanmean(near, 0)
        inner = sorted({int(v) for v in lines[axis] if 0 < v < len(steps) - 1})
        on.append(ratio[inner])
        elsewhere.append(np.delete(ratio, [0, len(steps) - 1, *inner]))
    every = np.concatenate(on)
    return every.mean(), np.concatenate(elsewhere).std() / len(every) ** 0.5


def streamed_score(image, lines, sides=(64, 96)):
    """Ratio and standard error of an image that is read by boxes, its rows of boxes in two shares."""
    boxes = Grid(image.shape[1:], sides)

    def read(box):
        return image[:, box.y0 : box.y1, box.x0 : box.x1]

    cut = boxes.counts[0] // 2
    shares = [differences(read, boxes, rows) for rows in (range(cut), range(cut, boxes.counts[0]))]
    sums = tuple(a + b for a, b in zip(*shares, strict=True))
    count, on, others, mean, square = sums_over(ratios_of(sums, image.shape[1:], len(image)), lines)
    return on / count, ((square / others - (mean / others) ** 2) / count) ** 0.5


def test_the_streamed_score_is_that_of_the_whole_image():
    rng = np.random.default_rng(0)
    image = np.cumsum(rng.integers(-3, 4, (3, 331, 270)), 2).astype(np.uint8)
    lines = (np.array([0, 5, 64, 128, 330, 331, 400]), np.array([1, 96, 100, 192]))
    assert streamed_score(image, lines) == pytest.approx(whole_image_score(image, lines), rel=1e-12)


def test_the_score_sees_a_step_and_is_one_without():
    rng = np.random.default_rng(0)
    image = rng.normal(128, 20, (3, 512, 512))
    lines = (np.arange(64, 512, 64), np.arange(64, 512, 64))
    ratio, error = streamed_score(image.clip(0, 255).astype(np.uint8), lines)
    assert error < 0.01
    assert abs(ratio - 1) < 3 * error
    stepped = image + np.where((np.arange(512) // 64) % 2, 6, -6)[None, :, None]
    assert streamed_score(stepped.clip(0, 255).astype(np.uint8), lines)[0] > 1.03


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("seams") / "sample.zarr"
    done = launch(2, "--size", "1024x1024", "--shard", 512, "--chunk", 256, "--out", out)
    assert done.returncode == 0, done.stderr
    return out


def by_kind(path):
    return {measure.name: measure for measure in seam_measures(ranks_of(), path)}


def test_no_line_of_the_engine_shows_in_a_sample_of_the_embedded_model(finished):
    """To 0.02, and three times what as many lines drawn anywhere would vary by."""
    measures = by_kind(finished)
    assert len(measures) == 5
    assert measures["latents"].error < 0.01
    for measure in measures.values():
        assert abs(measure.value - 1) <= 0.02 + 3 * measure.error, measure


def test_the_score_of_an_output_is_that_of_its_whole_image_on_any_number_of_ranks(finished, tmp_path):
    output = Output(finished)
    image = output.read("0", Box(0, 0, 1024, 1024))
    lines, measures = lines_of(output.provenance, frames_of(output)), by_kind(finished)
    for kind, measure in measures.items():
        assert (measure.value, measure.error) == pytest.approx(whole_image_score(image, lines[kind]), rel=1e-9), kind
    assert launch(3, finished, "--json", tmp_path / "r.json", module="benchmarks.seams").returncode == 0
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert [(row["lines"], row["ratio"], row["error"]) for row in rows] == [
        (measure.name, measure.value, measure.error) for measure in measures.values()
    ]


def test_lines_are_known_without_the_models_folder_unless_an_earlier_version_wrote_the_output(finished, tmp_path):
    here = tmp_path / "copy.zarr"
    shutil.copytree(finished, here)
    provenance = Output(here).provenance
    provenance["job"]["model"] = "/gone"
    write_provenance(here, provenance)
    assert by_kind(here) == by_kind(finished)
    del provenance["window"]
    write_provenance(here, provenance)
    with pytest.raises(AgreedError, match="does not say what windows it has, and its model /gone is gone; put that"):
        seam_measures(ranks_of(), here)
    write_provenance(here, {**provenance, "job": {**provenance["job"], "model": "embedded"}, "model_hash": "0"})
    with pytest.raises(AgreedError, match="embedded is another model now; put that model back"):
        seam_measures(ranks_of(), here)


def test_a_set_has_the_score_of_its_images_each_with_its_own_windows(tiny_model, tmp_path):
    out, other = tmp_path / "set.zarr", tmp_path / "r.json"
    options = ("--size", "160x128", "--count", 5, "--label", 1, "--steps", 3, "--preview", "none")
    assert launch(2, "--model", tiny_model, *options, "--out", out).returncode == 0
    output, measures = Output(out), by_kind(out)
    frames = frames_of(output)
    for kind, measure in measures.items():
        sums = [
            sums_over(
                ratios_of(differences_of(output.read_part(image, Box(0, 0, 160, 128))), (160, 128), 3),
                lines_of(output.provenance, frames, image)[kind],
            )
            for image in range(5)
        ]
        count, on = np.sum(sums, 0)[:2]
        assert measure.value == pytest.approx(on / count)
    assert launch(3, out, "--json", other, module="benchmarks.seams").returncode == 0
    rows = json.loads(other.read_text())["rows"]
    assert [row["ratio"] for row in rows] == [measure.value for measure in measures.values()]


def differences_of(image):
    boxes = Grid(image.shape[1:], image.shape[1:])
    return differences(lambda box: image, boxes, range(1))


def test_the_same_score_sees_the_seams_of_an_unshifted_unblended_run(tmp_path):
    out = tmp_path / "cut.zarr"
    options = ("--size", "1024x1024", "--cover", "strided", "--stride", 32, "--decode-overlap", 0, "--steps", 4)
    assert launch(2, *options, "--out", out).returncode == 0
    measures = by_kind(out)
    assert measures["windows of a fixed lattice"].value > 1.1
    assert measures["windows of the decoder"].value > 1.1


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
