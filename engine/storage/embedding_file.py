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
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np

from engine.storage.files import whole_file
from engine.storage.readers import HDF5, HDF5_DEFAULT, reason
from engine.storage.target_file import check_target

NAME, FACTS = "embeddings", "slidefield"


class Disk:
    """A file as HDF5 writes it, whose writes do not fail: HDF5 tells of a full disk in many words, and then crashes.

    The first error is kept, what would be written after it is dropped, and ``check`` raises it.

    Args:
        file: A file, open for reading and writing without a buffer.
        path: Its name, for messages.
    """

    def __init__(self, file: FileIO, path: Path) -> None:
        self.file, self.path = file, path
        self.error: OSError | None = None
        self.seek, self.tell, self.read, self.readinto = file.seek, file.tell, file.read, file.readinto

    def write(self, data: Any) -> int:
        left = memoryview(data).cast("B")
        size = len(left)
        while len(left) and self.error is None:
            with self.keeping_errors():
                left = left[self.file.write(left) :]
        return size

    def truncate(self, size: int) -> int:
        with self.keeping_errors():
            self.file.truncate(size)
        return size

    def flush(self) -> None:
        """There is nothing to flush."""

    @contextmanager
    def keeping_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = self.error or error

    def check(self) -> None:
        """Raise the first error of a write.

        Raises:
            OSError: there is no space left, or what else the system said.
        """
        if self.error is not None:
            raise OSError(self.error.errno, self.error.strerror, str(self.path))


class EmbeddingFile:
    """A file of embeddings while it is written, in order.

    Args:
        file: h5py's.
        shape: (h, w) of the grid, or (n,).
        disk: What the file is written through.
    """

    def __init__(self, file: Any, shape: tuple[int, ...], disk: Disk) -> None:
        self.file, self.shape, self.disk = file, shape, disk
        self.written = 0

    def append(self, values: np.ndarray) -> None:
        """Write the next embeddings, float32 (m, D), in the order of the grid.

        Raises:
            ValueError: they have another length than those before.
            OSError: there is no room for them.
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
        self.disk.check()


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

    with whole_file(path) as temporary, temporary.open("w+b", buffering=0) as opened:
        disk = Disk(opened, path)
        with h5py.File(disk, "w") as file:
            file.attrs[FACTS] = json.dumps(dict(facts))
            if isinstance(places, np.ndarray):
                file["positions"] = places.reshape(*shape, 2)
            else:
                file["names"] = np.array(places, dtype=h5py.string_dtype()).reshape(shape)
            yield EmbeddingFile(file, shape, disk)
        disk.check()


def read_origin(path: Path, count: int) -> tuple[dict[str, Any], list[str] | None]:
    """What a file says of the patches that its embeddings are of, and the names of their files, if they have any.

    Args:
        path: A file that can be read; another program's says nothing, and neither does one of as many other patches.
        count: Number of patches.
    Raises:
        ValueError: what it says cannot be read.
    """
    import h5py

    try:
        with h5py.File(path, "r", locking=False) as file:
            if FACTS not in file.attrs or int(np.prod(file[NAME].shape[:-1])) != count:
                return {}, None
            names = file["names"].asstr()[()].reshape(-1).tolist() if "names" in file else None
            return dict(json.loads(file.attrs[FACTS])), names
    except (OSError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} does not say what it was made of ({reason(error)})") from None


def check_place(path: Path, overwrite: bool) -> None:
    """Refuse a path that a file of embeddings cannot be written to.

    Raises:
        ValueError: there is something already, or no folder.
    """
    check_target("out", path, overwrite, "file of engine.embed", written_by_us)
    if path.suffix not in HDF5:
        raise ValueError(f"`out` {path}: `embeddings` knows such files by their names; end it in {' or '.join(HDF5)}")


def written_by_us(path: Path) -> bool:
    """Whether a file is one of embeddings that this program wrote."""
    import h5py

    try:
        with h5py.File(path, "r", locking=False) as file:
            return FACTS in file.attrs
    except OSError:
        return False
