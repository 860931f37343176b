"""A drawn label map for demonstrations, on the unbounded plane."""

from __future__ import annotations

import numpy as np

from engine.planning.geometry import Box


def example_labels(box: Box, step: int = 1, seed: int = 8) -> np.ndarray:
    """A drawn tissue for demonstrations: nests of carcinoma, some necrotic inside, in stroma and other tissue.

    A pure function of position on the unbounded plane, made of smooth noise.

    Args:
        box: Box in pixels of 0.5 um.
        step: Distance of the rows and columns that are wanted, from the box's corner.
        seed: Seed of the noise that tissue is drawn from.
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


def _smooth_noise(box: Box, step: int, period: int, seed: int) -> np.ndarray:
    """float32 (height, width): normal values on a lattice of ``period`` px, smoothly interpolated; std about 1."""
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
