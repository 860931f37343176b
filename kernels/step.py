"""One level's update of the canvas: clip, then five multiplications summed in a fixed order, in float32."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.device import use_triton
from kernels.noise import draw
from kernels.values import Update


def step(
    x: Tensor,
    denoised: Tensor,
    previous: Tensor | None,
    noise: Tensor | None,
    coefficients: tuple[float, float, float, float, float],
    clip: float | None,
    std: Tensor | None = None,
) -> Tensor:
    """x' = a x + b clipped + c previous + d noise + e denoised; see ``engine.diffusion.solvers``.

    Args:
        x: Latents of this level, float32 (C, h, w).
        denoised: Estimate of the clean latents, float32 (C, h, w).
        previous: Estimate of the level before, float32 (C, h, w); may be None where c is 0.
        noise: Standard normal noise, float32 (C, h, w); may be None where d is 0.
        coefficients: Factors (a, b, c, d, e).
        clip: Bound of ``clipped``; None: it is ``denoised``.
        std: Factor of the noise at every latent instead of d, float32 (C, h, w).
    """
    a, b, c, d, e = coefficients
    clipped = denoised if clip is None else denoised.clamp(-clip, clip)
    out = x * a + clipped * b
    if e:
        out = out + denoised * e
    if c:
        assert previous is not None
        out = out + previous * c
    if std is not None or d:
        assert noise is not None
        out = out + noise * (d if std is None else std)
    return out


def predicted_std(prediction: Tensor, log_variance: tuple[float, float]) -> Tensor:
    """The standard deviation of the noise, from the network's variance prediction (Nichol & Dhariwal 2021, eq. 15).

    The logarithm of the variance is interpolated: a prediction of -1 means the least, 1 the largest.

    Args:
        prediction: Variance channels of the network's output, float32 (C, h, w), about -1 to 1.
        log_variance: Logarithms of the least and the largest variance.
    """
    least, most = log_variance
    share = (prediction + 1) / 2
    return torch.exp(0.5 * (share * most + (1 - share) * least))


def level_step(x: Tensor, estimate: Tensor, previous: Tensor | None, update: Update) -> Tensor:
    """One level's update, clip, solver and noise in one pass. Triton on CUDA tensors, else torch.

    Args:
        x: Latents of this level, float32 (C, h, w), contiguous.
        estimate: Estimate of the clean latents, float32, contiguous: (C, h, w), or (2 C, h, w) where the network
            learned the variance of the noise; channels C to 2 C are then its variance prediction.
        previous: Estimate of the level before, float32 (C, h, w), contiguous; may be None where c is 0.
    Returns:
        The latents of the next level, float32 (C, h, w), a new tensor.
    """
    out = torch.empty_like(x)
    if use_triton(x.device):
        from kernels.triton.step import step_into
    else:
        step_into = step_torch
    step_into(out, x, estimate, previous, update)
    return out


def step_torch(out: Tensor, x: Tensor, estimate: Tensor, previous: Tensor | None, update: Update) -> None:
    """Fill ``out`` with the update; the oracle of the Triton kernel."""
    channels, height, width = x.shape
    denoised, prediction = estimate[:channels], estimate[channels:]
    std = predicted_std(prediction, update.log_variance) if update.log_variance else None
    noise = draw(update.noise, channels, height, width, x.device) if update.noise else None
    out.copy_(step(x, denoised, previous, noise, update.coefficients, update.clip, std))
