"""Prepared networks compute what the networks that were trained do."""

from copy import deepcopy

import numpy as np
import pytest
import torch
import zarr
from launching import launch
from torch import nn

from engine.models.folder import load_model, load_part, save_part
from engine.models.networks.autoencoder import PatchAutoencoder
from engine.models.networks.mask_unet import LabelUNet, MaskUNet
from engine.models.networks.spade_unet import SpadeUNet
from engine.models.optimize import REWRITES, check_compiles, compiled, doubling, prepare_for_inference, winning

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
        output = outputs(prepared, channels, given)
        assert float((output - expected).norm() / expected.norm()) < 5e-6


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
        output = half.network(x.to(dtype), t, given | {"mask": given["mask"].to(dtype)}).float()
    assert float((output - whole).norm() / whole.norm()) < 0.05


@pytest.mark.runs
@pytest.mark.parametrize(("dtype", "low", "high"), [("bfloat16", 3e-3, 0.03), ("float16", 1e-3, 0.012)])
def test_a_run_of_half_precision_is_near_the_whole_one(dtype, low, high, tiny_model, tmp_path):
    """Only the networks are halved: the canvas, the fusion and the solver stay in float32."""
    whole, half = (run_of(tiny_model, tmp_path, "--dtype", name, "--steps", 20) for name in ("float32", dtype))
    error = np.linalg.norm(half - whole) / np.linalg.norm(whole - whole.mean())
    assert low < error < high


@pytest.fixture(scope="module")
def smallest_model(tmp_path_factory):
    """A model that compiles in seconds."""
    from engine.models.card import colored
    from engine.training.diffusion import write_folder
    from engine.training.image import PARTS, SCHEDULER

    folder = tmp_path_factory.mktemp("smallest")
    autoencoder, network = ready(lambda: PatchAutoencoder(3, 4, (8,), (0,))), ready(lambda: MaskUNet(8, 3, (1,)))
    save_part(autoencoder, folder / "vae")
    save_part(network, folder / "unet")
    facts = {"patch_size": 16, "pixel_size_um": 0.5, "labels": colored(["unknown", "this", "that"])}
    facts["defaults"] = {"steps": 2, "solver": "ddim", "guidance": 2.0, "batch_size": 4}
    write_folder(folder, PARTS, SCHEDULER, facts)
    return folder


@pytest.mark.runs
@pytest.mark.long
def test_a_compiled_run_is_the_same_on_1_and_2_ranks(smallest_model, tmp_path):
    """Two ranks that compile at once, and one that finds their code and makes no other."""
    cache = tmp_path / "cache"
    options = {"TORCHINDUCTOR_CACHE_DIR": str(cache), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    two = run_of(smallest_model, tmp_path, "--compile", ranks=2, **options)
    made = {path.name for path in cache.rglob("*.so")}
    one = run_of(smallest_model, tmp_path, "--compile", **options)
    assert len(made) > 3
    assert {path.name for path in cache.rglob("*.so")} == made
    assert (one == two).all()
    assert abs(one - run_of(smallest_model, tmp_path)).max() <= 1


def test_compiling_is_refused_in_one_line_where_there_is_no_compiler(smallest_model, tmp_path):
    out = tmp_path / "out.zarr"
    done = launch(2, "--model", smallest_model, "--size", "64x64", "--compile", "--out", out, CXX="no-such-compiler")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: --compile needs a C++ compiler and no-such-compiler is not there; install it, set CXX, "
        "or leave --compile out"
    ]
    assert not out.exists()


def test_other_failures_to_compile_are_refused_too(monkeypatch):
    def fail(*given, **options):
        raise RuntimeError("Unexpected optimization option deterministic\nmore")

    monkeypatch.setattr("torch.compile", fail)
    with pytest.raises(ValueError, match="cpu here: Unexpected optimization option deterministic; leave `compile` out"):
        check_compiles("cpu")


def test_what_a_graph_answers_is_copied(monkeypatch):
    """A CUDA graph's next call overwrites what the last one answered."""
    held = torch.zeros(1)
    monkeypatch.setattr("torch.compile", lambda function, **options: lambda x: held.copy_(function(x)))
    call = compiled(torch.neg, "cuda:0")
    first, _ = call(torch.ones(1)), call(torch.full((1,), 2.0))
    assert first == -1


def run_of(model, folder, *options, ranks=1, **environment):
    """The pixels of a small image, as float."""
    out = folder / f"{len(list(folder.iterdir()))}.zarr"
    arguments = ("--model", model, "--size", "200x304", "--shard", 128, "--chunk", 128, "--preview", "none")
    done = launch(ranks, *arguments, *options, "--out", out, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return zarr.open_array(out / "0", mode="r")[:].astype(float)
