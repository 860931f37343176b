"""Embeddings on a grid in a file of any length: each rank reads those that its windows ask for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

from engine.inputs.input_file import InputFile

SIDE = 16  # cells; side of the squares of the grid that are read at once
KEPT_BYTES = 2**26  # bytes of squares that a rank keeps


@dataclass(frozen=True)
class GridRows:
    """Which row of a list lies in which cell of a grid.

    Args:
        shape: Rows and columns of the grid.
        first: Row of the list in the first cell.
        by_columns: Whether the list goes down the columns, and not along the rows.
        numbers: int64 (h, w), where the rows do not follow one another; None: they do.
    """

    shape: tuple[int, int]
    first: int = 0
    by_columns: bool = False
    numbers: np.ndarray | None = None

    def of(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        """int64 (h, w): the rows in a box of cells, cut at the grid's edge.

        >>> GridRows((2, 3), first=10, by_columns=True).of(0, 2, 1, 3).tolist()
        [[12, 14], [13, 15]]
        """
        if self.numbers is not None:
            return self.numbers[y0:y1, x0:x1]
        y, x = np.arange(y0, min(y1, self.shape[0]))[:, None], np.arange(x0, min(x1, self.shape[1]))
        return self.first + (x * self.shape[0] + y if self.by_columns else y * self.shape[1] + x)


@dataclass(frozen=True)
class StoredGrid:
    """float32 (h, w, D) in a file, indexed by cell, ``grid[y, x]``; of a set (images, D), ``grid[image]``.

    Squares of cells that were read are kept for a while, and not sent to other ranks.

    Args:
        file: The file, an array (..., D) whose rows are numbered in order.
        rows: Which row of the file is in which cell; of a set the grid has one column.
        width: Numbers D of an embedding.
        is_set: Whether there is one for every image of a set.
    """

    file: InputFile
    rows: GridRows
    width: int
    is_set: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.rows.shape[0], self.width) if self.is_set else (*self.rows.shape, self.width)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32)

    @property
    def nbytes(self) -> int:
        """The most bytes that are kept."""
        numbers = 0 if self.rows.numbers is None else self.rows.numbers.nbytes
        return numbers + min(self.kept * SIDE**2, self.rows.shape[0] * self.rows.shape[1]) * 4 * self.width

    @property
    def kept(self) -> int:
        """Number of squares that are kept."""
        return max(KEPT_BYTES // (4 * self.width * SIDE**2), 4)

    def __getitem__(self, index: int | tuple[int, int]) -> np.ndarray:
        """float32 (D,): the embedding of a cell."""
        y, x = index if isinstance(index, tuple) else (index, 0)
        return self.square(y // SIDE, x // SIDE)[y % SIDE, x % SIDE]

    @cached_property
    def square(self) -> Callable[[int, int], np.ndarray]:
        """A reader of the squares, which keeps some of them."""

        @lru_cache(maxsize=self.kept)
        def read(row: int, column: int) -> np.ndarray:
            y, x = row * SIDE, column * SIDE
            return self.read(self.rows.of(y, y + SIDE, x, x + SIDE))

        return read

    def read(self, numbers: np.ndarray) -> np.ndarray:
        """float32 (..., D): the rows with these numbers, int64 (...)."""
        values = rows_of(self.file.array, numbers.ravel())
        return values.reshape(*numbers.shape, self.width)

    def __reduce__(self) -> tuple[Any, ...]:
        return StoredGrid, (self.file, self.rows, self.width, self.is_set)


def rows_of(array: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """float32 (n, D): rows of an array (..., D) by their numbers in its order; those that follow one another at once.

    >>> rows_of(np.arange(12.0).reshape(2, 3, 2), np.array([5, 0, 1])).tolist()
    [[10.0, 11.0], [0.0, 1.0], [2.0, 3.0]]
    """
    wanted, places = np.unique(numbers, return_inverse=True)
    leading = array.shape[:-1] or (1,)
    begins = np.r_[True, (np.diff(wanted) != 1) | (wanted[1:] % leading[-1] == 0)]
    values = np.empty((len(wanted), array.shape[-1]), np.float32)
    bounds = [*np.flatnonzero(begins), len(wanted)]
    for first, last in pairwise(bounds):
        *outer, start = (int(i) for i in np.unravel_index(wanted[first], leading))
        run: Any = (*outer, slice(start, start + last - first)) if array.ndim > 1 else slice(None)
        with np.errstate(over="ignore"):  # what is too large for float32 is not finite, and refused as such
            values[first:last] = array[run]
    return values[places]
