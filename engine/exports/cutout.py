"""What of an output is exported as one picture: a part of an array at a level of the pyramid, read by box."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from engine.exports.asked import Asked
from engine.exports.pictures import channels_last
from engine.exports.source import finished_output
from engine.planning.geometry import Box
from engine.storage.files import halved
from engine.storage.layout import LabelArray, Layout
from engine.storage.output import Output
from engine.storage.plane_layout import PlaneLayout
from engine.storage.set_layout import SetLayout


@dataclass(frozen=True)
class Cutout:
    """A part of one array of an output, and its own pyramid.

    Args:
        name: Name of the array at full size.
        image: Number of the image of a set; 0 of an output of one.
        level: Level that the cutout is full size at.
        box: In pixels of that level.
    """

    output: Output
    name: str
    image: int
    level: int
    box: Box

    @property
    def label(self) -> LabelArray | None:
        """What the values are the numbers of; None: they are an image's."""
        return None if self.name == self.output.layout.image else self.output.layout.label

    @property
    def channels(self) -> int:
        return 1 if self.label else self.output.layout.channels

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.output.layout.dtype_of(self.name))

    @property
    def pixel_size_um(self) -> float | None:
        """Side of a pixel, micrometres; None: the output of a set does not know it."""
        try:
            size = self.output.pixel_size_um
        except KeyError:
            size = float(self.output.provenance.get("pixel_size_um", 0))
        return size * 2**self.level or None

    def size(self, halvings: int = 0) -> tuple[int, int]:
        """Height and width after so many halvings."""
        return ceil_shift(self.box.height, halvings), ceil_shift(self.box.width, halvings)

    def halvings(self, coarsest: int) -> int:
        """How many halvings it takes until neither side is longer than ``coarsest``, px."""
        return next(n for n in range(64) if max(self.size(n)) <= coarsest)

    def read(self, box: Box, halvings: int = 0) -> np.ndarray:
        """The pixels in a box: (h, w), or (h, w, 3) of an image in colour.

        Raises:
            ValueError: a shard is damaged.
        """
        pixels = self._read(box, halvings)
        return pixels if self.label else channels_last(pixels)

    def _read(self, box: Box, halvings: int) -> np.ndarray:
        """Pixels as they are stored: of a level of the output, where its pixels are those of this pyramid."""
        if not halvings:
            return self._stored(self.level, box.moved(self.box.y0, self.box.x0))
        level, y, x = self.level + halvings, self.box.y0 >> halvings, self.box.x0 >> halvings
        if level < len(self.output.layout.sizes()) and (y << halvings, x << halvings) == (self.box.y0, self.box.x0):
            return self._stored(level, box.moved(y, x))
        pixels = np.empty((*((self.channels,) if not self.label else ()), *box.shape), self.dtype)
        for quarter in quarters(box):  # so that no more than a few boxes are in memory, however many are below
            below = self._read(quarter.scaled(2) & Box(0, 0, *self.size(halvings - 1)), halvings - 1)
            pixels[(..., *quarter.within(box))] = below[..., ::2, ::2] if self.label else halved(below)
        return pixels

    def _stored(self, level: int, box: Box) -> np.ndarray:
        if isinstance(self.output.layout, SetLayout):
            return self.output.read_part(self.image, box, self.name)
        return self.output.read(self.output.layout.level(self.name, level), box)


def cutout_of(asked: Asked) -> Cutout:
    """What is asked for of an output.

    Raises:
        ValueError: the output is unfinished, damaged or none, or has no such image, level, region or label map.
    """
    output = finished_output(asked.out, levels=None)
    layout = output.layout
    name = layout.labels if asked.labels else layout.image
    if name is None:
        raise ValueError(f"{asked.out} stores no label map; leave out `labels`")
    count = layout.count if isinstance(layout, SetLayout) else 1
    if isinstance(layout, SetLayout) and asked.image is None and count > 1:
        raise ValueError(f"{asked.out} holds {count} images; pass `image` 0 to {count - 1}, or a folder as TARGET")
    if asked.image is not None and asked.image >= count:
        raise ValueError(f"`image` is {asked.image} and {asked.out} holds {count}; choose 0 to {count - 1}")
    sizes, level = layout.sizes(), asked.level or 0
    if level >= len(sizes):
        raise ValueError(f"`level` is {level} and {asked.out} has {len(sizes)}; choose 0 to {len(sizes) - 1}")
    region = region_on_arrays(asked, layout)
    box = Box(region.y0 >> level, region.x0 >> level, ceil_shift(region.y1, level), ceil_shift(region.x1, level))
    return Cutout(output, name, asked.image or 0, level, box)


def region_on_arrays(asked: Asked, layout: Layout) -> Box:
    """The region that is asked for in the arrays' positions, which those of a plane are not; without one all there is.

    Raises:
        ValueError: it passes the edge.
    """
    corner = corner_of(layout)
    there = Box(0, 0, *layout.size).moved(*corner)
    region = asked.region or there
    if region & there != region:
        edge = f"which is {layout.size[0]} x {layout.size[1]} px"
        if isinstance(layout, PlaneLayout):
            edge = f"which has rows {there.y0}:{there.y1} and columns {there.x0}:{there.x1}"
        raise ValueError(f"`region` {region.y0}:{region.y1},{region.x0}:{region.x1} passes the image's edge, {edge}")
    return region.moved(-corner[0], -corner[1])


def corner_of(layout: Layout) -> tuple[int, int]:
    """Where the arrays of an output begin, (y, x) in px of level 0: of a plane somewhere on it."""
    return layout.corner if isinstance(layout, PlaneLayout) else (0, 0)


def ceil_shift(length: int, halvings: int) -> int:
    """A length after so many halvings, each of which rounds up.

    >>> ceil_shift(5, 1), ceil_shift(5, 2), ceil_shift(4, 2)
    (3, 2, 1)
    """
    return -(-length >> halvings)


def quarters(box: Box) -> Iterator[Box]:
    """The quarters of a box; fewer where it is one pixel high or wide."""
    half_y, half_x = (-(-n // 2) for n in box.shape)
    for y in (box.y0, box.y0 + half_y):
        for x in (box.x0, box.x0 + half_x):
            if quarter := Box(y, x, y + half_y, x + half_x) & box:
                yield quarter
