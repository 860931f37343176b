"""Inputs that are functions of position, ``module:function``: read at any box of an unbounded plane."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from engine.command_line import imported
from engine.messages import quoted
from engine.planning.geometry import Box

WANTED = "one that takes a box and returns what is there"
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
        content = source_of(function) if "<" not in text and inspect.isfunction(function) else content_of(function)
    except ValueError as problem:
        raise ValueError(f"`{option}` {text} {problem}; pass a function of a module") from None
    return f"{text} {hashlib.sha256(content.encode()).hexdigest()[:16]}"


def source_of(function: Callable[..., Any]) -> str:
    """The source of a function; empty: it cannot be read."""
    try:
        return inspect.getsource(inspect.unwrap(function))
    except (OSError, TypeError):
        return ""


def content_of(value: Any, within: tuple[Any, ...] = ()) -> str:
    """What tells a function that was given itself from another: its source, and the values that it brings along.

    Raises:
        ValueError: one of them says nothing of itself.
    """
    if any(value is other for other in within):
        return ""  # a function that calls itself
    if isinstance(value, partial):
        parts: list[Any] = [value.func, *value.args, *sorted(value.keywords.items())]
    elif inspect.isfunction(value):
        value = inspect.unwrap(value)
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        parts = [*cells, *(value.__defaults__ or ()), *sorted((value.__kwdefaults__ or {}).items())]
    elif isinstance(value, tuple | list):
        parts = [*value]
    elif isinstance(value, np.ndarray) and value.dtype != object:
        return f"{value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
    elif inspect.isbuiltin(value) or inspect.ismodule(value) or inspect.isclass(value):
        return getattr(value, "__qualname__", value.__name__)
    elif isinstance(value, int | float | complex | str | bytes | bool | None | np.generic):
        return repr(value)
    else:
        raise ValueError(f"brings along {quoted(value)}, which nothing tells from another")
    source = source_of(value) if inspect.isfunction(value) else ""
    return source + "".join("|" + content_of(part, (*within, value)) for part in parts)


def asked(name: str, option: str, place: Box) -> tuple[np.ndarray, str]:
    """What a function says of a box of the plane, and words for where that is.

    Raises:
        ValueError: it failed.
    """
    where = f"`{option}` {name} at rows {place.y0}:{place.y1}, columns {place.x0}:{place.x1}"
    try:
        return np.asarray(function_named(name, option)(place)), where
    except (Exception, SystemExit) as error:  # somebody else's code
        raise ValueError(f"{where} failed: {type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class EmbeddingFunction:
    """An embedding of every window that a function ``embedding(box)`` of somebody else's makes.

    The function gets a window's box, px of the plane, as one of labels does, and returns finite numbers (width,). It is
    called on every rank, once a level and window, and must depend on the positions alone.

    Args:
        name: ``module:function``.
        option: The job's field that names it.
        corner: Where the canvas begins on the plane, (y, x) in latents.
        factor: Pixels per latent.
        width: Numbers of an embedding.
    """

    name: str
    option: str
    corner: tuple[int, int]
    factor: int
    width: int
    nbytes: int = 0

    def read(self, window: Box) -> np.ndarray:
        """float32 (width,): the embedding of a window of the canvas, in latents.

        Raises:
            ValueError: the function failed, or what it returned is no embedding.
        """
        vector, where = asked(self.name, self.option, window.moved(*self.corner).scaled(self.factor))
        if vector.shape != (self.width,) or vector.dtype.kind != "f":
            raise ValueError(
                f"{where} returned {vector.dtype} of shape {vector.shape}; return floating-point numbers of shape "
                f"({self.width},), the embedding of the box"
            )
        if not np.isfinite(vector).all():
            raise ValueError(f"{where} returned values that are not finite")
        return vector.astype(np.float32)


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

    def read(self, image: int, box: Box, step: int) -> np.ndarray:
        """Every ``step``-th label of a box of the canvas, from the box's corner.

        Raises:
            ValueError: the function failed, or what it returned is no label for each pixel.
        """
        place = box.moved(*self.corner)
        labels, where = asked(self.name, "labels", place)
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
