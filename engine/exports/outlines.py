"""The lines between regions in one strip of a label map: arcs along the edges of pixels, each of them once.

Points are corners of pixels. A *key point* is one where lines turn, meet or cross the strip's upper or lower edge; at a
*cut* they meet (three or four of them), or go on in another strip. An *arc* runs from cut to cut, or closes by itself;
both regions beside it take it from here, so that they share its points also where it is simplified.

Directions are numbered clockwise as one sees them: east, south, west, north. A region lies on the right of its outline,
so that outlines of regions have a positive area in (x, y), and those of holes a negative one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

EAST, SOUTH, WEST, NORTH = range(4)


@dataclass(frozen=True)
class KeyPoints:
    """The key points of a strip, row by row, and the lines between them. A *state* is 4 * point + direction.

    Args:
        y, x: int64 (n,): lines from the strip's upper edge, columns.
        lines: bool (n, 4): whether a line leaves in each direction.
        right, left: Codes (n, 4) on either side of the line that leaves in each direction.
        cut: bool (n,).
        step: int64 (4 n,): from a state to the next: the point at the line's other end, and how the arc leaves it; at a
            cut, how it arrives. -1: no line, or one in another strip.
        rows: Number of lines of the strip: points of the last lie on its lower edge.
    """

    y: np.ndarray
    x: np.ndarray
    lines: np.ndarray
    right: np.ndarray
    left: np.ndarray
    cut: np.ndarray
    step: np.ndarray
    rows: int


@dataclass(frozen=True)
class Arc:
    """An arc as it is written.

    Args:
        points: Its key points that are kept, from the first to the last.
        first, last: State that it leaves by, and the state that it arrives with.
        right, left: Codes of the regions beside it; 0: none.
        closed: Whether it closes by itself: no cut lies on it.
    """

    points: list[int]
    first: int
    last: int
    right: int
    left: int
    closed: bool


def key_points(codes: np.ndarray) -> KeyPoints:
    """Find the key points of a strip.

    Args:
        codes: (rows + 1, width + 2): the row above the strip, then its rows; a column of 0 on either side.
    """
    rows = len(codes) - 1
    upright, level = codes[:, :-1] != codes[:, 1:], codes[:-1] != codes[1:]
    north, south, west, east = upright[:-1], upright[1:], level[:, :-1], level[:, 1:]
    turns = (north != south) | (west != east) | (north & west)
    turns[0] |= north[0]
    y, x = np.nonzero(turns)
    below = np.flatnonzero(upright[rows])  # where lines leave through the lower edge
    inside, y = len(y), np.concatenate([y, np.full(len(below), rows)])
    x = np.concatenate([x, below])
    lines = np.zeros((len(y), 4), bool)
    for direction, there in ((EAST, east), (SOUTH, south), (WEST, west), (NORTH, north)):
        lines[:inside, direction] = there[y[:inside], x[:inside]]
    lines[inside:, NORTH] = True
    nw, ne = codes[y, x], codes[y, x + 1]
    lower = np.minimum(y + 1, rows)
    sw, se = codes[lower, x], codes[lower, x + 1]
    cut = lines.sum(1) != 2
    cut[(y == 0) & lines[:, NORTH]] = True
    right, left = np.stack([se, sw, nw, ne], 1), np.stack([ne, se, sw, nw], 1)
    return KeyPoints(y, x, lines, right, left, cut, steps(y, x, lines, cut), rows)


def steps(y: np.ndarray, x: np.ndarray, lines: np.ndarray, cut: np.ndarray) -> np.ndarray:
    """``KeyPoints.step``: along a row or a column, a line ends at the next key point."""
    ends = np.full((len(y), 4), -1)
    row = np.flatnonzero(lines[:, EAST])
    ends[row, EAST], ends[row + 1, WEST] = row + 1, row
    by_column = np.lexsort((y, x))
    place = np.flatnonzero(lines[by_column, SOUTH])
    upper, lower = by_column[place], by_column[np.minimum(place + 1, len(by_column) - 1)]
    ends[upper, SOUTH], ends[lower, NORTH] = lower, upper
    leaves = np.empty((len(y), 4), np.int64)
    leaves[:, [EAST, WEST]] = np.where(lines[:, SOUTH], SOUTH, NORTH)[:, None]  # who arrives along a row leaves it
    leaves[:, [SOUTH, NORTH]] = np.where(lines[:, EAST], EAST, WEST)[:, None]
    leaves[cut] = np.arange(4)
    step = 4 * ends + leaves[ends, np.arange(4)]
    return np.where(ends < 0, -1, step).ravel()


def arcs_of(points: KeyPoints) -> list[tuple[list[int], bool]]:
    """List the arcs of a strip as the states along them, the last of which arrives; and whether each is closed."""
    step, cut = points.step.tolist(), points.cut.tolist()
    passed = bytearray(len(cut))  # corners that lie on an arc
    arrived = bytearray(len(step))
    arcs = []
    for start in np.flatnonzero(points.lines.ravel() & points.cut.repeat(4) & (points.step >= 0)).tolist():
        if arrived[start]:
            continue
        path, state = [start], step[start]
        while not cut[state >> 2]:
            passed[state >> 2] = 1
            path.append(state)
            state = step[state]
        path.append(state)
        arrived[state ^ 2] = 1  # the same arc from its other end: its opposite direction
        arcs.append((path, False))
    for point in np.flatnonzero(~points.cut).tolist():
        if passed[point]:
            continue
        start = 4 * point + EAST  # the first of its points from above, and of these from the left
        path, state = [start], step[start]
        passed[point] = 1
        while state >> 2 != point:
            passed[state >> 2] = 1
            path.append(state)
            state = step[state]
        path.append(state)
        arcs.append((path, True))
    return arcs


def outlines(
    codes: np.ndarray, points: KeyPoints, kept: Callable[[list[list[int]]], list[list[int]]]
) -> tuple[list[Arc], np.ndarray]:
    """The arcs of a strip, and which of them one region lies between.

    Args:
        codes: As ``key_points`` takes them.
        kept: From the key points along every arc to those that are kept.
    Returns:
        The arcs, and int64 (n, 2): pairs of sides of arcs (2 * arc, + 1 on the left) that bound one region: each side
        that is the left end of a region's row of pixels, with that of its right end.
    """
    traced = arcs_of(points)
    right, left = points.right.ravel(), points.left.ravel()
    simplified = kept([[state >> 2 for state in path] for path, _ in traced])
    arcs = [
        Arc(simple, path[0], path[-1], int(right[path[0]]), int(left[path[0]]), closed)
        for simple, (path, closed) in zip(simplified, traced, strict=True)
    ]
    return arcs, beside_one_another(points, [path for path, _ in traced], codes)


def beside_one_another(points: KeyPoints, paths: list[list[int]], codes: np.ndarray) -> np.ndarray:
    """Pairs of sides with nothing but pixels of one region between them; see ``outlines``.

    Looked at is the topmost row of every upright line: the leftmost of a hole's outline is among them, and leads to an
    outline that reaches further to the left, until it is the region's own.
    """
    if not paths:
        return np.zeros((0, 2), np.int64)
    sides = sides_of_lines(points, paths)
    starts = np.flatnonzero(points.lines[:, SOUTH])
    columns = starts[np.lexsort((points.y[starts], points.x[starts]))]
    within = starts[points.right[starts, SOUTH] > 0]  # a region lies west of the line
    width = codes.shape[1] - 1
    upright = np.flatnonzero(codes[1:, :-1] != codes[1:, 1:])
    place = upright[np.searchsorted(upright, points.y[within] * width + points.x[within]) - 1]
    row, column = np.divmod(place, width)
    key = points.x[columns] * (points.rows + 1) + points.y[columns]
    beside = columns[np.searchsorted(key, column * (points.rows + 1) + row, side="right") - 1]
    return np.unique(np.stack([sides[beside, 1], sides[within, 0]], 1), axis=0)


def sides_of_lines(points: KeyPoints, paths: list[list[int]]) -> np.ndarray:
    """int64 (n, 2): the sides of arcs west and east of the line that goes down from each key point; -1: none does."""
    states = np.concatenate([np.array(path[:-1]) for path in paths])
    arc = np.repeat(np.arange(len(paths)), [len(path) - 1 for path in paths])
    sides = np.full((len(points.y), 2), -1)
    down, up = states % 4 == SOUTH, states % 4 == NORTH
    sides[states[down] >> 2] = np.stack([2 * arc[down], 2 * arc[down] + 1], 1)
    sides[points.step[states[up]] >> 2] = np.stack([2 * arc[up] + 1, 2 * arc[up]], 1)
    return sides
