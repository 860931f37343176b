"""The next state of a plane takes the place of the one before: two renamings, which a kill may come between.

What is kept for later requests is not copied: those folders move from the one to the other, which is one more renaming
each. ``recover`` goes on wherever a kill has come between. Who only reads reads again what a renaming came into.
"""

from __future__ import annotations

import errno
import glob
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, TypeVar

from engine.storage.files import discard, lock, sync
from engine.storage.metadata import ROOT
from engine.storage.plane_layout import is_there, label_plane, levels_of

CARRIED = (levels_of, label_plane)  # folders among a plane's private files that move from one state to the next
TRIES, PAUSE = 200, 0.02  # how often, and after how many seconds, a plane is read again that changes meanwhile
T = TypeVar("T")


def next_of(plane: Path) -> Path:
    """Where the next state of a plane is made."""
    return plane.with_name(f".{plane.name}.next")


def discard_next(plane: Path) -> None:
    """Remove what a kill has left of a next state; who has locked the plane calls it."""
    building = next_of(plane)
    discard(building)
    for begun in plane.parent.glob(f".{glob.escape(building.name)}.*.creating"):  # by ``create``
        discard(begun)


def old_of(plane: Path) -> Path:
    """Where the state before is, while the next takes its place."""
    return plane.with_name(f".{plane.name}.old")


def locked(plane: Path) -> IO[str]:
    """Lock a plane, whether or not it is there yet, for as long as the returned file is open. Rank 0 calls this.

    Raises:
        ValueError: another run has locked it, or puts its next state in its place.
    """
    old, file = old_of(plane), plane / "slidefield" / "lock"
    if not old.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        held = lock(plane)
        if not old.exists() and is_file(held, file):
            return held
        held.close()
        remove_stub(plane)
    raise ValueError(f"{plane} is being written by another run; wait for it, or write elsewhere")


def is_file(held: IO[str], file: Path) -> bool:
    """Whether an open file is the one that lies at a path."""
    with suppress(OSError):
        return os.path.samestat(os.fstat(held.fileno()), file.stat())
    return False


def remove_stub(plane: Path) -> None:
    """Remove a plane that has no more than its lock: made between two renamings, where the next state is to be."""
    if not is_there(plane):
        with suppress(OSError):
            (plane / "slidefield" / "lock").unlink(missing_ok=True)
            (plane / "slidefield").rmdir()
            plane.rmdir()


def swap(plane: Path) -> None:
    """Let the next state of a plane, whole and on the disk, take the place of the one before. Rank 0 calls this."""
    old = old_of(plane)
    discard(old)
    plane.rename(old)
    take_place(plane)
    carry(old, plane)
    discard(old)


def take_place(plane: Path) -> None:
    """Give the next state its name; who asks for the lock in this moment may hold the place until it has looked."""
    for _ in range(TRIES):
        try:
            next_of(plane).rename(plane)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        time.sleep(PAUSE)
    next_of(plane).rename(plane)


def carry(old: Path, plane: Path) -> None:
    """Move what is kept for later requests."""
    for where in CARRIED:
        if where(old).is_dir():
            where(old).rename(where(plane))
    sync(plane / "slidefield")
    sync(plane.parent)


def recover(plane: Path) -> None:
    """Finish what a kill has interrupted between renamings, and remove the state before.

    Who has locked the plane does not call it.

    Raises:
        ValueError: another process is between them.
    """
    old = old_of(plane)
    if not old.exists():
        return
    try:
        held = locked(old)  # who exchanges the two has it; the next state has a link to the same file
    except ValueError:
        raise ValueError(f"{plane} is being written by another run; wait for it, or write elsewhere") from None
    with held:
        if is_there(plane):
            carry(old, plane)
            discard(old)
        else:
            remove_stub(plane)
            old.rename(plane)


# ---- for those who only read ----------------------------------------------------------------


def plane_stamp(plane: Path) -> tuple[int, ...]:
    """What changes when the next state takes a plane's place; empty: the plane is not there."""

    def stamp() -> tuple[int, ...]:
        try:
            facts = (plane / ROOT).stat()
            return facts.st_ino, facts.st_mtime_ns, facts.st_size
        except OSError:
            return ()

    for _ in range(TRIES):
        if there := stamp():
            return there
        if not plane.name or not old_of(plane).exists():
            break
        time.sleep(PAUSE)
    return stamp()


def steady(plane: Path, read: Callable[[], T]) -> T:
    """What is read of a plane that stays the same meanwhile; ``read`` is called again where it did not.

    Raises:
        ValueError, OSError: what ``read`` raises of a plane that stays the same.
    """
    plane = Path(os.path.realpath(plane))
    for _ in range(TRIES):
        stamp = plane_stamp(plane)
        try:
            value = read()
            if plane_stamp(plane) == stamp:
                return value
        except (ValueError, OSError):
            if plane_stamp(plane) == stamp:
                raise
        time.sleep(PAUSE)
    raise ValueError(f"{plane} changes all the time; wait for the run that adds to it")


class Seen:
    """Outputs as they are now, for those who read them too long to begin again whenever a run adds to a plane."""

    def __init__(self, *paths: Path) -> None:
        self.stamps = {path: plane_stamp(Path(os.path.realpath(path))) for path in paths}

    def check(self) -> None:
        """Refuse what was read of an output in whose place another was put meanwhile.

        Raises:
            ValueError: naming it.
        """
        for path, stamp in self.stamps.items():
            if stamp and plane_stamp(Path(os.path.realpath(path))) != stamp:
                raise ValueError(f"{path} was changed by another run while it was read; give the command again")
