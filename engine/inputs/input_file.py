"""A file that a job names, opened once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from engine.storage.readers import DrawnLabel, read_integers, read_label_map


@dataclass(frozen=True)
class InputFile:
    """A file that a job names: opened where it is first read, and sent to other ranks as its name.

    Args:
        path: Where the file lies; of HDF5 with the dataset behind a colon.
        option: The job's field that names it, for messages.
        reader: Function of (path, option) that opens the file, as an array or as something sliced like one.
    """

    path: Path
    option: str
    reader: Callable[[Path, str], np.ndarray]

    @cached_property
    def array(self) -> np.ndarray:
        return self.reader(self.path, self.option)

    @property
    def source(self) -> np.ndarray:
        """The array as the file holds it, where it is read at another size."""
        return getattr(self.array, "source", self.array)

    @property
    def in_memory(self) -> bool:
        """Whether the array is in memory whole, because the file cannot be read by box."""
        return self.path.suffix != ".npy" and isinstance(self.source, np.ndarray)  # an array in Zarr is of its own type

    def close(self) -> None:
        """Let go of the array; who reads the file after this opens it again."""
        self.__dict__.pop("array", None)

    def __str__(self) -> str:
        return f"{self.option} {self.path}"

    def __reduce__(self) -> tuple[Any, ...]:
        return InputFile, (self.path, self.option, self.reader)


def integer_file(path: str, option: str, stack: bool = False) -> InputFile:
    """A map (h, w) of integers.

    Args:
        stack: Whether it may be a stack of maps (images, h, w).
    """
    return InputFile(Path(path), option, partial(read_integers, stack=stack))


def label_file(path: str, option: str, labels: Sequence[DrawnLabel], stack: bool = False) -> InputFile:
    """A label map (h, w), of whole numbers or drawn in the labels' colours.

    Args:
        labels: Name and RGB of each label, 0 first.
        stack: Whether it may be a stack of maps (images, h, w).
    """
    return InputFile(Path(path), option, partial(read_label_map, labels=tuple(labels), stack=stack))
