"""One level's update of the canvas: clip, then five multiplications summed in a fixed order, in float32."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.device import use_triton
from kernels.noise import draw
from kernels.values import Guidance, Rule


def step(
    x: Tensor,
    denoised: Tensor,
    previous: Tensor | None,
    noise: Tensor | None,
    coefficients: tuple[float, float, float, float, float],
    clip: float | None,
    spread: Tensor | None = None,
) -> Tensor:
    """x' = a x + b clipped + c previous + d noise + e denoised; see ``engine.diffusion.solvers``.

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


def level_step(
    x: Tensor,
    estimate: Tensor,
    previous: Tensor | None,
    rule: Rule,
    guidance: Guidance | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """One level's update: guidance, clip, solver, noise and history in one pass. Triton on CUDA tensors, else torch.

    Args:
        x: float32 (C, h, w), contiguous.
        estimate: float32 (C, h, w), contiguous; C more channels speak of the noise's variance where it was learned.
        previous: float32 (C, h, w), contiguous; the estimate of the level before, where c is not 0.
        guidance: is not applied to the channels about the variance, which are the conditional's.
        out: where to put the result, ``x`` itself if need be; None: a new tensor.
    Returns:
        The new x and, where it is kept, the estimate (C, h, w) before clipping: without guidance a view, at no cost.
    """
    out = torch.empty_like(x) if out is None else out
    history = None
    if rule.keep:
        history = estimate[: len(x)] if guidance is None else torch.empty_like(x)
    if use_triton(x.device):
        from kernels.triton.step import step_into
    else:
        step_into = step_torch
    step_into(out, history, x, estimate, previous, rule, guidance)
    return out, history


def step_torch(
    out: Tensor,
    history: Tensor | None,
    x: Tensor,
    estimate: Tensor,
    previous: Tensor | None,
    rule: Rule,
    guidance: Guidance | None,
) -> None:
    """The oracle: fill ``out`` and, where there was guidance, ``history``."""
    channels, height, width = x.shape
    denoised, word = estimate[:channels], estimate[channels:]
    if guidance is not None:
        weight = guidance.weights[guidance.labels.long()]
        denoised = denoised + (guidance.conditional[:channels] - denoised) * weight
        word = guidance.conditional[channels:]
        if history is not None:
            history.copy_(denoised)
    spread = learned_spread(word, rule.log_variance) if rule.log_variance else None
    noise = draw(rule.noise, channels, height, width, x.device) if rule.noise else None
    out.copy_(step(x, denoised, previous, noise, rule.coefficients, rule.clip, spread))
