"""The copy of an output's metadata in its object store, which makes what lies there a whole OME-Zarr by itself.

Its objects, beside the shards, are::

    URL/zarr.json                     put first: it says whose the place is; and again when the output is finished
    URL/.../zarr.json                 of every group and array, put before the first shard
    URL/slidefield/ledger.jsonl       at the end
    URL/slidefield/metadata.json      at the end
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

from engine.storage.files import file_size
from engine.storage.metadata import ROOT, contains, content_of, kept_metadata
from engine.storage.remote_shards import RemoteShards

PRIVATE = "slidefield/zarr.json"
AT_THE_END = ("slidefield/ledger.jsonl", "slidefield/metadata.json")


def provenance_in(shards: RemoteShards) -> dict[str, Any] | None:
    """The provenance of the output at a URL; None: nothing lies there.

    Raises:
        ValueError: something lies there that is no output of ours, or the store cannot be read.
    """
    try:
        provenance = json.loads(shards.get(ROOT) or b"")["attributes"]["slidefield"]
        if isinstance(provenance["store_id"], str):
            return provenance
    except (LookupError, TypeError, RecursionError, json.JSONDecodeError, UnicodeDecodeError):
        pass
    if shards.is_empty():
        return None
    raise ValueError(
        f"{shards.url} is there but is no output of engine.sample; remove it yourself, or choose another `out`"
    )


def check_owner(shards: RemoteShards, provenance: dict[str, Any] | None, store_id: str | None) -> None:
    """Refuse the place of another output.

    Args:
        provenance: What lies there; None: nothing.
        store_id: Of the output that is to be there; None: it is not begun yet.
    Raises:
        ValueError: naming the place.
    """
    if provenance is not None and provenance["store_id"] != store_id:
        raise ValueError(
            f"{shards.url} holds an output of another `scratch` folder ({provenance['state']}); give the folder that "
            "it was sampled with, choose another `out`, or pass `overwrite` to replace it, if no run is writing it"
        )


def claim(shards: RemoteShards, path: Path, store_id: str) -> None:
    """Put an output's metadata at its URL, before its first shard. Rank 0 calls this.

    Args:
        path: The output's handle.
        store_id: The output's own, which tells it from others.
    Raises:
        ValueError: another output was begun there, or the store cannot be written.
    """
    shards.create(ROOT, (path / ROOT).read_bytes())
    check_owner(shards, provenance_in(shards), store_id)
    publish(shards, path, finished=False)


def publish(shards: RemoteShards, path: Path, finished: bool) -> list[str]:
    """Put what is missing or differs of an output's metadata, its root the last, and name it. Rank 0 calls this.

    Args:
        path: The output's handle.
        finished: Whether the ledger is put too.
    """
    names = list(differing(shards, path, finished))
    for name in names:
        shards.put(name, [(path / name).read_bytes()])
    return names


def differing(shards: RemoteShards, path: Path, finished: bool) -> Iterator[str]:
    """Name the objects that do not say what the handle keeps, the root the last.

    Args:
        path: The output's handle.
        finished: Whether the ledger is looked at too: by its size, it has a hash of every shard.
    """
    files, sizes = kept_metadata(path), shards.sizes()
    files[PRIVATE] = content_of(path / PRIVATE)
    for name in (*(name for name in files if name != ROOT), *(AT_THE_END if finished else ()), ROOT):
        size = sizes(PurePath(name))
        same = size == file_size(path / name) if name in AT_THE_END else size and says(shards, name, files[name])
        if not same:
            yield name


def says(shards: RemoteShards, name: str, kept: Any) -> bool:
    """Whether an object is JSON that says what is kept of it."""
    try:
        return contains(json.loads(shards.get(name) or b""), kept)
    except (RecursionError, json.JSONDecodeError, UnicodeDecodeError):
        return False
