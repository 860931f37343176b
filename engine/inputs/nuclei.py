"""The condition maps of nuclei, from a map in which every nucleus has a number of its own.

One pass in boxes makes a table of the nuclei; after that the maps of any window, of whole nuclei also where the window
cuts them, need that window of the map (and one pixel around it) and the table: no rank holds the canvas.

Horizontal and vertical maps: HoVer-Net (Graham et al. 2019, doi:10.1016/j.media.2019.101563). Edges: pix2pixHD (Wang et
al. 2018, arXiv:1711.11585). Pixels with one id are one nucleus, also where they do not touch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from engine.planning.geometry import Window

Read = Callable[[Window], np.ndarray]
ReadStack = Callable[[int, int], np.ndarray]  # images first to last (without)
ReadBox = Callable[[int, Window], np.ndarray]  # a box of an image
Color = tuple[float, float, float]
PARTS = {"hv": 2, "color": 3, "edges": 1, "mask": 1}
PUBLISHED = {2: ("hv",), 3: ("hv", "edges"), 5: ("hv", "color"), 6: ("hv", "color", "edges")}
BORDERS = ("refuse", "keep", "drop")
FAR = 2**40  # beyond any canvas
MOST = 2**32 - 1  # the largest id; what is above it in a key is the number of the image


# A row: of one nucleus, or (id 0) of an image's background. Boxes are half-open, positions those of the canvas.
ROW = np.dtype(
    [("key", np.uint64), *((name, np.int64) for name in ("area", "y0", "x0", "y1", "x1", "sum_y", "sum_x"))]
    + [("color", np.int64, (3,))]
)
MERGE: dict[str, np.ufunc] = dict.fromkeys(("area", "sum_y", "sum_x", "color"), np.add)
MERGE |= {"y0": np.minimum, "x0": np.minimum, "y1": np.maximum, "x1": np.maximum}


def published_channels(count: int) -> tuple[str, ...]:
    """The parts that a published network with ``count`` condition channels was trained with, in their order.

    Raises:
        ValueError: no published network has that many.

    >>> published_channels(6)
    ('hv', 'color', 'edges')
    """
    if count in PUBLISHED:
        return PUBLISHED[count]
    known = "; ".join(f"{n} ({', '.join(parts)})" for n, parts in PUBLISHED.items())
    raise ValueError(
        f"the model takes {count} condition channels, but an instance map gives {known}; "
        "name the channels, or give a semantic map whole"
    )


def channel_count(channels: Sequence[str]) -> int:
    """How many channels these parts have together.

    Raises:
        ValueError: a part that is not known.
    """
    for part in channels:
        if part not in PARTS:
            raise ValueError(f"no condition channel is called {part!r}; choose from {', '.join(PARTS)}")
    return sum(PARTS[part] for part in channels)


@dataclass(frozen=True)
class Nuclei:
    """The table of a map's nuclei, and the maps of its windows.

    Args:
        shape: of the canvas, or of every image of a stack; px.
        table: ``ROW`` (n,), by ascending key; the background of every image is a row of its own, of id 0.
        dropped: bool (n,): to be treated as background.
        colors: of all nuclei and of all background, 0..255; None: their means in the image.
        colored: whether ``table`` has the sums of an image's colours.
        least_area: px; smaller nuclei have horizontal and vertical maps of 0 (HoVer-Net's training: 30).
        name: of the map, for messages.
    """

    shape: tuple[int, int]
    table: np.ndarray
    dropped: np.ndarray
    colors: tuple[Color, Color] | None = None
    colored: bool = False
    least_area: int = 0
    name: str = "the instance map"

    def __len__(self) -> int:
        return len(self._nuclei)

    @cached_property
    def _nuclei(self) -> np.ndarray:
        return self.table[(self.table["key"] & np.uint64(MOST) > 0) & ~self.dropped]

    @property
    def ids(self) -> np.ndarray:
        """uint32 (n,), ascending; in a stack image by image."""
        return (self._nuclei["key"] & np.uint64(MOST)).astype(np.uint32)

    @property
    def areas(self) -> np.ndarray:
        """int64 (n,), px."""
        return self._nuclei["area"]

    @property
    def boxes(self) -> np.ndarray:
        """int64 (n, 4): y0, x0, y1, x1; half-open, in the canvas."""
        return np.stack([self._nuclei[name] for name in ("y0", "x0", "y1", "x1")], axis=1)

    @property
    def centres(self) -> np.ndarray:
        """int64 (n, 2): y, x of the centre of mass within the box, counted from 0 and rounded half up."""
        return np.stack([_centre(self._nuclei, axis) for axis in "yx"], axis=1)

    @property
    def extents(self) -> np.ndarray:
        """int64 (n, 4): least and greatest y, then x, of a nucleus, counted from 1 in its box, less the centre's."""
        return np.stack([_reach(self._nuclei, axis)[side] for axis in "yx" for side in (0, 1)], axis=1)

    @property
    def mean_colors(self) -> np.ndarray:
        """float64 (n, 3), 0..255: of each nucleus, in the image that was given with the map."""
        return _mean_color(self._nuclei)

    @property
    def dropped_ids(self) -> np.ndarray:
        """uint32: the nuclei that count as background."""
        return (self.table["key"][self.dropped] & np.uint64(MOST)).astype(np.uint32)

    def image(self, index: int) -> Nuclei:
        """Those of one image of a stack, by their ids in it."""
        first, last = np.searchsorted(self.table["key"], np.array([index, index + 1], np.uint64) << np.uint64(32))
        table = self.table[first:last].copy()
        table["key"] &= np.uint64(MOST)
        return replace(self, table=table, dropped=self.dropped[first:last], name=f"{self.name}, image {index}")

    def within(self, window: Window) -> Nuclei:
        """Those that the maps of ``window`` and of what is inside it can need: what a rank has to be sent."""
        t = self.table
        meets = (t["y0"] <= window.y1) & (t["y1"] >= window.y0) & (t["x0"] <= window.x1) & (t["x1"] >= window.x0)
        some = meets | (t["key"] & np.uint64(MOST) == 0)
        return replace(self, table=t[some], dropped=self.dropped[some])

    # -- maps --

    def maps(self, read: Read, window: Window, channels: Sequence[str] = PUBLISHED[6]) -> np.ndarray:
        """The condition of one window, equal to that crop of the whole canvas's.

        Horizontal and vertical ("hv"): a pixel's position, counted from 1 in its nucleus's box, less the rounded centre
        of mass; what is negative over the nucleus's least, what is positive over its greatest. 0 in the background and
        in nuclei less than 2 px high or wide. Colours ("color"): of the pixel's nucleus or of the background, 0..255
        brought to [-1, 1]. Edges: 1 where one of the four neighbours has another id. Mask: 1 in nuclei.

        Args:
            read: the instance map; asked for ``window`` and one pixel around it, where the canvas has them.
            window: px; what it has outside the canvas is background without edges.
            channels: parts in the order wanted, by default the published one: horizontal, vertical; red, green, blue;
                edges.
        Returns:
            float32 (channels, height, width).
        Raises:
            ValueError: an id that the table lacks; colours are wanted but neither an image nor colours were given.
        """
        assert self.table["key"][-1] <= MOST, "of a stack, image by image"
        held = Window(window.y0 - 1, window.x0 - 1, window.y1 + 1, window.x1 + 1) & Window(0, 0, *self.shape)
        inner = window & held
        found = np.zeros((channel_count(channels), *window.shape), np.float32)
        if "color" in channels:
            found[_slice(channels, "color")] = self._row_colors[0][:, None, None]
        if not inner:
            return found
        around = self._rows_of(read(held), held)
        rows = around[inner.within(held)]
        parts: dict[str, Callable[[], np.ndarray]] = {
            "hv": lambda: np.stack([self._distances("x", rows, inner), self._distances("y", rows, inner)]),
            "color": lambda: np.moveaxis(self._row_colors[rows], -1, 0),
            "edges": lambda: edges(around)[inner.within(held)][None],
            "mask": lambda: (rows > 0)[None],
        }
        for part in channels:
            found[(_slice(channels, part), *inner.within(window))] = parts[part]()
        return found

    def without_dropped(self, instances: np.ndarray) -> np.ndarray:
        """The map, or a part of it, with background where dropped nuclei are."""
        return np.where(np.isin(instances, self.dropped_ids), instances.dtype.type(0), instances)

    def _rows_of(self, instances: np.ndarray, box: Window) -> np.ndarray:
        """int64 (h, w): the table's row of every pixel; dropped nuclei have the background's, 0."""
        _check(instances, self.name, box.shape)
        starts = _run_starts(instances)
        ids = instances.ravel()[starts].astype(np.uint64)
        rows = np.minimum(np.searchsorted(self.table["key"], ids), len(self.table) - 1)
        wrong = self.table["key"][rows] != ids
        if wrong.any():
            y, x = divmod(int(starts[np.argmax(wrong)]), box.width)
            raise ValueError(
                f"{self.name} has nucleus {int(ids[np.argmax(wrong)])} at row {box.y0 + y}, column {box.x0 + x}, "
                "which it had not when it was scanned; do not change it during a run"
            )
        rows[self.dropped[rows]] = 0
        return np.repeat(rows, np.diff(starts, append=instances.size)).reshape(instances.shape)

    def _distances(self, axis: str, rows: np.ndarray, box: Window) -> np.ndarray:
        """float32 (h, w): the map along one axis, of the pixels of ``box`` that belong to ``rows``."""
        zero, least, greatest = self._scales[axis]
        along = np.arange(box.x0, box.x1) if axis == "x" else np.arange(box.y0, box.y1)[:, None]
        distance = (along - zero[rows]).astype(np.float32)
        return distance / np.where(distance < 0, least[rows], greatest[rows]) + np.float32(0)  # no -0

    @cached_property
    def _scales(self) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """For each axis, by row: where the map is 0 (int64), and what divides its negatives and positives (float32)."""
        t = self.table
        flat = (t["y1"] - t["y0"] < 2) | (t["x1"] - t["x0"] < 2) | (t["area"] < self.least_area)
        flat[0] = True
        found = {}
        for axis in "yx":
            least, greatest = (np.where(flat, np.inf, np.abs(v)).astype(np.float32) for v in _reach(self.table, axis))
            found[axis] = (self.table[f"{axis}0"] + _centre(self.table, axis) - 1, least, greatest)
        return found

    @cached_property
    def _row_colors(self) -> np.ndarray:
        """float32 (n, 3), -1..1: by row."""
        if self.colors is not None:
            found = np.repeat([self.colors[0]], len(self.table), axis=0)
            found[0] = self.colors[1]
        elif self.colored:
            found = _mean_color(self.table)
        else:
            raise ValueError(
                f"the model takes a colour map, and {self.name} has no colours; "
                "give an image of the same size, or the colours of nuclei and background"
            )
        return (found / 127.5 - 1).astype(np.float32)


def edges(instances: np.ndarray) -> np.ndarray:
    """bool (h, w): where one of the four neighbours is another; both sides of the line.

    >>> edges(np.array([[1, 1, 2, 2]])).astype(int).tolist()
    [[0, 1, 1, 0]]
    """
    found = np.zeros(instances.shape, bool)
    for a, b in ((np.s_[:, 1:], np.s_[:, :-1]), (np.s_[1:], np.s_[:-1])):
        differ = instances[a] != instances[b]
        found[a] |= differ
        found[b] |= differ
    return found


def _slice(channels: Sequence[str], part: str) -> slice:
    first = sum(PARTS[c] for c in channels[: channels.index(part)])
    return slice(first, first + PARTS[part])


def _centre(rows: np.ndarray, axis: str) -> np.ndarray:
    """int64: the centre of mass within the box, int(v + 0.5), in whole numbers."""
    area = np.maximum(rows["area"], 1)
    return (2 * (rows[f"sum_{axis}"] - area * rows[f"{axis}0"]) + area) // (2 * area)


def _reach(rows: np.ndarray, axis: str) -> tuple[np.ndarray, np.ndarray]:
    """int64: the least and the greatest distance from the centre; a nucleus reaches its box on all sides."""
    centre = _centre(rows, axis)
    return 1 - centre, rows[f"{axis}1"] - rows[f"{axis}0"] - centre


def _mean_color(rows: np.ndarray) -> np.ndarray:
    return rows["color"] / np.maximum(rows["area"], 1)[:, None]


def _check(ids: np.ndarray, name: str, shape: tuple[int, ...]) -> None:
    if ids.dtype == bool:
        raise ValueError(f"{name} holds bool, a mask of all nuclei; number them 1, 2, ...")
    if ids.dtype.kind not in "ui":
        raise ValueError(f"{name} holds {ids.dtype}; ids of nuclei are whole numbers, such as uint32")
    if ids.shape != shape:
        raise ValueError(f"{name} has a part of shape {ids.shape} where it should have {shape}; give it a whole map")
    if ids.dtype.kind == "i" and ids.size and ids.min() < 0:
        raise ValueError(f"{name} has id {int(ids.min())}; ids are 0 (background) or more: renumber the nuclei")
    if ids.dtype.itemsize > 4 and ids.size and ids.max() > MOST:
        raise ValueError(f"{name} has id {int(ids.max())}; ids are {MOST} at the most: renumber the nuclei")


def _run_starts(ids: np.ndarray) -> np.ndarray:
    """int64: flat index of the first pixel of every run of one id within a row."""
    first = np.ones(ids.shape, bool)
    np.not_equal(ids[:, 1:], ids[:, :-1], out=first[:, 1:])
    return np.flatnonzero(first)
