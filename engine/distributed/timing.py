"""Where a rank's time goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

KINDS = ("plan", "evaluate", "decode", "exchange", "fuse", "store", "wait", "other")


class Timer:
    """Seconds of each kind of work; nested work counts for the innermost kind alone.

    ``plan`` works out who does what, ``evaluate`` runs the network, ``decode`` the autoencoder, ``exchange`` packs and
    starts messages, ``fuse`` averages estimates and takes the solver's step, ``store`` writes checkpoints, shards and
    pyramids, ``wait`` waits for other ranks or for a message; ``other`` is the rest.

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
        """Count time as this kind from now on; returns the kind before."""
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
