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
from engine.embedding.extractors import feature_extractor
from engine.evaluation.class_accuracy import class_accuracy, expert_judge
from engine.evaluation.crops import Crops, crops_of
from engine.evaluation.diversity import diversity
from engine.evaluation.embedding_similarity import embedding_similarity
from engine.evaluation.gathered import shared
from engine.evaluation.inception_score import inception_score
from engine.evaluation.label_judge import label_judge
from engine.evaluation.nuclei import nuclei
from engine.evaluation.sources import OutputSource, source_of


def crops(path: str, side: int | None = None) -> Crops:
    """Crops of a folder or an output; without a side its images, whole."""
    source = source_of(Path(path), "the set")
    return crops_of(source, side or int(source.sizes[0, 0]))


def score(ranks: Ranks, logits: str) -> list[Any]:
    return inception_score(ranks, shared(np.load(logits), ranks))


def unlike(ranks: Ranks, generated: str, reference: str, *lpips: str) -> list[Any]:
    return diversity(ranks, crops(generated), crops(reference), pairs=20, lpips=Path(lpips[0]) if lpips else None)


def labels(ranks: Ranks, generated: str, reference: str, side: str, window: str) -> list[Any]:
    extractor = feature_extractor("embedded")
    made, known = (crops(path, int(side)) for path in (generated, reference))
    measures, tables = label_judge(ranks, made, known, extractor, int(window))
    return [*measures, *tables]


def classes(ranks: Ranks, generated: str, reference: str, expert: str, side: str) -> list[Any]:
    judge = ranks.agree(lambda: expert_judge(Path(expert), side=int(side)))
    measures, tables = class_accuracy(ranks, crops(generated), crops(reference), judge)
    return [*measures, *tables]


def of_nuclei(ranks: Ranks, generated: str, reference: str) -> list[Any]:
    measures, tables = nuclei(ranks, source_of(Path(generated), "folder"), source_of(Path(reference), "folder"))
    return [*measures, *tables]


def cosines(ranks: Ranks, output: str, extractor: str) -> list[Any]:
    return embedding_similarity(ranks, OutputSource(Path(output)), feature_extractor(extractor))


PARTS = {
    "score": score,
    "diversity": unlike,
    "labels": labels,
    "classes": classes,
    "nuclei": of_nuclei,
    "embeddings": cosines,
}


def part(ranks: Ranks, name: str, arguments: Sequence[str]) -> int:
    results = PARTS[name](ranks, *arguments)
    if ranks.rank == 0:
        print(json.dumps([asdict(result) for result in results]))
    return 0


def main(arguments: Sequence[str]) -> int:
    return run_main(partial(part, name=arguments[0], arguments=arguments[1:]))
