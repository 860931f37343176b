"""``kernels.step.level_step`` in Triton: one program for a tile of four channels, which share one draw of Philox."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.philox import latents_of, normals, stream_keys
from kernels.triton.tiles import EXACT, tile_shape, tiles
from kernels.values import Guidance, Rule

LATENTS = 512  # of one program


def step_into(
    out: Tensor,
    history: Tensor | None,
    x: Tensor,
    estimate: Tensor,
    previous: Tensor | None,
    rule: Rule,
    guidance: Guidance | None,
) -> None:
    """Fill ``out`` and, where there was guidance, ``history``; the noise never reaches memory."""
    given = (x, estimate, out, previous, history if guidance else None, guidance.conditional if guidance else None)
    assert all(t.is_contiguous() for t in given if t is not None)
    channels, height, width = x.shape
    a, b, c, d, e = rule.coefficients
    draws = rule.log_variance is not None or d != 0
    assert not draws or rule.noise is not None
    assert not c or previous is not None
    tile = tile_shape(height, width, LATENTS)
    down, across = tiles(height, width, tile)
    groups = -(-channels // 4)
    noise = rule.noise if draws else None
    least, most = rule.log_variance or (0.0, 0.0)
    with torch.cuda.device_of(x):
        step_kernel[(down * across * groups,)](
            out, history if guidance else None, x, estimate, previous if c else None,
            guidance and guidance.conditional, guidance and guidance.labels, guidance and guidance.weights,
            stream_keys(noise, channels, x.device) if noise else None,
            channels, height, width, noise.y0 if noise else 0, noise.x0 if noise else 0, across, groups,
            float(a), float(b), float(c), float(d), float(e), float(rule.clip or 0), float(least), float(most),
            CLIP=rule.clip is not None, PREVIOUS=c != 0, NOISE=draws, ESTIMATE=e != 0,
            SPREAD=rule.log_variance is not None, GUIDED=guidance is not None,
            KEEP=guidance is not None and history is not None,
            BY=tile[0], BX=tile[1], **EXACT,
        )  # fmt: skip


@triton.jit(do_not_specialize=["y0", "x0"])
def step_kernel(
    out, history, x, estimate, previous, conditional, labels, weights, keys,
    channels, height, width, y0, x0, across, groups, a, b, c, d, e, clip, least, most,
    CLIP: tl.constexpr, PREVIOUS: tl.constexpr, NOISE: tl.constexpr, ESTIMATE: tl.constexpr,
    SPREAD: tl.constexpr, GUIDED: tl.constexpr, KEEP: tl.constexpr, BY: tl.constexpr, BX: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(0) % groups
    rows, columns = latents_of(tl.program_id(0) // groups, across, BY, BX)
    inside = (rows < height) & (columns < width)
    if NOISE:
        noise = normals(tl.load(keys + group), rows + y0, columns + x0)
    if GUIDED:
        weight = tl.load(weights + tl.load(labels + rows * width + columns, inside, 0))
    for lane in tl.static_range(4):
        channel = group * 4 + lane
        mask = inside & (channel < channels)
        at = (channel.to(tl.int64) * height + rows) * width + columns
        denoised = tl.load(estimate + at, mask, 0.0)
        if GUIDED:
            denoised = denoised + (tl.load(conditional + at, mask, 0.0) - denoised) * weight
        if KEEP:
            tl.store(history + at, denoised, mask)
        clipped = denoised
        if CLIP:  # what is no number stays that
            clipped = tl.where(denoised > clip, clip, tl.where(denoised < -clip, -clip, denoised))
        new = tl.load(x + at, mask, 0.0) * a + clipped * b
        if ESTIMATE:
            new = new + denoised * e
        if PREVIOUS:
            new = new + tl.load(previous + at, mask, 0.0) * c
        if SPREAD:
            beyond = ((channel + channels).to(tl.int64) * height + rows) * width + columns
            word = tl.load((conditional if GUIDED else estimate) + beyond, mask, 0.0)
            new = new + noise[lane] * spread_of(word, least, most)
        elif NOISE:
            new = new + noise[lane] * d
        tl.store(out + at, new, mask)


@triton.jit
def spread_of(word, least, most):
    """See ``kernels.step.learned_spread``."""
    share = (word + 1.0) * 0.5
    return exp(0.5 * (share * most + (1.0 - share) * least))


@triton.jit
def exp(v):
    """The exponential of |v| < 87, to 1 ulp (Cephes ``expf``): a GPU's own instruction loses digits as |v| grows."""
    n = tl.floor(v * 1.44269504088896341 + 0.5)
    r = v - n * 0.693359375 - n * -2.12194440e-4
    p = 1.9875691500e-4 * r + 1.3981999507e-3
    p = p * r + 8.3334519073e-3
    p = p * r + 4.1665795894e-2
    p = p * r + 1.6666665459e-1
    p = p * r + 5.0000001201e-1
    power = ((n.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
    return (p * (r * r) + r + 1.0) * power
