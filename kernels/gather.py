"""Windows of a canvas -> the micro-batch that a network sees: padding, cast and memory format in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.device import use_triton


def gather(
    canvas: Tensor,
    corners: Tensor,
    patch: int,
    batch: int,
    dtype: torch.dtype,
    *,
    origin: tuple[int, int] = (0, 0),
) -> Tensor:
    """One micro-batch of a fixed shape. Triton on CUDA tensors, else torch: the same bits.

    Positions outside the canvas repeat its edge (the engine's windows lie inside). Places of the micro-batch beyond
    the last window repeat that window.

    Args:
        canvas: Latents, float32 (C, H, W), contiguous.
        corners: Top-left (y0, x0) of each window, int64 (n, 2) on the CPU, 64-bit signed; 1 <= n <= ``batch``.
        patch: Side of a window.
        batch: Number of places of the micro-batch.
        dtype: Type of the network, float32, float16 or bfloat16; values are rounded to nearest even.
        origin: Position (y, x) of the canvas's first latent.
    Returns:
        ``dtype`` (batch, C, patch, patch), channels last.

    >>> canvas = torch.arange(12.0).reshape(1, 3, 4)
    >>> gather(canvas, torch.tensor([[0, 1], [1, 2]]), 2, 3, torch.float32).flatten(1).int().tolist()
    [[1, 2, 5, 6], [6, 7, 10, 11], [6, 7, 10, 11]]
    """
    assert 1 <= len(corners) <= batch, (len(corners), batch)
    shape = (batch, canvas.shape[0], patch, patch)
    out = torch.empty(shape, dtype=dtype, device=canvas.device, memory_format=torch.channels_last)
    if use_triton(canvas.device):
        from kernels.triton.gather import gather_into
    else:
        gather_into = gather_torch
    gather_into(out, canvas, corners - torch.tensor(origin))
    return out


def gather_torch(out: Tensor, canvas: Tensor, corners: Tensor) -> None:
    """Fill ``out`` (B, C, p, p) from windows at ``corners`` (n, 2) of the canvas; the oracle of the Triton kernel."""
    side = torch.arange(out.shape[-1])
    places = torch.arange(len(out)).clamp(max=len(corners) - 1)
    y, x = ((corners[places, axis, None] + side).clamp(0, canvas.shape[1 + axis] - 1) for axis in (0, 1))
    y, x = y.to(canvas.device), x.to(canvas.device)
    out.copy_(canvas[:, y[:, :, None], x[:, None, :]].transpose(0, 1))
