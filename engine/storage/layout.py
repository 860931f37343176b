"""A layout knows which arrays an output has, their shapes, and the index and file of every shard.

There are two: ``ImageLayout`` is for one image with its pyramid, ``SetLayout`` for a set of independent images. A shard
is one file with one writer. Callers name it by its box (a ``Box``): the box holds rows and columns of pixels of an
image; of a set, its rows are whole images and it has one column.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np

from engine.planning.geometry import Box, Grid


@dataclass(frozen=True)
class LabelArray:
    """The array of what an image was made from, which is stored beside it.

    Args:
        name: Name of the array: "tissue", "classes" or "nuclei".
        dtype: Name of an unsigned type.
        entries: (name, RGB) of every value; empty where values are too many to have names.
    """

    name: str
    dtype: str = "uint8"
    entries: tuple[tuple[str, tuple[int, int, int]], ...] = ()


@dataclass(frozen=True)
class ArraySpec:
    """The facts that ``create`` makes a Zarr array from.

    Args:
        name: Path of the array in its group.
        level: Pyramid level, 0 at full size.
        dtype: Name of the type of its values.
        shape, chunks, shards: Lengths along every axis.
        axes: Name of every axis.
        fill: Value of what was not written.
    """

    name: str
    level: int
    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    shards: tuple[int, ...]
    axes: tuple[str, ...]
    fill: int = 0


@dataclass(frozen=True)
class Layout(ABC):
    """The shapes of an output's arrays; what both kinds of layout have in common.

    Args:
        size: Height and width of an image, px.
        channels: Number of channels of an image.
        shard: Side of a shard of one image, px.
        chunk: Side of a chunk, px.
        label: The array of what the image was made from; None: there is none.
    """

    size: tuple[int, int]
    channels: int
    shard: int
    chunk: int
    label: LabelArray | None = None

    @property
    @abstractmethod
    def image(self) -> str:
        """Name the array that holds the image or images at full size."""

    @property
    @abstractmethod
    def labels(self) -> str | None:
        """Name the array that holds the labels at full size; None: there is none."""

    @property
    def complete(self) -> bool:
        """Whether a finished output has all of its shards; a plane has those that were asked for."""
        return True

    def expects(self, box: Box) -> bool:
        """Whether a finished output that is complete has the shard of a box at full size."""
        return True

    @property
    def roi(self) -> str | None:
        """Name the array that holds the region of interest at full size; None: there is none."""
        return None

    @property
    def finest(self) -> tuple[str, ...]:
        """Name every array at full size: the image or images first, then the maps beside it."""
        return tuple(name for name in (self.image, self.labels, self.roi) if name)

    @abstractmethod
    def sizes(self) -> list[tuple[int, int]]:
        """List the height and width of each pyramid level, px."""

    @abstractmethod
    def boxes(self, level: int = 0) -> Grid:
        """List the boxes of the shards of a pyramid level; a shard's number is its place in this list."""

    @abstractmethod
    def arrays(self) -> list[ArraySpec]:
        """List every array, level by level."""

    @abstractmethod
    def ome_groups(self, name: str, pixel_size_um: float) -> dict[str, dict[str, Any]]:
        """Make the OME-Zarr metadata of every group that has any, by the group's path; the output itself is ``""``."""

    @abstractmethod
    def index(self, box: Box) -> tuple[Any, ...]:
        """Index an array, with or without channels, by the box of a shard or of pixels of an image."""

    @abstractmethod
    def index_in(self, image: int, box: Box) -> tuple[Any, ...]:
        """Index an array, with or without channels, by a box of pixels of one of the images."""

    @abstractmethod
    def shard_file(self, name: str, box: Box) -> PurePath:
        """Name the file of a shard, relative to the output's folder."""

    @abstractmethod
    def shards_with(self, images: Sequence[int]) -> np.ndarray:
        """Find the numbers of the shards that hold any of these images: int64, increasing."""

    @abstractmethod
    def assemble(self, box: Box, read: Callable[[int, Box], np.ndarray]) -> np.ndarray:
        """Put the values of an array without channels together for the box of a shard.

        Args:
            read: Function from an image's number and a box of its pixels to their values (h, w).
        """

    @abstractmethod
    def in_order(self) -> Iterator[tuple[Any, ...]]:
        """Index the image's pixels part by part: in the order c y x, or for a set in the order index c y x.

        A part is at most a row of shards, so that a reader holds no more in memory.
        """

    @abstractmethod
    def attributes(self) -> dict[str, Any]:
        """Describe the layout for the output's attributes; ``output.layout_of`` reads this."""

    def level(self, name: str, level: int) -> str:
        """Name the array at a level of the pyramid whose finest array is ``name``."""
        return f"{name.removesuffix('0')}{level}" if level else name

    def dtype_of(self, name: str) -> str:
        """Name the type of an array's values, given its name at full size: image and region are uint8."""
        return self.label.dtype if self.label and name == self.labels else "uint8"

    def files(self) -> int:
        """Count the files of the finished output, metadata included, without listing them."""
        arrays = self.arrays()
        shards = sum(len(self.boxes(array.level)) for array in arrays)
        groups = {folder for array in arrays for folder in PurePath(array.name).parents}
        return shards + len(arrays) + len(groups) + 6  # the private array, metadata, ledger, lock, checkpoint, times

    def shape_text(self) -> str:
        """Say the shape of the image in words."""
        return f"shape {self.channels} x {self.size[0]} x {self.size[1]} (c, y, x)"
