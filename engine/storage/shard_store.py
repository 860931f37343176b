"""Where the shards of an output lie: in its folder, or in an object store (``remote_shards.py``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import Protocol

from engine.storage.files import Stamp, discard, file_size, stamp_of, sync_new, whole_file

Sizes = Callable[[PurePath], int]  # the number of bytes of a shard by its name; 0: there is none


class ShardStore(Protocol):
    """The shards of one output, by their names: paths relative to the output."""

    def where(self, name: PurePath) -> Path | str:
        """The file or the URL of a shard."""

    def put(self, name: PurePath, parts: Sequence[bytes]) -> int:
        """Keep a shard, whole or not at all; what was there is replaced. Returns its number of bytes.

        Raises:
            ValueError: another program removed it as soon as it was there, or the store refuses it.
        """

    def size(self, name: PurePath) -> int:
        """Number of bytes of a shard; 0: there is none."""

    def sizes(self) -> Sizes:
        """``size`` for those who ask for most shards."""

    def stamp(self, name: PurePath) -> Stamp | None:
        """What changes when a shard does; None: there is none; ``NO_FILE``: what lies there is no shard."""

    def remove(self, name: PurePath) -> None:
        """Remove a shard, if it is there."""


class LocalShards:
    """Shards that are files in the output's folder.

    Args:
        path: The output's folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kept: set[Path] = set()  # folders that the disk has

    def where(self, name: PurePath) -> Path:
        return self.path / name

    def put(self, name: PurePath, parts: Sequence[bytes]) -> int:
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as building, building.open("wb") as stream:
            stream.writelines(parts)
        try:
            sync_new(file, self.path, self.kept)
        except FileNotFoundError:
            raise ValueError(f"{file} was there and is gone; give the same command again to make it anew") from None
        return file_size(file)

    def size(self, name: PurePath) -> int:
        return file_size(self.path / name)

    def sizes(self) -> Sizes:
        return self.size

    def stamp(self, name: PurePath) -> Stamp | None:
        return stamp_of(self.path / name)

    def remove(self, name: PurePath) -> None:
        discard(self.path / name)
