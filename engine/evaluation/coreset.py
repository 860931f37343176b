"""A coreset of features: a few rows from which no other is far."""

from __future__ import annotations

import numpy as np

from engine.distributed.ranks import Ranks
from engine.evaluation.crops import share
from engine.evaluation.gathered import Features, rows

PROJECTED = 128  # dimensions in which rows are chosen


def coreset(ranks: Ranks, features: Features, size: int, seed: int) -> np.ndarray:
    """int64 (size,): numbers of the rows that greedy k-centre chooses, each the farthest from those before. Collective.

    As PatchCore does it (Roth et al. 2022, arXiv:2106.08265, algorithm 1; Gonzalez 1985): distances are those of a
    random projection, and the first row is drawn. A rank keeps one distance a row of its own. The same on any number of
    ranks: distances are functions of two rows, and of equal ones the first is chosen.
    """
    own = share(features.count, ranks.rank, ranks.size)
    projected = Features(projection(features.own, seed), features.count)
    chosen = [int(np.random.default_rng((seed, 31)).integers(features.count))]
    distances = np.full(len(own), np.inf)
    while True:
        centre = rows(ranks, projected, np.array(chosen[-1:]))
        distances = np.minimum(distances, ((projected.own - centre) ** 2).sum(1, dtype=np.float64))
        if len(chosen) == size:
            return np.array(chosen, np.int64)
        farthest = int(distances.argmax()) if len(own) else 0
        of_ranks = ranks.allgather_float(distances[farthest] if len(own) else -1.0)
        places = ranks.allgather_float(own.start + farthest)
        chosen.append(int(places[of_ranks.argmax()]))


def projection(features: np.ndarray, seed: int) -> np.ndarray:
    """float32 (n, PROJECTED): features (n, D) in random directions; as they are where D is no more.

    Distances stay about the same (Johnson and Lindenstrauss 1984). Digits that depend on how a matrix is multiplied are
    rounded away.
    """
    dimensions = features.shape[1]
    if dimensions <= PROJECTED:
        return features
    directions = np.random.default_rng((seed, 37)).standard_normal((dimensions, PROJECTED)) / PROJECTED**0.5
    return (features.astype(np.float64) @ directions).astype(np.float32)
