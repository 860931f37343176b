"""The trainer, on a few drawn tiles: it learns, resumes, and its folder is a model that the front door samples."""

import json

import numpy as np
import pytest
import torch
from conftest import launch, verify
from PIL import Image

from engine.models.autoencoder import PatchAutoencoder
from engine.models.card import read_card
from engine.models.folder import load_part
from engine.training.data import Patches, dihedral, find_images
from engine.training.image import LatentWindows


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiles")
    rng = np.random.default_rng(0)
    for index in range(4):
        mask = np.zeros((96, 96), np.uint8)
        mask[:, 48:] = 1 + index % 2
        color = np.array([[240, 230, 240], [160, 60, 160], [230, 120, 150]], np.uint8)[mask]
        Image.fromarray((color + rng.integers(0, 15, color.shape)).astype(np.uint8)).save(folder / f"t{index}.png")
        if index:  # the first has no label map
            Image.fromarray(mask).save(folder / f"t{index}_mask.png")
    return folder


@pytest.fixture(scope="module")
def trained(tiles, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained")
    common = ("--data", tiles, "--out", out, "--every", 20, "--batch-size", 4)
    first = launch(2, "autoencoder", *common, "--steps", 40, "--crop", 32, module="engine.train")
    assert first.returncode == 0, first.stderr
    options = ("--steps", 20, "--window", 8, "--dim", 16, "--dim-mults", "1,2", "--labels", "none,left,right")
    second = launch(2, "image", *common, *options, module="engine.train")
    assert second.returncode == 0, second.stderr
    return out, first.stdout, second.stdout


def test_training_learns_shows_progress_and_leaves_pictures(trained):
    out, first, second = trained
    assert "ETA" in first + second or "step" in first
    records = [json.loads(line) for line in (out / "vae" / "training.jsonl").read_text().splitlines()]
    assert records[-1]["step"] == 40
    assert records[-1]["L1"] < 0.5
    assert Image.open(out / "vae" / "reconstructions.png").size[0] > 32
    assert Image.open(out / "unet" / "samples.png").size == (4 * 64, 3 * 64)


def test_what_was_trained_is_a_model_that_is_sampled(trained, tmp_path):
    out, _, _ = trained
    assert read_card(str(out)).labels == ("none", "left", "right")
    options = ("--size", "100x140", "--steps", 2, "--label", 1, "--preview", "none", "--out", tmp_path / "o.zarr")
    done = launch(2, "--model", out, *options)
    assert done.returncode == 0, done.stderr
    assert verify(tmp_path / "o.zarr")[0] == 0


def test_a_run_goes_on_where_it_was_stopped(trained, tiles):
    out, _, _ = trained
    options = ("--data", tiles, "--out", out, "--every", 20, "--batch-size", 4, "--steps", 44, "--crop", 32)
    done = launch(1, "autoencoder", *options, module="engine.train")
    assert done.returncode == 0, done.stderr
    assert "resumed at step 40" in done.stdout
    state = torch.load(out / "vae" / "training.pt", weights_only=True)
    assert state["step"] == 44


def test_the_decoder_alone_goes_on_and_leaves_the_latents_as_they_were(trained, tiles):
    out, _, _ = trained
    before = load_part(out / "vae").state_dict()
    options = ("--data", tiles, "--out", out, "--batch-size", 4, "--steps", 6, "--crop", 32, "--decoder-alone")
    done = launch(2, "autoencoder", *options, module="engine.train")
    assert done.returncode == 0, done.stderr
    after = load_part(out / "vae").state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder"}


def test_patches_are_a_function_of_seed_and_position_and_an_epoch_sees_every_image_once(tiles):
    patches = Patches(tuple(find_images(tiles)), 32, seed=3)
    again = Patches(tuple(find_images(tiles)), 32, seed=3)
    assert all(np.array_equal(patches.patch(p)[0], again.patch(p)[0]) for p in (0, 5, 17))
    for epoch in range(3):
        assert {patches.image_at(p) for p in range(4 * epoch, 4 * epoch + 4)} == set(patches.images)


def test_windows_of_images_of_odd_sizes_keep_their_labels_in_every_turn(tmp_path):
    mask = np.zeros((101, 115), np.uint8)
    mask[:48, 40:] = 1
    Image.fromarray(np.where(mask, 0, 255).astype(np.uint8)).convert("RGB").save(tmp_path / "a.png")
    Image.fromarray(mask).save(tmp_path / "a_mask.png")
    network = PatchAutoencoder(latent_channels=4, channels=(8, 8, 8), blocks=(1, 1, 1))
    network.encode = lambda x: torch.nn.functional.avg_pool2d(x, 8)[:, :1].expand(-1, 4, -1, -1)
    windows = LatentWindows(network, find_images(tmp_path), 8, 0.0, 0, "cpu")
    for position in range(60):
        latents, label, marks = windows.window(position)
        assert latents.shape == (4, 8, 8)
        if label:
            assert ((latents[0] < 0) == marks[0]).all()


def test_images_and_label_maps_are_turned_alike(tiles):
    path = find_images(tiles)[1]
    image, mask = np.asarray(Image.open(path)), np.asarray(Image.open(path.with_name(path.stem + "_mask.png")))
    for turn in range(8):
        turned, marks = dihedral(image, turn), dihedral(mask, turn)
        assert (turned[marks == 0][:, 1] > 200).all()
        assert (turned[marks > 0][:, 1] < 200).all()


def test_data_that_is_none_is_refused_in_one_line(tmp_path):
    done = launch(2, "image", "--data", tmp_path / "nowhere", "--out", tmp_path / "m", module="engine.train")
    assert done.returncode != 0
    assert done.stderr.count("error: ") == 1
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "m").exists()
