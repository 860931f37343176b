"""What is asked of an export: an output, a target, and the options that narrow it."""

from __future__ import annotations

import numbers
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from engine.messages import quoted
from engine.options import REGION, Kind, number, read_as
from engine.planning.geometry import Box
from engine.storage.plane_swap import Seen

# Whole numbers, the least of each and the most.
NUMBERS = (
    ("level", 0, None),
    ("image", 0, None),
    ("quality", 1, 100),
    ("tiles", 1, 65536),
    ("overlap", 0, None),
    ("seed", 0, None),
    ("split_margin", 0, None),
)


LAYOUTS = ("folders", "pairs", "classes")


@dataclass(frozen=True)
class Asked:
    """One export. None, or False, is an option that was not given.

    Args:
        out: Path of a finished output of engine.sample.
        target: File or folder to be made; its name says what kind of export it is.
        region: Part of the image, in pixels of level 0; of a plane in its own positions, which may be negative. A box,
            or ``Y0:Y1,X0:X1``.
        level: Level of the pyramid that pixels are taken from, 0 at full size.
        image: Number of the image of a set.
        labels: Whether the label map is wanted in place of the image.
        format: Format of the files, in the words of the kind of export.
        layout: Which folders are made.
        quality: Of JPEG, 1 to 100.
        compression: Of a slide's tiles.
        tolerance: Distance that an outline may be moved by, in pixels of the level that is read.
        tiles: Side of tiles, px of the level.
        overlap: Of neighbouring tiles, px.
        split: Shares of train and val, or of train, val and test.
        seed: Of the split.
        split_margin: Pixels of the level that lie between tiles of two parts at least.
        most_unknown: Share of label 0 beyond which a tile is left out.
        overwrite: Whether an earlier export is replaced.
        seen: The output as it is when the export begins; None: it is looked at now.
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
    tiles: int | None = None
    overlap: int | None = None
    split: tuple[float, ...] | None = None
    seed: int | None = None
    split_margin: int | None = None
    most_unknown: float | None = None
    overwrite: bool = False
    seen: Seen | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "seen", self.seen or Seen(self.out))
        for name, least, most in NUMBERS:
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, numbers.Integral) and not isinstance(value, bool):
                value = int(value)  # numpy's too
                object.__setattr__(self, name, value)
            if type(value) is not int or value < least or (most is not None and value > most):
                wanted = f"{least} to {most}" if most else "0 or more"
                raise ValueError(f"`{name}` is {quoted(value)}; give a whole number, {wanted}")
        for name in ("labels", "overwrite"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"`{name}` is {quoted(getattr(self, name))}; give True or False")
        if self.layout not in (None, *LAYOUTS):
            raise ValueError(f"`layout` is {quoted(self.layout)}; known: {', '.join(LAYOUTS)}")
        if self.region is not None:
            object.__setattr__(self, "region", Box(*read_as(REGION, self.region, "`region`")))
        for name, kind in (("tolerance", number(0)), ("most_unknown", number(0, 1)), ("split", SPLIT)):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, read_as(kind, getattr(self, name), f"`{name}`"))

    def check_seen(self) -> None:
        """Refuse an output that was changed since the export began.

        Raises:
            ValueError: it was.
        """
        assert self.seen is not None
        self.seen.check()

    @property
    def given(self) -> list[str]:
        """The options that narrow the export and were given."""
        others = ("out", "target", "overwrite", "seen")
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in others}
        return [name for name, value in values.items() if value is not None and value is not False]


def shares_of(value: Any) -> tuple[float, ...]:
    """Shares of the parts of a split, as a text or as numbers.

    Raises:
        ValueError: they are not two or three numbers above 0 of the sum 1.

    >>> shares_of("0.8,0.2"), shares_of([0.5, 0.25, 0.25])
    ((0.8, 0.2), (0.5, 0.25, 0.25))
    """
    parts = value.split(",") if isinstance(value, str) else value
    try:
        shares = tuple(number(0, 1).read(part) for part in parts)
    except (ValueError, TypeError):
        shares = ()
    if len(shares) not in (2, 3) or min(shares) == 0 or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(
            "expected the shares of train and val, or of train, val and test, that make 1, such as 0.8,0.2"
        )
    return shares


SPLIT = Kind(shares_of, "two or three numbers above 0 that make 1, as 0.8,0.2", "SHARE,SHARE[,SHARE]")
