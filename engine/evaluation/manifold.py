"""Improved precision and recall, density and coverage: do two sets fill the same part of the space of features?

Balls about each point reach its k-th neighbour of its own set (Kynkaanniemi et al. 2019, arXiv:1904.06991; Naeem et al.
2020, arXiv:2002.09797).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.distributed.ranks import Ranks
from engine.evaluation.gathered import Features
from engine.evaluation.neighbours import nearest

RECALL_K, DENSITY_K = 3, 5  # of the two papers


@dataclass(frozen=True)
class Manifold:
    """Shares, but for density, which may exceed 1.

    Args:
        precision: Share of the generated that lie in a ball of the reference.
        recall: Share of the reference that lies in a ball of the generated.
        density: In how many balls of the reference a generated one lies, over the k that its points have.
        coverage: Share of the reference's balls that hold a generated one.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def manifold_of(
    ranks: Ranks, generated: Features, reference: Features, recall_k: int = RECALL_K, density_k: int = DENSITY_K
) -> Manifold:
    """Collective."""
    ks = (recall_k, density_k)
    of_reference, of_generated = (balls(ranks, features, ks) for features in (reference, generated))
    made = nearest(ranks, generated, reference, 1, of_reference)
    asked = nearest(ranks, reference, generated, 1, of_generated)
    sums = np.array(
        [
            (made.within[:, 0] > 0).sum(),
            (asked.within[:, 0] > 0).sum(),
            made.within[:, 1].sum() / density_k,
            (asked.distances[:, 0] < of_reference[:, 1]).sum(),
        ],
        np.float64,
    )
    ranks.allreduce_array(sums)
    of = (generated.count, reference.count, generated.count, reference.count)
    return Manifold(*(float(total / count) for total, count in zip(sums, of, strict=True)))


def balls(ranks: Ranks, features: Features, ks: tuple[int, ...]) -> np.ndarray:
    """float64 (own, len(ks)): distance of each of this rank's points to its k-th neighbour. Collective."""
    near = nearest(ranks, features, features, max(ks), among_themselves=True)
    return near.distances[:, [k - 1 for k in ks]]
