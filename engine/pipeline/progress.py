"""One clock for a whole job: what is done of its label map, levels, decoding and pyramid, how long the rest takes."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.pipeline.watch import State, View

KINDS = ("evaluation", "decode", "shard")  # of work: windows, windows, and shards of the pyramid
LABEL_MAP, IMAGE = "label map", "image"  # the stages of a job
DECODE_COST = 3.0  # evaluations that one decoded window is taken to last as long as, until one was decoded


@dataclass(frozen=True)
class Part:
    """One kind of work in one stage of a job.

    Args:
        cost: How long one unit takes compared with one of other parts, until it is measured.
        before: Units that earlier runs of the same job did.
        left: Units that are still to be done; an estimate until the stage begins.
        done: Units that this run did.
        spent: Seconds that they took.
    """

    cost: float = 0.0
    before: float = 0
    left: float = 0
    done: float = 0
    spent: float = 0.0

    def with_work(self, done: float, spent: float) -> Part:
        """The part after so many more units, which took so many seconds."""
        return Part(self.cost, self.before, max(self.left - done, 0), self.done + done, self.spent + spent)


class Progress:
    """The clock of a job, on every rank; rank 0 shows it while it runs, and writes the JSON-lines log.

    Args:
        pixels: Of the whole image or set.
        log: File that the log is appended to; None: there is none.
        view: What rank 0 shows.
    """

    def __init__(self, rank: int, pixels: int, log: str | None, view: View) -> None:
        self.rank, self.pixels, self.view = rank, pixels, view
        self.parts: dict[tuple[str, str], Part] = {}
        self.stage = IMAGE
        self.start = self.mark = time.monotonic()
        self.text, self.going_on, self.memory = "", ("", 0.0), 0
        self.log = open(log, "a") if log and rank == 0 else None  # noqa: SIM115 - lives as long as the run
        self.shown = threading.Lock()  # held while something is shown
        self.ended = threading.Event()
        self.ticker = threading.Thread(target=self._tick, daemon=True) if rank == 0 else None

    def __enter__(self) -> Progress:
        if self.ticker:
            self.ticker.start()
        return self

    def __exit__(self, *problem: object) -> None:
        self.ended.set()
        if self.ticker:
            self.ticker.join()
            self.view.end(self.state())
        if self.log:
            self.log.close()

    # ---- what is counted ------------------------------------------------------------------------

    def expect(self, kind: str, left: float, *, before: float = 0, stage: str = "", cost: float | None = None) -> None:
        """Say how much of a kind of work a stage has; again, when it is known better. Local.

        Args:
            left: Units that are still to be done.
            before: Units that earlier runs did.
            stage: ``LABEL_MAP`` or ``IMAGE``; by default the one under way.
            cost: Of one unit, see ``Part``; None: as said before.
        """
        name = stage or self.stage, kind
        part = self.parts.get(name, Part())
        cost = part.cost if cost is None else cost
        self.parts[name] = Part(cost, max(before - part.done, 0), left, part.done, part.spent)

    def begin(self, text: str) -> None:
        """Say what is going on from now on; the time until now counts for no kind of work. Local."""
        self.mark = time.monotonic()
        self.name(text)

    def name(self, text: str) -> None:
        """Say what is going on from now on. Local."""
        self.text = text if self.stage == IMAGE else f"{self.stage}: {text}"

    def within(self, kind: str, amount: float) -> None:
        """Say how much of the work that is going on is done. Local; cheap."""
        self.going_on = kind, amount

    def advance(self, kind: str, amount: float, text: str, memory: int = 0, **facts: Any) -> None:
        """Count the work that was done since the last call, and log it. Local.

        Args:
            kind: One of ``KINDS``.
            text: What is going on from now on.
            memory: Most bytes that any rank has held.
            facts: Further entries of the log.
        """
        now = time.monotonic()
        name = self.stage, kind
        self.going_on = "", 0.0
        self.parts[name] = self.parts.get(name, Part()).with_work(amount, now - self.mark)
        self.mark, self.memory = now, max(self.memory, memory)
        self.name(text)
        self.write_log(stage=self.stage, **{f"{kind}s": amount}, memory=self.memory, **facts)

    def spent(self, kind: str) -> float:
        """Seconds that this run spent on a kind of work in the stage under way. Local."""
        return self.parts.get((self.stage, kind), Part()).spent

    # ---- what is told ---------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """Show a line that stays, on rank 0. Local."""
        if self.rank == 0:
            with self.shown:
                self.view.say(text)

    def write_log(self, **facts: Any) -> None:
        """Append one object to the log, if there is one. Local."""
        if self.log:
            now = {"time": time.time(), "seconds": round(time.monotonic() - self.start, 4)}
            try:
                self.log.write(json.dumps({**now, **facts}) + "\n")
                self.log.flush()
            except OSError as error:  # a log is not worth ending a run for
                print(f"warning: the JSON log ends here: {error.strerror}", file=sys.stderr, flush=True)
                self.log = None

    def state(self) -> State:
        """How far the job is now. Local."""
        now = time.monotonic()
        parts, (kind, amount) = dict(self.parts), self.going_on
        if kind and (here := (self.stage, kind)) in parts:
            parts[here] = parts[here].with_work(amount, now - self.mark)
        each = seconds_of_each(parts)
        left = sum(part.left * each[name] for name, part in parts.items())
        if not kind:
            left = max(left - (now - self.mark), 0)
        ready = sum((part.before + part.done) * each[name] for name, part in parts.items())
        gone = now - self.start
        whole = ready + left
        rates = {}
        evaluated = parts.get((self.stage, "evaluation"), Part())
        if evaluated.done and whole:
            rates = {"evaluations/s": evaluated.done / evaluated.spent, "Mpx/s": self.pixels / 1e6 / whole}
        return State(self.text, ready / whole if whole else 0.0, gone, left, rates, self.memory)

    def _tick(self) -> None:
        """Show the state again and again, whatever the main thread is at."""
        for pause in self.view.pauses():
            if self.ended.wait(pause):
                return
            if self.text:
                with self.shown:
                    self.view.show(self.state())


def seconds_of_each(parts: Mapping[tuple[str, str], Part]) -> dict[tuple[str, str], float]:
    """Seconds of one unit of each part: as measured, or by its cost from those that were.

    >>> parts = {("image", "evaluation"): Part(cost=1, done=10, spent=5.0), ("image", "decode"): Part(cost=3, left=4)}
    >>> seconds_of_each(parts)
    {('image', 'evaluation'): 0.5, ('image', 'decode'): 1.5}
    """
    spent = sum(part.spent for part in parts.values())
    cost = sum(part.cost * part.done for part in parts.values())
    a_unit = spent / cost if cost else 0.0
    return {name: part.spent / part.done if part.done else a_unit * part.cost for name, part in parts.items()}
