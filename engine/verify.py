"""``python -m engine.verify OUT``: read every shard, check it against the ledger, say what the output is.

Exit status: 0 finished and whole, 75 unfinished, 1 damaged or no output.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

from engine.comm import STOPPED
from engine.geometry import Window
from engine.store import LABELS, Output, bands, digest, state_of


def pixels_sha256(output: Output) -> str:
    """sha256 of the image's bytes in the order c, y, x: the same for any chunking. Read in bands of one shard."""
    total = hashlib.sha256()
    array, (height, width) = output.array("0"), output.layout.size
    for c in range(output.layout.channels):
        for y0, y1 in bands(height, output.layout.shard):
            total.update(memoryview(array[c, y0:y1, :width]).cast("B"))  # type: ignore[arg-type,index]
    return total.hexdigest()


def damage(output: Output) -> list[str]:
    """What is wrong with the shards that the ledger calls finished, and which it lacks in a finished output."""
    ledger = output.ledger()
    found = []
    for (name, box), expected in ledger.items():
        try:
            if digest(output.read(name, box)) != expected:
                found.append(f"{where(name, box)} differs from the ledger (missing, or changed after it was written)")
        except Exception as error:  # whatever the codecs raise
            found.append(f"{where(name, box)} cannot be read: {' '.join(str(error).split())}")
    if output.finished:
        for level in range(len(output.layout.sizes())):
            for prefix in ("", f"{LABELS}/"):
                found += [
                    f"{where(f'{prefix}{level}', box)} is not in the ledger"
                    for box in output.boxes(level)
                    if (f"{prefix}{level}", box) not in ledger
                ]
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
    shape = f"shape {output.layout.channels} x {height} x {width} (c, y, x)"
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
