"""How values are shown in messages: short, on one line, with nothing that moves a terminal's cursor."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from reprlib import Repr
from typing import Any

LONGEST_VALUE = 80  # characters of a value in a message
LONGEST_NAME = 255  # characters of a word that is not cut: as long as the name of a file can be
LONGEST_MESSAGE = 1500  # characters
OURS = Repr()
OURS.maxstring = OURS.maxother = LONGEST_VALUE
OURS.maxlevel, OURS.maxlist, OURS.maxtuple, OURS.maxdict, OURS.maxset = 3, 6, 6, 4, 4


def quoted(value: Any) -> str:
    """A value as Python writes it, in at most ``LONGEST_VALUE`` characters.

    >>> quoted("big"), quoted([1, 2]), quoted(10**200), quoted("a\\nb")
    ("'big'", '[1, 2]', 'a number of 201 digits', "'a\\\\nb'")
    """
    if isinstance(value, int) and abs(value) >= 10**LONGEST_VALUE:
        return f"a number of {digits(value)} digits"
    try:
        return shortened(OURS.repr(value))
    except (ValueError, RecursionError):  # a list of numbers that are too long for Python to write
        return f"a {type(value).__name__}"


def digits(value: int) -> int:
    """Number of decimal digits, within one, of a number that may be too long to write.

    >>> digits(10**200), digits(-(10**9999))
    (201, 10000)
    """
    return int(abs(value).bit_length() * 0.30102999566398120) + 1


def shortened(text: str, most: int = LONGEST_VALUE) -> str:
    """A text with its middle left out where it is long.

    >>> shortened("0123456789" * 100, 30)
    '0123456789...6789 (1000 characters)'
    """
    if len(text) <= most:
        return text
    return f"{text[: most // 3]}...{text[-(most // 6) + 1 :]} ({len(text)} characters)"


def one_line(message: str) -> str:
    """A message that prints as one line of bounded length, whatever values stand in it.

    Control characters and halves of characters that are no text (of file names that are not UTF-8) are escaped, and
    what is too long to be the name of a file is cut.

    >>> one_line("`model` a\\nb is not there")
    '`model` a\\\\nb is not there'
    >>> len(one_line("9" * 5000 + " is too large")) < 120
    True
    """
    text = "".join(c if c.isprintable() else escaped(c) for c in message)
    text = re.sub(rf"[^\s/]{{{LONGEST_NAME + 1},}}", lambda word: shortened(word[0]), text)
    return shortened(text, LONGEST_MESSAGE) if len(text) > 2 * LONGEST_MESSAGE else text


def escaped(character: str) -> str:
    """A character that cannot be printed, as Python writes it."""
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The way out for a name that is not known; empty where nothing is near.

    >>> did_you_mean("stepz", ["size", "steps"]), did_you_mean("x", ["steps"])
    ("did you mean 'steps'?", '')
    """
    near = difflib.get_close_matches(name[:LONGEST_NAME], list(known), 1)
    return f"did you mean {near[0]!r}?" if near else ""


def binary(count: int) -> str:
    """Bytes for people.

    >>> binary(3 * 2**20)
    '3.0 MiB'
    """
    size, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.1f} {units[0]}"
