"""Judges of labels, classes, nuclei and embeddings: what they say of pictures that are known, on 1 and 3 ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation_parts import crops
from extractors import colors
from families import asked, discs, make_model
from launching import launch
from PIL import Image

from engine.distributed.launch import ranks_of
from engine.evaluation.class_accuracy import as_the_expert_sees, classes_of
from engine.evaluation.label_judge import pure_windows, regression, with_one
from engine.evaluation.nuclei import RING, nuclei_of, quantities
from engine.evaluation.sources import OutputSource, source_of
from engine.models.expert import load_expert
from engine.models.folder import save_part
from engine.models.networks.resnet import ResNet
from engine.training.published.tissue import grey_picture


def part(ranks: int, *arguments: object) -> dict[tuple[str, str], dict[str, Any]]:
    """Measures by name and label, and tables by name."""
    done = launch(ranks, *arguments, module="evaluation_parts")
    assert done.returncode == 0, done.stdout + done.stderr
    return {(result["name"], result.get("label", "")): result for result in json.loads(done.stdout)}


def same(one: dict[Any, Any], three: dict[Any, Any]) -> None:
    assert one.keys() == three.keys()
    for name, result in one.items():
        keys = ("values",) if "rows" in result else ("value", "reference", "error")
        for key in keys:
            a, b = (np.array(each[name][key], float) for each in (one, three))
            assert a == pytest.approx(b, abs=1e-9, nan_ok=True), name


def refused(ranks: int, *arguments: object) -> str:
    done = launch(ranks, *arguments, module="evaluation_parts")
    assert done.returncode == 1, done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line


# -- labels --


def labelled(folder: Path, count: int, seed: int, swapped: bool = False) -> Path:
    """Pictures of 96 px, half of label 1 and half of 2, and 0 in a corner: stripes and dots."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for index in range(count):
        labels = np.ones((96, 96), np.uint8)
        labels[:, 48:] = 2
        labels[:20, 40:56] = 0
        shown = np.where(labels == 0, 0, 3 - labels) if swapped else labels
        pixels = 150 + rng.normal(0, 25, (96, 96, 3))
        pixels[::4] -= 70 * (shown[::4, :, None] == 1)
        pixels[:, ::4] -= 70 * (shown[:, ::4, None] == 2)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{index}.png")
        Image.fromarray(labels).save(folder / f"{index}_mask.png")
    return folder


def test_the_judge_tells_labels_and_sees_when_they_are_not_what_was_asked(tmp_path):
    reference = labelled(tmp_path / "reference", 8, 1)
    good, bad = labelled(tmp_path / "good", 4, 2), labelled(tmp_path / "bad", 4, 3, swapped=True)
    ratio = ("accuracy over that on the reference", "")
    one, three = (part(ranks, "labels", good, reference, 96, 48) for ranks in (1, 3))
    same(one, three)
    assert one[ratio]["value"] > 0.9
    assert one["accuracy of the judge", ""]["reference"] > 0.9
    assert np.array(one["labels told by the judge, generated", ""]["values"]).sum(1) == pytest.approx([1, 1])
    assert {label for name, label in one if name == "told rightly"} == {"label 1", "label 2"}
    assert part(1, "labels", bad, reference, 96, 48)[ratio]["value"] < 0.2


def test_what_the_judge_of_labels_cannot_do_is_one_line(tmp_path):
    reference = labelled(tmp_path / "reference", 8, 1)
    few = labelled(tmp_path / "few", 1, 1)
    assert "there are such of 0; give more images" in refused(2, "labels", few, reference, 96, 48)
    for mask in (tmp_path / "few").glob("*_mask.png"):
        mask.unlink()
    assert "0.png, 96 px from row 0, column 0 has no label map" in refused(2, "labels", few, reference, 96, 48)


def test_windows_lie_where_one_label_covers_most(tmp_path):
    of_folder = crops(str(labelled(tmp_path / "a", 1, 0)))
    assert pure_windows(of_folder, 0, 48) == [(0, 0, 0, 1), (0, 0, 48, 2), (0, 48, 0, 1), (0, 48, 48, 2)]
    assert [label for *_, label in pure_windows(of_folder, 0, 80)] == []


def test_the_regression_is_that_of_scikit_learn():
    linear = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 90) // np.array([1])
    features = rng.normal(0, 1, (90, 4)) + labels[:, None] * [1, 0, -1, 0]
    weights = 1 / (np.bincount(labels) * 3)[labels]
    theirs = linear.LogisticRegression(C=1 / (2 * 0.1), max_iter=1000, tol=1e-10)
    theirs.fit(features, labels, sample_weight=weights)
    ours = with_one(features) @ regression(features, labels)
    assert np.abs(softmax(ours) - theirs.predict_proba(features)).max() < 1e-4


def softmax(logits: np.ndarray) -> np.ndarray:
    return torch.softmax(torch.from_numpy(logits), 1).numpy()


# -- classes --

CLASSES = ("TUMOR", "STROMA", "EMPTY")


@pytest.fixture(scope="module")
def kather(tmp_path_factory) -> Path:
    folder, rng = tmp_path_factory.mktemp("classes"), np.random.default_rng(0)
    for name, level in zip(CLASSES[:2], (60, 150), strict=True):
        (folder / name).mkdir()
        for i in range(5):
            pixels = level + rng.integers(-40, 40, (32, 32, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def expert(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("expert") / "expert"
    torch.manual_seed(0)
    save_part(ResNet(1, 3, 4, (1, 1), 8), folder, torch.float32)
    (folder / "accuracy.json").write_text(json.dumps({"labels": ["tumor", "empty", "stroma"]}))
    return folder.parent


def test_class_accuracy_is_what_scikit_learn_says_of_the_experts_logits(kather, expert):
    metrics = pytest.importorskip("sklearn.metrics")
    one, three = (part(ranks, "classes", kather, kather, expert, 32) for ranks in (1, 3))
    same(one, three)
    paths = [kather / name for name in source_of(kather, "x").names]
    with torch.inference_mode():
        logits = load_expert(expert)(torch.from_numpy(np.stack([grey_picture(path, 32) for path in paths])))
    chosen = logits[:, [2, 0]].numpy()  # STROMA and TUMOR, by name
    truth = np.array([["STROMA", "TUMOR"].index(path.parent.name) for path in paths])
    accuracy, loss = one["generation accuracy", ""], one["cross entropy", ""]
    assert accuracy["value"] == pytest.approx(metrics.accuracy_score(truth, chosen.argmax(1)))
    assert accuracy["value"] == accuracy["reference"]
    assert loss["value"] == pytest.approx(metrics.log_loss(truth, softmax(chosen)), rel=1e-5)
    table = next(result for (name, _), result in one.items() if name.startswith("classes told by"))
    assert (np.array(table["values"]) == metrics.confusion_matrix(truth, chosen.argmax(1))).all()
    assert table["rows"] == ["STROMA", "TUMOR"]


def test_an_expert_is_shown_pictures_as_it_was_trained_on_them(kather, tmp_path):
    path = next(kather.rglob("*.png"))
    pixels = np.asarray(Image.open(path))
    shown = as_the_expert_sees(np.stack([pixels, pixels[..., :1].repeat(3, -1)]), 48, 1)
    assert np.abs(shown[0].numpy() - grey_picture(path, 48)).max() < 1e-6
    Image.fromarray(pixels[..., 0]).save(tmp_path / "grey.png")
    assert np.abs(shown[1].numpy() - grey_picture(tmp_path / "grey.png", 48)).max() < 1e-6


def test_classes_that_nobody_said_or_knows_are_one_line(kather, expert, tmp_path):
    labelled(tmp_path / "plain", 2, 0)
    said = refused(2, "classes", tmp_path / "plain", kather, expert, 32)
    assert "does not say the class of each image; give a set of a model of classes" in said
    (tmp_path / "sets" / "DEBRIS").mkdir(parents=True)
    (tmp_path / "sets" / "DEBRIS" / "a.png").write_bytes(next(kather.rglob("*.png")).read_bytes())
    assert "does not know the class DEBRIS; it knows tumor, empty, stroma" in refused(
        2, "classes", tmp_path / "sets", kather, expert, 32
    )


def test_a_set_of_a_model_of_classes_says_which_each_image_is(tmp_path):
    pytest.importorskip("diffusers")
    model, out = make_model("feature-aligned", tmp_path / "model"), tmp_path / "set.zarr"
    np.save(tmp_path / "classes.npy", np.random.default_rng(0).standard_normal((3, 512)).astype(np.float32))
    done = launch(
        1, "--model", model, "--embeddings", tmp_path / "classes.npy", "--label", "2,0", "--count", 3, "--steps", 1,
        "--size", "32x32", "--out", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert classes_of(crops(str(out)))[0].tolist() == [2, 0, 2]


# -- nuclei --


def nuclear(folder: Path, seed: int, dark: float, pitch: int = 17) -> Path:
    """images/ and inst_masks/: discs that are darker than what is around them."""
    for name in ("images", "inst_masks"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for index in range(3):
        ids = discs((70, 90), pitch)
        pixels = np.where(ids[..., None] > 0, 180 - dark, 180.0) + rng.normal(0, 8, (70, 90, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{index}.png")
        Image.fromarray(ids.astype(np.int32)).save(folder / "inst_masks" / f"{index}.tif")
    return folder


def test_nuclei_are_counted_once_in_boxes_of_any_size(tmp_path):
    measure = pytest.importorskip("skimage.measure")
    morphology = pytest.importorskip("skimage.morphology")
    source = source_of(nuclear(tmp_path / "a", 0, 60, pitch=22), "folder")
    whole, cut = (nuclei_of(ranks_of(), source, side) for side in (1024, 16))
    assert (whole == cut).all()
    ids, pixels = discs((70, 90), 22), np.asarray(Image.open(tmp_path / "a" / "images" / "0.png"))
    known = measure.regionprops(ids.astype(int), pixels)
    of_first = whole[whole["key"] < 2**32]
    assert of_first["key"].tolist() == [region.label for region in known]
    assert of_first["area"].tolist() == [region.area for region in known]
    colors_inside = quantities(of_first)[1:4].T
    assert colors_inside == pytest.approx(np.array([region.intensity_mean for region in known]))
    cross = morphology.diamond(RING)
    for row, region in zip(of_first, known, strict=True):
        ring = morphology.dilation((ids == region.label).astype(np.uint8), cross).astype(bool) & (ids == 0)
        assert (row["ring"], row["outside"].tolist()) == (ring.sum(), pixels[ring].sum(0).tolist())


def test_nuclei_that_are_not_seen_are_told_from_a_references(tmp_path):
    seen, plain, reference = (
        nuclear(tmp_path / name, seed, dark) for name, seed, dark in (("a", 1, 60), ("b", 2, 0), ("c", 3, 60))
    )
    one, three = (part(ranks, "nuclei", seen, reference) for ranks in (1, 3))
    same(one, three)
    assert one["seen", ""]["value"] == one["seen", ""]["reference"] == 1
    assert one["nuclei per megapixel", ""]["value"] == pytest.approx(
        3 * discs((70, 90)).astype(bool).any() * 20 / 0.0189
    )
    other = part(2, "nuclei", plain, reference)
    assert other["seen", ""]["value"] < 0.3
    assert (
        other["contrast, Kolmogorov-Smirnov", ""]["value"] == 1 > other["contrast, Kolmogorov-Smirnov", ""]["reference"]
    )
    (tmp_path / "b" / "inst_masks" / "1.tif").unlink()
    assert "has no instance maps; give an output" in refused(2, "nuclei", plain, reference)


def test_nuclei_of_an_output_are_those_of_its_instance_map(tmp_path):
    model, out = make_model("sdm", tmp_path / "model"), tmp_path / "out.zarr"
    options = (*asked(model, tmp_path, (48, 64)), "--size", "48x64", "--steps", 1, "--preview", "none")
    done = launch(1, "--model", model, *options, "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = nuclei_of(ranks_of(), OutputSource(out))
    ids, counts = np.unique(discs((48, 64)), return_counts=True)
    assert (rows["key"] & np.uint64(2**32 - 1)).tolist() == ids[1:].tolist()
    assert rows["area"].tolist() == counts[1:].tolist()


# -- embeddings --


def test_cosines_of_what_was_asked_and_made(tmp_path):
    pytest.importorskip("diffusers")
    model, out = make_model("large-image-diffusion", tmp_path / "model"), tmp_path / "out.zarr"
    features = np.random.default_rng(3).standard_normal((6, 12)).astype(np.float32)
    np.save(tmp_path / "asked.npy", features)
    options = ("--embeddings", tmp_path / "asked.npy", "--size", "192x128", "--steps", 1, "--preview", "none")
    done = launch(1, "--model", model, *options, "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    one, three = (part(ranks, "embeddings", out, "extractors:colors") for ranks in (1, 3))
    same(one, three)
    pixels = source_of(out, "x").read(0, OutputSource(out).output.layout.boxes()[0])
    side = 64
    patches = [pixels[y : y + side, x : x + side] for y in range(0, 192, side) for x in range(0, 128, side)]
    made = colors(np.stack(patches))
    cosines = (made * features).sum(1) / np.linalg.norm(made, axis=1) / np.linalg.norm(features, axis=1)
    assert one["cosine of asked and made", ""]["value"] == pytest.approx(cosines.mean(), abs=1e-5)
    assert "has 12 numbers each and appearance makes" in refused(2, "embeddings", out, "appearance")
    np.save(tmp_path / "asked.npy", features + 1)
    assert "is not what" in refused(2, "embeddings", out, "extractors:colors")
