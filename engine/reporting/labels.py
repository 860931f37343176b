"""Labels in colours, and how much of the area each has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MOST_COLORS = 256  # of a PNG with a palette
MOST_NAMED = 24  # labels of a legend
Entries = Sequence[tuple[str, tuple[int, int, int]]]


@dataclass(frozen=True)
class Share:
    """A label of the legend.

    Args:
        color: RGB, as CSS has it.
        percent: Of the area.
    """

    name: str
    color: str
    percent: float


def colors_of(entries: Entries) -> np.ndarray:
    """uint8 (labels, 3): the labels' colours; of nuclei and of more labels than a PNG has colours white and a wheel."""
    if 0 < len(entries) <= MOST_COLORS:
        return np.array([color[:3] for _, color in entries], np.uint8)
    angles = np.arange(1, 256) * 2.399963  # the golden angle: neighbours differ
    wheel = np.stack([0.55 + 0.3 * np.cos(angles + turn) for turn in (0.0, 2.1, 4.2)], axis=1)
    return np.concatenate([[[255, 255, 255]], (255 * wheel)]).astype(np.uint8)


def coded(values: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Labels as they are; numbers of nuclei as numbers of colours, 0 as 0."""
    if len(colors) < MOST_COLORS or not values.size or values.max() < len(colors):
        return values
    return np.where(values > 0, (values - 1) % 255 + 1, 0)


def shares_of(values: np.ndarray, count: int) -> np.ndarray:
    """float64 (labels,): the share of each; where labels have no names, of 0 and of all others.

    >>> shares_of(np.array([[0, 1], [1, 2]]), 3), shares_of(np.array([[0, 700], [9, 9]]), 0)
    (array([0.25, 0.5 , 0.25]), array([0.25, 0.75]))
    """
    clipped = np.minimum(values, (count or 2) - 1)
    return np.bincount(clipped.ravel().astype(np.int64), minlength=count or 2) / max(values.size, 1)


def legend_of(of_each: np.ndarray, entries: Entries) -> list[Share]:
    """The labels of a share above 0, the largest first; the smallest of many in one line."""
    named = entries or (("background", (255, 255, 255)), ("nuclei, a colour each", (200, 110, 60)))
    order = [index for index in np.argsort(-of_each, kind="stable").tolist() if of_each[index]]
    shown, rest = order[:MOST_NAMED], order[MOST_NAMED:]
    legend = [Share(named[i][0], "#{:02x}{:02x}{:02x}".format(*named[i][1][:3]), 100 * of_each[i]) for i in shown]
    return legend + ([Share(f"{len(rest)} others", "#ffffff", 100 * float(of_each[rest].sum()))] if rest else [])
