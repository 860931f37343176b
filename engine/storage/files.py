"""Small files, locks, digests and pixels: what storage is made of besides zarr."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np


def write_json(path: Path, value: Any) -> None:
    """Write a small file whole or not at all."""
    temporary = path.with_name(path.name + ".partial")
    with temporary.open("w") as stream:
        json.dump(value, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.rename(path)


def file_size(path: Path) -> int:
    """Bytes of a file; 0 where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def halved(image: np.ndarray) -> np.ndarray:
    """uint8 (c, h, w) -> (c, ceil(h / 2), ceil(w / 2)): means of 2 x 2, rounded half to even; edges repeat.

    >>> halved(np.array([[[0, 1], [1, 0]]], np.uint8)).tolist(), halved(np.array([[[1, 2], [1, 2]]], np.uint8)).tolist()
    ([[[0]]], [[[2]]])
    """
    h, w = image.shape[1:]
    if h % 2 or w % 2:
        image = np.pad(image, ((0, 0), (0, h % 2), (0, w % 2)), mode="edge")
    rows = np.add(image[:, ::2], image[:, 1::2], dtype=np.uint16)
    total = rows[..., ::2] + rows[..., 1::2]
    return ((total + 1 + (total >> 2 & 1)) >> 2).astype(np.uint8)  # a half goes up from an odd quotient alone


def digest(data: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(data).data).hexdigest()


def lock(path: Path) -> IO[str]:
    """Hold an output for as long as the file returned is open. Rank 0 calls this.

    Raises:
        ValueError: another run holds it.
    """
    held = (path / "slidefield" / "lock").open("w")
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"{path} is being written by another run; wait for it, or choose another `out`") from None
    except OSError:
        pass  # a file system without locks
    return held


def remove(path: Path) -> None:
    """Remove an output; it first goes out of the way by a rename, so that no half of it stays under its name."""
    going = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".removing", dir=path.parent))
    path.rename(going / "output")
    shutil.rmtree(going)


def bands(height: int, side: int) -> Iterator[tuple[int, int]]:
    for y in range(0, height, side):
        yield y, min(y + side, height)
