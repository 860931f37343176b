"""Optical density of pixels, by label: sums of crops, from which the mean and spread of any of them follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DENSITY = -np.log10((np.arange(256) + 1) / 256)  # of a byte; -log10 of the light that passes, and 255 is all of it
ALL = -1  # stands for pixels of every label


@dataclass(frozen=True)
class DensitySums:
    """Sums over the pixels of crops.

    Args:
        crop, label: int64 (n,): a crop's number and a label that it has; every crop has the label ``ALL``.
        sums: float64 (n, 7): number of pixels, then for each channel the sum of densities, and of their squares.
    """

    crop: np.ndarray
    label: np.ndarray
    sums: np.ndarray

    def of(self, label: int, crops: np.ndarray | None = None) -> np.ndarray | None:
        """float64 (6,): mean density in R, G, B and standard deviation in each; None: no pixel has the label.

        Args:
            crops: Numbers of the crops; None: all.
        """
        chosen = self.label == label
        if crops is not None:
            chosen &= np.isin(self.crop, crops)
        count, *sums = self.sums[chosen].sum(0)
        if not count:
            return None
        mean, square = np.split(np.array(sums) / count, 2)
        return np.concatenate([mean, np.sqrt(np.maximum(square - mean**2, 0))])

    def error(self, label: int) -> np.ndarray:
        """float64 (6,): standard errors of ``of`` by leaving out one crop at a time; NaN of less than two crops.

        Source: the jackknife (Efron and Stein 1981, doi:10.1214/aos/1176345462).
        """
        sums = self.sums[self.label == label]
        rest = sums.sum(0) - sums
        rest = rest[rest[:, 0] > 0]
        if len(rest) < 2:
            return np.full(6, np.nan)
        mean, square = np.split(rest[:, 1:] / rest[:, :1], 2, 1)
        without = np.concatenate([mean, np.sqrt(np.maximum(square - mean**2, 0))], 1)
        return np.sqrt((len(rest) - 1) * without.var(0))

    def labels(self) -> np.ndarray:
        """The labels of the crops, ``ALL`` among them."""
        return np.unique(self.label)


def density_sums(crop: np.ndarray, labels: np.ndarray | None, number: int) -> list[tuple[int, int, np.ndarray]]:
    """Of one crop: (its number, a label, sums) for every label that it has, and for ``ALL``.

    Args:
        crop: uint8 (side, side, 3).
        labels: Unsigned (side, side); None: there are none.
    """
    if labels is None:
        names, inverse = np.array([ALL]), np.zeros(crop.shape[:2], np.int64)
    else:
        names, inverse = np.unique(labels, return_inverse=True)
    cells = (inverse.reshape(-1, 1) * 256 + crop.reshape(-1, 3)).T  # of a histogram of every label
    counts = np.stack([np.bincount(channel, minlength=256 * len(names)) for channel in cells], 1)
    counts = counts.reshape(len(names), 256, 3)
    sums = np.concatenate([counts[..., 0].sum(1)[:, None], DENSITY @ counts, DENSITY**2 @ counts], 1)
    rows = [(number, int(name), row) for name, row in zip(names, sums, strict=True)]
    return rows if labels is None else [(number, ALL, sums.sum(0)), *rows]


def table_of(rows: Sequence[tuple[int, int, np.ndarray]]) -> DensitySums:
    """The sums of many crops."""
    crop, label, sums = zip(*rows, strict=True)
    return DensitySums(np.array(crop), np.array(label), np.stack(sums))
