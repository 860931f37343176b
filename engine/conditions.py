"""What a window is asked for, by position: a label map, and what it costs to ask."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.cover import Cover
from engine.geometry import Window


@dataclass(frozen=True)
class LabelMap:
    """A label for every latent; 0 is unknown: it asks for nothing, is never guided and costs nothing more.

    A window costs one evaluation for every label that occurs where its estimate is used, and one for the null
    where that is needed: for latents of label 0, and for guidance.

    Args:
        labels: unsigned integers (H, W), below 64.
        guidance: weight w in null + w (cond - null); 1 is off.
    """

    labels: np.ndarray
    guidance: float

    def present(self, cover: Cover) -> np.ndarray:
        """uint64 (windows,): bit k is set where label k occurs in the window's ``keep`` (or where it wins)."""
        bits = np.uint64(1) << self.labels.astype(np.uint64) if self.labels.size < 2**22 else None
        if cover.rows is not None and cover.columns is not None:
            lines = [self._bits(slice(int(a), int(b)), bits) for a, b in cover.rows]
            return np.array(
                [np.bitwise_or.reduce(line[a:b]) for line in lines for a, b in cover.columns.tolist()], np.uint64
            )
        if cover.winner is not None:
            found = np.zeros(len(cover), np.uint64)
            for label in np.unique(self.labels):
                found[np.unique(cover.winner[self.labels == label])] |= np.uint64(1) << np.uint64(label)
            return found
        raise AssertionError("a cover is a lattice or has winners")

    def _bits(self, rows: slice, bits: np.ndarray | None) -> np.ndarray:
        """uint64 (W,): the labels of a band of rows, by column."""
        band = bits[rows] if bits is not None else np.uint64(1) << self.labels[rows].astype(np.uint64)
        return np.bitwise_or.reduce(band, axis=0)

    def requests(self, present: int) -> list[int]:
        """The evaluations of a window whose labels are the bits of ``present``; 0 is the null, asked first.

        >>> LabelMap(np.zeros((1, 1), np.uint8), 2.0).requests(0b1011)
        [0, 1, 3]
        >>> LabelMap(np.zeros((1, 1), np.uint8), 1.0).requests(0b1010)
        [1, 3]
        """
        labels = [k for k in range(1, 64) if present >> k & 1]
        null = present & 1 or (self.guidance != 1 and labels)
        return ([0] if null else []) + labels

    def costs(self, present: np.ndarray) -> np.ndarray:
        """int64 (windows,): how many evaluations each window takes."""
        known, inverse = np.unique(present, return_inverse=True)
        return np.array([len(self.requests(int(p))) for p in known], np.int64)[inverse]

    def crop(self, window: Window) -> np.ndarray:
        return self.labels[window.y0 : window.y1, window.x0 : window.x1]


def example_labels(box: Window, step: int = 1, seed: int = 8) -> np.ndarray:
    """A drawn tissue for demonstrations: nests of carcinoma, some necrotic inside, in stroma and other tissue.

    A pure function of position on the unbounded plane, made of smooth noise.

    Args:
        box: in pixels of 0.5 um.
        step: only every ``step``-th row and column.
    Returns:
        uint8 (height / step, width / step): 0 unknown, 1 carcinoma, 2 necrosis, 3 tumour stroma, 4 other.
    """
    nests = 0.75 * _smooth_noise(box, step, 430, seed) + 0.25 * _smooth_noise(box, step, 150, seed + 1)
    region = 0.8 * _smooth_noise(box, step, 900, seed + 2) + 0.2 * _smooth_noise(box, step, 200, seed + 3)
    labels = np.where(region > 0.1, 3, 4).astype(np.uint8)
    labels[np.abs(region - 0.1) < 0.06] = 0
    labels[nests > 0.12] = 1
    labels[nests > 0.75] = 2
    return labels


def _smooth_noise(box: Window, step: int, period: int, seed: int) -> np.ndarray:
    """float32 (height, width): normal values on a lattice of ``period``, smoothly interpolated; unit-ish spread."""
    y = np.arange(box.y0, box.y1, step)
    x = np.arange(box.x0, box.x1, step)
    rows = np.arange(y[0] // period, y[-1] // period + 2)
    columns = np.arange(x[0] // period, x[-1] // period + 2)
    lattice = np.array(
        [
            [np.random.default_rng((seed, int(r) + 2**31, int(c) + 2**31)).standard_normal() for c in columns]
            for r in rows
        ]
    )

    def weights(v: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray]:
        index, f = v // period - first, (v % period) / period
        return index, f * f * f * (f * (f * 6 - 15) + 10)

    iy, wy = weights(y, int(rows[0]))
    ix, wx = weights(x, int(columns[0]))
    lines = lattice[iy] * (1 - wy)[:, None] + lattice[iy + 1] * wy[:, None]
    return (lines[:, ix] * (1 - wx) + lines[:, ix + 1] * wx).astype(np.float32)
