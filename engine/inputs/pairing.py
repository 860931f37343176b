"""Which reference the nuclei of each map are coloured from: its own, any, or one with nuclei much like its own."""

from __future__ import annotations

import numpy as np

NEAREST = 20  # maps, itself among them, of whose images one is drawn
CLIPPED = 0.85  # quantile of the differences beyond which they are all the same


def paired(way: str, seed: int, areas: list[np.ndarray]) -> tuple[int, ...]:
    """The number of the reference of each map.

    With seed 42 ``shuffled`` is the pairing that the nuclei system publishes; its own ``matched`` is not seeded.

    Args:
        way: "own", "shuffled" or "matched".
        seed: Seed of numpy's older generator, below 2^32; larger ones are taken in two words.
        areas: Of each map the areas of its nuclei, px.

    >>> paired("own", 0, [np.array([3]), np.array([4])])
    (0, 1)
    """
    draw = np.random.RandomState(seed if seed < 2**32 else [seed % 2**32, seed // 2**32])
    if way == "own":
        return tuple(range(len(areas)))
    if way == "shuffled":
        return tuple(draw.choice(len(areas), len(areas), replace=False).tolist())
    total = np.array([a.sum() for a in areas], np.float64)
    median = np.array([np.median(a) if len(a) else 0 for a in areas], np.float64)
    return tuple(int(draw.choice(nearest(index, total, median))) for index in range(len(areas)))


def nearest(index: int, total: np.ndarray, median: np.ndarray) -> list[int]:
    """The maps whose nuclei are most like those of one map, which is not among them.

    Args:
        total: float64 (maps,), area of all nuclei of each map.
        median: float64 (maps,), median of their areas.
    """
    unlikeness = sum(0.5 * scaled(np.abs(values - values[index])) for values in (median, total))
    order = np.argsort(unlikeness, kind="stable")[:NEAREST].tolist()
    return [other for other in order if other != index] if index in order else order[:-1]


def scaled(differences: np.ndarray) -> np.ndarray:
    """Differences, clipped at their ``CLIPPED`` quantile, from 0 (the least) to 1 (the greatest)."""
    clipped = np.minimum(differences, np.quantile(differences, CLIPPED))
    return (clipped - clipped.min()) / (np.ptp(clipped) or 1)
