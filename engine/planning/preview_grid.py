"""A small picture of a canvas: which latents each of its pixels stands for, and which shards have them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from engine.planning.geometry import Box, Frames

LONGEST_SIDE = 1024  # px of the picture of one image
MOST_IMAGES = 48  # of a set: a page of the viewer's contact sheet


@dataclass(frozen=True)
class PreviewGrid:
    """A picture in which a pixel stands for ``step`` x ``step`` latents, however large the canvas; images of a set lie
    below one another, the first of them alone.

    Args:
        frame: Height and width of one image, in latents.
        images: Number of images that are shown.
        step: Latents a pixel, along a side.
    """

    frame: tuple[int, int]
    images: int
    step: int

    @classmethod
    def of(cls, frames: Frames) -> PreviewGrid:
        """The picture of a job's canvas: no side of one image has more than 1024 px, a set has no more than 2^20 px.

        >>> PreviewGrid.of(Frames((80_000, 16_000), 8, 32)).shape
        (1000, 200)
        """
        height, width = frames.frame
        images = min(frames.images, MOST_IMAGES)
        if frames.count is None:
            return cls(frames.frame, 1, -(-max(height, width) // LONGEST_SIDE))
        return cls(frames.frame, images, math.ceil((images * height * width) ** 0.5 / LONGEST_SIDE))

    @property
    def rows(self) -> int:
        """Height of one image, px."""
        return -(-self.frame[0] // self.step)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the picture, px."""
        return self.images * self.rows, -(-self.frame[1] // self.step)

    def pieces(self, box: Box) -> Iterator[tuple[Box, Box]]:
        """What a box of the canvas has of the picture, image by image: the latents, and the pixels that they make.

        A pixel belongs to the box that has its first latent. Boxes of a grid have every pixel once.

        >>> [[part[1] for part in PreviewGrid((8, 4), 1, 3).pieces(box)] for box in (Box(0, 0, 4, 4), Box(4, 0, 8, 4))]
        [[Box(y0=0, x0=0, y1=2, x1=2)], [Box(y0=2, x0=0, y1=3, x1=2)]]
        """
        height, step = self.frame[0], self.step
        for image in range(box.y0 // height, min(-(-box.y1 // height), self.images)):
            top = image * height
            inside = box & Box(top, box.x0, top + height, box.x1)
            y0, x0, y1, x1 = (-(-n // step) for n in (inside.y0 - top, inside.x0, inside.y1 - top, inside.x1))
            latents = Box(top + y0 * step, x0 * step, inside.y1, inside.x1)
            if latents:
                yield latents, Box(image * self.rows + y0, x0, image * self.rows + y1, x1)
