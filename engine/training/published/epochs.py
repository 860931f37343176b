"""Trainings that count epochs: their settings, their mean loss, and what of a run stays when it is resumed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from engine.distributed.ranks import Ranks
from engine.messages import quoted
from engine.training.checks import check_kept
from engine.training.loop import LoopSettings


def by_epochs(settings: LoopSettings, pictures: int, epochs: int, gamma: float) -> LoopSettings:
    """The settings of a training of so many epochs, with a checkpoint after each, where they do not say otherwise.

    Raises:
        ValueError: checkpoints are kept at steps that have none.
    """
    steps = math.ceil(pictures / settings.batch_size)
    check_kept(settings.keep_every, settings.every or steps)
    return replace(
        settings,
        epoch_steps=steps,
        steps=settings.steps or steps * epochs,
        every=settings.every or steps,
        gamma=gamma,
    )


class EpochMean:
    """The mean loss of the steps since the last multiple of ``every``, over all ranks; kept with the run's state."""

    def __init__(self, every: int, ranks: Ranks) -> None:
        self.every, self.ranks = every, ranks
        self.number = -1
        self.total, self.own = 0.0, torch.zeros((), dtype=torch.float64)

    def add(self, step: int, loss: Tensor) -> None:
        """Add a rank's part of a step's loss. Local.

        Args:
            step: Number of steps before this one.
        """
        if step // self.every != self.number:
            self.number, self.total = step // self.every, 0.0
            self.own = torch.zeros((), dtype=torch.float64, device=loss.device)
        self.own += loss.detach()

    def mean(self, step: int) -> float:
        """The mean over the steps until ``step``, as of the last saved state."""
        return self.total / max(step - self.number * self.every, 1)

    def state_dict(self) -> dict[str, Any]:
        """Collective."""
        self.total += self.ranks.allreduce(float(self.own))
        self.own = torch.zeros_like(self.own)
        return {"number": self.number, "total": self.total}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.number, self.total = state["number"], state["total"]


class Facts:
    """Settings of a run that a resumed one has to share, beside those of the loop.

    Args:
        values: Their values, which can be written as text, by name.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = {name: str(value) for name, value in values.items()}

    def state_dict(self) -> dict[str, str]:
        return self.values

    def load_state_dict(self, state: Mapping[str, str]) -> None:
        """Refuse to go on with others.

        Raises:
            ValueError: naming what differs.
        """
        for name, value in self.values.items():
            if state.get(name, value) != value:
                raise ValueError(
                    f"`out` holds a training whose `{name}` is {quoted(state[name])}, yours is {quoted(value)}; give "
                    "the same to resume it, choose another `out`, or start anew with `resume` never"
                )
