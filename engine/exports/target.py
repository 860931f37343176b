"""The target of an export: it appears at once, when it is complete; and the bar that shows how far it is."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from engine.storage.files import sync

BAR_AFTER = 2.0  # seconds after which a bar is shown
Step = TypeVar("Step")


def check_file(out: Path, target: Path, overwrite: bool) -> None:
    """Refuse a file that is there, unless it is to be replaced, and one within the output itself.

    Raises:
        ValueError: the message names it.
    """
    if target.resolve().is_relative_to(out.resolve()):
        raise ValueError(f"{target} lies in {out}; choose another TARGET")
    if target.is_dir():
        raise ValueError(f"{target} is a folder; choose another TARGET")
    if target.exists() and not overwrite:
        raise ValueError(f"{target} is there; pass --overwrite to replace it, or choose another TARGET")


@contextmanager
def whole_target(target: Path) -> Iterator[Path]:
    """The path to write a file or a folder to, so that it appears under its own name only when it is whole.

    An error leaves what was there before as it was. The path has the target's name, in a folder beside it.
    """
    target = target.resolve()  # a link goes on to lead there
    target.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".exporting", dir=target.parent))
    try:
        new = building / "new" / target.name
        new.parent.mkdir()
        yield new
        if new.is_file():
            sync(new)
        if target.is_dir():
            target.rename(building / "old")
        new.rename(target)
        sync(target.parent)
    finally:
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
