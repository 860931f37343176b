"""``python -m engine.verify OUT``: read every shard, check it against the ledger, say what the output is.

Exit status: 0 finished and whole, 75 unfinished, 1 damaged or no output.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from engine.comm import STOPPED
from engine.geometry import Window
from engine.store import Output, bands, digest, state_of


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


def damage(output: Output) -> list[str]:
    """What is wrong with the shards that the ledger calls finished, and which it lacks in a finished output."""
    ledger, layout = output.ledger(), output.layout
    lines, drawing = output.lines(), output.drawing()
    found = []
    for (name, box), expected in ledger.items():
        rewritten = name == layout.image and lines[name, box].get("attempt", 0) < drawing.attempt
        if rewritten and any(box.y0 <= image < box.y1 for image in drawing.images or []):
            continue  # under way: the ledger is behind the shard
        try:
            if digest(output.read(name, box)) != expected:
                found.append(f"{where(name, box)} differs from the ledger (missing, or changed after it was written)")
        except Exception as error:  # whatever the codecs raise
            found.append(f"{where(name, box)} cannot be read: {' '.join(str(error).split())}")
    if output.finished:
        for name, level in layout.arrays():
            boxes = layout.boxes(level)
            found += [f"{where(name, box)} is not in the ledger" for box in boxes if (name, box) not in ledger]
    return found


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
        mark, wrong = output.checkpoint(), damage(output)
    except (ValueError, OSError, KeyError) as error:
        print(f"error: {error}", file=sys.stderr)
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
