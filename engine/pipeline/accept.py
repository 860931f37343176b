"""Rejection sampling of a set: images that a rule does not accept are sampled again, with other noise.

A rule is one of two. The mean brightness of each class, 0 to 1: an image is accepted if it is at most 0.1 darker than
its class's mean, as in the feature-aligned system. Or ``module:function``: a function of an image uint8 (c, h, w) and
its label that says whether it is accepted. It must depend on its arguments alone: a resumed run calls it again.
There are as many rounds as it takes, or as the job allows.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from engine.command_line import imported

PATIENCE = 20  # rounds without an accepted image after which this is said
TOLERANCE = 0.1  # brightness that an image may lack of its class's mean
Accept = Callable[[np.ndarray, int], bool]  # (image, label) -> whether it is accepted


def accepting(rule: str) -> Accept:
    """The function that a rule names.

    Raises:
        ValueError: The rule is neither of the two, or its function cannot be imported.

    >>> grey = np.full((1, 2, 2), 120, np.uint8)
    >>> accepting("0.5")(grey, 0), accepting("0.9,0.5")(grey, 0)
    (True, False)
    """
    if ":" in rule:
        return imported(rule, "accept", "one that takes an image and its label")
    try:
        means = [float(part) for part in rule.split(",")]
    except ValueError:
        means = [math.nan]
    if not all(0 <= mean <= 1 for mean in means):
        raise ValueError(
            f"`accept` {rule}: expected the mean brightness of each class, 0 to 1, as 0.62 or 0.6,0.55; "
            "or a filter of your own as module:function"
        )

    def bright_enough(image: np.ndarray, label: int) -> bool:
        mean = means[label] if len(means) > 1 else means[0]
        return bool(image.mean() / 255 >= mean - TOLERANCE)

    return bright_enough


def check_accept(rule: str | None, classes: int, uniform: bool) -> None:
    """Refuse a rule that cannot be followed, before work starts.

    Args:
        classes: Number of the model's classes.
        uniform: Whether every image has one class throughout.
    """
    if rule is None:
        return
    accepting(rule)
    given = len(rule.split(","))
    if ":" not in rule and given > 1 and not uniform:
        raise ValueError(f"`accept` {rule} names {given} means but the images have no one class each; name one mean")
    if ":" not in rule and given not in (1, classes):
        raise ValueError(f"`accept` {rule} names {given} means but the model knows {classes} classes; name one, or all")
