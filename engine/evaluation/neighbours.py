"""Nearest neighbours among features that lie on all ranks: blocked matrix products, no quadratic memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from engine.distributed.ranks import Ranks
from engine.evaluation.crops import share
from engine.evaluation.gathered import BLOCK, Features

ROUNDING = 1e-5  # of the squared lengths, within which products in float32 do not tell
PAIRS = 2**14  # that are taken anew at once
SPARE = 4  # candidates beyond k, for products in float32 may order them otherwise


@dataclass(frozen=True)
class Nearest:
    """What lies about each of this rank's queries.

    Args:
        distances: float64 (n, k), increasing.
        numbers: int64 (n, k): which points these are.
        within: int64 (n, r): in how many points' balls the query lies, for each of the radii that points have.
    """

    distances: np.ndarray
    numbers: np.ndarray
    within: np.ndarray


def nearest(
    ranks: Ranks,
    queries: Features,
    points: Features,
    k: int,
    radii: np.ndarray | None = None,
    among_themselves: bool = False,
) -> Nearest:
    """The k points that are nearest to each query, by Euclidean distance. Collective.

    A rank holds its share and one block of the others'. Candidates come from products in float32 about the points'
    mean; the distances of those that are kept are taken anew, in float64.

    Args:
        radii: float64 (own points, r): the balls about this rank's points; None: none are counted.
        among_themselves: Whether queries and points are one set, of which none is its own neighbour.
    """
    centre = mean_of(ranks, points)
    own = share(queries.count, ranks.rank, ranks.size)
    centred = queries.own - centre
    lengths = (centred.astype(np.float64) ** 2).sum(1)
    count, kinds = len(centred), 0 if radii is None else radii.shape[1]
    kinds = int(ranks.allgather_float(kinds).max())
    best = Nearest(np.full((count, k), np.inf), np.full((count, k), -1), np.zeros((count, kinds), np.int64))
    for numbers, block, balls in blocks_of(ranks, points, radii, kinds, centre):
        squares = (block.astype(np.float64) ** 2).sum(1)
        for first in range(0, count, BLOCK):
            part = slice(first, min(first + BLOCK, count))
            squared = np.maximum(lengths[part, None] + squares - 2.0 * (centred[part] @ block.T), 0)
            if among_themselves:
                same = np.arange(own.start + part.start, own.start + part.stop)[:, None] == numbers
                squared[same] = np.inf
            for kind in range(kinds):
                best.within[part, kind] += inside(squared, balls[:, kind], centred[part], block).sum(1)
            merge(best, part, centred[part], block, numbers, squared, k)
    return best


def inside(squared: np.ndarray, radii: np.ndarray, queries: np.ndarray, block: np.ndarray) -> np.ndarray:
    """bool (n, m): which queries lie within which balls, taken anew in float64 where float32 cannot tell.

    Args:
        squared: (n, m) squared distances.
    """
    within = squared < radii**2
    scale = (queries**2).sum(1)[:, None] + (block**2).sum(1)
    rows, columns = np.nonzero(np.abs(squared - radii**2) < ROUNDING * scale)
    for first in range(0, len(rows), PAIRS):
        some = rows[first : first + PAIRS], columns[first : first + PAIRS]
        within[some] = apart(queries[some[0]], block[some[1]]) < radii[some[1]]
    return within


def apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """float64 (n,): distances of rows to rows, to the last digit the same wherever they are taken."""
    return np.sqrt(((a.astype(np.float64) - b) ** 2).sum(1))


def merge(
    best: Nearest,
    part: slice,
    queries: np.ndarray,
    block: np.ndarray,
    numbers: np.ndarray,
    squared: np.ndarray,
    k: int,
) -> None:
    """Take the points of a block into the k nearest of some queries, in place."""
    some = min(k + SPARE, len(block))
    chosen = np.argpartition(squared, some - 1, axis=1)[:, :some]
    exact = np.stack([apart(queries, block[chosen[:, i]]) for i in range(some)], 1)
    exact[~np.isfinite(np.take_along_axis(squared, chosen, 1))] = np.inf
    distances = np.concatenate([best.distances[part], exact], 1)
    together = np.concatenate([best.numbers[part], numbers[chosen]], 1)
    order = np.lexsort((together, distances))[:, :k]
    best.distances[part] = np.take_along_axis(distances, order, 1)
    best.numbers[part] = np.take_along_axis(together, order, 1)


def blocks_of(
    ranks: Ranks, points: Features, radii: np.ndarray | None, kinds: int, centre: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """All points, block by block, on every rank: numbers, vectors about the centre, radii. Collective."""
    for owner in range(ranks.size):
        of_owner = share(points.count, owner, ranks.size)
        for first in range(0, len(of_owner), BLOCK):
            some = range(first, min(first + BLOCK, len(of_owner)))
            block = np.empty((len(some), points.dimensions), np.float32)
            balls = np.empty((len(some), kinds))
            if owner == ranks.rank:
                block[:] = points.own[some.start : some.stop] - centre
                if kinds and radii is not None:
                    balls[:] = radii[some.start : some.stop]
            ranks.bcast_array(block, owner)
            ranks.bcast_array(balls, owner)
            yield np.arange(of_owner.start + some.start, of_owner.start + some.stop), block, balls


def mean_of(ranks: Ranks, features: Features) -> np.ndarray:
    """float32 (D,). Collective."""
    total = features.own.sum(0, dtype=np.float64)
    ranks.allreduce_array(total)
    return (total / features.count).astype(np.float32)
