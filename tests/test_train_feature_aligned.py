"""The feature-aligned system's two trainings: losses against their formulas, ranks, resuming, what they leave."""

import json
import shutil

import numpy as np
import pytest
import torch
from launching import Running, launch, verify
from PIL import Image
from safetensors.torch import load_file
from test_convert import feature_aligned
from torch import nn
from torch.nn import functional as F

from engine.diffusion.schedule import betas
from engine.models.card import read_card
from engine.models.expert import load_expert
from engine.models.files import CLASSES, WEIGHTS
from engine.models.folder import diffusers_class
from engine.models.networks.resnet import ResNet
from engine.training.alone import Alone
from engine.training.ema import Ema
from engine.training.loop import LoopSettings
from engine.training.options import TISSUE
from engine.training.published.expert import begin_from, classification_loss
from engine.training.published.feature_aligned import (
    AlignedSettings,
    AlignedTraining,
    class_table,
    train_aligned,
    unet_config,
)
from engine.training.published.tissue import grey_picture, tissue_pictures

THREE = "tumor,stroma,empty"
EXPERT = ("--labels", THREE, "--window", 32, "--width", 4, "--depths", "1,1", "--hidden", 8, "--batch-size", 6)
ALIGNED = ("--labels", THREE, "--window", 16, "--features", "8,16,32", "--token-width", 12, "--heads", 4, "--groups", 4)
ALIGNED = (*ALIGNED, "--validation-windows", 4)


@pytest.fixture(scope="module")
def kather(tmp_path_factory):
    """Pictures as the published data lie: 01_TUMOR/*.tif, ..., in colour: dark with stripes, grey with dots, light."""
    folder, rng = tmp_path_factory.mktemp("kather"), np.random.default_rng(0)
    for number, (name, level) in enumerate((("01_TUMOR", 60), ("02_STROMA", 130), ("08_EMPTY", 235))):
        (folder / name).mkdir()
        for i in range(10):
            colors = np.full((30, 30, 3), level) + rng.integers(-15, 15, (30, 30, 3))
            colors[:: 3 + number] -= 30
            Image.fromarray(colors.clip(0, 255).astype(np.uint8)).save(folder / name / f"{name}_{i}.tif")
    return folder


def train(ranks, network, *arguments):
    done = launch(ranks, network, *arguments, module="engine.train")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def trained_expert(ranks, kather, out, *options):
    return train(ranks, "expert", "--data", kather, "--out", out, *EXPERT, *options)


def trained(ranks, kather, out, *options):
    return train(ranks, "feature-aligned", "--data", kather, "--out", out, *ALIGNED, *options)


@pytest.fixture(scope="module")
def expert(kather, tmp_path_factory):
    out = tmp_path_factory.mktemp("expert") / "e"
    trained_expert(1, kather, out, "--epochs", 8, "--lr", 3e-3, "--softmax", "single", "--gamma", 1)
    return out


def weights_of(folder):
    return load_file(folder / WEIGHTS)


def assert_same_gradients(one, other):
    """Gradients of a first step, which Adam's first moments are a tenth of."""
    states = [torch.load(folder / "training.pt", weights_only=True)["optimizer"]["state"] for folder in (one, other)]
    largest = max(float(each["exp_avg"].abs().max()) for each in states[0].values())
    assert largest > 0
    assert len(states[0]) == len(states[1])
    for index, each in states[0].items():
        scale = max(float(each["exp_avg"].abs().max()), 1e-3 * largest)
        assert float((each["exp_avg"] - states[1][index]["exp_avg"]).abs().max()) < 1e-3 * scale, index


# ---- the expert ---------------------------------------------------------------------------------


def published_resnet(x, state, batch_statistics, depths):
    """ResNet-50's plan from the paper, in the type of its inputs, by torchvision's names: features before the head."""

    def norm(x, name):
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        if batch_statistics:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        x = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
        return x * state[f"{name}.weight"][:, None, None] + state[f"{name}.bias"][:, None, None]

    def conv(x, name, stride=1, padding=0):
        return F.conv2d(x, state[f"{name}.weight"], None, stride, padding)

    x = F.max_pool2d(norm(conv(x, "conv1", 2, 3), "bn1").relu(), 3, 2, 1)
    for level, depth in enumerate(depths, 1):
        for block in range(depth):
            at, stride = f"layer{level}.{block}", 2 if level > 1 and block == 0 else 1
            y = norm(conv(x, f"{at}.conv1"), f"{at}.bn1").relu()
            y = norm(conv(y, f"{at}.conv2", stride, 1), f"{at}.bn2").relu()
            y = norm(conv(y, f"{at}.conv3"), f"{at}.bn3")
            if f"{at}.downsample.0.weight" in state:
                x = norm(conv(x, f"{at}.downsample.0", stride), f"{at}.downsample.1")
            x = (x + y).relu()
    return x.mean((2, 3))


def shaken(network):
    """Batch normalisation that does something."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if "bn" in name or "downsample.1" in name:
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return network


def test_the_network_has_the_names_shapes_and_size_of_torchvisions():
    with torch.device("meta"):
        state = ResNet().state_dict()
    sizes = {"conv1": (64, 1, 7, 7), "layer1.0.downsample.0": (256, 64, 1, 1), "layer3.5.conv2": (256, 256, 3, 3)}
    sizes |= {"layer4.2.conv3": (2048, 512, 1, 1), "fc.0": (256, 2048), "fc.2": (8, 256)}
    assert {name: tuple(state[f"{name}.weight"].shape) for name in sizes} == sizes
    learned = sum(tensor.numel() for name, tensor in state.items() if "running" not in name)
    # torchvision's 25,557,032 less its head (2048 + 1) 1000 and two thirds of conv1, and this head
    assert learned == 25_557_032 - 2049 * 1000 - 2 * 64 * 49 + 2049 * 256 + 257 * 8


@pytest.mark.parametrize("softmax", ["double", "single"])
def test_a_step_of_the_expert_is_that_of_the_formula(softmax):
    torch.manual_seed(0)
    network = shaken(ResNet(1, 3, 4, (2, 1), 8)).train()
    x, label = torch.rand(5, 1, 32, 32), torch.tensor([0, 2, 1, 1, 0])
    wide = {name: tensor.double().clone() for name, tensor in network.state_dict().items()}
    learned = {name: wide[name].requires_grad_() for name, _ in network.named_parameters()}
    features = published_resnet(x.double(), wide, True, (2, 1))
    hidden = (features @ wide["fc.0.weight"].T + wide["fc.0.bias"]).relu()
    logits = hidden @ wide["fc.2.weight"].T + wide["fc.2.bias"]
    scores = logits.exp() / logits.exp().sum(1, keepdim=True) if softmax == "double" else logits
    expected = (scores.exp().sum(1).log() - scores[torch.arange(5), label]).mean()
    expected.backward()
    loss = classification_loss(network(x), label, softmax).mean()
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    largest = max(float(p.grad.abs().max()) for p in learned.values())
    for name, parameter in network.named_parameters():
        scale = max(float(learned[name].grad.abs().max()), 1e-3 * largest)
        assert float((parameter.grad - learned[name].grad).abs().max()) < 2e-3 * scale, name
    network.eval()
    wide = {name: tensor.double() for name, tensor in network.state_dict().items()}
    torch.testing.assert_close(
        network.features(x).double(), published_resnet(x.double(), wide, False, (2, 1)), rtol=1e-5, atol=1e-6
    )


def test_weights_of_torchvision_and_of_the_authors_are_taken(tmp_path):
    torch.manual_seed(0)
    source = shaken(ResNet(3, 10, 4, (1, 1), 8))
    state = {name: tensor for name, tensor in source.state_dict().items() if not name.startswith("fc.")}
    state |= {
        "bn1.num_batches_tracked": torch.tensor(7),
        "fc.weight": torch.zeros(1000, 32),
        "fc.bias": torch.zeros(1000),
    }
    torch.save(state, tmp_path / "resnet50.pth")
    summed, begun = ResNet(1, 3, 4, (1, 1), 8), ResNet(1, 3, 4, (1, 1), 8)
    first = begun.conv1.weight.clone()
    begin_from(summed, tmp_path / "resnet50.pth", "sum")
    begin_from(begun, tmp_path / "resnet50.pth", "new")
    grey = torch.rand(2, 1, 32, 32)
    rgb = source.eval().features(grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(summed.eval().features(grey), rgb, rtol=1e-4, atol=1e-5)
    assert torch.equal(begun.conv1.weight, first), "as published"
    assert torch.equal(begun.layer2[0].conv2.weight, source.layer2[0].conv2.weight)

    class Theirs(nn.Module):  # as the system's ExpertEvaluator saves itself
        def __init__(self):
            super().__init__()
            self.resnet = summed

    torch.save({**Theirs().state_dict(), "resnet.bn1.num_batches_tracked": torch.tensor(7)}, tmp_path / "r50_expert.pt")
    torch.testing.assert_close(load_expert(tmp_path / "r50_expert.pt")(grey), summed(grey))
    with pytest.raises(ValueError, match="head"):
        load_expert(tmp_path / "resnet50.pth")


def test_pictures_are_read_as_the_published_data_lie(kather, tmp_path):
    learned, held = tissue_pictures(kather, THREE.split(","), 16, 0.25, 0)
    assert [learned.classes.count(k) for k in range(3)] == [7, 7, 7]
    assert [held.classes.count(k) for k in range(3)] == [3, 3, 3]
    assert not {*learned.paths} & {*held.paths}
    colors = np.asarray(Image.open(learned.paths[0])).astype(float) / 255
    grey = colors @ [0.2989, 0.587, 0.114]
    np.testing.assert_allclose(grey_picture(learned.paths[0], 30)[0], grey, atol=1e-6)
    assert grey_picture(learned.paths[0], 16).mean() == pytest.approx(grey.mean(), abs=0.01)
    seen = [learned.at(p, np.random.default_rng(p)) for p in range(len(learned))]
    assert sorted(label for _, label in seen) == sorted(learned.classes), "every picture once an epoch"
    twice = {learned.at(0, np.random.default_rng(s))[0].tobytes() for s in range(30)}
    assert len(twice) == 4, "mirrored along none, either and both axes"
    Image.fromarray(np.full((40, 20), 51, np.uint8)).save(tmp_path / "tall.png")
    assert grey_picture(tmp_path / "tall.png", 16).shape == (1, 16, 16)
    assert grey_picture(tmp_path / "tall.png", 16).max() == pytest.approx(0.2)


@pytest.mark.runs
def test_an_expert_learns_and_says_how_often_it_is_right(kather, expert):
    accuracy = json.loads((expert / "expert" / "accuracy.json").read_text())
    assert accuracy["labels"] == THREE.split(",")
    assert [record["epoch"] for record in accuracy["epochs"]] == list(range(1, 9))
    assert accuracy["best"]["accuracy"] == max(record["accuracy"] for record in accuracy["epochs"]) > 0.6
    confusion = np.array(accuracy["best"]["confusion"])
    assert confusion.sum(1).tolist() == [2, 2, 2], "a fifth of each class"
    assert np.trace(confusion) / 6 == accuracy["best"]["accuracy"]
    network = load_expert(expert)
    _, held = tissue_pictures(kather, THREE.split(","), 32, 0.2, 0)
    logits = network(torch.from_numpy(np.stack([held.picture(i) for i in range(len(held))])))
    right = (logits.argmax(1) == torch.tensor(held.classes)).float().mean()
    assert float(right) == pytest.approx(accuracy["best"]["accuracy"])
    records = [json.loads(line) for line in (expert / "expert" / "training.jsonl").read_text().splitlines()]
    assert records[-1]["step"] == 8 * 4, "24 pictures in batches of 6"
    assert Image.open(expert / "expert" / "loss.png").size[0] > 400


@pytest.mark.runs
def test_the_experts_gradients_are_the_same_to_rounding_on_1_and_3_ranks(kather, tmp_path):
    for ranks in (1, 3):
        trained_expert(ranks, kather, tmp_path / f"{ranks}", "--steps", 1, "--batch-size", 7)
    assert_same_gradients(*(tmp_path / f"{ranks}" / "expert" for ranks in (1, 3)))
    one, three = (weights_of(tmp_path / f"{ranks}" / "expert") for ranks in (1, 3))
    assert float((one["bn1.running_var"] - 1).abs().min()) > 1e-3, "averages of the batches"
    for key in one:
        if "running" in key:
            torch.testing.assert_close(one[key], three[key], rtol=1e-4, atol=1e-6)


@pytest.mark.runs
@pytest.mark.long
def test_a_killed_expert_resumes_to_the_same_weights(kather, tmp_path):
    options = ("--data", kather, *EXPERT, "--epochs", 9, "--every", 6)
    train(1, "expert", "--out", tmp_path / "whole", *options)
    out = tmp_path / "killed"
    run = Running(1, "expert", "--out", out, *options, module="engine.train")
    assert run.wait_until((out / "expert" / "accuracy.json").exists)
    run.kill()
    said = train(1, "expert", "--out", out, *options)
    assert "resumed at step" in said or "trained already" in said
    whole, two = (weights_of(folder / "expert") for folder in (tmp_path / "whole", out))
    assert all(torch.equal(tensor, two[key]) for key, tensor in whole.items())
    known = [json.loads((folder / "expert" / "accuracy.json").read_text()) for folder in (tmp_path / "whole", out)]
    assert known[0] == known[1]


# ---- the diffusion network ----------------------------------------------------------------------


def settings_of(kather, **more):
    values = {
        "labels": THREE.split(","),
        "window": 16,
        "features": [8, 16, 32],
        "blocks": 1,
        "attention": 0,
        "token_width": 12,
    }
    values |= {"heads": 4, "groups": 4, "class_embeddings": None, "clip_model": None, "align": None, "seed": 0}
    values |= {"prediction": "epsilon", "timesteps": "uniform"}
    values |= {"align_weight": 0.7, "layer": "down_blocks.2.resnets.0.conv_shortcut", "expert_sees": "noisy"}
    values |= {"expert_norm": "batch", "last_timestep": False, "best": "training", "hold_out": 0.2, "pixel_size": 1.0}
    return AlignedSettings(**{**values, "validation_windows": 4, "epochs": 1, "gamma": 0.7, **more})


@pytest.mark.parametrize("norm", ["batch", "learned"])
@pytest.mark.parametrize("sees", ["noisy", "clean"])
def test_a_step_of_the_aligned_network_is_that_of_the_formula(kather, tmp_path, monkeypatch, norm, sees):
    torch.manual_seed(0)
    judge = shaken(ResNet(1, 3, 4, (1, 1), 8)).eval().requires_grad_(False)
    monkeypatch.setattr("engine.training.published.feature_aligned.load_expert", lambda path: judge)
    kept = []
    monkeypatch.setattr(AlignedTraining, "run", lambda self, resume: kept.append(self) or True)
    layer = "down_blocks.2.resnets.0.conv_shortcut"
    own = settings_of(kather, align=tmp_path, expert_norm=norm, expert_sees=sees)
    loop = LoopSettings(0, 0.0, 4, 1e-4, schedule="constant", every=0, ema=0.0)
    train_aligned(kather, tmp_path / "m", own, loop, None, Alone(), "cpu", False)
    training = kept[0]
    network, t = training.task.network, np.array([0, 3, 500, 998])
    batch = training.task.windows.batch(range(4))
    training.expert.train(norm == "batch")
    parts = training.parts_of(network, batch, t)
    loss = parts["loss"].mean()
    loss.backward()
    ours = {name: parameter.grad.clone() for name, parameter in network.named_parameters()}
    network.zero_grad()
    network.double()
    ab = torch.from_numpy(np.cumprod(1 - betas("squaredcos_cap_v2", 1000, 0, 0)))[t][:, None, None, None]
    x0, noise = batch.x0.double(), batch.noise.double()
    x = ab.sqrt() * x0 + (1 - ab).sqrt() * noise
    pooled = []
    hook = dict(network.unet.named_modules())[layer].register_forward_hook(
        lambda m, i, o: pooled.append(o.mean((2, 3)))
    )
    token = batch.inputs["embedding"].double() @ network.embedder.patch_fc.weight.T + network.embedder.patch_fc.bias
    noise_said = network.unet(x, torch.from_numpy(t), token[:, None]).sample
    hook.remove()
    state = {name: tensor.double() for name, tensor in judge.state_dict().items()}
    wanted = published_resnet(x if sees == "noisy" else x0, state, norm == "batch", (1, 1))
    mapped = wanted @ network.mapping.weight.T + network.mapping.bias
    cosine = (mapped * pooled[0]).sum(1) / (mapped.norm(dim=1) * pooled[0].norm(dim=1))
    expected = ((noise_said - noise) ** 2).mean() + 0.7 * (1 - cosine).mean()
    expected.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert float(parts["align"].detach().mean()) == pytest.approx(float((1 - cosine.detach()).mean()), rel=1e-4)
    largest = max(float(p.grad.abs().max()) for p in network.parameters())
    assert float(network.mapping.weight.grad.abs().max()) > 0
    for name, parameter in network.named_parameters():
        scale = max(float(parameter.grad.abs().max()), 1e-3 * largest)
        assert float((ours[name] - parameter.grad).abs().max()) < 2e-3 * scale, name
    drawn = set(training.timesteps.draw([np.random.default_rng(s) for s in range(9000)])[0].tolist())
    assert max(drawn) == 998, "the noisiest timestep is never trained, as published"


@pytest.mark.runs
def test_an_aligned_network_is_learned_and_samples(kather, expert, tmp_path):
    options = ("--epochs", 5, "--lr", 3e-3, "--align", expert)
    said = trained(3, kather, tmp_path / "m", *options, "--keep-every", 18)
    assert "24 pictures, 6 held out, 6 steps an epoch, aligned" in said
    means = [float(line.split("loss ")[1].split()[0]) for line in said.splitlines() if "of the epoch" in line]
    assert len(means) == 5
    assert means[-1] < 0.8 * means[0]
    best = json.loads((tmp_path / "m" / "unet" / "best.json").read_text())
    assert best["loss"] == pytest.approx(min(means), abs=1e-4)
    card = read_card(str(tmp_path / "m"))
    assert (card.condition, card.patch, card.channels, card.pixel_range) == ("class", 16, 1, (0, 1))
    assert card.labels == ("tumor", "stroma", "empty")
    assert not card.has_null
    assert card.class_means == pytest.approx((0.2, 0.48, 0.9), abs=0.05)
    table = load_file(tmp_path / "m" / "embedder" / CLASSES)["embeddings"]
    assert table.shape == (3, 512)
    assert not any("mapping" in name for name in weights_of(tmp_path / "m" / "unet"))
    assert Image.open(tmp_path / "m" / "unet" / "samples.png").size == (3 * 16, 2 * 16)
    log = [json.loads(line) for line in (tmp_path / "m" / "unet" / "training.jsonl").read_text().splitlines()]
    assert {"loss", "mse", "align"} <= log[-1].keys()
    for model in (tmp_path / "m", tmp_path / "m" / "checkpoints" / "step-000018"):
        options = ("--model", model, "--label", "stroma,empty", "--size", 16, "--count", 4, "--steps", 2)
        done = launch(3, *options, "--shard", 16, "--chunk", 16, "--out", model / "o.zarr")
        assert done.returncode == 0, done.stderr
        assert verify(model / "o.zarr")[0] == 0


@pytest.mark.runs
def test_aligned_gradients_are_the_same_to_rounding_on_1_and_3_ranks(kather, expert, tmp_path):
    for ranks in (1, 3):
        trained(ranks, kather, tmp_path / f"{ranks}", "--steps", 1, "--batch-size", 5, "--align", expert)
    one, three = (tmp_path / f"{ranks}" / "unet" for ranks in (1, 3))
    assert_same_gradients(one, three)
    best = [json.loads((folder / "best.json").read_text())["loss"] for folder in (one, three)]
    assert best[0] == pytest.approx(best[1], rel=1e-5)


@pytest.mark.runs
def test_a_stopped_training_resumes_to_the_same_weights_and_mean_of_its_epoch(kather, expert, tmp_path):
    options = ("--data", kather, *ALIGNED, "--epochs", 2, "--align", expert, "--prediction", "v")
    train(1, "feature-aligned", "--out", tmp_path / "whole", *options)
    out = tmp_path / "stopped"
    done = launch(1, "feature-aligned", "--out", out, *options, "--stop-after", 1e-9, module="engine.train")
    assert done.returncode == 75, done.stderr
    assert (out / "model_index.json").exists()
    assert "resumed at step 1" in train(1, "feature-aligned", "--out", out, *options)
    for part in ("unet", "embedder"):
        whole, resumed = (weights_of(folder / part) for folder in (tmp_path / "whole", out))
        assert all(torch.equal(tensor, resumed[key]) for key, tensor in whole.items()), part
    both = [json.loads((folder / "unet" / "best.json").read_text()) for folder in (tmp_path / "whole", out)]
    assert both[0]["step"] == both[1]["step"]
    assert both[0]["loss"] == pytest.approx(both[1]["loss"], rel=1e-12)
    assert read_card(str(out)).labels == ("tumor", "stroma", "empty")
    assert read_card(str(out)).schedule.prediction == "v_prediction"


@pytest.mark.runs
def test_training_starts_from_a_model_folder_and_from_one_of_other_channels(kather, tmp_path):
    network, linear = feature_aligned(tmp_path / "run")
    launch_convert = ("feature-aligned", tmp_path / "run", "--out", tmp_path / "converted")
    np.save(tmp_path / "three.npy", np.random.default_rng(0).standard_normal((3, 512)).astype(np.float32))
    options = ("--class-embeddings", tmp_path / "three.npy", "--names", THREE)
    done = launch(1, *launch_convert, *options, module="engine.models.convert.__main__")
    assert done.returncode == 0, done.stderr
    small = (
        "--labels",
        THREE,
        "--window",
        16,
        "--features",
        "16,32",
        "--token-width",
        24,
        "--heads",
        4,
        "--groups",
        8,
        "--attention",
        1,
    )
    start = (*small, "--steps", 1, "--lr", 1e-9, "--init", tmp_path / "converted")
    train(1, "feature-aligned", "--data", kather, "--out", tmp_path / "tuned", *start)
    tuned = weights_of(tmp_path / "tuned" / "unet")
    assert all(torch.allclose(t, tuned[key].float(), atol=2e-3) for key, t in network.state_dict().items())
    torch.testing.assert_close(weights_of(tmp_path / "tuned" / "embedder")["patch_fc.weight"], linear.weight.detach())
    table = load_file(tmp_path / "tuned" / "embedder" / CLASSES)["embeddings"]
    np.testing.assert_array_equal(table.numpy(), np.load(tmp_path / "three.npy"))
    from diffusers import UNet2DConditionModel

    colored = UNet2DConditionModel.from_config({**network.config, "in_channels": 4, "out_channels": 4})
    colored.save_pretrained(tmp_path / "tiny-sd" / "unet")
    start = (*small, "--steps", 1, "--lr", 1e-9, "--init", tmp_path / "tiny-sd")
    train(1, "feature-aligned", "--data", kather, "--out", tmp_path / "grey", *start)
    grey, theirs = weights_of(tmp_path / "grey" / "unet"), colored.state_dict()
    assert grey["conv_in.weight"].shape == (16, 1, 3, 3)
    assert torch.allclose(
        grey["down_blocks.0.resnets.0.conv1.weight"].float(), theirs["down_blocks.0.resnets.0.conv1.weight"], atol=1e-3
    )


def test_the_published_network_is_tiny_sds(kather):
    config = unet_config(settings_of(kather, features=[320, 640, 1280], token_width=768, heads=8, groups=32, window=64))
    with torch.device("meta"):
        network = diffusers_class("UNet2DConditionModel").from_config({**config, "in_channels": 4, "out_channels": 4})
    assert round(sum(p.numel() for p in network.parameters()) / 1e6) == 323, "as segmind/tiny-sd"
    assert dict(network.named_modules())["down_blocks.2.resnets.0.conv_shortcut"].out_channels == 1280


def test_classes_without_embeddings_have_vectors_drawn_from_their_names(kather):
    table = class_table(settings_of(kather, labels=TISSUE.split(",")), None)
    assert table.shape == (8, 512)
    assert np.array_equal(class_table(settings_of(kather, labels=["empty"]), None)[0], table[7])
    cosines = table @ table.T / 100
    np.testing.assert_allclose(np.diag(cosines), 1, rtol=1e-5)
    assert np.abs(cosines - np.eye(8)).max() < 0.25


def test_an_average_has_the_networks_running_statistics():
    network = ResNet(1, 2, 4, (1,), 4)
    average = Ema(network, 0.9, "plain")
    network.train()(torch.rand(3, 1, 32, 32))
    average.update(network)
    assert torch.equal(average.network.bn1.running_mean, network.bn1.running_mean)


@pytest.mark.runs
def test_wrong_data_and_settings_are_refused_in_one_line(kather, expert, tmp_path):
    few, empty, broken, deep = (shutil.copytree(kather, tmp_path / name) for name in ("few", "empty", "broken", "deep"))
    for path in sorted((few / "02_STROMA").iterdir())[1:]:
        path.unlink()
    for path in (empty / "08_EMPTY").iterdir():
        path.unlink()
    next((broken / "01_TUMOR").iterdir()).write_bytes(b"II*\0\0")
    next((deep / "01_TUMOR").iterdir()).unlink()
    Image.fromarray(np.full((20, 20), 40000, np.uint16)).save(deep / "01_TUMOR" / "deep.png")
    np.save(tmp_path / "table.npy", np.zeros((2, 512), np.float32))
    (tmp_path / "vit.pt").write_bytes(b"")
    torch.save({"resnet.conv_proj.weight": torch.zeros(1)}, tmp_path / "vit.pt")
    before = {path: path.read_bytes() for path in expert.rglob("*") if path.is_file()}
    stateless = shutil.copytree(expert, tmp_path / "stateless", ignore=shutil.ignore_patterns("training.pt"))
    new = ("--out", tmp_path / "new")
    of_expert, aligned = ("expert", *EXPERT), ("feature-aligned", *ALIGNED)
    good = ("--data", kather, *new)
    for options, said in (
        ((*of_expert, "--data", few, *new), ["class stroma has 1 pictures", "--hold-out"]),
        ((*of_expert, "--data", empty, *new), ["no picture of class empty"]),
        ((*of_expert, "--data", broken, *new), ["TUMOR", "cannot be read as a picture"]),
        ((*of_expert, "--data", deep, *new), ["TUMOR", "more than 8 bits"]),
        ((*of_expert, *good, "--labels", "tumor,lung"), ["no folder whose name contains lung", "--labels"]),
        ((*of_expert, *good, "--labels", "tumor,tum,stroma"), ["tumor and tum", "01_TUMOR"]),
        ((*of_expert, *good, "--hold-out", 0), ["--hold-out 0"]),
        ((*of_expert, *good, "--accumulate", 2), ["--accumulate 2", "mean and variance"]),
        ((*of_expert, *good, "--weights", tmp_path / "vit.pt"), ["vision transformer"]),
        ((*of_expert, *good, "--init", expert, "--width", 8), ["another shape"]),
        ((*of_expert, *good, "--keep-every", 6), ["unrecognized argument --keep-every"]),
        ((*of_expert, "--data", kather, "--out", stateless), ["expert/training.pt", "with --init"]),
        ((*aligned, *good, "--keep-every", 7), ["--keep-every 7", "--every 6"]),
        (
            (*of_expert, "--data", kather, "--out", expert, "--softmax", "double", "--lr", 3e-3, "--gamma", 1),
            ["--softmax is 'single'"],
        ),
        ((*aligned, *good, "--align", tmp_path / "none"), ["none is no expert"]),
        (
            (*aligned, *good, "--align", expert, "--layer", "mid"),
            ["--layer mid", "down_blocks.1.resnets.0.conv_shortcut"],
        ),
        ((*aligned, *good, "--align", expert, "--layer", "time_embedding"), ["--layer time_embedding", "no features"]),
        ((*aligned, *good, "--align", expert, "--accumulate", 2), ["--accumulate 2"]),
        ((*aligned, *good, "--class-embeddings", tmp_path / "table.npy"), ["(2, 512)", "(3, D)"]),
        ((*aligned, *good, "--init", expert), ["--init", "no model folder"]),
        ((*aligned, *good, "--window", 18), ["--window 18", "multiples of 4"]),
        ((*aligned, *good, "--groups", 3), ["--groups 3", "8 of --features"]),
        ((*aligned, *good, "--best", "held-out", "--hold-out", 0), ["--best held-out"]),
        ((*aligned, *good, "--lr", 1e30, "--steps", 9), ["not finite", "--lr"]),
    ):
        done = launch(3, *options, module="engine.train")
        assert done.returncode == 1, done.stdout
        lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 == len(done.stderr.splitlines()), done.stderr
        assert all(words in lines[0] for words in said), lines[0]
    assert {path: path.read_bytes() for path in expert.rglob("*") if path.is_file()} == before
