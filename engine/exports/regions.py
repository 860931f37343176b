"""Regions of a label map as polygons, found strip by strip: outlines that reach across strips are joined.

A region is what pixels of one value are that touch along an edge; pixels that touch at a corner alone are two regions.
In memory are a strip, and the outlines of the regions that go on below it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from engine.exports.outlines import NORTH, SOUTH, Arc, KeyPoints, key_points, outlines
from engine.exports.simplify import Simplifier

MOST_PIECES = 64  # of an outline, until they become one


@dataclass(frozen=True)
class Polygon:
    """A region.

    Args:
        code: Its value in the map.
        rings: int64 (n, 2) of (x, y), the last point as the first: the outline, of positive area, then the holes.
    """

    code: int
    rings: list[np.ndarray]


@dataclass(eq=False)
class Region:
    """What is known of a region so far.

    Args:
        rings: Its outlines that are closed, int32 (n, 2) of (y, x) without the first point again.
        joined: The region that this one turned out to be.
    """

    code: int
    rings: list[np.ndarray] = field(default_factory=list)
    joined: Region | None = None

    def whole(self) -> Region:
        region = self
        while region.joined is not None:
            region = region.joined
        if self is not region:
            self.joined = region
        return region

    def join(self, other: Region) -> None:
        one, two = self.whole(), other.whole()
        if one is not two:
            one.rings += two.rings
            two.rings, two.joined = [], one


@dataclass(eq=False)
class Outline:
    """A part of a region's outline, in the order of its points: the last point of it is the first of the next part."""

    region: Region
    pieces: deque[bytes]
    joined: Outline | None = None

    def whole(self) -> Outline:
        part = self
        while part.joined is not None:
            part = part.joined
        if self is not part:
            self.joined = part
        return part


def go_on(one: Outline, two: Outline) -> None:
    """Let the first part go on with the second; where both are one part, it is a ring."""
    one, two = one.whole(), two.whole()
    if one is two:
        one.region.whole().rings.append(np.frombuffer(b"".join(one.pieces), np.int32).reshape(-1, 2))
        one.pieces.clear()
        return
    one.region.join(two.region)
    if len(one.pieces) < len(two.pieces):
        two.pieces.extendleft(reversed(one.pieces))
        one.pieces, one.joined = deque(), two
        whole = two
    else:
        one.pieces.extend(two.pieces)
        two.pieces, two.joined = deque(), one
        whole = one
    if len(whole.pieces) > MOST_PIECES:
        whole.pieces = deque([b"".join(whole.pieces)])


def polygons(strips: Iterable[np.ndarray], tolerance: float = 0) -> Iterator[list[Polygon]]:
    """Find the regions of a map; after every strip come those that have ended in it.

    Args:
        strips: The map's rows from above, codes (rows, width) of an integer type; 0: no region.
        tolerance: Distance by which an outline may be moved, px; 0: it is that of the pixels.
    """
    tracer = Tracer(tolerance)
    for strip in strips:
        yield tracer.add(strip)
    yield tracer.end()


class Tracer:
    """Follows the outlines of a map from strip to strip."""

    def __init__(self, tolerance: float) -> None:
        self.tolerance, self.line = tolerance, 0
        self.above: np.ndarray | None = None
        self.arriving: dict[int, Outline] = {}  # by column: outlines that go down through the strip's lower edge
        self.leaving: dict[int, Outline] = {}  # and those that come up through it

    def add(self, strip: np.ndarray) -> list[Polygon]:
        """Take the next strip; returns the regions that ended."""
        above = np.zeros_like(strip[:1]) if self.above is None else self.above
        self.above = strip[-1:].copy()
        codes = np.pad(np.concatenate([above, strip]), ((0, 0), (1, 1)))
        points = key_points(codes)
        arcs, beside = outlines(codes, points, lambda paths: Simplifier(points, paths, self.tolerance).all())
        known = dict.fromkeys(outline.region.whole() for outline in self.arriving.values())
        sides = list(self._sides(arcs, points))
        self._link(arcs, sides, points)
        for one, two in beside.tolist():
            a, b = sides[one], sides[two]
            assert a is not None
            assert b is not None
            a.region.join(b.region)
        self.line += len(strip)
        going_on = {outline.region.whole() for outline in self.arriving.values()}
        met = [*known, *(side.region for side in sides if side is not None)]
        ended = dict.fromkeys(region.whole() for region in met)
        return [polygon_of(region) for region in ended if region not in going_on]

    def end(self) -> list[Polygon]:
        """The regions that reach to the map's lower edge."""
        return [] if self.above is None else self.add(np.zeros_like(self.above))

    def _sides(self, arcs: list[Arc], points: KeyPoints) -> Iterator[Outline | None]:
        """The outlines on either side of every arc, the right first; None: no region lies there."""
        place = np.stack([points.y + self.line, points.x], 1).astype(np.int32)
        for arc in arcs:
            for code, way in ((arc.right, arc.points[:-1]), (arc.left, arc.points[:0:-1])):
                yield Outline(Region(code), deque([place[way].tobytes()])) if code else None

    def _link(self, arcs: list[Arc], sides: list[Outline | None], points: KeyPoints) -> None:
        """Let every outline go on with the next one at its end."""
        leaves: dict[int, Outline] = {}  # by the state that an outline begins with
        arrives: list[tuple[int, Outline]] = []  # the state that an outline ends with
        for arc, right, left in zip(arcs, sides[::2], sides[1::2], strict=True):
            for side, first, last in ((right, arc.first, arc.last), (left, arc.last ^ 2, arc.first ^ 2)):
                if side is not None and arc.closed:
                    go_on(side, side)
                elif side is not None:
                    leaves[first] = side
                    arrives.append((last, side))
        upper = {x: 4 * k for k, x in enumerate(points.x[points.y == 0].tolist())}
        leaves |= {upper[x] + NORTH: outline for x, outline in self.leaving.items()}
        arrives += [(upper[x] + SOUTH, outline) for x, outline in self.arriving.items()]
        lower, column = 4 * int((points.y < points.rows).sum()), points.x.tolist()
        self.leaving = {column[state >> 2]: side for state, side in leaves.items() if state >= lower}
        self.arriving = {column[state >> 2]: side for state, side in arrives if state >= lower}
        lines = points.lines.tolist()
        for state, side in arrives:
            if state < lower:
                point, direction = state >> 2, state & 3
                turn = next(d % 4 for d in (direction + 1, direction, direction + 3) if lines[point][d % 4])
                go_on(side, leaves[4 * point + turn])


def polygon_of(region: Region) -> Polygon:
    """A region that has ended, as a polygon whose rings touch no point twice."""
    rings = [simple for ring in region.rings for simple in simple_rings(ring)]
    areas = [area_of(ring) for ring in rings]
    assert sum(area > 0 for area in areas) == 1, "a region has one outline"
    order = sorted(range(len(rings)), key=lambda i: areas[i] < 0)
    return Polygon(region.code, [without_straight(rings[i]) for i in order])


def simple_rings(ring: np.ndarray) -> Iterator[np.ndarray]:
    """Cut a ring where it touches itself: int32 (n, 2) of (y, x) -> int64 (n, 2) of (x, y).

    >>> ring = np.array([[0, 0], [0, 2], [1, 2], [1, 1], [2, 1], [2, 2], [1, 2], [1, 3], [3, 3], [3, 0]])
    >>> [len(simple) for simple in simple_rings(ring)]
    [4, 6]
    """
    points = ring[:, ::-1].astype(np.int64)
    if len(np.unique(points, axis=0)) == len(points):
        yield points
        return
    way: list[tuple[int, int]] = []
    place: dict[tuple[int, int], int] = {}
    for x, y in points.tolist():
        if (at := place.get((x, y))) is not None:
            yield np.array(way[at:])
            for point in way[at:]:
                del place[point]
            del way[at:]
        place[x, y] = len(way)
        way.append((x, y))
    yield np.array(way)


def area_of(ring: np.ndarray) -> float:
    """The signed area of a ring, int64 (n, 2) of (x, y) without the first point again.

    >>> area_of(np.array([[0, 0], [2, 0], [2, 1], [0, 1]]))
    2.0
    """
    (x, y), (next_x, next_y) = ring.T, np.roll(ring, -1, axis=0).T
    return float((x * next_y - next_x * y).sum()) / 2


def without_straight(ring: np.ndarray) -> np.ndarray:
    """A ring without points on a straight line between their neighbours, and with its first point again at its end.

    >>> without_straight(np.array([[0, 0], [1, 0], [2, 0], [2, 1], [0, 1]])).tolist()
    [[0, 0], [2, 0], [2, 1], [0, 1], [0, 0]]
    """
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    kept = ring[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]
    return np.concatenate([kept, kept[:1]])
