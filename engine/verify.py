"""``python -m engine.verify OUT``: read every shard of an output, compare it with the ledger, and say what it is.

Exit status: 0 finished and whole, 75 unfinished, 1 damaged or no output.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from engine.command_line import STOPPED, Parser, print_error


def main(arguments: Sequence[str] | None = None) -> int:
    top = Parser(prog="python -m engine.verify", description=__doc__)
    top.add_argument("out", type=Path, help="an output of engine.sample")
    try:
        path = top.parse_args(arguments).out
    except ValueError as error:
        print_error(error)
        return 1
    from engine.storage.integrity import damage, pixels_sha256
    from engine.storage.output import Output, provenance_of

    try:
        provenance_of(path)
        output = Output(path)
        mark, damaged = output.checkpoints.mark(), list(damage(output))
    except (ValueError, OSError, KeyError) as error:
        print_error(error)
        return 1
    for line in damaged:
        print(f"damaged: {line}", file=sys.stderr)
    shape = output.layout.shape_text()
    if damaged:
        print(f"damaged: {len(damaged)} files; {shape}")
        return 1
    if not output.finished:
        print(f"unfinished at level {mark.level if mark else 0} of {output.provenance['levels']}; {shape}")
        return STOPPED
    print(f"finished; {shape}; sha256 {pixels_sha256(output)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
