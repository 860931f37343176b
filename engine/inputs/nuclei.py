"""The condition maps of nuclei, from a map in which every nucleus has a number of its own.

One pass in boxes makes a table of the nuclei; after that the maps of any window, of whole nuclei also where the window
cuts them, need that window of the map (and one pixel around it) and the table: no rank holds the canvas.

Horizontal and vertical maps: HoVer-Net (Graham et al. 2019, doi:10.1016/j.media.2019.101563). Edges: pix2pixHD (Wang et
al. 2018, arXiv:1711.11585). Pixels with one id are one nucleus, also where they do not touch; only the horizontal and
vertical maps take its parts apart, where that is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from engine.diffusion.boxes import ReadBox
from engine.planning.geometry import Box

Color = tuple[float, float, float]
PARTS = {"hv": 2, "color": 3, "edges": 1, "mask": 1}
PUBLISHED = {2: ("hv",), 3: ("hv", "edges"), 5: ("hv", "color"), 6: ("hv", "color", "edges")}
BORDERS = ("refuse", "keep", "drop", "published")
FAR = 2**40  # beyond any canvas
LARGEST_ID = 2**32 - 1  # the largest id: the lower 32 bits of a key are the id, the upper 32 the number of the image

# A row of the table: one nucleus, or (id 0) an image's background. Boxes are half-open; positions are the image's, px.
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
class Flat:
    """Which nuclei have horizontal and vertical maps of 0.

    Args:
        least_area: Those of a smaller area, px; 0: those less than 2 px high or wide.
        at_border: Whether those too that begin in the first two rows or columns.
    """

    least_area: int = 0
    at_border: bool = False

    def of(self, rows: np.ndarray) -> np.ndarray:
        """bool (n,): whether the maps of each row are 0."""
        thin = (rows["y1"] - rows["y0"] < 2) | (rows["x1"] - rows["x0"] < 2)
        flat = rows["area"] < self.least_area if self.least_area else thin
        return flat | (self.at_border & ((rows["y0"] < 2) | (rows["x0"] < 2)))


@dataclass(frozen=True)
class Pieces:
    """The parts of nuclei that fall apart; see ``nuclei_pieces``.

    Args:
        rows: ``ROW`` (n,): a row a part.
        runs: Where the parts are: key of the nucleus, flat index of a run's first pixel in its image, number of the
            part; image by image in order of position.
        width: Width of an image, px.
    """

    rows: np.ndarray
    runs: np.ndarray
    width: int

    def image(self, index: int) -> Pieces:
        """The parts of one image of a stack; they keep their numbers."""
        first, last = np.searchsorted(self.runs["key"] >> np.uint64(32), np.array([index, index + 1], np.uint64))
        runs = self.runs[first:last].copy()
        runs["key"] &= np.uint64(LARGEST_ID)
        return replace(self, runs=runs)

    def at(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """int64: the numbers of the parts that pixels of nuclei that fall apart belong to."""
        return self.runs["piece"][np.searchsorted(self.runs["at"], y * self.width + x, side="right") - 1]


@dataclass(frozen=True)
class Nuclei:
    """The table of the nuclei of a map or of a stack of maps, and the condition maps that are made from it.

    Args:
        shape: Height and width of the map, or of every map of a stack, px.
        table: ``ROW`` (n,), by ascending key; the background of every image is a row of its own, of id 0.
        dropped: bool (n,), whether a row's nucleus is treated as background.
        colors: Colour of all nuclei and of all background, 0..255; None: their means in an image.
        colored: Whether ``table`` has the sums of an image's colours.
        name: Name of the map, for messages.
        flat: Which nuclei have horizontal and vertical maps of 0.
        pieces: The parts of nuclei that fall apart, which have such maps of their own; None: a nucleus is one.
    """

    shape: tuple[int, int]
    table: np.ndarray
    dropped: np.ndarray
    colors: tuple[Color, Color] | None = None
    colored: bool = False
    name: str = "the instance map"
    flat: Flat = Flat()
    pieces: Pieces | None = None

    def __len__(self) -> int:
        """Number of nuclei that are not dropped."""
        return int(((self.table["key"] & np.uint64(LARGEST_ID) > 0) & ~self.dropped).sum())

    def image(self, index: int) -> Nuclei:
        """The nuclei of one image of a stack, by their ids in it."""
        first, last = np.searchsorted(self.table["key"], np.array([index, index + 1], np.uint64) << np.uint64(32))
        table = self.table[first:last].copy()
        table["key"] &= np.uint64(LARGEST_ID)
        pieces = None if self.pieces is None else self.pieces.image(index)
        name = f"{self.name}, image {index}"
        return replace(self, table=table, dropped=self.dropped[first:last], pieces=pieces, name=name)

    # -- maps --

    @property
    def held(self) -> tuple[np.ndarray, ...]:
        """The arrays that a rank holds."""
        return (self.table,) if self.pieces is None else (self.table, self.pieces.rows, self.pieces.runs)

    def maps(
        self,
        read: ReadBox,
        window: Box,
        channels: Sequence[str] = PUBLISHED[6],
        colors: Callable[[Box, np.ndarray], np.ndarray] | None = None,
    ) -> np.ndarray:
        """The condition maps of one window, equal to that crop of the whole image's.

        Horizontal and vertical ("hv"): a pixel's position, counted from 1 in its nucleus's box, less the rounded centre
        of mass; what is negative over the nucleus's least, what is positive over its greatest. 0 in the background and
        in nuclei that are ``flat``. Colours ("color"): of the pixel's nucleus or of the background, 0..255
        brought to [-1, 1]. Edges: 1 where one of the four neighbours has another id. Mask: 1 in nuclei.

        Args:
            read: Reader of the instance map; it is asked for ``window`` and one pixel around it, inside the image.
            window: Box in px; what of it lies outside the image is background without edges.
            channels: Parts in the order wanted, by default the published one: horizontal, vertical; red, green, blue;
                edges.
            colors: Function from the window and a mask of its nuclei to the colours, which come from elsewhere then.
        Returns:
            float32 (channels, height, width).
        Raises:
            ValueError: an id that the table lacks; colours are wanted but neither an image nor colours were given.
        """
        assert self.table["key"][-1] <= LARGEST_ID, "a stack: take its images one by one"
        held = Box(window.y0 - 1, window.x0 - 1, window.y1 + 1, window.x1 + 1) & Box(0, 0, *self.shape)
        inner = window & held
        maps = np.zeros((channel_count(channels), *window.shape), np.float32)
        if "color" in channels and colors is None:
            maps[_slice(channels, "color")] = self._row_colors[0][:, None, None]
        nuclear = np.zeros(window.shape, bool)
        if not inner:
            if "color" in channels and colors is not None:
                maps[_slice(channels, "color")] = colors(window, nuclear)
            return maps
        around = self._rows_of(read(held), held)
        rows = around[inner.within(held)]
        parts: dict[str, Callable[[], np.ndarray]] = {
            "hv": lambda: self._both_distances(rows, inner),
            "color": lambda: np.moveaxis(self._row_colors[rows], -1, 0),
            "edges": lambda: edges(around)[inner.within(held)][None],
            "mask": lambda: (rows > 0)[None],
        }
        for part in channels:
            if part != "color" or colors is None:
                maps[(_slice(channels, part), *inner.within(window))] = parts[part]()
        if "color" in channels and colors is not None:
            nuclear[inner.within(window)] = rows > 0
            maps[_slice(channels, "color")] = colors(window, nuclear)
        return maps

    def without_dropped(self, instances: np.ndarray) -> np.ndarray:
        """An instance map, or a part of it, with background where dropped nuclei are."""
        dropped_ids = (self.table["key"][self.dropped] & np.uint64(LARGEST_ID)).astype(np.uint32)
        return np.where(np.isin(instances, dropped_ids), instances.dtype.type(0), instances)

    def _rows_of(self, instances: np.ndarray, box: Box) -> np.ndarray:
        """int64 (h, w): the table's row of every pixel; dropped nuclei have the background's, 0."""
        check_ids(instances, self.name, box.shape)
        starts = run_starts(instances)
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

    def _both_distances(self, rows: np.ndarray, box: Box) -> np.ndarray:
        """float32 (2, h, w): the horizontal and the vertical map of the pixels of ``box`` that belong to ``rows``."""
        if self.pieces is not None and (torn := self._torn[rows]).any():
            y, x = np.nonzero(torn)
            rows = rows.copy()
            rows[y, x] = len(self.table) + self.pieces.at(y + box.y0, x + box.x0)
        return np.stack([self._distances("x", rows, box), self._distances("y", rows, box)])

    @cached_property
    def _torn(self) -> np.ndarray:
        """bool (n,): whether a row's nucleus falls apart."""
        assert self.pieces is not None
        return np.isin(self.table["key"], self.pieces.runs["key"])

    def _distances(self, axis: str, rows: np.ndarray, box: Box) -> np.ndarray:
        """float32 (h, w): the map along one axis, of the pixels of ``box`` that belong to ``rows``."""
        zero, least, greatest = self._scales[axis]
        along = np.arange(box.x0, box.x1) if axis == "x" else np.arange(box.y0, box.y1)[:, None]
        distance = (along - zero[rows]).astype(np.float32)
        return distance / np.where(distance < 0, least[rows], greatest[rows]) + np.float32(0)  # no -0

    @cached_property
    def _scales(self) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """For each axis, by row: where the map is 0 (int64), and what divides its negatives and positives (float32)."""
        rows = self.table if self.pieces is None else np.concatenate([self.table, self.pieces.rows])
        flat = self.flat.of(rows)
        flat[0] = True  # the background
        scales = {}
        for axis in "yx":
            least, greatest = (np.where(flat, np.inf, np.abs(v)).astype(np.float32) for v in _reach(rows, axis))
            scales[axis] = (rows[f"{axis}0"] + _centre(rows, axis) - 1, least, greatest)
        return scales

    @cached_property
    def _row_colors(self) -> np.ndarray:
        """float32 (n, 3), -1..1: the colour of every row."""
        if self.colors is not None:
            colors = np.repeat([self.colors[0]], len(self.table), axis=0)
            colors[0] = self.colors[1]
        elif self.colored:
            colors = self.table["color"] / np.maximum(self.table["area"], 1)[:, None]
        else:
            raise ValueError(
                f"the model takes a colour map, and {self.name} has no colours; "
                "give an image of the same size, or the colours of nuclei and background"
            )
        return (colors / 127.5 - 1).astype(np.float32)


def edges(instances: np.ndarray) -> np.ndarray:
    """bool (h, w): where one of the four neighbours has another value; both sides of the line between them.

    >>> edges(np.array([[1, 1, 2, 2]])).astype(int).tolist()
    [[0, 1, 1, 0]]
    """
    lines = np.zeros(instances.shape, bool)
    for a, b in ((np.s_[:, 1:], np.s_[:, :-1]), (np.s_[1:], np.s_[:-1])):
        differ = instances[a] != instances[b]
        lines[a] |= differ
        lines[b] |= differ
    return lines


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


def check_ids(ids: np.ndarray, name: str, shape: tuple[int, ...]) -> None:
    """Refuse a part of an instance map that has another shape, or numbers that are no ids."""
    if ids.dtype == bool:
        raise ValueError(f"{name} holds bool, a mask of all nuclei; number them 1, 2, ...")
    if ids.dtype.kind not in "ui":
        raise ValueError(f"{name} holds {ids.dtype}; ids of nuclei are whole numbers, such as uint32")
    if ids.shape != shape:
        raise ValueError(f"{name} has a part of shape {ids.shape} where it should have {shape}; give it a whole map")
    if ids.dtype.kind == "i" and ids.size and ids.min() < 0:
        raise ValueError(f"{name} has id {int(ids.min())}; ids are 0 (background) or more: renumber the nuclei")
    if ids.dtype.itemsize > 4 and ids.size and ids.max() > LARGEST_ID:
        raise ValueError(f"{name} has id {int(ids.max())}; ids are {LARGEST_ID} at the most: renumber the nuclei")


def run_starts(ids: np.ndarray) -> np.ndarray:
    """int64: flat index of the first pixel of every run of one id within a row."""
    first = np.ones(ids.shape, bool)
    np.not_equal(ids[:, 1:], ids[:, :-1], out=first[:, 1:])
    return np.flatnonzero(first)
