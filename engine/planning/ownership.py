"""Which rank owns which shard, and where boxes meet shards."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from engine.planning.geometry import Grid, Window, grid


@dataclass(frozen=True)
class Ownership:
    """A canvas cut into shards of one size, dealt to the ranks in contiguous runs of equal length.

    Args:
        shape: of the canvas.
        sides: rows and columns of a shard.
        size: how many ranks.
    """

    shape: tuple[int, int]
    sides: tuple[int, int]
    size: int

    @cached_property
    def shards(self) -> Grid:
        return grid(self.shape, self.sides)

    @property
    def columns(self) -> int:
        return self.shards.counts[1]

    @property
    def count(self) -> int:
        return len(self.shards)

    def shard(self, index: int) -> Window:
        return self.shards[index]

    def owner(self, shards: np.ndarray) -> np.ndarray:
        """int64: the rank that owns each."""
        return shards * self.size // self.count

    def owned(self, rank: int) -> range:
        return partition_evenly(self.count, self.size, rank)

    def overlapping(self, box: Window) -> list[int]:
        """The shards that a box of the canvas meets."""
        rows = range(box.y0 // self.sides[0], (box.y1 - 1) // self.sides[0] + 1)
        columns = range(box.x0 // self.sides[1], (box.x1 - 1) // self.sides[1] + 1)
        return [row * self.columns + column for row in rows for column in columns]


def partition_evenly(count: int, size: int, rank: int) -> range:
    """What a rank is dealt of ``count`` things, in contiguous runs whose lengths differ by one at most.

    Thing i goes to rank i size // count.

    >>> [list(dealt(5, 2, rank)) for rank in range(2)]
    [[0, 1, 2], [3, 4]]
    """
    return range(-(-rank * count // size), -(-(rank + 1) * count // size))


def partition_by_cost(
    costs: np.ndarray, before: int, total: int, size: int, shares: np.ndarray | None = None
) -> np.ndarray:
    """The rank of each thing of a line of things, in runs of equal cost, to within the cost of one thing.

    Args:
        costs: int64 (n,), of a stretch of the line.
        before, total: the costs before the stretch, and of the whole line.
        shares: float64 (size,), rising to 1: where each rank's run ends; None: equal runs.

    >>> deal(np.array([3, 1, 1, 1]), 0, 6, 2).tolist(), deal(np.array([1, 1]), 4, 6, 2).tolist()
    ([0, 1, 1, 1], [1, 1])
    """
    middle = 2 * (before + np.cumsum(costs)) - costs  # twice the place of each thing's middle
    if shares is None:
        return np.minimum(middle * size // max(2 * total, 1), size - 1)
    return np.minimum(np.searchsorted(shares, middle / max(2 * total, 1), side="right"), size - 1)


@dataclass(frozen=True)
class Pieces:
    """Where boxes meet shards: row i says that ``box[i]`` of key ``key[i]`` lies in shard ``shard[i]``."""

    key: np.ndarray
    shard: np.ndarray
    box: np.ndarray  # (n, 4): y0, x0, y1, x1

    def __len__(self) -> int:
        return len(self.key)

    def __getitem__(self, rows: np.ndarray) -> Pieces:
        return Pieces(self.key[rows], self.shard[rows], self.box[rows])

    def window(self, row: int) -> Window:
        return Window(*(int(v) for v in self.box[row]))

    @property
    def areas(self) -> np.ndarray:
        return (self.box[:, 2] - self.box[:, 0]) * (self.box[:, 3] - self.box[:, 1])


def cut_by_shards(boxes: np.ndarray, ownership: Ownership) -> Pieces:
    """Cut boxes (n, 4) along the shards; ordered by key, then shard."""
    sides = np.array(ownership.sides)
    first = boxes[:, :2] // sides
    last = (boxes[:, 2:] - 1) // sides
    spans = (last - first + 1).max(0, initial=1)
    found = []
    for dy in range(int(spans[0])):
        for dx in range(int(spans[1])):
            sy, sx = first[:, 0] + dy, first[:, 1] + dx
            keys = np.nonzero((sy <= last[:, 0]) & (sx <= last[:, 1]))[0]
            corner = np.stack([sy[keys], sx[keys]], 1) * sides
            box = np.concatenate([np.maximum(boxes[keys, :2], corner), np.minimum(boxes[keys, 2:], corner + sides)], 1)
            found.append(Pieces(keys, sy[keys] * ownership.columns + sx[keys], box))
    merged = Pieces(*(np.concatenate([getattr(p, name) for p in found]) for name in ("key", "shard", "box")))
    return merged[np.lexsort((merged.shard, merged.key))]


def bounding_pieces(pieces: Pieces) -> Pieces:
    """For every (key, shard) the smallest box that holds all its pieces; ordered by key, then shard."""
    if not len(pieces):
        return pieces
    pieces = pieces[np.lexsort((pieces.shard, pieces.key))]
    key, shard, box = pieces.key, pieces.shard, pieces.box
    new = np.nonzero(np.r_[True, (np.diff(key) != 0) | (np.diff(shard) != 0)])[0]
    low = np.minimum.reduceat(box[:, :2], new, axis=0)
    high = np.maximum.reduceat(box[:, 2:], new, axis=0)
    return Pieces(key[new], shard[new], np.concatenate([low, high], 1))


@dataclass(frozen=True)
class DecodeRounds:
    """The shards that are still to be written, dealt in contiguous runs; each rank writes one a round.

    Args:
        remaining: sorted; a range without gaps, or int64.
        size: how many ranks.
    """

    remaining: range | np.ndarray
    size: int

    def __len__(self) -> int:
        return -(-len(self.remaining) // self.size)

    def shards(self, rank: int, turn: int) -> list[int]:
        """What a rank writes in a round: one shard or none."""
        run = partition_evenly(len(self.remaining), self.size, rank)
        return [int(self.remaining[run[turn]])] if turn < len(run) else []

    def writer(self, shards: np.ndarray, turn: int) -> np.ndarray:
        """int64: the rank that writes each in a round; -1: it is not of this round."""
        count = len(self.remaining)
        if isinstance(self.remaining, range):
            place = shards - self.remaining.start
            there = (place >= 0) & (place < count)
        else:
            place = np.minimum(np.searchsorted(self.remaining, shards), count - 1)
            there = self.remaining[place] == shards
        rank = place * self.size // count
        return np.where(there & (place + (-rank * count // self.size) == turn), rank, -1)


def image_box(shard: Window, factor: int, size: tuple[int, int]) -> Window:
    """The pixels of a shard that lie in the image; empty where the canvas was padded."""
    return shard.scaled(factor) & Window(0, 0, *size)
