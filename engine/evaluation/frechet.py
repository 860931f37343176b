"""The Frechet distance of two sets' features (Heusel et al. 2017, arXiv:1706.08500): FID where they are Inception's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from engine.distributed.ranks import AgreedError, Ranks
from engine.evaluation.gathered import Features, moments
from engine.storage.files import whole_file


@dataclass(frozen=True)
class Statistics:
    """Mean (D,) and covariance (D, D) of features, float64, and of how many; None: it is not known."""

    mean: np.ndarray
    covariance: np.ndarray
    count: int | None = None

    @property
    def dimensions(self) -> int:
        return len(self.mean)


def statistics_of(ranks: Ranks, features: Features) -> Statistics:
    """Of two rows or more. Collective.

    Raises:
        AgreedError: there is one.
    """
    if features.count < 2:
        raise AgreedError("a mean and a covariance take two crops or more, and there is one; give more (`crops` N)")
    return Statistics(*moments(ranks, features), features.count)


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|mean a - mean b|^2 + Tr(A + B - 2 sqrt(A B)), of covariances A and B.

    The trace of the root is the sum of the roots of the eigenvalues of sqrt(A) B sqrt(A), which is symmetric: no
    complex numbers, and nothing is added to the diagonal.

    >>> one, two = (Statistics(np.full(2, m), np.eye(2) * v) for m, v in ((0.0, 1.0), (3.0, 4.0)))
    >>> round(frechet_distance(one, two), 9)
    20.0
    """
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    of_product = np.linalg.eigvalsh(root @ b.covariance @ root)
    traces = np.trace(a.covariance) + np.trace(b.covariance) - 2 * np.sqrt(np.clip(of_product, 0, None)).sum()
    return max(float(((a.mean - b.mean) ** 2).sum() + traces), 0.0)  # below 0 by rounding alone


def check_rank(name: str, count: int, dimensions: int) -> None:
    """Refuse fewer crops than the covariance has dimensions.

    Raises:
        ValueError: saying how many there must be.
    """
    if count <= dimensions:
        raise ValueError(
            f"{name} has {count} crops and the Frechet distance of {dimensions} features takes {dimensions + 1}: their "
            "covariance has no full rank; give more (`crops` N), or pass `few` to take it all the same"
        )


def write_statistics(path: Path, statistics: Statistics) -> None:
    """Write what ``read_statistics`` reads, whole or not at all."""
    with whole_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, mu=statistics.mean, sigma=statistics.covariance)


def read_statistics(path: Path) -> Statistics:
    """Mean and covariance as pytorch-fid and clean-fid write them: ``.npz`` with ``mu`` and ``sigma``.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            if any(file[name].dtype.kind != "f" for name in ("mu", "sigma")):
                raise ValueError("they are no floating-point numbers")
            mean, covariance = (np.asarray(file[name], np.float64) for name in ("mu", "sigma"))
    except (OSError, KeyError, ValueError, TypeError, BadZipFile) as error:
        raise ValueError(f"{path} is no .npz file with mu and sigma ({' '.join(str(error).split())[:120]})") from None
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ValueError(f"{path}: mu has shape {mean.shape} and sigma {covariance.shape}; expected (D,) and (D, D)")
    if not np.isfinite(mean).all() or not np.isfinite(covariance).all():
        raise ValueError(f"{path}: mu or sigma holds values that are not finite; write them anew")
    largest = np.abs(covariance).max(initial=0)
    if not np.allclose(covariance, covariance.T, rtol=0, atol=1e-6 * largest):
        raise ValueError(f"{path}: sigma is not symmetric, so that it is no covariance; write it anew")
    if np.linalg.eigvalsh(covariance)[0] < -1e-6 * largest * len(mean):
        raise ValueError(f"{path}: sigma has eigenvalues below 0, so that it is no covariance; write it anew")
    return Statistics(mean, covariance)
