"""Temporary folders: each goes with the last process that claims it, or is swept by a later one if that was killed.

A claim is a file in the folder that its process has locked: the lock ends with the process, however that ends.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

CLAIM = "rank-*.held"
YOUNG = 60.0  # seconds in which a folder is left alone: a claim is made before it is locked


def make_folder(prefix: str, parent: Path | None = None) -> Path:
    """A new folder; those with this prefix beside it that nobody claims any more are removed.

    Args:
        parent: Folder to make it in; None: the one for temporary files.
    """
    parent = parent or Path(tempfile.gettempdir())
    sweep(prefix, parent)
    return Path(tempfile.mkdtemp(prefix=prefix, dir=parent))


def claim(folder: Path, rank: int = 0) -> IO[str]:
    """Claim a folder for this process, until ``release``."""
    stream = (folder / CLAIM.replace("*", str(rank))).open("w")
    with suppress(OSError):  # some file systems have no locks: there such a folder is never swept
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return stream


def release(stream: IO[str], process: int) -> None:
    """Give a claim up, and remove the folder if nobody else has one.

    Args:
        process: The process that made the claim: its forked children inherit the claim and do not give it up.
    """
    if os.getpid() != process:
        return
    file = Path(stream.name)
    file.unlink(missing_ok=True)
    stream.close()
    if not list(file.parent.glob(CLAIM)):
        shutil.rmtree(file.parent, ignore_errors=True)


def sweep(prefix: str, parent: Path) -> None:
    """Remove the folders with a prefix whose claims are all of processes that ended without giving them up."""
    for folder in parent.glob(f"{prefix}*"):
        claims = list(folder.glob(CLAIM))
        if claims and not any(map(is_held, claims)):
            shutil.rmtree(folder, ignore_errors=True)


def is_held(file: Path) -> bool:
    """Whether a process holds a claim, as far as can be known."""
    try:
        with file.open("r+") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return time.time() - file.stat().st_mtime < YOUNG
    except OSError:
        return True
