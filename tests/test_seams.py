"""Do the engine's lines show? On the shipped model, and on a run that is made to show them."""

import json
import shutil

import numpy as np
import pytest
from launching import launch
from PIL import Image

from engine.distributed.launch import ranks_of
from engine.distributed.ranks import AgreedError
from engine.evaluation.arrays import array_measures
from engine.evaluation.crops import crops_of
from engine.evaluation.seams import differences, frames_of, lines_of, ratios_of, seam_measures, sums_over
from engine.evaluation.sources import source_of
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


@pytest.fixture(scope="module")
def plane(tiny_model, tmp_path_factory):
    """A plane's function that fills the largest of its two regions, and leaves the rest white."""
    out = tmp_path_factory.mktemp("planes") / "plane.zarr"
    job = ("--model", tiny_model, "--label", 1, "--steps", 2, "--shard", 128, "--chunk", 64)
    for region in ("=-20:236,30:286", "=300:308,0:8"):
        assert launch(1, *job, "--plane", out, "--region" + region).returncode == 0

    def filled(copy, pixels):
        """A copy whose region holds some pixels."""
        shutil.copytree(out, copy)
        output = Output(copy)
        region = output.layout.on_arrays(Box(-20, 30, 236, 286))
        for box in output.layout.boxes():
            if part := box & region:
                white = np.full((3, *box.shape), 255, np.uint8)
                white[(slice(None), *part.within(box))] = pixels[(slice(None), *part.within(region))]
                output.write(output.layout.image, box, white)
        return copy

    return filled


def test_a_seam_of_a_plane_is_found_on_its_own_lattice_and_noise_has_none(plane, tmp_path):
    noise = np.random.default_rng(0).normal(128, 20, (3, 256, 256))
    flat = by_kind(plane(tmp_path / "flat.zarr", noise.clip(0, 255).astype(np.uint8)))
    assert set(flat) >= {"windows of the last 5 levels", "windows of a fixed lattice", "shards", "latents"}
    for measure in flat.values():
        assert abs(measure.value - 1) < 4 * measure.error < 0.2, measure
    y, x = np.ogrid[-20:236, 30:286]  # positions of the plane: shards begin at multiples of 128
    raised = noise + 30 * ((y // 128 + x // 128) % 2)
    stepped = by_kind(plane(tmp_path / "stepped.zarr", raised.clip(0, 255).astype(np.uint8)))
    assert stepped["shards"].value > 1.3
    assert stepped["shards"].value > flat["shards"].value + 6 * flat["shards"].error
    assert abs(stepped["latents"].value - 1) < 0.1
    said = [launch(n, tmp_path / "stepped.zarr", "--metrics", "seams", module="engine.evaluate").stdout for n in (1, 3)]
    assert said[0] == said[1]


def test_a_plane_whose_pixels_are_all_the_same_is_refused_in_one_line(plane, tmp_path):
    same = plane(tmp_path / "same.zarr", np.full((3, 256, 256), 90, np.uint8))
    for module, options in (("engine.evaluate", ("--metrics", "seams")), ("benchmarks.seams", ())):
        done = launch(2, same, *options, module=module)
        assert done.returncode == 1
        errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
        assert len(errors) == 1, done.stderr
        assert "no line of" in errors[0]
        assert "Traceback" not in done.stderr


def test_of_a_plane_the_region_is_measured_and_no_white(plane, tmp_path):
    out = plane(tmp_path / "grey.zarr", np.full((3, 256, 256), 90, np.uint8))
    source = source_of(out, "generated")
    crops = crops_of(source, 128)
    assert [box.tolist() for box in crops.places] == [[0, 0, 0], [0, 0, 128], [0, 128, 0], [0, 128, 128]]
    assert all((crops.read(n) == 90).all() and (crops.labels(n) == 1).all() for n in range(4))
    measures, _ = array_measures(ranks_of(), out)
    assert {measure.name: measure.value for measure in measures if measure.label == "carcinoma"} == {"area": 100.0}


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
