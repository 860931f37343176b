"""One level's update of the canvas: clip, then five multiplications summed in a fixed order, in float32."""

from __future__ import annotations

import torch
from torch import Tensor


def step(
    x: Tensor,
    denoised: Tensor,
    previous: Tensor | None,
    noise: Tensor | None,
    coefficients: tuple[float, float, float, float, float],
    clip: float | None,
    spread: Tensor | None = None,
) -> Tensor:
    """x' = a x + b clipped + c previous + d noise + e denoised; see ``engine.solvers``.

    Args:
        x, denoised, previous, noise: float32 (C, h, w); ``previous`` and ``noise`` may be None where c or d is 0.
        coefficients: (a, b, c, d, e).
        clip: ``denoised`` is clipped to +- this for b; None: it is not.
        spread: float32 (C, h, w), in place of d.
    """
    a, b, c, d, e = coefficients
    clipped = denoised if clip is None else denoised.clamp(-clip, clip)
    out = x * a + clipped * b
    if e:
        out = out + denoised * e
    if c:
        assert previous is not None
        out = out + previous * c
    if spread is not None or d:
        assert noise is not None
        out = out + noise * (d if spread is None else spread)
    return out


def learned_spread(output: Tensor, log_variance: tuple[float, float]) -> Tensor:
    """The standard deviation of the noise, from a network's word on it.

    Args:
        output: float32 (C, h, w), about -1 (least) to 1 (most).
        log_variance: least and most.
    """
    least, most = log_variance
    share = (output + 1) / 2
    return torch.exp(0.5 * (share * most + (1 - share) * least))
