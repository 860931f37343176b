"""Normal noise as a function of position: Philox 4x32-10, then Box-Muller in float32 written out.

Every operation is one on integers, or one float32 multiplication, addition or square root that is rounded by itself. No
library's logarithm or cosine is called, for their last digits differ between machines.
"""

from __future__ import annotations

import torch
from torch import Tensor

MASK = 0xFFFFFFFF
# The first canvas; the noise of a solver's step; the noise of known latents around an in-painted region; the order of a
# reference's pixels.
PURPOSES = {"initial": 0, "step": 1, "known": 2, "pixels": 3}


def philox(counter: Tensor, key: tuple[int | Tensor, int | Tensor]) -> Tensor:
    """Philox 4x32-10 (Salmon et al. 2011, doi:10.1145/2063384.2063405).

    Args:
        counter: Four 32-bit words of each position, int64 (4, ...).
        key: Two 32-bit words.
    Returns:
        Four random 32-bit words of each position, int64 (4, ...).

    >>> [hex(v) for v in philox(torch.zeros(4, dtype=torch.int64), (0, 0)).tolist()]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    c0, c1, c2, c3 = counter.unbind(0)
    k0, k1 = key
    for _ in range(10):
        # The products wrap modulo 2^64; the shift is arithmetic, so the high word is masked.
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c2 = ((p1 >> 32) & MASK) ^ c1 ^ k0, ((p0 >> 32) & MASK) ^ c3 ^ k1
        c1, c3 = p1 & MASK, p0 & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return torch.stack([c0, c1, c2, c3])


def stream_key(seed: int, purpose: str, level: int, group: int) -> tuple[int, int]:
    """The Philox key of four channels of one field: Philox itself hashes it from (seed, purpose, level, group)."""
    words = [seed & MASK, (seed >> 32) & MASK, level & MASK, PURPOSES[purpose] << 24 | group]
    hashed = philox(torch.tensor(words, dtype=torch.int64), (0x736C6964, 0x65666C64)).tolist()  # "slid", "efld"
    return hashed[0], hashed[1]


def standard_normal(
    seed: int, purpose: str, level: int, box: tuple[int, int, int, int], channels: int, device="cpu"
) -> Tensor:
    """Noise for one box of an unbounded field, equal to that crop of any larger box.

    Keyed by (seed, purpose, level, channel // 4), counted by the 64-bit signed position (y, x).

    Args:
        box: Box (y0, x0, y1, x1), half-open, in latents; its positions may be negative.
    Returns:
        float32 (channels, y1 - y0, x1 - x0), zero mean and unit variance, |value| < 5.8.

    >>> whole = standard_normal(0, "step", 3, (-8, 0, 96, 96), channels=4)
    >>> part = standard_normal(0, "step", 3, (10, 20, 70, 90), channels=4)
    >>> bool((part == whole[:, 18:78, 20:90]).all())
    True
    """
    y0, x0, y1, x1 = box
    y = torch.arange(y0, y1, dtype=torch.int64, device=device)[:, None].expand(y1 - y0, x1 - x0)
    x = torch.arange(x0, x1, dtype=torch.int64, device=device)[None, :].expand(y1 - y0, x1 - x0)
    counter = torch.stack([y & MASK, (y >> 32) & MASK, x & MASK, (x >> 32) & MASK])
    groups = [
        box_muller(philox(counter, stream_key(seed, purpose, level, group))) for group in range(-(-channels // 4))
    ]
    return torch.cat(groups)[:channels]


def box_muller(words: Tensor) -> Tensor:
    """int64 (4, ...) random 32-bit words -> float32 (4, ...) normals (Box & Muller 1958)."""
    # The root is taken in float64: a library's float32 root is not correctly rounded on every machine.
    radius = torch.sqrt((-2.0 * _log_unit(words[0::2] >> 9)).double()).float()
    cosine, sine = _cos_sin_turn(words[1::2] >> 8)
    return torch.stack([radius[0] * cosine[0], radius[0] * sine[0], radius[1] * cosine[1], radius[1] * sine[1]])


def _log_unit(k: Tensor) -> Tensor:
    """Natural logarithm of (2 k + 1) / 2^24 for a 23-bit k, in float32 (the polynomial of Cephes ``logf``)."""
    u = (2 * k + 1).to(torch.float32)
    bits = u.view(torch.int32)
    exponent = (bits >> 23) - 126
    m = ((bits & 0x007FFFFF) | 0x3F000000).view(torch.float32)  # in [1/2, 1)
    small = m < 0.70710678
    exponent = exponent - small.to(torch.int32)
    f = torch.where(small, m + m, m) - 1.0
    z = f * f
    p = torch.full_like(f, 7.0376836292e-2)
    for c in (
        -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
        -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
    ):  # fmt: skip
        p = p * f + c
    y = p * f * z
    e = (exponent - 24).to(torch.float32)
    y = y + e * -2.12194440e-4
    y = y - z * 0.5
    return f + y + e * 0.693359375


def _cos_sin_turn(k: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of 2 pi (k + 1/2) / 2^24 for a 24-bit k, in float32; the quadrant is computed in integers."""
    quadrant = ((k + 0x200000) >> 22) & 3
    rest = ((k + 0x200000) & 0x3FFFFF) - 0x200000  # -1/8 to 1/8 of a turn
    r = (2 * rest + 1).to(torch.float32) * 1.8725351e-7  # pi / 2^24
    z = r * r
    sine = ((z * -1.9515295891e-4 + 8.3321608736e-3) * z + -1.6666654611e-1) * z * r + r
    cosine = ((z * 2.443315711809948e-5 + -1.388731625493765e-3) * z + 4.166664568298827e-2) * z * z - z * 0.5 + 1.0
    swap, flip_c, flip_s = quadrant % 2 == 1, (quadrant == 1) | (quadrant == 2), quadrant >= 2
    c, s = torch.where(swap, sine, cosine), torch.where(swap, cosine, sine)
    return torch.where(flip_c, -c, c), torch.where(flip_s, -s, s)
