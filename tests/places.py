"""Label maps as functions of position, as ``--labels places:NAME`` names them: runs of the tests find them."""

from __future__ import annotations

from typing import Any

import numpy as np


def tilted(box: Any) -> np.ndarray:
    """Bands of five labels across the plane."""
    rows, columns = np.arange(box.y0, box.y1)[:, None], np.arange(box.x0, box.x1)
    return (2 * rows + 3 * columns) // 50 % 5


def of_wrong_shape(box: Any) -> np.ndarray:
    return np.zeros((box.y1 - box.y0, 1), int)


def of_floats(box: Any) -> np.ndarray:
    return np.zeros(box.shape)


def unknown(box: Any) -> np.ndarray:
    return np.full(box.shape, 7)


def failing(box: Any) -> np.ndarray:
    raise RuntimeError("the scanner is\nout of reach")


def failing_on_the_right(box: Any) -> np.ndarray:
    """Right of 100 px, where the box that is tried first does not lie."""
    if box.x1 > 100:
        raise RuntimeError("nothing is known there")
    return np.ones(box.shape, np.int8)
