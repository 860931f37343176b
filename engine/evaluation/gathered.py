"""Features of a set's crops, each rank its share of them, and what is summed or fetched over the ranks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.distributed.ranks import AgreedError, Ranks
from engine.embedding.extractors import FeatureExtractor
from engine.evaluation.crops import Crops, share
from engine.evaluation.groups import halved
from engine.training.ahead import Ahead

Made = tuple[np.ndarray, np.ndarray | None]  # features of a batch, and logits if there are such


@dataclass(frozen=True)
class Features:
    """The features of a set: of every rank the run of rows that ``share`` gives it.

    Args:
        own: float32 (n, D): this rank's.
        count: Number of all ranks' rows.
    """

    own: np.ndarray
    count: int

    @property
    def dimensions(self) -> int:
        return self.own.shape[1]


def features_of(
    ranks: Ranks, crops: Crops, extractor: FeatureExtractor, batch_size: int
) -> tuple[Features, Features | None]:
    """Features of crops, and their logits where the extractor has them. Collective."""
    own = share(len(crops), ranks.rank, ranks.size)
    batches = list(crops.batches(own, batch_size))
    parts: list[Made] = []

    def read(step: int) -> np.ndarray | None:
        return crops.pixels(batches[step]) if step < len(batches) else None

    ahead = Ahead(read, 0)

    def extract(upto: int) -> None:
        for batch in batches[len(parts) : upto]:
            pixels = ahead.take()
            assert pixels is not None
            made = extractor(pixels, lambda index, batch=batch: crops.named(batch[index]))  # type: ignore[misc]
            check_alike(made, parts, extractor.name)
            parts.append(made)

    try:
        ranks.agree(lambda: extract(1))  # what is wrong with all of them is said before the long part
        ranks.agree(lambda: extract(len(batches)))
    finally:
        ahead.end()
    widths = ranks.allgather(widths_of(parts[0]) if parts else None)
    kinds = sorted({of_rank for of_rank in widths if of_rank is not None})
    if len(kinds) > 1:
        raise AgreedError(unlike(extractor.name, *kinds[:2]))
    width, classes = kinds[0]
    features = np.concatenate([part for part, _ in parts]) if parts else np.zeros((0, width), np.float32)
    logits = [part for _, part in parts if part is not None]
    if not classes:
        return Features(features, len(crops)), None
    together = np.concatenate(logits) if logits else np.zeros((0, classes), np.float32)
    return Features(features, len(crops)), Features(together, len(crops))


def check_alike(made: Made, parts: list[Made], name: str) -> None:
    """Refuse a batch whose features are of another kind than those before.

    Raises:
        ValueError: saying both.
    """
    if parts and widths_of(made) != widths_of(parts[0]):
        raise ValueError(unlike(name, widths_of(parts[0]), widths_of(made)))


def unlike(name: str, one: tuple[int, int], other: tuple[int, int]) -> str:
    first, second = (f"{width} features and {classes} logits" for width, classes in (one, other))
    return f"`features` {name} gives {first} for some crops and {second} for others; it must give the same for all"


def widths_of(part: Made) -> tuple[int, int]:
    """Number of features and of classes; 0: there are none."""
    features, logits = part
    return features.shape[1], 0 if logits is None else logits.shape[1]


def shared(values: np.ndarray, ranks: Ranks, name: str = "an array") -> Features:
    """The rows of an array that every rank can read, such as a file, each rank its share. Local.

    Raises:
        ValueError: values are not finite.
    """
    own = share(len(values), ranks.rank, ranks.size)
    rows = np.asarray(values[own.start : own.stop], np.float32)
    if not (finite := np.isfinite(rows).all(1)).all():
        row = own.start + int(np.flatnonzero(~finite)[0])
        raise ValueError(f"{name} holds values that are not finite, in row {row}; make its features anew")
    return Features(rows, len(values))


def moments(ranks: Ranks, features: Features) -> tuple[np.ndarray, np.ndarray]:
    """float64 mean (D,) and covariance (D, D), unbiased. Collective."""
    own = features.own.astype(np.float64)
    mean = own.sum(0)
    ranks.allreduce_array(mean)
    mean /= features.count
    own -= mean
    scatter = own.T @ own
    ranks.allreduce_array(scatter)
    return mean, scatter / (features.count - 1)


def rows(ranks: Ranks, features: Features, numbers: np.ndarray) -> np.ndarray:
    """float32 (n, D): some rows, on every rank. Collective; all ranks ask for the same."""
    own = share(features.count, ranks.rank, ranks.size)
    here = (numbers >= own.start) & (numbers < own.stop)
    chosen = np.zeros((len(numbers), features.dimensions), np.float32)
    chosen[here] = features.own[numbers[here] - own.start]
    ranks.allreduce_array(chosen)
    return chosen


def part_of(ranks: Ranks, features: Features, numbers: np.ndarray) -> Features:
    """Some rows as features of their own, dealt to the ranks anew. Collective; all ranks ask for the same."""
    own, kept = share(len(numbers), ranks.rank, ranks.size), [np.zeros((0, features.dimensions), np.float32)]
    for first in range(0, len(numbers), BLOCK):
        block = rows(ranks, features, numbers[first : first + BLOCK])
        mine = range(max(own.start - first, 0), min(own.stop - first, len(block)))
        kept += [block[mine.start : mine.stop]] if mine else []
    return Features(np.concatenate(kept), len(numbers))


BLOCK = 2048  # rows that are sent, or multiplied, at once


def halves(groups: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of two halves of a set, drawn at random by whole groups, of which each is in one of them; -1: in none."""
    inside = np.flatnonzero(groups >= 0)
    one, other = halved(groups[inside], np.random.default_rng((seed, 11)))
    return inside[one], inside[other]
