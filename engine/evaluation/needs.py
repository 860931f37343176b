"""Why a part of an evaluation cannot be taken of the sets that are given; empty texts: it can."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from engine.evaluation.inputs import OPTIONS
from engine.evaluation.run import Evaluator
from engine.evaluation.sources import OutputSource


def needs(*roles: str) -> Callable[[Evaluator], str]:
    """Sets of images, or of features of one kind."""
    return lambda evaluator: lacks_sets(evaluator, roles, images=False) or unlike(evaluator, roles)


def needs_images(*roles: str) -> Callable[[Evaluator], str]:
    """Sets of images."""
    return lambda evaluator: lacks_sets(evaluator, roles, images=True)


def lacks_sets(evaluator: Evaluator, roles: Sequence[str], images: bool) -> str:
    """Sets are given, as images, or if these are not asked for as features."""
    for role in roles:
        if role not in evaluator.sets:
            return f"it takes {OPTIONS[role]}; pass it"
        given = evaluator.sets[role]
        if given.crops is None and images:
            return f"it takes images and {given.path} holds none; give images"
        if given.crops is None and given.rows is None:
            return f"it takes images or features and {given.path} holds a mean and a covariance alone"
    return ""


def lacks_output(evaluator: Evaluator) -> str:
    """What was generated is an output of ours."""
    crops = evaluator.sets["generated"].crops
    if crops is None or not isinstance(crops.source, OutputSource):
        return f"it takes an output of engine.sample and {evaluator.sets['generated'].path} is none"
    return ""


def unlike(evaluator: Evaluator, roles: Sequence[str]) -> str:
    """Sets have features of one kind. Collective, at the first call."""
    widths = [evaluator.dimensions(role) for role in roles]
    if len(set(widths)) == 1:
        return ""
    text = ", ".join(f"{evaluator.sets[role].path} has {width}" for role, width in zip(roles, widths, strict=True))
    return f"{text} features; take those of all with one extractor"


def reason(check: Callable[[], None]) -> str:
    """What a check says."""
    try:
        check()
    except ValueError as problem:
        return str(problem)
    return ""
