"""Where the time of an output went, by rank and by phase of the runs that made it: a small file beside the ledger.

Its file is::

    OUT/slidefield/times.json     a list of runs, with a checksum; no byte of the image and no resume depends on it
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from engine.storage.files import read_signed, write_signed

MOST_RUNS = 50  # that are kept, the newest ones


def times_file(path: Path) -> Path:
    return path / "slidefield" / "times.json"


def keep_times(path: Path, run: dict[str, Any]) -> None:
    """Add the times of a run to those of earlier ones. Rank 0 calls this; times are not worth ending a run for.

    Args:
        path: The output's folder.
        run: JSON values, as ``engine.pipeline.run_times`` gathers them.
    """
    with suppress(OSError):
        write_signed(times_file(path), {"runs": [*kept_times(path), run][-MOST_RUNS:]})


def join_times(path: Path, others: Iterable[Path]) -> None:
    """Keep the times of several outputs, the oldest first, as those of one: a plane's and its newest request's."""
    with suppress(OSError):
        write_signed(times_file(path), {"runs": [run for other in others for run in kept_times(other)][-MOST_RUNS:]})


def kept_times(path: Path) -> list[dict[str, Any]]:
    """Read the times of the runs that made an output, the oldest first; empty: none were kept, or they are damaged."""
    try:
        return list(read_signed(times_file(path))["runs"])
    except (OSError, ValueError, LookupError, TypeError):
        return []
