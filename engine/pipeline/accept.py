"""Which images of a set are kept; those that are not are drawn again, with other noise.

A rule is the mean brightness of each class, 0 to 1: an image darker than its class's mean less 0.1 is drawn again, as
the feature-aligned system does; or ``module:function``, a function of an image uint8 (c, h, w) and its label that
says whether it is kept. Such a filter must be a function of its arguments alone: every resumed run asks it anew.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable

import numpy as np

MOST_ROUNDS = 20  # then the last round's images are kept, whatever it is
TOLERANCE = 0.1
Accept = Callable[[np.ndarray, int], bool]


def accepting(rule: str) -> Accept:
    """The function that a rule names.

    Raises:
        ValueError: a rule that is neither.

    >>> grey = np.full((1, 2, 2), 120, np.uint8)
    >>> accepting("0.5")(grey, 0), accepting("0.9,0.5")(grey, 0)
    (True, False)
    """
    if ":" in rule:
        return imported(rule)
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


def imported(rule: str) -> Accept:
    module, _, name = rule.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"`accept` {rule} cannot be imported ({error}); put the module on PYTHONPATH") from None
    if not callable(found):
        raise ValueError(f"`accept` {rule} is not a function; name one that takes an image and its label")
    return found


def check_accept(rule: str | None, classes: int, uniform: bool) -> None:
    """Refuse a rule that cannot be followed, before work starts.

    Args:
        classes: of the model.
        uniform: whether every image has one class.
    """
    if rule is None:
        return
    accepting(rule)
    given = len(rule.split(","))
    if ":" not in rule and given > 1 and not uniform:
        raise ValueError(f"`accept` {rule} names {given} means but the images have no one class each; name one mean")
    if ":" not in rule and given not in (1, classes):
        raise ValueError(f"`accept` {rule} names {given} means but the model knows {classes} classes; name one, or all")
