"""Where crops are taken: at places that are the same for every image of a size, and hold something to see."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from engine.planning.geometry import Box

CANDIDATES = 24  # places that are looked at
WHITE, MOST_WHITE = 225, 0.6  # value from which a pixel counts as white, and share of them from which a crop is empty


def spread(size: tuple[int, int], side: int) -> Iterator[Box]:
    """Boxes of a side spread over an image: the R2 sequence (Roberts 2018, "The Unreasonable Effectiveness of
    Quasirandom Sequences"), in which any first few lie far from one another.

    >>> [(box.y0, box.x0) for box in spread((1024, 1024), 256)][:3]
    [(53, 195), (491, 7), (160, 587)]
    """
    height, width = (min(side, length) for length in size)
    plastic = 1.3247179572447458  # root of x^3 = x + 1
    for n in range(1, CANDIDATES + 1):
        x, y = (math.modf(0.5 + n / plastic**power)[0] for power in (1, 2))
        y0, x0 = int(y * (size[0] - height)), int(x * (size[1] - width))
        yield Box(y0, x0, y0 + height, x0 + width)


def chosen(size: tuple[int, int], side: int, count: int, read: Callable[[Box], np.ndarray]) -> list[Box]:
    """The first boxes of ``spread`` that are apart and no bare background; where these are too few, others too.

    Args:
        read: From a box to pixels uint8 (c, h, w).
    """
    if max(size) <= side:
        return [Box(0, 0, *size)]
    apart: list[Box] = []
    empty: list[Box] = []
    for box in spread(size, side):
        if len(apart) == count:
            break
        if not any(box & other for other in (*apart, *empty)):
            (empty if is_empty(read(box)) else apart).append(box)
    boxes = [*apart, *empty][:count] or [next(spread(size, side))]
    return sorted(boxes, key=lambda box: (box.y0 + box.y1, box.x0))


def is_empty(pixels: np.ndarray) -> bool:
    """Whether a crop (c, h, w) is mostly white."""
    return float((pixels.min(0) >= WHITE).mean()) > MOST_WHITE
