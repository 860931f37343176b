"""Arrays that are read by box: the types of such readers, and one that keeps what it read in square blocks."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from engine.planning.geometry import Box

ReadBox = Callable[[Box], np.ndarray]  # box -> values (..., height, width) of the one map there is
ReadImageBox = Callable[[int, Box], np.ndarray]  # (image, box) -> values of a box of one image of several
ReadSteps = Callable[[int, Box, int], np.ndarray]  # (image, box, step) -> every step-th value, from the box's corner


def in_blocks(read: ReadImageBox, shape: tuple[int, int], dtype: np.dtype | type, side: int, kept: int) -> ReadImageBox:
    """The same reader, but it reads whole square blocks and keeps the last of them for the boxes that follow.

    Args:
        read: Reader of one block, which is cut at the image's edge.
        shape: Height and width of every image.
        dtype: Type of the values.
        side: Height and width of a block.
        kept: Number of blocks that are kept.
    """

    @lru_cache(maxsize=kept)
    def block(image: int, y: int, x: int) -> np.ndarray:
        return read(image, Box(y, x, y + side, x + side) & Box(0, 0, *shape))

    def read_box(image: int, box: Box) -> np.ndarray:
        values = np.empty(box.shape, dtype)
        for y in range(box.y0 - box.y0 % side, box.y1, side):
            for x in range(box.x0 - box.x0 % side, box.x1, side):
                place = Box(y, x, y + side, x + side)
                common = box & place
                values[common.within(box)] = block(image, y, x)[common.within(place)]
        return values

    return read_box
