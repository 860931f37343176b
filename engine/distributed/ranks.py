"""The ranks of a run: what they agree on, how they wait, what goes on in the background, how all end together."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import stat
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any, Protocol, TypeVar

import numpy as np

from engine.command_line import describe
from engine.distributed.timing import Timer

T = TypeVar("T")
POLL_WHILE_COMPUTING = 0.005  # seconds between two looks at messages while a rank computes
SECOND_INTERRUPT = 1.0  # seconds after which another Ctrl-C is a second one
LONGEST_PAUSE = 0.002  # seconds between two looks at messages while a rank waits
STDERR = 2  # its descriptor
DRAIN = 5.0  # seconds that ranks that leave together spend on bringing their messages to an end


class RaisedTogether(Exception):
    """What all ranks raise at one and the same place: they leave together, and may go on together elsewhere."""


class AgreedError(RaisedTogether):
    """An error of one rank that every rank knows of; rank 0 prints it."""


class Message(Protocol):
    """A message on its way."""

    def advance(self) -> bool:
        """Go on with it; whether it has left. Local."""


class Ranks:
    """A communicator, with the verbs this project needs. All waiting is polite: polled, with a sleep in between.

    Attributes:
        plan_comm, status_comm: Communicators of their own for plans and for status sums, whose collectives go on beside
            those of ``comm``, in orders of their own.
        stop_requested: Whether this rank was asked to stop, see ``catch_signals``.
        interrupted: Whether that was by Ctrl-C, and when.
        timer: Where this rank's time goes.
        device: Device that this rank computes on.
    """

    def __init__(self, comm: Any) -> None:
        from mpi4py import MPI

        self.mpi, self.comm = MPI, comm
        self.rank: int = comm.Get_rank()
        self.size: int = comm.Get_size()
        node = comm.Split_type(MPI.COMM_TYPE_SHARED) if self.size > 1 else comm
        self.local_rank: int = node.Get_rank()
        self.local_size: int = node.Get_size()
        if node is not comm:
            node.Free()
        self.plan_comm, self.status_comm = comm.Dup(), comm.Dup()
        self.plan_lock = threading.RLock()  # held by the thread that advances a plan
        self.tags_used = 0
        self.stop_requested = False
        self.stops_after = "level"
        self.interrupted: float | None = None  # when Ctrl-C was pressed, by time.monotonic
        self.call_lock = threading.Lock()  # held for as long as a call samples
        self.timer = Timer()
        self.device = "cpu"
        # What goes on in the background, and the thread that keeps it going while this rank computes.
        self.unsent: list[Message] = []
        self.unsent_lock = threading.RLock()
        self.in_background: Callable[[], bool] | None = None
        self.computing_now = threading.Event()
        self.thread: threading.Thread | None = None
        self.thread_problem: BaseException | None = None

    # ---- the background -------------------------------------------------------------------------

    def carry(self, message: Message) -> None:
        """Keep a message, and advance it until it has left. Local."""
        with self.unsent_lock:
            if not message.advance():
                self.unsent.append(message)

    @contextmanager
    def background(self, advance: Callable[[], bool]) -> Iterator[None]:
        """While this lasts, ``advance`` is called again and again beside other work; only one can be at a time.

        Where it ends, what was begun is brought to its end: no message is left behind. Collective.

        Args:
            advance: Goes on a little without waiting; returns whether there is nothing left to do.
        """
        if self.in_background is not None:
            raise RuntimeError("something goes on in the background already: end it before this begins")
        self.in_background = advance
        try:
            yield
            self.wait_until(advance)
        except RaisedTogether:
            end = time.monotonic() + DRAIN
            while not advance() and time.monotonic() < end:
                time.sleep(1e-3)
            raise
        finally:
            self.in_background = None

    def progress(self) -> None:
        """Go on with what is in the background: messages on their way, and ``advance``. Local; cheap."""
        self.comm.Iprobe()  # MPI moves messages only while it is called
        with self.unsent_lock:
            self.unsent = [message for message in self.unsent if not message.advance()]
        if (advance := self.in_background) is not None:
            advance()

    @contextmanager
    def computing(self, kind: str) -> Iterator[None]:
        """Time of this kind, see ``Timer``, in which a thread advances the background work while this rank computes.

        There is no thread where the MPI library does not let two threads call it.
        """
        with self.timer(kind):
            if self.size == 1 or self.mpi.Query_thread() < self.mpi.THREAD_MULTIPLE:
                yield
                return
            if self.thread is None:
                self.thread = threading.Thread(target=self._progress_while_computing, daemon=True)
                self.thread.start()
            self.computing_now.set()
            try:
                yield
            finally:
                self.computing_now.clear()
            if self.thread_problem is not None:
                raise self.thread_problem

    def _progress_while_computing(self) -> None:
        if self.device.startswith("cuda"):
            import torch

            torch.cuda.set_device(self.device)
        while self.computing_now.wait():
            try:
                self.progress()
            except BaseException as error:
                self.thread_problem = error
                return
            time.sleep(POLL_WHILE_COMPUTING)

    def next_tag(self) -> int:
        """A tag of ``plan_comm`` that no exchange under way has: all ranks take theirs in one order. Local."""
        self.tags_used += 1
        return self.tags_used % 16384  # MPI allows 32767 at least

    @contextmanager
    def one_call(self) -> Iterator[None]:
        """Refuse another call while this lasts, made by a callback or by another thread. Local.

        Raises:
            RuntimeError: one is under way.
        """
        if not self.call_lock.acquire(blocking=False):
            raise RuntimeError(
                "one call at a time per communicator; another is under way, around this callback or in another thread: "
                "let it end first, or give this one a communicator of its own, `comm` MPI.COMM_WORLD.Dup()"
            )
        try:
            yield
        finally:
            self.call_lock.release()

    # ---- waiting and agreeing -------------------------------------------------------------------

    def wait_until(self, done: Callable[[], bool]) -> None:
        """Wait without burning a core: sleeps of 0.1 ms growing to 2 ms between polls. Local."""
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
        """Wait for MPI requests. Local."""
        self.wait_until(lambda: self.mpi.Request.Testall(requests))

    def flush(self) -> None:
        """Wait until everything that this rank sent has left. Local; its receivers must receive meanwhile."""
        self.wait_until(lambda: not self.unsent)

    def barrier(self) -> None:
        """Collective."""
        if self.size > 1:
            self.wait([self.comm.Ibarrier()])

    def bcast(self, value: T) -> T:
        """Rank 0's value, on every rank. Collective."""
        if self.size == 1:
            return value
        self.barrier()
        sent = self.comm.bcast(value)
        return sent if self.rank else value  # rank 0's own, with what it holds open and does not send

    def allgather(self, value: T) -> list[T]:
        """Every rank's value, on every rank, in order of rank. Collective."""
        if self.size == 1:
            return [value]
        self.barrier()
        return self.comm.allgather(value)

    def gather(self, value: T) -> list[T]:
        """Every rank's value on rank 0, in order of rank; elsewhere none. Collective."""
        if self.size == 1:
            return [value]
        self.barrier()
        return self.comm.gather(value) or []

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank. Collective."""
        return self.allreduce(float(flag)) > 0

    def allreduce(self, value: float) -> float:
        """The sum over the ranks. Collective."""
        total = np.array([value])
        if self.size > 1:
            self.wait([self.comm.Iallreduce(self.mpi.IN_PLACE, total)])
        return float(total[0])

    def allgather_float(self, value: float) -> np.ndarray:
        """float64 (ranks,): every rank's value. Collective."""
        values = np.full(self.size, value)
        if self.size > 1:
            self.wait([self.comm.Iallgather(np.array([value]), values)])
        return values

    def allreduce_array(self, array: np.ndarray) -> None:
        """Sum an array over the ranks, in place. Collective."""
        if self.size > 1:
            self.barrier()
            self.comm.Allreduce(self.mpi.IN_PLACE, array, op=self.mpi.SUM)

    def bcast_array(self, array: np.ndarray, root: int) -> None:
        """Fill an array with that of a rank, in place. Collective; its shape is the same everywhere."""
        if self.size > 1:
            self.wait([self.comm.Ibcast(array, root=root)])

    def agree(self, work: Callable[[], T]) -> T:
        """Run local work that may fail; if it fails on any rank, all raise the same ``AgreedError``. Collective.

        Errors that the user or the machine caused are caught (ValueError, OSError, MemoryError), and no others.
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
        """Run work on rank 0 and send its result to all; if it fails, all raise ``AgreedError``. Collective."""
        return self.bcast(self.agree(lambda: work() if self.rank == 0 else None))  # type: ignore[return-value]

    @cached_property
    def gpu_aware(self) -> bool:
        """Whether the MPI library says that it can send from and receive into a GPU's memory."""
        try:
            return bool(ctypes.CDLL(self.mpi.__file__).MPIX_Query_cuda_support() == 1)
        except (AttributeError, OSError):
            return False

    # ---- ends -----------------------------------------------------------------------------------

    def catch_signals(self, unit: str = "level") -> None:
        """From now on USR1, TERM and INT (Ctrl-C) set ``stop_requested``: a level's status carries it to all. Local.

        Args:
            unit: What is brought to its end first, for the message.
        """
        self.stops_after = unit
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    @contextmanager
    def catching_interrupts(self) -> Iterator[None]:
        """While this lasts, Ctrl-C sets ``stop_requested`` and ``interrupted``; before and after, Python has it. Local.

        Only the main thread can catch signals; elsewhere nothing is changed.
        """
        self.stop_requested, self.interrupted = False, None
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGINT, self._on_signal)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
            self.stop_requested = False

    def _on_signal(self, number: int, frame: object) -> None:
        """Take a signal. A terminal and mpiexec may both pass on one Ctrl-C: a second one counts a moment later."""
        now = time.monotonic()
        if number == signal.SIGINT:
            if self.interrupted is not None and now - self.interrupted > SECOND_INTERRUPT:
                raise KeyboardInterrupt
            if self.interrupted is None and self.rank == 0:
                print(
                    f"stopping after this {self.stops_after}; Ctrl-C again stops at once", file=sys.stderr, flush=True
                )
            self.interrupted = self.interrupted or now
        self.stop_requested = True

    def abort(self, message: str) -> None:
        """Say why and end every rank at once, with status 1."""
        sys.stdout.flush()
        print(message, file=sys.stderr, flush=True)
        if self.size > 1:
            with suppress(OSError):
                wait_until_read(STDERR)
            self.comm.Abort(1)
        os._exit(1)


def wait_until_read(file: int, limit: float = 5.0, pause: float = 0.5) -> None:
    """Wait until the launcher has read what was printed and passed it on. Local.

    MPICH's launcher ends at an Abort without a look at its pipes: on a busy machine one message in twenty was lost.

    Args:
        file: descriptor; what is no pipe is not waited for.
        limit: seconds at most until all is read.
        pause: seconds then, in which the launcher passes it on.
    """
    if not stat.S_ISFIFO(os.fstat(file).st_mode):
        return
    deadline = time.monotonic() + limit
    while int.from_bytes(fcntl.ioctl(file, termios.FIONREAD, bytes(4)), sys.byteorder):
        if time.monotonic() > deadline:
            return
        time.sleep(0.01)
    time.sleep(pause)
