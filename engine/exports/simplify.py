"""Arcs with fewer points, which neither cross nor touch one another more than they did.

Douglas and Peucker (1973, doi:10.3138/FM57-6770-U75U-7727): a chord stands for a part of an arc where no point of that
part is further from it than a tolerance. A chord is taken only where no other key point of the map lies between it and
the part (de Berg, van Kreveld and Schirra 1998, doi:10.1559/152304098782383007): then no two chords cross. Ends of arcs
stay where they are, and no region vanishes, however small.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from engine.exports.outlines import KeyPoints


@dataclass
class Simplifier:
    """Simplifies the arcs of one strip.

    Args:
        points: The strip's key points.
        paths: The key points along every arc; where first and last are the same, it is a ring.
        tolerance: Distance, px; 0: all points are kept.
    """

    points: KeyPoints
    paths: list[list[int]]
    tolerance: float
    yx: np.ndarray = field(init=False)
    x: list[int] = field(init=False)
    first: list[int] = field(init=False)
    place: dict[int, tuple[int, int]] = field(init=False)

    def __post_init__(self) -> None:
        self.yx = np.stack([self.points.y, self.points.x], 1)
        self.x = self.points.x.tolist()
        self.first = np.searchsorted(self.points.y, np.arange(self.points.rows + 2)).tolist()
        self.place = {k: (a, i) for a, path in enumerate(self.paths) for i, k in enumerate(path[1:-1], 1)}

    def all(self) -> list[list[int]]:
        """The points of every arc that are kept."""
        if not self.tolerance:
            return self.paths
        kept = [self.kept(arc, self.anchors(path)) for arc, path in enumerate(self.paths)]
        ends = Counter(frozenset((path[0], path[-1])) for path, k in zip(self.paths, kept, strict=True) if len(k) == 2)
        for arc, path in enumerate(self.paths):
            flat = len(kept[arc]) == 2 and len(path) > 2 and ends[frozenset((path[0], path[-1]))] > 1
            if flat or (path[0] == path[-1] and len(kept[arc]) < 4):
                kept[arc] = self.kept(arc, self.bent(path, kept[arc]))
        return [[path[i] for i in k] for path, k in zip(self.paths, kept, strict=True)]

    def anchors(self, path: list[int]) -> list[int]:
        """Places along an arc that are kept: its ends, and of a ring the point that is furthest from its first."""
        last = len(path) - 1
        if path[0] != path[-1]:
            return [0, last]
        away = np.square(self.yx[path] - self.yx[path[0]]).sum(1)
        return [0, int(away.argmax()), last]

    def bent(self, path: list[int], kept: list[int]) -> list[int]:
        """The places that are kept, and the one furthest from the chord between the first two: an area needs it."""
        a, b = self.yx[path[kept[0]]], self.yx[path[kept[1]]]
        return sorted({*kept, int(distances(self.yx[path], a, b).argmax())})

    def kept(self, arc: int, places: list[int]) -> list[int]:
        """Places along an arc that are kept; at least the given ones."""
        path, kept = self.paths[arc], [places[0]]
        for end in places[1:]:
            waiting = [end]
            while waiting:
                first, last = kept[-1], waiting[-1]
                if last - first > 1:
                    part = self.yx[path[first : last + 1]]
                    away = distances(part, part[0], part[-1])
                    if away.max() > self.tolerance or not self.clear(arc, first, last, part):
                        waiting.append(first + int(away.argmax()))
                        continue
                kept.append(waiting.pop())
        return kept

    def clear(self, arc: int, first: int, last: int, part: np.ndarray) -> bool:
        """Whether no other key point lies between a part of an arc and its chord, nor on the chord.

        What lies on the strip's lower edge is not all known here: no chord runs along it.
        """
        if part[0, 0] == part[-1, 0] == self.points.rows:
            return False
        (y0, x0), (y1, x1) = part.min(0).tolist(), part.max(0).tolist()
        ends, ring = (self.paths[arc][first], self.paths[arc][last]), part.tolist()
        for y in range(y0, y1 + 1):
            low = bisect_left(self.x, x0, self.first[y], self.first[y + 1])
            for k in range(low, bisect_right(self.x, x1, low, self.first[y + 1])):
                of, place = self.place.get(k, (-1, 0))
                if k in ends or (of == arc and first < place < last):
                    continue
                if encloses(ring, y, self.x[k]):
                    return False
        return True


def distances(points: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """float64 (n,): the distances of points from the segment between two points, or from the point that both are."""
    along, away = b - a, points - a
    length = float(along @ along)
    share = np.clip(away @ along / length, 0, 1) if length else np.zeros(len(points))
    return np.hypot(*(away - share[:, None] * along).T)


def encloses(ring: list[list[int]], y: int, x: int) -> bool:
    """Whether a point lies on the segment from a ring's last point to its first, or is wound around by the ring.

    >>> encloses([[0, 0], [0, 4], [4, 4], [4, 0]], 1, 2), encloses([[0, 0], [0, 4], [4, 4], [4, 0]], 9, 2)
    (True, False)
    >>> encloses([[0, 0], [0, 4], [4, 4]], 2, 2)
    True
    """
    winding, (a_y, a_x) = 0, ring[-1]
    for i, (b_y, b_x) in enumerate(ring):
        side = (b_x - a_x) * (y - a_y) - (b_y - a_y) * (x - a_x)
        if i == 0 and side == 0 and min(a_y, b_y) <= y <= max(a_y, b_y) and min(a_x, b_x) <= x <= max(a_x, b_x):
            return True
        if a_y <= y < b_y and side > 0:
            winding += 1
        elif b_y <= y < a_y and side < 0:
            winding -= 1
        a_y, a_x = b_y, b_x
    return winding != 0
