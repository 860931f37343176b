"""Filters of one's own, as ``--accept filters:NAME`` names them: the runs of the tests find them on their path."""

from __future__ import annotations

import numpy as np


def one_in_three(image: np.ndarray, label: int) -> bool:
    return int(image[0, 5, 5]) % 3 == 0


def even_if_of_class_1(image: np.ndarray, label: int) -> bool:
    return label != 1 or int(image[0, 0, 0]) % 2 == 0


def rarely(image: np.ndarray, label: int) -> bool:
    return int(image.sum()) % 11 == 8
