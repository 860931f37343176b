"""Where a rank's time goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

KINDS = ("plan", "evaluate", "decode", "exchange", "fuse", "store", "wait", "other")


class Timer:
    """Seconds of each kind of work; nested work counts for the innermost kind alone.

    plan: who does what; evaluate: the network; decode: the autoencoder; exchange: packing and posting messages;
    fuse: weighted means and the solver's step; store: checkpoints, shards, pyramids; wait: for other ranks, or for
    a message; other: the rest.

    >>> timer = Timer()
    >>> with timer("evaluate"):
    ...     pass
    >>> timer.seconds["wait"]
    0.0
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(KINDS, 0.0)
        self.kind, self.mark = "other", time.perf_counter()

    def switch(self, kind: str) -> str:
        """From now on time is of this kind; returns what it was before."""
        now, before = time.perf_counter(), self.kind
        self.seconds[before] += now - self.mark
        self.kind, self.mark = kind, now
        return before

    @contextmanager
    def __call__(self, kind: str) -> Iterator[None]:
        before = self.switch(kind)
        try:
            yield
        finally:
            self.switch(before)
