"""``python -m benchmarks.evaluations [MAP.png ...]``: how often is the network asked, ours against the published?

Integers only: no network runs. For every label map, and for the drawn one at rising sizes, the evaluations of one
level (mean of a few) of

- DiffInfinite: its random windows, each asked for every label in it: once for unknown, else twice (label, null);
- Large-Image-Diffusion: windows every quarter of a window, each asked twice;
- ours: the shifted cover, the null shared, labels only where a window's estimate is used.

DiffInfinite's windows are drawn one after another over the whole canvas: beyond ``--drawn`` px they are left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import report
from engine.diffusion.conditions import LabelMap
from engine.inputs.example import example_labels
from engine.planning.cover import random, shifted, windows_of
from engine.planning.geometry import Box
from engine.storage.readers import read_integers

FACTOR, PATCH = 8, 64  # of both systems' latents: 512 px and 256 px windows differ in pixels, not in what is counted
LEVELS = 5  # that the mean is taken over


def ours(labels: np.ndarray, guidance: float = 4.0) -> tuple[float, float]:
    """Windows and evaluations a level."""
    condition = LabelMap(guidance, labels)
    covers = [shifted(labels.shape, PATCH, 0, level) for level in range(LEVELS)]  # type: ignore[arg-type]
    costs = [int(condition.costs(condition.label_bits(cover, np.arange(len(cover)))).sum()) for cover in covers]
    return float(np.mean([len(c) for c in covers])), float(np.mean(costs))


def diffinfinite(labels: np.ndarray) -> tuple[float, float]:
    """Windows and evaluations a level, as its code makes them."""
    windows, evaluations = [], []
    for level in range(LEVELS):
        cover = random(labels.shape, PATCH, 0, level)  # type: ignore[arg-type]
        asked = 0
        for y0, x0, y1, x1 in windows_of(cover, np.arange(len(cover))).tolist():
            asked += sum(1 if label == 0 else 2 for label in np.unique(labels[y0:y1, x0:x1]))
        windows.append(len(cover))
        evaluations.append(asked)
    return float(np.mean(windows)), float(np.mean(evaluations))


def large_image_diffusion(shape: tuple[int, int]) -> int:
    """Evaluations a level, as its code makes them."""
    rows, columns = ((n - PATCH) // (PATCH // 4) + 1 for n in shape)
    return 2 * rows * columns


def drawn_map(side_px: int) -> np.ndarray:
    """The drawn example map at latent resolution, made in bands."""
    side = side_px // FACTOR
    labels = np.empty((side, side), np.uint8)
    for y in range(0, side, 256):
        rows = min(256, side - y)
        labels[y : y + rows] = example_labels(Box(y * FACTOR, 0, (y + rows) * FACTOR, side_px), FACTOR)
    return labels


def row_of(name: str, labels: np.ndarray, draw: bool) -> dict[str, Any]:
    windows, evaluations = ours(labels)
    row: dict[str, Any] = {
        "map": name,
        "px": f"{labels.shape[0] * FACTOR} x {labels.shape[1] * FACTOR}",
        "ours": round(evaluations, 1),
        "windows / (area / patch area)": windows * PATCH**2 / labels.size,
        "Large-Image-Diffusion": large_image_diffusion(labels.shape),  # type: ignore[arg-type]
        "DiffInfinite": "",
        "ours / DiffInfinite": "",
    }
    if draw:
        _, theirs = diffinfinite(labels)
        row |= {"DiffInfinite": round(theirs, 1), "ours / DiffInfinite": evaluations / theirs}
    return row


def main(arguments: Sequence[str] | None = None) -> int:
    top = argparse.ArgumentParser(prog="python -m benchmarks.evaluations", description=__doc__)
    top.add_argument("maps", nargs="*", type=Path, help="label maps: PNG, TIFF, .npy or Zarr")
    top.add_argument("--sizes", default="1024,2048,4096,8192,16384,32768,65536,131072", help="px of the drawn map")
    top.add_argument("--drawn", type=int, default=8192, help="largest drawn map with DiffInfinite's windows, px")
    top.add_argument("--json", help="write the report there too")
    args = top.parse_args(arguments)
    rows = []
    for path in args.maps:
        labels = np.asarray(read_integers(path, "MAP"))[::FACTOR, ::FACTOR]
        if labels.max() > 63:  # stored as round(label / 4 * 255)
            labels = np.round(labels / 255 * 4)
        rows.append(row_of(path.name, labels.astype(np.uint8), draw=True))
    for size in map(int, filter(None, args.sizes.split(","))):
        rows.append(row_of("drawn", drawn_map(size), draw=size <= args.drawn))
    report("evaluations", rows, args.json, levels=LEVELS, patch=PATCH, factor=FACTOR)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
