"""Rows of the table of nuclei: one for each run of pixels of one id, merged into one for all that belong together."""

from __future__ import annotations

import numpy as np

from engine.inputs.nuclei import MERGE, ROW
from engine.planning.geometry import Box


def rows_of_runs(ids: np.ndarray, starts: np.ndarray, image: int, box: Box) -> np.ndarray:
    """A row for every run, without its colour.

    Args:
        ids: The box of the map of an image.
        starts: Flat index of the first pixel of each run.
    """
    y, x = np.divmod(starts, box.width)
    rows = np.zeros(len(starts), ROW)
    rows["key"] = ids.ravel()[starts]
    rows["key"] |= np.uint64(image) << np.uint64(32)
    rows["area"] = np.diff(starts, append=ids.size)
    rows["y0"], rows["x0"] = y + box.y0, x + box.x0
    rows["y1"], rows["x1"] = rows["y0"] + 1, rows["x0"] + rows["area"]
    rows["sum_y"] = rows["y0"] * rows["area"]
    rows["sum_x"] = (rows["x0"] + rows["x1"] - 1) * rows["area"] // 2
    return rows


def merged(rows: np.ndarray, by: np.ndarray) -> np.ndarray:
    """One row for each value of ``by``, in ascending order."""
    if not len(rows):
        return rows
    order = np.argsort(by, kind="stable")
    rows, by = rows[order], by[order]
    first = np.flatnonzero(np.concatenate([[True], by[1:] != by[:-1]]))
    total = rows[first]
    for name, how in MERGE.items():
        total[name] = how.reduceat(rows[name], first)
    return total
