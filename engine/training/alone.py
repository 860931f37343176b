"""One process as its own only rank, where there is no MPI: a machine with a GPU and nothing else installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from engine.command_line import print_error
from engine.distributed.ranks import AgreedError, Ranks
from engine.distributed.timing import Timer

T = TypeVar("T")


class Alone(Ranks):
    """What ``Ranks`` is with one rank; of its verbs those that training uses."""

    def __init__(self) -> None:
        self.rank, self.size, self.local_rank, self.local_size = 0, 1, 0, 1
        self.stop_requested, self.interrupted = False, None
        self.timer = Timer()

    def any(self, flag: bool) -> bool:
        return flag


def run_alone(main: Callable[[Ranks], int]) -> int:
    """Run a program as ``engine.distributed.launch.run_main`` does, without MPI."""
    try:
        return main(Alone())
    except AgreedError as error:
        print_error(error)
        return 1
