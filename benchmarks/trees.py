"""``python -m benchmarks.trees OLD NEW -- OPTIONS``: what a run takes in one checkout and in another, taking turns.

``engine.sample`` with the options, on ``--ranks`` ranks, in both trees; the order changes every turn. "faster" is the
median over the turns of 1 - new / old, which is what counts on a machine that is seldom alone. The bytes are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import report
from engine.storage.integrity import pixels_sha256
from engine.storage.output import Output


def run(tree: Path, ranks: int, options: Sequence[str]) -> dict[str, Any]:
    """Seconds of a whole command, and of its parts as the output has them; with the hash of its pixels."""
    beside = Path(sys.executable).with_name("mpiexec")
    launcher = [str(beside) if beside.exists() else "mpiexec", "-n", str(ranks)]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "o.zarr"
        command = [*launcher, sys.executable, "-m", "engine.sample", *options, "--out", str(out)]
        begun = time.perf_counter()
        environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
        subprocess.run(command, cwd=tree, env=environment, stdout=subprocess.DEVNULL, check=True)
        took = time.perf_counter() - begun
        parts = json.loads((out / "zarr.json").read_text())["attributes"]["slidefield"]["seconds"]
        return {"command": took, **{name: parts[name] for name in ("sampling", "decoding", "all")}} | {
            "sha256": pixels_sha256(Output(out))
        }


def main(arguments: Sequence[str] | None = None) -> int:
    top = argparse.ArgumentParser(
        prog="python -m benchmarks.trees", usage="%(prog)s OLD NEW [-- OPTIONS]", description=__doc__
    )
    top.add_argument("trees", type=Path, nargs=2, help="checkouts: the old one, the new one")
    top.add_argument("--ranks", type=int, default=2)
    top.add_argument("--turns", type=int, default=3)
    top.add_argument("--json", help="write the report here")
    given = list(sys.argv[1:] if arguments is None else arguments)
    own, options = (given[: given.index("--")], given[given.index("--") + 1 :]) if "--" in given else (given, [])
    args = top.parse_args(own)
    runs: list[list[dict[str, Any]]] = [[], []]
    for turn in range(args.turns):
        for which in (0, 1) if turn % 2 else (1, 0):
            runs[which].append(run(args.trees[which].resolve(), args.ranks, options))
            print(runs[which][-1], file=sys.stderr, flush=True)
    if len({one.pop("sha256") for of_tree in runs for one in of_tree}) != 1:
        raise ValueError("the trees make different bytes")
    old, new = ({part: np.array([one[part] for one in of_tree]) for part in of_tree[0]} for of_tree in runs)
    rows = [
        {
            "part": part,
            "old s": float(np.median(old[part])),
            "new s": float(np.median(new[part])),
            "faster": float(np.median(1 - new[part] / old[part])),
        }
        for part in old
    ]
    report("trees", rows, args.json, ranks=args.ranks, turns=args.turns, options=options)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
