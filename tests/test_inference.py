"""Prepared networks compute what the networks that were trained do."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from engine.models.autoencoder import PatchAutoencoder
from engine.models.diffinfinite import LabelUNet, MaskUNet
from engine.models.folder import load_model, load_part, save_part
from engine.models.inference import REWRITES, doubling, prepare_for_inference, winning
from engine.models.sdm import SpadeUNet

T, LABEL = torch.tensor([3, 700]), torch.tensor([1, 2])
NETWORKS = {
    "masks": (lambda: MaskUNet(16, 3, (1, 2)), 4, (T, LABEL, (torch.rand(2, 1, 8, 8) > 0.5).float())),
    "labels": (lambda: LabelUNet(16, 3, (1, 2), channels=5), 5, (T, LABEL)),
    "nuclei": (lambda: SpadeUNet(3, model_channels=32, channel_mult=(1, 2)), 3, (T, torch.rand(2, 3, 8, 8))),
    "autoencoder": (lambda: PatchAutoencoder(latent_channels=4, channels=(8, 8), blocks=(1, 1)), 3, ()),
}


def ready(build):
    torch.manual_seed(0)
    network = build().eval().requires_grad_(False)
    for tensor in network.parameters():  # gains of one and weights of nought hide what is left out
        tensor.add_(torch.randn_like(tensor) * 0.05)
    return network


def outputs(network, channels, given):
    x = torch.randn(2, channels, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return network(x, *given) if given else network.decode(network.encode(x))


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=["rows", "channels last"])
@pytest.mark.parametrize("name", NETWORKS)
def test_each_rewrite_alone_and_all_together_change_the_last_digits_only(name, order):
    build, channels, given = NETWORKS[name]
    network = ready(build)
    expected = outputs(network, channels, given)
    for rewrites in (*([rewrite] for rewrite in REWRITES.values()), None):
        prepared = prepare_for_inference(deepcopy(network), rewrites=rewrites).to(memory_format=order)
        found = outputs(prepared, channels, given)
        assert float((found - expected).norm() / expected.norm()) < 5e-6


def test_every_rewrite_finds_a_layer():
    layers = [layer for build, _, _ in NETWORKS.values() for layer in ready(build).modules()]
    for name, rewrite in REWRITES.items():
        assert any(rewrite(layer) is not None for layer in layers), name


def test_what_was_measured_on_a_cpu_only_stays_there():
    assert doubling in winning("cpu")
    assert doubling not in winning("cuda:0")


def test_diffusers_doubling_is_rewritten_where_it_is_a_convolution():
    resnet = pytest.importorskip("diffusers.models.upsampling")
    torch.manual_seed(0)
    layer, bare = resnet.Upsample2D(8, use_conv=True).requires_grad_(False), resnet.Upsample2D(8)
    x = torch.randn(2, 8, 5, 6)
    prepared = prepare_for_inference(nn.Sequential(layer, bare))
    torch.testing.assert_close(prepared[0](x), layer(x))
    assert prepared[1] is bare


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_stays_near_and_training_keeps_its_network(tmp_path, dtype, tiny_model):
    model, half = load_model(tiny_model), load_model(tiny_model, dtype)
    part = load_part(tiny_model / "unet")
    save_part(part, tmp_path)  # a network as trained can be written; a prepared one has other parameters
    channels = part.config["channels"]
    x, t = torch.randn(1, channels, 16, 16), torch.tensor([500])
    given = {"label": torch.tensor([1]), "mask": torch.ones(1, 1, 16, 16)}
    with torch.inference_mode():
        whole = model.network(x, t, given)
        found = half.network(x.to(dtype), t, given | {"mask": given["mask"].to(dtype)}).float()
    assert float((found - whole).norm() / whole.norm()) < 0.05
