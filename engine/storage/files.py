"""What storage needs besides zarr: small files, locks, removal, hashes, and means of pixels."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    with whole_file(path) as temporary, temporary.open("w") as stream:
        json.dump(value, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """The path to write a file to, so that it appears under its own name only when it is whole.

    An error leaves the file that was there before as it was.
    """
    temporary = path.with_name(path.name + ".partial")
    try:
        yield temporary
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


def file_size(path: Path) -> int:
    """Number of bytes of a file; 0 where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def halved(image: np.ndarray) -> np.ndarray:
    """Halve an image: each pixel is the mean of 2 x 2, rounded half to even; an odd edge is repeated first.

    Rounding halves up would make a pyramid brighter level by level.

    Args:
        image: uint8 (c, h, w).
    Returns:
        uint8 (c, ceil(h / 2), ceil(w / 2)).

    >>> halved(np.array([[[0, 1], [1, 0]]], np.uint8)).tolist(), halved(np.array([[[1, 2], [1, 2]]], np.uint8)).tolist()
    ([[[0]]], [[[2]]])
    """
    h, w = image.shape[1:]
    if h % 2 or w % 2:
        image = np.pad(image, ((0, 0), (0, h % 2), (0, w % 2)), mode="edge")
    rows = np.add(image[:, ::2], image[:, 1::2], dtype=np.uint16)
    total = rows[..., ::2] + rows[..., 1::2]
    # Adding 1 rounds halves down and adding 2 rounds them up: up is to even where the quotient is odd.
    return ((total + 1 + (total >> 2 & 1)) >> 2).astype(np.uint8)


def digest(values: np.ndarray) -> str:
    """The sha256 of an array's bytes in C order."""
    return hashlib.sha256(np.ascontiguousarray(values).data).hexdigest()


def lock(path: Path) -> IO[str]:
    """Lock an output for as long as the returned file is open. Rank 0 calls this.

    Raises:
        ValueError: another run has locked it.
    """
    stream = (path / "slidefield" / "lock").open("w")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"{path} is being written by another run; wait for it, or choose another `out`") from None
    except OSError:
        pass  # some file systems have no locks
    return stream


def remove(path: Path) -> None:
    """Remove an output. It is renamed first, so that a kill leaves no half of it under its name."""
    condemned = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".removing", dir=path.parent))
    path.rename(condemned / "output")
    shutil.rmtree(condemned)


def bands(height: int, side: int) -> Iterator[tuple[int, int]]:
    """Cut rows into bands of ``side``, the last of them shorter: (first row, row after the last).

    >>> list(bands(5, 2))
    [(0, 2), (2, 4), (4, 5)]
    """
    for y in range(0, height, side):
        yield y, min(y + side, height)
