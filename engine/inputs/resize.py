"""Maps of labels brought to another size by nearest neighbours: the one place where they are."""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.diffusion.boxes import ReadBox
from engine.planning.geometry import Box


def nearest_index(start: int, stop: int, source: int, target: int, step: int = 1) -> np.ndarray:
    """int64: the pixel of a line of ``source`` that holds the centre of each pixel of a line of ``target``.

    floor((i + 1/2) source / target) in integers, for every ``step``-th i of [start, stop): Pillow's NEAREST, wherever
    its sum of steps in float64 is exact.

    >>> nearest_index(0, 5, 2, 5).tolist()
    [0, 0, 1, 1, 1]
    """
    return (2 * np.arange(start, stop, step, dtype=np.int64) + 1) * source // (2 * target)


def nearest_box(
    read: ReadBox, source_shape: tuple[int, int], target_shape: tuple[int, int], box: Box, step: int = 1
) -> np.ndarray:
    """Every ``step``-th pixel of a box of a map that is brought to another size. Local.

    Args:
        read: Reader of the map at its own size; called once, for no more than is needed.
        source_shape: Height and width of the map.
        target_shape: Height and width that it is brought to.
        box: Box of the target, not empty and inside it.
        step: Distance of the pixels that are wanted, counted from the box's corner.
    """
    assert box
    rows = nearest_index(box.y0, box.y1, source_shape[0], target_shape[0], step)
    columns = nearest_index(box.x0, box.x1, source_shape[1], target_shape[1], step)
    y0, x0 = int(rows[0]), int(columns[0])
    values = read(Box(y0, x0, int(rows[-1]) + 1, int(columns[-1]) + 1))
    return values[np.ix_(rows - y0, columns - x0)]


class Scaled:
    """A map brought to another size, read by box as if it had that size.

    Args:
        source: The map (h, w) at its own size, or something sliced like it.
        shape: Height and width that it is brought to.
    """

    def __init__(self, source: Any, shape: tuple[int, int]) -> None:
        self.source, self.shape, self.dtype, self.ndim = source, shape, source.dtype, 2

    def __getitem__(self, key: Any) -> np.ndarray:
        rows, columns = (*(key if isinstance(key, tuple) else (key,)), slice(None))[:2]
        (y0, y1, _), (x0, x1, _) = rows.indices(self.shape[0]), columns.indices(self.shape[1])
        if y0 >= y1 or x0 >= x1:
            return np.empty((max(y1 - y0, 0), max(x1 - x0, 0)), self.dtype)
        return nearest_box(self.read, self.source.shape, self.shape, Box(y0, x0, y1, x1))

    def read(self, box: Box) -> np.ndarray:
        """A box of the map at its own size."""
        return np.asarray(self.source[box.y0 : box.y1, box.x0 : box.x1])


def scaled_to(array: Any, size: tuple[int, int], what: str) -> Any:
    """A map at a size, as it is or ``Scaled``.

    Args:
        what: Name of the map, for messages.
    Raises:
        ValueError: the map has other proportions, by more than a pixel of its own.
    """
    height, width = array.shape
    if (height, width) == size:
        return array
    if abs(size[0] * width - size[1] * height) > max(size):  # a pixel of the map in either direction
        raise ValueError(
            f"{what} is {height} x {width} px but the image is {size[0]} x {size[1]} px, of other proportions; "
            f"cut the mask out of a picture of the whole image, or pass `size` {height}x{width}"
        )
    return Scaled(array, size)
