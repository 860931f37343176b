"""The file that a command writes: refused before the work where it cannot be, and replaced only where it is ours."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.storage.settings_file import check_regular


def check_target(option: str, path: Path, overwrite: bool, kind: str, is_one: Callable[[Path], bool]) -> None:
    """Refuse a file that cannot be written, or is there and is not to be replaced.

    Args:
        option: What gave the path.
        overwrite: Whether a file of the same kind is replaced.
        kind: What the file is, as in "a bank of engine.evaluate".
        is_one: Whether a file is one of that kind.
    Raises:
        ValueError: naming it.
    """
    other, folder = f"choose another `{option}`", path.absolute().parent
    if not folder.is_dir():
        raise ValueError(f"`{option}` {path}: {path.parent} is not a folder; make it, or {other}")
    if not os.access(folder, os.W_OK):
        raise ValueError(f"`{option}` {path}: {path.parent} cannot be written to; {other}")
    if not path.exists() and not path.is_symlink():
        return
    if path.is_dir():
        raise ValueError(f"`{option}` {path} is a folder; {other}")
    check_regular(path, f"`{option}` {path}")
    if not is_one(path):
        raise ValueError(f"`{option}` {path} is there and is no {kind}; remove it yourself, or {other}")
    if not overwrite:
        raise ValueError(f"`{option}` {path} is there already; pass `overwrite` to replace it, or {other}")


def is_read_by(read: Callable[[Path], Any]) -> Callable[[Path], bool]:
    """Whether a function reads a file, as what tells files of a kind from others."""

    def is_one(path: Path) -> bool:
        try:
            read(path)
        except ValueError:
            return False
        return True

    return is_one
