"""A folder of pictures as a stack: in the order of their names, each read where it is asked for."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from engine.storage.readers import METADATA, checked_integers, read_array

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
KEPT = 8  # pictures of a folder that are kept in memory


def is_picture_folder(path: Path) -> bool:
    """Whether a path is a folder, and no Zarr."""
    return path.is_dir() and not any((folder / file).exists() for folder in (path, path / "0") for file in METADATA)


class PictureFolder:
    """The pictures of a folder, as its list.

    Args:
        option: Name of the option that gave the path, in backticks, for messages.
        color: Whether they are read in colour.
    Raises:
        ValueError: there are none, or two of one name.
    """

    def __init__(self, path: Path, option: str, color: bool = False) -> None:
        self.path, self.option, self.color = path, option, color
        pictures = (p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
        self.paths = sorted(pictures, key=lambda p: p.stem)  # by stem, so that folders of other suffixes go together
        if not self.paths:
            raise ValueError(
                f"{option} {path} holds no pictures ({', '.join(SUFFIXES)}); name the folder that has them"
            )
        self.names = tuple(p.stem for p in self.paths)
        twice = next((a for a, b in zip(sorted(self.names), sorted(self.names)[1:], strict=False) if a == b), None)
        if twice is not None:
            raise ValueError(f"{option} {path} holds two pictures called {twice}; remove one, or give another folder")
        self._read = lru_cache(maxsize=KEPT)(self._read_one)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._read(index)

    def _read_one(self, index: int) -> np.ndarray:
        return np.asarray(read_array(self.paths[index], self.option, color=self.color))


class MapFolder:
    """A folder of maps of integers as the stack (images, h, w) that it is, sliced like an array.

    Args:
        folder: The maps, all of one size.
        count: Number of images; those beyond the folder's take its maps from the first on again.
    """

    dtype = np.dtype(np.uint32)
    ndim = 3

    def __init__(self, folder: PictureFolder, count: int) -> None:
        self.folder = folder
        self.shape = (count, *self._map(0).shape)

    def __len__(self) -> int:
        return self.shape[0]

    def _map(self, index: int) -> np.ndarray:
        path = self.folder.paths[index]
        return checked_integers(self.folder[index], path, self.folder.option, stack=False)

    def __getitem__(self, index: tuple[Any, ...]) -> np.ndarray:
        number = int(index[0]) % len(self.folder)
        values, shape = self._map(number), self.shape[1:]
        if values.shape != shape:
            raise ValueError(
                f"{self.folder.option} {self.folder.paths[number]} is {values.shape[0]} x {values.shape[1]} px but "
                f"{self.folder.paths[0].name} is {shape[0]} x {shape[1]} px; a set has images of one size"
            )
        return values[index[1:]]
