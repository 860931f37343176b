"""The copy of an output's metadata, which tells a damaged ``zarr.json`` from a whole one, and mends it.

Its file is::

    OUT/slidefield/metadata.json     the content of every zarr.json of the output, by its path, and a checksum

The copy is written before the files: where a kill came between the two, the copy is right. What users and other
programs add to a ``zarr.json`` is no damage, and stays.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.storage.files import discard, read_signed, write_json, write_signed

ROOT = "zarr.json"  # the one that holds the provenance


def copy_of(path: Path) -> Path:
    return path / "slidefield" / "metadata.json"


def keep_metadata(path: Path) -> None:
    """Copy what every ``zarr.json`` of an output says. Rank 0 calls this; it lists all files of the output."""
    names = (file.relative_to(path).as_posix() for file in path.rglob("zarr.json"))
    files = {name: json.loads((path / name).read_text()) for name in names if not name.startswith("slidefield/")}
    write_signed(copy_of(path), {"files": files})


def kept_metadata(path: Path) -> dict[str, Any]:
    """Read the copy: the content of every ``zarr.json`` by its path.

    Raises:
        FileNotFoundError: there is none; outputs of version 0.1 had none.
        ValueError: it is damaged.
    """
    return read_signed(copy_of(path))["files"]


def kept_provenance(path: Path) -> dict[str, Any] | None:
    """Read the provenance in the copy; None: there is no copy, or a damaged one."""
    try:
        return kept_metadata(path)[ROOT]["attributes"]["slidefield"]
    except (OSError, ValueError, LookupError, TypeError):
        return None


def write_provenance(path: Path, provenance: dict[str, Any]) -> None:
    """Replace the provenance, in the copy first. Rank 0 calls this."""
    try:
        files = kept_metadata(path)
    except FileNotFoundError:
        files = None
    if files is not None:
        files[ROOT]["attributes"]["slidefield"] = provenance
        write_signed(copy_of(path), {"files": files})
    content = json.loads((path / ROOT).read_text())
    content["attributes"]["slidefield"] = provenance
    write_json(path / ROOT, content)


def damaged_metadata(path: Path) -> Iterator[str]:
    """Name the files that do not say any more what the copy says, or the copy.

    An output of version 0.1, which has no copy, is not looked at.
    """
    try:
        files = kept_metadata(path)
    except FileNotFoundError:
        if (content_of(path / ROOT) or {}).get("attributes", {}).get("slidefield", {}).get("metadata_copy"):
            yield "slidefield/metadata.json"
        return
    except ValueError:
        yield "slidefield/metadata.json"
        return
    for name, content in files.items():
        if not contains(content_of(path / name), content):
            yield name


def restore_metadata(path: Path) -> list[str]:
    """Write anew what ``damaged_metadata`` names, and say what that was. Rank 0 calls this.

    Raises:
        ValueError: the copy is damaged, and so is a ``zarr.json``.
    """
    damaged = list(damaged_metadata(path))
    if "slidefield/metadata.json" in damaged:
        discard(copy_of(path))
        try:
            keep_metadata(path)
        except (OSError, ValueError, RecursionError) as error:
            why = f"{path}: both a zarr.json and its copy are damaged ({error})"
            raise ValueError(f"{why}; pass `overwrite` to replace it") from None
        return damaged
    files = kept_metadata(path) if damaged else {}
    for name in damaged:
        discard(path / name)
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        write_json(path / name, files[name])
    return damaged


def content_of(file: Path) -> Any:
    """What a JSON file says; None: it is gone, or no JSON."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        return None


def contains(value: Any, kept: Any) -> bool:
    """Whether a JSON value says all that another says; objects in it may say more.

    >>> contains({"a": {"b": 1, "c": 2}, "d": []}, {"a": {"b": 1}}), contains({"a": [1, 2]}, {"a": [1]})
    (True, False)
    """
    if isinstance(value, dict) and isinstance(kept, dict):
        return all(name in value and contains(value[name], kept[name]) for name in kept)
    if isinstance(value, list) and isinstance(kept, list):
        return len(value) == len(kept) and all(map(contains, value, kept))
    return bool(value == kept)
