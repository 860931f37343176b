"""Clusters of patches by their embeddings: standardised, reduced to a few numbers, then k-means or HDBSCAN."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

NONE = -1  # cluster of what belongs to none
MOST_BYTES = 2**29  # of embeddings that are clustered, which takes six times as much
COMPONENTS, COMPONENTS_OF_DENSITY = 50, 5  # what k-means and HDBSCAN look at; density says little in many dimensions
LEAST_SHARE, LEAST, FEWEST = 20, 50, 5  # the smallest cluster: a 20th of the patches, within 5 and 50
NEIGHBOURS = 10  # of a patch, which say how dense it is where it lies
STARTS = 10  # of k-means, of which the best is kept
JUDGED = 4000  # patches that the silhouette is of


@dataclass(frozen=True)
class Clustering:
    """How clusters are sought.

    Args:
        count: Number of clusters, by k-means; None: HDBSCAN finds it.
        reduce: "pca" or "umap".
        components: Numbers a patch that are left; None: 50 or fewer for k-means, 5 for HDBSCAN.
        least: Patches of the smallest cluster that HDBSCAN finds; None: by their number.
        seed: Of k-means' starts, and of UMAP.
        threads: CPU threads.
    """

    count: int | None
    reduce: str = "pca"
    components: int | None = None
    least: int | None = None
    seed: int = 42
    threads: int = 1


@dataclass(frozen=True)
class Clusters:
    """A cluster for each patch, numbered from the largest on.

    Args:
        of_patches: int (n,); ``NONE`` for those that belong to none.
        distances: float (n,), to the mean of the cluster, or the nearest of one that belongs to none, in standard
            deviations of the embeddings.
        silhouette: How much nearer patches are to their own cluster than to the next, -1 to 1.
    """

    of_patches: np.ndarray
    distances: np.ndarray
    silhouette: float

    def sizes(self) -> list[tuple[int, int]]:
        """Each cluster with the number of its patches; ``NONE`` last."""
        numbers, counts = np.unique(self.of_patches, return_counts=True)
        pairs = list(zip(numbers.tolist(), counts.tolist(), strict=True))
        return [pair for pair in pairs if pair[0] != NONE] + [pair for pair in pairs if pair[0] == NONE]

    def members(self, number: int) -> np.ndarray:
        """int (m,): the patches of a cluster, the nearest to its mean first."""
        own = np.flatnonzero(self.of_patches == number)
        return own[np.argsort(self.distances[own], kind="stable")]


def check_clustering(how: Clustering, count: int | None) -> None:
    """Refuse what cannot be done, before anything is embedded.

    Args:
        count: Number of patches; None: it is not known yet.
    Raises:
        ValueError: a library is missing, or there are too few patches.
    """
    library("sklearn", "cluster", "scikit-learn", "'slidefield[cluster]'")
    if how.reduce == "umap":
        library("umap", "reduce", "umap-learn", "umap-learn")
    if count is None:
        return
    if how.count is not None and how.count > count:
        raise ValueError(f"`cluster` {how.count} is more than there are patches ({count}); choose a smaller one")
    if how.count is None and count < 2 * least_of(how, count):
        raise ValueError(
            f"`cluster` auto: too few patches ({count}) for two clusters of {least_of(how, count)} or more; "
            "choose a smaller `cluster_least`, or pass `cluster` K"
        )


def library(module: str, option: str, name: str, install: str) -> Any:
    """A module that is installed by choice.

    Raises:
        ValueError: it is not.
    """
    try:
        return import_module(module)
    except ImportError:
        raise ValueError(f"`{option}` needs {name}, which is not installed: pip install {install}") from None


def least_of(how: Clustering, count: int) -> int:
    """Number of patches of the smallest cluster that HDBSCAN is to find.

    >>> [least_of(Clustering(None), count) for count in (30, 400, 2368)]
    [5, 20, 50]
    """
    return how.least or min(max(count // LEAST_SHARE, FEWEST), LEAST)


def find_clusters(embeddings: np.ndarray, name: str, how: Clustering, named: Callable[[int], str]) -> Clusters:
    """The clusters of embeddings (..., D): a function of them and the seed.

    Args:
        embeddings: An array, or what is read where it is sliced.
        name: What they are called, for messages.
        named: Name of a patch, for messages.
    Raises:
        ValueError: there are too many, or too few, or some are not finite, or no clusters are found.
    """
    size = int(np.prod(embeddings.shape)) * np.dtype(np.float32).itemsize
    if size > MOST_BYTES:
        raise ValueError(
            f"{name} has {size / 1e9:.1f} GB of float32 but clusters are found of {MOST_BYTES / 1e9:.1f} GB "
            "at most; name a part of them"
        )
    if len(embeddings.shape) < 2 or np.dtype(embeddings.dtype).kind != "f":
        raise ValueError(
            f"{name} is {embeddings.dtype} of shape {embeddings.shape}; expected floating-point numbers "
            "of shape (n, D), a row a patch"
        )
    values = np.asarray(embeddings, np.float32).reshape(-1, embeddings.shape[-1])
    check_clustering(how, len(values))
    if not (finite := np.isfinite(values).all(1)).all():
        first = int(np.flatnonzero(~finite)[0])
        raise ValueError(f"{name} has values that are not finite for {named(first)}; embed it again")
    from threadpoolctl import threadpool_limits  # which scikit-learn brings

    with threadpool_limits(how.threads), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reduced = reduce(standardised(values, name), how)
        labels = numbered(by_density(reduced, how) if how.count is None else by_means(reduced, how))
        return judged(reduced, labels, how)


def standardised(values: np.ndarray, name: str) -> np.ndarray:
    """float64 (n, d): of every number that differs between patches, how many standard deviations it is off its mean.

    Raises:
        ValueError: none differs.
    """
    spread = values.std(0, dtype=np.float64)
    differs = spread > 1e-6 * np.abs(values).max(0)
    if not differs.any():
        raise ValueError(f"{name} has the same embedding for all {len(values)} patches; there are no clusters")
    values = values[:, differs]
    return (values - values.mean(0, dtype=np.float64)) / spread[differs]


def reduce(values: np.ndarray, how: Clustering) -> np.ndarray:
    """float (n, d): fewer numbers a patch."""
    wanted = how.components or (COMPONENTS_OF_DENSITY if how.count is None else COMPONENTS)
    if how.reduce == "umap":
        umap = import_module("umap")
        return umap.UMAP(n_components=wanted, random_state=how.seed, n_jobs=1).fit_transform(values)
    from sklearn.decomposition import PCA

    return PCA(min(wanted, *values.shape), random_state=how.seed).fit_transform(values)


def by_means(values: np.ndarray, how: Clustering) -> np.ndarray:
    """int (n,): the clusters of k-means.

    Raises:
        ValueError: fewer patches differ.
    """
    from sklearn.cluster import KMeans

    labels = KMeans(how.count, n_init=STARTS, random_state=how.seed).fit_predict(values)
    if len(np.unique(labels)) < (how.count or 0):
        raise ValueError(
            f"`cluster` {how.count} is more than there are different embeddings ({len(np.unique(labels))}); "
            "choose a smaller one"
        )
    return labels


def by_density(values: np.ndarray, how: Clustering) -> np.ndarray:
    """int (n,): the clusters of HDBSCAN (Campello et al. 2013), ``NONE`` for patches between them.

    Raises:
        ValueError: it finds none.
    """
    from sklearn.cluster import HDBSCAN

    least = least_of(how, len(values))
    labels = HDBSCAN(min_cluster_size=least, min_samples=min(least, NEIGHBOURS), copy=True).fit_predict(values)
    if (labels < 0).all():
        raise ValueError(
            f"`cluster` auto finds no clusters of {least} or more in {len(values)} patches; pass `cluster` K, or "
            "another `cluster_least`"
        )
    return labels


def numbered(labels: np.ndarray) -> np.ndarray:
    """Clusters numbered from the largest on; of two as large the one that begins first.

    >>> numbered(np.array([2, 0, -1, 0, 1, 1, 1])).tolist()
    [2, 1, -1, 1, 0, 0, 0]
    """
    names, first, counts = np.unique(labels, return_index=True, return_counts=True)
    order = [place for place in np.lexsort((first, -counts)) if names[place] >= 0]
    renamed = np.full(len(labels), NONE)
    for number, place in enumerate(order):
        renamed[labels == names[place]] = number
    return renamed


def judged(values: np.ndarray, labels: np.ndarray, how: Clustering) -> Clusters:
    """The clusters with their patches' distances, and how well they are apart."""
    means = np.stack([values[labels == number].mean(0) for number in range(labels.max() + 1)])
    distances = np.empty(len(values))
    for number, mean in enumerate(means):
        distances[labels == number] = np.linalg.norm(values[labels == number] - mean, axis=1)
    outside = values[labels == NONE]
    distances[labels == NONE] = [np.linalg.norm(means - value, axis=1).min() for value in outside]
    return Clusters(labels, distances, silhouette(values, labels, how.seed))


def silhouette(values: np.ndarray, labels: np.ndarray, seed: int) -> float:
    """Rousseeuw's measure of some of the patches; not a number of one cluster, or where each patch is one."""
    from sklearn.metrics import silhouette_score

    some = np.random.default_rng(seed).permutation(np.flatnonzero(labels != NONE))[:JUDGED]
    if not 1 < len(np.unique(labels[some])) < len(some):
        return float("nan")
    return float(silhouette_score(values[some], labels[some]))
