"""Is what is generated a copy of what was trained on? C_T, authenticity, the nearest training crop of each crop."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.distributed.ranks import Ranks
from engine.evaluation.gathered import Features, moments
from engine.evaluation.neighbours import Nearest, nearest

COMPONENTS, CELLS, LEAST_IN_CELL = 64, 3, 20  # of C_T as published samplers take it
NEAREST_SHARE = 0.01  # quantile of the distances, where copies are


@dataclass(frozen=True)
class Copying:
    """Distances of generated crops to their nearest training crops, and of the reference's.

    Args:
        authenticity: Share of the generated that are farther from their nearest training crop than that from its own.
        of_reference: The same share of the reference.
        generated, reference: float64: the distances of all crops, on every rank.
        numbers: int64: which training crop is nearest to each generated one, on every rank.
    """

    authenticity: float
    of_reference: float
    generated: np.ndarray
    reference: np.ndarray
    numbers: np.ndarray

    @property
    def ratio(self) -> float:
        """The distances' 1st percentile over that of the reference: below 1, there are copies among the nearest."""
        return over(np.quantile(self.generated, NEAREST_SHARE), np.quantile(self.reference, NEAREST_SHARE))

    @property
    def median_ratio(self) -> float:
        return over(np.median(self.generated), np.median(self.reference))


def over(a: float, b: float) -> float:
    """a / b; NaN where the reference is of training images, whose distance is 0."""
    return float(a / b) if b else float("nan")


def copying_of(ranks: Ranks, generated: Features, reference: Features, train: Features) -> Copying:
    """Authenticity (Alaa et al. 2022, arXiv:2102.08921) and nearest neighbours. Collective."""
    made, numbers = everywhere(ranks, nearest(ranks, generated, train, 1))
    unseen, numbers_of_unseen = everywhere(ranks, nearest(ranks, reference, train, 1))
    own = everywhere(ranks, nearest(ranks, train, train, 1, among_themselves=True))[0]
    authentic, of_reference = (made > own[numbers]).mean(), (unseen > own[numbers_of_unseen]).mean()
    return Copying(float(authentic), float(of_reference), made, unseen, numbers)


def everywhere(ranks: Ranks, near: Nearest) -> tuple[np.ndarray, np.ndarray]:
    """Distance and number of every query's nearest, of all ranks. Collective."""
    parts = ranks.allgather((near.distances[:, 0], near.numbers[:, 0]))
    return np.concatenate([d for d, _ in parts]), np.concatenate([n for _, n in parts])


def copying_test(
    ranks: Ranks,
    generated: Features,
    reference: Features,
    train: Features,
    cells: int = CELLS,
    components: int = COMPONENTS,
    seed: int = 0,
) -> float:
    """C_T (Meehan, Chaudhuri, Dasgupta 2020, arXiv:2004.05675): below 0 where generated are nearer to the training set.

    In each cell of k-means of the training set, the z score of Mann and Whitney's U of distances to the nearest
    training crop; their mean, weighted by the cell's share of the reference. Cells of at most 20 generated, or without
    reference, do not count. Collective.

    Raises:
        ImportError: scikit-learn is not there.
    """
    basis, centre = principal(ranks, train, components)
    projected = [at_root(ranks, features, basis, centre) for features in (generated, reference, train)]
    return ranks.on_root(lambda: z_of_cells((projected[0], projected[1], projected[2]), cells, seed))


def principal(ranks: Ranks, features: Features, components: int) -> tuple[np.ndarray, np.ndarray]:
    """float64 (D, k) principal directions of a set's features, and their mean (D,). Collective."""
    mean, covariance = moments(ranks, features)
    vectors = ranks.on_root(lambda: np.linalg.eigh(covariance)[1])  # one rank's: signs may differ between machines
    return vectors[:, ::-1][:, : min(components, len(mean), features.count - 1)], mean


def at_root(ranks: Ranks, features: Features, basis: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """float64 (n, k) on rank 0, of all ranks' rows; elsewhere (0, k). Collective."""
    parts = ranks.gather((features.own - centre) @ basis)
    return np.concatenate(parts) if parts else np.zeros((0, basis.shape[1]))


def z_of_cells(sets: tuple[np.ndarray, np.ndarray, np.ndarray], cells: int, seed: int) -> float:
    """The mean z score over the cells of generated, reference and training set; NaN where no cell counts."""
    generated, reference, train = sets
    from sklearn.cluster import KMeans

    kmeans = KMeans(n_clusters=cells, n_init=10, random_state=seed).fit(train)
    of_made, of_unseen, of_train = (kmeans.predict(x) for x in (generated, reference, train))
    scores, weights = [], []
    for cell in range(cells):
        points, made, unseen = train[of_train == cell], generated[of_made == cell], reference[of_unseen == cell]
        if len(made) > LEAST_IN_CELL and len(unseen):
            scores.append(mann_whitney_z(to_nearest(made, points), to_nearest(unseen, points)))
            weights.append(len(unseen))
    return float(np.average(scores, weights=weights)) if scores else float("nan")


def to_nearest(queries: np.ndarray, points: np.ndarray) -> np.ndarray:
    """float64 (n,): distance of each query to its nearest point. Local."""
    from sklearn.neighbors import NearestNeighbors

    return NearestNeighbors(n_neighbors=1).fit(points).kneighbors(queries)[0][:, 0]


def mann_whitney_z(a: np.ndarray, b: np.ndarray) -> float:
    """The normal score of U of ``a``: below 0 where its values are smaller than those of ``b``. Ties count half.

    >>> mann_whitney_z(np.array([1.0, 2.0]), np.array([3.0, 4.0])) < 0
    True
    """
    n, m = len(a), len(b)
    order = np.sort(b)
    u = (np.searchsorted(order, a, "left") + np.searchsorted(order, a, "right")).sum() / 2
    return float((u - (n * m / 2 - 0.5)) / np.sqrt(n * m * (n + m + 1) / 12))
