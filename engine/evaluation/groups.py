"""Crops that belong together, and halves of a set that share none of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from engine.evaluation.crops import Crops

FEWEST_IMAGES = 8  # below it images are cut into parts
PARTS = 16  # parts of large images, together, at least


def groups_of(crops: Crops) -> np.ndarray:
    """int64 (n,): crops of one image are of one group; -1: of none.

    One to seven images, where they are large, are cut into 16 rectangles or more together, and each of these is a
    group; crops that cross their borders are of none, so that crops of two groups never overlap.
    """
    image, y, x = crops.places.T
    images = np.unique(image)
    if len(images) >= FEWEST_IMAGES:
        return image
    cuts = int(np.ceil((PARTS / max(len(images), 1)) ** 0.5))
    size = crops.source.sizes[image]
    sides = np.maximum(np.minimum(cuts, size // max(crops.span, 1)), 1)  # an image of few crops has few parts
    first = np.stack([y, x], 1) * sides // size
    last = (np.stack([y, x], 1) + crops.span - 1) * sides // size
    whole = (first == last).all(1)
    return np.where(whole, (image * cuts + first[:, 0]) * cuts + first[:, 1], -1)


@dataclass(frozen=True)
class Draw:
    """Three samples of one size.

    Args:
        half, other: Numbers of crops of the reference; no group has crops in both.
        generated: Numbers of crops of what was generated.
    """

    half: np.ndarray
    other: np.ndarray
    generated: np.ndarray


def draws_of(
    groups: tuple[np.ndarray, np.ndarray], numbers: tuple[np.ndarray, np.ndarray], draws: int, most: int, seed: int = 0
) -> list[Draw]:
    """Halves of the reference, each time others, and as many crops of what was generated; all by whole groups.

    Args:
        groups: The groups of the crops of the reference, and of what was generated.
        numbers: Of both, the numbers of the crops to draw from.
        most: Crops of a sample, at most.
    Returns:
        As many as asked for; none where the reference has less than two groups, or nothing was generated.
    """
    reference, generated = (own[of[own] >= 0] for of, own in zip(groups, numbers, strict=True))
    drawn = []
    for number in range(draws):
        rng = np.random.default_rng((seed, number))
        half, other = (reference[part] for part in halved(groups[0][reference], rng))
        n = min(len(half), len(other), len(generated), most)
        if n:
            parts = ((groups[0], half), (groups[0], other), (groups[1], generated))
            drawn.append(Draw(*(np.sort(some_of(of[own], own, n, rng)) for of, own in parts)))
    return drawn


def some_of(groups: np.ndarray, numbers: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """So many of the crops: whole groups, but for the last."""
    names, inverse = np.unique(groups, return_inverse=True)
    return numbers[np.argsort(rng.permutation(len(names))[inverse], kind="stable")[:count]]


def halved(groups: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Two masks, bool (n,), of about as many crops: each group is in one of them.

    >>> a, b = halved(np.array([5, 5, 7, 7]), np.random.default_rng(0))
    >>> int(a.sum()), bool(a[0] == a[1]), bool((a != b).all())
    (2, True, True)
    """
    names, numbers, counts = np.unique(groups, return_inverse=True, return_counts=True)
    order = rng.permutation(len(names))
    before = np.cumsum(counts[order]) - counts[order] / 2
    first = np.zeros(len(names), bool)
    first[order[before < len(groups) / 2]] = True
    yield first[numbers]
    yield ~first[numbers]
