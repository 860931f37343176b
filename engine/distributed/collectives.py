"""Communication that overlaps computation: what plans ask for, and sums over the ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from engine.distributed.ranks import Ranks
from engine.planning.plan import Planning, PrefixSumRequest, SparseExchangeRequest


class PendingAnswer(Protocol):
    """The answer to a plan's request, under way."""

    @property
    def answer(self) -> Any:
        """The answer, once ``test`` says that it is there."""

    def start(self) -> None:
        """Begin to communicate."""

    def test(self) -> bool:
        """Whether the answer is there. Local."""


class PrefixSum:
    """Sums over the ranks before this one, and over all ranks (MPI_Iexscan and MPI_Iallreduce)."""

    def __init__(self, ranks: Ranks, request: PrefixSumRequest) -> None:
        self.ranks, self.own = ranks, np.array(request.values, np.int64)
        self.answer = np.zeros_like(self.own), self.own.copy()
        self.requests: list = []

    def start(self) -> None:
        """Collective; nobody waits."""
        if self.ranks.size > 1:
            comm, (before, total) = self.ranks.plan_comm, self.answer
            self.requests = [comm.Iexscan(self.own, before), comm.Iallreduce(self.own, total)]

    def test(self) -> bool:
        done = bool(self.ranks.mpi.Request.Testall(self.requests))
        if done and self.ranks.rank == 0:
            self.answer[0][:] = 0  # MPI leaves the sum before rank 0 undefined
        return done


class ArraySum:
    """The sum of an array over the ranks, in place (MPI_Iallreduce).

    Args:
        array: Contiguous; not to be touched until it is summed.
    """

    def __init__(self, ranks: Ranks, array: np.ndarray) -> None:
        self.ranks, self.array = ranks, array
        self.requests: list = []

    def start(self) -> None:
        """Collective; nobody waits."""
        if self.ranks.size > 1:
            self.requests = [self.ranks.comm.Iallreduce(self.ranks.mpi.IN_PLACE, self.array)]

    def test(self) -> bool:
        """Whether the sum is there. Local."""
        return bool(self.ranks.mpi.Request.Testall(self.requests))

    def wait(self) -> None:
        """Wait for the sum. Local."""
        self.ranks.wait(self.requests)


class SparseExchange:
    """Messages to ranks that do not know who will write to them (NBX): the cost does not grow with the ranks.

    A rank joins a non-blocking barrier when its messages were received; when all have joined, all messages are there.
    Source: the sparse exchange of Hoefler, Siebert and Lumsdaine 2010 (doi:10.1145/1693453.1693476).

    Args:
        tag: Another tag than that of the exchange before, which may still be under way on other ranks.
    """

    def __init__(self, ranks: Ranks, request: SparseExchangeRequest, tag: int) -> None:
        self.ranks, self.comm, self.tag = ranks, ranks.plan_comm, tag
        self.to_send = {to: np.ascontiguousarray(message, np.int64) for to, message in request.messages.items()}
        self.received: dict[int, np.ndarray] = {}
        self.sends: list = []
        self.receives: list = []
        self.barrier: Any = None

    def start(self) -> None:
        """Collective; nobody waits."""
        own = self.to_send.pop(self.ranks.rank, None)
        if own is not None:
            self.received[self.ranks.rank] = own
        self.sends = [self.comm.Issend(message, dest=to, tag=self.tag) for to, message in self.to_send.items()]

    @property
    def answer(self) -> dict[int, np.ndarray]:
        return dict(sorted(self.received.items()))

    def test(self) -> bool:
        if self.ranks.size == 1:
            return True
        mpi, status = self.ranks.mpi, self.ranks.mpi.Status()
        while (message := self.comm.Improbe(tag=self.tag, status=status)) is not None:
            values = np.empty(status.Get_count(mpi.INT64_T), np.int64)
            self.receives.append(message.Irecv(values))
            self.received[status.Get_source()] = values
        if self.barrier is None and mpi.Request.Testall(self.sends):
            self.barrier = self.comm.Ibarrier()
        return self.barrier is not None and bool(self.barrier.Test()) and bool(mpi.Request.Testall(self.receives))


class PlanTask:
    """A rank's part of a plan, made while there is other work: it answers the part's requests over MPI.

    All ranks make their parts in the same order.
    """

    def __init__(self, ranks: Ranks, part: Planning[Any]) -> None:
        self.ranks, self.part = ranks, part
        self.pending: PendingAnswer | None = None
        self.plan: Any = None
        self.problem: BaseException | None = None
        self.begun = self.done = False

    def advance(self) -> bool:
        """Go on as far as possible without waiting; whether the plan is made. Local."""
        lock = self.ranks.plan_lock
        if not self.done and lock.acquire(blocking=False):  # else another thread is at it
            try:
                if not self.begun:
                    self.begun = True
                    self._resume(None)
                while self.pending is not None and self.pending.test():
                    self._resume(self.pending.answer)
            finally:
                lock.release()
        return self.done

    def _resume(self, answer: Any) -> None:
        """Send the part an answer, and begin with its next request."""
        self.pending = None
        try:
            request = self.part.send(answer)
        except StopIteration as end:
            self.plan, self.done = end.value, True
            return
        except BaseException as error:  # in whatever thread it happens, it is raised where the plan is taken
            self.problem, self.done = error, True
            return
        tag = self.ranks.next_tag()
        self.pending = (
            PrefixSum(self.ranks, request)
            if isinstance(request, PrefixSumRequest)
            else SparseExchange(self.ranks, request, tag)
        )
        self.pending.start()

    def take(self) -> Any:
        """The plan; waits for it."""
        self.ranks.wait_until(self.advance)
        if self.problem is not None:
            raise self.problem
        return self.plan


class PendingSum:
    """Sums over the ranks, and one maximum, under way. All ranks start theirs in the same order.

    Args:
        values: Of which the sums are taken.
        value: Of which the maximum is taken.
    """

    def __init__(self, ranks: Ranks, values: Sequence[float], value: float = 0.0) -> None:
        self.ranks, self.own, self.total = ranks, np.array(values, np.float64), np.array(values, np.float64)
        self.own_value, self.most = np.array([value], np.float64), np.array([value], np.float64)
        self.requests: list = []

    def start(self) -> None:
        """Collective; nobody waits."""
        if self.ranks.size > 1:
            comm, largest = self.ranks.status_comm, self.ranks.mpi.MAX
            self.requests = [
                comm.Iallreduce(self.own, self.total),
                comm.Iallreduce(self.own_value, self.most, op=largest),
            ]

    def result(self) -> np.ndarray:
        """float64: the sums; waits for them."""
        self.ranks.wait(self.requests)
        return self.total

    def maximum(self) -> float:
        """The maximum; waits for it."""
        self.ranks.wait(self.requests)
        return float(self.most[0])
