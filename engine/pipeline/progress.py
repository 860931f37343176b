"""Progress of a run: one line on rank 0 with the time left for the whole job, and a JSON-lines log."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from engine.pipeline.watch import View


class Progress:
    """One line on rank 0 with the time left for the whole job, and the JSON-lines log.

    Args:
        evaluations, decodes: Number of evaluations, and of decoded windows, that are about to be done.
        log: File that the log is appended to; None: there is none.
        view: What rank 0 shows.
    """

    def __init__(self, rank: int, evaluations: int, decodes: int, log: str | None, view: View) -> None:
        self.rank, self.start, self.view = rank, time.monotonic(), view
        self.left = {"evaluation": evaluations, "decode": decodes}
        self.spent = {"evaluation": 0.0, "decode": 0.0}
        self.done = {"evaluation": 0, "decode": 0}
        self.mark = self.start
        self.log = open(log, "a") if log and rank == 0 else None  # noqa: SIM115 - lives as long as the run

    def advance(self, kind: str, amount: int, text: str, **facts: Any) -> None:
        """Count the work that was done since the last call, show it and log it.

        Args:
            kind: ``evaluation`` or ``decode``.
            facts: Further entries of the log.
        """
        now = time.monotonic()
        self.spent[kind] += now - self.mark
        self.mark = now
        self.done[kind] += amount
        self.left[kind] = max(self.left[kind] - amount, 0)
        if self.log:
            record = {"time": time.time(), "seconds": round(now - self.start, 4), kind + "s": amount, **facts}
            try:
                self.log.write(json.dumps(record) + "\n")
                self.log.flush()
            except OSError as error:  # a log is not worth ending a run for
                print(f"warning: the JSON log ends here: {error.strerror}", file=sys.stderr, flush=True)
                self.log = None
        if self.rank == 0:
            line = f"{text}  {clock(now - self.start)} gone, {clock(self.eta())} to go"
            self.view.show(line, sum(self.done.values()), sum(self.done.values()) + sum(self.left.values()))

    def eta(self) -> float:
        """Seconds to go; until the first decode is done, one is taken to last as long as three evaluations."""
        each = {k: self.spent[k] / self.done[k] for k in self.done if self.done[k]}
        each.setdefault("decode", 3 * each.get("evaluation", 0.0))
        return sum(self.left[k] * each.get(k, 0.0) for k in self.left)

    def end(self, text: str) -> None:
        """Close the log, and say a last line."""
        if self.rank == 0:
            self.view.end(text)
        if self.log:
            self.log.close()


def log_line(log: str, **facts: Any) -> None:
    """Append one object to a JSON-lines log."""
    with open(log, "a") as stream:
        stream.write(json.dumps({"time": time.time(), **facts}) + "\n")


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss.

    >>> clock(59.6), clock(3725)
    ('1:00', '1:02:05')
    """
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
