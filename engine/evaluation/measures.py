"""What an evaluation says: measures and tables, as JSON and as text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from engine.storage.settings_file import read_json_object

FORMAT = "slidefield evaluation 1"
BETTER = {  # which values are better: in tables, and in words
    "lower": ("\N{DOWNWARDS ARROW}", "lower is better"),
    "higher": ("\N{UPWARDS ARROW}", "higher is better"),
    "one": ("1", "best at 1"),
    "zero": ("0", "best at 0"),
    "": ("", ""),  # none is, or that of the reference where there is one
}
AS_REFERENCE = ("reference", "best as the reference")


@dataclass(frozen=True)
class Measure:
    """One number.

    Args:
        group: Heading that it stands under, such as ``distances`` or ``realism``.
        name: Its name in the field, such as FID.
        value: Of what was generated.
        better: Which values are better, of ``BETTER``; see ``best``.
        reference: The same measure where nothing was generated: between halves of the reference set, or of the
            reference set itself. None: there is none.
        error: Standard error of the value; None: it is not known.
        unit: dB, px, percent; empty: none.
        label: Name of the label that it is about; empty: of all.
        says: A sentence on what it compares, for the report.
    """

    group: str
    name: str
    value: float
    better: str = ""
    reference: float | None = None
    error: float | None = None
    unit: str = ""
    label: str = ""
    says: str = ""

    def __post_init__(self) -> None:
        assert self.better in BETTER, self.better

    @property
    def best(self) -> tuple[str, str]:
        """Which values are better, as a sign for tables and in words; empty: none is.

        >>> Measure("distances", "FID", 12.3, "lower").best[1], Measure("nuclei", "area", 3.0, reference=4.0).best[0]
        ('lower is better', 'reference')
        """
        return AS_REFERENCE if not self.better and self.reference is not None else BETTER[self.better]


@dataclass(frozen=True)
class Table:
    """Numbers with names at their rows and columns, such as a confusion matrix."""

    group: str
    name: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    says: str = ""


@dataclass(frozen=True)
class Neighbour:
    """A crop and the image of another set that is nearest to it.

    Args:
        crop, nearest: How the two are named.
        pixels, nearest_pixels: Their pictures, PNG in base64.
    """

    crop: str
    nearest: str
    distance: float
    pixels: str = ""
    nearest_pixels: str = ""


@dataclass(frozen=True)
class Evaluation:
    """All that one evaluation says.

    Args:
        generated, reference, train: What was compared: path, kind, number and side of the crops, and so on; empty:
            there was none.
        features: Name, hash and dimensions of the features.
        options: The settings that change its numbers.
        left_out: Why something could not be measured, by its name.
        warnings: What is to be known before numbers are believed, a sentence each.
    """

    generated: Mapping[str, Any]
    reference: Mapping[str, Any]
    train: Mapping[str, Any] = field(default_factory=dict)
    features: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    measures: Sequence[Measure] = ()
    tables: Sequence[Table] = ()
    neighbours: Sequence[Neighbour] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    version: str = ""
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """A JSON object, with null for numbers that are none."""
        return {"format": FORMAT, **without_nan(asdict(self))}

    def __str__(self) -> str:
        return self.as_text()

    def as_text(self) -> str:
        """A line a measure: name, value, error, and the reference beside it."""
        lines: list[str] = []
        groups = dict.fromkeys(measure.group for measure in self.measures)
        for group in groups:
            lines += [group, *(f"  {line_of(measure)}" for measure in self.measures if measure.group == group)]
        for table in self.tables:
            lines += [table.name, *(f"  {line}" for line in lines_of(table))]
        return "\n".join(lines)

    def as_markdown(self) -> str:
        """Tables for a model's card: a row a measure, its error and the reference beside it."""
        lines: list[str] = []
        for group in dict.fromkeys(measure.group for measure in self.measures):
            lines += [f"**{group}**", "", "| measure | best | value | standard error | reference |"]
            lines += ["|---|---|---|---|---|"]
            lines += [row_of(measure) for measure in self.measures if measure.group == group] + [""]
        for table in self.tables:
            lines += [
                f"**{table.name}**",
                "",
                f"| | {' | '.join(table.columns)} |",
                "|---" * (len(table.columns) + 1) + "|",
            ]
            lines += [
                f"| {name} | {' | '.join(f'{value:.4g}' for value in row)} |"
                for name, row in zip(table.rows, table.values, strict=True)
            ] + [""]
        return "\n".join(lines)


def row_of(measure: Measure) -> str:
    """One measure as a row of Markdown.

    >>> row_of(Measure("distances", "FID", 12.345, "lower", reference=3.2))
    '| FID | ↓ | 12.35 |  | 3.2 |'
    """
    name = (
        f"{measure.name}{f', {measure.label}' if measure.label else ''}{f' ({measure.unit})' if measure.unit else ''}"
    )
    error, beside = ("" if value is None else f"{value:.3g}" for value in (measure.error, measure.reference))
    return f"| {name} | {measure.best[0]} | {measure.value:.4g} | {error} | {beside} |"


def read_evaluation(path: Path) -> Evaluation:
    """What ``as_json`` wrote.

    Raises:
        ValueError: the file is no such evaluation.
    """
    content = read_json_object(path, str(path))
    if content.pop("format", None) != FORMAT:
        raise ValueError(f"{path} is no evaluation of this version; write it with engine.evaluate and `json`")
    try:
        measures = tuple(Measure(**{**m, "value": nan_for_none(m["value"])}) for m in content.pop("measures"))
        tables = tuple(
            Table(**{**t, **{k: tuple(t[k]) for k in ("rows", "columns")}, "values": rows_of(t["values"])})
            for t in content.pop("tables")
        )
        neighbours = tuple(Neighbour(**n) for n in content.pop("neighbours"))
        evaluation = Evaluation(**content, measures=measures, tables=tables, neighbours=neighbours)
        check_types(evaluation)
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise ValueError(f"{path} is a damaged evaluation ({why}); write it anew with engine.evaluate") from None
    return evaluation


def check_types(evaluation: Evaluation) -> None:
    """Refuse values of other types than are declared.

    Raises:
        TypeError: naming the first.
    """
    for name in ("generated", "reference", "train", "features", "options", "left_out"):
        expect(isinstance(getattr(evaluation, name), Mapping), name)
    expect(isinstance(evaluation.warnings, list | tuple), "warnings")
    expect(all(isinstance(line, str) for line in evaluation.warnings), "warnings")
    expect(isinstance(evaluation.version, str), "version")
    expect(is_number(evaluation.seconds), "seconds")
    for measure in evaluation.measures:
        expect(
            all(isinstance(getattr(measure, n), str) for n in ("group", "name", "unit", "label", "says")), "a measure"
        )
        expect(is_number(measure.value), measure.name)
        expect(all(v is None or is_number(v) for v in (measure.reference, measure.error)), measure.name)
    for table in evaluation.tables:
        names = (table.group, table.name, table.says, *table.rows, *table.columns)
        expect(all(isinstance(name, str) for name in names), "a table")
        expect(len(table.values) == len(table.rows), table.name)
        expect(all(len(row) == len(table.columns) and all(map(is_number, row)) for row in table.values), table.name)
    for one in evaluation.neighbours:
        expect(all(isinstance(v, str) for v in (one.crop, one.nearest, one.pixels, one.nearest_pixels)), "a neighbour")
        expect(is_number(one.distance), "a neighbour")


def expect(well: bool, name: str) -> None:
    if not well:
        raise TypeError(f"{name} is of another type")


def is_number(value: Any) -> bool:
    """Whether a value is a number that a float holds.

    >>> is_number(1), is_number(True), is_number(10**400), is_number("1")
    (True, False, False, False)
    """
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**63)


def line_of(measure: Measure) -> str:
    """One measure as text.

    >>> line_of(Measure("distances", "FID", 12.345, "lower", reference=3.2))
    'FID                                               12.35   (reference 3.2)'
    """
    name = f"{measure.name}{f', {measure.label}' if measure.label else ''}"
    value = f"{measure.value:.4g}{f' {measure.unit}' if measure.unit else ''}"
    error = "" if measure.error is None else f" +- {measure.error:.2g}"
    beside = "" if measure.reference is None else f"   (reference {measure.reference:.4g})"
    return f"{name:<48}{value:>7}{error}{beside}"


def lines_of(table: Table) -> list[str]:
    """A table as text, one line a row below one of the columns' names."""
    wide = max(map(len, ("", *table.rows)))
    widths = [max(len(name), 7) for name in table.columns]
    head = " " * wide + "".join(f"  {name:>{w}}" for name, w in zip(table.columns, widths, strict=True))
    body = [
        f"{name:<{wide}}" + "".join(f"  {value:>{w}.4g}" for value, w in zip(row, widths, strict=True))
        for name, row in zip(table.rows, table.values, strict=True)
    ]
    return [head, *body]


def without_nan(value: Any) -> Any:
    """The same with None for numbers that JSON does not know.

    >>> without_nan({"a": [1.5, math.nan, math.inf]})
    {'a': [1.5, None, None]}
    """
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def nan_for_none(value: float | None) -> float:
    return math.nan if value is None else value


def rows_of(values: Sequence[Sequence[float | None]]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(map(nan_for_none, row)) for row in values)
