"""``python docs/draw_architecture.py``: draw the rooms of the code and who imports whom into architecture.svg.

``tests/test_imports.py`` draws it again and fails where the picture is behind the code, or an arrow points up.
"""

from __future__ import annotations

import ast
from collections import Counter
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
# From the bottom up. A module imports its own room and rooms on lower floors, nothing else.
FLOORS = (
    ("kernels", "engine.planning", "engine.messages"),
    ("engine.options", "engine.command_line", "engine.diffusion", "engine.storage"),
    ("engine.models", "engine.distributed"),
    ("engine.job",),
    ("engine.parsing", "engine.inputs"),
    ("engine.embedding",),
    ("engine.pipeline", "engine.exports", "engine.training"),
    ("engine.evaluation",),
    ("engine.reporting",),
    ("engine.viewing",),
    ("engine.serving",),
    (
        "engine.__main__",
        "engine.api",
        "engine.sample",
        "engine.train",
        "engine.verify",
        "engine.evaluate",
        "engine.view",
        "engine.serve",
        "engine.trim",
        "engine.report",
        "engine.export",
        "engine.embed",
    ),
)
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
WIDTH, BOX_HEIGHT, GAP, LEFT = 1120, 90, 44, 20  # px
INK, PALE = "#24324a", ("#eef3fb", "#e8f4ee", "#fdf3e3", "#f6ecf7", "#eaf6f8", "#fbeeee", "#f2f2f2")


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Every module of engine and kernels by its dotted name."""
    return {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for folder in ("engine", "kernels")
        for path in sorted((root / folder).rglob("*.py"))
    }


def imports(path: Path) -> list[str]:
    """The dotted names that a file imports, wherever in it."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


def room_of(module: str) -> str:
    """``engine.planning.cover`` -> ``engine.planning``; the kernels are one room.

    >>> room_of("engine.planning.cover"), room_of("kernels.triton.fuse")
    ('engine.planning', 'kernels')
    """
    parts = module.split(".")
    return parts[0] if parts[0] == "kernels" else ".".join(parts[:2])


def arrows(root: Path = ROOT) -> Counter[tuple[str, str]]:
    """(room, room that it imports) -> how many of its modules do."""
    counts: Counter[tuple[str, str]] = Counter()
    for module, path in modules(root).items():
        here = room_of(module)
        for there in {room_of(name) for name in imports(path)}:
            if here in FLOOR and there in FLOOR and here != there:
                counts[here, there] += 1
    return counts


def reduced(counts: Counter[tuple[str, str]]) -> Counter[tuple[str, str]]:
    """The arrows without those that follow from others: a room that imports another may import what lies below it."""
    below: dict[str, set[str]] = {}
    for room in sorted(FLOOR, key=lambda room: FLOOR[room]):
        direct = {there for here, there in counts if here == room}
        below[room] = direct.union(*(below[there] for there in direct))
    return Counter(
        {
            (here, there): count
            for (here, there), count in counts.items()
            if not any(there in below[other] for start, other in counts if start == here and other != there)
        }
    )


def files(room: str, root: Path = ROOT) -> str:
    """The names of a room's files and folders, but for its charter."""
    folder = root.joinpath(*room.split("."))
    if not folder.is_dir():
        return ""
    names = {path.relative_to(folder).parts[0].removesuffix(".py") for path in folder.rglob("*.py")}
    return ", ".join(sorted(names - {"__init__"}))


def charter(room: str, root: Path = ROOT) -> str:
    """The first sentence of a room's docstring."""
    path = root.joinpath(*room.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = " ".join((ast.get_docstring(ast.parse(file.read_text())) or "").split())
    return text.replace("``", "").split(". ")[0].rstrip(".") + "."


def wrapped(text: str, columns: int, lines: int = 2) -> list[str]:
    """Text cut into lines of at most so many characters; what does not fit is left out at a word's end."""
    rows = [""]
    for word in text.split():
        if len(rows[-1]) + len(word) + 1 > columns:
            if len(rows) == lines:
                rows[-1] += " ..."
                break
            rows.append("")
        rows[-1] = f"{rows[-1]} {word}".strip()
    return rows


def boxes() -> dict[str, tuple[float, float, float]]:
    """Each room's left, top and width in px; the top floor is drawn first."""
    places = {}
    for height, rooms in enumerate(FLOORS):
        top = 20 + (len(FLOORS) - 1 - height) * (BOX_HEIGHT + GAP)
        width = (WIDTH - 2 * LEFT - 24 * (len(rooms) - 1)) / len(rooms)
        for n, room in enumerate(rooms):
            places[room] = LEFT + n * (width + 24), float(top), width
    return places


def draw(root: Path = ROOT) -> str:
    """The picture as SVG text: a function of the source alone."""
    places, counts = boxes(), reduced(arrows(root))
    height = 20 + len(FLOORS) * (BOX_HEIGHT + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        'font-family="Helvetica, Arial, sans-serif">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="9" markerHeight="9" orient="auto"',
        f' markerUnits="userSpaceOnUse"><path d="M0 0L8 4L0 8z" fill="{INK}"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
    ]
    for (here, there), count in sorted(counts.items()):
        (x0, y0, w0), (x1, y1, w1) = places[here], places[there]
        a = x0 + w0 * (0.2 + 0.6 * slot(here, there, counts, 0))
        b = x1 + w1 * (0.2 + 0.6 * slot(there, here, counts, 1))
        start, stop, bend = y0 + BOX_HEIGHT, y1 - 2, 0.8 * GAP
        parts.append(
            f'<path d="M{a:.0f} {start:.0f}C{a:.0f} {start + bend:.0f} {b:.0f} {stop - bend:.0f} {b:.0f} {stop:.0f}" '
            f'fill="none" stroke="{INK}" stroke-width="{min(0.8 + 0.25 * count, 3.5):.2f}" stroke-opacity="0.45" '
            'marker-end="url(#tip)"/>'
        )
    for room, (x, y, width) in places.items():
        parts.append(
            f'<rect x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{BOX_HEIGHT}" rx="7" '
            f'fill="{PALE[FLOOR[room] % len(PALE)]}" stroke="{INK}"/>'
        )
        parts.append(text(x + 12, y + 20, room, 15, bold=True))
        lines = [*wrapped(charter(room, root), int(width / 6.6)), *wrapped(files(room, root), int(width / 6.6))]
        for n, line in enumerate(lines):
            parts.append(text(x + 12, y + 38 + 14 * n, line, 11))
    return "\n".join([*parts, "</svg>", ""])


def slot(room: str, other: str, counts: Counter[tuple[str, str]], side: int) -> float:
    """Where along a box's edge an arrow begins or ends, 0 to 1, so that arrows cross little."""
    pairs = [pair for pair in counts if pair[side] == room]
    places = boxes()
    ends = sorted((pair[1 - side] for pair in pairs), key=lambda end: (places[end][0] + places[end][2] / 2, end))
    return (ends.index(other) + 0.5) / len(ends)


def text(x: float, y: float, line: str, size: int, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}" fill="{INK}"{weight}>{escape(line)}</text>'


if __name__ == "__main__":
    Path(__file__).with_name("architecture.svg").write_text(draw())
