"""The trainer, on a few drawn tiles: it learns, resumes, and its folder is a model that the front door samples."""

import json
import shutil

import numpy as np
import pytest
import torch
from launching import launch, verify
from PIL import Image
from safetensors.torch import load_file

from engine.command_line import STOPPED
from engine.diffusion.schedule import Schedule
from engine.models.card import autoencoder_sizes, read_card
from engine.models.files import read_json
from engine.models.folder import load_part, save_part
from engine.models.networks.autoencoder import PatchAutoencoder, Upsample
from engine.models.networks.mask_unet import LabelUNet
from engine.models.optimize import DoublingConv, prepare_for_inference
from engine.train import parser
from engine.training import pieces
from engine.training.autoencoder import cut_window, to_tensor
from engine.training.checks import check
from engine.training.data import Patches, dihedral, find_images, hold_out
from engine.training.diffusion import snr_weights
from engine.training.image import LatentWindows, turned_corner
from engine.training.labels import (
    LabelWindows,
    find_maps,
    one_hot,
    read_map,
    read_windows,
    shifted_cosine,
    window_classes,
)
from engine.training.losses import RandomFeatures

pytestmark = pytest.mark.runs


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
    by_step = {record["step"]: record["L1"] for record in records}
    assert 2 * by_step[40] - by_step[20] < 0.5, "the mean of the last 20 steps: figures are those of all until 50"
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


def test_another_training_is_not_gone_on_with_and_names_must_be_enough(trained, tiles):
    out, _, _ = trained
    before = (out / "vae" / "training.pt").read_bytes()
    common = ("--data", tiles, "--out", out, "--batch-size", 4)
    for options, said in (
        (("autoencoder", *common, "--crop", 32, "--lr", 3e-4), ["--lr is 0.001, yours is 0.0003", "--resume never"]),
        (("autoencoder", *common, "--crop", 32, "--channels", "8,16,24"), ["network of another shape", "--out"]),
        (("image", *common, "--window", 8, "--dim", 16, "--labels", "none,left"), ["names 2 (none, left)", "hold 3"]),
    ):
        done = launch(2, *options, module="engine.train")
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert all(words in line for words in said), line
    assert (out / "vae" / "training.pt").read_bytes() == before
    weights = out / "vae" / "diffusion_pytorch_model.safetensors"
    assert weights.stat().st_mode & 0o777 == (out / "vae" / "config.json").stat().st_mode & 0o777


def test_the_decoder_alone_goes_on_and_leaves_the_latents_as_they_were(trained, tiles):
    out, _, _ = trained
    before = load_part(out / "vae").state_dict()
    options = ("--data", tiles, "--out", out, "--batch-size", 4, "--steps", 6, "--crop", 32, "--decoder-alone")
    done = launch(2, "autoencoder", *options, module="engine.train")
    assert done.returncode == 0, done.stderr
    after = load_part(out / "vae").state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder"}


def edge_error(network, whole, latents):
    """How far a window ends from what lies there within a larger one, and how far its middle is from that."""
    m, f = network.margin, network.factor
    part = network.decode(latents[..., m:-m, m:-m])
    off = (part - whole[..., m * f : -m * f, m * f : -m * f]).abs()
    middle = off[..., m * f : -m * f, m * f : -m * f]
    return float((off.sum() - middle.sum()) / (off.numel() - middle.numel())), float(middle.mean())


def test_training_edges_alone_mends_where_windows_end_and_leaves_the_rest(tiles, tmp_path):
    out = tmp_path / "model"
    common = ("--data", tiles, "--out", out, "--batch-size", 4, "--channels", "8,16", "--blocks", "1,1", "--warmup", 2)
    done = launch(1, "autoencoder", *common, "--steps", 30, "--crop", 32, "--ema", 0.5, module="engine.train")
    assert done.returncode == 0, done.stderr
    before = load_part(out / "vae")
    options = (*common, "--ema", 0.5, "--edges-alone", "--lr", 2e-3)
    done = launch(1, "autoencoder", *options, "--steps", 30, "--crop", 40, module="engine.train")
    assert done.returncode == 1
    assert "--crop is 40 px" in done.stderr
    done = launch(1, "autoencoder", *options, "--steps", 60, "--crop", 72, module="engine.train")
    assert done.returncode == 0, done.stderr
    after = load_part(out / "vae")
    x = to_tensor([np.tile(np.asarray(Image.open(tiles / "t1.png").convert("RGB")), (2, 2, 1))])
    with torch.no_grad():
        latents = before.encode(x)
        assert torch.equal(latents, after.encode(x))
        whole = before.decode(latents)
        (edges_before, _), (edges_after, middle) = (edge_error(net, whole, latents) for net in (before, after))
    assert edges_after < 0.7 * edges_before
    assert middle < 0.5 * edges_before


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


@pytest.fixture(scope="module")
def maps(tmp_path_factory):
    """Three label maps: one of labels, one of two bytes, and one spread over 0 to 255; and an image that is none."""
    folder = tmp_path_factory.mktemp("maps")
    labels = np.zeros((96, 128), np.uint8)
    labels[:, 40:] = 1
    Image.fromarray(labels).save(folder / "a.png")
    Image.fromarray(labels.T.astype(np.uint16)).save(folder / "b.tif")
    labels[40:, 40:] = 2
    Image.fromarray((labels / 2 * 255).astype(np.uint8)).save(folder / "c.png")  # 127.5 is stored as 127
    Image.fromarray(np.zeros((96, 96, 3), np.uint8)).save(folder / "d.png")
    return folder


def train_labels(ranks, maps, out, *options):
    names = ("--labels", "unknown,left,right", "--window", 8, "--scale", 4, "--dim", 8, "--dim-mults", "1,2")
    common = ("--data", maps, "--out", out, "--every", 10, "--batch-size", 4)
    return launch(ranks, "labels", *common, *names, *options, module="engine.train")


@pytest.mark.parametrize("network", ["image", "autoencoder", "labels"])
def test_a_converted_model_is_not_trained_into(tiles, tmp_path, network):
    for part, kind in (("unet", "MaskUNet" if network != "labels" else "SpadeUNet"), ("vae", "AutoencoderKL")):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(json.dumps({"_class_name": kind}))
    done = launch(2, network, "--data", tiles, "--out", tmp_path, "--steps", 1, module="engine.train")
    assert done.returncode == 1
    assert done.stderr.count("error: ") == 1
    assert "AutoencoderKL" in done.stderr
    assert "train into another folder" in done.stderr
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["config.json"] * 2


def test_a_model_without_the_state_of_a_training_is_not_trained_over(trained, tiles, tmp_path):
    copy = shutil.copytree(trained[0], tmp_path / "m", ignore=shutil.ignore_patterns("*training.pt"))
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    common = ("--data", tiles, "--out", copy, "--batch-size", 2, "--steps", 2, "--every", 1)
    for options, said in (
        (("autoencoder", *common, "--crop", 32), ["vae/training.pt", "into another folder", "--decoder-alone"]),
        (("image", *common, "--window", 8, "--dim", 16), ["unet/training.pt", "into another folder"]),
    ):
        done = launch(2, *options, module="engine.train")
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert all(words in line for words in said), line
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before
    done = launch(2, "autoencoder", *common, "--crop", 32, "--decoder-alone", module="engine.train")
    assert done.returncode == 0, done.stderr
    shutil.rmtree(copy / "unet")
    done = launch(2, "image", *common, "--window", 8, "--dim", 16, "--dim-mults", "1,2", module="engine.train")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("network", "part"), [("autoencoder", "vae"), ("image", "unet")])
def test_training_starts_from_the_weights_of_a_model_folder(trained, tiles, tmp_path, network, part):
    common = ("--data", tiles, "--out", tmp_path, "--steps", 1, "--batch-size", 2, "--lr", 1e-9, "--init", trained[0])
    options = {"autoencoder": ("--crop", 32), "image": ("--window", 8, "--dim", 16, "--dim-mults", "1,2")}[network]
    done = launch(1, network, *common, *options, module="engine.train")
    assert done.returncode == 0, done.stderr
    start, after = (load_part(folder / part).state_dict() for folder in (trained[0], tmp_path))
    assert all(torch.allclose(start[name], after[name], atol=1e-6) for name in start)
    assert [path.parent.name for path in tmp_path.rglob("training.pt")] == [part], "that of a copy stays where it is"
    wider = {"autoencoder": ("--channels", "8,16,24"), "image": ("--dim", 24)}[network]
    done = launch(2, network, *common, *options, "--resume", "never", *wider, module="engine.train")
    assert done.returncode == 1
    assert "is a network of another shape than is trained: its settings are" in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("network", ["autoencoder", "image", "labels", "first-stage"])
def test_options_that_nothing_reads_are_not_offered(tiles, tmp_path, network):
    refused = [("--keep-every", 1000)] + ([("--compile",)] if network == "first-stage" else [])
    for options in refused:
        done = launch(1, network, "--data", tiles, "--out", tmp_path / "m", *options, module="engine.train")
        assert done.returncode == 1
        assert done.stderr.startswith(f"error: unrecognized argument {options[0]}"), done.stderr
        assert done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("nuclei", "--attention", "32,7"), "`attention` 7 is no size .* choose of 128, 64, 32"),
        (("large-image", "--attention", "16"), "`attention` 16 is no size .* choose of 1, 2, 4, 8"),
        (("first-stage", "--attention", "16"), "`attention` 16 is no size .* choose of 256, 128, 64"),
        (("diffinfinite-image", "--keep", "1,3,1"), "`keep` names label 1 twice"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(options, said):
    args = parser().parse_args([*options, "--data", "data", "--out", "out"])
    with pytest.raises(ValueError, match=said):
        check(args, 1)


@pytest.mark.parametrize("network", ["nuclei", "large-image", "first-stage"])
def test_the_published_attention_is_taken_by_smaller_networks_where_it_applies(network):
    check(parser().parse_args([network, "--data", "data", "--out", "out", "--channel-mult", "1,2"]), 1)


@pytest.mark.parametrize("network", ["autoencoder", "image", "labels", "first-stage", "diffinfinite-image"])
def test_more_images_held_out_than_a_quarter_are_refused(trained, tiles, tmp_path, network):
    common = ("--data", tiles, "--out", tmp_path, "--hold-out", 1, "--steps", 1, "--batch-size", 2)
    if network == "image":
        shutil.copytree(trained[0] / "vae", tmp_path / "vae")
    if network == "diffinfinite-image":
        common += ("--window", 64)
    done = launch(2, network, *common, module="engine.train")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "--hold-out 1 is more than a quarter of the 3 images" in line, line


def test_the_network_of_label_maps_learns_goes_on_and_leaves_a_model(maps, tmp_path):
    first = train_labels(2, maps, tmp_path, "--steps", 30)
    assert first.returncode == 0, first.stderr
    assert "3 label maps" in first.stdout
    again = train_labels(1, maps, tmp_path, "--steps", 34)
    assert again.returncode == 0, again.stderr
    assert "resumed at step 30" in again.stdout
    records = [json.loads(line) for line in (tmp_path / "unet" / "training.jsonl").read_text().splitlines()]
    assert records[-1]["step"] == 34
    assert records[-1]["loss"] < 2
    assert Image.open(tmp_path / "unet" / "samples.png").size == (4 * 10, 3 * 10)
    card = json.loads((tmp_path / "card.json").read_text())
    assert [entry["name"] for entry in card["labels"]] == ["tissue", "left", "right"]
    assert [entry["color"] for entry in card["labels"]] == [[160, 160, 160], [214, 39, 40], [255, 187, 20]]
    assert (card["role"], card["space"], card["label_scale"], card["pixel_size_um"]) == ("labels", "pixels", 4, 2.0)
    config = json.loads((tmp_path / "unet" / "config.json").read_text())
    assert config.pop("_class_name") == "LabelUNet"
    weights = load_file(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    LabelUNet(**config).load_state_dict(weights)
    scheduler = json.loads((tmp_path / "scheduler" / "scheduler_config.json").read_text())
    assert Schedule.from_config(scheduler).clip == 1.0


def test_label_maps_are_read_however_they_are_stored(maps):
    assert [path.name for path in find_maps(maps)] == ["a.png", "b.tif", "c.png"]
    a, b, c = (read_map(path, 3) for path in find_maps(maps))
    assert np.array_equal(a, b.T)
    assert np.unique(c).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match=r"c\.png holds 127.*`labels`"):
        read_map(maps / "c.png", 4)


def test_a_window_is_of_the_commonest_label_besides_0_where_there_is_enough_of_it():
    labels = np.random.default_rng(0).choice(4, (20, 24), p=[0.7, 0.1, 0.1, 0.1])
    classes = window_classes(labels, 8, 4)
    assert classes.shape == (13, 17)
    for y, x in np.ndindex(classes.shape):
        areas = np.bincount(labels[y : y + 8, x : x + 8].ravel(), minlength=4)[1:]
        assert classes[y, x] == (areas.argmax() + 1 if areas.max() >= 8 else 0)
    assert len(np.unique(classes)) == 4


def test_windows_of_label_maps_are_of_the_class_they_are_said_to_be(maps):
    maps = [read_map(path, 3) for path in find_maps(maps)]
    windows, again = (LabelWindows(maps, 3, 16, 4, seed=1) for _ in range(2))
    assert windows.classes == [0, 1, 2]
    shares: dict[int, list[float]] = {0: [], 1: [], 2: []}
    for position in range(90):
        labels, asked = windows.window(position)
        assert labels.shape == (16, 16)
        assert np.array_equal(labels, again.window(position)[0])
        shares[asked].append(float((labels == asked).mean()))
    assert all(len(of_class) > 15 for of_class in shares.values())
    assert np.mean(shares[1]) > 0.3
    assert np.mean(shares[2]) > 0.3


def test_one_hot_and_the_largest_channel_are_inverse():
    labels = np.random.default_rng(0).integers(0, 4, (2, 5, 6))
    assert np.array_equal(one_hot(labels, 4).argmax(1).numpy(), labels)


def test_the_shifted_schedule_has_the_cosines_signal_over_noise_times_the_shift():
    plain, shifted = (np.cumprod(1 - np.array(shifted_cosine(shift))) for shift in (1.0, 0.25))
    ratio = np.sqrt(shifted / (1 - shifted)) / np.sqrt(plain / (1 - plain))
    assert np.abs(ratio - 0.25).max() < 1e-3


def test_label_maps_smaller_than_a_window_and_folders_without_any_are_refused(maps, tmp_path):
    done = train_labels(1, maps, tmp_path / "m", "--window", 64)
    assert done.returncode != 0
    assert "96 x 128 px, smaller than a window of 256" in done.stderr
    (tmp_path / "empty").mkdir()
    done = train_labels(2, tmp_path / "empty", tmp_path / "m")
    assert done.returncode != 0
    assert done.stderr.count("error: ") == 1
    assert "no label map" in done.stderr
    assert not (tmp_path / "m").exists()


def test_an_edge_that_is_repeated_is_decoded_like_the_inside():
    torch.manual_seed(0)
    flat = torch.ones(1, 4, 9, 9)
    for padding, alike in (("zeros", False), ("replicate", True), ("reflect", True)):
        network = PatchAutoencoder(latent_channels=4, channels=(8, 8, 8), blocks=(1, 1, 1), padding=padding)
        for block in network.modules():
            if isinstance(block, torch.nn.Conv2d):
                torch.nn.init.normal_(block.weight, std=0.2)
        with torch.no_grad():
            pixels = network.decode(flat)
            assert (float((pixels - pixels[..., 36:37, 36:37]).abs().max()) < 1e-4) == alike


def test_autoencoders_from_before_there_was_padding_are_padded_with_zeros(tmp_path):
    save_part(PatchAutoencoder(channels=(8, 8), blocks=(1, 1)), tmp_path / "vae")
    assert not {"padding", "fold"} & set(read_json(tmp_path / "vae" / "config.json")), "other bytes than then"
    network = load_part(tmp_path / "vae")
    assert not {"padding", "fold"} & set(network.config)
    assert {conv.padding_mode for conv in network.modules() if isinstance(conv, torch.nn.Conv2d)} == {"zeros"}


def test_a_folded_autoencoder_is_a_finer_one_whose_latents_lie_together():
    torch.manual_seed(0)
    sizes = {"channels": (8, 8), "blocks": (1, 1), "padding": "replicate"}
    fine, folded = PatchAutoencoder(latent_channels=4, **sizes), PatchAutoencoder(latent_channels=16, fold=2, **sizes)
    folded.load_state_dict(fine.state_dict())
    image = torch.rand(1, 3, 64, 48)
    with torch.no_grad():
        z, z_fine = folded.encode(image), fine.encode(image)
        assert (folded.factor, fine.factor, z.shape) == (8, 4, (1, 16, 8, 6))
        assert torch.equal(torch.nn.functional.pixel_shuffle(z, 2), z_fine)
        assert torch.equal(folded.decode(z), fine.decode(z_fine))
        assert torch.equal(folded.decode(folded.halve(z)), fine.decode(fine.halve(z_fine)))
    assert autoencoder_sizes({"_class_name": "PatchAutoencoder", **folded.config})["factor"] == 8


def test_doubling_repeats_edges_as_the_two_layers_did():
    torch.manual_seed(0)
    x = torch.randn(1, 8, 5, 7)
    for padding in ("zeros", "replicate", "reflect"):
        layer = torch.nn.Sequential(Upsample(8, 6, padding))
        with torch.no_grad():
            wanted, got = layer(x), prepare_for_inference(layer)(x)
        assert isinstance(layer[0], DoublingConv) == (padding != "reflect")
        assert float((wanted - got).abs().max()) < 1e-5


def test_what_is_decoded_in_training_is_a_window_of_latents_with_its_pixels():
    x = torch.arange(64 * 64.0).view(1, 1, 64, 64)
    corners = set()
    for seed in range(40):
        torch.manual_seed(seed)
        z, pixels = cut_window(x[..., ::8, ::8], x, 8, 2)
        assert z.shape[-2:] == (6, 6)
        assert torch.equal(pixels[..., ::8, ::8], z)
        corners.add(float(z.flatten()[0]))
    assert len(corners) == 3**2


def test_random_features_see_detail_and_no_mean_colour():
    torch.manual_seed(0)
    features, image = RandomFeatures(), torch.rand(2, 3, 32, 32) - 0.5
    blurred = torch.nn.functional.avg_pool2d(image, 3, 1, 1)
    assert float(features(image, image)) == 0
    assert float(features(image, blurred)) > 5 * float(features(image, image + 0.05))


def test_images_held_out_are_evenly_spread_and_their_label_maps_go_with_them(tmp_path):
    for index in range(16):
        labels = np.full((96, 96), index % 3, np.uint8)
        Image.fromarray(labels).convert("RGB").save(tmp_path / f"t{index:02}.png")
        if index >= 4:
            Image.fromarray(labels).save(tmp_path / f"t{index:02}_mask.png")
    kept = hold_out(find_images(tmp_path), 2)
    assert [path.stem for path in kept] == ["t07", "t13"]
    assert len(find_maps(tmp_path)) - len(read_windows(tmp_path, 3, 8, 4, 0, held=2).maps) == 2
    with pytest.raises(ValueError, match="`hold_out` 4 is more than a quarter of the 12 images with a label map"):
        hold_out(find_images(tmp_path), 4)
    assert hold_out(find_images(tmp_path), 0) == []


def test_weights_by_signal_over_noise_are_those_of_the_paper():
    snr = torch.tensor([0.01, 1.0, 5.0, 100.0])
    weights = snr_weights(snr / (1 + snr), 5.0)
    assert torch.allclose(weights * (1 + snr), snr.clamp(max=5.0), rtol=1e-4)


def test_windows_asked_for_a_label_hold_it_and_rare_labels_are_drawn_as_often(tmp_path):
    mask = np.ones((128, 128), np.uint8)
    mask[-8:, :8] = 2
    Image.fromarray(np.full((128, 128, 3), 200, np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(mask).save(tmp_path / "a_mask.png")
    network = PatchAutoencoder(latent_channels=4, channels=(8, 8, 8), blocks=(1, 1, 1))
    windows = LatentWindows(network, find_images(tmp_path), 8, 0.1, 0, "cpu", balance=1.0, own_label=1.0)
    drawn = [windows.window(position) for position in range(400)]
    counts = np.bincount([label for _, label, _ in drawn], minlength=3) / len(drawn)
    assert np.allclose(counts, (0.1, 0.45, 0.45), atol=0.08)
    assert all(bool(marks.any()) == bool(label) for _, label, marks in drawn)


def test_the_lattice_of_latents_lies_elsewhere_on_a_shifted_image(tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / "a.png")
    network = PatchAutoencoder(latent_channels=4, channels=(8, 8, 8), blocks=(1, 1, 1))
    network.encode = lambda x: x[:, :1, ::8, ::8].expand(-1, 4, -1, -1)
    windows = LatentWindows(network, find_images(tmp_path), 8, 0.0, 0, "cpu", shifts=4)
    latents = [windows.latents(0, 0, shift) for shift in range(4)]
    whole = np.asarray(Image.open(tmp_path / "a.png"))[..., 0] / 127.5 - 1
    assert np.allclose(latents[0][0], whole[::8, ::8], atol=1e-6)
    for moved in latents[1:]:
        places = [(y, x) for y, x in np.ndindex(8, 8) if np.allclose(moved[0][:7, :7], whole[y::8, x::8][:7, :7])]
        assert len(places) == 1


def test_a_window_of_a_turned_image_is_found_by_its_corner():
    image = np.arange(11 * 13).reshape(11, 13)
    for turn in range(8):
        y, x = turned_corner((2, 3), image.shape, 5, turn)
        window = dihedral(image, turn)[y : y + 5, x : x + 5]
        assert np.array_equal(window, dihedral(image[2:7, 3:8], turn))


def test_a_run_leaves_when_its_time_is_over_and_goes_on_alone_in_half_precision(tiles, tmp_path):
    common = ("autoencoder", "--data", tiles, "--out", tmp_path, "--alone", "--batch-size", 2, "--crop", 32)
    options = (*common, "--precision", "bfloat16", "--steps", 12, "--threads", 1, "--adversarial-from", 0.2)
    options += ("--padding", "replicate", "--perceptual", 0.1, "--equivariance", 0.25, "--kl", 1e-4, "--cut", 1)
    first = launch(1, *options, "--stop-after", 1e-6, module="engine.train")
    assert first.returncode == STOPPED, first.stderr
    assert torch.load(tmp_path / "vae" / "training.pt", weights_only=True)["step"] == 1
    again = launch(1, *options, module="engine.train")
    assert again.returncode == 0, again.stderr
    assert "resumed at step 1" in again.stdout
    assert load_part(tmp_path / "vae").config["padding"] == "replicate"


def test_a_training_is_packed_into_small_files_and_goes_on_from_them(trained, tiles, tmp_path, monkeypatch):
    out, _, _ = trained
    monkeypatch.setattr(pieces, "PART", 100_000)
    work, packed, elsewhere = tmp_path / "work", tmp_path / "packed", tmp_path / "elsewhere"
    shutil.copytree(out, work / "model")
    packed.mkdir()
    (packed / pieces.LOG).write_text("kept")
    (packed / "old.0").write_text("not kept")
    names = pieces.pack(work, packed)
    assert {path.name for path in packed.iterdir()} == {*names, pieces.LOG}
    assert "model-unet.1" in names
    assert max(path.stat().st_size for path in packed.glob("*.[0-9]")) <= 100_000
    pieces.unpack(packed, elsewhere)
    for part in ("unet", "vae"):
        before, after = load_part(out / part).state_dict(), load_part(elsewhere / "model" / part).state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)
    step = torch.load(out / "unet" / "training.pt", weights_only=True)["step"]
    options = ("--window", 8, "--dim", 16, "--dim-mults", "1,2", "--batch-size", 4, "--steps", step + 2, "--alone")
    done = launch(1, "image", "--data", tiles, "--out", elsewhere / "model", *options, module="engine.train")
    assert done.returncode == 0, done.stderr
    assert f"resumed at step {step}" in done.stdout
