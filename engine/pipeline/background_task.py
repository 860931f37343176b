"""Work in the background: files are written in a thread while the network evaluates."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from engine.distributed.ranks import Ranks


class BackgroundTask:
    """One piece of work at a time, in a thread of its own.

    What goes wrong there is kept, and raised by ``check`` where all ranks can agree on it.
    """

    def __init__(self, ranks: Ranks, name: str) -> None:
        self.ranks = ranks
        self.pool = ThreadPoolExecutor(1, name)
        self.work: Future[None] | None = None
        self.problem: BaseException | None = None  # of earlier work

    def start(self, work: Callable[[], None]) -> None:
        """Begin with a piece of work, when the piece before is done. Local."""
        self.wait()
        self.work = self.pool.submit(work)

    def done(self) -> bool:
        """Whether nothing is being done. Local."""
        return self.work is None or self.work.done()

    def wait(self) -> None:
        """Wait until the work is done, or has failed. Local."""
        if self.work is not None:
            with self.ranks.timer("store"):
                self.ranks.wait_until(self.work.done)
            self.problem = self.problem or self.work.exception()
            self.work = None

    def check(self) -> None:
        """Raise the first problem of the work that is done. Local."""
        if self.problem is not None:
            raise self.problem
        if self.work is not None and self.work.done():
            self.work.result()
