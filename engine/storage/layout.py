"""What the layout of an output answers: which arrays there are, their shapes, and the index and file of a shard.

There are two: ``ImageLayout`` of one image with its pyramid, and ``SetLayout`` of a set of independent images. A shard
is one file with one writer. Callers name it by its box: in an image, rows and columns of pixels; in a set, rows are
whole images and there is one column.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np

from engine.planning.geometry import Grid, Window


@dataclass(frozen=True)
class LabelArray:
    """What an image was made from, stored beside it.

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
    """One Zarr array to be made.

    Args:
        name: Path of the array in its group.
        level: Pyramid level, 0 at full size.
        shape, chunks, shards: Lengths along every axis.
        axes: Name of every axis.
    """

    name: str
    level: int
    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    shards: tuple[int, ...]
    axes: tuple[str, ...]


@dataclass(frozen=True)
class Layout(ABC):
    """The shapes of an output's arrays.

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
        """The name of the array with the image or images at full size."""

    @property
    @abstractmethod
    def labels(self) -> str | None:
        """The name of the array with the labels at full size; None: there is none."""

    @abstractmethod
    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of each pyramid level."""

    @abstractmethod
    def boxes(self, level: int = 0) -> Grid:
        """The boxes of the shards of a pyramid level, in order."""

    @abstractmethod
    def arrays(self) -> list[ArraySpec]:
        """Every array, level by level."""

    @abstractmethod
    def ome_groups(self, pixel_size_um: float) -> dict[str, dict[str, Any]]:
        """The OME-Zarr metadata of every group that has any, by the group's path; the output itself is ``""``."""

    @abstractmethod
    def index(self, box: Window) -> tuple[Any, ...]:
        """Where a box lies in an array, with or without channels."""

    @abstractmethod
    def index_in(self, image: int, box: Window) -> tuple[Any, ...]:
        """Where a box of pixels of one image lies in an array."""

    @abstractmethod
    def shard_file(self, name: str, box: Window) -> PurePath:
        """The file of a shard, from the output's folder."""

    @abstractmethod
    def shards_with(self, images: Sequence[int]) -> np.ndarray:
        """Which shards, counted as in ``boxes()``, hold any of these images: int64, increasing."""

    @abstractmethod
    def assemble(self, box: Window, read: Callable[[int, Window], np.ndarray]) -> np.ndarray:
        """What an array without channels holds in a box.

        Args:
            read: From an image's number and a box of its pixels to their values (h, w).
        """

    @abstractmethod
    def in_order(self) -> Iterator[tuple[Any, ...]]:
        """Where the pixels lie in the array of the image, in the order c y x, or of a set in the order index c y x.

        Each index selects about a row of shards, so that no more is in memory.
        """

    @abstractmethod
    def attributes(self) -> dict[str, Any]:
        """What an output's attributes say of its layout; ``output.layout_of`` reads it."""

    def level(self, name: str, level: int) -> str:
        """The name of the array ``level`` steps up the pyramid whose finest array is ``name``."""
        return f"{name.removesuffix('0')}{level}" if level else name

    def dtype_of(self, name: str) -> str:
        """The type of the pixels of a finest array: uint8 for the image."""
        return "uint8" if name == self.image or self.label is None else self.label.dtype

    def files(self) -> int:
        """Number of files of the finished output, metadata included."""
        arrays = self.arrays()
        shards = sum(len(self.boxes(array.level)) for array in arrays)
        groups = {folder for array in arrays for folder in PurePath(array.name).parents}
        return shards + len(arrays) + len(groups) + 3  # ledger, lock, checkpoint

    def shape_text(self) -> str:
        """The shape of the image, for people."""
        return f"shape {self.channels} x {self.size[0]} x {self.size[1]} (c, y, x)"
