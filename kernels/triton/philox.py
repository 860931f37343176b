"""``kernels.philox`` in Triton, with the same integers and the same float32 operations in the same order."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.philox import stream_key
from kernels.triton.tiles import EXACT, tile_shape, tiles
from kernels.values import Field

LATENTS = 512  # latents that one program draws


def stream_keys(field: Field, channels: int, device: torch.device) -> Tensor:
    """The Philox key of every four channels, int64 (groups,); a key's first word is the low half."""
    words = [stream_key(field.seed, field.purpose, field.level, group) for group in range(-(-channels // 4))]
    signed = [k0 | (k1 - (k1 >> 31 << 32)) << 32 for k0, k1 in words]
    return torch.tensor(signed, dtype=torch.int64).to(device, non_blocking=True)


def draw_into(out: Tensor, field: Field) -> None:
    """Fill ``out``, float32 (C, h, w) and contiguous, with a field's noise."""
    assert out.is_contiguous()
    channels, height, width = out.shape
    tile = tile_shape(height, width, LATENTS)
    down, across = tiles(height, width, tile)
    keys = stream_keys(field, channels, out.device)
    with torch.cuda.device_of(out):
        draw_kernel[(down * across * len(keys),)](
            out, keys, channels, height, width, field.y0, field.x0, across, len(keys), BY=tile[0], BX=tile[1], **EXACT
        )


@triton.jit(do_not_specialize=["y0", "x0"])
def draw_kernel(out, keys, channels, height, width, y0, x0, across, groups, BY: tl.constexpr, BX: tl.constexpr):
    group = tl.program_id(0) % groups
    rows, columns = latents_of(tl.program_id(0) // groups, across, BY, BX)
    inside = (rows < height) & (columns < width)
    noise = normals(tl.load(keys + group), rows + y0, columns + x0)
    for lane in tl.static_range(4):
        channel = group * 4 + lane
        at = (channel.to(tl.int64) * height + rows) * width + columns
        tl.store(out + at, noise[lane], inside & (channel < channels))


@triton.jit
def latents_of(tile, across, BY: tl.constexpr, BX: tl.constexpr):
    """int64 (BY, 1) rows and (1, BX) columns of a tile."""
    rows = (tile // across).to(tl.int64) * BY + tl.arange(0, BY)[:, None]
    columns = (tile % across).to(tl.int64) * BX + tl.arange(0, BX)[None, :]
    return rows, columns


@triton.jit
def words(key, y, x):
    """Four random 32-bit words of each position (int64); ``key`` is one of ``stream_keys``."""
    return tl.philox(
        key.to(tl.uint64, bitcast=True),
        y.to(tl.uint32), (y >> 32).to(tl.uint32), x.to(tl.uint32), (x >> 32).to(tl.uint32),
    )  # fmt: skip


@triton.jit
def normals(key, y, x):
    """Four channels of float32 normals; see ``kernels.philox.box_muller``."""
    w0, w1, w2, w3 = words(key, y, x)
    radius0 = tl.sqrt_rn(-2.0 * _log_unit(w0 >> 9))
    radius1 = tl.sqrt_rn(-2.0 * _log_unit(w2 >> 9))
    cosine0, sine0 = _cos_sin_turn(w1 >> 8)
    cosine1, sine1 = _cos_sin_turn(w3 >> 8)
    return radius0 * cosine0, radius0 * sine0, radius1 * cosine1, radius1 * sine1


@triton.jit
def _log_unit(k):
    u = (2 * k + 1).to(tl.float32)
    bits = u.to(tl.int32, bitcast=True)
    exponent = (bits >> 23) - 126
    m = ((bits & 0x007FFFFF) | 0x3F000000).to(tl.float32, bitcast=True)
    small = m < 0.70710678
    exponent = exponent - small.to(tl.int32)
    f = tl.where(small, m + m, m) - 1.0
    z = f * f
    p = 7.0376836292e-2 * f + -1.1514610310e-1
    p = p * f + 1.1676998740e-1
    p = p * f + -1.2420140846e-1
    p = p * f + 1.4249322787e-1
    p = p * f + -1.6668057665e-1
    p = p * f + 2.0000714765e-1
    p = p * f + -2.4999993993e-1
    p = p * f + 3.3333331174e-1
    e = (exponent - 24).to(tl.float32)
    y = p * f * z + e * -2.12194440e-4
    y = y - z * 0.5
    return f + y + e * 0.693359375


@triton.jit
def _cos_sin_turn(word):
    k = word.to(tl.int32)
    quadrant = ((k + 0x200000) >> 22) & 3
    rest = ((k + 0x200000) & 0x3FFFFF) - 0x200000
    r = (2 * rest + 1).to(tl.float32) * 1.8725351e-7
    z = r * r
    sine = ((z * -1.9515295891e-4 + 8.3321608736e-3) * z + -1.6666654611e-1) * z * r + r
    cosine = ((z * 2.443315711809948e-5 + -1.388731625493765e-3) * z + 4.166664568298827e-2) * z * z - z * 0.5 + 1.0
    swap = quadrant % 2 == 1
    c = tl.where(swap, sine, cosine)
    s = tl.where(swap, cosine, sine)
    return tl.where((quadrant == 1) | (quadrant == 2), -c, c), tl.where(quadrant >= 2, -s, s)
