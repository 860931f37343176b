"""Boxes of the plane: integers only, rows before columns, half-open."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Box:
    """The box [y0, y1) x [x0, x1) of an unbounded plane; positions may be negative.

    >>> Box(0, 0, 4, 6) & Box(2, 3, 9, 9)
    Box(y0=2, x0=3, y1=4, x1=6)
    """

    y0: int
    x0: int
    y1: int
    x1: int

    @property
    def height(self) -> int:
        return max(self.y1 - self.y0, 0)

    @property
    def width(self) -> int:
        return max(self.x1 - self.x0, 0)

    @property
    def shape(self) -> tuple[int, int]:
        return self.height, self.width

    @property
    def area(self) -> int:
        return self.height * self.width

    def __bool__(self) -> bool:
        return self.area > 0

    def __and__(self, other: Box) -> Box:
        """The intersection; it is empty, and False, where the boxes do not overlap."""
        return Box(max(self.y0, other.y0), max(self.x0, other.x0), min(self.y1, other.y1), min(self.x1, other.x1))

    def scaled(self, factor: int) -> Box:
        """The same box in units ``factor`` times smaller (latents -> pixels)."""
        return Box(self.y0 * factor, self.x0 * factor, self.y1 * factor, self.x1 * factor)

    def halved(self) -> Box:
        """The smallest box of a canvas of half the size that holds this one."""
        return Box(self.y0 // 2, self.x0 // 2, -(-self.y1 // 2), -(-self.x1 // 2))

    def moved(self, y: int, x: int) -> Box:
        """The same box so many rows and columns further on."""
        return Box(self.y0 + y, self.x0 + x, self.y1 + y, self.x1 + x)

    def within(self, outer: Box) -> tuple[slice, slice]:
        """The index of this box in an array that holds ``outer``."""
        return slice(self.y0 - outer.y0, self.y1 - outer.y0), slice(self.x0 - outer.x0, self.x1 - outer.x0)


def missing(region: Box, known: list[Box]) -> list[Box]:
    """The parts of a box that none of others holds.

    >>> missing(Box(0, 0, 4, 4), [Box(0, 0, 4, 2), Box(0, 1, 3, 4)])
    [Box(y0=3, x0=2, y1=4, x1=4)]
    """
    parts = [region]
    for box in known:
        parts = [rest for part in parts for rest in around(part, part & box)]
    return parts


def around(box: Box, hole: Box) -> list[Box]:
    """A box without a box in it, as up to four boxes."""
    if not hole:
        return [box]
    rest = [
        Box(box.y0, box.x0, hole.y0, box.x1),
        Box(hole.y1, box.x0, box.y1, box.x1),
        Box(hole.y0, box.x0, hole.y1, hole.x0),
        Box(hole.y0, hole.x1, hole.y1, box.x1),
    ]
    return [part for part in rest if part]


@dataclass(frozen=True)
class Grid(Sequence[Box]):
    """Boxes of one size that tile a canvas from its top left corner, row by row; those at its edge are cut off.

    A box is made when it is asked for: a grid takes no more memory for a larger canvas.

    Args:
        shape: Height and width of the canvas.
        sides: Rows and columns of a box.
    """

    shape: tuple[int, int]
    sides: tuple[int, int]

    @property
    def counts(self) -> tuple[int, int]:
        """Numbers of boxes below one another and side by side."""
        return -(-self.shape[0] // self.sides[0]), -(-self.shape[1] // self.sides[1])

    def __len__(self) -> int:
        return self.counts[0] * self.counts[1]

    def __getitem__(self, index: int) -> Box:  # type: ignore[override]  # no slices
        count = self.counts[0] * self.counts[1]  # of two far regions of a plane more than len() may say
        if not -count <= index < count:
            raise IndexError(f"box {index} of {count}")
        return self.at(*divmod(index % count, self.counts[1]))

    def at(self, row: int, column: int) -> Box:
        y, x = row * self.sides[0], column * self.sides[1]
        return Box(y, x, min(y + self.sides[0], self.shape[0]), min(x + self.sides[1], self.shape[1]))

    def meeting(self, box: Box) -> Iterator[Box]:
        """The boxes that have a pixel of another box, in their order.

        >>> [(b.y0, b.x0) for b in Grid((9, 10**40), (4, 4)).meeting(Box(3, 10**39, 5, 10**39 + 1))]
        [(0, 1000000000000000000000000000000000000000), (4, 1000000000000000000000000000000000000000)]
        """
        part, (rows, columns) = box & Box(0, 0, *self.shape), self.sides
        if part:
            for row in range(part.y0 // rows, -(-part.y1 // rows)):
                yield from (self.at(row, column) for column in range(part.x0 // columns, -(-part.x1 // columns)))

    def index_of(self, box: Box) -> int:
        """The number of the box with the same corner."""
        return box.y0 // self.sides[0] * self.counts[1] + box.x0 // self.sides[1]


def enclosing(boxes: Sequence[Box]) -> Box:
    """The smallest box that holds some boxes, of which there is one at least.

    >>> enclosing([Box(0, 0, 1, 1), Box(-2, 5, 0, 6)])
    Box(y0=-2, x0=0, y1=1, x1=6)
    """
    y0, x0 = min(box.y0 for box in boxes), min(box.x0 for box in boxes)
    return Box(y0, x0, max(box.y1 for box in boxes), max(box.x1 for box in boxes))


def grid(shape: tuple[int, int], side: int | tuple[int, int]) -> Grid:
    """The grid of boxes with these sides; one number is the side of squares.

    >>> [w.shape for w in grid((3, 5), 4)]
    [(3, 4), (3, 1)]
    """
    return Grid(shape, (side, side) if isinstance(side, int) else side)


@dataclass(frozen=True)
class Frames:
    """The images of a job on its canvas of latents: one, or several of one size below one another.

    Args:
        size: Height and width of an image, px.
        factor: Pixels per latent.
        patch: Side of the model's windows, in latents; a smaller image is padded to it.
        count: Number of images of a set; None: the job is one large image.
        corner: Where the canvas begins on the plane that it is cut out of, (y, x) in latents.
    """

    size: tuple[int, int]
    factor: int
    patch: int
    count: int | None = None
    corner: tuple[int, int] = (0, 0)

    @property
    def frame(self) -> tuple[int, int]:
        """Height and width of one image, in latents."""
        height, width = (max(-(-n // self.factor), self.patch) for n in self.size)
        return height, width

    @property
    def images(self) -> int:
        """Number of images."""
        return self.count or 1

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the canvas, in latents."""
        return self.images * self.frame[0], self.frame[1]

    def shard_sides(self, shard_px: int) -> tuple[int, int]:
        """Rows and columns of a shard, in latents: a square of one image, or as many whole images of a set as fit."""
        side = shard_px // self.factor
        if self.count is None:
            return side, side
        return self.group(shard_px) * self.frame[0], self.frame[1]

    def group(self, shard_px: int) -> int:
        """Number of a set's images in a shard: about as many pixels as the square holds; at least 1 and at most 256."""
        pixels = self.frame[0] * self.frame[1] * self.factor**2
        return max(min(shard_px**2 // pixels, 256, self.images), 1)
