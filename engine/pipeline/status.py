"""What the ranks agree on once a level without waiting for one another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.distributed.balance import SpeedBalance
from engine.distributed.collectives import PendingSum
from engine.distributed.ranks import Ranks
from engine.pipeline.checkpointer import CheckpointManager
from engine.pipeline.memory import peak_memory


@dataclass(frozen=True)
class Status:
    """How all ranks stand, the same value on every rank.

    Args:
        stop: Whether a rank was asked to stop.
        checkpoint_due: Whether it is time to write a checkpoint.
        checkpoint_written: Whether a checkpoint is on disk, of all ranks, and still to be committed.
        picture_due: Whether it is time to leave a picture for those who watch.
        amount: Sum of the ranks' amounts of work.
        memory: Bytes that the rank of most memory has held at most.
        speeds: Sums for ``SpeedBalance.update``.
    """

    stop: bool
    checkpoint_due: bool
    checkpoint_written: bool
    picture_due: bool
    amount: int
    memory: int
    speeds: Sequence[float]


def never() -> bool:
    """A clock that asks for nothing."""
    return False


class StatusReduction:
    """A sum over the ranks of how each stands, once a level or round of decoding.

    It is started in the middle of a level's work, or before a round of decoding, and finished at the end of it, when
    it has long arrived. It only tells: the caller acts on the ``Status``.

    Args:
        check: Raises where this rank's part of the work is not in order.
        balance: Tells this rank's speed; None: nobody balances by speed.
        picture_due: Whether this rank's clock asks for a picture.
    """

    def __init__(
        self,
        ranks: Ranks,
        checkpoints: CheckpointManager,
        check: Callable[[], None],
        balance: SpeedBalance | None = None,
        picture_due: Callable[[], bool] = never,
    ) -> None:
        self.ranks, self.checkpoints, self.check, self.balance = ranks, checkpoints, check, balance
        self.picture_due = picture_due
        self.pending: PendingSum | None = None
        self.problem: Exception | None = None

    def start(self, amount: int = 0) -> None:
        """Start the sums with this rank's status, if they are not under way. Collective, once a level; never blocks.

        Args:
            amount: Amount of this rank's work, of any kind.
        """
        if self.pending is not None:
            assert not amount
            return
        try:
            self.checkpoints.check()
            self.check()
        except (ValueError, OSError, MemoryError) as error:
            self.problem = error
        flags = (
            self.problem is not None,
            self.ranks.stop_requested,
            self.checkpoints.due(),
            self.checkpoints.written(),
            self.picture_due(),
        )
        speed = self.balance.terms() if self.balance else ()
        self.pending = PendingSum(self.ranks, [*map(float, flags), float(amount), *speed], peak_memory())
        self.pending.start()

    def finish(self) -> Status:
        """The status of all ranks; starts the sums if ``start`` was not called. Collective.

        Raises:
            AgreedError: A rank has a problem.
        """
        self.start()
        assert self.pending is not None
        problems, stop, due, written, picture_due, amount, *speeds = self.pending.result().tolist()
        memory = int(self.pending.maximum())
        self.pending = None
        if problems:
            self.ranks.agree(self.raise_problem)
        whole = written == self.ranks.size
        return Status(stop > 0, due > 0, whole, picture_due > 0, int(amount), memory, speeds)

    def raise_problem(self) -> None:
        """Raise this rank's problem, if it has one. Local."""
        if self.problem is not None:
            raise self.problem
