"""How a run is watched: lines on a terminal or in a log file, a bar, or nothing; and a callback after every level."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

Preview = Callable[[], np.ndarray]
OnLevel = Callable[[int, int, Preview], Any]


class CallbackFailed(Exception):
    """A callback failed; all ranks raise it. ``error`` is what it raised, or on other ranks that it did."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class View(Protocol):
    """What rank 0 shows of a run."""

    def say(self, text: str) -> None:
        """Show a line that stays."""

    def show(self, line: str, done: int, total: int) -> None:
        """Show how far the run is.

        Args:
            done, total: Evaluations and decoded windows, done and in all.
        """

    def end(self, text: str) -> None:
        """The last line; empty where there is none."""


class Lines:
    """One line that is written over on a terminal; elsewhere a line every ten seconds."""

    def __init__(self) -> None:
        self.shown = 0.0

    def say(self, text: str) -> None:
        with suppress(OSError):  # nobody listens: no reason to end a run
            print(text, flush=True)

    def show(self, line: str, done: int, total: int) -> None:
        terminal, now = sys.stdout.isatty(), time.monotonic()
        if now - self.shown <= (0.2 if terminal else 10) and done < total:
            return
        self.shown = now
        with suppress(OSError):
            print(f"\r{line:<78}" if terminal else line, end="" if terminal else "\n", flush=True)

    def end(self, text: str) -> None:
        if text or sys.stdout.isatty():
            self.say(("\n" if sys.stdout.isatty() else "") + text)


class Silent:
    """Shows nothing."""

    def say(self, text: str) -> None:
        pass

    def show(self, line: str, done: int, total: int) -> None:
        pass

    def end(self, text: str) -> None:
        pass


class Bar(Silent):
    """A tqdm bar, in a notebook a widget, and no lines."""

    def __init__(self) -> None:
        self.bar: Any = None

    def show(self, line: str, done: int, total: int) -> None:
        if self.bar is None:
            from tqdm.auto import tqdm

            self.bar = tqdm(total=total, unit=" windows", smoothing=0.1)
        self.bar.total = max(total, done)
        self.bar.set_description_str(line.split("  ")[0], refresh=False)
        self.bar.update(done - self.bar.n)

    def end(self, text: str) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


@dataclass(frozen=True)
class Watch:
    """How a run is watched.

    Args:
        view: What rank 0 shows.
        on_level: Called on every rank after every level of the image, as ``on_level(level, levels, preview)``; true
            stops the run.
    """

    view: View = field(default_factory=Lines)
    on_level: OnLevel | None = None

    def without_callback(self) -> Watch:
        """The same for the label stage, whose levels are not the image's."""
        return replace(self, on_level=None)
