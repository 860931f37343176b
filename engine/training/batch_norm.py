"""Sums over the ranks within a network, through which gradients pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from engine.distributed.collectives import PendingSum
from engine.distributed.ranks import Ranks


def total_over(ranks: Ranks) -> Callable[[Tensor], Tensor] | None:
    """Function that sums a float64 vector over the ranks; None: there is one rank.

    What each rank's loss owes to the sum is summed in the backward pass, for all ranks' losses are one loss. These sums
    travel beside those of the gradients, on a communicator of their own: each keeps its own order.
    """
    return None if ranks.size == 1 else lambda values: SumOverRanks.apply(values, ranks)


class SumOverRanks(torch.autograd.Function):
    """The sum of a vector over the ranks. Collective, backwards too."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return summed(values, ranks)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return summed(gradients[0], ctx.ranks), None


def summed(values: Tensor, ranks: Ranks) -> Tensor:
    pending = PendingSum(ranks, values.detach().cpu().double().tolist())
    pending.start()
    return torch.from_numpy(pending.result()).to(values)
