"""``python -m engine.verify OUT``: read every shard of an output, compare it with the ledger, and say what it is.

Exit status: 0 finished and whole, 75 unfinished, 1 damaged or no output.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from engine.command_line import STOPPED, Parser, on_one_rank, print_error


@on_one_rank
def main(arguments: Sequence[str] | None = None) -> int:
    top = Parser(prog="python -m engine.verify", description=__doc__)
    top.add_argument("out", type=Path, help="an output of engine.sample")
    try:
        path = top.parse_args(arguments).out
    except ValueError as error:
        print_error(error)
        return 1
    from engine.storage.plane_swap import steady

    try:
        status, said, damaged = steady(path, lambda: verified(path))
    except (ValueError, OSError, KeyError) as error:
        print_error(error)
        return 1
    for line in damaged:
        print(f"damaged: {line}", file=sys.stderr)
    print(said)
    return status


def verified(path: Path) -> tuple[int, str, list[str]]:
    """The exit status, what is said of an output, and its damaged files.

    Raises:
        ValueError: there is no output.
    """
    from engine.storage.integrity import damage, pixels_sha256
    from engine.storage.output import Output, provenance_of

    provenance_of(path)
    output = Output(path)
    mark, damaged = output.checkpoints.mark(), list(damage(output))
    shape = output.layout.shape_text()
    if damaged:
        return 1, f"damaged: {len(damaged)} files; {shape}", damaged
    if not output.finished:
        return STOPPED, f"unfinished at level {mark.level if mark else 0} of {output.provenance['levels']}; {shape}", []
    return 0, f"finished; {shape}; sha256 {pixels_sha256(output)}", []


if __name__ == "__main__":
    raise SystemExit(main())
