"""On a GPU: the kernels equal their oracles bit by bit, samples equal the CPU's but for rounding. For ``make gpu``.

``$SLIDEFIELD_GPU`` names another device: with ``cpu`` every line here runs, and compares the CPU with itself.
"""

import os

import numpy as np
import pytest
import torch
from launching import launch

import engine
from kernels.fuse import fuse
from kernels.gather import gather
from kernels.noise import draw
from kernels.step import level_step
from kernels.values import Field, SeparableWeights, Update, WinnerMap

DEVICE = os.environ.get("SLIDEFIELD_GPU", "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.runs,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="torch sees no GPU here"),
]
SIDE, PATCH, WINDOWS, CHANNELS = 150, 16, 60, 4
FIELD = Field(9, "step", 2, -(2**40), 2**33 - 5)
UPDATES = {
    "ddim": Update((0.9, 0.3, 0.0, 0.0, 0.1), 1.0),
    "dpmpp2m": Update((0.9, 0.3, -0.1, 0.0, 0.0)),
    "ddpm with noise": Update((0.9, 0.3, 0.0, 0.2, 0.0), 1.0, noise=FIELD),
}


def same(ours, oracle):
    """Whether two tensors, one of them on the GPU, have equal bits."""
    kind = {4: torch.int32, 2: torch.int16}[oracle.element_size()]
    return torch.equal(ours.cpu().contiguous().view(kind), oracle.contiguous().view(kind))


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def corners():
    return torch.randint(0, SIDE - PATCH, (WINDOWS, 2), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("channels", [1, 3, 4, 9])
def test_noise_on_the_gpu_is_that_of_the_oracle(channels):
    assert same(draw(FIELD, channels, SIDE, 70, DEVICE), draw(FIELD, channels, SIDE, 70))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_gathering_on_the_gpu_is_that_of_the_oracle(dtype):
    canvas = drawn(CHANNELS, SIDE, SIDE)
    ours = gather(canvas.to(DEVICE), corners(), PATCH, WINDOWS + 2, dtype)
    assert ours.device.type == DEVICE
    assert same(ours, gather(canvas, corners(), PATCH, WINDOWS + 2, dtype))


@pytest.mark.parametrize("kind", ["one", "separable", "winner"])
def test_fusion_on_the_gpu_is_that_of_the_oracle(kind):
    make = torch.Generator().manual_seed(2)
    estimates, box = drawn(WINDOWS, CHANNELS, PATCH, PATCH), (0, 0, SIDE, SIDE)
    used = torch.cat([corners(), corners() + PATCH], 1)

    def fused(device):
        weights = None
        if kind == "separable":
            weights = SeparableWeights(rows.to(device), columns.to(device))
        elif kind == "winner":
            weights = WinnerMap(winner.to(device))
        return fuse(estimates.to(device), corners(), used, box, weights)

    rows, columns = torch.rand(WINDOWS, PATCH, generator=make), torch.rand(WINDOWS, PATCH, generator=make)
    winner = torch.randint(-1, WINDOWS, (SIDE, SIDE), generator=make, dtype=torch.int32)
    ours, oracle = fused(DEVICE).cpu(), fused("cpu")
    held = ~oracle.isnan()  # no window is there: 0 over 0
    assert torch.equal(ours.isnan(), oracle.isnan())
    assert same(ours[held], oracle[held])


@pytest.mark.parametrize("name", UPDATES)
def test_steps_on_the_gpu_are_those_of_the_oracle(name):
    x, estimate, previous = (drawn(CHANNELS, SIDE, SIDE + n)[..., :SIDE] for n in range(3))
    update = UPDATES[name]
    given = [tensor.contiguous() for tensor in (x, estimate, previous)]
    ours = level_step(*(tensor.to(DEVICE) for tensor in given), update)
    assert same(ours, level_step(*given, update))


@pytest.fixture(scope="module")
def sampled(tiny_model, tmp_path_factory):
    """A function from options to the pixels (c, h, w) of a small image that they sample."""
    folder = tmp_path_factory.mktemp("gpu")

    def sample(*options):
        out = folder / f"{len(list(folder.iterdir()))}.zarr"
        job = ("--model", tiny_model, "--label", 1, "--size", "256x384", "--steps", 6, "--preview", "none")
        done = launch(1, *job, "--shard", 128, "--chunk", 64, "--out", out, *options)
        assert done.returncode == 0, done.stdout + done.stderr
        return np.asarray(engine.open(out)).astype(int)

    return sample


@pytest.fixture(scope="module")
def on_the_cpu(sampled):
    return sampled("--device", "cpu")


def test_an_image_of_the_gpu_is_the_cpus_within_2_grey_levels(sampled, on_the_cpu):
    assert np.ptp(on_the_cpu) > 100
    assert abs(sampled("--device", DEVICE) - on_the_cpu).max() <= 2


def test_the_same_image_twice_on_the_gpu_has_the_same_bytes(sampled):
    options = ("--device", DEVICE, "--solver", "ddpm", "--cover", "random")
    assert (sampled(*options) == sampled(*options)).all()


def test_a_compiled_image_is_the_cpus_within_2_grey_levels(sampled, on_the_cpu):
    assert abs(sampled("--device", DEVICE, "--compile") - on_the_cpu).max() <= 2


def test_an_image_in_bfloat16_is_near_the_cpus(sampled, on_the_cpu):
    difference = abs(sampled("--device", DEVICE, "--dtype", "bfloat16") - on_the_cpu)
    assert 0 < difference.mean() < 2
