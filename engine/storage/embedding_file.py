"""A file of embeddings, HDF5::

    /embeddings     float32 (h, w, D) on a grid, or (n, D) listed
    /positions      int64 (h, w, 2): row and column of each patch's corner in the slide, px
    /names          of a folder's patches, their files, (h, w) or (n)

Its attribute "slidefield" is a JSON object: the source, the patches' side, the extractor's name and hash.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from engine.storage.files import whole_file
from engine.storage.readers import HDF5_DEFAULT
from engine.storage.settings_file import check_regular

NAME, FACTS = "embeddings", "slidefield"


class EmbeddingFile:
    """A file of embeddings while it is written, in order.

    Args:
        file: h5py's.
        shape: (h, w) of the grid, or (n,).
    """

    def __init__(self, file: Any, shape: tuple[int, ...]) -> None:
        self.file, self.shape = file, shape
        self.written = 0

    def append(self, values: np.ndarray) -> None:
        """Write the next embeddings, float32 (m, D), in the order of the grid.

        Raises:
            ValueError: they have another length than those before.
        """
        if not self.written:
            self.file.create_dataset(NAME, (*self.shape, values.shape[1]), np.float32)
            self.file.attrs[HDF5_DEFAULT] = NAME
        dataset = self.file[NAME]
        if values.shape[1] != dataset.shape[-1]:
            raise ValueError(
                f"`with` returned {dataset.shape[-1]} numbers a patch at first and {values.shape[1]} at patch "
                f"{self.written}; an extractor returns as many for each"
            )
        while len(values):  # a run of one row of the grid at a time
            *outer, start = (int(i) for i in np.unravel_index(self.written, self.shape))
            run, values = np.split(values, [self.shape[-1] - start])
            dataset[(*outer, slice(start, start + len(run)))] = run
            self.written += len(run)


@contextmanager
def new_embedding_file(
    path: Path, shape: tuple[int, ...], facts: Mapping[str, Any], places: np.ndarray | Sequence[str]
) -> Iterator[EmbeddingFile]:
    """A file to write, which appears under its name when it is complete; an error leaves what was there.

    Args:
        shape: (h, w) of the grid, or (n,).
        facts: JSON values that tell what the embeddings are.
        places: int64 (n, 2), the patches' corners in the slide, or the names of their files.
    """
    import h5py

    with whole_file(path) as temporary, h5py.File(temporary, "w", locking=False) as file:
        file.attrs[FACTS] = json.dumps(dict(facts))
        if isinstance(places, np.ndarray):
            file["positions"] = places.reshape(*shape, 2)
        else:
            file["names"] = np.array(places, dtype=h5py.string_dtype()).reshape(shape)
        yield EmbeddingFile(file, shape)


def check_place(path: Path, overwrite: bool) -> None:
    """Refuse a path that a file of embeddings cannot be written to.

    Raises:
        ValueError: there is something already, or no folder.
    """
    if not path.parent.is_dir():
        raise ValueError(f"`out` {path}: there is no folder {path.parent}; make it")
    if not path.exists():
        return
    if path.is_dir():
        raise ValueError(f"`out` {path} is a folder; choose another `out`")
    check_regular(path, f"`out` {path}")
    if not overwrite:
        raise ValueError(f"`out` {path} is there already; pass `overwrite`, or choose another `out`")
    if not written_by_us(path):
        raise ValueError(f"`out` {path} is no file of engine.embed; remove it yourself, or choose another `out`")


def written_by_us(path: Path) -> bool:
    """Whether a file is one of embeddings that this program wrote."""
    import h5py

    try:
        with h5py.File(path, "r", locking=False) as file:
            return FACTS in file.attrs
    except OSError:
        return False
