"""Inputs that are functions of position, ``module:function``: read at any box of an unbounded plane."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from engine.command_line import imported
from engine.planning.geometry import Box

WANTED = "one that takes a box and returns the labels in it"
GIVEN: dict[str, Callable[..., Any]] = {}  # functions that were given themselves, from Python


def name_of_given(function: Callable[..., Any]) -> str:
    """The name that stands for a function in a job; this process finds it again by that, the latest of its name."""
    named = function if hasattr(function, "__qualname__") else type(function)
    name = f"{named.__module__}:{named.__qualname__}"
    GIVEN[name] = function
    return name


def function_named(text: str, option: str) -> Callable[..., Any]:
    """The function that a job names.

    Raises:
        ValueError: it cannot be imported, or is no function.
    """
    return GIVEN[text] if text in GIVEN else imported(text, option, WANTED)


def function_hash(text: str, option: str) -> str:
    """What tells a function from another: its name, and the hash of its own source where that can be read."""
    function = function_named(text, option)
    try:
        source = inspect.getsource(inspect.unwrap(function))
    except (OSError, TypeError):
        source = ""
    return f"{text} {hashlib.sha256(source.encode()).hexdigest()[:16]}"


@dataclass(frozen=True)
class LabelFunction:
    """A label map that a function ``labels(box)`` of somebody else's makes.

    The function gets a box of the plane, px, of fields y0, x0, y1, x1 (and ``shape``), which may be negative, and
    returns integers (box.height, box.width), a label for each pixel. It is called on every rank, for boxes of any
    place and size, and must depend on the positions alone.

    Args:
        name: ``module:function``.
        corner: Where the canvas begins on the plane, (y, x) in px.
        known: Number of labels that the model knows.
        names: Name of each, for messages.
    """

    name: str
    corner: tuple[int, int]
    known: int
    names: tuple[str, ...] = ()

    @cached_property
    def function(self) -> Callable[..., Any]:
        return function_named(self.name, "labels")

    def read(self, image: int, box: Box, step: int) -> np.ndarray:
        """Every ``step``-th label of a box of the canvas, from the box's corner.

        Raises:
            ValueError: the function failed, or what it returned is no label for each pixel.
        """
        place = box.moved(*self.corner)
        where = f"`labels` {self.name} at rows {place.y0}:{place.y1}, columns {place.x0}:{place.x1}"
        try:
            labels = np.asarray(self.function(place))
        except Exception as error:  # somebody else's code
            raise ValueError(f"{where} failed: {type(error).__name__}: {error}") from error
        if labels.shape != place.shape or labels.dtype.kind not in "iu":
            raise ValueError(
                f"{where} returned {labels.dtype} of shape {labels.shape}; return an array of integers of shape "
                f"{place.shape}, a label for each pixel"
            )
        if (wrong := (labels < 0) | (labels >= self.known)).any():
            row, column = (int(v[0]) for v in np.nonzero(wrong))
            listed = ", ".join(f"{i} {name}" for i, name in enumerate(self.names)) or f"0 to {self.known - 1}"
            raise ValueError(
                f"{where} returned {int(labels[row, column])} at row {place.y0 + row}, column {place.x0 + column}; "
                f"the model knows {listed}"
            )
        return labels[::step, ::step].astype(np.uint8)

    def __reduce__(self) -> tuple[Any, ...]:
        return LabelFunction, (self.name, self.corner, self.known, self.names)
