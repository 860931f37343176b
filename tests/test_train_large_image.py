"""Large-Image-Diffusion's trainings: the first stage, and the U-Net with its token layers; both layouts of data."""

import json
import math
import os
import shutil
from argparse import Namespace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from launching import ROOT, Running, launch, verify
from PIL import Image
from safetensors.torch import load_file
from test_convert import large_image, relative

from engine.diffusion.schedule import betas
from engine.models.card import read_card
from engine.models.convert.__main__ import main as convert
from engine.models.files import WEIGHTS, folder_of
from engine.models.folder import load_part
from engine.models.networks.embedder import Embedder
from engine.training.alone import Alone
from engine.training.loop import LoopSettings, Trainer
from engine.training.losses import PatchDiscriminator
from engine.training.objectives import Objective
from engine.training.published.first_stage import FirstStage, network_of
from engine.training.published.large_image import Conditioned, LargeImageSettings, datasets

GOLDEN = Path(os.environ.get("SLIDEFIELD_GOLDEN", ROOT.parent / "shared" / "golden"))
STAGE = ("--channels", 32, "--channel-mult", "1,2", "--blocks", 1, "--codes", 16, "--crop", 16)
SMALL = ("--window", 16, "--model-channels", 32, "--channel-mult", "1,2", "--blocks", 1, "--attention", 2, "--heads", 2)
SMALL = (*SMALL, "--token-width", 24, "--validation-windows", 8, "--warmup", 1)
COUNT, WIDTH, REGION = 12, 6, 4
SETTINGS = LargeImageSettings(16, 32, (1, 2), 1, (2,), 2, 24, 0.1, 0.5, "epsilon", "uniform", 0, 8, 0)


# ---- data ---------------------------------------------------------------------------------------


def picture(number, side=20):
    """A patch that says its number: one colour, brighter to the right and below."""
    y, x = np.mgrid[:side, :side]
    return np.stack([np.full_like(y, 20 * number), 3 * y, 3 * x], -1).astype(np.uint8)


def embedding(number, width):
    return np.random.default_rng((7, number, width)).standard_normal(width).astype(np.float32) * 3


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The authors' folder: patches 0 to 7 are trained on, in an order of theirs, 8 to 11 are held out."""
    data = tmp_path_factory.mktemp("brca")
    names = [f"slide{number % 2}/{number}_0.png" for number in range(COUNT)]
    for number, name in enumerate(names):
        (data / "pyramid" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(number)).save(data / "pyramid" / name)
    np.save(data / "patch_list_20x.npy", np.array(names))
    (data / "train_test_split").mkdir()
    for split, numbers in {"train": [7, 6, 5, 4, 3, 2, 1, 0], "test": [8, 9, 10, 11]}.items():
        tables = {f"indices_{split}_20x": np.array(numbers), f"indices_{split}_5x": np.array(numbers) // 4}
        np.savez(data / "train_test_split" / f"{split}.npz", **tables)
    (data / "ssl_features").mkdir()
    with h5py.File(data / "ssl_features" / "features.h5", "w") as file:
        file["feat_20x"] = np.stack([embedding(number, WIDTH) for number in range(COUNT)])
        file["feat_5x"] = np.stack([embedding(number, REGION) for number in range(3)])
    return data


def number_in(example):
    return round(float((example.x0[0].mean() + 1) * 127.5 / 20))


def test_the_authors_folder_gives_each_patch_its_own_row(published):
    regions = Path(f"{published / 'ssl_features' / 'features.h5'}:/feat_5x")
    learned, judged = datasets(published, None, regions, "20x", SETTINGS)
    assert (len(learned), len(judged)) == (8, 4)
    zeros, seen, ways = [], [], set()
    for position in range(800):
        example = learned.example(position, np.random.default_rng((1, position)))
        number = number_in(example)
        seen.append(number)
        ways.add((bool(example.x0[1, 0, 0] < example.x0[1, -1, 0]), bool(example.x0[2, 0, 0] < example.x0[2, 0, -1])))
        expected = {"patch": embedding(number, WIDTH), "region": embedding(number // 4, REGION)}
        zeros.append([not example.inputs[name].any() for name in expected])
        for name, zero in zip(expected, zeros[-1], strict=True):
            assert zero or np.array_equal(example.inputs[name], expected[name])
    assert sorted(seen[:8]) == sorted(seen[8:16]) == list(range(8)), "every epoch sees each once"
    assert len(ways) == 4, "mirrored along either axis"
    share = np.array(zeros)
    assert share.mean(0) == pytest.approx([0.1, 0.1], abs=0.03)
    assert share.all(1).mean() < 0.03, "patch and region apart"
    of_judged = [judged.example(position, np.random.default_rng(position)) for position in range(40)]
    assert {number_in(example) for example in of_judged} == {8, 9, 10, 11}
    assert all(example.inputs["patch"].any() and example.x0[1, 0, 0] < example.x0[1, -1, 0] for example in of_judged)


def test_a_folder_whose_embeddings_engine_embed_wrote(tmp_path):
    for number in range(6):
        Image.fromarray(picture(number)).save(tmp_path / f"{5 - number}.png")
    options = ("--with", "extractors:colors", "--patch", 20, "--out", tmp_path / "f.h5")
    done = launch(2, tmp_path, *options, module="engine.embed")
    assert done.returncode == 0, done.stderr
    settings = Namespace(**(vars(SETTINGS) | {"hold_out": 2, "drop": 0.0}))
    learned, judged = datasets(tmp_path, tmp_path / "f.h5", None, "20x", settings)
    assert (len(learned), len(judged)) == (4, 2)
    of_each = [
        part.example(position, np.random.default_rng(0)) for part in (learned, judged) for position in range(len(part))
    ]
    assert sorted(number_in(example) for example in of_each) == list(range(6))
    for example in of_each:
        assert example.inputs["patch"][0] == pytest.approx(20 * number_in(example) / 255 - 0.5, abs=0.01)


# ---- losses -------------------------------------------------------------------------------------


@pytest.mark.parametrize("region", [None, 20], ids=["patch", "patch and region"])
def test_the_loss_and_its_gradients_are_those_of_the_papers_formula(tmp_path, region):
    golden = GOLDEN / ("large-image-diffusion" + ("" if region is None else "-region"))
    if golden.is_dir():
        source = golden
    else:  # the checkpoint's kind, of random weights
        large_image(tmp_path, region=region)
        source = tmp_path / "run"
    assert convert(["large-image-diffusion", str(source), "--out", str(tmp_path / "model")]) == 0
    card = read_card(str(tmp_path / "model"))
    network = Conditioned(load_part(tmp_path / "model" / "unet"), load_part(tmp_path / "model" / "embedder"))
    network.train().requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 3, 3, card.patch, card.patch, generator=generator)
    t, patch = torch.tensor([0, 500, 999]), torch.randn(3, card.embedding_width, generator=generator)
    patch[1] = 0  # the null
    of_region = torch.randn(3, card.region_width, generator=generator) if card.region_width else None
    objective = Objective(card.schedule, "mse")
    x = objective.noised(x0, t, noise)
    loss = objective(network(x, t, patch, of_region), x0, x, t, noise)["loss"].mean()
    loss.backward()
    ours = {name: parameter.grad.clone() for name, parameter in network.named_parameters()}
    network.zero_grad()
    network.double()
    alpha_bar = np.cumprod(1 - np.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2)
    np.testing.assert_allclose(alpha_bar, np.cumprod(1 - betas("scaled_linear", 1000, 0.0015, 0.0195)))
    signal, spread = (
        torch.tensor(column)[t][:, None, None, None] for column in (alpha_bar**0.5, (1 - alpha_bar) ** 0.5)
    )
    tokens = []
    for name, given in (("patch_fc", patch), ("region_fc", of_region)):
        if given is not None:
            layer, unit = getattr(network.embedder, name), given.double()
            tokens.append((unit / unit.norm(dim=1, keepdim=True).clamp(min=1e-12)) @ layer.weight.T + layer.bias)
    output = network.unet(signal * x0 + spread * noise, t, torch.stack(tokens, 1)).sample
    expected = ((noise - output) ** 2).mean()
    expected.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    largest = max(float(parameter.grad.abs().max()) for parameter in network.parameters())
    for name, parameter in network.named_parameters():
        scale = max(float(parameter.grad.abs().max()), 1e-3 * largest)
        assert float((ours[name] - parameter.grad).abs().max()) < 2e-3 * scale, name


def stage_options(**changes):
    options = {
        "kind": "vq",
        "crop": 16,
        "channels": 32,
        "channel_mult": [1, 2],
        "blocks": 1,
        "attention": [],
        "codes": 16,
    }
    options |= {"latent_channels": 3, "codebook": 1.0, "kl": 1e-6, "perceptual": 0.0, "adversarial": 0.75}
    options |= {"adversarial_from": 0, "lr": 1e-3, "betas": [0.5, 0.9], "batch_size": 2, "seed": 0}
    return Namespace(**(options | changes))


@pytest.mark.parametrize("kind", ["vq", "kl"])
def test_the_first_stages_loss_is_the_papers(tmp_path, kind):
    args = stage_options(kind=kind, kl=0.5, codebook=0.7)
    torch.manual_seed(0)
    network = network_of(args)
    trainer = Trainer(network, LoopSettings(4, 0.0, 2, 1e-3), Alone(), tmp_path)
    stage = FirstStage(trainer, None, Alone(), args, "cpu")
    x, noise = torch.rand(2, 3, 16, 16) * 2 - 1, torch.randn(2, 3, 8, 8)
    before = PatchDiscriminator()
    before.load_state_dict(stage.discriminator.state_dict())
    loss, shown = stage.losses([0, 1], type("B", (tuple,), {})((x, noise)))
    if kind == "vq":
        z, codes = network.encode(x).latents, network.quantize.embedding.weight
        nearest = ((z.movedim(1, -1)[..., None, :] - codes) ** 2).sum(-1).argmin(-1)
        chosen = codes[nearest].movedim(-1, 1)
        of_latents = 0.7 * (((z.detach() - chosen) ** 2).mean() + 0.25 * ((z - chosen.detach()) ** 2).mean())
        straight = z + (chosen - z).detach()
        if network.quantize.legacy:  # the released code weighs the other term by 0.25
            of_latents = 0.7 * (0.25 * ((z.detach() - chosen) ** 2).mean() + ((z - chosen.detach()) ** 2).mean())
    else:
        mean, log_variance = network.quant_conv(network.encoder(x)).chunk(2, 1)
        straight = mean + (log_variance / 2).exp() * noise
        divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum() / 2
        of_latents = 0.5 * divergence / (3 * 16 * 16)
    y = network.decoder(network.post_quant_conv(straight))
    pixels = (x - y).abs().mean()
    with torch.no_grad():
        taught = 0.5 * ((1 - before(x)[0]).relu().mean() + (1 + before(y)[0]).relu().mean())
    assert float(shown["D"]) == pytest.approx(float(taught), rel=1e-4)
    stage.discriminator.eval()
    verdict = -stage.discriminator(y)[0].mean()
    last = network.decoder.conv_out.weight
    norms = [torch.autograd.grad(part, last, retain_graph=True)[0].norm() for part in (pixels, verdict)]
    expected = pixels + of_latents + 0.75 * norms[0] / (norms[1] + 1e-4) * verdict
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=0.02), "its norms go on by one step"


# ---- runs ---------------------------------------------------------------------------------------


def trained(ranks, what, data, out, *options):
    more = STAGE if what == "first-stage" else SMALL
    done = launch(ranks, what, "--data", data, "--out", out, *more, *options, module="engine.train")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def all_weights(out):
    parts = [part for part in ("unet", "embedder", "vae") if (out / part / WEIGHTS).exists()]
    return {f"{part}.{key}": tensor for part in parts for key, tensor in load_file(out / part / WEIGHTS).items()}


@pytest.fixture(scope="module")
def first_stage(published, tmp_path_factory):
    out = tmp_path_factory.mktemp("stage")
    options = ("--steps", 30, "--every", 10, "--batch-size", 4, "--lr", 2e-3, "--hold-out", 2, "--adversarial-from", 20)
    said = trained(2, "first-stage", published / "pyramid", out, *options)
    decibels = [float(line.split(": ")[1].split()[0]) for line in said.splitlines() if "dB on 2 images" in line]
    assert decibels[-1] > decibels[0] + 1
    data = ("--data", published / "pyramid", "--out", out)
    done = launch(1, "first-stage", *data, *STAGE, *options, "--codebook", 2, module="engine.train")
    assert done.stderr.startswith("error: --out holds a training whose --codebook is '1.0', yours is '2.0'"), (
        done.stderr
    )
    return out


@pytest.mark.runs
def test_the_u_net_learns_on_a_first_stage_of_ours_and_the_folder_samples(published, first_stage, tmp_path):
    out, regions = tmp_path / "m", f"{published / 'ssl_features' / 'features.h5'}:/feat_5x"
    options = ("--steps", 30, "--batch-size", 8, "--lr", 4e-3, "--every", 15, "--keep-every", 15, "--vae", first_stage)
    said = trained(
        2, "large-image", published, out, *options, "--region-embeddings", regions, "--activation-checkpointing"
    )
    held = [float(line.split("loss ")[1].split()[0]) for line in said.splitlines() if "held out," in line]
    assert "8 patches, 4 held out" in said
    assert len(held) == 2
    assert held[1] < 0.9, "it was 1 before the first step"
    assert Image.open(out / "unet" / "samples.png").size == (4 * 16, 2 * 16)
    assert isinstance(load_part(out / "embedder"), Embedder)
    for model in (out, out / "checkpoints" / "step-000015"):
        card = read_card(str(model))
        assert (card.condition, card.patch, card.embedding_width, card.region_width) == ("embedding", 8, WIDTH, REGION)
        asked = ("--embeddings", f"{published / 'ssl_features' / 'features.h5'}:/feat_20x", "--rows", 2, "--size", 32)
        options = ("--model", model, *asked, "--steps", 2, "--preview", "none", "--batch-size", 2, "--shard", 64)
        done = launch(2, *options, "--chunk", 32, "--out", model / "o.zarr")
        assert done.returncode == 0, done.stderr
        assert verify(model / "o.zarr")[0] == 0
    again = ("--steps", 1, "--batch-size", 4, "--lr", 1e-9, "--vae", first_stage, "--init", out)
    trained(1, "large-image", published, tmp_path / "again", *again, "--region-embeddings", regions)
    before, after = all_weights(out), all_weights(tmp_path / "again")
    assert all(
        relative(after[key].float(), before[key].float()) < 1e-3
        for key in before
        if key[:3] != "vae" and before[key].any()
    )


@pytest.mark.runs
def test_it_starts_from_a_checkpoint_of_latent_diffusion(published, first_stage, tmp_path):
    changes = {"attention_resolutions": [2], "context_dim": 24, "image_size": 8}
    large_image(tmp_path, **changes)
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert convert(["large-image-diffusion", str(tmp_path / "run"), "--out", str(tmp_path / "model")]) == 0
    options = ("--steps", 1, "--batch-size", 2, "--lr", 1e-9, "--vae", first_stage, "--init", checkpoint)
    trained(1, "large-image", published, tmp_path / "m", *options)
    theirs, ours = load_file(tmp_path / "model" / "unet" / WEIGHTS), load_file(tmp_path / "m" / "unet" / WEIGHTS)
    assert all(relative(ours[key].float(), theirs[key].float()) < 1e-3 for key in theirs)


@pytest.mark.runs
@pytest.mark.parametrize(
    "what", [pytest.param("large-image", marks=pytest.mark.long), "kl", pytest.param("vq", marks=pytest.mark.long)]
)
def test_the_same_weights_to_rounding_on_1_and_3_ranks(published, first_stage, tmp_path, what):
    options = ("--steps", 2, "--batch-size", 5)
    if what == "large-image":
        kind, data, options = what, published, (*options, "--vae", first_stage, "--prediction", "x0")
        options = (*options, "--timesteps", "loss-second-moment")
    else:
        kind, data, options = "first-stage", published / "pyramid", (*options, "--kind", what, "--perceptual", 0.1)
    for ranks in (1, 3):
        trained(ranks, kind, data, tmp_path / str(ranks), *options)
    if what == "large-image":
        assert read_card(str(tmp_path / "3")).schedule.prediction == "sample"
    one, three = (all_weights(tmp_path / str(ranks)) for ranks in (1, 3))
    rate = 1e-4 if what == "large-image" else 3.6e-5
    for key, tensor in one.items():
        moved = (tensor.float() - three[key].float()).abs()
        assert float(moved.max()) <= 4 * rate + 1e-3 * float(tensor.abs().max()), key
        if tensor.ndim > 1:  # a bias may be taken away again by a group of one channel: its gradient is rounding then
            assert float(moved.mean()) < 0.1 * rate + 2e-4 * float(tensor.float().abs().mean()), key


@pytest.mark.runs
@pytest.mark.long
@pytest.mark.parametrize("what", ["large-image", "first-stage"])
def test_killed_and_resumed_it_has_the_same_weights(published, first_stage, tmp_path, what):
    options = ("--steps", 4, "--batch-size", 2, "--every", 2)
    data, part = (published, "unet") if what == "large-image" else (published / "pyramid", "vae")
    options = (*options, "--vae", first_stage) if what == "large-image" else options
    trained(1, what, data, tmp_path / "whole", *options)
    out, more = tmp_path / "killed", STAGE if what == "first-stage" else SMALL
    run = Running(1, what, "--data", data, "--out", out, *more, *options, module="engine.train")
    assert run.wait_until((out / part / WEIGHTS).exists)
    run.kill()
    trained(1, what, data, out, *options)
    whole, resumed = all_weights(tmp_path / "whole"), all_weights(out)
    assert all(torch.equal(tensor, resumed[key]) for key, tensor in whole.items())


# ---- bad input ----------------------------------------------------------------------------------


def no_features(data):
    shutil.rmtree(data / "ssl_features")


def pickled(data):
    np.save(data / "patch_list_20x.npy", np.array(["a.png", None], object))


def too_far(data):
    np.savez(data / "train_test_split" / "train.npz", indices_train_20x=np.array([3, COUNT]))


def not_finite(data):
    with h5py.File(data / "ssl_features" / "features.h5", "r+") as file:
        file["feat_20x"][:] = math.nan


def gone(data):
    (data / "pyramid" / "slide1" / "3_0.png").unlink()


@pytest.mark.runs
@pytest.mark.parametrize(
    ("spoil", "more", "said"),
    [
        (no_features, (), "holds no .h5; name one with `embeddings`"),
        (pickled, (), "numpy.save(FILE, numpy.load"),
        (too_far, (), "goes from 3 to 12 but there are 12 patches"),
        (not_finite, (), "holds values that are not finite"),
        (gone, (), "3_0.png cannot be read as a picture"),
        (None, ("--magnification", "5x"), "has no patch_list_5x.npy; pass `embeddings`"),
        (None, ("--window", 24), "smaller than a window of 24"),
        (None, ("--window", 18), "use multiples of 4"),
        (None, ("--vae", "nowhere"), "`vae` nowhere holds no autoencoder"),
        (None, ("--vae", ROOT / "engine/models/embedded"), "is a PatchAutoencoder; the published networks take"),
        (None, ("--model-channels", 24), "there is no such U-Net"),
        (None, ("--init", "nowhere"), "`init` nowhere is no model folder"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_is_wrong_is_said_in_one_line(published, first_stage, tmp_path, spoil, more, said):
    data = tmp_path / "data"
    shutil.copytree(published, data)
    if spoil:
        spoil(data)
    options = ("--data", data, "--out", tmp_path / "m", "--steps", 1, "--batch-size", 4, "--vae", first_stage)
    done = launch(2, "large-image", *options, *SMALL, *more, module="engine.train")
    errors = [line for line in done.stderr.splitlines() if line]
    assert done.returncode not in (0, 75)
    assert len(errors) == 1, done.stderr
    assert (
        said.replace("`embeddings`", "--embeddings").replace("`vae`", "--vae").replace("`init`", "--init") in errors[0]
    )
    assert not (tmp_path / "m" / "unet" / WEIGHTS).exists()
    if "--vae" in more:
        assert not (tmp_path / "m" / "vae" / WEIGHTS).exists(), "it would stand in the way of the next"


def test_a_checkpoint_of_the_authors_names_is_in_the_model_folder(first_stage):
    config = json.loads((first_stage / "vae" / "config.json").read_text())
    assert (config["_class_name"], config["num_vq_embeddings"], config["latent_channels"]) == ("VQModel", 16, 3)
    with pytest.raises(ValueError, match=r"holds an autoencoder alone, for `vae` of engine\.train"):
        folder_of(str(first_stage))
