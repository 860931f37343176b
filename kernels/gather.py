"""Windows of a canvas -> the micro-batch that a network sees: places, padding, cast and memory format in one pass."""

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
    channels_last: bool = True,
) -> Tensor:
    """One micro-batch of a fixed shape. Triton on CUDA tensors, else torch: the same bits.

    Positions outside the canvas repeat its edge (the engine's windows lie inside); places beyond the last window
    repeat that window.

    Args:
        canvas: float32 (C, H, W), contiguous; its first latent lies at ``origin``.
        corners: int64 (n, 2) on the CPU, top-left (y0, x0) of each window, 64-bit signed; 1 <= n <= ``batch``.
        patch: side of a window.
        batch: places of the micro-batch.
        dtype: of the network: float32, float16 or bfloat16, rounded to nearest even.
        channels_last: memory format of the result; else contiguous.
    Returns:
        ``dtype`` (batch, C, patch, patch).

    >>> canvas = torch.arange(12.0).reshape(1, 3, 4)
    >>> gather(canvas, torch.tensor([[0, 1], [1, 2]]), 2, 3, torch.float32).flatten(1).int().tolist()
    [[1, 2, 5, 6], [6, 7, 10, 11], [6, 7, 10, 11]]
    """
    assert 1 <= len(corners) <= batch, (len(corners), batch)
    shape = (batch, canvas.shape[0], patch, patch)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    out = torch.empty(shape, dtype=dtype, device=canvas.device, memory_format=layout)
    if use_triton(canvas.device):
        from kernels.triton.gather import gather_into
    else:
        gather_into = gather_torch
    gather_into(out, canvas, corners - torch.tensor(origin))
    return out


def gather_torch(out: Tensor, canvas: Tensor, corners: Tensor) -> None:
    """The oracle: fill ``out`` (B, C, p, p) from windows at ``corners`` (n, 2) within the canvas."""
    side = torch.arange(out.shape[-1])
    places = torch.arange(len(out)).clamp(max=len(corners) - 1)
    y, x = ((corners[places, axis, None] + side).clamp(0, canvas.shape[1 + axis] - 1) for axis in (0, 1))
    y, x = y.to(canvas.device), x.to(canvas.device)
    out.copy_(canvas[:, y[:, :, None], x[:, None, :]].transpose(0, 1))
