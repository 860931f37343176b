"""What every benchmark's report has in common: the table, the machine, the versions, the commit."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def machine() -> dict[str, Any]:
    """Where and with what a benchmark ran."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=Path(__file__).parent
    ).stdout.strip()
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg(),  # of the last 1, 5 and 15 minutes: was anything else running?
        "python": platform.python_version(),
        "numpy": np.__version__,
        "commit": commit,
    }


def report(name: str, rows: Sequence[Mapping[str, Any]], out: str | None, **facts: Any) -> dict[str, Any]:
    """Print rows as a table and write them, with the machine, to a JSON file."""
    columns = list(rows[0])
    cells = [[format_cell(row[c]) for c in columns] for row in rows]
    widths = [max(len(c), *(len(line[i]) for line in cells)) for i, c in enumerate(columns)]
    print("  ".join(c.ljust(w) for c, w in zip(columns, widths, strict=True)))
    for line in cells:
        print("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)))
    content = {"benchmark": name, "machine": machine(), **facts, "rows": [dict(row) for row in rows]}
    if out:
        Path(out).write_text(json.dumps(content, indent=1) + "\n")
    return content


def plot_efficiency(
    rows: Sequence[Mapping[str, Any]], path: str, draw: Callable[[Any, Sequence[Mapping[str, Any]]], None]
) -> None:
    """Plot efficiency against ranks as a PNG, strong beside weak; needs matplotlib.

    Args:
        draw: draws the rows of a kind on an axis.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True)
    for axis, kind in zip(axes, ("strong", "weak"), strict=True):
        chosen = [row for row in rows if row["kind"] == kind]
        axis.set(title=f"{kind}, to {chosen[-1]['canvas px']} px", xlabel="ranks", xscale="log", ylim=(0.5, 1.05))
        draw(axis, chosen)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("efficiency")
    axes[1].legend(fontsize=8, loc="lower left")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def format_cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
