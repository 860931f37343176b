"""A BigTIFF of tiles that are encoded already, with a pyramid: written from front to back, tags last.

The reduced levels hang below the first page, as OME-TIFF has them (SubIFDs, tag 330), and follow it in the file's chain
of pages too, marked as reduced (NewSubfileType 1), as generic pyramidal TIFF has them: OpenSlide reads those alone. The
pixels are there once. tifffile writes no JPEG tiles without imagecodecs, even such as are encoded, and no such chain.

Format: BigTIFF, https://www.awaresystems.be/imaging/tiff/bigtiff.html; SubIFDs, TIFF Technical Note 1 (Adobe 1995).
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import IO

SHORT, LONG, RATIONAL, LONG8, IFD8, ASCII = 3, 4, 5, 16, 18, 2  # types of values
LETTERS = {SHORT: "H", LONG: "I", RATIONAL: "I", LONG8: "Q", IFD8: "Q"}
SUBFILE_TYPE, OFFSETS, COUNTS, SUB_IFDS = 254, 324, 325, 330  # tags
Tags = Mapping[int, tuple[int, str | Sequence[int]]]  # by number: type and values, of rationals in pairs


@dataclass
class Page:
    """One level: its tags, and where its tiles lie."""

    tags: Tags
    offsets: array = field(default_factory=lambda: array("Q"))
    counts: array = field(default_factory=lambda: array("Q"))


def write_bigtiff(file: IO[bytes], levels: Iterable[tuple[Tags, Iterable[bytes]]]) -> None:
    """Write a file; of its pixels, one tile at a time is in memory.

    Args:
        levels: The finest first: tags but those of tiles' places, and the encoded tiles, row by row.
    """
    file.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, 0))
    pages = []
    for tags, tiles in levels:
        page = Page(tags)
        for tile in tiles:
            page.offsets.append(file.tell())
            page.counts.append(len(tile))
            file.write(tile)
        pages.append(page)
    following: list[int] = []  # where the pages lie that follow one, the next first
    for number, page in reversed(list(enumerate(pages))):
        of_place = {
            SUBFILE_TYPE: (LONG, [1 if number else 0]),
            OFFSETS: (LONG8, page.offsets),
            COUNTS: (LONG8, page.counts),
        }
        if not number and following:
            of_place[SUB_IFDS] = (IFD8, following)
        following.insert(0, write_page(file, {**page.tags, **of_place}, following[0] if following else 0))
    file.seek(8)
    file.write(struct.pack("<Q", following[0]))


def write_page(file: IO[bytes], tags: Tags, following: int) -> int:
    """Write a page's tags at the end of a file.

    Args:
        following: Where the next page lies; 0: there is none.
    Returns:
        Where this page lies.
    """
    entries = []
    for number, (kind, values) in sorted(tags.items()):
        data = encoded(kind, values)
        count = len(data) if kind == ASCII else len(values) // (2 if kind == RATIONAL else 1)
        if len(data) > 8:
            place = aligned(file)
            file.write(data)
            data = struct.pack("<Q", place)
        entries.append(struct.pack("<HHQ", number, kind, count) + data.ljust(8, b"\0"))
    place = aligned(file)
    file.write(struct.pack("<Q", len(entries)) + b"".join(entries) + struct.pack("<Q", following))
    return place


def encoded(kind: int, values: str | Sequence[int]) -> bytes:
    """The values of a tag as bytes."""
    if isinstance(values, str):
        return values.encode() + b"\0"
    if isinstance(values, array):
        return values.tobytes()
    return struct.pack(f"<{len(values)}{LETTERS[kind]}", *values)


def aligned(file: IO[bytes]) -> int:
    """The end of a file, which is filled up to a multiple of 8 bytes."""
    file.write(b"\0" * (-file.tell() % 8))
    return file.tell()


def rational(value: float) -> tuple[int, int]:
    """A number as two of 32 bits.

    >>> rational(20000.0), rational(39525.69)
    ((20000, 1), (3952569, 100))
    """
    fraction = Fraction(value).limit_denominator(max(int(2**31 / max(value, 1)), 1))
    return fraction.numerator, fraction.denominator
