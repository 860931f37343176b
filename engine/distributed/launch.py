"""The start and the end of a program on all ranks."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

from engine.command_line import print_error
from engine.distributed.ranks import AgreedError, Ranks

INTERRUPTED = 130  # exit status of what a signal ended at once, as shells have it after Ctrl-C
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LONGEST_CLEANING = 10.0  # seconds that rank 0 has, after a signal, before the others end it


def world() -> Ranks:
    """The ranks that were started together.

    Raises:
        ValueError: Slurm started several tasks, but each is alone.
    """
    from mpi4py import MPI

    ranks = Ranks(MPI.COMM_WORLD)
    tasks = int(os.environ.get("SLURM_NTASKS", "1") or 1)
    if ranks.size == 1 and tasks > 1:
        if os.environ.get("SLURM_PROCID", "0") != "0":
            raise SystemExit(1)  # task 0 prints the one line
        raise ValueError(
            f"SLURM_NTASKS is {tasks} but this process is alone: MPI was not joined to Slurm; "
            "start with srun --mpi=pmi2 (or --mpi=pmix, see srun --mpi=list) or with mpiexec; "
            "for one rank on purpose, unset SLURM_NTASKS"
        )
    return ranks


def ranks_of(comm: Any = None) -> Ranks:
    """The ranks of a communicator, made at the first call and kept with it. That call is collective.

    Args:
        comm: mpi4py communicator; None: all ranks that were started together.
    Raises:
        ValueError: as ``world`` does.
    """
    from mpi4py import MPI

    whole = MPI.COMM_WORLD if comm is None else comm
    kept: Any = whole.Get_attr(kept_with())
    ranks: Ranks = kept or (world() if comm is None else Ranks(comm))
    whole.Set_attr(kept_with(), ranks)
    return ranks


@cache
def kept_with() -> int:
    """The key that a communicator keeps its ``Ranks`` under."""
    from mpi4py import MPI

    return MPI.Comm.Create_keyval()


def run_main(main: Callable[[Ranks], int], goes_on: bool = False) -> int:
    """Run a program on all ranks. Rank 0 prints an agreed error once; any other error of one rank ends all of them.

    Args:
        goes_on: Whether the program goes on from a checkpoint when it is started again: it catches signals itself.
            Any other cleans up when it is asked to end, and ends.
    Returns:
        The exit status: what ``main`` returns, or 1 after an agreed error. ``sys.exit`` inside ``main`` counts as an
        error of that rank, if there are others.
    """
    try:
        ranks = world()
    except ValueError as error:
        print_error(error)
        return 1
    try:
        with nullcontext() if goes_on else interruptible():
            status = main(ranks)
            ranks.flush()
            return status
    except AgreedError as error:
        if ranks.rank == 0:
            print_error(error)
        ranks.barrier()
        return 1
    except KeyboardInterrupt:
        text = "interrupted" + (
            "; the same command goes on from the last checkpoint, if there is one" if goes_on else ""
        )
        if ranks.size == 1:
            logging.getLogger("asyncio").disabled = True  # of zarr's, that its tasks were interrupted too
            print(text, file=sys.stderr, flush=True)
            return INTERRUPTED
        if ranks.rank:
            time.sleep(LONGEST_CLEANING)  # rank 0 has what is to be cleaned up, and ends all
        ranks.abort(text)
        raise
    except BaseException as error:
        if ranks.size == 1:
            raise
        text = "".join(traceback.format_exception(error))
        if type(error).__name__ == "OutOfMemoryError":
            text = f"out of GPU memory: {str(error).splitlines()[0]}; use a smaller --batch-size"
        ranks.abort(f"rank {ranks.rank} of {ranks.size} failed, ending all:\n{text}")
        raise


@contextmanager
def interruptible() -> Iterator[None]:
    """While this lasts, Ctrl-C, TERM and HUP raise ``KeyboardInterrupt``, once: what comes next is cleaning up. Local.

    Signals that are ignored stay so, as ``nohup`` has it. Only the main thread can catch signals; elsewhere nothing
    is changed.
    """
    caught = [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]
    if threading.current_thread() is not threading.main_thread():
        caught = []

    def interrupt(number: int, frame: object) -> None:
        for one in caught:
            signal.signal(one, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in caught}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
