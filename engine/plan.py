"""Who owns which shards, who evaluates which windows, which rectangles travel: integers, the same on every rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from engine.cover import Cover
from engine.geometry import Grid, Window, grid


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
        return -(-self.shape[1] // self.sides[1])

    @cached_property
    def owner(self) -> np.ndarray:
        """int64 (shards,): the rank that owns each."""
        return deal(len(self.shards), self.size)

    def meeting(self, box: Window) -> list[int]:
        """The shards that a box of the canvas meets."""
        rows = range(box.y0 // self.sides[0], (box.y1 - 1) // self.sides[0] + 1)
        columns = range(box.x0 // self.sides[1], (box.x1 - 1) // self.sides[1] + 1)
        return [row * self.columns + column for row in rows for column in columns]

    def owned(self, rank: int) -> list[int]:
        return np.nonzero(self.owner == rank)[0].tolist()


def deal(count: int, size: int) -> np.ndarray:
    """The rank of each of ``count`` things dealt in contiguous runs whose lengths differ by one at most.

    >>> deal(5, 2).tolist()
    [0, 0, 0, 1, 1]
    """
    return np.arange(count) * size // max(count, 1)


def deal_by_cost(costs: np.ndarray, size: int, ahead: np.ndarray | None = None) -> np.ndarray:
    """The rank of each thing, in contiguous runs of equal cost, to within the cost of one thing.

    Args:
        ahead: what each rank has done beyond its share so far; it is given that much less.

    >>> deal_by_cost(np.array([3, 1, 1, 1]), 2).tolist()
    [0, 1, 1, 1]
    """
    shares = np.full(size, costs.sum() / size) - (0 if ahead is None else ahead)
    cuts = np.cumsum(np.maximum(shares, 0))[:-1]
    return np.searchsorted(cuts, np.cumsum(costs) - costs / 2, side="right")


@dataclass(frozen=True)
class Pieces:
    """Where boxes meet shards: row i says that ``box[i]`` of item ``item[i]`` lies in shard ``shard[i]``."""

    item: np.ndarray
    shard: np.ndarray
    box: np.ndarray  # (n, 4): y0, x0, y1, x1

    def __len__(self) -> int:
        return len(self.item)

    def __getitem__(self, rows: np.ndarray) -> Pieces:
        return Pieces(self.item[rows], self.shard[rows], self.box[rows])

    def window(self, row: int) -> Window:
        return Window(*(int(v) for v in self.box[row]))

    @property
    def areas(self) -> np.ndarray:
        return (self.box[:, 2] - self.box[:, 0]) * (self.box[:, 3] - self.box[:, 1])


def cut_by_shards(boxes: np.ndarray, ownership: Ownership) -> Pieces:
    """Cut boxes (n, 4) along the shards; ordered by item, then shard."""
    sides = np.array(ownership.sides)
    first = boxes[:, :2] // sides
    last = (boxes[:, 2:] - 1) // sides
    spans = (last - first + 1).max(0, initial=1)
    found = []
    for dy in range(int(spans[0])):
        for dx in range(int(spans[1])):
            sy, sx = first[:, 0] + dy, first[:, 1] + dx
            items = np.nonzero((sy <= last[:, 0]) & (sx <= last[:, 1]))[0]
            corner = np.stack([sy[items], sx[items]], 1) * sides
            box = np.concatenate(
                [np.maximum(boxes[items, :2], corner), np.minimum(boxes[items, 2:], corner + sides)], 1
            )
            found.append(Pieces(items, sy[items] * ownership.columns + sx[items], box))
    merged = Pieces(*(np.concatenate([getattr(p, name) for p in found]) for name in ("item", "shard", "box")))
    return merged[np.lexsort((merged.shard, merged.item))]


def bounding_pieces(pieces: Pieces, reader: np.ndarray) -> Pieces:
    """For every (reader, shard) the smallest box that holds all its pieces; ``item`` is the reader.

    Args:
        reader: the rank that reads each piece.
    """
    if not len(pieces):
        return pieces
    order = np.lexsort((pieces.shard, reader))
    reader, shard, box = reader[order], pieces.shard[order], pieces.box[order]
    new = np.nonzero(np.r_[True, (np.diff(reader) != 0) | (np.diff(shard) != 0)])[0]
    low = np.minimum.reduceat(box[:, :2], new, axis=0)
    high = np.maximum.reduceat(box[:, 2:], new, axis=0)
    return Pieces(reader[new], shard[new], np.concatenate([low, high], 1))


@dataclass(frozen=True)
class LevelPlan:
    """One level: which rank evaluates which windows and which rectangles cross between ranks.

    Args:
        cover: the windows.
        costs: evaluations of each window.
        source: who owns what is read.
        reader: the rank that evaluates each window.
        reads: for every (rank, shard) the box of the canvas that the rank reads; ``item`` is the rank.
        writes: where estimates are used; ``item`` is the window.
        writer: the rank that fuses each shard; -1: the shard is not wanted.
    """

    cover: Cover
    costs: np.ndarray
    source: Ownership
    reader: np.ndarray
    reads: Pieces
    writes: Pieces
    writer: np.ndarray

    def windows_of(self, rank: int) -> list[int]:
        """The windows that a rank evaluates, in the order of the cover."""
        return np.nonzero(self.reader == rank)[0].tolist()

    @property
    def evaluations(self) -> int:
        return int(self.costs.sum())

    def evaluations_of_ranks(self) -> np.ndarray:
        return np.bincount(self.reader, weights=self.costs, minlength=self.source.size).astype(np.int64)

    def travelling(self) -> tuple[int, int]:
        """Canvas elements (per channel) that cross between ranks: (before the evaluations, after them)."""
        reads = self.reads.areas[self.source.owner[self.reads.shard] != self.reads.item].sum()
        writes = self.writes.areas[self.writer[self.writes.shard] != self.reader[self.writes.item]].sum()
        return int(reads), int(writes)


def plan_level(cover: Cover, costs: np.ndarray, ownership: Ownership, ahead: np.ndarray | None = None) -> LevelPlan:
    """Cut a level's evaluations in equal runs along the order of the shards.

    Args:
        ahead: evaluations that each rank has done beyond its share in earlier levels.
    """
    asked = np.nonzero(costs)[0]  # a window that costs nothing is neither read nor used
    windows = np.concatenate([cover.corners, cover.corners + cover.patch], 1)[asked]
    centres = (cover.keep[:, :2] + cover.keep[:, 2:]) // 2 // np.array(ownership.sides)
    order = np.argsort(centres[:, 0] * ownership.columns + centres[:, 1], kind="stable")
    reader = np.empty(len(cover), np.int64)
    reader[order] = deal_by_cost(costs[order], ownership.size, ahead)
    cut = cut_by_shards(windows, ownership)
    cut = Pieces(asked[cut.item], cut.shard, cut.box)
    writes = cut_by_shards(cover.keep[asked], ownership)
    return LevelPlan(
        cover=cover,
        costs=costs,
        source=ownership,
        reader=reader,
        reads=bounding_pieces(cut, reader[cut.item]),
        writes=Pieces(asked[writes.item], writes.shard, writes.box),
        writer=ownership.owner,
    )


def plan_decode(cover: Cover, ownership: Ownership, shards: Sequence[int], writers: Sequence[int]) -> LevelPlan:
    """One round of decoding: the windows that touch the given shards, cut in equal runs over all ranks.

    Args:
        cover: the decoder's windows, in latents.
        shards: to be written in this round.
        writers: the rank that writes each of them.
    """
    writer = np.full(len(ownership.shards), -1, np.int64)
    writer[list(shards)] = list(writers)
    near = np.unique(np.concatenate([cover.touching(ownership.shards[s]) for s in shards]))
    writes = cut_by_shards(cover.keep[near], ownership)
    writes = Pieces(near[writes.item], writes.shard, writes.box)
    writes = writes[np.nonzero(writer[writes.shard] >= 0)[0]]
    # A window is decoded once a round, in the order of the first wanted shard that it touches.
    items, first = np.unique(writes.item, return_index=True)
    order = items[np.lexsort((items, writes.shard[first]))]
    reader = np.full(len(cover), -1, np.int64)
    reader[order] = deal(len(order), ownership.size)
    windows = np.concatenate([cover.corners, cover.corners + cover.patch], 1)[items]
    cut = cut_by_shards(windows, ownership)
    cut = Pieces(items[cut.item], cut.shard, cut.box)
    costs = (reader >= 0).astype(np.int64)
    return LevelPlan(cover, costs, ownership, reader, bounding_pieces(cut, reader[cut.item]), writes, writer)


def decode_rounds(remaining: Sequence[int], size: int) -> list[tuple[list[int], list[int]]]:
    """Deal the shards still to be written: rounds of (shards, their writers), one shard a rank and round."""
    rank_of = deal(len(remaining), size)
    runs = [[s for s, r in zip(remaining, rank_of, strict=True) if r == rank] for rank in range(size)]
    rounds = []
    for turn in range(max((len(run) for run in runs), default=0)):
        present = [rank for rank in range(size) if turn < len(runs[rank])]
        rounds.append(([runs[rank][turn] for rank in present], present))
    return rounds


def image_box(shard: Window, factor: int, size: tuple[int, int]) -> Window:
    """The pixels of a shard that lie in the image; empty where the canvas was padded."""
    return shard.scaled(factor) & Window(0, 0, *size)
