"""``python docs/draw_cone.py``: the drawing of a region's cone, docs/cone.svg, of the windows that the engine counts.

One row of windows a level, for a new lattice at every level and for one at every third; dark are those that the strip
next door still takes, once the region is known.
"""

from __future__ import annotations

from pathlib import Path

from engine.planning.geometry import Box
from engine.planning.plane import Windows, needed_windows, offsets

ROOT = Path(__file__).parents[1]
PATCH, LEVELS, SEED = 32, 9, 5
REGION, STRIP = Box(0, 0, 1, 64), Box(0, 64, 1, 96)  # latents; one row of them
SCALE, ROW, LEFT, TOP = 1.15, 24, 76, 40
WIDTH, HALF = 900, 450


def windows(needed: Windows, y: float, middle: float, fill: str) -> list[str]:
    """The windows of a level, in one row."""
    x0 = needed.offset[1] + needed.first[1] * PATCH
    marks = [x0 + n * PATCH for n, asked in enumerate(needed.mask.any(0)) if asked]
    return [
        f'<rect x="{middle + SCALE * x:.1f}" y="{y}" width="{SCALE * PATCH:.1f}" height="{ROW - 6}" fill="{fill}" '
        'stroke="#24324a" stroke-width="0.8"/>'
        for x in marks
    ]


def text(x: float, y: float, words: str, size: int = 12, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}">{words}</text>'


def cone(hold: int, middle: float, title: str) -> list[str]:
    lattices = offsets(SEED, LEVELS, PATCH, hold)
    known = needed_windows(REGION, lattices, PATCH)
    beside = needed_windows(STRIP, lattices, PATCH, [(one,) for one in known])
    centre, parts = middle - SCALE * 48, [text(middle, 22, title, 13)]
    for level in range(LEVELS):
        y = TOP + ROW * level
        parts += windows(known[level], y, centre, "#cfe0f2") + windows(beside[level], y, centre, "#7a2f63")
    y = TOP + ROW * LEVELS + 4
    for box, fill, words in ((REGION, "#4d86bd", "region"), (STRIP, "#b06a9b", "next")):
        x, width = centre + SCALE * box.x0, SCALE * box.width
        parts.append(f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{ROW}" fill="{fill}"/>')
        parts.append(text(x + width / 2, y + 16, words, 11))
    return parts


def draw() -> str:
    height = TOP + ROW * (LEVELS + 2)
    rows = [(level, TOP + ROW * level + 13) for level in range(LEVELS)]
    names = [text(8, y, f"level {level}", 11, "start") for level, y in rows]
    names.append(text(8, TOP + ROW * LEVELS + 20, "the end", 11, "start"))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH + LEFT} {height}" font-family="sans-serif">',
        f'<rect width="{WIDTH + LEFT}" height="{height}" fill="white"/>',
        *names,
        *cone(1, LEFT + HALF / 2, "a new lattice at every level"),
        *cone(3, LEFT + HALF * 1.5, "a new lattice at every third (--hold 3)"),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "cone.svg").write_text(draw())
