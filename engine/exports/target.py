"""The target of an export: refused where it cannot be, it appears at once, when it is complete."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.exports.asked import Asked
from engine.storage.files import sync
from engine.storage.target_file import check_file, check_folder, check_kept

OTHER = "choose another TARGET"
NAMED = 100  # characters of a target's name in that of the folder beside it; names may have 255 bytes


def resolved(path: Path) -> Path:
    """A path without links.

    Raises:
        ValueError: its links lead in a circle.
    """
    try:
        return path.resolve()
    except (RuntimeError, OSError):
        raise ValueError(f"{path} is a link that leads to itself; {OTHER}") from None


def check_export_file(asked: Asked) -> None:
    """Refuse a file that cannot be made, or is there and not to be replaced, and one within the output itself.

    Raises:
        ValueError: the message names it; or the output was changed since the export began.
    """
    asked.check_seen()
    place, named = resolved(asked.target), str(asked.target)
    if place.is_relative_to(asked.out.resolve()):
        raise ValueError(f"{asked.target} lies in {asked.out}; {OTHER}")
    check_file(place, named, OTHER)
    check_folder(place.parent, named, OTHER)
    check_kept(place, named, OTHER, asked.overwrite)


@contextmanager
def whole_target(target: Path, check: Callable[[], None]) -> Iterator[Path]:
    """The path to write a file or a folder to, so that it appears under its own name only when it is whole.

    An error leaves what was there before as it was. The path has the target's name, in a folder beside it.

    Args:
        check: Raises what speaks against the target; called again before what is there is replaced.
    """
    target = resolved(target)  # a link goes on to lead there
    target.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{target.name[:NAMED]}.", suffix=".exporting", dir=target.parent))
    old = building / "old"
    try:
        new = building / "new" / target.name
        new.parent.mkdir()
        yield new
        if new.is_file():
            sync(new)
        check()
        if target.is_dir():
            target.rename(old)
        new.rename(target)
        sync(target.parent)
    finally:
        if old.exists() and not target.exists():
            old.rename(target)
        shutil.rmtree(building, ignore_errors=True)
