"""The only importer of mpi4py: agreement, polite waiting, the end of all when one rank fails."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from engine.command_line import describe
from engine.distributed.timing import Timer

T = TypeVar("T")
MOVING = 0.005  # seconds between two looks at messages while a rank computes
LONGEST_PAUSE = 0.002  # seconds between two looks while it waits
STOPPED = 75  # exit status of a run that was asked to stop and left a checkpoint


class AgreedError(Exception):
    """An error that every rank knows of: all leave together and rank 0 says why."""


class Ranks:
    """A communicator, with the verbs this project needs. All waiting is polite: polled, with a sleep between."""

    def __init__(self, comm: Any) -> None:
        from mpi4py import MPI

        self.comm = comm
        self.rank: int = comm.Get_rank()
        self.size: int = comm.Get_size()
        node = comm.Split_type(MPI.COMM_TYPE_SHARED) if self.size > 1 else comm
        self.local_rank: int = node.Get_rank()
        self.local_size: int = node.Get_size()
        if node is not comm:
            node.Free()
        self.stop_requested = False
        self.timer = Timer()
        self.device = "cpu"
        self.mpi = MPI
        self.planning, self.voting = comm.Dup(), comm.Dup()  # their collectives have orders of their own
        self.posted = 0
        self.unsent: list[Any] = []  # messages that are kept until they have left
        self.background: Callable[[], bool] | None = None  # goes on a little; whether it has come to its end
        self.lock = threading.RLock()  # of the messages that two threads move on
        self.planning_lock = threading.RLock()
        self.busy_now = threading.Event()
        self.mover: threading.Thread | None = None
        self.problem: BaseException | None = None  # of the thread that moves messages

    # ---- waiting and agreeing -------------------------------------------------------------------

    def progress(self) -> None:
        """Move what goes on in the background: messages on their way, and ``background``. Local; cheap."""
        self.comm.Iprobe()  # MPI moves messages only while it is called
        with self.lock:
            self.unsent = [sending for sending in self.unsent if not sending.moved()]
        if (background := self.background) is not None:
            background()

    @contextmanager
    def progress_in_background(self) -> Iterator[None]:
        """While this rank computes, a thread moves its messages on, where the MPI library lets two threads call it."""
        if self.size == 1 or self.mpi.Query_thread() < self.mpi.THREAD_MULTIPLE:
            yield
            return
        if self.mover is None:
            self.mover = threading.Thread(target=self._move, daemon=True)
            self.mover.start()
        self.busy_now.set()
        try:
            yield
        finally:
            self.busy_now.clear()
        if self.problem is not None:
            raise self.problem

    def _move(self) -> None:
        if self.device.startswith("cuda"):
            import torch

            torch.cuda.set_device(self.device)
        while self.busy_now.wait():
            try:
                self.progress()
            except BaseException as error:
                self.problem = error
                return
            time.sleep(MOVING)

    def drain(self) -> None:
        """After an error that all know of: bring what goes on in the background to its end. Collective."""
        end = time.monotonic() + 5
        while self.background is not None and not self.background() and time.monotonic() < end:
            time.sleep(1e-3)

    def wait_until(self, done: Callable[[], bool]) -> None:
        """Wait without burning a core: sleeps of 0.1 ms growing to 2 ms between polls."""
        self.progress()
        if done():
            return
        pause = 1e-4
        with self.timer("wait"):
            while not done():
                time.sleep(pause)
                pause = min(pause * 1.5, LONGEST_PAUSE)
                self.progress()

    def wait(self, requests: list) -> None:
        self.wait_until(lambda: self.mpi.Request.Testall(requests))

    def flush(self) -> None:
        """Wait until everything that this rank sent has left. Local; the receivers must be at it."""
        self.wait_until(lambda: not self.unsent)

    def barrier(self) -> None:
        """Collective."""
        if self.size > 1:
            self.wait([self.comm.Ibarrier()])

    def bcast(self, value: T, root: int = 0) -> T:
        """The root's value, on every rank. Collective."""
        if self.size == 1:
            return value
        self.barrier()
        sent = self.comm.bcast(value, root=root)
        return value if self.rank == root else sent  # the root's own, with what it holds open and does not send

    def allgather(self, value: T) -> list[T]:
        """Every rank's value, on every rank, in order of rank. Collective."""
        if self.size == 1:
            return [value]
        self.barrier()
        return self.comm.allgather(value)

    def any(self, flag: bool) -> bool:
        """Whether the flag is up on any rank. Collective."""
        return self.allreduce(float(flag)) > 0

    def allreduce(self, value: float) -> float:
        """The sum over the ranks. Collective."""
        found = np.array([value])
        if self.size > 1:
            self.wait([self.comm.Iallreduce(self.mpi.IN_PLACE, found)])
        return float(found[0])

    def allgather_float(self, value: float) -> np.ndarray:
        """float64 (ranks,): every rank's value. Collective."""
        found = np.full(self.size, value)
        if self.size > 1:
            self.wait([self.comm.Iallgather(np.array([value]), found)])
        return found

    def allreduce_array(self, array: np.ndarray) -> None:
        """Sum an array over the ranks, in place. Collective."""
        if self.size > 1:
            self.barrier()
            self.comm.Allreduce(self.mpi.IN_PLACE, array, op=self.mpi.SUM)

    def agree(self, work: Callable[[], T]) -> T:
        """Run local work that may fail; if it fails on any rank, all raise the same ``AgreedError``. Collective.

        Only errors of the user's and the machine's making are caught (ValueError, OSError, MemoryError).
        """
        result, problem = None, ""
        try:
            result = work()
        except (ValueError, OSError, MemoryError) as error:
            problem = describe(error) or type(error).__name__
        if self.any(bool(problem)):
            rank, text = next((rank, text) for rank, text in enumerate(self.allgather(problem)) if text)
            raise AgreedError(text if self.size == 1 or rank == 0 else f"{text} (rank {rank})")
        return result  # type: ignore[return-value]

    def on_root(self, work: Callable[[], T]) -> T:
        """Run work on rank 0 and share its result; its error becomes everybody's. Collective."""
        return self.bcast(self.agree(lambda: work() if self.rank == 0 else None))  # type: ignore[return-value]

    @cached_property
    def gpu_aware(self) -> bool:
        """Whether the MPI library says that it takes a GPU's memory."""
        try:
            return bool(ctypes.CDLL(self.mpi.__file__).MPIX_Query_cuda_support() == 1)
        except (AttributeError, OSError):
            return False

    # ---- ends -----------------------------------------------------------------------------------

    def catch_signals(self) -> None:
        """USR1 and TERM ask for a checkpoint and a stop; the flag goes into every level's votes."""

        def on_signal(number: int, frame: object) -> None:
            self.stop_requested = True

        for number in (signal.SIGUSR1, signal.SIGTERM):
            signal.signal(number, on_signal)

    def abort(self, message: str) -> None:
        """Say why and end every rank at once, with status 1."""
        sys.stdout.flush()
        print(message, file=sys.stderr, flush=True)
        if self.size > 1:
            self.comm.Abort(1)
        os._exit(1)
