"""The plans of a run's levels, or rounds of decoding, each made while the one before is at work."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np

from engine.distributed.collectives import PlanTask
from engine.distributed.ranks import Ranks
from engine.planning.plan import Plan, Planning

UNEVEN = 0.02  # by which the mean of high power of the ranks' paces is above their mean where they are dealt by speed
POWER = 16  # one rank among thousands that takes twice as long shows
SMOOTHING = 0.5  # share of the newest level in a rank's speed


class Planner:
    """Makes the plans of levels in turn. Every rank asks for the same levels in the same order.

    Ranks of one speed are dealt equal work. Where speeds differ, every rank is told the speed of all: 8 bytes a rank.

    Args:
        part: from a level, and where the ranks' runs end, to this rank's part of the plan.
    """

    def __init__(self, ranks: Ranks, part: Callable[[int, np.ndarray | None], Planning[Plan]]) -> None:
        self.ranks, self.part = ranks, part
        self.ahead: tuple[int, PlanTask] | None = None
        self.shares: np.ndarray | None = None
        self.pace = 0.0  # seconds of an evaluation on this rank
        self.warm = False
        ranks.background = self.advance

    def begin(self, level: int) -> None:
        """Begin the plan of a level. Collective; nobody waits."""
        self.ahead = level, PlanTask(self.ranks, self.part(level, self.shares))

    def advance(self) -> bool:
        """Go on with the plan that was begun; whether it is done. Local."""
        ahead = self.ahead
        if ahead is None:
            return True
        if threading.current_thread() is not threading.main_thread():
            return ahead[1].advance()
        with self.ranks.timer("plan"):
            return ahead[1].advance()

    def take(self, level: int) -> Plan:
        """The plan of a level, begun now if it was not; waits for it. Collective."""
        plan = self.peek(level)
        self.ahead = None
        return plan

    def peek(self, level: int) -> Plan:
        """The plan of a level, to be taken later. Collective."""
        if self.ahead is None or self.ahead[0] != level:
            self.begin(level)
        assert self.ahead is not None
        return self.ahead[1].take()

    def end(self) -> None:
        """Finish what was begun: no message is left behind. Collective."""
        if self.ahead is not None:
            self.ahead[1].take()
        self.ahead = self.ranks.background = None

    def measured(self, seconds: float, evaluations: int) -> None:
        """Take note of how long this rank's evaluations of a level took; not of the first, which warms up. Local."""
        warm, self.warm = self.warm, self.warm or evaluations > 0
        if evaluations and warm:
            newest = seconds / evaluations
            self.pace = newest if not self.pace else (1 - SMOOTHING) * self.pace + SMOOTHING * newest

    def votes(self) -> tuple[float, float, float]:
        """What is summed over the ranks to see whether their speeds differ."""
        return float(self.pace > 0), self.pace, self.pace**POWER

    def follow(self, voted: Sequence[float]) -> None:
        """Deal by speed from now on, if the ranks' speeds differ. Collective.

        Args:
            voted: the sums of ``votes``.
        """
        count, total, powers = voted
        if not count:
            return
        mean = total / count
        if (powers / count) ** (1 / POWER) > (1 + UNEVEN) * mean:
            speeds = 1 / self.ranks.allgather_float(self.pace or mean)
            self.shares = np.cumsum(speeds) / speeds.sum()
        else:
            self.shares = None
