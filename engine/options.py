"""How a setting is declared: once, on its field, with its check, its default and its words.

The command line, job files, Python and docs/options.md all read this declaration, so that none can say another thing.
"""

from __future__ import annotations

import math
import numbers
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any

from engine.messages import quoted, shortened
from engine.planning.geometry import Box
from engine.planning.names import LARGEST_SIDE

MOST_SECTIONS = 1000
LONGEST_PATH = 4095  # bytes; the longest that Linux opens
MOST_IN_TURN = 64  # numbers that a set's images take in turn
FUNCTION = re.compile(r"[A-Za-z_][\w.]*(?<!\.h5)(?<!\.hdf5):[A-Za-z_<][\w.<>]*")  # and not FILE.h5:NAME


@dataclass(frozen=True)
class Kind:
    """What values a setting takes.

    Args:
        read: Function that checks a value and returns what is kept of it. Values of the command line are strings, those
            of job files and Python are anything. It raises ValueError with what it expected.
        takes: Words of the documentation for such values.
        metavar: Placeholder in the help of the command line.
        show: Inverse of ``read``: the text that stands for a value on the command line.
        alone: Value of an option that is given without one, in words of the command line; None: it has to have one.
    """

    read: Callable[[Any], Any]
    takes: str
    metavar: str
    show: Callable[[Any], str] = str
    alone: str | None = None


@dataclass(frozen=True)
class Option:
    """A setting that users choose: a field of a dataclass, a flag, a key of a job file and a row of the documentation.

    Args:
        default: Value of the field; None where it is only known later, from the model or from other settings.
        help: What it does. Other settings are named in backticks, which the command line prints as flags.
        group: Heading of the help that it stands under.
        unset: What None means, in words.
        fallback: Value that takes the place of None where the model has no default of its own.
        models: Kinds of models that it is for (conditions of a card); empty: for all.
        identity: Whether two jobs that differ in it are two jobs. It is false of files, for which a hash of their
            content stands, and of what changes no byte.
    """

    name: str
    default: Any
    kind: Kind
    help: str
    group: str
    metavar: str
    unset: str
    fallback: Any
    models: tuple[str, ...]
    identity: bool

    @property
    def default_text(self) -> str:
        """The default in words."""
        if self.default is not None:
            return self.kind.show(self.default)
        return self.unset if self.fallback is None else f"{self.unset}, or {self.kind.show(self.fallback)}"

    def read(self, value: Any, where: str = "") -> Any:
        """The value after its check.

        Args:
            where: How a message names the setting; by default as a field.
        Raises:
            ValueError: naming the setting, the value and what was expected.
        """
        return read_as(self.kind, value, where or f"`{self.name}`")

    def shown(self, value: Any) -> str:
        """A value as it is given on the command line, in a message."""
        return shortened(self.kind.show(value))


def read_as(kind: Kind, value: Any, where: str) -> Any:
    """A value after the check of its kind.

    Args:
        where: How a message names what the value is given for.
    Raises:
        ValueError: naming it, the value and what was expected.
    """
    try:
        return kind.read(value)
    except ValueError as problem:
        raise ValueError(f"{where} is {quoted(value)}: {problem}") from None


def names_function(value: Any) -> bool:
    """Whether a value names a function, ``module:function``, and no file.

    >>> names_function("tissue:labels"), names_function("FILE.h5:/labels"), names_function("maps/labels.png")
    (True, False, False)
    """
    return isinstance(value, str) and FUNCTION.fullmatch(value) is not None


def option(
    default: Any,
    kind: Kind,
    help: str,
    *,
    group: str,
    metavar: str = "",
    unset: str = "none",
    fallback: Any = None,
    models: tuple[str, ...] = (),
    identity: bool | None = None,
) -> Any:
    """The field of a dataclass that declares a setting; see ``Option`` for what its arguments mean.

    Args:
        metavar: Placeholder in the help, where the kind's own says too little.
        identity: By default true but of paths and files.
    """
    declared = {
        "default": default,
        "kind": kind,
        "help": help,
        "group": group,
        "metavar": metavar or kind.metavar,
        "unset": unset,
        "fallback": fallback,
        "models": models,
        "identity": kind not in (PATH, FILE) if identity is None else identity,
    }
    return field(default=default, metadata=declared)


@cache
def options_of(settings: type) -> dict[str, Option]:
    """The settings that the fields of a dataclass declare, by name."""
    return {f.name: Option(name=f.name, **f.metadata) for f in fields(settings)}


class Checked:
    """A dataclass of settings whose every value is checked, and converted, wherever it comes from."""

    def __post_init__(self) -> None:
        settings: type = type(self)
        for name, declared in options_of(settings).items():
            value = getattr(self, name)
            if value is not None or declared.default is not None:
                object.__setattr__(self, name, declared.read(value))


def described(settings: type) -> str:
    """The docstring of a dataclass with its settings as arguments."""
    lines = [
        f"        {o.name}: {o.help} ({o.kind.takes}; default: {o.default_text})" for o in options_of(settings).values()
    ]
    return "\n".join([f"{(settings.__doc__ or '').rstrip()}\n\n    Args:", *lines, "    "])


# ---- kinds of values ------------------------------------------------------------------------


DIGITS = r"[+-]?\d{1,4000}"  # Python reads no longer ones


def whole(low: int, high: int = 2**63 - 1) -> Kind:
    """Whole numbers in [low, high], as numbers or in digits."""

    def read(value: Any) -> int:
        if isinstance(value, str) and re.fullmatch(DIGITS, value.strip()):
            value = int(value)
        if not isinstance(value, numbers.Integral) or isinstance(value, bool):
            raise ValueError("expected a whole number")
        if not low <= int(value) <= high:
            raise ValueError(f"expected {low} or more" if int(value) < low else f"expected {high} or less")
        return int(value)

    return Kind(read, f"whole number, {low} " + ("or more" if high == 2**63 - 1 else f"to {high}"), "N")


def number(low: float, high: float = math.inf) -> Kind:
    """Finite numbers in [low, high]."""

    def read(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, numbers.Real | str):
            raise ValueError("expected a number")
        try:
            value = float(value)
        except (ValueError, OverflowError):
            raise ValueError("expected a number") from None
        if not math.isfinite(value) or not low <= value <= high:
            raise ValueError(f"expected a number from {low:g}" + (f" to {high:g}" if high < math.inf else " upwards"))
        return value

    return Kind(read, f"number, {low:g} " + ("or more" if high == math.inf else f"to {high:g}"), "X", "{:g}".format)


def switched(kind: Kind, alone: str) -> Kind:
    """Values of a kind, of an option that may be switched on without one: true is ``alone``, false is None.

    >>> [switched(number(0), "2").read(value) for value in (True, False, "0.5")]
    [2.0, None, 0.5]
    """

    def read(value: Any) -> Any:
        if value is False:
            return None
        return kind.read(alone if value is True else value)

    return Kind(read, f"{kind.takes}; {alone} where none is given", kind.metavar, kind.show, alone)


def choice(*names: str) -> Kind:
    """One of a few names."""

    def read(value: Any) -> str:
        if value not in names:
            raise ValueError(f"expected one of {', '.join(names)}")
        return value

    return Kind(read, " or ".join(filter(None, [", ".join(names[:-1]), names[-1]])), "|".join(names))


def some_labels(most: int) -> Kind:
    """One label, or several separated by commas: numbers in [0, most], or names, which only the model's card knows.

    >>> some_labels(63).read("3"), some_labels(63).read("0,2"), some_labels(63).read("tumour stroma")
    (3, (0, 2), 'tumour stroma')
    """
    number_of = whole(0, most)

    def one(part: Any) -> int | str:
        named = isinstance(part, str) and not re.fullmatch(DIGITS, part.strip())
        return _text(part.strip()) if named else number_of.read(part)

    def read(value: Any) -> int | str | tuple[int | str, ...]:
        parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
        try:
            several = tuple(one(part) for part in parts)
        except ValueError as problem:
            raise ValueError(f"{problem}; a label, or several separated by commas") from None
        if not several:
            raise ValueError("expected a label, or several separated by commas")
        return several[0] if len(several) == 1 else several

    def show(value: int | str | tuple[int | str, ...]) -> str:
        return ",".join(map(str, value if isinstance(value, tuple) else (value,)))

    takes = f"one or several labels, by number (0 to {most}) or name, as 1,3 or carcinoma"
    return Kind(read, takes, "LABEL[,LABEL...]", show)


def some_numbers(low: float) -> Kind:
    """One finite number from ``low`` upwards, or several, separated by commas.

    >>> some_numbers(0).read("1.5"), some_numbers(0).read("1.3,1.4"), some_numbers(0).read([2])
    (1.5, (1.3, 1.4), 2.0)
    """
    number_of = number(low)

    def read(value: Any) -> float | tuple[float, ...]:
        parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
        if not 1 <= len(parts) <= MOST_IN_TURN:
            raise ValueError(f"expected a number, or 2 to {MOST_IN_TURN} separated by commas")
        several = tuple(number_of.read(part) for part in parts)
        return several[0] if len(several) == 1 else several

    def show(value: float | tuple[float, ...]) -> str:
        return ",".join(f"{one:g}" for one in (value if isinstance(value, tuple) else (value,)))

    return Kind(read, f"one or several numbers, {low:g} or more, as 1.5 or 1.3,1.4", "X[,X...]", show)


def _text(value: Any) -> str:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("expected a path or name")
    try:
        length = len(value.encode())
    except UnicodeEncodeError:
        raise ValueError("expected a path or name of whole characters, in UTF-8") from None
    if length > LONGEST_PATH:
        raise ValueError(f"expected a path or name of at most {LONGEST_PATH} bytes")
    return value


def _rule(value: Any) -> str:
    """A name, or numbers, as text.

    >>> _rule(0.62), _rule([0.6, 0.55]), _rule("published")
    ('0.62', '0.6,0.55', 'published')
    """
    several = value if isinstance(value, list | tuple) else [value]
    if several and all(isinstance(one, int | float) and not isinstance(one, bool) for one in several):
        return ",".join(f"{one:g}" for one in several)
    return _text(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("expected true or false")
    return value


def _interval(value: Any) -> tuple[int, int]:
    """``FIRST:LAST`` or [FIRST, LAST]: half-open.

    >>> INTERVAL.read("5:20")
    (5, 20)
    """
    parts = value.split(":") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or len(parts) != 2:  # YAML reads 5:20 without quotes as 5 x 60 + 20
        raise ValueError("expected the first level and the one after the last, such as 5:20 (in a job file, [5, 20])")
    first, last = (whole(0).read(part) for part in parts)
    if first >= last:
        raise ValueError("expected a first level below the last, such as 5:20")
    return first, last


def _sections(value: Any) -> tuple[int, ...]:
    """``N,N,...`` or [N, N, ...].

    >>> SECTIONS.read("10,15,20"), SECTIONS.read(250)
    ((10, 15, 20), (250,))
    """
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
    if not 1 <= len(parts) <= MOST_SECTIONS:
        raise ValueError(f"expected 1 to {MOST_SECTIONS} numbers of levels, such as 10,15,20")
    return tuple(whole(1).read(part) for part in parts)


def _rgb(value: Any) -> tuple[int, ...]:
    """``R,G,B`` or [R, G, B], 0 to 255."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or len(parts) != 3:
        raise ValueError("expected red, green and blue, such as 120,80,150")
    return tuple(whole(0, 255).read(part) for part in parts)


def _rows(value: Any) -> int | str:
    """The number of a row, or a file.

    >>> ROWS.read("160"), ROWS.read("rows.npy")
    (160, 'rows.npy')
    """
    is_number = isinstance(value, numbers.Integral) or (isinstance(value, str) and re.fullmatch(DIGITS, value.strip()))
    if is_number:
        return whole(0).read(value)
    if isinstance(value, float) or (isinstance(value, str) and re.fullmatch(r"[-+\d.]+(e\d+)?", value.strip())):
        raise ValueError("expected a whole number, 0 or more, or a file")
    return _text(value)


def _size(value: Any) -> tuple[int, int]:
    """``HxW`` or [H, W]; one number is a square.

    >>> SIZE.read("1000x1544"), SIZE.read("1024")
    ((1000, 1544), (1024, 1024))
    """
    way = "HxW in whole pixels, such as 1024x1536, or 1024 for a square"
    if isinstance(value, str):
        match = re.fullmatch(rf"\s*({DIGITS})\s*(?:[xX]\s*({DIGITS})\s*)?", value)
        if not match:
            raise ValueError(f"expected {way}")
        value = [int(match[1]), int(match[2] or match[1])]
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        value = [value, value]
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(f"expected {way}")
    if not all(isinstance(v, numbers.Integral) and not isinstance(v, bool) for v in value):
        raise ValueError(f"expected {way}")
    if min(value) < 1 or max(value) > LARGEST_SIDE:
        raise ValueError(f"expected a height and width of 1 px up to {LARGEST_SIDE} px")
    return int(value[0]), int(value[1])


def _region(value: Any) -> tuple[int, int, int, int]:
    """``Y0:Y1,X0:X1`` of signed pixels, half-open -> (y0, x0, y1, x1); those four as a list, or a box.

    >>> REGION.read("-200:200,-300:100")
    (-200, -300, 200, 100)
    """
    way = "give rows and columns, Y0:Y1,X0:X1"
    if isinstance(value, str):
        match = re.fullmatch(rf"({DIGITS}):({DIGITS}),({DIGITS}):({DIGITS})", value.replace(" ", ""), re.ASCII)
        if not match:
            raise ValueError(f"it is no region; {way}")
        y0, y1, x0, x1 = map(int, match.groups())
        value = [y0, x0, y1, x1]
    elif isinstance(value, Box):
        value = [value.y0, value.x0, value.y1, value.x1]
    if not isinstance(value, list | tuple) or len(value) != 4:
        raise ValueError(f"it is no region; {way}")
    if not all(isinstance(v, numbers.Integral) and not isinstance(v, bool) for v in value):
        raise ValueError(f"it is no region; {way}, in whole pixels")
    y0, x0, y1, x1 = map(int, value)
    if y0 >= y1 or x0 >= x1:
        raise ValueError(f"it is empty; {way}, that end after they begin")
    return y0, x0, y1, x1


PATH = Kind(_text, "path", "PATH")
FILE = Kind(_text, "file", "FILE")  # one that is read; Python may give an array in its place
ROWS = Kind(_rows, "number, 0 or more, or file", "N|FILE")  # of a file, Python may give an array in its place
NAME = Kind(_text, "name", "NAME")
RULE = Kind(_rule, "a name, or one or several numbers", "RULE")
FLAG = Kind(_flag, "yes or no", "", lambda value: "yes" if value else "no")
SIZE = Kind(_size, "two whole numbers, 1 or more, as 1024x1536, or one for a square", "HxW", "{0[0]}x{0[1]}".format)
INTERVAL = Kind(_interval, "two whole numbers, the first below the last, as 5:20", "FIRST:LAST", "{0[0]}:{0[1]}".format)
SECTIONS = Kind(_sections, "whole numbers, 1 or more, as 10,15,20", "N[,N...]", lambda value: ",".join(map(str, value)))
REGION = Kind(
    _region, "rows and columns of whole pixels, as -200:200,0:1024", "Y0:Y1,X0:X1", "{0[0]}:{0[2]},{0[1]}:{0[3]}".format
)
RGB = Kind(_rgb, "three whole numbers, 0 to 255, as 120,80,150", "R,G,B", lambda value: ",".join(map(str, value)))
