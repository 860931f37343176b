"""Nuclei whose id falls apart: parts that do not touch one another, each with distance maps of its own.

As HoVer-Net has it (Graham et al. 2019): pixels that are neighbours above, below or beside one another, and have the
same id, are one part. Maps are read in boxes, and what is kept is in proportion to the number of nuclei, and to the
rows of pixels of those that fall apart.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from engine.diffusion.boxes import ReadBox, ReadImageBox
from engine.inputs.nuclei import LARGEST_ID, ROW, Pieces, run_starts
from engine.inputs.nuclei_rows import merged, rows_of_runs
from engine.planning.geometry import Box, grid

RUN = np.dtype([("key", np.uint64), ("at", np.int64), ("piece", np.int64)])


def find_pieces(read: ReadImageBox, shape: tuple[int, int], images: int = 1, side: int = 2048) -> Pieces:
    """The parts of all nuclei that fall apart, of one map or of a stack of maps.

    Args:
        read: Reader of the map of an image: integers (height, width); 0 is background.
        shape: Height and width of every image, px.
        side: Height and width of the boxes that are read, px; changes nothing else.
    """
    rows, runs = [np.zeros(0, ROW)], [np.zeros(0, RUN)]
    for image in range(images):
        pieces, of_image = _pieces_of_image(lambda box, image=image: read(image, box), image, shape, side)  # type: ignore[misc]
        of_image["piece"] += sum(map(len, rows))
        rows.append(pieces)
        runs.append(of_image)
    return Pieces(np.concatenate(rows), np.concatenate(runs), shape[1])


def _pieces_of_image(read: ReadBox, image: int, shape: tuple[int, int], side: int) -> tuple[np.ndarray, np.ndarray]:
    """``ROW`` of the parts of the nuclei that fall apart, and ``RUN`` of their pixels, in order of position."""
    parts, joins = [np.zeros(0, ROW)], [np.zeros((2, 0), np.int64)]
    firsts, count = [], 0  # of each box the number of its first part
    above = left = np.zeros((2, 0), np.int64)  # ids and parts of the pixels that the next box touches
    below = np.zeros((2, shape[1]), np.int64)
    for box in grid(shape, side):
        seen = _Seen(read(box), image, box)
        firsts.append(count)
        if box.x0 == 0:
            above, below, left = below, np.zeros((2, shape[1]), np.int64), np.zeros((2, box.height), np.int64)
        edge = seen.pixels(count)
        joins += [_touching(above[:, box.x0 : box.x1], edge[:, 0]), _touching(left, edge[:, :, 0])]
        below[:, box.x0 : box.x1], left = edge[:, -1], edge[:, :, -1]
        parts.append(seen.parts)
        count += len(seen.parts)
    every, (a, b) = np.concatenate(parts), np.concatenate(joins, axis=1)
    roots = _roots(len(every), a, b)
    whole, piece_of = merged(every, roots), np.unique(roots, return_inverse=True)[1]
    keys, counts = np.unique(whole["key"], return_counts=True)
    torn = np.isin(whole["key"], keys[counts > 1])
    numbers = np.where(torn, np.cumsum(torn) - 1, -1)[piece_of]  # of each part the piece that it belongs to
    return whole[torn], _runs_of(read, image, shape, side, firsts, numbers)


def _runs_of(
    read: ReadBox, image: int, shape: tuple[int, int], side: int, firsts: list[int], numbers: np.ndarray
) -> np.ndarray:
    """``RUN`` of every part whose number is not below 0, from the boxes that have such."""

    def runs() -> Iterator[np.ndarray]:
        for box, first, end in zip(grid(shape, side), firsts, [*firsts[1:], len(numbers)], strict=True):
            if (numbers[first:end] < 0).all():
                continue
            seen = _Seen(read(box), image, box)
            pieces = np.where(seen.part_of < 0, -1, numbers[first:end][seen.part_of])
            kept = np.zeros(int((pieces >= 0).sum()), RUN)
            rows = seen.rows[pieces >= 0]
            kept["key"], kept["piece"] = rows["key"], pieces[pieces >= 0]
            kept["at"] = rows["y0"] * shape[1] + rows["x0"]
            yield kept

    every = np.concatenate([np.zeros(0, RUN), *runs()])
    return every[np.argsort(every["at"], kind="stable")]


class _Seen:
    """The runs of a box and the parts that they make in it.

    Args:
        ids: The box of the map.
    """

    def __init__(self, ids: np.ndarray, image: int, box: Box) -> None:
        starts = run_starts(ids)
        self.ids, self.rows = ids, rows_of_runs(ids, starts, image, box)
        run = np.repeat(np.arange(len(starts)), np.diff(starts, append=ids.size)).reshape(ids.shape)
        begins = np.zeros(ids.shape, bool)
        begins.ravel()[starts] = True
        touch = (ids[1:] == ids[:-1]) & (ids[1:] > 0) & (begins[1:] | begins[:-1])
        roots = _roots(len(starts), run[1:][touch], run[:-1][touch])
        nuclear = self.rows["key"] & np.uint64(LARGEST_ID) > 0
        self.parts = merged(self.rows[nuclear], roots[nuclear])
        self.part_of = np.full(len(starts), -1)  # of each run
        self.part_of[nuclear] = np.unique(roots[nuclear], return_inverse=True)[1]
        self.run = run

    def pixels(self, first: int) -> np.ndarray:
        """int64 (2, h, w): id of every pixel, and the number of its part, counted from ``first``."""
        return np.stack([self.ids.astype(np.int64), self.part_of[self.run] + first])


def _touching(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """int64 (2, n): the parts on the two sides of a line, where they have the same id.

    Args:
        a, b: Ids and parts (2, length) along the line.
    """
    same = (a[0] == b[0]) & (a[0] > 0)
    return np.stack([a[1][same], b[1][same]])


def _roots(count: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """int64 (count,): of things that are joined in pairs (a, b), the least that each is joined to, by whatever way."""
    parent: np.ndarray = np.arange(count)
    while True:
        pa, pb = parent[a], parent[b]
        if (pa == pb).all():
            return parent
        np.minimum.at(parent, np.maximum(pa, pb), np.minimum(pa, pb))
        while (parent[parent] != parent).any():
            parent = parent[parent]
