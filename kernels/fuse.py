"""Fusion of estimates: weighted sums in the order given, in float32."""

from __future__ import annotations

from torch import Tensor


def accumulate(total: Tensor, weight_sum: Tensor, estimate: Tensor, weight: Tensor | None) -> None:
    """Add one estimate of a box to its running sums, in place.

    Args:
        total: float32 (C, h, w), sum of weight * estimate so far.
        weight_sum: float32 (h, w), sum of weights so far.
        estimate: (C, h, w).
        weight: float32 (h, w); None: 1.
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
