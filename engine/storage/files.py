"""What storage needs besides zarr: small files, what the disk keeps, locks, removal, hashes, and means of pixels."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

Stamp = tuple[int | str, ...]
NO_FILE: Stamp = ("no file",)  # the stamp of a folder, and of what is empty
IS_NO_FILE = "is empty, or no file"


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1))


def write_signed(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object with a checksum of its values; ``read_signed`` reads it."""
    write_json(path, {**values, "checksum": checksum(values)})


def read_signed(path: Path) -> dict[str, Any]:
    """Read a JSON object that ``write_signed`` wrote.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged.
    """
    try:
        values = json.loads(path.read_text())
        if values.pop("checksum") == checksum(values):
            return values
    except FileNotFoundError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        pass  # no JSON, or no object
    raise ValueError(f"{path} is damaged")


def checksum(values: Mapping[str, Any]) -> str:
    """The sha256 of JSON values, whatever the order of their names."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """The path to write a file to, so that it appears under its own name only when the disk has all of it.

    An error leaves the file that was there before as it was.
    """
    temporary = path.with_name(path.name + ".partial")
    try:
        yield temporary
        sync(temporary)
        temporary.rename(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Have the disk keep the content of a file, or the names in a folder, should the power fail."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot do it for folders
            raise
    finally:
        os.close(descriptor)


def sync_new(file: Path, top: Path, kept: set[Path]) -> None:
    """Have the disk keep a new file, with its name and the folders on the way to it.

    Args:
        top: Folder that the disk keeps already.
        kept: Folders below it of which the same is known; those on the way are added.
    """
    sync(file)
    folder = file.parent
    sync(folder)
    while folder != top and folder not in kept:
        kept.add(folder)
        folder = folder.parent
        sync(folder)


def sync_tree(folder: Path) -> None:
    """Have the disk keep a folder and all that is in it; but files of other names too, which it has kept with those."""
    for path in folder.rglob("*"):
        facts = path.stat()
        if stat.S_ISDIR(facts.st_mode) or facts.st_nlink == 1:
            sync(path)
    sync(folder)


def discard(path: Path) -> None:
    """Remove a file or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def file_size(path: Path) -> int:
    """Number of bytes of a file; 0 where there is none, or something else."""
    try:
        facts = path.stat()
    except OSError:
        return 0
    return facts.st_size if stat.S_ISREG(facts.st_mode) else 0


def stamp_of(file: Path) -> Stamp | None:
    """What changes when a file does; None: there is none; ``NO_FILE``: something else lies there, or it is empty."""
    try:
        facts = file.stat()
    except OSError:
        return None
    if not stat.S_ISREG(facts.st_mode) or not facts.st_size:
        return NO_FILE
    return facts.st_ino, facts.st_mtime_ns, facts.st_size


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
    file = path / "slidefield" / "lock"
    if file.is_dir():
        discard(file)
    stream = file.open("w")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"{path} is being written by another run; wait for it, or write elsewhere") from None
    except OSError:
        pass  # some file systems have no locks
    return stream


def remove(path: Path) -> None:
    """Remove an output. It is renamed first, so that a kill leaves no half of it under its name."""
    condemned = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".removing", dir=path.parent))
    path.rename(condemned / "output")
    sync(path.parent)
    discard(condemned / "output")
    condemned.rmdir()


def bands(height: int, side: int) -> Iterator[tuple[int, int]]:
    """Cut rows into bands of ``side``, the last of them shorter: (first row, row after the last).

    >>> list(bands(5, 2))
    [(0, 2), (2, 4), (4, 5)]
    """
    for y in range(0, height, side):
        yield y, min(y + side, height)
