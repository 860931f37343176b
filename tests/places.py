"""Labels and embeddings as functions of position, as ``places:NAME`` names them: runs of the tests find them."""

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


def embedded(box: Any) -> np.ndarray:
    """An embedding of 12 numbers that turns as one goes down or to the right."""
    return np.sin(np.arange(12) + (box.y0 + 3 * box.x0) / 100)


def around(box: Any) -> np.ndarray:
    """The embedding of what is around, 7 numbers."""
    return np.full(7, box.y0 / 1000, np.float32)


def embedded_on_the_left(box: Any) -> np.ndarray:
    """The same, left of 100 px alone; the window that is tried first lies there."""
    if box.x1 > 100:
        raise RuntimeError("nothing is known there")
    return embedded(box)


def not_finite(box: Any) -> np.ndarray:
    return np.full(12, np.nan)


def leaving(box: Any) -> np.ndarray:
    raise SystemExit(3)
