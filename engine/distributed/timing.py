"""Where a rank's time goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

KINDS = ("plan", "evaluate", "decode", "exchange", "fuse", "store", "wait", "other")


@dataclass(frozen=True)
class Lap:
    """What one rank did in one phase of a run.

    Args:
        seconds: Of each kind, in the order of ``KINDS``.
        evaluations: Number of evaluations that the rank made.
        planned: Number of evaluations that all ranks were to make.
    """

    seconds: tuple[float, ...] = (0.0,) * len(KINDS)
    evaluations: int = 0
    planned: int = 0

    def __add__(self, other: Lap) -> Lap:
        seconds = tuple(a + b for a, b in zip(self.seconds, other.seconds, strict=True))
        return Lap(seconds, self.evaluations + other.evaluations, self.planned + other.planned)


class Timer:
    """Seconds of each kind of work; nested work counts for the innermost kind alone. Laps tell them phase by phase.

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
        self.begin_laps()

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

    def begin_laps(self) -> None:
        """Forget the laps; the first begins now."""
        self.switch(self.kind)
        self.laps: dict[tuple[str, str], Lap] = {}
        self.lap_began = dict(self.seconds)

    def lap(self, stage: str, phase: str, evaluations: int = 0, planned: int = 0) -> None:
        """End a lap: the time since the one before belongs to this phase.

        Args:
            stage: What is sampled: the label map or the image.
            phase: Part of it, such as a level; what has laps twice is added up.
            evaluations: Number of evaluations that this rank made in it.
            planned: Number of evaluations that all ranks were to make in it.
        """
        self.switch(self.kind)
        spent = tuple(self.seconds[kind] - self.lap_began[kind] for kind in KINDS)
        self.lap_began = dict(self.seconds)
        self.laps[stage, phase] = self.laps.get((stage, phase), Lap()) + Lap(spent, evaluations, planned)
