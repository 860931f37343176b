"""A region of an unbounded plane, and the windows of every level that it needs: integers alone.

A level's windows lie on a lattice without edges: window (i, j) begins at ``offset + patch (i, j)``, and its estimate is
used in all of it. What a region is at the end is a function of the windows that touch it, these read all of the level
before below them, and so on down to the noise: the *cone* of the region. Two regions that overlap have the same windows
in common, so that they agree to the bit.

    level 0      |-------|-------|-------|-------|
    level 1          |-------|-------|-------|            each level has an offset of its own, held for ``hold`` levels
    level 2        |-------|-------|-------|
    end                  |####|  the region

A window whose result is known from an earlier request is not needed, nor what it alone would need.

Source of exactness by recomputing a cone: InfiniteDiffusion (SIGGRAPH 2026), in one process and without levels kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.planning.cover import Axis, Lattice
from engine.planning.geometry import Box, enclosing
from engine.planning.streams import Stream

FARTHEST = 2**52  # px from the origin: positions are 64-bit integers, and exact in float64


@dataclass(frozen=True)
class Windows:
    """Some windows of a lattice.

    Args:
        patch: Side of a window, in latents.
        offset: Where window (0, 0) begins, 0 to ``patch - 1`` along each axis.
        first: Numbers (i, j) of the first window of a block.
        mask: bool (rows, columns): which windows of the block are meant.
    """

    patch: int
    offset: tuple[int, int]
    first: tuple[int, int]
    mask: np.ndarray

    def __len__(self) -> int:
        return int(self.mask.sum())

    @property
    def box(self) -> Box:
        """The smallest box that holds all of them; an empty one where there are none."""
        if not self.mask.any():
            return Box(0, 0, 0, 0)
        spans = [np.nonzero(self.mask.any(1 - axis))[0] for axis in (0, 1)]
        y0, x0 = (self._start(axis, int(span[0])) for axis, span in enumerate(spans))
        y1, x1 = (self._start(axis, int(span[-1]) + 1) for axis, span in enumerate(spans))
        return Box(y0, x0, y1, x1)

    def _start(self, axis: int, index: int) -> int:
        return self.offset[axis] + (self.first[axis] + index) * self.patch

    def at(self, corners: np.ndarray) -> np.ndarray:
        """bool (n,): whether windows of the lattice, by their top left corners int64 (n, 2), are among them."""
        index = (corners - np.array(self.offset)) // self.patch - np.array(self.first)
        inside = ((index >= 0) & (index < self.mask.shape)).all(1)
        among = np.zeros(len(corners), bool)
        among[inside] = self.mask[tuple(index[inside].T)]
        return among

    def covers(self, box: Box) -> np.ndarray:
        """bool (h, w): the latents of a box that lie in any of them."""
        starts, stops = (box.y0, box.x0), (box.y1, box.x1)
        index, inside = [], []
        for start, stop, o, first, count in zip(starts, stops, self.offset, self.first, self.mask.shape, strict=True):
            n = (np.arange(start, stop) - o) // self.patch - first
            index.append(np.clip(n, 0, count - 1))
            inside.append((n >= 0) & (n < count))
        return self.mask[np.ix_(*index)] & np.logical_and.outer(*inside)

    def below(self, offset: tuple[int, int]) -> Windows:
        """The windows of another lattice that overlap any of these."""
        mask, first = self.mask, list(self.first)
        for axis in (0, 1):
            moved = self.offset[axis] - offset[axis]
            first[axis] += moved // self.patch
            if moved % self.patch:  # each overlaps two
                pad = [(0, 0), (0, 0)]
                pad[axis] = (0, 1)
                mask = np.pad(mask, pad)
                mask = mask | np.roll(mask, 1, axis)
        return Windows(self.patch, offset, (first[0], first[1]), mask)

    def without(self, known: Sequence[Windows]) -> Windows:
        """Those that are not among others of the same lattice."""
        mask = self.mask.copy()
        for other in known:
            assert (other.patch, other.offset) == (self.patch, self.offset), "windows of another lattice"
            starts = [a - b for a, b in zip(other.first, self.first, strict=True)]
            ours, theirs = [], []
            for start, count, other_count in zip(starts, mask.shape, other.mask.shape, strict=True):
                low, high = max(start, 0), min(start + other_count, count)
                ours.append(slice(low, max(high, low)))
                theirs.append(slice(low - start, max(high, low) - start))
            mask[tuple(ours)] &= ~other.mask[tuple(theirs)]
        return Windows(self.patch, self.offset, self.first, mask)


def touching(region: Box, patch: int, offset: tuple[int, int]) -> Windows:
    """The windows of a lattice that overlap a box.

    >>> windows = touching(Box(-5, 0, 4, 8), patch=8, offset=(3, 0))
    >>> windows.first, windows.mask.shape, windows.box
    ((-1, 0), (2, 1), Box(y0=-5, x0=0, y1=11, x1=8))
    """
    starts, stops = (region.y0, region.x0), (region.y1, region.x1)
    first = [(start - o) // patch for start, o in zip(starts, offset, strict=True)]
    last = [(stop - 1 - o) // patch for stop, o in zip(stops, offset, strict=True)]
    shape = tuple(b - a + 1 for a, b in zip(first, last, strict=True))
    return Windows(patch, offset, (first[0], first[1]), np.ones(shape, bool))


def lattice_level(level: int, levels: int, hold: int) -> int:
    """The level whose lattice a level has. They are held from the end on, where a cone is narrowest: fewest to the end.

    >>> [lattice_level(level, 5, hold=3) for level in range(5)]
    [1, 1, 4, 4, 4]
    """
    return levels - 1 - (levels - 1 - level) // hold * hold


def offsets(seed: int, levels: int, patch: int, hold: int = 1) -> list[tuple[int, int]]:
    """Where the lattice of every level lies: drawn as those of the shifted cover, anew every ``hold`` levels."""
    drawn = [
        Stream(seed, lattice_level(level, levels, hold)).cover_generator().integers(0, patch, 2)
        for level in range(levels)
    ]
    return [(int(y), int(x)) for y, x in drawn]


def needed_windows(
    region: Box, lattices: Sequence[tuple[int, int]], patch: int, known: Sequence[Sequence[Windows]] = ()
) -> list[Windows]:
    """The windows that are to be evaluated at each level so that a region is known at the end.

    Args:
        region: In latents.
        lattices: Offset of each level's lattice, from the noisiest on.
        known: For each level, windows whose result is known; empty: none is.
    """
    needed: list[Windows] = []
    wanted = touching(region, patch, lattices[-1])
    for level in range(len(lattices) - 1, -1, -1):
        if needed:
            wanted = needed[-1].below(lattices[level])
        needed.append(wanted.without(known[level]) if known else wanted)
    return needed[::-1]


def area_ratio(needed: Sequence[Windows], region: Box) -> float:
    """What a region costs: the latents of all windows that are evaluated, over those of the region at every level."""
    return sum(len(windows) * windows.patch**2 for windows in needed) / (len(needed) * region.area)


@dataclass(frozen=True)
class KnownWindows:
    """What one request has made known of a plane.

    Args:
        folder: Name of the folder in which its levels are kept.
        levels: Of each level the windows whose result is known.
        request: Checksum of the request's job.
    """

    folder: str
    levels: tuple[Windows, ...]
    request: str = ""


@dataclass(frozen=True)
class Request:
    """What is asked of a plane.

    Args:
        region: In px of the plane.
        hold: Levels that share a lattice.
        known: What earlier requests have made known.
        plane: Folder of the plane.
    """

    region: Box
    hold: int = 1
    known: tuple[KnownWindows, ...] = ()
    plane: Path | None = None


@dataclass(frozen=True)
class Cone:
    """What one request takes of a plane: a canvas that holds the cone of a region, and what is evaluated on it.

    Args:
        region: The region, px of the plane.
        canvas: The canvas, latents of the plane: whole windows of the decoder, and every window that is needed.
        needed: The windows to be evaluated at each level.
        known: What earlier requests have made known.
    """

    region: Box
    canvas: Box
    needed: tuple[Windows, ...]
    known: tuple[KnownWindows, ...] = ()

    @property
    def corner(self) -> tuple[int, int]:
        """Where the canvas begins on the plane, (y, x) in latents."""
        return self.canvas.y0, self.canvas.x0

    def lattice(self, level: int) -> Lattice:
        """The windows of a level, on the canvas. Those that its edge cuts are pushed inside, and are never needed."""
        windows = self.needed[level]
        (height, width), patch = self.canvas.shape, windows.patch
        y, x = ((offset - start) % patch or patch for offset, start in zip(windows.offset, self.corner, strict=True))
        return Lattice(Axis(height, patch, patch, y), Axis(width, patch, patch, x))

    def asked(self, level: int, corners: np.ndarray) -> np.ndarray:
        """bool (n,): whether windows of ``lattice``, by their corners on the canvas, are evaluated."""
        windows, corners = self.needed[level], corners + np.array(self.corner)
        on_lattice = ((corners - np.array(windows.offset)) % windows.patch == 0).all(1)
        return on_lattice & windows.at(corners)

    def pixels(self, factor: int) -> Box:
        """The region on the canvas, px of the canvas."""
        corner = self.canvas.scaled(factor)
        return self.region.moved(-corner.y0, -corner.x0)


def cone_of(
    region: Box,
    factor: int,
    decoder: tuple[int, int],
    lattices: Sequence[tuple[int, int]],
    patch: int,
    known: Sequence[KnownWindows] = (),
) -> Cone:
    """What it takes to know a region.

    Args:
        region: In px.
        factor: Pixels per latent.
        decoder: Side and stride of the decoder's windows, in latents, which lie on a lattice through the origin.
        lattices: Offset of each level's lattice.
        known: What earlier requests have made known.
    """
    final = whole_windows(latents_of(region, factor), *decoder)
    needed = needed_windows(final, lattices, patch, list(zip(*(one.levels for one in known), strict=True)))
    boxes = [final, *(windows.box for windows in needed if len(windows))]
    return Cone(region, whole_windows(enclosing(boxes), *decoder), tuple(needed), tuple(known))


def corners_of(box: Box) -> tuple[int, int, int, int]:
    return box.y0, box.x0, box.y1, box.x1


def latents_of(region: Box, factor: int) -> Box:
    """The latents that hold any pixel of a box.

    >>> latents_of(Box(-9, 0, 8, 1), 8)
    Box(y0=-2, x0=0, y1=1, x1=1)
    """
    return Box(region.y0 // factor, region.x0 // factor, -(-region.y1 // factor), -(-region.x1 // factor))


def whole_windows(box: Box, side: int, stride: int) -> Box:
    """The windows of a lattice through the origin that overlap a box, as one box.

    >>> whole_windows(Box(5, 8, 9, 9), side=6, stride=4)
    Box(y0=0, x0=4, y1=14, x1=14)
    """

    def first(start: int) -> int:
        return (start - side) // stride * stride + stride

    def stop(end: int) -> int:
        return (end - 1) // stride * stride + side

    return Box(first(box.y0), first(box.x0), stop(box.y1), stop(box.x1))
