"""The curve of a training: its figures by step."""

from __future__ import annotations

import json
from pathlib import Path


def draw_curve(log: Path, picture: Path) -> None:
    """Draw the figures of a ``training.jsonl``, each smoothed as it was shown, where matplotlib is installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    records = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    names = [name for name in (records[-1] if records else {}) if name not in ("step", "seconds")]
    if not names:
        return
    figure = Figure(figsize=(6, 2.2 * len(names)), layout="constrained")
    for axes, name in zip(figure.subplots(len(names), squeeze=False)[:, 0], names, strict=True):
        points = [(record["step"], record[name]) for record in records if name in record]
        axes.plot(*zip(*points, strict=True), marker="." if len(points) < 20 else None)
        axes.set_ylabel(name)
        axes.set_xlabel("step")
    figure.savefig(picture, dpi=100)
