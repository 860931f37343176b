"""The average of a network's weights that is saved."""

from __future__ import annotations

import copy

import torch
from torch import nn

POWER, SETTLED = 2 / 3, 100  # of the average "power": its exponent, and the steps before which it is the network itself


class Ema:
    """Exponential moving average of a network's weights.

    Args:
        decay: The greatest.
        form: One of ``recipe.AVERAGES``; see ``LoopSettings``.
        every: Steps from one update to the next.
    """

    def __init__(self, network: nn.Module, decay: float, form: str = "warm", every: int = 1) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay, self.form, self.every = decay, form, every
        self.updates = 0

    def decay_now(self) -> float:
        """Decay of the next update."""
        if self.form == "plain":
            return self.decay
        if self.form == "warm":
            return min(self.decay, (1 + self.updates) / (10 + self.updates))
        settled = self.updates * self.every - SETTLED
        return 0.0 if settled <= 0 else min(self.decay, 1 - (1 + settled) ** -POWER)

    def update(self, network: nn.Module) -> None:
        decay = self.decay_now()
        self.updates += 1
        with torch.no_grad():
            torch._foreach_lerp_(list(self.network.parameters()), list(network.parameters()), 1 - decay)
            for own, theirs in zip(self.network.buffers(), network.buffers(), strict=True):
                own.copy_(theirs)
