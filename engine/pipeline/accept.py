"""Rejection sampling of a set: images that a rule does not accept are sampled again, with other noise.

A rule is one of three. The mean brightness of each class, 0 to 1: an image is accepted if it is at most 0.1 darker than
its class's mean, as in the feature-aligned system. Or ``bank:FILE``, as in the nuclei system: an image is accepted if
it is no farther from a bank of reference features than the file says is usual (``engine.embedding.bank``). Or
``module:function``: a function of an image uint8 (c, h, w) and its label that says whether it is accepted. It must
depend on its arguments alone: a resumed run calls it again. There are as many rounds as it takes, or as the job allows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from engine.command_line import imported

OPTION = "`accept`"
BANK = "bank:"  # how a rule begins that names a file
PATIENCE = 20  # rounds without an accepted image after which this is said
TOLERANCE = 0.1  # brightness that an image may lack of its class's mean


class Verdict(NamedTuple):
    """Whether an image is accepted, and its score where the rule has one."""

    accepted: bool
    score: float | None = None


Accept = Callable[[np.ndarray, int], Verdict]  # (image, label) -> whether it is accepted


def accepting(rule: str, device: str = "cpu") -> Accept:
    """The function that a rule names.

    Args:
        device: Where the network of a bank's features runs.
    Raises:
        ValueError: The rule is none of the three, or its file or function cannot be loaded.

    >>> grey = np.full((1, 2, 2), 120, np.uint8)
    >>> accepting("0.5")(grey, 0).accepted, accepting("0.9,0.5")(grey, 0).accepted
    (True, False)
    """
    if rule.startswith(BANK):
        return like_bank(Path(rule.removeprefix(BANK)), device)
    if ":" in rule:
        function = imported(rule, "accept", "one that takes an image and its label")
        return lambda image, label: Verdict(bool(function(image, label)))
    try:
        means = [float(part) for part in rule.split(",")]
    except ValueError:
        means = [math.nan]
    if not all(0 <= mean <= 1 for mean in means):
        raise ValueError(
            f"`accept` {rule}: expected the mean brightness of each class, 0 to 1, as 0.62 or 0.6,0.55; "
            "a bank of engine.evaluate as bank:FILE.h5; or a filter of your own as module:function"
        )

    def bright_enough(image: np.ndarray, label: int) -> Verdict:
        mean = means[label] if len(means) > 1 else means[0]
        return Verdict(bool(image.mean() / 255 >= mean - TOLERANCE))

    return bright_enough


def like_bank(path: Path, device: str) -> Accept:
    """The function that accepts what is like a bank's reference.

    Raises:
        ValueError: it is no bank, or the features that it was made with are not there.
    """
    from engine.embedding.bank import extractor_of_bank, open_bank  # torch, where a network makes the features

    bank = open_bank(path, OPTION)
    extractor = extractor_of_bank(bank, path, OPTION, device)

    def judged(image: np.ndarray, label: int) -> Verdict:
        score, near = bank.judge(image, extractor)
        return Verdict(near, score)

    return judged


def rule_hash(rule: str | None) -> dict[str, str]:
    """What a job's identity has of a bank, wherever its file lies: the hash of what it holds. Of others, nothing."""
    if rule is None or not rule.startswith(BANK):
        return {}
    from engine.embedding.bank import open_bank

    return {"accept": f"{BANK}{open_bank(Path(rule.removeprefix(BANK)), OPTION).digest()}"}


def check_accept(
    rule: str | None, classes: int, uniform: bool, size: tuple[int, int], pixel_size_um: float | None
) -> None:
    """Refuse a rule that cannot be followed, before work starts.

    Args:
        classes: Number of the model's classes.
        uniform: Whether every image has one class throughout.
        size: Height and width of an image, px.
        pixel_size_um: Of the images; None: it is not known.
    """
    if rule is None:
        return
    accepting(rule)
    if rule.startswith(BANK):
        from engine.embedding.bank import check_images, open_bank

        path = Path(rule.removeprefix(BANK))
        check_images(open_bank(path, OPTION), path, OPTION, size, pixel_size_um)
    given = len(rule.split(","))
    if ":" not in rule and given > 1 and not uniform:
        raise ValueError(f"`accept` {rule} names {given} means but the images have no one class each; name one mean")
    if ":" not in rule and given not in (1, classes):
        raise ValueError(f"`accept` {rule} names {given} means but the model knows {classes} classes; name one, or all")
