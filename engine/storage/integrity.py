"""Is an output whole: its shards against the ledger, and the hash of its pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np

from engine.planning.geometry import Box
from engine.storage.checkpoint import SamplingRound
from engine.storage.files import digest
from engine.storage.ledger import FinishedShard
from engine.storage.metadata import damaged_metadata
from engine.storage.output import Output
from engine.storage.plane_layout import PlaneLayout
from engine.storage.remote_output import differing
from engine.storage.remote_shards import RemoteShards, Unreachable
from engine.storage.shard_store import Sizes


def pixels_sha256(output: Output) -> str:
    """Hash (sha256) the image's bytes in the order c y x, or a set's in the order index c y x.

    The hash does not depend on chunks or shards. At most a row of shards is in memory at a time. Of a plane it is that
    of the shards that there are, each with its corner on the plane, row by row: any number may lie between regions.
    """
    total, array = hashlib.sha256(), output.array(output.layout.image)
    if isinstance(output.layout, PlaneLayout):
        y, x = output.layout.corner
        for box in sorted({shard.box for shard in output.ledger if shard.array == output.layout.image}):
            total.update(f"{y + box.y0},{x + box.x0}".encode())
            total.update(np.ascontiguousarray(array[output.layout.index(box)]).data)
        return total.hexdigest()
    for index in output.layout.in_order():
        total.update(np.ascontiguousarray(array[index]).data)
    return total.hexdigest()


class DamagedShard(NamedTuple):
    """A shard that is not what the ledger says.

    Args:
        why: What is wrong with it.
    """

    array: str
    box: Box
    why: str

    def __str__(self) -> str:
        box = self.box
        return f"array {self.array} shard rows {box.y0}:{box.y1} columns {box.x0}:{box.x1} {self.why}"


def damage(output: Output) -> Iterator[str]:
    """Say which files of metadata and which shards differ from what the output keeps of them: a line each."""
    for name in damaged_metadata(output.path):
        yield f"{name} differs from what was written"
    if isinstance(output.shards, RemoteShards):
        for name in differing(output.shards, output.path, output.finished):
            yield f"{output.shards.where(name)} is missing, or differs from what was written"
    yield from map(str, damaged_shards(output))


def damaged_shards(output: Output, read: bool = True, turn: int = 0, turns: int = 1) -> Iterator[DamagedShard]:
    """List the shards that differ from the ledger and, in a finished output, those that it lacks.

    The ledger is read line by line, twice.

    Args:
        read: Whether shards are read, and their pixels hashed; if not, the sizes of their files are compared alone.
        turn, turns: Every ``turns``-th line is looked at, from the ``turn``-th on: of several ranks each takes a share.
    """
    ledger, latest, sizes = output.ledger, output.ledger.latest(), output.shards.sizes()
    sampling_round = output.checkpoints.sampling_round()
    for shard in islice(ledger, turn, None, turns):
        if shard.array not in latest or shard.round_index != latest[shard.array][ledger.index_of(shard)]:
            continue  # a later round drew it again, or it was finished after the first reading
        newer = is_drawn_again(output, shard, sampling_round)
        if why := what_is_wrong(output, sizes, shard, read, newer):
            yield DamagedShard(shard.array, shard.box, why)
    for name, box in islice(ledger.lacking(latest), turn, None, turns) if output.finished else ():
        yield DamagedShard(name, box, "is not in the ledger")


def is_drawn_again(output: Output, shard: FinishedShard, sampling_round: SamplingRound) -> bool:
    """Whether the round under way draws images of this shard: its file may be newer than its line."""
    if shard.array != output.layout.image or shard.round_index >= sampling_round.index:
        return False
    return any(shard.box.y0 <= number < shard.box.y1 for number in sampling_round.images or [])


def what_is_wrong(output: Output, sizes: Sizes, shard: FinishedShard, read: bool, newer: bool) -> str:
    """Say what is wrong with a shard; empty: nothing is.

    Args:
        sizes: Sizes of the output's shards.
        read: Whether its pixels are read.
        newer: Whether its file may be newer than its line; then it has to be readable, no more.
    """
    size = sizes(output.layout.shard_file(shard.array, shard.box))
    if not size:
        return "is missing"
    if not newer and shard.size not in (None, size):
        return f"has {size} bytes in place of {shard.size}"
    if not read:
        return ""
    try:
        same = newer | (digest(output.read(shard.array, shard.box)) == shard.sha256)
    except Unreachable:  # which is no damage: nothing is to be made anew for it
        raise
    except Exception as error:  # codecs raise errors of many kinds
        return f"cannot be read: {' '.join(str(error).split())}"
    return "" if same else "differs from the ledger (changed after it was written)"
