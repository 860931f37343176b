"""Maps of the canvas in files: read by box, checked, hashed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from engine.inputs.input_file import InputFile
from engine.inputs.resize import nearest_box, nearest_index
from engine.job import SampleJob
from engine.planning.geometry import Box

READ_BYTES = 2**27  # bytes of a file that are read at once


@dataclass(frozen=True)
class MapFile:
    """A map of the canvas in a file, or a stack of one map an image.

    Args:
        file: The file, of integers (h, w) or (images, h, w).
        size: Height and width of an image, px; a map of another size is resized by nearest neighbours.
        known: Number of the values 0, 1, ... that the model knows; None: any value will do.
        names: Name of each known value, for messages.
    """

    file: InputFile
    size: tuple[int, int]
    known: int | None = None
    names: tuple[str, ...] = ()

    def read(self, image: int, box: Box, step: int) -> np.ndarray:
        """Every ``step``-th value of a box of an image, from the box's corner.

        Raises:
            ValueError: a value that the model does not know.
        """
        array = self.file.array
        height, width = array.shape[-2:]
        values = nearest_box(partial(box_of, array, image), (height, width), self.size, box, step)
        if self.known is not None and (wrong := (values < 0) | (values >= self.known)).any():
            row, column = (int(v[0]) for v in np.nonzero(wrong))
            y = nearest_index(box.y0, box.y1, height, self.size[0], step)[row]
            x = nearest_index(box.x0, box.x1, width, self.size[1], step)[column]
            which = f", map {image}," if array.ndim > 2 else ""
            listed = ", ".join(f"{i} {name}" for i, name in enumerate(self.names))
            raise ValueError(
                f"{self.file}{which} has value {int(values[row, column])} at row {y}, column {x}; "
                f"the model knows {listed}; labels spread over 0 to 255 are read with `labels_scale` spread, codes of "
                "one's own with `labels_table` FILE.csv"
            )
        return values


def box_of(array: np.ndarray, image: int, box: Box) -> np.ndarray:
    """A box (height, width) of a map, whichever image it is for, or of one map of a stack."""
    of_image = () if array.ndim == 2 else (image,)
    return np.asarray(array[(*of_image, slice(box.y0, box.y1), slice(box.x0, box.x1))])


def check_size(shape: tuple[int, ...], job: SampleJob, what: str, way: str = "", resize: str | None = None) -> None:
    """Refuse a map of another size than the canvas, or a stack of another length than the set.

    Args:
        shape: Shape of the map, (h, w), or of the stack, (images, h, w).
        what: Name of the map, for messages.
        way: Another way out than a canvas of the map's size, for messages.
        resize: How a map of another size is resized; None: it is refused.
    """
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
        dtype: Type that the values are converted to; None: their own.
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
