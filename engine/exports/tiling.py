"""Where tiles lie, and which part of a split each belongs to: a function of the place and a seed.

The image is divided into squares of tiles, *blocks*, and every block belongs to one part, such as train or val. A tile
that reaches into blocks of two parts (only tiles that overlap do) is left out, so that no pixel lies in two parts; with
a margin those too that lie near a tile of another part. Of a set every image is a block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from engine.planning.geometry import Box, Grid, grid

PARTS = {1: ("all",), 2: ("train", "val"), 3: ("train", "val", "test")}
BLOCKS = 30  # at least so many, where there are tiles enough
LARGEST_BLOCK = 8  # tiles a side


class Tile(NamedTuple):
    """A tile.

    Args:
        image: Number of the image of a set.
        y, x: Its corner, px of the cutout.
        part: Name of the part of the split.
    """

    image: int
    y: int
    x: int
    part: str


@dataclass(frozen=True)
class Tiling:
    """The tiles of an image, or of the images of a set.

    Args:
        size: Height and width of the cutout, px.
        images: Number of images.
        apart: Whether images are blocks: those of a set.
        side: Of a tile, px.
        overlap: Of neighbours, px, less than the side.
        shares: Of the parts, of the sum 1; one share: all is one part.
        seed: Of the split.
    """

    size: tuple[int, int]
    images: int
    apart: bool
    side: int
    overlap: int
    shares: tuple[float, ...] = (1.0,)
    seed: int = 0

    @property
    def step(self) -> int:
        """From a tile to the next, px."""
        return self.side - self.overlap

    @property
    def counts(self) -> tuple[int, int]:
        """How many tiles lie below one another and side by side; what is left at the edges has none."""
        height, width = ((n - self.overlap) // self.step for n in self.size)
        return max(height, 0), max(width, 0)

    @property
    def blocks(self) -> Grid:
        """The blocks of an image, px: whole steps of tiles, as large as leaves ``BLOCKS`` of them."""
        rows, columns = self.counts
        stepped = (rows * self.step, columns * self.step)  # what the last tiles overlap with has no block of its own
        if self.apart or len(self.shares) == 1:
            return grid(stepped, stepped)
        sides = (n for n in range(LARGEST_BLOCK, 0, -1) if -(-rows // n) * -(-columns // n) >= BLOCKS)
        return grid(stepped, next(sides, 1) * self.step)

    def part_of_block(self) -> np.ndarray:
        """int64 (images, blocks of an image): the number of the part of each, drawn by the seed, in their shares."""
        shape = (self.images, len(self.blocks))
        ends = np.rint(np.cumsum(self.shares) * np.prod(shape)).astype(np.int64)
        order = np.random.default_rng(self.seed).permutation(np.prod(shape))
        return np.searchsorted(ends, order, side="right").clip(max=len(self.shares) - 1).reshape(shape)

    def tiles(self) -> Iterator[Tile]:
        """The tiles of all parts, image by image and row by row."""
        if not all(self.counts):
            return
        blocks, parts, names = self.blocks, self.part_of_block(), PARTS[len(self.shares)]
        whole = Box(0, 0, *blocks.shape)
        for image in range(self.images):
            for y in range(0, whole.y1, self.step):
                for x in range(0, whole.x1, self.step):
                    within = meets(blocks, Box(y, x, y + self.side, x + self.side) & whole)
                    own = {int(parts[image, block]) for block in within}
                    if len(own) == 1:
                        yield Tile(image, y, x, names[own.pop()])

    def too_near(self, tiles: Sequence[Tile], margin: int) -> set[Tile]:
        """Those of one image's tiles that have to go, so that tiles of two parts are a margin apart.

        Train gives way to val and to test, and val to test: what is held out stays whole.

        Args:
            margin: Pixels that lie between two such tiles at least, in rows or in columns.

        >>> tiling = Tiling((4, 16), 1, False, side=4, overlap=0, shares=(0.5, 0.5))
        >>> tiles = [Tile(0, 0, 0, "train"), Tile(0, 0, 4, "train"), Tile(0, 0, 8, "val")]
        >>> [sorted(tile.x for tile in tiling.too_near(tiles, margin)) for margin in (0, 1, 4, 5)]
        [[], [4], [4], [0, 4]]
        """
        held, near = np.zeros(self.counts, bool), set[Tile]()
        steps = -(-(self.side + margin) // self.step)  # between tiles that far apart
        for part in reversed(PARTS[len(self.shares)]):
            those = [tile for tile in tiles if tile.part == part]
            places = [(tile.y // self.step, tile.x // self.step) for tile in those]
            around = [np.s_[max(y - steps + 1, 0) : y + steps, max(x - steps + 1, 0) : x + steps] for y, x in places]
            there = [not held[window].any() for window in around]
            near |= {tile for tile, stays in zip(those, there, strict=True) if not stays}
            for place, stays in zip(places, there, strict=True):
                held[place] |= stays
        return near


def meets(blocks: Grid, box: Box) -> Iterator[int]:
    """The numbers of the blocks that a box lies in.

    >>> list(meets(grid((8, 8), 4), Box(0, 2, 4, 6)))
    [0, 1]
    """
    (height, width), columns = blocks.sides, blocks.counts[1]
    for row in range(box.y0 // height, -(-box.y1 // height)):
        for column in range(box.x0 // width, -(-box.x1 // width)):
            yield row * columns + column
