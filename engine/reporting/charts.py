"""Charts as SVG that stretch with the page; their words are the page's own, and keep their size on a phone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from markupsafe import Markup

# Kinds of work, see engine.distributed.timing: what is computed in blues, what waits or travels in warm colours.
COLORS = {
    "evaluate": "#2f5d8a",
    "decode": "#86aeca",
    "plan": "#c9b04e",
    "fuse": "#7d6a97",
    "store": "#5f8f63",
    "exchange": "#d38b3d",
    "wait": "#b9473f",
    "other": "#b5b2aa",
}
SPARE = "#8a8a8a"  # of a kind that is none of these
GAP = 0.12  # of a column's width


def color_of(kind: str) -> str:
    return COLORS.get(kind, SPARE)


def columns(stacks: Sequence[Sequence[float]], kinds: Sequence[str], most: float, title: str) -> Markup:
    """Stacked columns, from the bottom up: one for each of ``stacks``.

    Args:
        stacks: Values by kind, each column's.
        most: Value at the top.
        title: What it shows, in words.
    """
    rects = []
    for n, stack in enumerate(stacks):
        y = 100.0
        for kind, value in zip(kinds, stack, strict=True):
            height = 100 * value / most if most else 0.0
            y -= height
            if height > 0.02:
                rects.append(rect(n + GAP / 2, y, 1 - GAP, height, kind))
    return drawn(max(len(stacks), 1), 100, rects, title)


def bar(stack: Sequence[float], kinds: Sequence[str], most: float, title: str) -> Markup:
    """One stacked bar, from the left to the right.

    >>> str(bar([1, 3], ["evaluate", "wait"], 4, "rank 0")).count("<rect")
    2
    """
    rects, x = [], 0.0
    for kind, value in zip(kinds, stack, strict=True):
        width = 100 * value / most if most else 0.0
        if width > 0.02:
            rects.append(rect(x, 0, width, 1, kind))
        x += width
    return drawn(100, 1, rects, title)


def rect(x: float, y: float, width: float, height: float, kind: str) -> str:
    return f'<rect x="{x:.3f}" y="{y:.3f}" width="{width:.3f}" height="{height:.3f}" fill="{color_of(kind)}"/>'


def drawn(width: float, height: float, shapes: Sequence[str], title: str) -> Markup:
    """Shapes as SVG that fills its box."""
    head = f'<svg viewBox="0 0 {width:g} {height:g}" preserveAspectRatio="none" role="img" '
    return Markup(f'{head}aria-label="{escape(title)}">{"".join(shapes)}</svg>')


def dot(value: float, error: float | None, reference: float | None, one: bool) -> Markup:
    """A value on a line from 0, with its standard error, and the reference as a bar across.

    Args:
        one: Whether 1 is the best value, which is then marked, in the middle unless values are far from it.
    """
    ends = [v for v in (value + (error or 0), value - (error or 0), reference, 2.0 if one else None) if v is not None]
    ends = [v for v in ends if math.isfinite(v)]
    if not math.isfinite(value) or not ends:
        return Markup("")
    low, high = min(0.0, *ends), max(0.0, *ends)
    wide = (high - low) or 1.0

    def at(v: float) -> float:
        return 4 + 112 * (v - low) / wide

    shapes = ['<path d="M4 10H116" stroke="#c9c5bb" stroke-width="1"/>']
    shapes += [f'<path d="M{at(0):.1f} 7V13" stroke="#8b877d" stroke-width="1"/>']
    if one:
        shapes.append(f'<path d="M{at(1):.1f} 2V18" stroke="#8b877d" stroke-width="1" stroke-dasharray="2 2"/>')
    if reference is not None and math.isfinite(reference):
        shapes.append(f'<path d="M{at(reference):.1f} 3V17" stroke="#b06a1d" stroke-width="2.5"/>')
    if error:
        shapes.append(
            f'<path d="M{at(value - error):.1f} 10H{at(value + error):.1f}" stroke="#2f5d8a" stroke-width="2"/>'
        )
    shapes.append(f'<circle cx="{at(value):.1f}" cy="10" r="4" fill="#2f5d8a"/>')
    said = f"{value:.4g}" + ("" if reference is None else f", reference {reference:.4g}")
    head = '<svg class="dot" viewBox="0 0 120 20" width="120" height="20" role="img" '
    return Markup(f'{head}aria-label="{escape(said)}">{"".join(shapes)}</svg>')


def shade(value: float, low: float, high: float) -> str:
    """The colour of a cell of a heat map, from white to a blue that dark text still stands out from.

    >>> shade(0, 0, 1), shade(1, 0, 1)
    ('#ffffff', '#8fb6d6')
    """
    if not math.isfinite(value):
        return "#ffffff"
    share = (value - low) / (high - low) if high > low else 0.0
    full = (0x8F, 0xB6, 0xD6)
    return "#" + "".join(f"{round(255 + share * (channel - 255)):02x}" for channel in full)
