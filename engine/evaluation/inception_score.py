"""The Inception Score: how sure a classifier is of each crop, and how evenly it finds all (arXiv:1606.03498)."""

from __future__ import annotations

import numpy as np

from engine.distributed.ranks import Ranks
from engine.evaluation.crops import share
from engine.evaluation.gathered import Features
from engine.evaluation.measures import Measure

SPLITS = 10
SEED = 2020  # of the order before the splits: torch-fidelity's
SAYS = "exp of the mean information that a crop's class carries, over 10 parts: high where classes are sure and even."


def inception_score(
    ranks: Ranks, logits: Features, reference: Features | None = None, splits: int = SPLITS
) -> list[Measure]:
    """The Inception Score of a set, with its spread over the parts as the error. Collective.

    Args:
        logits: Of the classes, each rank its rows: the unbiased ones of FID's Inception for the field's number.
        reference: Those of the reference set.
    Raises:
        ValueError: there are fewer crops than parts.
    """
    ranks.agree(lambda: check_count(min(part.count for part in (logits, reference or logits)), splits))
    mean, spread = score(ranks, logits, splits)
    beside = None if reference is None else score(ranks, reference, splits)[0]
    return [Measure("variety", "Inception Score", mean, "higher", beside, spread, says=SAYS)]


def score(ranks: Ranks, logits: Features, splits: int = SPLITS) -> tuple[float, float]:
    """Mean and spread of the score over parts of the set, in torch-fidelity's order. Collective.

    The mean over a part of sum p (log p - log q) is the mean of sum p log p less sum q log q, for q is the mean of p:
    a few sums over the ranks.
    """
    own = share(logits.count, ranks.rank, ranks.size)
    place = np.argsort(np.random.RandomState(SEED).permutation(logits.count))[own.start : own.stop]
    ends = np.array([(part + 1) * logits.count // splits for part in range(splits)])
    part = np.searchsorted(ends, place, side="right")
    log_p = log_softmax(logits.own.astype(np.float64))
    sums = np.zeros((splits, logits.dimensions + 1))
    p = np.exp(log_p)
    np.add.at(sums, part, np.concatenate([p, (p * log_p).sum(1, keepdims=True)], 1))
    ranks.allreduce_array(sums)
    means = sums / np.diff(ends, prepend=0)[:, None]
    q, inner = means[:, :-1], means[:, -1]
    scores = np.exp(inner - np.where(q > 0, q * np.log(np.where(q > 0, q, 1)), 0).sum(1))
    return float(scores.mean()), float(scores.std())


def check_count(count: int, splits: int) -> None:
    """Refuse fewer crops than parts.

    Raises:
        ValueError: saying how many it takes.
    """
    if count < splits:
        raise ValueError(f"the Inception Score takes {splits} crops or more and there are {count}; give more")


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """
    >>> np.exp(log_softmax(np.array([[0.0, np.log(3.0)]]))).round(9).tolist()
    [[0.25, 0.75]]
    """
    centred = logits - logits.max(-1, keepdims=True)
    return centred - np.log(np.exp(centred).sum(-1, keepdims=True))
