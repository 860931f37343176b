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
    named, other = f"`{option}` {path}", f"choose another `{option}`"
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{named}: {path.parent} is not a folder; make it, or {other}")
    check_folder(path.absolute().parent, named, other)
    check_file(path, named, other)
    if (path.exists() or path.is_symlink()) and not is_one(path):
        raise ValueError(f"{named} is there and is no {kind}; remove it yourself, or {other}")
    check_kept(path, named, other, overwrite)


def check_folder(folder: Path, named: str, other: str) -> None:
    """Refuse a folder that nothing can be written to; where it is not there, it has to be possible to make it.

    Args:
        folder: An absolute path.
        named: How a message names what is to be written.
        other: The way out, as in "choose another TARGET".
    Raises:
        ValueError: naming it.
    """
    nearest = next(one for one in (folder, *folder.parents) if one.exists())
    if not nearest.is_dir():
        raise ValueError(f"{named}: {nearest} is not a folder; {other}")
    if not os.access(nearest, os.W_OK):
        raise ValueError(f"{named}: {nearest} cannot be written to; {other}")


def check_file(path: Path, named: str, other: str) -> None:
    """Refuse a path where something lies that is no file.

    Args:
        named, other: As of ``check_folder``.
    Raises:
        ValueError: naming it.
    """
    if path.is_dir():
        raise ValueError(f"{named} is a folder; {other}")
    if path.exists() or path.is_symlink():
        check_regular(path, named)


def check_kept(path: Path, named: str, other: str, overwrite: bool) -> None:
    """Refuse to replace what lies at a path without having been told to.

    Args:
        named, other: As of ``check_folder``.
    Raises:
        ValueError: naming it.
    """
    if not overwrite and (path.exists() or path.is_symlink()):
        raise ValueError(f"{named} is there already; pass `overwrite` to replace it, or {other}")


def is_read_by(read: Callable[[Path], Any]) -> Callable[[Path], bool]:
    """Whether a function reads a file, as what tells files of a kind from others."""

    def is_one(path: Path) -> bool:
        try:
            read(path)
        except ValueError:
            return False
        return True

    return is_one
