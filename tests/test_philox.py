import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.philox import philox, standard_normal

# Random123 1.14, kat_vectors: philox4x32 with 10 rounds.
VECTORS = [
    ([0, 0, 0, 0], (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, (0xFFFFFFFF, 0xFFFFFFFF), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        (0xA4093822, 0x299F31D0),
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), VECTORS)
def test_philox_gives_its_published_vectors(counter, key, expected):
    assert philox(torch.tensor(counter), key).tolist() == expected


@given(st.integers(-(2**40), 2**40), st.integers(-(2**40), 2**40), st.integers(1, 6), st.integers(0, 2**63 - 1))
def test_noise_of_a_box_is_a_crop_of_the_field(y, x, channels, seed):
    whole = standard_normal(seed, "step", 7, (y, x, y + 9, x + 11), channels)
    part = standard_normal(seed, "step", 7, (y + 2, x + 3, y + 8, x + 7), channels)
    assert torch.equal(part, whole[:, 2:8, 3:7])


def test_noise_is_standard_normal_and_its_channels_do_not_speak_of_each_other():
    z = standard_normal(1, "initial", 0, (0, 0, 512, 512), 8).double()
    n = z[0].numel()
    assert z.mean((1, 2)).abs().max() < 5 / n**0.5
    assert (z.var((1, 2)) - 1).abs().max() < 5 * (2 / n) ** 0.5
    assert ((z**4).mean((1, 2)) - 3).abs().max() < 5 * (96 / n) ** 0.5
    correlation = np.corrcoef(np.concatenate([z.flatten(1), z.roll(1, 2).flatten(1)])) - np.eye(16)
    assert np.abs(correlation).max() < 5 / n**0.5


def test_other_seeds_levels_and_purposes_give_other_noise():
    box = (0, 0, 64, 64)
    fields = [
        standard_normal(*key, box, 4)
        for key in [(0, "step", 0), (1, "step", 0), (0, "step", 1), (0, "initial", 0), (2**32, "step", 0)]
    ]
    for i, a in enumerate(fields):
        for b in fields[:i]:
            assert abs(float((a * b).mean())) < 5 / a.numel() ** 0.5


def test_noise_agrees_with_box_muller_in_double_precision():
    words = philox(torch.stack([torch.arange(4096)] * 4), (1, 2))
    from kernels.philox import box_muller

    u = (2 * (words[0::2] >> 9) + 1).double() / 2**24
    angle = 2 * torch.pi * ((words[1::2] >> 8).double() + 0.5) / 2**24
    radius = (-2 * u.log()).sqrt()
    exact = torch.stack(
        [radius[0] * angle[0].cos(), radius[0] * angle[0].sin(), radius[1] * angle[1].cos(), radius[1] * angle[1].sin()]
    )
    assert float((box_muller(words) - exact).abs().max()) < 3e-6
