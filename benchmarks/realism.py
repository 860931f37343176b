"""``[mpiexec -n N] python -m benchmarks.realism OUT.zarr --tiles DIR``: how near is a sample to the tiles of a folder?

The measures are those of ``engine/evaluation/realism.py``; engine.evaluate says them beside others. With ``--mosaic
FILE.npy`` it writes a label map of the tiles' own label maps instead, to sample from: then both sides show the same
labels.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.report import report
from engine.distributed.launch import run_main
from engine.distributed.ranks import Ranks
from engine.evaluation.crops import SIDE, crops_of
from engine.evaluation.realism import realism_measures
from engine.evaluation.sources import source_of
from engine.training.data import find_images, read_mask


def mosaic(tiles: Path, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """The label maps of rows x columns tiles, beside one another: uint8."""
    images = find_images(tiles)
    chosen = np.random.default_rng(seed).permutation(len(images))[: rows * columns]
    maps = [read_mask(images[i]).astype(np.uint8) for i in chosen]
    return np.concatenate([np.concatenate(maps[r * columns : (r + 1) * columns], 1) for r in range(rows)])


def main(arguments: Sequence[str] | None = None) -> int:
    top = argparse.ArgumentParser(prog="python -m benchmarks.realism", description=__doc__)
    top.add_argument("out", type=Path, nargs="?", help="a finished output of engine.sample")
    top.add_argument("--tiles", type=Path, required=True, help="folder of tiles")
    top.add_argument(
        "--crop", type=int, default=SIDE, help="side of the crops that are compared, px (default %(default)s)"
    )
    top.add_argument("--mosaic", metavar="FILE.npy", help="write a label map of 4 x 4 tiles and stop")
    top.add_argument("--json", help="write the report here")
    args = top.parse_args(arguments)
    if args.mosaic:
        np.save(args.mosaic, mosaic(args.tiles, 4, 4))
        return 0
    if args.out is None:
        top.error("an output is needed")

    def measure(ranks: Ranks) -> int:
        made, tiles = ranks.on_root(
            lambda: [
                crops_of(source_of(path, name), args.crop) for path, name in ((args.out, "out"), (args.tiles, "tiles"))
            ]
        )
        measures = realism_measures(ranks, made, tiles)
        if ranks.rank == 0:
            columns = ("name", "label", "value", "error", "reference", "unit")
            rows = [{column: getattr(measure, column) for column in columns} for measure in measures]
            report("realism", rows, args.json, made=made.facts(), tiles=tiles.facts())
        return 0

    return run_main(measure)


if __name__ == "__main__":
    raise SystemExit(main())
