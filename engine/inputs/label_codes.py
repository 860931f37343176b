"""Label maps in other codes than the model's labels: spread over 0 to 255, or codes that a table translates."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from engine.inputs.input_file import InputFile
from engine.messages import quoted
from engine.storage.readers import read_integers
from engine.storage.settings_file import read_text

LARGEST_TABLE = 2**20  # bytes; a table has a line a code
LARGEST_CODE = 2**31


@dataclass(frozen=True)
class Codes:
    """Which code stands for which label.

    Args:
        labels: Label of each code.
        others: Label of all other codes; None: there are no others.
        name: Where this was said, for messages.
    """

    labels: dict[int, int]
    others: int | None
    name: str

    def label_of(self, values: np.ndarray) -> np.ndarray:
        """int64 labels of codes; -1 where a code has none."""
        codes = np.array(sorted(self.labels), np.int64)
        labels = np.array([self.labels[int(code)] for code in codes], np.int64)
        values = values.astype(np.int64)
        place = np.searchsorted(codes, values).clip(max=len(codes) - 1)
        return np.where(codes[place] == values, labels[place], -1 if self.others is None else self.others)


class RecodedMap:
    """A map of codes, sliced like the map of labels uint8 (h, w), or a stack of maps (images, h, w).

    Args:
        source: Map of codes, or what slices like one.
        name: Option and path, for messages.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, source: np.ndarray, codes: Codes, name: str) -> None:
        self.source, self.codes, self.name = source, codes, name
        self.shape, self.ndim = source.shape, source.ndim

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: tuple[Any, ...]) -> np.ndarray:
        values = np.asarray(self.source[index])
        labels = self.codes.label_of(values)
        if (labels < 0).any():
            y, x = np.argwhere(labels < 0)[0].tolist()
            row, column = (at + (part.start or 0) for at, part in zip((y, x), index[-2:], strict=True))
            raise ValueError(
                f"{self.name} has the code {int(values[y, x])} at row {row}, column {column}; {self.codes.name}"
            )
        return labels.astype(np.uint8)


def recoded_file(path: str, option: str, codes: Codes, stack: bool) -> InputFile:
    """A map (h, w) of codes, read as labels.

    Args:
        stack: Whether it may be a stack of maps (images, h, w).
    """
    return InputFile(Path(path), option, partial(read_recoded, codes=codes, stack=stack))


def read_recoded(path: Path, option: str, codes: Codes, stack: bool) -> np.ndarray:
    return RecodedMap(read_integers(path, option, stack), codes, f"{option} {path}")  # type: ignore[return-value]


def spread_codes(known: int) -> Codes:
    """The codes of ``known`` labels spread evenly over 0 to 255, rounded or cut off: DiffInfinite's pictures have both.

    >>> sorted(spread_codes(5).labels)
    [0, 1, 63, 64, 65, 127, 128, 190, 191, 192, 254, 255]
    """
    at = [255 * label / max(known - 1, 1) for label in range(known)]
    near = {code: label for label, middle in enumerate(at) for code in range(256) if abs(code - middle) < 1.5}
    shown = ", ".join(str(round(middle)) for middle in at)
    return Codes(near, None, f"`labels_scale` spread: the model's {known} labels lie at {shown}")


def table_codes(path: str, known: int) -> Codes:
    """The codes in a table: a line CODE,LABEL each, ``*,LABEL`` for all others; ``#`` begins a remark.

    Args:
        known: Number of labels that the model knows.
    Raises:
        ValueError: the file cannot be read, or a line is none of these, says a code twice, or names an unknown label.
    """
    what = f"`labels_table` {path}"
    labels: dict[int | str, int] = {}
    for number, line in enumerate(read_text(Path(path), what, LARGEST_TABLE).splitlines(), 1):
        if not (said := line.partition("#")[0].strip()):
            continue
        code, label = entry_of(said, f"{what}, line {number}")
        if code in labels:
            raise ValueError(f"{what}, line {number}: {code} has a label already, {labels[code]}")
        if label >= known:
            raise ValueError(f"{what}, line {number}: label {label}, but the model knows 0 to {known - 1}")
        labels[code] = label
    others = labels.pop("*", None)
    if not labels:
        raise ValueError(f"{what} names no codes; write a line CODE,LABEL each")
    way = "add it to the table, or a line *,LABEL for all others"
    return Codes({int(code): label for code, label in labels.items()}, others, f"{what} does not know it: {way}")


def entry_of(text: str, where: str) -> tuple[int | str, int]:
    """Code, or ``*``, and label of a line of a table.

    Raises:
        ValueError: it is no such line.
    """
    parts = [part.strip() for part in text.replace(":", ",").split(",")]
    digits = [part for part in parts if part.isascii() and part.isdigit() and int(part[:12]) < LARGEST_CODE]
    if len(parts) != 2 or parts[1] not in digits or (parts[0] != "*" and len(digits) != 2):
        raise ValueError(f"{where}: {quoted(text)}: expected CODE,LABEL in whole numbers, or *,LABEL")
    return parts[0] if parts[0] == "*" else int(parts[0]), int(parts[1])
