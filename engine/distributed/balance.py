"""Balance by speed: where ranks differ, the slow ones are given fewer evaluations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.distributed.ranks import Ranks

# Balance by speed once the 16-norm of the ranks' seconds per evaluation exceeds their mean by 2 %. The norm, a mean of
# 16th powers under a 16th root, is a soft maximum: one rank among thousands that takes twice as long shows in it, and
# like a mean, unlike a maximum, it is one more sum over the ranks.
NORM = 16
THRESHOLD = 0.02
SMOOTHING = 0.5  # weight of the newest level in a rank's seconds per evaluation


class SpeedBalance:
    """Where the ranks' runs of a level's evaluations end, by their measured speeds.

    Ranks of one speed are given equal work. Only where speeds differ is every rank told the speed of all: 8 bytes a
    rank.

    Attributes:
        run_ends: float64 (ranks,), see ``planning.ownership.partition_by_cost``; None: runs of equal cost.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.run_ends: np.ndarray | None = None
        self.seconds_per_evaluation = 0.0  # of this rank; 0: not known yet
        self.warm = False

    def measure(self, seconds: float, evaluations: int) -> None:
        """Take note of how long this rank's evaluations of a level took. Local.

        The first level is not counted: it warms up.
        """
        warm, self.warm = self.warm, self.warm or evaluations > 0
        if evaluations and warm:
            newest, before = seconds / evaluations, self.seconds_per_evaluation or seconds / evaluations
            self.seconds_per_evaluation = (1 - SMOOTHING) * before + SMOOTHING * newest

    def terms(self) -> tuple[float, float, float]:
        """This rank's terms of the sums that ``update`` takes. Local."""
        seconds = self.seconds_per_evaluation
        return float(seconds > 0), seconds, seconds**NORM

    def update(self, sums: Sequence[float]) -> None:
        """From now on balance by speed, if the ranks' speeds differ. Collective.

        Args:
            sums: Sums of all ranks' ``terms``: of ranks that were measured, of their seconds, of the powers of these.
        """
        count, seconds, powers = sums
        if not count:
            return
        mean, norm = seconds / count, (powers / count) ** (1 / NORM)
        if norm > (1 + THRESHOLD) * mean:
            speeds = 1 / self.ranks.allgather_float(self.seconds_per_evaluation or mean)
            self.run_ends = np.cumsum(speeds) / speeds.sum()
        else:
            self.run_ends = None
