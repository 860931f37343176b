"""KID: the squared maximum mean discrepancy of two sets' features (Binkowski et al. 2018, arXiv:1801.01401)."""

from __future__ import annotations

import numpy as np

from engine.distributed.ranks import Ranks
from engine.evaluation.gathered import Features, rows

SUBSETS, SUBSET_SIZE, SEED = 100, 1000, 2020  # torch-fidelity's


def kernel_distance(
    ranks: Ranks, a: Features, b: Features, subsets: int = SUBSETS, size: int = SUBSET_SIZE
) -> tuple[float, float | None]:
    """Mean and spread over subsets, drawn as torch-fidelity draws them; the ranks share the subsets. Collective.

    Args:
        size: Rows of a subset; where a set has fewer, as many as the smaller one has.
    Returns:
        The spread is None where all rows of both sets are one subset.
    """
    size = min(size, a.count, b.count)
    if size == a.count == b.count:  # all subsets are the sets themselves
        subsets = 1
    rng = np.random.RandomState(SEED)
    values = np.zeros(subsets)
    for first in range(0, subsets, ranks.size):
        own = None
        for subset in range(first, min(first + ranks.size, subsets)):
            numbers = [rng.choice(features.count, size, replace=False) for features in (a, b)]
            drawn = [rows(ranks, features, chosen) for features, chosen in zip((a, b), numbers, strict=True)]
            own = (subset, drawn) if subset - first == ranks.rank else own
        if own is not None:  # each rank has one subset of a round
            subset, (x, y) = own
            values[subset] = discrepancy(x.astype(np.float64), y.astype(np.float64))
    ranks.allreduce_array(values)
    return float(values.mean()), float(values.std()) if subsets > 1 else None


def discrepancy(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased estimate of MMD^2 with the kernel (x . y / D + 1)^3, of two sets of equal size.

    >>> rng = np.random.default_rng(0)
    >>> x, y = rng.normal(size=(2, 500, 4))
    >>> abs(discrepancy(x, y)) < 0.1 < discrepancy(x, y + 1)
    True
    """
    m = len(x)
    xx, yy, xy = (polynomial(*pair) for pair in ((x, x), (y, y), (x, y)))
    within = (xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)) / (m * (m - 1))
    return float(within - 2 * xy.sum() / m**2)


def polynomial(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3
