"""What is asked of an export: an output, a target, and the options that narrow it."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path

from engine.messages import quoted
from engine.options import number, read_as
from engine.planning.geometry import Box


@dataclass(frozen=True)
class Asked:
    """One export. None, or False, is an option that was not given.

    Args:
        out: Path of a finished output of engine.sample.
        target: File or folder to be made; its name says what kind of export it is.
        region: Part of the image, in pixels of level 0.
        level: Level of the pyramid that pixels are taken from, 0 at full size.
        image: Number of the image of a set.
        labels: Whether the label map is wanted in place of the image.
        format: Format of the files, in the words of the kind of export.
        layout: Which folders are made.
        quality: Of JPEG, 1 to 100.
        compression: Of a slide's tiles.
        tolerance: Distance that an outline may be moved by, in pixels of the level that is read.
        overwrite: Whether an earlier export is replaced.
    Raises:
        ValueError: a number is none, or beyond what there is.
    """

    out: Path
    target: Path
    region: Box | None = None
    level: int | None = None
    image: int | None = None
    labels: bool = False
    format: str | None = None
    layout: str | None = None
    quality: int | None = None
    compression: str | None = None
    tolerance: float | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name, least, most in (("level", 0, None), ("image", 0, None), ("quality", 1, 100)):
            value = getattr(self, name)
            if value is None:
                continue
            if type(value) is not int or value < least or (most is not None and value > most):
                wanted = f"{least} to {most}" if most else "0 or more"
                raise ValueError(f"`{name}` is {quoted(value)}; give a whole number, {wanted}")
        if self.tolerance is not None:
            read_as(number(0), self.tolerance, "`tolerance`")

    @property
    def given(self) -> list[str]:
        """The options that narrow the export and were given."""
        others = ("out", "target", "overwrite")
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in others}
        return [name for name, value in values.items() if value is not None and value is not False]


def region_of(text: str) -> Box:
    """A region as engine.view copies it: rows before columns, half-open, in pixels of level 0.

    Raises:
        ValueError: it is none.

    >>> region_of("0:512,1024:2048")
    Box(y0=0, x0=1024, y1=512, x1=2048)
    """
    numbers = re.fullmatch(r"(\d{1,12}):(\d{1,12}),(\d{1,12}):(\d{1,12})", text.replace(" ", ""), re.ASCII)
    if numbers is None:
        raise ValueError("it is no region; give rows and columns, Y0:Y1,X0:X1")
    y0, y1, x0, x1 = map(int, numbers.groups())
    if y0 >= y1 or x0 >= x1:
        raise ValueError("it is empty; give rows and columns, Y0:Y1,X0:X1, that end after they begin")
    return Box(y0, x0, y1, x1)
