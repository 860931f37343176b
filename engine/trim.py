"""``python -m engine.trim PLANE.zarr``: drop the levels that a plane keeps for later requests.

The image stays as it is, and any region can be asked for as before: what it needs is then computed anew. With --region
the levels stay that this region takes, so that its neighbours are still cheap. Exit status: 0 done, 1 refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from engine.command_line import Parser, converted, on_one_rank, print_error
from engine.options import REGION
from engine.planning.geometry import Box


def parser() -> Parser:
    top = Parser(prog="python -m engine.trim", description=__doc__, allow_abbrev=False)
    top.add_argument("plane", type=Path, help="the plane")
    text = "rows and columns, in pixels of the plane, whose levels are kept (default: none; negative: --region=-9:...)"
    top.add_argument("--region", type=partial(converted, REGION.read), metavar="Y0:Y1,X0:X1", help=text)
    return top


@on_one_rank
def main(arguments: Sequence[str] | None = None) -> int:
    try:
        given = parser().parse_args(arguments)
        from engine.storage.plane_trim import trim  # zarr

        dropped, left = trim(given.plane, given.region and Box(*given.region))
    except (ValueError, OSError, MemoryError) as error:
        print_error(error)
        return 1
    rest = f"{left:,} bytes are left" if left else "none is left"
    print(f"{given.plane}: {dropped:,} bytes of kept levels dropped ({dropped / 2**20:,.1f} MiB); {rest}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
