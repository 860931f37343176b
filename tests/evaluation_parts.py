"""Parts of an evaluation by themselves, for ``launch(ranks, NAME, ..., module="evaluation_parts")``: prints JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from engine.distributed.launch import run_main
from engine.distributed.ranks import Ranks
from engine.evaluation.crops import Crops, crops_of
from engine.evaluation.diversity import diversity
from engine.evaluation.gathered import shared
from engine.evaluation.inception_score import inception_score
from engine.evaluation.sources import source_of


def crops(path: str, side: int | None = None) -> Crops:
    return crops_of(source_of(Path(path), "folder"), side)


def score(ranks: Ranks, logits: str) -> list[Any]:
    return inception_score(ranks, shared(np.load(logits), ranks))


def unlike(ranks: Ranks, generated: str, reference: str, *lpips: str) -> list[Any]:
    return diversity(ranks, crops(generated), crops(reference), pairs=20, lpips=Path(lpips[0]) if lpips else None)


PARTS = {"score": score, "diversity": unlike}


def part(ranks: Ranks, name: str, arguments: Sequence[str]) -> int:
    results = PARTS[name](ranks, *arguments)
    if ranks.rank == 0:
        print(json.dumps([asdict(result) for result in results]))
    return 0


def main(arguments: Sequence[str]) -> int:
    return run_main(partial(part, name=arguments[0], arguments=arguments[1:]))
