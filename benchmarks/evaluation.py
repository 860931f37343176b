"""``python -m benchmarks.evaluation``: what does an evaluation cost beside its bare feature extractor?

Features a second of ``features_of`` (read by box, cut, dealt to ranks, checked, gathered) over those of the extractor
called on pixels that lie in memory, in turns, in one process; and the seconds that nearest neighbours and the measures
of them take among many features. Start it under mpiexec for more ranks.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.report import report
from engine.distributed.launch import ranks_of
from engine.distributed.ranks import Ranks
from engine.embedding.extractors import FeatureExtractor, feature_extractor
from engine.evaluation.crops import Crops, crops_of, share
from engine.evaluation.gathered import features_of, shared
from engine.evaluation.manifold import manifold_of
from engine.evaluation.neighbours import nearest
from engine.evaluation.sources import source_of

BATCH = 32


def seconds_of(ranks: Ranks, work: Callable[[], Any]) -> float:
    """Until the last rank is done. Collective."""
    ranks.barrier()
    begun = time.perf_counter()
    work()
    return float(ranks.allgather_float(time.perf_counter() - begun).max())


def cost_of_features(ranks: Ranks, crops: Crops, extractor: FeatureExtractor, repeats: int) -> dict[str, Any]:
    """Bare extractor and ``features_of`` in turns; medians. Collective."""
    own = share(len(crops), ranks.rank, ranks.size)
    batches = [crops.pixels(batch) for batch in crops.batches(own, BATCH)]

    def bare() -> None:
        for pixels in batches:
            extractor(pixels, crops.named)

    times = [
        (seconds_of(ranks, bare), seconds_of(ranks, lambda: features_of(ranks, crops, extractor, BATCH)))
        for _ in range(repeats + 1)
    ][1:]
    without, whole = (float(np.median(column)) for column in zip(*times, strict=True))
    return {
        "what": f"features of {len(crops)} crops",
        "ranks": ranks.size,
        "a second": len(crops) / whole,
        "bare a second": len(crops) / without,
        "ratio": whole / without,
    }


def cost_of_neighbours(ranks: Ranks, count: int, dimensions: int) -> list[dict[str, Any]]:
    """Nearest neighbours, and precision to coverage, among two sets of so many normal features. Collective."""
    a, b = (
        shared(np.random.default_rng(i).standard_normal((count, dimensions), np.float32), ranks, "noise")
        for i in (0, 1)
    )
    works = {
        "nearest neighbours": lambda: nearest(ranks, a, b, 1),
        "precision to coverage": lambda: manifold_of(ranks, a, b),
    }
    return [
        {
            "what": f"{name}, {count} and {count} of {dimensions} features",
            "ranks": ranks.size,
            "seconds": seconds_of(ranks, work),
        }
        for name, work in works.items()
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    top = argparse.ArgumentParser(prog="python -m benchmarks.evaluation", description=__doc__)
    top.add_argument("images", type=Path, help="a folder of images, a slide or an output")
    top.add_argument("--crop", type=int, default=256, help="px (default: 256)")
    top.add_argument("--features", default="embedded")
    top.add_argument("--repeats", type=int, default=3)
    top.add_argument("--neighbours", type=int, default=50000, help="features in each set (default: 50000)")
    top.add_argument("--dimensions", type=int, default=512)
    top.add_argument("--json", help="write the report here")
    args = top.parse_args(arguments)
    torch.set_num_threads(1)
    ranks = ranks_of()
    crops = crops_of(source_of(args.images, "images"), args.crop)
    extractor = feature_extractor(args.features, "cpu")
    features = cost_of_features(ranks, crops, extractor, args.repeats)
    rows = cost_of_neighbours(ranks, args.neighbours, args.dimensions)
    if ranks.rank == 0:
        print(f"{features['what']}: {features['ratio']:.3f} of the bare extractor's time, {features['a second']:.0f}/s")
        report("evaluation", rows, args.json, features=features)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
