"""The only importer of mpi4py: messages, agreement, polite waiting, the end of all when one rank fails."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from engine.timing import Timer

T = TypeVar("T")
STOPPED = 75  # exit status of a run that was asked to stop and left a checkpoint
LARGEST_MESSAGE = 2**28  # elements: MPI counts are 32-bit integers on many sites


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

    # ---- waiting and agreeing -------------------------------------------------------------------

    def _wait(self, requests: list) -> None:
        """Wait without burning a core: sleeps of 0.1 ms growing to 20 ms between polls."""
        from mpi4py import MPI

        pause = 1e-4
        with self.timer("wait"):
            while not MPI.Request.Testall(requests):
                time.sleep(pause)
                pause = min(pause * 1.5, 0.02)

    def barrier(self) -> None:
        """Collective."""
        if self.size > 1:
            self._wait([self.comm.Ibarrier()])

    def share(self, value: T, root: int = 0) -> T:
        """The root's value, on every rank. Collective."""
        if self.size == 1:
            return value
        self.barrier()
        return self.comm.bcast(value, root=root)

    def collect(self, value: T) -> list[T]:
        """Every rank's value, on every rank, in order of rank. Collective."""
        if self.size == 1:
            return [value]
        self.barrier()
        return self.comm.allgather(value)

    def any(self, flag: bool) -> bool:
        """Whether the flag is up on any rank. Collective."""
        return any(self.collect(bool(flag)))

    def sum_(self, array: np.ndarray) -> None:
        """Sum an array over the ranks, in place. Collective."""
        if self.size > 1:
            from mpi4py import MPI

            self.barrier()
            self.comm.Allreduce(MPI.IN_PLACE, array, op=MPI.SUM)

    def agree(self, work: Callable[[], T]) -> T:
        """Run local work that may fail; if it fails on any rank, all raise the same ``AgreedError``. Collective.

        Only errors of the user's and the machine's making are caught (ValueError, OSError, MemoryError).
        """
        result, problem = None, ""
        try:
            result = work()
        except (ValueError, OSError, MemoryError) as error:
            problem = describe(error)
        problems = [(rank, text) for rank, text in enumerate(self.collect(problem)) if text]
        if problems:
            rank, text = problems[0]
            raise AgreedError(text if self.size == 1 or rank == 0 else f"{text} (rank {rank})")
        return result  # type: ignore[return-value]

    def on_root(self, work: Callable[[], T]) -> T:
        """Run work on rank 0 and share its result; its error becomes everybody's. Collective."""
        return self.share(self.agree(lambda: work() if self.rank == 0 else None))  # type: ignore[return-value]

    # ---- messages -------------------------------------------------------------------------------

    def exchange(
        self, sends: Sequence[tuple[int, np.ndarray]], receives: Sequence[tuple[int, tuple[int, ...]]]
    ) -> list[np.ndarray]:
        """Send float32 arrays and receive others, packed into one message a pair of ranks.

        Collective over the ranks that share a piece: the pieces between two ranks are listed in the same order
        on both sides.

        Args:
            sends: (target rank, array).
            receives: (source rank, shape).
        Returns:
            The arrays received, in the order of ``receives``.
        """
        targets: dict[int, list[np.ndarray]] = {}
        for target, array in sends:
            targets.setdefault(target, []).append(array)
        totals: dict[int, int] = {}
        for source, shape in receives:
            totals[source] = totals.get(source, 0) + int(np.prod(shape))
        incoming = {source: np.empty(total, np.float32) for source, total in totals.items() if source != self.rank}
        outgoing = {
            target: np.concatenate([np.ravel(a) for a in arrays])
            for target, arrays in targets.items()
            if target != self.rank
        }
        requests = [
            self.comm.Irecv(part, source=source) for source, buffer in incoming.items() for part in _parts(buffer)
        ]
        requests += [
            self.comm.Isend(part, dest=target) for target, buffer in outgoing.items() for part in _parts(buffer)
        ]
        if requests:
            self._wait(requests)
        own = iter(targets.get(self.rank, []))
        used = dict.fromkeys(incoming, 0)
        result = []
        for source, shape in receives:
            if source == self.rank:
                result.append(next(own))
                continue
            start = used[source]
            used[source] += int(np.prod(shape))
            result.append(incoming[source][start : used[source]].reshape(shape))
        return result

    # ---- ends -----------------------------------------------------------------------------------

    def catch_signals(self) -> None:
        """USR1 and TERM ask for a checkpoint and a stop; the flag is read once a level."""

        def on_signal(number: int, frame: object) -> None:
            self.stop_requested = True

        for number in (signal.SIGUSR1, signal.SIGTERM):
            signal.signal(number, on_signal)

    def stopping(self) -> bool:
        """Whether any rank was asked to stop. Collective."""
        return self.any(self.stop_requested)

    def abort(self, message: str) -> None:
        """Say why and end every rank at once, with status 1."""
        sys.stdout.flush()
        print(message, file=sys.stderr, flush=True)
        if self.size > 1:
            self.comm.Abort(1)
        os._exit(1)


def _parts(buffer: np.ndarray) -> list[np.ndarray]:
    return [buffer[i : i + LARGEST_MESSAGE] for i in range(0, len(buffer), LARGEST_MESSAGE)]


def describe(error: BaseException) -> str:
    """One line for a user: what the error says, with the file it is about."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        way = "; make room, then give the same command again" if error.errno == errno.ENOSPC else ""
        return f"{where}{error.strerror}{way}"
    if isinstance(error, MemoryError):
        return f"out of memory: {error}" if str(error) else "out of memory"
    return str(error)


def launched_rank() -> int:
    """This process's rank as its launcher tells it, without MPI."""
    names = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")
    return next((int(os.environ[n]) for n in names if os.environ.get(n, "").isdigit()), 0)


def world() -> Ranks:
    """All ranks that were started together.

    Raises:
        ValueError: Slurm started several tasks, but each is alone.
    """
    from mpi4py import MPI

    ranks = Ranks(MPI.COMM_WORLD)
    tasks = int(os.environ.get("SLURM_NTASKS", "1") or 1)
    if ranks.size == 1 and tasks > 1:
        if os.environ.get("SLURM_PROCID", "0") != "0":
            raise SystemExit(1)  # one line is enough: task 0 says it
        raise ValueError(
            f"SLURM_NTASKS is {tasks} but this process is alone: MPI was not joined to Slurm; "
            "start with srun --mpi=pmi2 (or --mpi=pmix, see srun --mpi=list) or with mpiexec; "
            "for one rank on purpose, unset SLURM_NTASKS"
        )
    return ranks


def run_main(main: Callable[[Ranks], int]) -> int:
    """Run a program on all ranks: agreed errors are printed once by rank 0; any other end of one rank ends all.

    Returns:
        The exit status: what ``main`` returns, 1 on an agreed error. ``sys.exit`` inside ``main`` counts as a failure
        of that rank where there are others.
    """
    try:
        ranks = world()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    try:
        return main(ranks)
    except AgreedError as error:
        if ranks.rank == 0:
            print(f"error: {error}", file=sys.stderr, flush=True)
        ranks.barrier()
        return 1
    except BaseException as error:
        if ranks.size == 1:
            raise
        text = "".join(traceback.format_exception(error))
        if type(error).__name__ == "OutOfMemoryError":
            text = f"out of GPU memory: {str(error).splitlines()[0]}; use a smaller --batch-size"
        ranks.abort(f"rank {ranks.rank} of {ranks.size} failed, ending all:\n{text}")
        raise
