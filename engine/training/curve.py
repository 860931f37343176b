"""The curve of a training: its figures by step."""

from __future__ import annotations

import json
from pathlib import Path

HELD = " held out"  # ends the name of a figure that is of windows held out


def draw_curve(log: Path, picture: Path) -> None:
    """Draw the figures of a ``training.jsonl``, where matplotlib is installed: running means, and over them what they
    are of windows held out.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    records = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    known = list(dict.fromkeys(name for record in records for name in record if name not in ("step", "seconds")))
    names = [name for name in known if name.removesuffix(HELD) == name or name.removesuffix(HELD) not in known]
    if not names:
        return
    figure = Figure(figsize=(6, 2.2 * len(names)), layout="constrained")
    for axes, name in zip(figure.subplots(len(names), squeeze=False)[:, 0], names, strict=True):
        for shown, style in ((name, "-"), (name + HELD, "o--")):
            points = [(record["step"], record[shown]) for record in records if shown in record]
            if points:
                axes.plot(*zip(*points, strict=True), style, label=shown, marker="." if len(points) < 20 else None)
        if name + HELD in known:
            axes.legend()
        axes.set_ylabel(name)
        axes.set_xlabel("step")
    figure.savefig(picture, dpi=100)
