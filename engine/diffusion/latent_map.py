"""A value for every latent of the canvas, read box by box: no rank holds the map of the whole canvas."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from engine.diffusion.boxes import ReadImageBox, ReadSteps, in_blocks
from engine.planning.geometry import Box, Frames

SIDE = 256  # latents; side of the blocks that are kept
KEPT = 256  # number of blocks that are kept, of 64 KiB each


@dataclass(frozen=True)
class LatentMap:
    """uint8 (H, W) of the canvas, sliced by box: ``labels[y0:y1, x0:x1]`` is an array.

    Blocks that were read are kept for a while, and not sent to other ranks.

    Args:
        frames: The images on the canvas.
        read: Function of (image, box in px, px per latent) that returns a value for each latent; the box begins at a
            latent's corner.
        repeats: Whether an image smaller than a window is padded with the values of its edge, and not with 0.
    """

    frames: Frames
    read: ReadSteps
    repeats: bool = True

    @property
    def shape(self) -> tuple[int, int]:
        return self.frames.shape

    @property
    def nbytes(self) -> int:
        """The most bytes that are kept."""
        return min(KEPT * SIDE**2, self.shape[0] * self.shape[1])

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        (y0, y1, _), (x0, x1, _) = (part.indices(n) for part, n in zip(index, self.shape, strict=True))
        return self.read_canvas(0, Box(y0, x0, y1, x1))

    @cached_property
    def read_canvas(self) -> ReadImageBox:
        """A reader of boxes of the canvas, taken as one image."""
        return in_blocks(lambda _, box: self.read_block(box), self.shape, np.uint8, SIDE, KEPT)

    def read_block(self, box: Box) -> np.ndarray:
        """uint8 (h, w): the values of a box of the canvas, from each image that it meets."""
        height = self.frames.frame[0]
        parts = []
        for image in range(box.y0 // height, (box.y1 - 1) // height + 1):
            top = image * height
            rows = max(box.y0 - top, 0), min(box.y1 - top, height)
            parts.append(self.read_frame(image, Box(rows[0], box.x0, rows[1], box.x1)))
        return np.concatenate(parts)

    def read_frame(self, image: int, box: Box) -> np.ndarray:
        """uint8 (h, w): the values of a box of an image's frame, which may reach beyond the image."""
        (height, width), factor = self.frames.size, self.frames.factor
        last = -(-height // factor) - 1, -(-width // factor) - 1
        inner = Box(min(box.y0, last[0]), min(box.x0, last[1]), min(box.y1, last[0] + 1), min(box.x1, last[1] + 1))
        part = self.read(image, inner.scaled(factor) & Box(0, 0, height, width), factor)
        rows, columns = np.arange(box.y0, box.y1), np.arange(box.x0, box.x1)
        values = part[np.minimum(rows, last[0]) - inner.y0][:, np.minimum(columns, last[1]) - inner.x0]
        if not self.repeats:
            values = values * ((rows <= last[0])[:, None] & (columns <= last[1]))
        return values.astype(np.uint8)

    def __reduce__(self) -> tuple[Any, ...]:
        return LatentMap, (self.frames, self.read, self.repeats)
