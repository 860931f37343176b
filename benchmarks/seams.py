"""``python -m benchmarks.seams OUT.zarr``: do the engine's lines show in the image?

For every kind of line that the engine draws (windows of the last levels, shards, windows of the decoder, the
latents' lattice) the mean absolute difference of the pixels across the line, over the same two to six pixels to
either side of it, where the same tissue is but no line: 1 where nothing shows. Neighbours, not the whole image,
because one line's tissue differs from another's by more than a seam does.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import report
from engine.models.card import read_card
from engine.planning.cover import RandomCover, cover_of
from engine.planning.decode_cover import decode_cover
from engine.planning.geometry import Box
from engine.storage.output import Output

LAST_LEVELS = 5


def across(image: np.ndarray, axis: int) -> np.ndarray:
    """float64 (n + 1,): mean absolute difference across every line of an axis; NaN at the image's edge.

    Args:
        image: (c, h, w).
        axis: 0 for lines between rows, 1 for lines between columns.
    """
    values = np.moveaxis(image.astype(np.float32), 1 + axis, 0)
    steps = np.abs(np.diff(values, axis=0)).mean((1, 2))
    return np.concatenate([[np.nan], steps, [np.nan]])


def seam_ratio(image: np.ndarray, lines: tuple[Iterable[int], Iterable[int]]) -> tuple[float, float]:
    """Mean over the lines of (difference across the line / across its neighbours), and that mean's standard error.

    The error is what lines anywhere else would give: the spread over all other lines, over the root of how many.

    Args:
        lines: rows y (between y - 1 and y), and columns x.
    """
    on, elsewhere = [], []
    for axis in (0, 1):
        steps = across(image, axis)
        beside = np.nanmean(np.stack([shifted(steps, d) for d in (*range(-6, -1), *range(2, 7))]), 0)
        ratio = steps / beside
        inner = np.array(sorted({int(v) for v in lines[axis] if 0 < v < len(steps) - 1}), int)
        on.append(ratio[inner])
        elsewhere.append(np.delete(ratio, [0, len(steps) - 1, *inner]))
    if not sum(map(len, on)):
        return float("nan"), float("nan")
    every = np.concatenate(on)
    return float(every.mean()), float(np.concatenate(elsewhere).std() / len(every) ** 0.5)


def shifted(steps: np.ndarray, by: int) -> np.ndarray:
    """The values ``by`` places on; NaN beyond the ends."""
    out = np.full_like(steps, np.nan)
    if by > 0:
        out[:-by] = steps[by:]
    else:
        out[-by:] = steps[:by]
    return out


def lines_of(job: dict[str, Any], levels: int) -> dict[str, tuple[list[int], list[int]]]:
    """The lines, in pixels, that the engine drew for a job."""
    card = read_card(job["model"])
    f, patch = card.factor, card.patch
    height, width = job["size"]
    shape = (max(-(-height // f), patch), max(-(-width // f), patch))
    windows: tuple[list[int], list[int]] = ([], [])
    for level in range(max(levels - LAST_LEVELS, 0), levels):
        cover = cover_of(
            job["cover"], shape, patch, job["seed"], level, stride=job["stride"] or patch, weights=job["weights"]
        )
        for axis in (0, 1):
            ids = np.arange(len(cover))
            edges = (
                cover.corners(ids)[:, axis] if isinstance(cover, RandomCover) else cover.core(ids)[:, [axis, axis + 2]]
            )
            windows[axis].extend((edges.ravel() * f).tolist())
    decode = decode_cover(shape, patch, job["decode_overlap"])
    lattice = [np.stack(line.cores(np.arange(line.count)), 1) * f for line in (decode.rows, decode.columns)]
    return {
        f"windows of the last {LAST_LEVELS} levels": windows,
        "windows of a fixed lattice": (list(range(0, height, patch * f)), list(range(0, width, patch * f))),
        "windows of the decoder": (lattice[0].ravel().tolist(), lattice[1].ravel().tolist()),
        "shards": (list(range(0, height, job["shard"])), list(range(0, width, job["shard"]))),
        "latents": (list(range(0, height, f)), list(range(0, width, f))),
    }


def measure(path: Path) -> list[dict[str, Any]]:
    """The statistic of every kind of line of a finished output."""
    output = Output(path)
    job, levels = output.provenance["job"], output.provenance["levels"]
    image = output.read("0", Box(0, 0, *output.layout.size))
    rows = []
    for kind, lines in lines_of(job, levels).items():
        count = sum(len({v for v in axis if v > 0}) for axis in lines)
        ratio, error = seam_ratio(image, lines)
        rows.append({"lines": kind, "count": count, "ratio": ratio, "error": error})
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    top = argparse.ArgumentParser(prog="python -m benchmarks.seams", description=__doc__)
    top.add_argument("out", type=Path, help="a finished output of engine.sample")
    top.add_argument("--json", help="write the report here")
    args = top.parse_args(arguments)
    report("seams", measure(args.out), args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
