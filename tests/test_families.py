"""The four published systems through the front door: any size, any number of ranks, the same bytes."""

import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import zarr
from families import IMAGES, SIZE, asked, convert_small, discs, make_model
from launching import ROOT, environment, launch, lines_of, refused, sha, start_and_kill, verify
from PIL import Image
from safetensors.torch import load_file, save_file
from test_convert import (
    clip_weights,
    diffinfinite,
    feature_aligned,
    large_image,
    nuclei,
    random_weights,
    small_autoencoder,
)
from test_golden import GOLDEN

import engine.report
from engine.models.card import read_card
from engine.models.convert.__main__ import main as convert
from engine.models.networks.mask_unet import LabelUNet, MaskUNet
from engine.pipeline.report_file import report_path

pytest.importorskip("diffusers")
pytestmark = pytest.mark.runs
FIXED = ("--steps", 2, "--preview", "none", "--size", f"{SIZE[0]}x{SIZE[1]}")


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """From a system to its small model, made once."""
    made = {}

    def make(system):
        if system not in made:
            made[system] = make_model(system, tmp_path_factory.mktemp("family") / system)
        return made[system]

    return make


def published_files(folder):
    """What the four systems' users have, under the names of docs/models.md, of small networks."""
    diffinfinite(folder / "model-10.pt", random_weights(MaskUNet(8, 5, (1, 2), 4, 2)))
    diffinfinite(folder / "model-5.pt", random_weights(LabelUNet(8, 2, (1, 2), 4, 2)))
    small_autoencoder(folder / "sd2-vae")
    (folder / "logs").mkdir()
    large_image(folder / "logs", prefix="brca")
    nuclei(folder / "sdm", learn_sigma=True, use_scale_shift_norm=True, resblock_updown=True)
    (folder / "sdm" / "ema_0.9999_000001.pt").rename(folder / "ema_0.9999_100000.pt")
    wide = {"block_out_channels": [32, 64], "norm_num_groups": 32, "attention_head_dim": 8}
    feature_aligned(folder / "aligned-run", wide, **clip_weights())
    (folder / "aligned-run" / "feature-aligned-diffusion.pt").rename(folder / "feature-aligned-diffusion.pt")
    rng = np.random.default_rng(0)
    with h5py.File(folder / "features.h5", "w") as file:
        file["feat_20x"] = rng.standard_normal((4 * 6, 5)).astype(np.float32)
    tifffile.imwrite(folder / "nuclei.tif", discs((128, 128)))
    Image.fromarray(rng.integers(0, 256, (90, 120, 3)).astype(np.uint8)).save(folder / "slide.png")


def test_the_commands_for_published_models_run_as_they_are_written(tmp_path, monkeypatch):
    """Word by word from docs/models.md, on files as the systems write them; smaller, one level, without guidance."""
    published_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "models.md").read_text()
    commands = page.split("## Published models")[1].split("```sh\n")[1].split("```")[0].splitlines()
    small = {"4096x6144": "512x512", "1024x1536": None, "1000x1000": "128x128", "1000": "2"}
    width = None
    for number, line in enumerate(commands):
        words = line.split("#")[0].split()
        module, words = words[words.index("-m") + 1], words[words.index("-m") + 2 :]
        if module == "engine.models.convert":
            assert convert(words) == 0, line
            if "large-image-diffusion" in words:
                width = read_card("brca").embedding_width
            continue
        if "brca" in words:
            with h5py.File("features.h5", "w") as file:
                file["feat_20x"] = np.random.default_rng(0).standard_normal((4 * 6, width)).astype(np.float32)
            side = read_card("brca").patch * read_card("brca").factor
            small["1024x1536"] = f"{4 * side}x{6 * side}"
        words = [tmp_path / word if Path(word.split(":")[0]).exists() else small.get(word) or word for word in words]
        out = tmp_path / f"{number}.zarr"
        extra = ("--steps", 1, "--guidance", 1, "--batch-size", 1, "--preview", "none", "--out", out)
        extra += ("--accept-rounds", 1) * ("--accept" in words) + ("--label-steps", 1) * ("--label-model" in words)
        done = launch(2, *words, *extra)
        assert done.returncode == 0, line + done.stdout + done.stderr
        assert verify(out)[0] == 0
    assert number + 1 == len(commands) == 9


def sampled(out, ranks, *arguments):
    """The sha256 of a run's result."""
    done = launch(ranks, *arguments, "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    return sha(out)


@pytest.mark.parametrize("system", IMAGES)
def test_every_system_gives_the_same_bytes_on_1_and_3_ranks(model, tmp_path, system):
    arguments = ("--model", model(system), *FIXED, *asked(model(system), tmp_path))
    shas = {sampled(tmp_path / f"{ranks}.zarr", ranks, *arguments) for ranks in (1, 3)}
    assert len(shas) == 1
    other = sampled(tmp_path / "other.zarr", 2, *arguments, "--seed", 1)
    assert other not in shas


NAMES = {"diffinfinite-image": "diffinfinite-image", "large-image-diffusion": "large-image-diffusion"}
NAMES |= {"sdm-nuclei": "sdm", "feature-aligned": "feature-aligned"}
CHECKPOINTS = [pytest.param(NAMES[n], f, id=f.name) for n in NAMES for f in sorted(GOLDEN.glob(f"{n}*")) if f.is_dir()]
ABSENT = pytest.param("", None, marks=pytest.mark.skip(f"{GOLDEN} is not here: checkpoints that the systems wrote"))


@pytest.mark.parametrize(("system", "folder"), CHECKPOINTS or [ABSENT])
def test_a_systems_own_checkpoint_gives_the_same_bytes_on_1_and_3_ranks(tmp_path, system, folder):
    made = convert_small(system, folder, tmp_path, patch=32 if system == "sdm" else 16)
    card = read_card(str(made))
    size = (card.patch * card.factor + 22, 2 * card.patch * card.factor - 10)
    options = ("--model", made, "--steps", 2, "--preview", "none", "--size", f"{size[0]}x{size[1]}")
    arguments = (*options, *asked(made, tmp_path, size))
    assert len({sampled(tmp_path / f"{ranks}.zarr", ranks, *arguments) for ranks in (1, 3)}) == 1


@pytest.mark.parametrize("system", ["large-image-diffusion", "sdm"])
def test_the_published_covers_and_decoding_too(model, tmp_path, system):
    options = {
        "large-image-diffusion": ("--cover", "strided", "--stride", 5, "--decode-weights", "gaussian", "--omega", 3),
        "sdm": ("--solver", "ddim", "--eta", 0.5),
    }[system]
    arguments = ("--model", model(system), *FIXED, *asked(model(system), tmp_path), *options)
    assert len({sampled(tmp_path / f"{ranks}.zarr", ranks, *arguments) for ranks in (1, 3)}) == 1


# ---- the hierarchy ------------------------------------------------------------------------------


def hierarchy(model):
    options = ("--label-model", model("diffinfinite-labels"), "--prompt", 1, "--label-steps", 4)
    return ("--model", model("diffinfinite-image"), "--steps", 4, "--preview", "none", "--size", "120x264", *options)


def test_the_hierarchy_samples_the_label_map_first_and_stores_it(model, tmp_path):
    arguments = hierarchy(model)
    shas = {sampled(tmp_path / f"{ranks}.zarr", ranks, *arguments) for ranks in (1, 3)}
    assert len(shas) == 1
    maps = [zarr.open(tmp_path / f"{ranks}.zarr" / "labels" / "tissue" / "0")[:] for ranks in (1, 3)]
    assert (maps[0] == maps[1]).all()
    assert maps[0].shape == (120, 264)
    assert maps[0].max() < 5
    again = sampled(tmp_path / "again.zarr", 2, *arguments[:-6], "--labels", tmp_path / "1.zarr" / "labels" / "tissue")
    assert again in shas, "the image is a function of the label map"


@pytest.mark.parametrize("stage", [pytest.param("labels", marks=pytest.mark.long), "image"])
def test_a_killed_hierarchy_resumes_to_the_same_bytes(model, tmp_path, stage):
    arguments = (*hierarchy(model), "--checkpoint-every", 0)
    whole = sampled(tmp_path / "whole.zarr", 1, *arguments)
    out = tmp_path / "out.zarr"
    private = out / "slidefield"
    mark = {"labels": private / "labels.zarr" / "slidefield" / "checkpoint.json", "image": private / "checkpoint.json"}
    start_and_kill(mark[stage].exists, out, 2, *arguments)
    assert sampled(out, 3, *arguments) == whole
    assert not (private / "labels.zarr").exists()


def test_the_embedded_label_model_gives_the_same_map_on_1_and_3_ranks(tiny_model, tmp_path):
    arguments = ("--model", tiny_model, "--label-model", "embedded", "--prompt", "carcinoma", "--label-steps", 6)
    arguments = (*arguments, "--size", "600x520", "--steps", 1, "--shard", 256, "--chunk", 128, "--preview", "none")
    assert len({sampled(tmp_path / f"{ranks}.zarr", ranks, *arguments) for ranks in (1, 3)}) == 1
    maps = [zarr.open(tmp_path / f"{ranks}.zarr" / "labels" / "tissue" / "0")[:] for ranks in (1, 3)]
    assert (maps[0] == maps[1]).all()
    assert len(np.unique(maps[0])) > 1
    assert zarr.open(tmp_path / "1.zarr").attrs["slidefield"]["label_stage"]["seed"] != 0


# ---- in-painting --------------------------------------------------------------------------------


@pytest.mark.parametrize("system", ["tiny", "sdm"])
def test_in_painting_keeps_every_known_pixel_and_samples_the_others(model, tiny_model, tmp_path, system):
    rng = np.random.default_rng(1)
    known = rng.integers(0, 256, (*SIZE, 3)).astype(np.uint8)
    mask = np.zeros(SIZE, np.uint8)
    mask[10:60, 20:90] = 1
    np.save(tmp_path / "known.npy", known)
    np.save(tmp_path / "mask.npy", mask)
    options = ("--image", tmp_path / "known.npy", "--mask", tmp_path / "mask.npy")
    own = ("--model", tiny_model) if system == "tiny" else ("--model", model("sdm"), *asked(model("sdm"), tmp_path))
    arguments = (*own, *FIXED, *options)
    shas = {sampled(tmp_path / f"{ranks}.zarr", ranks, *arguments) for ranks in (1, 3)}
    assert len(shas) == 1
    image = zarr.open(tmp_path / "1.zarr")["0"][:].transpose(1, 2, 0)
    assert (image == known)[mask == 0].all()
    deep = np.zeros(SIZE, bool)
    deep[27:43, 37:73] = True  # beyond the soft edge
    assert (image != known)[deep].mean() > 0.9


# ---- variations ---------------------------------------------------------------------------------


VARIED = (40, 56)


def varied(folder, own, *options):
    """The arguments of a variation of a smooth picture; and that picture."""
    y, x = np.mgrid[: VARIED[0], : VARIED[1]]
    known = np.stack([128 + 60 * np.sin(y / 9 + c) * np.cos(x / 13 - c) for c in range(3)], -1).round().astype(np.uint8)
    np.save(folder / "known.npy", known)
    size = ("--preview", "none", "--size", f"{VARIED[0]}x{VARIED[1]}", "--shard", 64, "--chunk", 32)
    return (*own, *size, "--image", folder / "known.npy", *options), known


def nuclei_of(model, folder):
    return ("--model", model("sdm"), *asked(model("sdm"), folder, VARIED), "--solver", "ddim")


@pytest.mark.parametrize("start", ["noised", "inverted"])
@pytest.mark.parametrize("system", ["tiny", "sdm", pytest.param("large-image-diffusion", marks=pytest.mark.long)])
def test_a_variation_is_the_same_on_1_and_3_ranks(model, tiny_model, tmp_path, system, start):
    own = ("--model", tiny_model, "--label", 1)
    if system != "tiny":
        own = ("--model", model(system), *asked(model(system), tmp_path, VARIED), "--solver", "ddim", "--eta", 0)
    arguments, _ = varied(tmp_path, own, "--steps", 4, "--strength", 0.5, "--start", start)
    shas = {sampled(tmp_path / f"{ranks}.zarr", ranks, *arguments) for ranks in (1, 3)}
    assert len(shas) == 1


def difference(folder, arguments, known):
    """The mean difference of a variation from the known image, grey levels."""
    sampled(folder / "v.zarr", 1, *arguments, "--overwrite")
    return np.abs(zarr.open(folder / "v.zarr")["0"][:].transpose(1, 2, 0).astype(int) - known).mean()


@pytest.mark.long
def test_a_variation_is_the_nearer_to_its_image_the_less_strong(model, tmp_path):
    arguments, known = varied(tmp_path, nuclei_of(model, tmp_path), "--steps", 10)
    differences = [difference(tmp_path, (*arguments, "--strength", share), known) for share in (0.1, 0.4, 1)]
    assert 0 < differences[0] < 0.2 * differences[1] < 0.2 * differences[2], differences


@pytest.mark.long
def test_an_inverted_image_comes_back_the_nearer_the_more_levels(tmp_path):
    folder = make_model("sdm", tmp_path / "sdm")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tamed = {name: tensor * (0.3 if name.startswith("out.") else 1) for name, tensor in load_file(weights).items()}
    save_file(tamed, weights)  # a random network is far from smooth in x, as a trained one is not
    own = ("--model", folder, *asked(folder, tmp_path, VARIED), "--solver", "ddim")
    options = ("--strength", 0.5, "--start", "inverted", "--eta", 0, "--guidance", 1)
    arguments, known = varied(tmp_path, own, *options)
    differences = [difference(tmp_path, (*arguments, "--steps", steps), known) for steps in (4, 36)]
    assert 1 > differences[0] > 4 * differences[1], differences


@pytest.mark.parametrize("start", [pytest.param("noised", marks=pytest.mark.long), "inverted"])
def test_a_killed_variation_resumes_to_the_same_bytes(tiny_model, tmp_path, start):
    options = ("--steps", 6, "--strength", 0.7, "--start", start, "--checkpoint-every", 0)
    arguments, _ = varied(tmp_path, ("--model", tiny_model, "--label", 1), *options)
    whole = sampled(tmp_path / "whole.zarr", 1, *arguments)
    out = tmp_path / "out.zarr"
    start_and_kill((out / "slidefield" / "checkpoint.json").exists, out, 2, *arguments)
    assert sampled(out, 3, *arguments) == whole


def test_the_levels_of_a_variation_are_planned_as_they_are_sampled(tiny_model, tmp_path):
    own = ("--model", tiny_model, "--label", 1, "--guidance", 3)
    arguments, _ = varied(tmp_path, own, "--steps", 10, "--strength", 0.39)
    for start, levels in (("noised", 3), ("inverted", 6)):
        facts = json.loads(launch(1, *arguments, "--start", start, "--dry-run", "--json").stdout)
        evaluations = facts["evaluations_per_level"]
        assert facts["levels"] == len(evaluations) == levels
        log = tmp_path / f"{start}.jsonl"
        sampled(tmp_path / f"{start}.zarr", 2, *arguments, "--start", start, "--json-log", log)
        logged = [one for one in map(json.loads, lines_of(log)) if "t" in one]
        assert [one["windows"] for one in logged] == facts["windows_per_level"]
        guided = evaluations[-3:]
        assert guided == [2 * windows for windows in facts["windows_per_level"][-3:]]
        timesteps = [one["t"] for one in logged]
        assert timesteps[-3:] == sorted(timesteps[-3:], reverse=True)
        if start == "inverted":
            assert timesteps[:3] == timesteps[:2:-1], "the same levels, from the cleanest"
            assert facts["windows_per_level"][:3] == facts["windows_per_level"][:2:-1], "in the same windows"
            assert evaluations[:3] == facts["windows_per_level"][:3], "which are not guided"


# ---- sets ---------------------------------------------------------------------------------------


def images_of(out):
    return zarr.open(out)["images"][:]


@pytest.mark.parametrize(
    "system", ["tiny", "sdm", pytest.param("feature-aligned", marks=pytest.mark.long), "large-image-diffusion"]
)
def test_a_set_is_the_same_on_any_ranks_and_each_image_a_function_of_seed_and_index(
    model, tiny_model, tmp_path, system
):
    size = ("--steps", 2, "--preview", "none", "--size", "32x40", "--shard", 64, "--chunk", 32)
    own = {
        "tiny": lambda: ("--model", tiny_model, "--label", "0,1,3"),
        "sdm": lambda: ("--model", model("sdm"), "--instances", tmp_path / "stack.npy"),
        "feature-aligned": lambda: ("--model", model("feature-aligned"), *asked(model("feature-aligned"), tmp_path)),
        "large-image-diffusion": lambda: (
            *("--model", model("large-image-diffusion"), "--cover", "random"),
            *("--embeddings", tmp_path / "rows.npy"),
        ),
    }[system]()

    def inputs(count):
        np.save(tmp_path / "stack.npy", np.stack([discs((32, 40), 15 + i) for i in range(count)]))
        np.save(tmp_path / "rows.npy", np.random.default_rng(0).standard_normal((count, 12)).astype(np.float32))

    inputs(7)
    shas = {sampled(tmp_path / f"{ranks}.zarr", ranks, *own, *size, "--count", 7) for ranks in (1, 3)}
    assert len(shas) == 1
    seven = images_of(tmp_path / "1.zarr")
    assert len({image.tobytes() for image in seven}) == 7
    inputs(3)
    sampled(tmp_path / "fewer.zarr", 2, *own, *size, "--count", 3)
    assert (images_of(tmp_path / "fewer.zarr") == seven[:3]).all()


def test_a_set_that_was_killed_resumes_to_the_same_bytes(tiny_model, tmp_path):
    arguments = ("--model", tiny_model, "--size", "128x128", "--count", 9, "--steps", 12, "--checkpoint-every", 0)
    arguments = (*arguments, "--shard", 256, "--chunk", 128, "--preview", "none", "--label", "0,1,2")
    whole = sampled(tmp_path / "whole.zarr", 1, *arguments)
    out, log = tmp_path / "out.zarr", tmp_path / "log.jsonl"
    start_and_kill(lambda: len(lines_of(log)) >= 3, out, 2, *arguments, log=log)
    assert sampled(out, 3, *arguments) == whole


def test_images_that_are_too_dark_are_drawn_again(tiny_model, tmp_path):
    arguments = ("--model", tiny_model, "--size", "128x128", "--count", 6, "--steps", 2, "--label", "0,1")
    arguments = (*arguments, "--shard", 256, "--chunk", 128, "--preview", "none")
    sampled(tmp_path / "all.zarr", 1, *arguments)
    first = images_of(tmp_path / "all.zarr")
    means = first.mean((1, 2, 3)) / 255
    middle = float(np.median(means)) + 0.1
    most = ("--accept-rounds", 20)  # one of the classes may be dark whatever is drawn
    shas = {sampled(tmp_path / f"{n}.zarr", n, *arguments, "--accept", f"{middle:.6f}", *most) for n in (1, 3)}
    assert len(shas) == 1
    images = images_of(tmp_path / "1.zarr")
    bright = means >= middle - 0.1
    assert 0 < bright.sum() < 6
    assert (images[bright] == first[bright]).all(), "what was accepted stays"
    assert all((a != b).any() for a, b in zip(images[~bright], first[~bright], strict=True))
    rejected = zarr.open(tmp_path / "1.zarr").attrs["slidefield"]["rejected"]
    assert rejected[0] == int((~bright).sum())
    assert (images.mean((1, 2, 3)) / 255 >= middle - 0.1).all() or len(rejected) == 20


def test_a_set_killed_while_images_are_drawn_again_resumes_to_the_same_bytes(tiny_model, tmp_path):
    arguments = ("--model", tiny_model, "--size", "128x128", "--count", 6, "--steps", 3, "--checkpoint-every", 0)
    arguments = (*arguments, "--shard", 256, "--chunk", 128, "--preview", "none", "--accept", "filters:one_in_three")
    whole, out = tmp_path / "whole.zarr", tmp_path / "out.zarr"
    assert launch(1, *arguments, "--out", whole).returncode == 0
    start_and_kill((out / "slidefield" / "round.json").exists, out, 2, *arguments)
    assert launch(3, *arguments, "--out", out).returncode == 0
    assert sha(out) == sha(whole)
    rejected = [zarr.open(o).attrs["slidefield"]["rejected"] for o in (out, whole)]
    assert rejected[0] == rejected[1]
    assert len(rejected[0]) > 1


def report_page(out):
    """The text of a report."""
    assert engine.report.main([str(out)]) == 0
    return report_path(out).read_text()


def test_images_are_drawn_again_without_a_limit_unless_there_is_one(tiny_model, tmp_path):
    arguments = ("--model", tiny_model, "--size", "32x32", "--count", 1, "--steps", 1, "--preview", "none")
    arguments = (*arguments, "--shard", 64, "--chunk", 32, "--accept", "filters:rarely")
    done = launch(1, *arguments, "--out", tmp_path / "all.zarr")
    assert done.returncode == 0, done.stdout + done.stderr
    rejected = zarr.open(tmp_path / "all.zarr").attrs["slidefield"]["rejected"]
    assert rejected == [1] * 21 + [0]
    assert "20 rounds accepted none of 1 images" in done.stdout
    limited = launch(2, *arguments, "--accept-rounds", 3, "--out", tmp_path / "three.zarr")
    assert limited.returncode == 0, limited.stderr
    assert "1 of 1 images are kept, and were not accepted" in limited.stdout
    page = report_page(tmp_path / "three.zarr")
    assert "1 of the images was not accepted in the last round either" in page
    assert "1, 1 were rejected" in page
    assert zarr.open(tmp_path / "three.zarr").attrs["slidefield"]["rejected"] == rejected[:3]


def test_a_filter_of_ones_own_decides(tiny_model, tmp_path):
    arguments = ("--model", tiny_model, "--size", "128x128", "--count", 4, "--steps", 2, "--label", "0,1")
    out = tmp_path / "out.zarr"
    done = launch(2, *arguments, "--preview", "none", "--accept", "filters:even_if_of_class_1", "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(int(image[0, 0, 0]) % 2 == 0 for image in images_of(out)[1::2])


def test_a_set_of_nuclei_is_exported_as_the_nuclei_system_writes_it(model, tmp_path):
    np.save(tmp_path / "stack.npy", np.stack([discs((32, 40), 15), discs((32, 40), 19)]))
    arguments = ("--model", model("sdm"), "--instances", tmp_path / "stack.npy", "--size", "32x40", "--steps", 2)
    sampled(tmp_path / "out.zarr", 2, *arguments, "--count", 2, "--preview", "none")
    line = [sys.executable, "-m", "engine.export", str(tmp_path / "out.zarr"), str(tmp_path / "set")]
    done = subprocess.run(line, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names = {p.parent.name for p in (tmp_path / "set").rglob("*") if p.is_file() and p.parent != tmp_path / "set"}
    assert {"samples", "labels", "cond", "inst_masks"} <= names


# ---- styles -------------------------------------------------------------------------------------


@pytest.mark.long
def test_styles_take_the_models_place_each_where_the_map_says(model, tmp_path):
    other = tmp_path / "other"
    make = make_model("sdm", other)
    tensors = make / "unet" / "diffusion_pytorch_model.safetensors"
    from safetensors.numpy import load_file, save_file

    save_file({k: v * np.float32(0.9) for k, v in load_file(tensors).items()}, tensors)
    style_map = np.zeros(SIZE, np.uint8)
    style_map[:, 60:] = 1
    np.save(tmp_path / "styles.npy", style_map)
    own = ("--model", model("sdm"), *FIXED, *asked(model("sdm"), tmp_path))
    both = ("--style", f"{model('sdm')},{make}", "--style-map", tmp_path / "styles.npy")
    plain = sampled(tmp_path / "plain.zarr", 1, *own)
    assert sampled(tmp_path / "same.zarr", 1, *own, "--style", model("sdm")) == plain
    assert sampled(tmp_path / "second.zarr", 1, *own, "--style", make) != plain
    assert len({sampled(tmp_path / f"{n}.zarr", n, *own, *both) for n in (1, 3)}) == 1


# ---- bad input ----------------------------------------------------------------------------------


def test_wrong_embeddings_are_refused(model, tmp_path):
    own = ("--model", model("large-image-diffusion"), *FIXED, "--out", tmp_path / "o.zarr")
    asked(model("large-image-diffusion"), tmp_path)
    file = tmp_path / "features.h5"
    np.save(tmp_path / "wide.npy", np.zeros((2, 2, 13), np.float32))
    np.save(tmp_path / "grid.npy", np.zeros((3, 2, 12), np.float32))
    np.save(tmp_path / "nan.npy", np.full((2, 2, 12), np.nan, np.float32))
    with h5py.File(tmp_path / "empty.h5", "w"):
        pass
    for value, said in (
        (f"{file}:/feat_10x", ["/feat_10x", "/feat_20x"]),
        (f"{tmp_path}/none.h5:/feat_20x", ["none.h5", "not there"]),
        (file, ["none was named", "/feat_20x"]),
        (tmp_path / "empty.h5", ["empty.h5"]),
        (tmp_path / "wide.npy", ["13", "12"]),
        (tmp_path / "grid.npy", ["3 x 2", "2 x 2", "--size 192x128"]),
        (tmp_path / "nan.npy", ["finite"]),
    ):
        line = refused(tmp_path, *own, "--embeddings", value)
        assert all(words in line for words in said), line
    assert "--embeddings" in refused(tmp_path, *own)


def test_wrong_instance_maps_are_refused(model, tmp_path):
    own = ("--model", model("sdm"), *FIXED, "--out", tmp_path / "o.zarr")
    cut = discs(SIZE)
    cut[:4, 30:40] = 17
    np.save(tmp_path / "cut.npy", cut)
    np.save(tmp_path / "small.npy", discs((60, 100)))
    np.save(tmp_path / "none.npy", np.zeros(SIZE, np.uint32))
    np.save(tmp_path / "real.npy", np.zeros(SIZE, np.float32))
    for value, said in (
        ("cut", ["17", "border", "row 0", "--border-nuclei"]),
        ("small", ["60 x 100", "70 x 100", "--size"]),
        ("none", ["background"]),
        ("real", ["float32", "whole numbers"]),
    ):
        line = refused(tmp_path, *own, "--instances", tmp_path / f"{value}.npy")
        assert all(words in line for words in said), line
    assert "--instances" in refused(tmp_path, *own)
    for border in ("keep", "drop"):
        sampled(
            tmp_path / f"{border}.zarr", 1, *own[:-2], "--instances", tmp_path / "cut.npy", "--border-nuclei", border
        )


@pytest.mark.parametrize("system", IMAGES)
def test_a_condition_of_another_family_is_refused_saying_what_the_model_takes(model, tmp_path, system):
    wrong = {"sdm": ("--label", "1"), "diffinfinite-image": ("--instances", "nuclei.npy")}.get(
        system, ("--map", "m.npy")
    )
    line = refused(tmp_path, "--model", model(system), *FIXED, *wrong, "--out", tmp_path / "o.zarr")
    assert wrong[0] in line
    assert "takes --" in line


def test_guidance_without_a_null_is_refused(model, tmp_path):
    own = ("--model", model("feature-aligned"), *FIXED, *asked(model("feature-aligned"), tmp_path))
    line = refused(tmp_path, *own, "--guidance", 2, "--out", tmp_path / "o.zarr")
    assert "null" in line


def test_another_table_of_classes_is_another_job(model, tmp_path):
    own = ("--model", model("feature-aligned"), *FIXED, *asked(model("feature-aligned"), tmp_path))
    sampled(tmp_path / "o.zarr", 1, *own)
    table = np.load(tmp_path / "classes.npy")
    np.save(tmp_path / "classes.npy", 2 * table)
    assert "another job" in refused(tmp_path, *own, "--out", tmp_path / "o.zarr")


def test_a_stack_in_zarr_is_as_good_as_one_in_npy(tiny_model, tmp_path):
    labels = np.random.default_rng(0).integers(0, 5, (3, 16, 16)).astype(np.uint8).repeat(8, 1).repeat(8, 2)
    np.save(tmp_path / "stack.npy", labels)
    zarr.create_array(str(tmp_path / "stack.zarr"), data=labels, chunks=(1, 64, 64))
    own = ("--model", tiny_model, "--size", "128x128", "--steps", 2, "--count", 3, "--preview", "none")
    shas = {
        sampled(tmp_path / f"{kind}.out.zarr", 2, *own, "--labels", tmp_path / f"stack.{kind}")
        for kind in ("npy", "zarr")
    }
    assert len(shas) == 1


def test_wrong_sets_are_refused(tiny_model, tmp_path):
    own = ("--model", tiny_model, "--size", "128x128", "--steps", 2, "--out", tmp_path / "o.zarr")
    np.save(tmp_path / "stack.npy", np.zeros((3, 128, 128), np.uint8))
    for options, said in (
        (("--accept", "0.5"), ["--count"]),
        (("--count", 0), ["--count", "1 or more"]),
        (("--count", 4, "--accept", "bright"), ["bright", "module:function"]),
        (("--count", 4, "--accept", "no.such:thing"), ["no.such:thing"]),
        (("--count", 4, "--label", 1, "--accept", "0.5,0.5"), ["2 means", "5 classes"]),
        (("--count", 4, "--accept", "0.5,0.5,0.5,0.5,0.5"), ["5 means", "no one class"]),
        (("--count", 4, "--labels", tmp_path / "stack.npy"), ["3 maps", "--count 3"]),
        (("--label", "1,2"), ["1,2", "--count"]),
    ):
        line = refused(tmp_path, *own, *options)
        assert all(words in line for words in said), line


def test_several_styles_are_for_semantic_maps_alone(tiny_model, tmp_path):
    own = ("--model", tiny_model, "--size", "128x128", "--steps", 2, "--out", tmp_path / "o.zarr")
    line = refused(tmp_path, *own, "--style", f"{tiny_model},{tiny_model}")
    assert "semantic" in line


def test_wrong_in_painting_is_refused(tiny_model, tmp_path):
    own = ("--model", tiny_model, "--size", "128x128", "--steps", 2, "--out", tmp_path / "o.zarr")
    np.save(tmp_path / "known.npy", np.zeros((128, 128, 3), np.uint8))
    np.save(tmp_path / "small.npy", np.zeros((64, 128, 3), np.uint8))
    np.save(tmp_path / "none.npy", np.zeros((128, 128), np.uint8))
    for options, said in (
        (("--image", tmp_path / "known.npy"), ["--mask", "--strength"]),
        (("--image", tmp_path / "known.npy", "--mask", tmp_path / "none.npy"), ["nothing to paint"]),
        (("--image", tmp_path / "small.npy", "--mask", tmp_path / "none.npy"), ["nothing to paint"]),
        (("--image", tmp_path / "known.npy", "--mask", tmp_path / "gone.npy"), ["gone.npy", "not there"]),
    ):
        line = refused(tmp_path, *own, *options)
        assert all(words in line for words in said), line


def test_a_wrong_variation_is_refused(tiny_model, tmp_path):
    own = ("--model", tiny_model, "--size", "128x128", "--steps", 2, "--out", tmp_path / "o.zarr")
    np.save(tmp_path / "known.npy", np.zeros((128, 128, 3), np.uint8))
    np.save(tmp_path / "small.npy", np.zeros((64, 128, 3), np.uint8))
    np.save(tmp_path / "mask.npy", np.ones((128, 128), np.uint8))
    known, inverted = ("--image", tmp_path / "known.npy"), ("--strength", 1, "--start", "inverted")
    for options, said in (
        ((*known, "--strength", 0), ["--strength is 0", "choose 0.5 or more"]),
        ((*known, "--strength", 0.4), ["--strength is 0.4", "no level of 2"]),
        ((*known, "--strength", 1.5), ["--strength", "1.5", "0 to 1"]),
        (("--strength", 0.5), ["--strength 0.5", "--image"]),
        (("--start", "inverted"), ["--start inverted", "--image"]),
        ((*known, "--start", "inverted"), ["--strength"]),
        ((*known, "--start", "clean", "--strength", 1), ["--start", "clean", "inverted"]),
        ((*known, "--strength", 0.5, "--mask", tmp_path / "mask.npy"), ["--strength 0.5", "--mask"]),
        ((*known, "--strength", 0.5, "--count", 2), ["--count", "--image"]),
        ((*known, "--strength", 0.5, "--roi", tmp_path / "mask.npy"), ["--roi", "--image"]),
        ((*known, *inverted, "--solver", "ddpm"), ["--start inverted", "--solver ddpm"]),
        ((*known, *inverted, "--eta", 0.5), ["--start inverted", "--eta is 0.5", "--eta 0"]),
        ((*known, "--strength", 0.5, "--guidance-interval", "0:2"), ["0:2", "1 levels"]),
        (("--image", tmp_path / "small.npy", "--strength", 0.5), ["64 x 128"]),
    ):
        line = refused(tmp_path, *own, *options)
        assert all(words in line for words in said), line


def test_a_wrong_label_model_or_prompt_is_refused(model, tiny_model, tmp_path):
    own = ("--model", tiny_model, "--size", "128x128", "--steps", 2, "--out", tmp_path / "o.zarr")
    labels = model("diffinfinite-labels")
    for options, said in (
        (("--label-model", tiny_model), ["images, not label maps"]),
        (("--label-model", labels, "--prompt", "lung"), ["lung", "adenocarcinoma"]),
        (("--label-model", tmp_path / "gone"), ["--label-model", "gone", "not there"]),
        (("--label-model", labels, "--label", 1), ["--label 1", "--label-model"]),
        (("--prompt", "adenocarcinoma"), ["--prompt", "--label-model"]),
        (("--label-model", labels, "--size", "20x20"), ["20x20", "clean-up"]),
    ):
        line = refused(tmp_path, *own, *options)
        assert all(words in line for words in said), line
