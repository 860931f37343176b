"""An evaluation from paths and settings: what the command line and Python call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from engine.distributed.ranks import AgreedError, Ranks
from engine.embedding.extractors import feature_extractor
from engine.evaluation.bank import make_bank
from engine.evaluation.cautions import cautions_of
from engine.evaluation.inputs import open_sets
from engine.evaluation.measures import Evaluation
from engine.evaluation.parts import PARTS
from engine.evaluation.run import Evaluator, Part, Settings, chosen, evaluate
from engine.models.folder import device_of

PLAIN = Settings()
SETTINGS_OF = {  # what looks at a setting
    "few": ("fid",),
    "expert": ("classes",),
    "lpips": ("variety",),
    "scheduler": ("areas",),
    "steps": ("downstream", "two-sample"),
    "repeats": ("downstream",),
    "ignored": ("downstream", "labels"),
}


def silent(line: str) -> None:
    """Say nothing."""


def evaluator_of(
    ranks: Ranks, paths: dict[str, Path], settings: Settings, tell: Callable[[str], None] = silent
) -> Evaluator:
    """The sets at some paths with the extractor of the settings, checked. Collective.

    Args:
        paths: By role: ``generated``, and ``reference`` and ``train`` where there are such.
        tell: Called on every rank with what is done, and with what is left out and why.
    """
    sets = ranks.on_root(lambda: open_sets(paths, settings.cropping))
    device = ranks.agree(lambda: device_of(settings.device, ranks.local_rank))
    extractor = ranks.agree(lambda: feature_extractor(settings.features, device))
    return Evaluator(ranks, sets, settings, extractor, tell)


def parts_of(evaluator: Evaluator, asked: Sequence[str] | None) -> list[str]:
    """Names of the parts to take; warns of what makes their numbers less than they seem. Collective.

    Raises:
        AgreedError: a part that is asked for cannot be taken, or none can.
    """
    names = chosen(PARTS, asked, evaluator)
    if not names:
        if "reference" not in evaluator.sets:
            raise AgreedError("nothing can be measured; pass `real`, images to compare with")
        raise AgreedError(f"nothing can be measured: {next(iter(evaluator.left_out.values()))}")
    check_used(evaluator.settings, names)
    for line in cautions_of(evaluator, names):
        evaluator.warn(line)
    return names


def check_used(settings: Settings, names: Sequence[str]) -> None:
    """Refuse a setting that none of the parts to take looks at.

    Raises:
        AgreedError: naming it.
    """
    for field, parts in SETTINGS_OF.items():
        if getattr(settings, field) != getattr(PLAIN, field) and not set(parts) & set(names):
            option = "ignore_label" if field == "ignored" else field
            raise AgreedError(
                f"`{option}` changes nothing of {', '.join(names)}; add `metrics` {parts[0]}, or leave it out"
            )


def evaluate_parts(evaluator: Evaluator, names: Sequence[str], asked: Sequence[str] | None) -> Evaluation:
    """Take measures. Collective; the same on every rank.

    Raises:
        AgreedError: features in a file are not finite, before any are made of images; or as of ``evaluate``; a set was
            changed meanwhile.
    """
    for role, given in evaluator.sets.items():
        if given.rows is not None:
            evaluator.features(role)
    try:
        evaluation = evaluate(evaluator, PARTS, names, asked)
    except AgreedError:
        evaluator.ranks.on_root(evaluator.seen.check)
        raise
    evaluator.ranks.on_root(evaluator.seen.check)
    return evaluation


def evaluate_bank(evaluator: Evaluator, path: Path, size: int | None, quantile: float) -> Evaluation:
    """Make a bank of what is given as ``generated``, see ``make_bank``. Collective; the same on every rank."""
    part = Part(lambda evaluator: "", lambda evaluator: make_bank(evaluator, path, size, quantile))
    return evaluate(evaluator, {"bank": part}, ["bank"], ["bank"])
