"""Is an output whole: its shards against the ledger, and the hash of its pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from engine.planning.geometry import Box
from engine.storage.files import digest
from engine.storage.output import Output


def pixels_sha256(output: Output) -> str:
    """Hash (sha256) the image's bytes in the order c y x, or a set's in the order index c y x.

    The hash does not depend on chunks or shards. At most a row of shards is in memory at a time.
    """
    total, array = hashlib.sha256(), output.array(output.layout.image)
    for index in output.layout.in_order():
        total.update(np.ascontiguousarray(array[index]).data)
    return total.hexdigest()


def damage(output: Output) -> Iterator[str]:
    """Say which shards differ from the ledger and, in a finished output, which the ledger lacks: a line each.

    The ledger is read line by line, twice.
    """
    ledger, image, sampling_round = output.ledger, output.layout.image, output.checkpoints.sampling_round()
    latest = ledger.latest()
    for shard in ledger:
        name, box = shard.array, shard.box
        if name not in latest or shard.round_index != latest[name][ledger.index_of(shard)]:
            continue  # a later round drew it again, or it was finished after the first reading
        earlier_round = name == image and shard.round_index < sampling_round.index
        if earlier_round and any(box.y0 <= number < box.y1 for number in sampling_round.images or []):
            continue  # it is being drawn again: the file may be newer than its line
        try:
            if digest(output.read(name, box)) != shard.sha256:
                yield f"{where(name, box)} differs from the ledger (missing, or changed after it was written)"
        except Exception as error:  # codecs raise errors of many kinds
            yield f"{where(name, box)} cannot be read: {' '.join(str(error).split())}"
    for name, box in ledger.lacking(latest) if output.finished else ():
        yield f"{where(name, box)} is not in the ledger"


def where(name: str, box: Box) -> str:
    """Name a shard, for people."""
    return f"array {name} shard rows {box.y0}:{box.y1} columns {box.x0}:{box.x1}"
