"""Tiles of a plane by their places on it, while it grows: what is not known is transparent.

A request puts another folder in the plane's place, whose arrays may begin elsewhere. So what was read counts only if
the plane is still the one that was opened; else it is read again.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from engine import __version__
from engine.planning.geometry import Box, enclosing
from engine.reporting.labels import colors_of
from engine.storage.files import halved
from engine.storage.output import Output
from engine.storage.plane_layout import PlaneLayout
from engine.storage.plane_swap import plane_stamp, steady
from engine.viewing.cache import Cache
from engine.viewing.pictures import Picture, picture_of_image, picture_of_map
from engine.viewing.pixels import ABSENT, THERE, Source
from engine.viewing.viewer import CACHE, TILE, Answer

IMAGE, LABELS = "tiles", "labels"  # layers, by their addresses
LEVELS = 13  # of tiles: one of the coarsest has 2^21 px of the plane a side
T = TypeVar("T")
Pixels = tuple[np.ndarray, np.ndarray]  # values, and the state of each


@dataclass(frozen=True)
class Snapshot:
    """A plane as it is at one moment; without an output nothing is known."""

    output: Output | None
    stamp: tuple[int, ...]

    @cached_property
    def regions(self) -> list[Box]:
        return [] if self.output is None else [Box(*box) for box in self.output.provenance["regions"]]

    @cached_property
    def labels(self) -> list[dict[str, Any]]:
        """Name, colour and whether it is drawn, of each label; empty: there are none, or they have no names."""
        label = None if self.output is None else self.output.layout.label
        shown = [] if label is None else label.entries
        return [
            {"name": name, "color": "#" + bytes(color[:3]).hex(), "drawn": value > 0}
            for value, (name, color) in enumerate(shown)
        ]

    @cached_property
    def bounds(self) -> Box | None:
        """The smallest box that holds all that is known, px of the plane."""
        return enclosing(self.regions) if self.regions else None


class PlaneTiles:
    """Tiles of a plane. Threads share it.

    Args:
        quality: Of JPEG; None: PNG, without loss.
    """

    def __init__(self, plane: Path, quality: int | None) -> None:
        self.plane, self.quality = plane, quality
        self.cache: Cache[Picture] = Cache(CACHE, lambda picture: len(picture[1]))
        self.kept: Cache[Pixels] = Cache(CACHE, lambda pair: pair[0].nbytes + pair[1].nbytes)
        self.lock = threading.Lock()
        self.opened = Snapshot(None, ())
        self.renders = threading.BoundedSemaphore(max(os.cpu_count() or 1, 2))

    def snapshot(self) -> Snapshot:
        """The plane as it is now.

        Raises:
            ValueError: it is damaged.
        """

        def opened() -> Snapshot:
            stamp = plane_stamp(self.plane)
            if stamp == self.opened.stamp:
                return self.opened
            return Snapshot(Output(self.plane) if stamp else None, stamp)

        with self.lock:
            self.opened = steady(self.plane, opened)
            return self.opened

    def consistent(self, read: Callable[[Snapshot], T]) -> T:
        """What is read of a plane that does not change meanwhile.

        Raises:
            ValueError: it is damaged.
        """
        return steady(self.plane, lambda: read(self.snapshot()))

    def tile(self, layer: str, level: int, row: int, column: int, lossless: bool) -> Answer:
        """A tile: ``TILE`` px a side of a level, whose first pixel is (row TILE, column TILE) of it.

        Args:
            layer: ``IMAGE`` or ``LABELS``.
        """
        quality = None if lossless else self.quality
        box = Box(row, column, row + 1, column + 1).scaled(TILE)
        key = (layer, quality, self.consistent(lambda snapshot: facts_of(snapshot, layer, level, box)))

        def make() -> tuple[Picture, bool]:
            if picture := self.cache.get(key):
                return picture, True
            with self.renders:
                picture = self.consistent(lambda snapshot: self.picture(snapshot, layer, level, box, quality))
            if self.consistent(lambda snapshot: facts_of(snapshot, layer, level, box)) == key[2]:
                self.cache.put(key, picture)
                return picture, True
            return picture, False

        return Answer(hashlib.sha256(repr((__version__, level, row, column, key)).encode()).hexdigest()[:24], make)

    def picture(self, snapshot: Snapshot, layer: str, level: int, box: Box, quality: int | None) -> Picture:
        """A box of a level as a file; of labels a PNG whatever the quality."""
        values, state = self.pixels(snapshot, layer, level, box)
        if layer == IMAGE:
            return picture_of_image(values, state, box, quality)
        label = None if snapshot.output is None else snapshot.output.layout.label
        return picture_of_map(values, state, box, colors_of(() if label is None else label.entries))

    def pixels(self, snapshot: Snapshot, layer: str, level: int, box: Box) -> Pixels:
        """The pixels of a box of a level, in the plane's positions over 2^level.

        Returns:
            uint8 (c, h, w) of an image and whole numbers (h, w) of labels; uint8 (h, w): ``ABSENT`` or ``THERE``.
        """
        output, name = snapshot.output, array_of(snapshot, layer)
        channels = 3 if output is None else output.layout.channels
        values = np.zeros((channels, *box.shape) if layer == IMAGE else box.shape, dtype_of(snapshot, name))
        state, known = np.full(box.shape, ABSENT, np.uint8), known_in(snapshot.regions, level, box)
        if output is None or name is None or not known:
            return values, state
        if stored(output, level):
            here = on_level(output, level, box) & Box(0, 0, *output.layout.sizes()[level])
            if here:
                y, x = corner_of(output, level)
                place = here.moved(y, x).within(box)
                values[(..., *place)] = output.read(output.layout.level(name, level), here)
            for part in known:
                state[part.within(box)] = THERE
            return values, state
        for quarter in quarters(box):
            if known_in(snapshot.regions, level - 1, quarter):
                place = Box(quarter.y0 // 2, quarter.x0 // 2, quarter.y1 // 2, quarter.x1 // 2).within(box)
                below, its_state = self.kept_pixels(snapshot, layer, level - 1, quarter)
                values[(..., *place)] = halved(below) if layer == IMAGE else picked(below, its_state)
                state[place] = its_state.reshape(quarter.height // 2, 2, quarter.width // 2, 2).max(axis=(1, 3))
        return values, state

    def kept_pixels(self, snapshot: Snapshot, layer: str, level: int, box: Box) -> Pixels:
        """``pixels``, which are kept for levels above."""
        key = (layer, level, box, facts_of(snapshot, layer, level, box))
        made = self.kept.get(key)
        if made is None:
            made = self.pixels(snapshot, layer, level, box)
            self.kept.put(key, made)
        return made


def picked(labels: np.ndarray, state: np.ndarray) -> np.ndarray:
    """Labels (h, w) at half the size: of each square of four the first that is there, else the first.

    >>> picked(np.array([[1, 2], [3, 4]]), np.array([[ABSENT, ABSENT], [THERE, THERE]]))
    array([[3]])
    """
    height, width = labels.shape
    fours, there = (
        array.reshape(height // 2, 2, width // 2, 2).swapaxes(1, 2).reshape(height // 2, width // 2, 4)
        for array in (labels, state == THERE)
    )
    return np.take_along_axis(fours, there.argmax(-1)[..., None], -1)[..., 0]


def array_of(snapshot: Snapshot, layer: str) -> str | None:
    """The array of a layer; None: the plane has none."""
    if snapshot.output is None:
        return None
    return snapshot.output.layout.image if layer == IMAGE else snapshot.output.layout.labels


def dtype_of(snapshot: Snapshot, name: str | None) -> str:
    """The type of an array's values."""
    return "uint8" if snapshot.output is None or name is None else snapshot.output.layout.dtype_of(name)


def facts_of(snapshot: Snapshot, layer: str, level: int, box: Box) -> tuple[Any, ...]:
    """What changes when the pixels in a box of a level do: what is known there, and the stamps of its shards."""
    output, name, known = snapshot.output, array_of(snapshot, layer), known_in(snapshot.regions, level, box)
    if output is None or name is None or not known:
        return ()
    if not stored(output, level):
        return tuple(facts_of(snapshot, layer, level - 1, quarter) for quarter in quarters(box))
    here = on_level(output, level, box) & Box(0, 0, *output.layout.sizes()[level])
    source = Source(output, name, 0, Cache(0, lambda pair: 0))
    shards = [output.shards.stamp(shard) for shard, _ in source.shards(level, here)] if here else []
    return tuple(known), tuple(shards)


def corner_of(output: Output, level: int) -> tuple[int, int]:
    """Where a level's arrays begin, in its px."""
    assert isinstance(output.layout, PlaneLayout)
    return output.layout.corner[0] >> level, output.layout.corner[1] >> level


def on_level(output: Output, level: int, box: Box) -> Box:
    """A box of a level, in its arrays' own positions."""
    y, x = corner_of(output, level)
    return box.moved(-y, -x)


def stored(output: Output, level: int) -> bool:
    """Whether a level is in the pyramid, its pixels where those of the plane's levels are."""
    assert isinstance(output.layout, PlaneLayout)
    aligned = all(start % 2**level == 0 for start in output.layout.corner)
    return level == 0 or (aligned and level < len(output.layout.sizes()))


def known_in(regions: Sequence[Box], level: int, box: Box) -> list[Box]:
    """The parts of a box of a level of which any pixel at full size is known."""
    side = 2**level
    parts = []
    for known in regions:
        part = box & Box(known.y0 // side, known.x0 // side, -(-known.y1 // side), -(-known.x1 // side))
        if part:
            parts.append(part)
    return parts


def quarters(box: Box) -> list[Box]:
    """The four boxes of the level below that make a box of a level, whose sides are even."""
    y, x = (box.y0 + box.y1) // 2, (box.x0 + box.x1) // 2
    corners = [(box.y0, box.x0, y, x), (box.y0, x, y, box.x1), (y, box.x0, box.y1, x), (y, x, box.y1, box.x1)]
    return [Box(*corner).scaled(2) for corner in corners]
