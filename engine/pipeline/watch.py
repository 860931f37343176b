"""How a run is watched: lines on a terminal or in a log file, a bar, or nothing; and a callback after every level."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, repeat
from typing import Any, Protocol

import numpy as np

from engine.command_line import as_flags
from engine.distributed.ranks import RaisedTogether

Preview = Callable[[], np.ndarray]
OnLevel = Callable[[int, int, Preview], Any]


class CallbackFailed(RaisedTogether):
    """A callback failed. ``error`` is the callback's own where it failed, and a RuntimeError on the other ranks."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(frozen=True)
class State:
    """How far a job is.

    Args:
        text: What is going on, such as ``level 3/25``.
        share: Of the job's time, in [0, 1]; what earlier runs did counts.
        gone, left: Seconds of this run, and seconds to go.
        rates: Evaluations a second of all ranks, megapixels a second of the whole job; those that are known.
        memory: Most bytes that any rank has held; 0 where unknown.
    """

    text: str
    share: float
    gone: float
    left: float
    rates: Mapping[str, float] = field(default_factory=dict)
    memory: int = 0

    def figures(self) -> str:
        """Rates and memory, for people."""
        rates = [f"{rate:.3g} {unit}" for unit, rate in self.rates.items()]
        return ", ".join([*rates, *([f"{self.memory / 2**30:.2f} GiB a rank"] if self.memory else [])])

    def line(self) -> str:
        """All of it in one line.

        >>> print(State("level 3/25", 0.12, 40, 260, {"evaluations/s": 31.4}, 2**30).line())
        level 3/25   12 %  0:40 gone, 4:20 to go  31.4 evaluations/s, 1.00 GiB a rank
        """
        clocks = f"{clock(self.gone)} gone, {clock(self.left)} to go"
        return f"{self.text}  {100 * self.share:3.0f} %  {clocks}  {self.figures()}".rstrip()


class View(Protocol):
    """What rank 0 shows of a run. A thread of its own calls ``show``."""

    def pauses(self) -> Iterator[float]:
        """Seconds to wait before each ``show``, without end; empty: it is never called."""

    def say(self, text: str) -> None:
        """Show a line that stays."""

    def show(self, state: State) -> None:
        """Show how far the run is."""

    def end(self, state: State) -> None:
        """Show how far the run came."""


class Silent:
    """Shows nothing."""

    def pauses(self) -> Iterator[float]:
        return iter(())

    def say(self, text: str) -> None:
        pass

    def show(self, state: State) -> None:
        pass

    def end(self, state: State) -> None:
        pass


class Lines(Silent):
    """A line every 30 seconds, at first sooner, whatever else is being done: for files and pipes."""

    def pauses(self) -> Iterator[float]:
        return chain((3, 7, 20), repeat(30))

    def say(self, text: str) -> None:
        with suppress(OSError):  # nobody listens: no reason to end a run
            print(as_flags(text), flush=True)

    def show(self, state: State) -> None:
        self.say(state.line())


class Bar(Silent):
    """A tqdm bar, in a notebook a widget, and no lines."""

    def __init__(self) -> None:
        self.bar: Any = None

    def pauses(self) -> Iterator[float]:
        return repeat(0.5)

    def show(self, state: State) -> None:
        if self.bar is None:
            from tqdm.auto import tqdm

            self.bar = tqdm(total=100, leave=False, dynamic_ncols=True)
        clocks = f"{clock(state.gone)} gone, {clock(state.left)} to go"
        self.bar.set_description_str(state.text, refresh=False)
        figures = "  ".join((clocks, state.figures())).replace("{", "{{").replace("}", "}}")
        self.bar.bar_format = "{desc} {percentage:3.0f} %|{bar}| " + figures  # tqdm puts a comma before a postfix
        self.bar.n = 100 * state.share
        self.bar.refresh()

    def end(self, state: State) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


class BarAndLines(Bar):
    """A bar, and lines above it that stay: for terminals."""

    def say(self, text: str) -> None:
        from tqdm.auto import tqdm

        with suppress(OSError):
            tqdm.write(as_flags(text), file=sys.stdout)
            sys.stdout.flush()


def view_of_command() -> View:
    """A bar where standard error is a terminal, else lines."""
    return BarAndLines() if sys.stderr.isatty() else Lines()


@dataclass(frozen=True)
class Watch:
    """How a run is watched.

    Args:
        view: What rank 0 shows.
        on_level: Called on every rank after every level of the image, as ``on_level(level, levels, preview)``; true
            stops the run.
    """

    view: View = field(default_factory=view_of_command)
    on_level: OnLevel | None = None


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss.

    >>> clock(59.6), clock(3725)
    ('1:00', '1:02:05')
    """
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
