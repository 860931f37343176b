"""Maps of the canvas in files: read by box, checked, hashed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from engine.job import SampleJob
from engine.planning.geometry import Window
from engine.storage.readers import read_integers

READ_BYTES = 2**27  # of a file read at once


@dataclass(frozen=True)
class MapFile:
    """A map of the canvas in a file, or a stack of one an image; opened where it is first read, and sent as its name.

    Args:
        option: of the command line, for messages.
        size: of the canvas: a map of another size is read at the nearest pixels.
        stack: whether it may be a stack.
        known: values from 0 on that there are; None: any will do.
        names: of the values, for messages.
    """

    path: Path
    option: str
    size: tuple[int, int]
    stack: bool = False
    known: int | None = None
    names: tuple[str, ...] = ()

    @cached_property
    def array(self) -> np.ndarray:
        return read_integers(self.path, self.option, self.stack)

    def read(self, image: int, box: Window, step: int) -> np.ndarray:
        """Every ``step``-th value of a box of an image.

        Raises:
            ValueError: a value that there is not.
        """
        height, width = self.array.shape[-2:]
        rows = np.arange(box.y0, box.y1, step) * height // self.size[0]
        columns = np.arange(box.x0, box.x1, step) * width // self.size[1]
        of_image = () if self.array.ndim == 2 else (image,)
        part = self.array[(*of_image, slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))]
        values = np.asarray(part)[np.ix_(rows - rows[0], columns - columns[0])]
        if self.known is not None and (wrong := (values < 0) | (values >= self.known)).any():
            row, column = (int(v[0]) for v in np.nonzero(wrong))
            which = f", map {image}," if self.array.ndim > 2 else ""
            listed = ", ".join(f"{i} {name}" for i, name in enumerate(self.names))
            raise ValueError(
                f"{self.option} {self.path}{which} has value {int(values[row, column])} at row {rows[row]}, "
                f"column {columns[column]}; the model knows {listed}"
            )
        return values

    def __reduce__(self) -> tuple[Any, ...]:
        return MapFile, (self.path, self.option, self.size, self.stack, self.known, self.names)


def check_size(shape: tuple[int, ...], job: SampleJob, what: str, way: str = "", resize: str | None = None) -> None:
    """Refuse a map of another size than the canvas, or a stack of another length than the set."""
    height, width = shape[-2:]
    if (height, width) != job.size and resize is None:
        raise ValueError(
            f"{what} is {height} x {width} px but the canvas is {job.size[0]} x {job.size[1]} px; "
            f"pass `size` {height}x{width}{way}"
        )
    if len(shape) == 3 and shape[0] != job.count:
        raise ValueError(f"{what} is a stack of {shape[0]} maps but `count` is {job.count}; pass `count` {shape[0]}")


def digest_of(array: np.ndarray, dtype: type | np.dtype | None = None) -> str:
    """sha256 of an array's shape, type and bytes, read in bands.

    Args:
        dtype: that its values are taken in; None: its own.
    """
    total = hashlib.sha256(f"{array.shape} {np.dtype(dtype or array.dtype)}".encode())
    for band in bands_of(array):
        total.update(np.ascontiguousarray(band, dtype).tobytes())
    return total.hexdigest()


def bands_of(array: np.ndarray) -> Iterator[np.ndarray]:
    """An array's values in their order, at most ``READ_BYTES`` at a time, or one row."""
    if array.ndim < 2:
        yield np.asarray(array)
        return
    rows = max(READ_BYTES // max(array.shape[-1] * array.dtype.itemsize, 1), 1)
    for index in np.ndindex(*array.shape[:-2]):
        for y in range(0, array.shape[-2], rows):
            yield np.asarray(array[(*index, slice(y, y + rows))])
