"""Fusion of estimates: weighted sums in the order given, in float32."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.device import use_triton
from kernels.values import SeparableWeights, Weights, WinnerMap


def accumulate(total: Tensor, weight_sum: Tensor, estimate: Tensor, weight: Tensor | None) -> None:
    """Add one estimate of a box to its running sums, in place.

    Args:
        total: Sum of weight * estimate so far, float32 (C, h, w).
        weight_sum: Sum of the weights so far, float32 (h, w).
        estimate: Estimate of the box, (C, h, w).
        weight: Weight of the estimate, float32 (h, w); None: 1.
    """
    if weight is None:
        total += estimate
        weight_sum += 1
    else:
        total += estimate * weight
        weight_sum += weight


def normalize(total: Tensor, weight_sum: Tensor) -> Tensor:
    """The weighted mean; exact where one estimate of weight 1 was given, 0 where none was."""
    return total / (weight_sum + (weight_sum == 0))


def fuse(
    estimates: Tensor, corners: Tensor, used: Tensor, box: tuple[int, int, int, int], weights: Weights = None
) -> Tensor:
    """The weighted mean of windows' estimates over a box. Triton on CUDA tensors, else torch: the same bits.

    Sums run in float32 and in the order of the windows, without atomics.

    Args:
        estimates: Estimates of n windows, (n, C, p, p), contiguous.
        corners: Top-left (y0, x0) of each window, int64 (n, 2) on the CPU, 64-bit signed.
        used: Part (y0, x0, y1, x1) of each window that its estimate is used in, int64 (n, 4) on the CPU.
        box: Box (y0, x0, y1, x1) that is filled, half-open.
        weights: Weights of the windows; None: 1.
    Returns:
        float32 (C, y1 - y0, x1 - x0); 0 where no window is used.

    >>> two = torch.tensor([1.0, 4.0]).reshape(2, 1, 1, 1).expand(2, 1, 2, 2).contiguous()
    >>> corners = torch.tensor([[0, 0], [0, 1]])
    >>> fuse(two, corners, torch.cat([corners, corners + 2], 1), (0, 0, 1, 4))
    tensor([[[1.0000, 2.5000, 4.0000, 0.0000]]])
    """
    y0, x0, y1, x1 = box
    out = torch.empty(estimates.shape[1], y1 - y0, x1 - x0, device=estimates.device)
    origin = torch.tensor([y0, x0])
    if use_triton(estimates.device):
        from kernels.triton.fuse import fuse_into
    else:
        fuse_into = fuse_torch
    fuse_into(out, estimates, corners - origin, used - origin.repeat(2), weights)
    return out


def fuse_torch(out: Tensor, estimates: Tensor, corners: Tensor, used: Tensor, weights: Weights) -> None:
    """Fill ``out`` (C, h, w), whose corner is (0, 0) of all positions; the oracle of the Triton kernel."""
    weight_sum = torch.zeros(out.shape[1:], device=out.device)
    out.zero_()
    inside = used.clamp(min=0).minimum(torch.tensor([*out.shape[1:]]).repeat(2))
    for n, ((y, x), (y0, x0, y1, x1)) in enumerate(zip(corners.tolist(), inside.tolist(), strict=True)):
        if y0 < y1 and x0 < x1:
            here, there = (slice(y0, y1), slice(x0, x1)), (slice(y0 - y, y1 - y), slice(x0 - x, x1 - x))
            weight = _weight(weights, n, here, there)
            accumulate(out[:, here[0], here[1]], weight_sum[here], estimates[n, :, there[0], there[1]].float(), weight)
    out.copy_(normalize(out, weight_sum))


def _weight(weights: Weights, n: int, here: tuple[slice, slice], there: tuple[slice, slice]) -> Tensor | None:
    """float32 (h, w) weights of window ``n`` in a box, which lies ``here`` in the field and ``there`` in the window."""
    if isinstance(weights, WinnerMap):
        return (weights.winner[here] == n).float()
    if isinstance(weights, SeparableWeights):
        return weights.rows[n, there[0], None] * weights.columns[n, None, there[1]]
    return None
