"""What the ranks agree on once a level without waiting for one another."""

from __future__ import annotations

from collections.abc import Callable

from engine.distributed.collectives import PendingSum
from engine.distributed.planner import Planner
from engine.distributed.ranks import Ranks
from engine.pipeline.checkpointer import CheckpointManager


class StatusReduction:
    """Votes are cast in the middle of a level's work, or before a round of decoding, and counted at the end of it, when
    they have long arrived.

    Args:
        planner: told of the ranks' speeds; None: nobody deals work by speed.
        check: raises where this rank's part of the canvas is not in order.
    """

    def __init__(
        self,
        ranks: Ranks,
        checkpoints: CheckpointManager,
        planner: Planner | None = None,
        check: Callable[[], None] | None = None,
    ) -> None:
        self.ranks, self.checkpoints, self.planner, self.check = ranks, checkpoints, planner, check
        self.vote: PendingSum | None = None
        self.problem: Exception | None = None

    def cast(self, amount: int = 0) -> None:
        """Say how this rank stands, once a level. Collective; nobody waits.

        Args:
            amount: of anything that is to be summed.
        """
        if self.vote is not None:
            assert not amount
            return
        try:
            self.checkpoints.raise_problem()
            if self.check is not None:
                self.check()
        except (ValueError, OSError, MemoryError) as error:
            self.problem = error
        flags = (
            self.problem is not None,
            self.ranks.stop_requested,
            self.checkpoints.due(),
            self.checkpoints.written(),
        )
        paces = self.planner.votes() if self.planner else (0.0, 0.0, 0.0)
        self.vote = PendingSum(self.ranks, [*map(float, flags), float(amount), *paces])

    def count(self) -> tuple[bool, bool, int]:
        """Whether any rank was asked to stop, whether a checkpoint is due, and the sum of the amounts. Collective.

        Raises:
            AgreedError: a rank had a problem.
        """
        self.cast()
        assert self.vote is not None
        problems, stop, due, written, amount, *paces = self.vote.result().tolist()
        self.vote = None
        if problems:
            self.ranks.agree(self.raise_problem)
        if written == self.ranks.size:
            self.checkpoints.commit()
        if self.planner:
            self.planner.follow(paces)
        return stop > 0, due > 0, int(amount)

    def raise_problem(self) -> None:
        if self.problem is not None:
            raise self.problem
