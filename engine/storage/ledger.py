"""The ledger has a line for every shard that is on disk: a run that goes on after a kill does not write it again.

Its files are::

    OUT/slidefield/ledger.jsonl          one ledger of all ranks, merged when a run begins and when it ends
    OUT/slidefield/ledger/RANK.jsonl     what each rank has finished since: every rank appends to a file of its own
    OUT/slidefield/forgotten.jsonl       while an output is mended, its lines about the shards that are made anew
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from engine.planning.geometry import Box, Grid
from engine.storage.files import discard, sync, whole_file
from engine.storage.layout import Layout
from engine.storage.shard_store import ShardStore, Sizes

ROUNDS = range(128)  # what int8 holds


class FewRounds(dict[int, int]):
    """The rounds of the shards of a plane's array, by number: its regions may be far apart, with no shard between."""

    def __missing__(self, index: int) -> int:
        return -1


class FinishedShard(NamedTuple):
    """A line of the ledger, which says that a shard is on disk.

    Args:
        array: Name of its array.
        box: Its box, one of ``Layout.boxes``.
        sha256: Hash of its pixels.
        round_index: Number of the round of rejection sampling that wrote it, from 0; only a set has several.
        size: Number of bytes of its file; None: an earlier version wrote the line, and did not say.
    """

    array: str
    box: Box
    sha256: str
    round_index: int = 0
    size: int | None = None

    def line(self) -> str:
        """Write the line as JSON; round 0 is left out."""
        box = self.box
        values: dict[str, Any] = {"array": self.array, "box": [box.y0, box.x0, box.y1, box.x1], "sha256": self.sha256}
        values |= {} if self.size is None else {"bytes": self.size}
        return json.dumps({**values, "round": self.round_index} if self.round_index else values) + "\n"


class Ledger:
    """The ledger of an output, as one rank sees it: it reads all ranks' lines and appends to its own.

    Args:
        path: The output's folder.
        layout: The shapes of the output's arrays.
        rank: The rank whose file is appended to.
        store: Where the shards lie.
    """

    def __init__(self, path: Path, layout: Layout, rank: int, store: ShardStore) -> None:
        self.path, self.layout, self.rank, self.store = path, layout, rank, store
        self.merged = path / "slidefield" / "ledger.jsonl"
        self.of_ranks = path / "slidefield" / "ledger"
        self.forgotten = path / "slidefield" / "forgotten.jsonl"

    @cached_property
    def shards(self) -> dict[str, Grid]:
        """List the boxes of the shards of every array, by its name."""
        return {array.name: self.layout.boxes(array.level) for array in self.layout.arrays()}

    def index_of(self, shard: FinishedShard) -> int:
        """Find the number of a shard among those of its array."""
        return self.shards[shard.array].index_of(shard.box)

    def append(self, shard: FinishedShard) -> None:
        """Append a line to this rank's file. The shard's writer calls this, once the shard is on disk."""
        file = self.of_ranks / f"{self.rank:05}.jsonl"
        is_new = not file.exists()
        self.of_ranks.mkdir(exist_ok=True)
        with file.open("a") as stream:
            stream.write(shard.line())
            stream.flush()
            os.fsync(stream.fileno())
        if is_new:
            sync(self.of_ranks)
            sync(self.of_ranks.parent)

    def __iter__(self) -> Iterator[FinishedShard]:
        """Read the lines of all ranks, file by file; malformed lines (a kill tears the last) are skipped.

        Lines are in no order: of several about one shard, that of the latest round counts.
        """
        for file in (self.merged, *sorted(self.of_ranks.glob("*.jsonl"))):
            if not file.is_file():
                continue
            with file.open(errors="replace") as stream:
                yield from filter(None, map(self.parse, stream))

    def parse(self, text: str) -> FinishedShard | None:
        """Read a line; None: it is malformed, or names no shard of the output."""
        try:
            line = json.loads(text)
            array, box = line["array"], Box(*map(int, line["box"]))
            round_index = int(line.get("round", line.get("attempt", 0)))  # older outputs say "attempt"
            size = None if line.get("bytes") is None else int(line["bytes"])
            shard = FinishedShard(array, box, str(line["sha256"]), round_index, size)
            is_shard = self.shards[array][self.index_of(shard)] == box
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
            return None
        return shard if is_shard and round_index in ROUNDS else None

    def latest(self) -> dict[str, Any]:
        """Read the ledger through for the round in which each shard was last finished.

        Returns:
            For every array that has a finished shard: int8 (shards,), -1 for a shard that is not finished; of a plane
            the same by number.
        """
        latest: dict[str, Any] = {}
        for shard in self:
            if shard.array not in latest:
                latest[shard.array] = self.none_finished(shard.array)
            rounds, index = latest[shard.array], self.index_of(shard)
            rounds[index] = max(rounds[index], shard.round_index)
        return latest

    def none_finished(self, array: str) -> np.ndarray | FewRounds:
        return np.full(len(self.shards[array]), -1, np.int8) if self.layout.complete else FewRounds()

    def counts(self) -> dict[str, int]:
        """Number of finished shards, by array."""
        return {
            name: len(rounds) if isinstance(rounds, FewRounds) else int((rounds >= 0).sum())
            for name, rounds in self.latest().items()
        }

    def lacking(self, latest: Mapping[str, Any]) -> Iterator[tuple[str, Box]]:
        """List the shards that no line names, as (array, box).

        Args:
            latest: Rounds of the shards, as ``latest()`` returned them.
        """
        for array, boxes in self.shards.items() if self.layout.complete else ():
            rounds = latest.get(array, self.none_finished(array))
            yield from ((array, boxes[i]) for i in np.flatnonzero(rounds < 0).tolist() if self.layout.expects(boxes[i]))

    def remember(self, shards: Collection[tuple[str, Box]]) -> None:
        """Keep the lines about shards that are made anew, for ``made_otherwise``. Rank 0 calls this."""
        with self.forgotten.open("a") as stream:
            stream.writelines(shard.line() for shard in self if (shard.array, shard.box) in shards)

    def made_otherwise(self) -> list[FinishedShard]:
        """List the shards that were made anew and are not the bytes that the ledger had of them."""
        if not self.forgotten.is_file():
            return []
        with self.forgotten.open(errors="replace") as stream:
            before = {(shard.array, shard.box): shard for shard in filter(None, map(self.parse, stream))}
        now = {(shard.array, shard.box): shard for shard in self if (shard.array, shard.box) in before}
        return [now[key] for key in before if key in now and now[key].sha256 != before[key].sha256]

    def has_file(self, shard: FinishedShard, sizes: Sizes) -> bool:
        """Whether the shard's file is there and as large as when it was written."""
        size = sizes(self.layout.shard_file(shard.array, shard.box))
        return size > 0 and shard.size in (None, size)

    def merge(self, check: bool = False, without: Collection[tuple[str, Box]] = ()) -> None:
        """Make one ledger of all ranks', with the one line that counts about each shard. Rank 0 calls this.

        Args:
            check: Whether to drop lines whose shard has no file any more, or one of another size.
            without: Shards whose lines are dropped, as (array, box).
        """
        latest, sizes = self.latest(), self.store.sizes() if check else None
        if self.merged.is_dir():
            discard(self.merged)
        with whole_file(self.merged) as building, building.open("w") as stream:
            for shard in self:
                index = self.index_of(shard)
                if latest[shard.array][index] != shard.round_index:
                    continue
                latest[shard.array][index] = -1  # one line is enough
                if (shard.array, shard.box) not in without and (sizes is None or self.has_file(shard, sizes)):
                    stream.write(shard.line())
        discard(self.of_ranks)
