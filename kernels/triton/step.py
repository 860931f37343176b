"""``kernels.step.level_step`` in Triton: one program updates a tile of four channels, which share a draw of Philox."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.philox import latents_of, normals, stream_keys
from kernels.triton.tiles import EXACT, tile_shape, tiles
from kernels.values import Update

LATENTS = 512  # latents that one program updates


def step_into(out: Tensor, x: Tensor, estimate: Tensor, previous: Tensor | None, update: Update) -> None:
    """Fill ``out`` with the update; the noise never reaches memory."""
    assert all(t.is_contiguous() for t in (x, estimate, out, previous) if t is not None)
    channels, height, width = x.shape
    a, b, c, d, e = update.coefficients
    noisy = update.log_variance is not None or d != 0
    assert not noisy or update.noise is not None
    assert not c or previous is not None
    tile = tile_shape(height, width, LATENTS)
    down, across = tiles(height, width, tile)
    groups = -(-channels // 4)
    noise = update.noise if noisy else None
    least, most = update.log_variance or (0.0, 0.0)
    with torch.cuda.device_of(x):
        step_kernel[(down * across * groups,)](
            out, x, estimate, previous if c else None, stream_keys(noise, channels, x.device) if noise else None,
            channels, height, width, noise.y0 if noise else 0, noise.x0 if noise else 0, across, groups,
            float(a), float(b), float(c), float(d), float(e), float(update.clip or 0), float(least), float(most),
            CLIP=update.clip is not None, PREVIOUS=c != 0, NOISE=noisy, ESTIMATE=e != 0,
            PREDICTED_STD=update.log_variance is not None, BY=tile[0], BX=tile[1], **EXACT,
        )  # fmt: skip


@triton.jit(do_not_specialize=["y0", "x0"])
def step_kernel(
    out, x, estimate, previous, keys,
    channels, height, width, y0, x0, across, groups, a, b, c, d, e, clip, least, most,
    CLIP: tl.constexpr, PREVIOUS: tl.constexpr, NOISE: tl.constexpr, ESTIMATE: tl.constexpr,
    PREDICTED_STD: tl.constexpr, BY: tl.constexpr, BX: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(0) % groups
    rows, columns = latents_of(tl.program_id(0) // groups, across, BY, BX)
    inside = (rows < height) & (columns < width)
    if NOISE:
        noise = normals(tl.load(keys + group), rows + y0, columns + x0)
    for lane in tl.static_range(4):
        channel = group * 4 + lane
        mask = inside & (channel < channels)
        at = (channel.to(tl.int64) * height + rows) * width + columns
        denoised = tl.load(estimate + at, mask, 0.0)
        clipped = denoised
        if CLIP:  # comparisons leave a NaN as it is, as torch's clamp does
            clipped = tl.where(denoised > clip, clip, tl.where(denoised < -clip, -clip, denoised))
        new = tl.load(x + at, mask, 0.0) * a + clipped * b
        if ESTIMATE:
            new = new + denoised * e
        if PREVIOUS:
            new = new + tl.load(previous + at, mask, 0.0) * c
        if PREDICTED_STD:
            variance_at = ((channel + channels).to(tl.int64) * height + rows) * width + columns
            prediction = tl.load(estimate + variance_at, mask, 0.0)
            new = new + noise[lane] * std_of(prediction, least, most)
        elif NOISE:
            new = new + noise[lane] * d
        tl.store(out + at, new, mask)


@triton.jit
def std_of(prediction, least, most):
    """The std that a network predicts; see ``kernels.step.predicted_std``."""
    share = (prediction + 1.0) * 0.5
    return exp(0.5 * (share * most + (1.0 - share) * least))


@triton.jit
def exp(v):
    """The exponential of |v| < 87, to 1 ulp (Cephes ``expf``); a GPU's own instruction loses digits as |v| grows."""
    n = tl.floor(v * 1.44269504088896341 + 0.5)
    r = v - n * 0.693359375 - n * -2.12194440e-4
    p = 1.9875691500e-4 * r + 1.3981999507e-3
    p = p * r + 8.3334519073e-3
    p = p * r + 4.1665795894e-2
    p = p * r + 1.6666665459e-1
    p = p * r + 5.0000001201e-1
    power = ((n.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
    return (p * (r * r) + r + 1.0) * power
