"""Sets of images with sampled label maps, sets over several guidance weights and styles, and their export as pairs."""

import csv
import json
import shutil

import numpy as np
import pytest
import zarr
from families import discs, make_model
from launching import launch, refused, sha, start_and_kill
from PIL import Image
from tiny import LABELS

import engine
from engine.diffusion.conditions import GuidanceInTurn, LabelMap
from engine.export import main as export
from engine.job import SampleJob
from engine.models.card import read_card
from engine.pipeline.label_stage import with_default_labels
from engine.planning.cover import StackedCover, strided
from engine.planning.geometry import Box
from engine.training.data import Patches, find_images, mask_of, read_image, read_mask

pytestmark = pytest.mark.runs
SMALL = ("--size", "72x100", "--shard", 128, "--chunk", 64, "--preview", "none", "--steps", 2, "--label-steps", 3)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """DiffInfinite's two networks, small, as its files are converted; and the options that name them."""
    pytest.importorskip("diffusers")
    folder = tmp_path_factory.mktemp("published")
    made = {name: make_model(f"diffinfinite-{name}", folder / name) for name in ("image", "labels")}
    return ("--model", made["image"], "--label-model", made["labels"])


@pytest.fixture(scope="module")
def nuclei(tmp_path_factory):
    pytest.importorskip("diffusers")
    return make_model("sdm", tmp_path_factory.mktemp("nuclei") / "sdm")


def sampled(out, ranks, *arguments):
    done = launch(ranks, *arguments, "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def images_of(out):
    return zarr.open(out)["images"][:]


def maps_of(out):
    return zarr.open(out)["tissue"][:]


# ---- label maps that are sampled ----------------------------------------------------------------


@pytest.mark.parametrize("kind", [pytest.param("published", marks=pytest.mark.long), "embedded"])
def test_each_pair_of_a_set_is_a_function_of_seed_and_index_on_any_ranks(published, tiny_model, tmp_path, kind):
    own = published if kind == "published" else ("--model", tiny_model, "--label-model", "embedded")
    arguments = (*own, *SMALL, "--prompt", "0,1")
    three = [sampled(tmp_path / f"{ranks}.zarr", ranks, *arguments, "--count", 3) for ranks in (1, 3)]
    assert sha(three[0]) == sha(three[1])
    maps = maps_of(three[0])
    assert (maps == maps_of(three[1])).all()
    assert maps.shape == (3, 72, 100)
    assert maps.max() < 5
    assert len({each.tobytes() for each in maps}) > 1
    assert len({image.tobytes() for image in images_of(three[0])}) == 3
    two = sampled(tmp_path / "two.zarr", 2, *arguments, "--count", 2)
    assert (maps_of(two) == maps[:2]).all()
    assert (images_of(two) == images_of(three[0])[:2]).all()
    again = sampled(tmp_path / "again.zarr", 2, *own[:2], *SMALL[:-2], "--count", 3, "--labels", three[0] / "tissue")
    assert sha(again) == sha(three[0]), "the images are functions of the maps"
    assert not (three[0] / "slidefield" / "labels.zarr").exists()


def test_prompts_in_turn_are_those_of_their_maps(tiny_model, tmp_path):
    """A map of a set with two prompts is that of the set with the one prompt."""
    own = ("--model", tiny_model, "--label-model", "embedded", *SMALL, "--count", 4)
    both, *each = (
        sampled(tmp_path / f"{prompt}.zarr", 2, *own, "--prompt", prompt) for prompt in ("carcinoma,3", "1", "3")
    )
    for index in range(4):
        assert (maps_of(both)[index] == maps_of(each[index % 2])[index]).all()
    assert any((a != b).any() for a, b in zip(maps_of(each[0]), maps_of(each[1]), strict=True))
    in_turn = zarr.open(both).attrs["slidefield"]["in_turn"]
    assert in_turn == [{"prompt": "carcinoma"}, {"prompt": 3}]
    assert "in_turn" not in zarr.open(each[0]).attrs["slidefield"]


@pytest.mark.parametrize("stage", ["labels", pytest.param("image", marks=pytest.mark.long)])
def test_a_killed_set_of_pairs_resumes_to_the_same_bytes(published, tmp_path, stage):
    arguments = (*published, *SMALL[:-4], "--steps", 4, "--label-steps", 4, "--count", 4, "--checkpoint-every", 0)
    whole = sampled(tmp_path / "whole.zarr", 1, *arguments)
    out = tmp_path / "out.zarr"
    private = out / "slidefield"
    mark = {"labels": private / "labels.zarr" / "slidefield" / "checkpoint.json", "image": private / "checkpoint.json"}
    start_and_kill(mark[stage].exists, out, 2, *arguments)
    sampled(out, 3, *arguments)
    assert sha(out) == sha(whole)
    assert (maps_of(out) == maps_of(whole)).all()


def test_a_lost_shard_of_sampled_maps_is_mended(published, tmp_path):
    arguments = (*published, *SMALL, "--count", 4)
    out = sampled(tmp_path / "out.zarr", 2, *arguments)
    before, maps = sha(out), maps_of(out)
    shards = sorted((out / "tissue" / "c").rglob("0"))
    next(path for path in shards if path.is_file()).unlink()
    assert "--mend" in refused(tmp_path, *arguments, "--out", out)
    sampled(out, 3, *arguments, "--mend")
    assert sha(out) == before
    assert (maps_of(out) == maps).all()


def test_the_embedded_models_sets_have_sampled_maps_where_no_labels_are_named():
    card = read_card("embedded")
    for told in ({"count": 3}, {"prompt": "necrosis"}, {"label_steps": 9}, {"label_guidance": 2.0}):
        assert with_default_labels(SampleJob(**told), card).label_model == "embedded"
    for named in ({}, {"count": 3, "labels": "example"}, {"count": 3, "label": 1}):
        assert with_default_labels(SampleJob(**named), card).label_model is None


# ---- several guidance weights, and styles, in turn ----------------------------------------------


def test_an_image_of_several_weights_is_that_of_its_weight_alone(tiny_model, tmp_path):
    own = ("--model", tiny_model, *SMALL[:-2], "--label", "1,3", "--count", 8)
    mixed = [sampled(tmp_path / f"mixed{ranks}.zarr", ranks, *own, "--omega", "0,3") for ranks in (1, 3)]
    assert sha(mixed[0]) == sha(mixed[1])
    alone = [sampled(tmp_path / f"{w}.zarr", 2, *own, "--guidance", w) for w in (1, 4)]
    for index, image in enumerate(images_of(mixed[0])):
        assert (image == images_of(alone[index // 2 % 2])[index]).all()
    assert (images_of(alone[0]) != images_of(alone[1])).any()
    said = zarr.open(mixed[0]).attrs["slidefield"]["in_turn"]
    assert said == [{"label": label, "guidance": weight} for weight in (1, 4) for label in (1, 3)]
    opened = engine.open(mixed[0])
    assert [opened.settings_of(i)["guidance"] for i in (0, 1, 2, 5, -1)] == [1, 1, 4, 1, 4]
    assert engine.open(alone[0]).settings_of(2) == {"label": 1}
    with pytest.raises(IndexError):
        opened.settings_of(8)


def test_an_image_whose_guidance_is_off_takes_no_null(tiny_model, tmp_path):
    own = ("--model", tiny_model, "--size", 128, "--label", 1, "--count", 6, "--steps", 3, "--dry-run", "--json")
    facts = {weights: launch(1, *own, "--guidance", weights).stdout for weights in ("1", "4", "1,4", "1,1,4")}
    asked = {weights: json.loads(text)["evaluations"] for weights, text in facts.items()}
    assert asked["4"] == 2 * asked["1"]
    assert asked["1,4"] == asked["1"] * 3 // 2
    assert asked["1,1,4"] == asked["1"] * 4 // 3


def test_a_condition_in_turn_costs_what_it_asks_for():
    rows = 8
    cover = StackedCover(8, rows, lambda image: strided((8, 8), 8, 4, "uniform"), range(5))
    ids = np.concatenate([cover.owned_by(Box(rows * image, 0, rows * image + rows, 8)) for image in range(5)])
    condition = LabelMap(1.0, np.ones((5 * rows, 8), np.uint8), in_turn=GuidanceInTurn((1.0, 3.0), rows))
    costs = condition.costs_of(cover, ids, condition.label_bits(cover, ids))
    assert costs.tolist() == [1, 2, 1, 2, 1]
    assert condition.unguided().costs_of(cover, ids, condition.label_bits(cover, ids)).tolist() == [1] * 5


def test_guidance_and_styles_of_nuclei_are_combined_and_recorded(nuclei, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(nuclei, other)
    weights = other / "unet" / "diffusion_pytorch_model.safetensors"
    from safetensors.numpy import load_file, save_file

    save_file({name: value * np.float32(0.9) for name, value in load_file(weights).items()}, weights)
    np.save(tmp_path / "map.npy", discs((32, 40), 15))
    own = ("--model", nuclei, "--instances", tmp_path / "map.npy", "--size", "32x40", "--steps", 2, "--preview", "none")
    own = (*own, "--shard", 64, "--chunk", 32, "--count", 6)
    styles = f"{nuclei},{other}"
    mixed = sampled(tmp_path / "mixed.zarr", 3, *own, "--style", styles, "--guidance", "1.3,1.6")
    for name, (style, weight) in {
        f"{s}{w}": (folder, w) for s, folder in enumerate((nuclei, other)) for w in (1.3, 1.6)
    }.items():
        alone = sampled(tmp_path / f"{name}.zarr", 2, *own, "--style", style, "--guidance", weight)
        s, w = int(name[0]), (1.3, 1.6).index(weight)
        for index in range(6):
            same = (images_of(mixed)[index] == images_of(alone)[index]).all()
            assert same == (index % 2 == s and index // 2 % 2 == w), (index, style, weight)
    assert export([str(mixed), str(tmp_path / "set")]) == 0
    rows = list(csv.DictReader((tmp_path / "set" / "settings.csv").open()))
    assert [row["index"] for row in rows] == list("012345")
    assert [row["guidance"] for row in rows] == ["1.3", "1.3", "1.6", "1.6", "1.3", "1.3"]
    assert [row["style"] for row in rows] == [str(nuclei), str(other)] * 3


# ---- export, and training on it -----------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_set_is_exported_as_pairs_on_which_the_trainer_trains(tiny_model, tmp_path, suffix):
    own = ("--model", tiny_model, "--label-model", "embedded", "--label-steps", 3, "--size", "96x128", "--steps", 2)
    own = (*own, "--shard", 128, "--chunk", 64, "--preview", "none", "--prompt", "1,3")
    out, data = sampled(tmp_path / "set.zarr", 2, *own, "--count", 6), tmp_path / "pairs"
    options = [] if suffix == "jpg" else ["--format", "png"]
    assert export([str(out), str(data), "--layout", "pairs", *options]) == 0
    names = [f"sample{index:04d}" for index in range(6)]
    written = {path.name for path in data.iterdir()}
    assert written == {
        *(f"{n}.{suffix}" for n in names),
        *(f"{n}_mask.png" for n in names),
        "settings.csv",
        "export.json",
    }
    assert [path.name for path in find_images(data)] == [f"{name}.{suffix}" for name in names]
    images, maps = images_of(out), maps_of(out)
    for index, path in enumerate(find_images(data)):
        mask = Image.open(mask_of(path))
        assert mask.mode == "L"
        assert (np.asarray(mask) == maps[index]).all()
        assert (read_mask(path) == maps[index]).all()
        difference = np.abs(read_image(path).astype(int) - images[index].transpose(1, 2, 0))
        assert difference.mean() < (2 if suffix == "jpg" else 1e-9)
    patch, mask = Patches(tuple(find_images(data)), 32, 0).patch(0)
    assert patch.shape == (32, 32, 3)
    assert mask.max() < len(LABELS)

    common = ("--data", data, "--out", tmp_path / "model", "--batch-size", 2, "--steps", 2)
    first = launch(1, "autoencoder", *common, "--crop", 32, module="engine.train")
    assert first.returncode == 0, first.stderr
    options = ("--window", 8, "--dim", 16, "--dim-mults", "1,2", "--labels", ",".join(LABELS))
    second = launch(1, "image", *common, *options, module="engine.train")
    assert second.returncode == 0, second.stderr
    assert read_card(str(tmp_path / "model")).labels == tuple(LABELS)[: maps.max() + 1]


def test_an_image_is_a_pair_too_and_what_has_no_label_map_is_refused(tiny_model, nuclei, tmp_path, capsys):
    image = sampled(tmp_path / "image.zarr", 1, "--model", tiny_model, *SMALL[:-2], "--labels", "example")
    pairs = ("--layout", "pairs")
    assert export([str(image), str(tmp_path / "pair"), *pairs, "--format", "tiff"]) == 0
    names = sorted(path.name for path in (tmp_path / "pair").iterdir())
    assert names == ["export.json", "sample0000.tif", "sample0000_mask.png"]
    stored = zarr.open(image)["labels"]["tissue"]["0"][:]
    assert (np.asarray(Image.open(tmp_path / "pair" / "sample0000_mask.png")) == stored).all()
    assert export([str(image), str(tmp_path / "pair"), *pairs, "--overwrite"]) == 0

    np.save(tmp_path / "map.npy", discs((32, 40), 15))
    own = ("--model", nuclei, "--instances", tmp_path / "map.npy", "--size", "32x40", "--steps", 1, "--preview", "none")
    of_nuclei = sampled(tmp_path / "nuclei.zarr", 1, *own, "--shard", 64, "--chunk", 32)
    for arguments, said in (
        ((of_nuclei, tmp_path / "x", *pairs), "stores nuclei beside its images"),
        ((image, tmp_path / "x", "--format", "jpeg"), "--format jpeg is for pairs"),
    ):
        capsys.readouterr()
        assert export([str(part) for part in arguments]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line
        assert not (tmp_path / "x").exists()


# ---- refusals -----------------------------------------------------------------------------------


def test_what_one_image_has_one_of_and_wrong_values_are_refused_in_one_line(published, tiny_model, tmp_path):
    own = ("--model", tiny_model, "--size", "128x128", "--steps", 2, "--out", tmp_path / "o.zarr")
    of_pairs = (*published, *SMALL, "--out", tmp_path / "o.zarr")
    for options, said in (
        ((*own, "--guidance", "1.3,1.4"), ["--guidance 1.3,1.4", "one image has one", "--count N"]),
        ((*own, "--omega", "0,3"), ["--omega 0,3", "--count N"]),
        ((*of_pairs, "--prompt", "0,1"), ["--prompt 0,1", "several classes", "--count N"]),
        ((*of_pairs, "--count", 4, "--prompt", "0,lung"), ["--prompt lung", "0 adenocarcinoma"]),
        ((*of_pairs, "--count", 4, "--prompt", "7"), ["--prompt 7", "0 adenocarcinoma"]),
        ((*own, "--count", 2, "--guidance", "1,,2"), ["--guidance", "'1,,2'", "expected a number"]),
        ((*own, "--count", 2, "--guidance", "1,-2"), ["--guidance", "from 0 upwards"]),
        ((*own, "--count", 2, "--guidance", ",".join(["1"] * 65)), ["--guidance", "2 to 64"]),
        ((*own, "--count", 2, "--guidance", "1,2", "--omega", "0,1"), ["--guidance 1,2", "--omega 0,1", "choose one"]),
        ((*of_pairs, "--count", 4, "--size", 20), ["20x20", "clean-up"]),
        ((*of_pairs, "--count", 4, "--accept", "0.5,0.6,0.5,0.5,0.5"), ["5 means", "no one class"]),
    ):
        line = refused(tmp_path, *options)
        assert all(words in line for words in said), line
