"""The target of an export: it appears at once, when it is complete; and the bar that shows how far it is."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from engine.storage.files import sync
from engine.storage.settings_file import check_regular

BAR_AFTER = 2.0  # seconds after which a bar is shown
NAMED = 100  # characters of a target's name in that of the folder beside it; names may have 255 bytes
Step = TypeVar("Step")


def resolved(path: Path) -> Path:
    """A path without links.

    Raises:
        ValueError: its links lead in a circle.
    """
    try:
        return path.resolve()
    except (RuntimeError, OSError):
        raise ValueError(f"{path} is a link that leads to itself; choose another TARGET") from None


def check_file(out: Path, target: Path, overwrite: bool) -> None:
    """Refuse a file that cannot be made, or is there and not to be replaced, and one within the output itself.

    Raises:
        ValueError: the message names it.
    """
    if resolved(target).is_relative_to(out.resolve()):
        raise ValueError(f"{target} lies in {out}; choose another TARGET")
    if target.is_dir():
        raise ValueError(f"{target} is a folder; choose another TARGET")
    check_place(target)
    if target.exists():
        check_regular(target, str(target))
        if not overwrite:
            raise ValueError(f"{target} is there; pass --overwrite to replace it, or choose another TARGET")


def check_place(target: Path) -> None:
    """Refuse a target where nothing can be made.

    Raises:
        ValueError: the message names it.
    """
    parents = resolved(target).parents
    nearest = next(parent for parent in parents if parent.exists())
    if not nearest.is_dir():
        raise ValueError(f"{target}: {nearest} is not a folder; choose another TARGET")
    if not os.access(nearest, os.W_OK):
        raise ValueError(f"{target}: {nearest} cannot be written to; choose another TARGET")


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


def with_bar(steps: Iterable[Step], total: int, text: str, shown: bool = True) -> Iterator[Step]:
    """Go through steps, under a bar where standard error is a terminal and they take long.

    Args:
        total: Number of steps.
        text: What is done.
        shown: Whether this process may show one.
    """
    from tqdm import tqdm

    disable = None if shown else True  # None: where standard error is no terminal
    yield from tqdm(steps, text, total, leave=False, disable=disable, delay=BAR_AFTER, dynamic_ncols=True)
