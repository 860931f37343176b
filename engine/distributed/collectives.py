"""Messages that travel while there is other work: what plans ask, votes, and the latents and estimates of a level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from engine.distributed.ranks import Ranks
from engine.planning.plan import Planning, PrefixSumRequest, SparseExchangeRequest


class Answering(Protocol):
    """What a plan asked for and is to be sent."""

    @property
    def answer(self) -> Any: ...

    def test(self) -> bool:
        """Whether the answer is there. Local."""


class PrefixSum:
    """Sums over the ranks before this one, and over all."""

    def __init__(self, ranks: Ranks, asked: PrefixSumRequest) -> None:
        self.ranks, self.own = ranks, np.array(asked.values, np.int64)
        self.answer = np.zeros_like(self.own), self.own.copy()
        self.requests = []
        if ranks.size > 1:
            before, total = self.answer
            self.requests = [ranks.planning.Iexscan(self.own, before), ranks.planning.Iallreduce(self.own, total)]

    def test(self) -> bool:
        done = bool(self.ranks.mpi.Request.Testall(self.requests))
        if done and self.ranks.rank == 0:
            self.answer[0][:] = 0  # MPI leaves it undefined there
        return done


class SparseExchange:
    """Messages to ranks that do not know who will write to them: nobody is asked, nothing grows with their number.

    A rank joins a barrier when its messages were taken; when all have joined, all messages are there.
    Source: the sparse exchange of Hoefler, Siebert and Lumsdaine 2010 (doi:10.1145/1693453.1693476).

    Args:
        tag: another one than that of the posting before, which may still be under way elsewhere.
    """

    def __init__(self, ranks: Ranks, asked: SparseExchangeRequest, tag: int) -> None:
        self.ranks, self.comm, self.tag = ranks, ranks.planning, tag
        self.found: dict[int, np.ndarray] = {}
        self.kept = {to: np.ascontiguousarray(message, np.int64) for to, message in asked.messages.items()}
        own = self.kept.pop(ranks.rank, None)
        if own is not None:
            self.found[ranks.rank] = own
        self.sends = [self.comm.Issend(message, dest=to, tag=tag) for to, message in self.kept.items()]
        self.receives: list = []
        self.joined: Any = None

    @property
    def answer(self) -> dict[int, np.ndarray]:
        return dict(sorted(self.found.items()))

    def test(self) -> bool:
        if self.ranks.size == 1:
            return True
        mpi, status = self.ranks.mpi, self.ranks.mpi.Status()
        while (message := self.comm.Improbe(tag=self.tag, status=status)) is not None:
            taken = np.empty(status.Get_count(mpi.INT64_T), np.int64)
            self.receives.append(message.Irecv(taken))
            self.found[status.Get_source()] = taken
        if self.joined is None and mpi.Request.Testall(self.sends):
            self.joined = self.comm.Ibarrier()
        return self.joined is not None and bool(self.joined.Test()) and bool(mpi.Request.Testall(self.receives))


class PlanTask:
    """A plan that is made while there is other work. Made by all ranks in one order."""

    def __init__(self, ranks: Ranks, part: Planning[Any]) -> None:
        self.ranks, self.part = ranks, part
        self.asked: Answering | None = None
        self.found: Any = None
        self.problem: BaseException | None = None
        self.begun = self.done = False

    def go_on(self, answer: Any) -> None:
        self.begun, self.asked = True, None
        try:
            asked = self.part.send(answer)
        except StopIteration as end:
            self.found, self.done = end.value, True
            return
        except BaseException as error:  # in whatever thread it happens, it is raised where the plan is taken
            self.problem, self.done = error, True
            return
        self.ranks.posted += 1
        tag = self.ranks.posted % 16384
        self.asked = (
            PrefixSum(self.ranks, asked)
            if isinstance(asked, PrefixSumRequest)
            else SparseExchange(self.ranks, asked, tag)
        )

    def advance(self) -> bool:
        """Go on as far as can be without waiting; whether it is done. Local."""
        lock = self.ranks.planning_lock
        if not self.done and lock.acquire(blocking=False):  # else another thread is at it
            try:
                if not self.begun:
                    self.go_on(None)
                while self.asked is not None and self.asked.test():
                    self.go_on(self.asked.answer)
            finally:
                lock.release()
        return self.done

    def take(self) -> Any:
        """The plan; waits for it."""
        self.ranks.wait_until(self.advance)
        if self.problem is not None:
            raise self.problem
        return self.found


class PendingSum:
    """Sums over the ranks, under way. Begun by all in one order."""

    def __init__(self, ranks: Ranks, values: Sequence[float]) -> None:
        self.ranks, self.own, self.total = ranks, np.array(values, np.float64), np.array(values, np.float64)
        self.requests = [ranks.voting.Iallreduce(self.own, self.total)] if ranks.size > 1 else []

    def result(self) -> np.ndarray:
        """float64, the sums; waits for them."""
        self.ranks.wait(self.requests)
        return self.total
