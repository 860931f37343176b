"""``python -m benchmarks.decoding``: how well do n ranks share the decoding of an image of one shard?

The emulated networks of ``benchmarks.scaling``: a window of the decoder occupies no core and takes a fixed time, so
that more ranks than cores show everything but its arithmetic: planning, the pixels that travel to the shard's one
writer, fusion, waiting. *Ideal* is one rank's time times the share of windows of the rank that has most of them:
windows are whole. "of ideal" is ideal / seconds. Seconds are those of the stage on rank 0, from the last level to the
fused shard; the median over ``--repeats`` runs.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import report
from benchmarks.scaling import Case, launch
from engine.models.card import ModelCard, read_card
from engine.planning.decode_cover import decode_cover

OVERLAP = 16  # latents; the default of the option


class WholeWindows(Case):
    """An image of so many of the network's windows, without a latent more: of one shard."""

    def size(self, card: ModelCard) -> tuple[int, int]:
        height, width = (n * card.patch * card.factor for n in self.windows)
        return height, width


def case_of(ranks: int, args: argparse.Namespace) -> WholeWindows:
    side = (args.side, args.side)
    return WholeWindows("decode", ranks, side, 8, milliseconds=1.0, decode_milliseconds=args.milliseconds)


def rows_of(seconds: dict[int, float], windows: int, size: int) -> list[dict[str, Any]]:
    """The table: each number of ranks beside one rank."""
    rows = []
    for ranks, took in sorted(seconds.items()):
        ideal = seconds[1] * math.ceil(windows / ranks) / windows
        facts = {"px": f"{size} x {size}", "windows": windows, "ranks": ranks}
        rows.append(facts | {"seconds": took, "ideal s": ideal, "of ideal": ideal / took})
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    top = argparse.ArgumentParser(prog="python -m benchmarks.decoding", description=__doc__)
    top.add_argument("--ranks", default="1,2,4", help="1 among them")
    top.add_argument("--side", type=int, default=8, help="of the image, in windows of the network: 8 are 2048 px")
    top.add_argument("--milliseconds", type=float, default=500.0, help="of an emulated decoder's window")
    top.add_argument("--repeats", type=int, default=3)
    top.add_argument("--model", default="embedded")
    top.add_argument("--json", help="write the report here")
    args = top.parse_args(arguments)
    card = read_card(args.model)
    latents, size = args.side * card.patch, args.side * card.patch * card.factor
    overlap: Any = card.defaults.get("decode_overlap", OVERLAP)
    windows = len(decode_cover((latents, latents), card.patch, int(overlap)))
    shard = -(-size // 512) * 512
    run = argparse.Namespace(model=args.model, device="cpu", seed=0, levels=2, shard=shard, launcher=None)
    seconds: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for ranks in map(int, args.ranks.split(",")):
            measured = launch(ranks, [case_of(ranks, args)] * args.repeats, card, run, Path(folder))
            seconds[ranks] = float(np.median([one["seconds"]["decoding"] for one in measured]))
    facts = {"milliseconds": args.milliseconds, "shard": shard, "repeats": args.repeats}
    report("decoding", rows_of(seconds, windows, size), args.json, **facts)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
