"""Which rank owns which shards, and where boxes cut them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Self

import numpy as np

from engine.planning.geometry import Box, Grid, grid


@dataclass(frozen=True)
class Ownership:
    """A canvas cut into shards of one size; each rank owns a contiguous run of them, all runs of equal length.

    Args:
        shape: Height and width of the canvas.
        sides: Rows and columns of a shard; those at the lower and right edge are cut off.
        size: Number of ranks.
    """

    shape: tuple[int, int]
    sides: tuple[int, int]
    size: int

    @cached_property
    def shards(self) -> Grid:
        return grid(self.shape, self.sides)

    @property
    def columns(self) -> int:
        """Number of shards side by side."""
        return self.shards.counts[1]

    @property
    def count(self) -> int:
        """Number of shards."""
        return len(self.shards)

    def shard(self, index: int) -> Box:
        """The box of a shard."""
        return self.shards[index]

    def owner(self, shards: np.ndarray) -> np.ndarray:
        """int64: the rank that owns each shard."""
        return shards * self.size // self.count

    def owned(self, rank: int) -> range:
        """The shards that a rank owns."""
        return partition_evenly(self.count, self.size, rank)

    def overlapping(self, box: Box) -> list[int]:
        """The shards that a box of the canvas overlaps."""
        rows = range(box.y0 // self.sides[0], (box.y1 - 1) // self.sides[0] + 1)
        columns = range(box.x0 // self.sides[1], (box.x1 - 1) // self.sides[1] + 1)
        return [row * self.columns + column for row in rows for column in columns]


def partition_evenly(count: int, size: int, rank: int) -> range:
    """A rank's run of ``count`` items that are cut into ``size`` runs, whose lengths differ by one at most.

    Item i goes to rank i size // count.

    >>> [list(partition_evenly(5, 2, rank)) for rank in range(2)]
    [[0, 1, 2], [3, 4]]
    """
    return range(-(-rank * count // size), -(-(rank + 1) * count // size))


def partition_by_cost(
    costs: np.ndarray, before: int, total: int, size: int, run_ends: np.ndarray | None = None
) -> np.ndarray:
    """int64 (n,): the rank of each item, where a line of items is cut into runs of equal cost, one a rank.

    A rank's cost is right to within the cost of one item. Each rank can cut its own stretch of the line by itself.

    Args:
        costs: int64 (n,), the costs of a stretch of the line.
        before, total: Costs of all that lies before the stretch, and of the whole line.
        run_ends: float64 (size,), where along the line, from 0 to 1, each rank's run ends; None: runs of equal cost.

    >>> partition_by_cost(np.array([3, 1, 1, 1]), 0, 6, 2).tolist()
    [0, 1, 1, 1]
    >>> partition_by_cost(np.array([1, 1]), 4, 6, 2).tolist()
    [1, 1]
    """
    middle = 2 * (before + np.cumsum(costs)) - costs  # twice the position of each item's middle: an integer
    if run_ends is None:
        return np.minimum(middle * size // max(2 * total, 1), size - 1)
    return np.minimum(np.searchsorted(run_ends, middle / max(2 * total, 1), side="right"), size - 1)


@dataclass(frozen=True)
class Pieces:
    """A table of boxes that each lie inside one shard; row i is piece i.

    Args:
        shard: int64 (n,), the shard that the piece lies in.
        box: int64 (n, 4), (y0, x0, y1, x1), on the canvas.
    """

    shard: np.ndarray
    box: np.ndarray

    def __len__(self) -> int:
        return len(self.shard)

    def __getitem__(self, rows: np.ndarray | slice) -> Self:
        return type(self)(**{column.name: getattr(self, column.name)[rows] for column in fields(self)})

    def window(self, row: int) -> Box:
        """The box of one piece."""
        return Box(*self.box[row].tolist())

    @property
    def areas(self) -> np.ndarray:
        """int64 (n,): latents of each piece."""
        return (self.box[:, 2] - self.box[:, 0]) * (self.box[:, 3] - self.box[:, 1])


@dataclass(frozen=True)
class CutPieces(Pieces):
    """Pieces of boxes that were cut along the shards.

    Args:
        parent: int64 (n,), the row of the box that the piece was cut from.
    """

    parent: np.ndarray


def cut_by_shards(boxes: np.ndarray, ownership: Ownership) -> CutPieces:
    """Cut boxes (n, 4) along the shards; pieces are ordered by the box they were cut from, then by shard.

    >>> cut_by_shards(np.array([[3, 4, 11, 12]]), Ownership((16, 12), (8, 8), 1)).box.tolist()
    [[3, 4, 8, 8], [3, 8, 8, 12], [8, 4, 11, 8], [8, 8, 11, 12]]
    """
    sides = np.array(ownership.sides)
    first = boxes[:, :2] // sides
    last = (boxes[:, 2:] - 1) // sides
    spans = (last - first + 1).max(0, initial=1)
    parents, shards, cut = [], [], []
    for dy in range(int(spans[0])):  # every box's piece in the shard dy rows and dx columns from its first
        for dx in range(int(spans[1])):
            sy, sx = first[:, 0] + dy, first[:, 1] + dx
            parent = np.nonzero((sy <= last[:, 0]) & (sx <= last[:, 1]))[0]
            corner = np.stack([sy[parent], sx[parent]], 1) * sides
            low, high = np.maximum(boxes[parent, :2], corner), np.minimum(boxes[parent, 2:], corner + sides)
            parents.append(parent)
            shards.append(sy[parent] * ownership.columns + sx[parent])
            cut.append(np.concatenate([low, high], 1))
    pieces = CutPieces(parent=np.concatenate(parents), shard=np.concatenate(shards), box=np.concatenate(cut))
    return pieces[np.lexsort((pieces.shard, pieces.parent))]


def bounding_boxes(groups: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The smallest box that holds all boxes of a group, for every group.

    Args:
        groups: int64 (n, k), equal rows where boxes belong to one group.
        boxes: int64 (n, 4).
    Returns:
        int64 (m, k) and (m, 4): the groups in order, and the box of each.

    >>> [column.tolist() for column in bounding_boxes(np.array([[5], [5]]), np.array([[0, 0, 2, 2], [1, 3, 4, 9]]))]
    [[[5]], [[0, 0, 4, 9]]]
    """
    if not len(groups):
        return groups, boxes
    order = np.lexsort(groups.T[::-1])
    groups, boxes = groups[order], boxes[order]
    starts = np.nonzero(np.r_[True, (np.diff(groups, axis=0) != 0).any(1)])[0]
    low = np.minimum.reduceat(boxes[:, :2], starts, axis=0)
    high = np.maximum.reduceat(boxes[:, 2:], starts, axis=0)
    return groups[starts], np.concatenate([low, high], 1)


@dataclass(frozen=True)
class DecodeRounds:
    """The shards that are still to be written, in contiguous runs, one run a rank; each rank writes one shard a round.

    Args:
        remaining: Those shards, sorted: a range without gaps, or int64 (n,).
        size: Number of ranks.
    """

    remaining: range | np.ndarray
    size: int

    def __len__(self) -> int:
        return -(-len(self.remaining) // self.size)

    def shards(self, rank: int, turn: int) -> list[int]:
        """The shards that a rank writes in round number ``turn``: one or none."""
        run = partition_evenly(len(self.remaining), self.size, rank)
        return [int(self.remaining[run[turn]])] if turn < len(run) else []

    def writer(self, shards: np.ndarray, turn: int) -> np.ndarray:
        """int64: the rank that writes each shard in round number ``turn``; -1 where nobody writes it then."""
        count = len(self.remaining)
        if isinstance(self.remaining, range):
            position = shards - self.remaining.start
            remains = (position >= 0) & (position < count)
        else:
            position = np.minimum(np.searchsorted(self.remaining, shards), count - 1)
            remains = self.remaining[position] == shards
        rank = position * self.size // count
        within_run = position + (-rank * count // self.size)  # a rank's run begins at ceil(rank count / size)
        return np.where(remains & (within_run == turn), rank, -1)


def image_box(shard: Box, factor: int, size: tuple[int, int]) -> Box:
    """The pixels of a shard that lie in the image; empty where the canvas was padded."""
    return shard.scaled(factor) & Box(0, 0, *size)
