"""Sliced Wasserstein distances between patches of a Laplacian pyramid (Karras et al. 2018, arXiv:1710.10196)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

SMALLEST = 16  # px of the coarsest level
PATCH = 7  # px
PATCHES = 96  # of a crop at each level, at most
DESCRIPTORS = 2**15  # patches of a level that a set is sampled at, about
DIRECTIONS = 128
BLOCK = 16  # directions that are projected on at a time
BINOMIAL = np.array([1, 4, 6, 4, 1], np.float32) / 16


def smoothed(image: np.ndarray) -> np.ndarray:
    """float32 (h, w, c): by a binomial filter of 5 px, mirrored at the edges."""
    for axis in (0, 1):
        padded = np.pad(image, [(2, 2) if axis == a else (0, 0) for a in range(3)], mode="reflect")  # scipy's mirror
        n = image.shape[axis]
        parts = (padded[k : k + n] if axis == 0 else padded[:, k : k + n] for k in range(5))
        image = sum(weight * part for weight, part in zip(BINOMIAL, parts, strict=True))
    return image


def enlarged(image: np.ndarray) -> np.ndarray:
    """float32 (2 h, 2 w, c): zeros between the pixels, smoothed."""
    h, w, c = image.shape
    wide = np.zeros((2 * h, 2 * w, c), np.float32)
    wide[::2, ::2] = 4 * image
    return smoothed(wide)


def level_sides(side: int) -> list[int]:
    """Sides of a pyramid's levels, px: halves, down to 16 px.

    >>> level_sides(256), level_sides(24)
    ([256, 128, 64, 32, 16], [24])
    """
    sides = [side]
    while sides[-1] % 2 == 0 and sides[-1] // 2 >= SMALLEST:
        sides.append(sides[-1] // 2)
    return sides


def pyramid(crop: np.ndarray) -> list[np.ndarray]:
    """float32 (side, side, c), finest first: what each level has and the coarser ones have not; the last is whole."""
    levels = [crop.astype(np.float32)]
    for _ in level_sides(len(crop))[1:]:
        levels.append(smoothed(levels[-1])[::2, ::2])
    return [fine - enlarged(coarse) for fine, coarse in pairwise(levels)] + levels[-1:]


def descriptors(crop: np.ndarray, count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """float32 (count, 7, 7, c) of every level: patches at random places."""
    drawn = []
    for band in pyramid(crop):
        y, x = rng.integers(0, len(band) - PATCH + 1, (2, count))
        windows = np.lib.stride_tricks.sliding_window_view(band, (PATCH, PATCH), (0, 1))
        drawn.append(np.moveaxis(windows[y, x], 1, -1))
    return drawn


def normalised(patches: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """float32 (n, 7 * 7 * c): patches in the units of a set's channels."""
    return ((patches - mean) / std).reshape(len(patches), -1)


def directions_of(width: int, block: int, seed: int = 0) -> np.ndarray:
    """float32 (width, 16): unit vectors, evenly over the sphere."""
    axes = np.random.default_rng((seed, block)).standard_normal((width, BLOCK)).astype(np.float32)
    return axes / np.linalg.norm(axes, axis=0)


def distances(
    reference: np.ndarray, generated: np.ndarray, pairs: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], block: int
) -> np.ndarray:
    """float64 (pairs, 2): means over 16 directions, of part of the reference to what was generated and to other parts.

    Exact for the patches that were drawn: each direction is sorted once, and samples are read off in that order.

    Args:
        reference, generated: As ``normalised`` returns them.
        pairs: Masks of rows of the reference, of others of it, and of what was generated: as many rows in each.
        block: Number of the directions.
    """
    axes = directions_of(reference.shape[1], block)
    sums = np.zeros((len(pairs), 2))
    for own, made in zip((reference @ axes).T, (generated @ axes).T, strict=True):
        by_own, by_made = np.argsort(own, kind="stable"), np.argsort(made, kind="stable")
        for n, (half, other, drawn) in enumerate(pairs):
            sample = own[by_own[half[by_own]]]
            sums[n] += [
                np.abs(sample - rest, dtype=np.float64).mean()
                for rest in (made[by_made[drawn[by_made]]], own[by_own[other[by_own]]])
            ]
    return sums / BLOCK
