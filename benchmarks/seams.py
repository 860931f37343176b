"""``[mpiexec -n N] python -m benchmarks.seams OUT.zarr``: do the engine's lines show in the image?

The measure is ``engine/evaluation/seams.py``; engine.evaluate says it beside others.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.report import report
from engine.distributed.launch import run_main
from engine.distributed.ranks import Ranks
from engine.evaluation.seams import seam_measures


def main(arguments: Sequence[str] | None = None) -> int:
    top = argparse.ArgumentParser(prog="python -m benchmarks.seams", description=__doc__)
    top.add_argument("out", type=Path, help="a finished output of engine.sample")
    top.add_argument("--json", help="write the report here")
    args = top.parse_args(arguments)

    def measure(ranks: Ranks) -> int:
        measures = seam_measures(ranks, args.out)
        if ranks.rank == 0:
            rows = [{"lines": m.name, "ratio": m.value, "error": m.error, "says": m.says} for m in measures]
            report("seams", rows, args.json)
        return 0

    return run_main(measure)


if __name__ == "__main__":
    raise SystemExit(main())
