"""The colours of nuclei models: the pixels of a reference in random order; which reference is whose; class maps."""

import numpy as np
import pytest
import tifffile
import zarr
from families import discs, make_model
from hypothesis import given, settings
from hypothesis import strategies as st
from launching import launch, refused, sha
from PIL import Image
from test_convert import nuclei as nuclei_checkpoint
from test_export import export

from engine.inputs.appearance import Appearance, reference_of
from engine.inputs.condition import condition_of
from engine.inputs.pairing import paired
from engine.inputs.read import read as read_inputs
from engine.job import SampleJob
from engine.models.card import read_card
from engine.models.convert.__main__ import main as convert
from engine.planning.geometry import Box, Frames
from kernels.permutation import Permutation

SIZE = (32, 40)


def picture(seed, height=30, width=20):
    """uint8 (3, h, w): smooth, so that neighbours are alike."""
    yy, xx = np.mgrid[:height, :width]
    return np.stack([5 * yy + seed, 5 * xx, 3 * (xx + yy)]).astype(np.uint8)


def values_of(colors):
    """The colours as the 0..255 that they were."""
    return np.rint((colors + 1) * 127.5).astype(int)


def population(values):
    """The sorted colours of (3, ...)."""
    return sorted(map(tuple, values.reshape(3, -1).T.tolist()))


# ---- the order --------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 16, 17, 600, 16384])
def test_a_permutation_takes_every_number_to_another_and_none_twice(count):
    numbers = np.arange(count)
    permuted = Permutation(count, (1, 2))(numbers)
    assert sorted(permuted.tolist()) == numbers.tolist()
    assert (Permutation(count, (1, 2))(numbers[::-1])[::-1] == permuted).all(), "one by one as all together"
    if count > 16:
        assert abs(np.corrcoef(numbers, permuted)[0, 1]) < 0.3
        others = [Permutation(count, (1, 3))(numbers), Permutation(count, (1, 2), (0, -1))(numbers)]
        assert all((permuted == other).mean() < 0.2 for other in others)


def test_colours_are_the_references_pixels_in_an_order_that_says_nothing_of_where_they_were():
    shown = picture(0, 128, 128)
    colors = Appearance(0, lambda image: reference_of(shown)).colors(0, Box(0, 0, 128, 128), np.zeros((128, 128), bool))
    assert colors.dtype == np.float32
    assert (colors[:, 0, 0] == (shown.reshape(3, -1).T / np.float32(127.5) - 1)).all(1).any(), "pixels / 127.5 - 1"
    assert population(values_of(colors)) == population(shown)
    for a, b in ((colors[0, 1:], colors[0, :-1]), (colors[1, :, 1:], colors[1, :, :-1]), (colors[0], shown[0])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.03


@settings(max_examples=30, deadline=None)
@given(st.integers(-70, 90), st.integers(-70, 90), st.integers(1, 90), st.integers(1, 90), st.booleans())
def test_the_colours_of_a_window_are_that_crop_of_any_larger_one(y, x, height, width, preserved):
    nuclear = np.random.default_rng(0).random((260, 260)) < 0.3
    mask = discs((30, 20), 11, 4) if preserved else None
    appearance = Appearance(3, lambda image: reference_of(picture(image), mask))
    everything = appearance.colors(1, Box(-80, -80, 180, 180), nuclear)
    inner = (slice(y + 80, y + 80 + height), slice(x + 80, x + 80 + width))
    part = appearance.colors(1, Box(y, x, y + height, x + width), nuclear[inner])
    np.testing.assert_array_equal(part, everything[(slice(None), *inner)])
    assert (appearance.colors(2, Box(0, 0, 64, 64), nuclear[:64, :64]) != everything[:, 80:144, 80:144]).mean() > 0.5
    other = Appearance(4, lambda image: reference_of(picture(image), mask))
    assert (other.colors(1, Box(0, 0, 64, 64), nuclear[:64, :64]) != everything[:, 80:144, 80:144]).mean() > 0.5


def test_preserved_nuclei_take_the_pixels_of_nuclei_and_background_those_of_background():
    shown, mask = picture(0, 70, 90), discs((70, 90)) > 0
    appearance = Appearance(0, lambda image: reference_of(shown, mask))
    values = values_of(appearance.colors(0, Box(0, 0, 70, 90), mask))
    assert population(values[:, mask]) == population(shown[:, mask]), "each among themselves, each once"
    assert population(values[:, ~mask]) == population(shown[:, ~mask])
    elsewhere = np.roll(mask, 8, axis=1)
    values = values_of(appearance.colors(0, Box(0, 0, 70, 90), elsewhere))
    assert set(population(values[:, elsewhere])) <= set(population(shown[:, mask]))
    assert set(population(values[:, ~elsewhere])) <= set(population(shown[:, ~mask]))
    one = np.zeros((70, 90), bool)
    one[3, 4] = True  # a single pixel of a nucleus, which no walk may find
    values = values_of(Appearance(0, lambda image: reference_of(shown, one)).colors(0, Box(0, 0, 70, 90), mask))
    assert set(population(values[:, mask])) == {tuple(shown[:, 3, 4].tolist())}


# ---- which reference is whose -----------------------------------------------------------------------


def published_pairing(areas, seed):
    """The system's, written out: likeness of total and median area, one of the 20 nearest."""
    draw, chosen = np.random.RandomState(seed), []
    table = np.array([[np.median(a) if len(a) else 0.0, float(np.sum(a))] for a in areas])
    for index in range(len(areas)):
        difference = abs(table - table[index])
        for column in difference.T:
            column[:] = np.minimum(column, np.quantile(column, 0.85))
            column -= column.min()
            column /= column.max() or 1
        likeness = 1 - np.clip(0.5 * difference[:, 0] + 0.5 * difference[:, 1], 0, 1)
        order = [int(i) for i in np.argsort(-likeness, kind="stable")[:20]]
        order.remove(index)
        chosen.append(int(draw.choice(order)))
    return tuple(chosen)


def test_references_are_matched_by_the_likeness_of_nuclei_as_published():
    rng = np.random.default_rng(0)
    areas = [rng.integers(30, 400, rng.integers(0, 12)) for _ in range(50)]
    assert paired("matched", 7, areas) == published_pairing(areas, 7)
    assert all(index != reference for index, reference in enumerate(paired("matched", 2**40, areas)))
    assert paired("matched", 7, areas[:2]) == (1, 0)
    np.random.seed(42)
    assert paired("shuffled", 42, areas) == tuple(np.random.choice(50, 50, replace=False))
    assert paired("own", 0, areas) == tuple(range(50))


# ---- jobs -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model("sdm", tmp_path_factory.mktemp("nuclei") / "sdm")


def made_with(tmp_path, map_channels, **changes):
    """A model folder with so many channels of its semantic map."""
    nuclei_checkpoint(tmp_path / f"run{map_channels}", map_channels=map_channels, **changes)
    out = tmp_path / f"model{map_channels}"
    assert convert(["sdm", str(tmp_path / f"run{map_channels}"), "--out", str(out)]) == 0
    return out


def dataset(folder, count=5, size=SIZE):
    """A dataset's folder as MoNuSegDataset writes it: PNG images and masks, TIFF instance maps of uint16."""
    for part in ("images", "inst_masks", "bin_masks"):
        (folder / part).mkdir(parents=True)
    for index in range(count):
        instances = discs(size, 13 + index, 5).astype(np.uint16)
        stem = f"TCGA-18-{index:02d}"
        Image.fromarray(instances).save(folder / "inst_masks" / f"{stem}.tif")
        Image.fromarray(np.where(instances, 255, 0).astype(np.uint8)).save(folder / "bin_masks" / f"{stem}.png")
        Image.fromarray(picture(40 * index, *size).transpose(1, 2, 0)).save(folder / "images" / f"{stem}.png")
    return folder


def semantic_of(job, image=0, window=None):
    """float32 (K, h, w): what the network is given for an image of a job."""
    card = read_card(job.model)
    job = job.resolved(card)
    frames = Frames(job.size, 1, card.patch, job.count)
    inputs = read_inputs(job, card, frames)
    from engine.inputs.semantic import instance_source

    source = None if inputs.nuclei is None else instance_source(job, inputs.nuclei)
    read = None if source is None else lambda index, box: source.read(index, box, 1)
    window = window or Box(0, 0, *job.size)
    rows = image * frames.frame[0]
    whole = Box(window.y0 + rows, window.x0, window.y1 + rows, window.x1)
    return condition_of(inputs, job, card, frames, read).read(whole), inputs


def test_a_job_gives_the_network_the_references_pixels_and_flat_maps_of_small_nuclei(model, tmp_path):
    instances = discs(SIZE, 13, 5)
    instances[20:24, 30:34] = 9999  # 16 px
    np.save(tmp_path / "instances.npy", instances)
    Image.fromarray(picture(9).transpose(1, 2, 0)).save(tmp_path / "reference.png")
    job = SampleJob(model=str(model), size=SIZE, instances=str(tmp_path / "instances.npy"))
    given, _ = semantic_of(job)
    shown, _ = semantic_of(SampleJob(**{**job.plain(), "appearance": str(tmp_path / "reference.png"), "size": SIZE}))
    assert (given[[0, 1, 5]] == shown[[0, 1, 5]]).all(), "colours alone come from the reference"
    assert set(population(values_of(shown[2:5]))) <= set(population(picture(9)))
    assert len(set(population(values_of(shown[2:5])))) > 500 > len(set(population(values_of(given[2:5]))))
    assert not shown[:2, instances == 9999].any()
    assert shown[0, instances == instances.max()].any() or instances.max() == 9999
    kept, _ = semantic_of(SampleJob(**{**job.plain(), "least_area": 0, "size": SIZE}))
    assert kept[:2, instances == 9999].any()


def test_a_dataset_folder_gives_maps_and_references_and_records_the_pairing(model, tmp_path):
    folder = dataset(tmp_path / "train")
    job = {"model": str(model), "size": SIZE, "count": 7, "instances": str(folder)}
    for image in (0, 3, 6):
        shown, inputs = semantic_of(SampleJob(**job), image)
        assert set(population(values_of(shown[2:5]))) <= set(population(picture(40 * (image % 5), *SIZE)))
        assert (shown[5] > 0).any()
    assert inputs.sources.names == tuple(f"TCGA-18-{index:02d}" for index in range(5))
    assert inputs.sources.chosen == (0, 1, 2, 3, 4)
    shuffled = {**job, "pairing": "shuffled", "pairing_seed": 42}
    shown, inputs = semantic_of(SampleJob(**shuffled), 1)
    np.random.seed(42)
    assert inputs.sources.chosen == tuple(np.random.choice(5, 5, replace=False))
    expected = picture(40 * inputs.sources.chosen[1], *SIZE)
    assert set(population(values_of(shown[2:5]))) <= set(population(expected))
    _, inputs = semantic_of(SampleJob(**{**job, "pairing": "matched"}))
    areas = [np.unique(discs(SIZE, 13 + i, 5), return_counts=True)[1][1:] for i in range(5)]
    assert inputs.sources.chosen == published_pairing(areas, 0)
    shown, _ = semantic_of(SampleJob(**{**job, "appearance_order": "preserved"}), 2)
    mask = discs(SIZE, 15, 5) > 0
    assert set(population(values_of(shown[2:5][:, mask]))) <= set(population(picture(80, *SIZE)[:, mask]))


@pytest.mark.runs
def test_colours_of_references_are_the_same_bytes_on_any_ranks(model, tmp_path):
    folder = dataset(tmp_path / "train")
    Image.fromarray(picture(9).transpose(1, 2, 0)).save(tmp_path / "reference.png")
    stack = np.stack([picture(40 * i, 50, 60) for i in range(3)])
    np.save(tmp_path / "stack.npy", stack.transpose(0, 2, 3, 1))
    tifffile.imwrite(tmp_path / "stack.tif", stack.transpose(0, 2, 3, 1), photometric="rgb")
    np.save(tmp_path / "maps.npy", np.stack([discs(SIZE, 14 + i, 5) for i in range(3)]))
    np.save(tmp_path / "large.npy", discs((40, 56)))
    own = ("--model", model, "--steps", 1, "--preview", "none", "--shard", 64, "--chunk", 32)
    size = ("--size", "32x40")
    shas = {}
    for name, options in {
        "large": (
            "--instances",
            tmp_path / "large.npy",
            "--size",
            "40x56",
            "--appearance",
            tmp_path / "reference.png",
        ),
        "set": (*size, "--instances", folder, "--count", 5, "--pairing", "matched", "--appearance-order", "preserved"),
        "npy": (*size, "--instances", tmp_path / "maps.npy", "--count", 3, "--appearance", tmp_path / "stack.npy"),
        "tif": (*size, "--instances", tmp_path / "maps.npy", "--count", 3, "--appearance", tmp_path / "stack.tif"),
    }.items():
        for ranks in (1, 3):
            done = launch(ranks, *own, *options, "--out", tmp_path / f"{name}{ranks}.zarr")
            assert done.returncode == 0, done.stdout + done.stderr
        assert sha(tmp_path / f"{name}1.zarr") == sha(tmp_path / f"{name}3.zarr")
        shas[name] = sha(tmp_path / f"{name}1.zarr")
    assert shas["npy"] == shas["tif"]
    sources = zarr.open(tmp_path / "set1.zarr").attrs["slidefield"]["sources"]
    assert sources["names"][1] == "TCGA-18-01"
    assert len(sources["chosen"]) == 5


@pytest.mark.runs
def test_a_set_is_exported_under_the_names_of_its_sources_with_what_the_network_was_given(model, tmp_path):
    folder, out = dataset(tmp_path / "train"), tmp_path / "out.zarr"
    options = ("--model", model, "--steps", 1, "--preview", "none", "--size", "32x40", "--shard", 64, "--chunk", 32)
    options = (*options, "--instances", folder, "--count", 7, "--pairing", "shuffled", "--border-nuclei", "published")
    done = launch(2, *options, "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert export(out, tmp_path / "set") == ["cond", "export.json", "images", "inst_masks", "labels", "samples"]
    names = [*(f"TCGA-18-{i:02d}" for i in range(5)), "TCGA-18-00_0", "TCGA-18-01_0"]
    for part, suffixes in (("samples", "png"), ("labels", "png"), ("images", "png"), ("inst_masks", "tif")):
        assert sorted(p.name for p in (tmp_path / "set" / part).iterdir()) == sorted(f"{n}.{suffixes}" for n in names)
    job = SampleJob(model=str(model), size=SIZE, count=7, instances=str(folder), pairing="shuffled")
    for index, name in enumerate(names):
        given, inputs = semantic_of(job, index)
        assert (np.load(tmp_path / "set" / "cond" / f"{name}.npy") == given).all()
        strip = np.asarray(Image.open(tmp_path / "set" / "cond" / f"{name}.png"))
        assert (strip[:, 80:120] == values_of(given[2:5]).transpose(1, 2, 0)).all()
        reference = picture(40 * inputs.sources.chosen[index % 5], *SIZE).transpose(1, 2, 0)
        assert (np.asarray(Image.open(tmp_path / "set" / "images" / f"{name}.png")) == reference).all()
        assert (
            np.asarray(Image.open(tmp_path / "set" / "inst_masks" / f"{name}.tif")) == discs(SIZE, 13 + index % 5, 5)
        ).all()
    Image.fromarray(picture(99, *SIZE).transpose(1, 2, 0)).save(folder / "images" / "TCGA-18-03.png")
    assert export(out, tmp_path / "later") == ["cond", "export.json", "inst_masks", "labels", "samples"]
    assert np.load(tmp_path / "later" / "cond" / "TCGA-18-03.npy").shape == (3, *SIZE), "no colours of another image"


# ---- class maps -------------------------------------------------------------------------------------


def test_a_map_of_class_ids_becomes_one_hot_channels_and_edges(tmp_path):
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 4, (8, 10)).repeat(4, 0).repeat(4, 1).astype(np.uint8)
    Image.fromarray(classes).save(tmp_path / "classes.png")
    np.save(tmp_path / "instances.npy", classes.astype(np.uint16) * 1000)
    job = {"model": str(made_with(tmp_path, 4)), "size": SIZE, "map": str(tmp_path / "classes.png")}
    given, _ = semantic_of(SampleJob(**job))
    assert (given == np.eye(4, dtype=np.float32)[classes].transpose(2, 0, 1)).all()
    beyond, _ = semantic_of(SampleJob(**job), window=Box(20, 30, 52, 62))
    assert (beyond[:, :12, :10] == given[:, 20:, 30:]).all()
    assert not beyond[:, 12:].any()
    job |= {"model": str(made_with(tmp_path, 5)), "instances": str(tmp_path / "instances.npy")}
    edged, _ = semantic_of(SampleJob(**job))
    assert (edged[:4] == given).all()
    lines = np.zeros(SIZE, bool)
    lines[1:] |= classes[1:] != classes[:-1]
    lines[:-1] |= classes[1:] != classes[:-1]
    lines[:, 1:] |= classes[:, 1:] != classes[:, :-1]
    lines[:, :-1] |= classes[:, 1:] != classes[:, :-1]
    assert (edged[4] == lines).all()
    part, _ = semantic_of(SampleJob(**job), window=Box(5, 6, 20, 30))
    assert (part == edged[:, 5:20, 6:30]).all()


def test_files_of_a_dataset_go_together_by_stems_also_where_these_have_dots(model, tmp_path):
    """Sorted by whole names a.png comes before a.q.png, and a.q.tif before a.tif."""
    folder = dataset(tmp_path / "train", count=2)
    for part in ("images", "inst_masks", "bin_masks"):
        for path, stem in zip(sorted((folder / part).iterdir()), ("a", "a.q"), strict=True):
            path.rename(path.with_name(stem + path.suffix))
    job = {"model": str(model), "size": SIZE, "count": 2, "instances": str(folder), "appearance_order": "preserved"}
    for image in (0, 1):
        shown, inputs = semantic_of(SampleJob(**job), image)
        assert set(population(values_of(shown[2:5]))) <= set(population(picture(40 * image, *SIZE)))
    assert inputs.sources.names == ("a", "a.q")


def test_datasets_number_their_classes_in_their_own_ways(tmp_path):
    raw = np.array([0, 1, 150, 255], np.uint8).repeat(8)[:, None].repeat(40, 1)
    Image.fromarray(raw).save(tmp_path / "classes.png")
    job = {"size": SIZE, "map": str(tmp_path / "classes.png")}
    ade = {**job, "model": str(made_with(tmp_path, 151)), "map_ids": "ade20k"}
    raw[24:] = 0
    Image.fromarray(raw).save(tmp_path / "classes.png")
    given, _ = semantic_of(SampleJob(**ade))
    assert given.argmax(0)[::8, 0].tolist() == [150, 0, 149, 150]
    raw[24:] = 255
    Image.fromarray(raw).save(tmp_path / "classes.png")
    given, _ = semantic_of(SampleJob(**{**job, "model": str(made_with(tmp_path, 183)), "map_ids": "coco"}))
    assert given.argmax(0)[::8, 0].tolist() == [0, 1, 150, 182]
    given, _ = semantic_of(SampleJob(**{**job, "model": str(made_with(tmp_path, 2)), "map_ids": "mask"}))
    assert given.argmax(0)[::8, 0].tolist() == [0, 1, 1, 1]
    grey = made_with(tmp_path, 1, channels=1, learn_sigma=True)
    given, _ = semantic_of(SampleJob(**{**job, "model": str(grey)}))
    assert given[0, ::8, 0].tolist() == [0, 255, 255, 255]
    np.save(tmp_path / "signed.npy", np.where(raw == 1, -1, raw).astype(np.int64))
    given, _ = semantic_of(SampleJob(size=SIZE, map=str(tmp_path / "signed.npy"), model=str(grey)))
    assert given[0, ::8, 0].tolist() == [0, 255, 255, 255], "what is not 0"


@pytest.mark.runs
def test_class_maps_of_a_grey_model_give_the_same_bytes_on_any_ranks(tmp_path):
    grey = made_with(tmp_path, 1, channels=1, learn_sigma=True)
    Image.fromarray(np.where(discs((70, 100)), 255, 0).astype(np.uint8)).save(tmp_path / "mask.png")
    options = ("--model", grey, "--steps", 2, "--preview", "none", "--size", "70x100", "--map", tmp_path / "mask.png")
    for ranks in (1, 3):
        done = launch(ranks, *options, "--out", tmp_path / f"{ranks}.zarr")
        assert done.returncode == 0, done.stdout + done.stderr
    assert sha(tmp_path / "1.zarr") == sha(tmp_path / "3.zarr")


# ---- bad input --------------------------------------------------------------------------------------


@pytest.mark.runs
def test_references_and_maps_that_do_not_go_together_are_refused_in_one_line(model, tmp_path):
    folder = dataset(tmp_path / "train")
    np.save(tmp_path / "i.npy", discs(SIZE))
    np.save(tmp_path / "s.npy", np.stack([discs(SIZE)] * 3))
    np.save(tmp_path / "two.npy", np.stack([picture(i).transpose(1, 2, 0) for i in range(2)]))
    np.save(tmp_path / "real.npy", np.zeros((8, 8, 3)))
    Image.fromarray(picture(0, *SIZE).transpose(1, 2, 0)).save(tmp_path / "r.png")
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(tmp_path / "none.png")
    Image.fromarray(np.full((9, 9), 1, np.uint8)).save(tmp_path / "small.png")
    (tmp_path / "empty").mkdir()
    (folder / "odd").mkdir()
    for index in range(5):
        Image.fromarray(picture(0).transpose(1, 2, 0)).save(folder / "odd" / f"{index}.png")
    above = tmp_path / "above" / "MoNuSegTrainingData"
    above.mkdir(parents=True)
    own = ("--model", model, "--steps", 2, "--preview", "none", "--size", "32x40", "--out", tmp_path / "o.zarr")
    one = ("--instances", tmp_path / "i.npy")
    kept = ("--appearance", tmp_path / "r.png", "--appearance-order", "preserved")
    five = ("--instances", folder, "--count", 5)
    for options, said in (
        ((*one, "--appearance", tmp_path / "gone.png"), ["--appearance", "gone.png", "not there"]),
        ((*one, "--appearance", tmp_path / "two.npy"), ["2 references", "--count"]),
        ((*one, "--appearance", tmp_path / "real.npy"), ["float64", "RGB"]),
        ((*one, *kept), ["--appearance-mask"]),
        ((*one, *kept, "--appearance-mask", tmp_path / "none.png"), ["no nuclei", "--appearance-order preserved"]),
        ((*one, *kept, "--appearance-mask", tmp_path / "small.png"), ["9 x 9", "32 x 40"]),
        ((*one, *kept[:2], "--appearance-mask", tmp_path / "none.png"), ["--appearance-order preserved"]),
        ((*one, "--appearance-order", "preserved"), ["--appearance FILE"]),
        ((*one, "--pairing", "matched", *kept[:2]), ["--pairing matched", "one reference"]),
        ((*one, *kept[:2], "--pairing-seed", 3), ["--pairing-seed 3", "--pairing"]),
        ((*one, *kept[:2], "--colors", tmp_path / "r.png"), ["--appearance", "--colors", "choose one"]),
        ((*one, *kept[:2], "--nucleus-color", "1,2,3"), ["--appearance", "--nucleus-color 1,2,3"]),
        ((*one, "--map-ids", "coco"), ["--map-ids coco", "--map FILE"]),
        (("--instances", folder), ["folder of 5 maps", "--count 5"]),
        (("--instances", tmp_path / "empty", "--count", 5), ["no pictures"]),
        (("--instances", tmp_path / "above", "--count", 5), ["MoNuSegTrainingData"]),
        ((*five, "--appearance", folder / "odd"), ["no image TCGA-18-00", "stems"]),
        ((*five, "--appearance", tmp_path / "two.npy"), ["2 references", "5 instance maps"]),
        (("--instances", tmp_path / "s.npy", "--count", 3, "--appearance", tmp_path / "two.npy"), ["2 references"]),
        (("--map", tmp_path / "i.npy", *kept[:2]), ["--appearance", "--instances"]),
        (("--map", tmp_path / "i.npy"), ["--map", "id ", "6 classes"]),
    ):
        line = refused(tmp_path, *own, *options)
        assert all(words in line for words in said), line
