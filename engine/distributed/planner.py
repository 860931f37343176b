"""The plans of a run's levels, or rounds of decoding, each made while the one before is at work."""

from __future__ import annotations

import threading
from collections.abc import Callable

from engine.distributed.collectives import PlanTask
from engine.distributed.ranks import Ranks
from engine.planning.plan import Plan, Planning


class Planner:
    """Makes the plans of levels, one ahead of the level at work. Every rank asks for the same levels in one order.

    It goes on only while it is called; ``with ranks.background(planner.advance)`` lets it go on beside other work.

    Args:
        part: Makes this rank's part of the plan of a level, from the level's number.
        levels: Number of levels.
    """

    def __init__(self, ranks: Ranks, part: Callable[[int], Planning[Plan]], levels: int) -> None:
        self.ranks, self.part, self.levels = ranks, part, levels
        self.ahead: tuple[int, PlanTask] | None = None

    def begin(self, level: int) -> None:
        """Begin the plan of a level; beyond the last there is none. Collective; nobody waits."""
        if level < self.levels:
            self.ahead = level, PlanTask(self.ranks, self.part(level))

    def advance(self) -> bool:
        """Go on with the plan that was begun; whether there is nothing left to do. Local."""
        ahead = self.ahead
        if ahead is None:
            return True
        if threading.current_thread() is not threading.main_thread():
            return ahead[1].advance()  # beside the work that the timer measures
        with self.ranks.timer("plan"):
            return ahead[1].advance()

    def take(self, level: int) -> Plan:
        """The plan of a level, begun now if it was not; waits for it. Collective."""
        plan = self.peek(level)
        self.ahead = None
        return plan

    def peek(self, level: int) -> Plan:
        """The plan of a level, which is still to be taken. Collective."""
        with self.ranks.timer("plan"):
            if self.ahead is None or self.ahead[0] != level:
                self.begin(level)
            assert self.ahead is not None, f"there is no level {level}"
            return self.ahead[1].take()
