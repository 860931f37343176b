"""A value for every latent of the canvas, read box by box: no rank holds the map of the whole canvas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from engine.planning.geometry import Frames, Window

SIDE = 256  # side of a block, latents
KEPT = 256  # number of blocks that are cached, of 64 KiB each
ReadSteps = Callable[[int, Window, int], np.ndarray]  # (image, box in px, px per latent) -> a value for each latent


@dataclass(frozen=True)
class LatentMap:
    """uint8 (H, W) of the canvas, sliced by box: ``labels[y0:y1, x0:x1]`` is an array.

    Blocks that were read are cached, and the cache is not sent to other ranks.

    Args:
        read: Reads the values of the latents in a box of an image, px, which begins at a latent's corner.
        repeats: Whether an image smaller than a window is padded with the values of its edge; else it is with 0.
    """

    frames: Frames
    read: ReadSteps
    repeats: bool = True

    @property
    def shape(self) -> tuple[int, int]:
        return self.frames.shape

    @property
    def nbytes(self) -> int:
        """The most bytes that the cache holds."""
        return min(KEPT * SIDE**2, self.shape[0] * self.shape[1])

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        (y0, y1, _), (x0, x1, _) = (part.indices(n) for part, n in zip(index, self.shape, strict=True))
        box = Window(y0, x0, y1, x1)
        values = np.empty(box.shape, np.uint8)
        for y in range(y0 - y0 % SIDE, y1, SIDE):
            for x in range(x0 - x0 % SIDE, x1, SIDE):
                block = Window(y, x, y + SIDE, x + SIDE)
                common = box & block
                values[common.within(box)] = self.block(y, x)[common.within(block)]
        return values

    @cached_property
    def block(self) -> Callable[[int, int], np.ndarray]:
        """``read_block``, cached."""
        return lru_cache(maxsize=KEPT)(self.read_block)

    def read_block(self, y: int, x: int) -> np.ndarray:
        """uint8 (h, w): the block at a position of the canvas, image by image."""
        canvas = Window(y, x, y + SIDE, x + SIDE) & Window(0, 0, *self.shape)
        height = self.frames.frame[0]
        parts = []
        for image in range(canvas.y0 // height, (canvas.y1 - 1) // height + 1):
            top = image * height
            rows = max(canvas.y0 - top, 0), min(canvas.y1 - top, height)
            parts.append(self.read_frame(image, Window(rows[0], canvas.x0, rows[1], canvas.x1)))
        return np.concatenate(parts)

    def read_frame(self, image: int, box: Window) -> np.ndarray:
        """uint8 (h, w): a box of an image's frame, which may reach beyond the image."""
        (height, width), factor = self.frames.size, self.frames.factor
        last = -(-height // factor) - 1, -(-width // factor) - 1
        inner = Window(min(box.y0, last[0]), min(box.x0, last[1]), min(box.y1, last[0] + 1), min(box.x1, last[1] + 1))
        part = self.read(image, inner.scaled(factor) & Window(0, 0, height, width), factor)
        rows, columns = np.arange(box.y0, box.y1), np.arange(box.x0, box.x1)
        values = part[np.minimum(rows, last[0]) - inner.y0][:, np.minimum(columns, last[1]) - inner.x0]
        if not self.repeats:
            values = values * ((rows <= last[0])[:, None] & (columns <= last[1]))
        return values.astype(np.uint8)

    def __reduce__(self) -> tuple[Any, ...]:
        return LatentMap, (self.frames, self.read, self.repeats)
