"""``python -m engine.verify OUT``: read every shard, check it against the ledger, say what the output is.

Exit status: 0 finished and whole, 75 unfinished, 1 damaged or no output.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from engine.command_line import print_error
from engine.distributed.ranks import STOPPED
from engine.planning.geometry import Window
from engine.storage.files import bands, digest
from engine.storage.output import Output, state_of


def pixels_sha256(output: Output) -> str:
    """sha256 of the image's bytes in the order c, y, x, or of a set's in the order index, c, y, x.

    The same for any chunking. Read in bands of one shard.
    """
    total = hashlib.sha256()
    layout, array = output.layout, output.array(output.layout.image)
    if layout.count is not None:
        for box in layout.boxes():
            total.update(np.ascontiguousarray(output.read(layout.image, box)).tobytes())
        return total.hexdigest()
    for c in range(layout.channels):
        for y0, y1 in bands(layout.size[0], layout.shard):
            total.update(memoryview(array[c, y0:y1, : layout.size[1]]).cast("B"))  # type: ignore[arg-type,index]
    return total.hexdigest()


def damage(output: Output) -> Iterator[str]:
    """What is wrong with the shards that the ledger calls finished, and which it lacks in a finished output.

    The ledger is read line by line, twice.
    """
    latest, layout, sampling_round = output.latest(), output.layout, output.sampling_round()
    for shard in output.ledger():
        name, box = shard.array, shard.box
        if name not in latest or shard.round_index != latest[name][output.place(shard)]:
            continue  # drawn again since, or finished since the first reading
        rewritten = name == layout.image and shard.round_index < sampling_round.index
        if rewritten and any(box.y0 <= image < box.y1 for image in sampling_round.images or []):
            continue  # under way: the ledger is behind the shard
        try:
            if digest(output.read(name, box)) != shard.sha256:
                yield f"{where(name, box)} differs from the ledger (missing, or changed after it was written)"
        except Exception as error:  # whatever the codecs raise
            yield f"{where(name, box)} cannot be read: {' '.join(str(error).split())}"
    for name, boxes in output.shards.items() if output.finished else ():
        for i in np.nonzero(latest.get(name, np.full(len(boxes), -1)) < 0)[0].tolist():
            yield f"{where(name, boxes[i])} is not in the ledger"


def where(name: str, box: Window) -> str:
    return f"array {name} shard rows {box.y0}:{box.y1} columns {box.x0}:{box.x1}"


def main(arguments: Sequence[str] | None = None) -> int:
    top = argparse.ArgumentParser(prog="python -m engine.verify", description=__doc__)
    top.add_argument("out", type=Path, help="an output of engine.sample")
    path = top.parse_args(arguments).out
    try:
        if state_of(path) is None:
            raise ValueError(f"{path} is not there")
        output = Output(path)
        mark, wrong = output.checkpoint(), list(damage(output))
    except (ValueError, OSError, KeyError) as error:
        print_error(error)
        return 1
    for line in wrong:
        print(f"damaged: {line}", file=sys.stderr)
    height, width = output.layout.size
    count = output.layout.count
    shape = f"shape {output.layout.channels} x {height} x {width} (c, y, x)" + f", {count} images" * (count is not None)
    if wrong:
        print(f"damaged: {len(wrong)} shards; {shape}")
        return 1
    if not output.finished:
        print(f"unfinished at level {mark['level'] if mark else 0} of {output.provenance['levels']}; {shape}")
        return STOPPED
    print(f"finished; {shape}; sha256 {pixels_sha256(output)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
