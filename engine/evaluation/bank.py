"""A bank of what a reference looks like, for ``engine.sample --accept bank:FILE``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from engine.distributed.ranks import Ranks
from engine.embedding.bank import Bank, as_file, distances
from engine.evaluation.coreset import coreset
from engine.evaluation.crops import Crops, share
from engine.evaluation.gathered import Features, part_of, rows
from engine.evaluation.measures import Measure
from engine.evaluation.run import Evaluator
from engine.storage.bank_file import write_bank

GROUP = "bank"
SHARE = 0.1  # of the crops, that a bank has at most: PatchCore's
HELD_OUT = 4  # one in so many crops says what scores are usual
LEAST = 20  # crops


def make_bank(evaluator: Evaluator, path: Path, size: int | None, quantile: float) -> Sequence[Measure]:
    """Make a bank of a set and write it. Collective; the same on any number of ranks.

    Args:
        size: Number of crops in the bank; None: a tenth of those that are not held out.
        quantile: Share of images like these that is to be accepted, by the scores of crops that are held out: of a
            quarter of the images where there are four, else of a quarter of the crops.
    Raises:
        AgreedError: there are too few crops.
    """
    ranks, settings, given = evaluator.ranks, evaluator.settings, evaluator.sets["generated"]
    crops = ranks.agree(lambda: crops_for_bank(given.crops, given.path))
    learned, held = parts_of(crops)
    count = ranks.agree(lambda: size_of(size, len(learned)))
    features, seed = evaluator.features("generated"), settings.cropping.seed
    candidates = part_of(ranks, features, learned)
    chosen = rows(ranks, candidates, coreset(ranks, candidates, count, seed))
    scores = scores_of(ranks, chosen, part_of(ranks, features, held))
    bank = Bank(
        features=chosen,
        extractor=findable(settings.features),
        hash=evaluator.extractor.hash,
        side=crops.side,
        held_out=scores,
        quantile=quantile,
        grey=settings.cropping.grey,
        pixel_size_um=crops.pixel_size_um,
    )
    file = as_file(bank, seed=seed, reference=crops.facts())
    ranks.on_root(lambda: write_bank(path, file))
    says = f"a coreset of {count} of {len(learned)} crops; scores are those of {len(held)} others"
    return [
        Measure(GROUP, "threshold of one crop", bank.threshold(1), says=f"quantile {quantile:g} of scores; {says}"),
        Measure(GROUP, "score, median", float(np.median(scores)), says=says),
        Measure(GROUP, "crops in the bank", count, says=says),
    ]


def crops_for_bank(crops: Crops | None, path: Path) -> Crops:
    """The crops that a bank is made of.

    Raises:
        ValueError: there are none, or too few.
    """
    if crops is None:
        raise ValueError(f"`bank` is made of images and {path} holds none; give images")
    if len(crops) < LEAST:
        raise ValueError(
            f"`bank` takes {LEAST} crops or more and {path} has {len(crops)}; give more, or a smaller `crop`"
        )
    return crops


def size_of(size: int | None, learned: int) -> int:
    """Number of crops in a bank.

    Raises:
        ValueError: there are fewer.
    """
    if size is not None and size > learned:
        raise ValueError(f"`bank_size` {size} is more than the {learned} crops that are not held out; choose fewer")
    return size or max(round(SHARE * learned), 1)


def parts_of(crops: Crops) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the crops that a bank is made of, and of those that are held out, evenly spread."""
    images, of_crop = np.unique(crops.places[:, 0], return_inverse=True)
    of = of_crop if len(images) >= HELD_OUT else np.arange(len(crops))
    held = of % HELD_OUT == HELD_OUT // 2
    return np.flatnonzero(~held), np.flatnonzero(held)


def scores_of(ranks: Ranks, bank: np.ndarray, features: Features) -> np.ndarray:
    """float64 (n,): scores of features, on every rank. Collective."""
    scores, own = np.zeros(features.count), share(features.count, ranks.rank, ranks.size)
    scores[own.start : own.stop] = distances(features.own, bank)
    ranks.allreduce_array(scores)
    return scores


def findable(text: str) -> str:
    """What names an extractor, with a path that is good anywhere on this machine."""
    kind, colon, rest = text.rpartition(":")
    is_path = text != "embedded" and kind in ("", "inception") and Path(rest).exists()
    return f"{kind}{colon}{Path(rest).absolute()}" if is_path else text
