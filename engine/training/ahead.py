"""Batches that are made before they are asked for, in threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

B = TypeVar("B")
T = TypeVar("T")
AHEAD = 3  # batches


def pinned(batch: B, pin: bool) -> B:
    """A tensor or a tuple of them, in memory from which a GPU takes them while it works, if ``pin``."""
    if not pin:
        return batch
    if isinstance(batch, dict):
        return {name: pinned(part, pin) for name, part in batch.items()}  # type: ignore[return-value]
    if isinstance(batch, tuple):
        parts = [pinned(part, pin) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return batch.pin_memory()  # type: ignore[attr-defined]


class Ahead(Generic[T]):
    """What a function gives for one step after the other, made before it is asked for, in threads.

    Args:
        threads: How many steps are made at the same time; ``AHEAD`` at most, which are all that is kept.
    """

    def __init__(self, make: Callable[[int], T], first: int, threads: int = 1) -> None:
        self.make, self.next = make, first
        self.pool = ThreadPoolExecutor(min(threads, AHEAD), "batches")
        self.made: deque[Future[T]] = deque()

    def take(self) -> T:
        """What comes next, and begin with one more."""
        self.begin()
        return self.made.popleft().result()

    def begin(self) -> None:
        """Have as many made as are kept."""
        while len(self.made) < AHEAD:
            self.made.append(self.pool.submit(self.make, self.next))
            self.next += 1

    def fails(self) -> bool:
        """Whether what comes next could not be made; waits for it."""
        return bool(self.made) and self.made[0].exception() is not None

    def check(self) -> None:
        """Raise the error of what comes next, if it has one; waits for it."""
        self.begin()
        self.made[0].result()

    def end(self) -> None:
        self.pool.shutdown(cancel_futures=True)
