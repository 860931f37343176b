"""An evaluation as the report shows it: groups of measures, heat maps, pairs of neighbours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from engine.command_line import as_flags
from engine.evaluation.measures import Evaluation, Measure, Neighbour, Table
from engine.reporting.charts import dot, shade
from engine.reporting.pictures import Picture, decoded

MOST_PAIRS = 12  # neighbours that are shown, the nearest
MOST_NUMBERS = 12  # columns of a table whose cells have numbers; of wider ones colours alone
FRACTIONS = 1.0  # a table of no larger values is one of shares: two decimals


@dataclass(frozen=True)
class Row:
    """One measure."""

    measure: Measure
    value: str
    reference: str
    better: str
    plot: Markup


@dataclass(frozen=True)
class Cell:
    """One number of a table, and its colour."""

    text: str
    color: str


@dataclass(frozen=True)
class HeatMap:
    """A table with coloured cells."""

    table: Table
    rows: Sequence[tuple[str, Sequence[Cell]]]
    numbers: bool


@dataclass(frozen=True)
class Group:
    """Measures and tables under one heading."""

    name: str
    rows: Sequence[Row]
    heat_maps: Sequence[HeatMap]

    @property
    def compares(self) -> bool:
        """Whether any measure has a reference."""
        return any(row.reference for row in self.rows)


@dataclass(frozen=True)
class Pair:
    """A crop and its nearest neighbour."""

    neighbour: Neighbour
    crop: Picture | None
    nearest: Picture | None


@dataclass(frozen=True)
class Evaluated:
    """An evaluation.

    Args:
        compared: What was compared, in words.
        settings: What changes its numbers, (name, value).
        warnings: What is to be known before they are believed.
    """

    groups: Sequence[Group]
    pairs: Sequence[Pair]
    pairs_in_all: int
    settings: Sequence[tuple[str, str]]
    warnings: Sequence[str]


def evaluated(evaluation: Evaluation, name: str) -> Evaluated:
    """An evaluation as it is shown.

    Args:
        name: Of the output that is reported; that the evaluation is of another is among the warnings.
    """
    parts: list[Measure | Table] = [*evaluation.measures, *evaluation.tables]
    groups = [group_of(evaluation, name) for name in dict.fromkeys(part.group for part in parts)]
    nearest = sorted(evaluation.neighbours, key=lambda one: (math.isnan(one.distance), one.distance))[:MOST_PAIRS]
    pairs = [
        Pair(
            one,
            decoded(one.pixels, f"Sampled: {one.crop}."),
            decoded(one.nearest_pixels, f"Nearest to it: {one.nearest}."),
        )
        for one in nearest
    ]
    of = Path(str(evaluation.generated.get("path", name))).name
    another = [f"These are measures of {of}, and this report is of {name}"] if of != name else []
    warnings = [*another, *map(as_flags, evaluation.warnings)]
    return Evaluated(groups, pairs, len(evaluation.neighbours), settings_of(evaluation), warnings)


def group_of(evaluation: Evaluation, name: str) -> Group:
    rows = [row_of(measure) for measure in evaluation.measures if measure.group == name]
    return Group(name, rows, [heat_map(table) for table in evaluation.tables if table.group == name])


def row_of(measure: Measure) -> Row:
    unit = f" {measure.unit}" if measure.unit else ""
    error = "" if measure.error is None else f" ± {measure.error:.2g}"
    value = f"{number(measure.value)}{error}{unit}"
    reference = "" if measure.reference is None else f"{number(measure.reference)}{unit}"
    plot = dot(measure.value, measure.error, measure.reference, measure.better == "one")
    return Row(measure, value, reference, measure.best[1], plot)


def number(value: float) -> str:
    """A number for people.

    >>> number(12.3456), number(1234567.0), number(-0.5), number(float("nan"))
    ('12.35', '1,234,567', '−0.5', 'none')
    """
    if not math.isfinite(value):
        return "none"
    return (f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}").replace("-", "\N{MINUS SIGN}")


def in_cell(value: float, small: bool) -> str:
    """A number in a cell of a table.

    >>> in_cell(0.00033, True), in_cell(1200.0, False)
    ('0.00', '1,200')
    """
    if small and math.isfinite(value):
        return f"{value:.2f}"
    return f"{value:,.0f}" if math.isfinite(value) and value == round(value) else number(value)


def heat_map(table: Table) -> HeatMap:
    finite = [value for row in table.values for value in row if math.isfinite(value)]
    low, high = (min(finite, default=0.0), max(finite, default=0.0))
    low = min(low, 0.0)
    small = max(-low, high) <= FRACTIONS
    rows = [
        (name, [Cell(in_cell(value, small), shade(value, low, high)) for value in row])
        for name, row in zip(table.rows, table.values, strict=True)
    ]
    return HeatMap(table, rows, len(table.columns) <= MOST_NUMBERS)


def settings_of(evaluation: Evaluation) -> list[tuple[str, str]]:
    """What was compared and how, (name, value)."""
    parts: dict[str, Mapping[str, Any]] = {
        "sampled": evaluation.generated,
        "reference": evaluation.reference,
        "features": evaluation.features,
        "options": evaluation.options,
    }
    listed = [
        (name, ", ".join(f"{k} {v}" for k, v in values.items() if v not in (None, {})))
        for name, values in parts.items()
    ]
    listed += [("evaluated by", f"slidefield {evaluation.version}")] * bool(evaluation.version)
    listed += [("took", f"{evaluation.seconds:,.0f} s")] * bool(evaluation.seconds)
    return [(name, text) for name, text in listed if text]
