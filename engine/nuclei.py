"""The condition maps of nuclei, from a map in which every nucleus has a number of its own.

One pass in boxes makes a table of the nuclei; after that the maps of any window, of whole nuclei also where the window
cuts them, need that window of the map (and one pixel around it) and the table: no rank holds the canvas.

Horizontal and vertical maps: HoVer-Net (Graham et al. 2019, doi:10.1016/j.media.2019.101563). Edges: pix2pixHD (Wang et
al. 2018, arXiv:1711.11585). Pixels with one id are one nucleus, also where they do not touch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from engine.geometry import Window, grid

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


# ---- the table ----------------------------------------------------------------------------------


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


# ---- the pass over the map ----------------------------------------------------------------------


def scan_nuclei(
    read: Read,
    shape: tuple[int, int],
    *,
    image: Read | None = None,
    colors: tuple[Color, Color] | None = None,
    border: str = "refuse",
    least_area: int = 0,
    side: int = 2048,
    name: str = "the instance map",
) -> Nuclei:
    """The table of the nuclei of a map, in one pass; memory for a box and the table.

    Args:
        read: the map: unsigned or signed integers (height, width) of a box of it; 0 is background.
        shape: of the map, px.
        image: uint8 (3, height, width) of a box of an image of the same size, for mean colours.
        colors: of nuclei and background, instead.
        border: what becomes of nuclei that touch the border of the canvas: "refuse", "keep" what there is of them,
            "drop" (treat as background).
        least_area: px; smaller nuclei have horizontal and vertical maps of 0.
        side: of the boxes, px; changes nothing else.
        name: of the map, for messages.
    Raises:
        ValueError: no map of whole numbers from 0 to 2^32 - 1; a nucleus cut by the border; nothing but background.

    >>> found = scan_nuclei(lambda box: np.eye(4, dtype=int)[box.within(Window(0, 0, 4, 4))], (4, 4), border="keep")
    >>> found.ids.tolist(), found.areas.tolist(), found.boxes.tolist(), found.centres.tolist()
    ([1], [4], [[0, 0, 4, 4]], [[2, 2]])
    """
    if len(shape) != 2:
        raise ValueError(f"{name} has shape {tuple(shape)}; it needs two dimensions (height, width)")

    def tallies() -> Iterable[np.ndarray]:
        for box in grid(shape, side):
            ids = read(box)
            _check(ids, name, box.shape)
            yield _merged(_runs(ids, box, image and _checked_image(image(box), (3, *box.shape))))

    table = _total(tallies(), images=1)
    found = Nuclei(shape, table, np.zeros(len(table), bool), colors, image is not None, least_area, name)
    return _bordered(found, border, lambda _, box: read(box))


def scan_stack(
    read: ReadStack,
    shape: tuple[int, int, int],
    *,
    image: ReadStack | None = None,
    colors: tuple[Color, Color] | None = None,
    border: str = "refuse",
    least_area: int = 0,
    side: int = 2048,
    name: str = "the instance map",
) -> Nuclei:
    """The table of a stack (images, height, width) of maps that have nothing to do with one another.

    Ids may repeat from image to image: a nucleus is known by the image's number times 2^32 plus its id.
    ``Nuclei.image`` gives an image's own table. An image may be nothing but background, the whole stack may not.

    Args:
        read: images first to last (without) of the stack.
        image: uint8 (last - first, 3, height, width).
        side: as many images are read at once as have that many pixels squared, at least one.
        colors, border, least_area, name: as for one map.
    Raises:
        ValueError: as for one map.
    """
    if len(shape) != 3:
        raise ValueError(f"{name} has shape {tuple(shape)}; a stack needs three dimensions (image, height, width)")
    count, height, width = shape
    at_once = max(side * side // max(height * width, 1), 1)

    def tallies() -> Iterable[np.ndarray]:
        for first in range(0, count, at_once):
            last = min(first + at_once, count)
            ids = read(first, last)
            _check(ids, name, (last - first, height, width))
            rgb = image and _checked_image(image(first, last), (last - first, 3, height, width))
            yield _merged(_runs_of_stack(ids, first, rgb))

    table = _total(tallies(), images=count)
    found = Nuclei((height, width), table, np.zeros(len(table), bool), colors, image is not None, least_area, name)
    return _bordered(
        found, border, lambda index, box: read(index, index + 1)[0][box.within(Window(0, 0, *found.shape))]
    )


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


def _checked_image(pixels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if pixels.shape != shape or pixels.dtype != np.uint8:
        raise ValueError(
            f"the colours of nuclei come from an image of {pixels.dtype} {pixels.shape} where the map has {shape}; "
            "give a uint8 RGB image of the map's size"
        )
    return pixels


def _run_starts(ids: np.ndarray) -> np.ndarray:
    """int64: flat index of the first pixel of every run of one id within a row."""
    first = np.ones(ids.shape, bool)
    np.not_equal(ids[:, 1:], ids[:, :-1], out=first[:, 1:])
    return np.flatnonzero(first)


def _runs(ids: np.ndarray, box: Window, rgb: np.ndarray | None) -> np.ndarray:
    """A row of the table for every run in ``box``: pixels are looked at once, all the rest is done with runs."""
    starts = _run_starts(ids)
    y, x = np.divmod(starts, box.width)
    rows = np.zeros(len(starts), ROW)
    rows["key"] = ids.ravel()[starts]
    rows["area"] = np.diff(starts, append=ids.size)
    rows["y0"], rows["x0"] = y + box.y0, x + box.x0
    rows["y1"], rows["x1"] = rows["y0"] + 1, rows["x0"] + rows["area"]
    rows["sum_y"] = rows["y0"] * rows["area"]
    rows["sum_x"] = (rows["x0"] + rows["x1"] - 1) * rows["area"] // 2
    if rgb is not None:
        rows["color"] = np.add.reduceat(rgb.reshape(3, -1), starts, axis=1, dtype=np.int64).T
    return rows


def _runs_of_stack(ids: np.ndarray, first: int, rgb: np.ndarray | None) -> np.ndarray:
    """The same for images ``first`` and on, laid under one another."""
    count, height, width = ids.shape
    tall = None if rgb is None else rgb.transpose(1, 0, 2, 3).reshape(3, -1, width)
    rows = _runs(ids.reshape(-1, width), Window(0, 0, count * height, width), tall)
    index = rows["y0"] // height
    rows["key"] |= (index + first).astype(np.uint64) << np.uint64(32)
    rows["y0"] -= index * height
    rows["y1"] -= index * height
    rows["sum_y"] -= index * height * rows["area"]
    return rows


def _merged(rows: np.ndarray) -> np.ndarray:
    """One row for each key, by ascending key."""
    rows = rows[np.argsort(rows["key"], kind="stable")]
    first = np.flatnonzero(np.concatenate([[True], rows["key"][1:] != rows["key"][:-1]]))
    found = rows[first]
    for name, how in MERGE.items():
        found[name] = how.reduceat(rows[name], first)
    return found


def _total(tallies: Iterable[np.ndarray], images: int) -> np.ndarray:
    """All of them in one table, with a row for every image's background; merged whenever they have doubled."""
    background = np.zeros(images, ROW)
    background["key"] = np.arange(images, dtype=np.uint64) << np.uint64(32)
    background["y0"] = background["x0"] = FAR
    parts, size = [background], images
    for part in tallies:
        parts.append(part)
        if sum(map(len, parts)) > 2 * size:
            parts = [_merged(np.concatenate(parts))]
            size = len(parts[0])
    return _merged(np.concatenate(parts))


# ---- the border ---------------------------------------------------------------------------------


def _bordered(nuclei: Nuclei, border: str, read: ReadBox) -> Nuclei:
    """The same nuclei, after what is to be done about those at the border.

    Args:
        read: a box of image number so-and-so.
    """
    if border not in BORDERS:
        raise ValueError(f"--border-nuclei {border}: choose from {', '.join(BORDERS)}")
    table, (height, width) = nuclei.table, nuclei.shape
    if not len(nuclei):
        raise ValueError(
            f"{nuclei.name} is nothing but background (0) in {height} x {width} px; "
            "give every nucleus a number of its own from 1, or give a semantic map whole"
        )
    touches = (table["y0"] == 0) | (table["x0"] == 0) | (table["y1"] == height) | (table["x1"] == width)
    touches &= table["key"] & np.uint64(MOST) > 0
    if border == "keep" or not touches.any():
        return nuclei
    if border == "refuse":
        raise ValueError(_cut(nuclei, table[touches], read))
    found = replace(nuclei, table=_into_background(table, touches), dropped=touches)
    if not len(found):
        raise ValueError(
            f"{nuclei.name} has no nucleus that is not cut by the border ({touches.sum()} are); "
            "pass --border-nuclei keep, or give another map"
        )
    return found


def _into_background(table: np.ndarray, dropped: np.ndarray) -> np.ndarray:
    """The table with the pixels of dropped nuclei counted with their image's background."""
    found = table.copy()
    background = np.searchsorted(table["key"], table["key"][dropped] & ~np.uint64(MOST))
    for name in ("area", "color"):
        np.add.at(found[name], background, table[name][dropped])
    return found


def _cut(nuclei: Nuclei, cut: np.ndarray, read: ReadBox) -> str:
    """What to say of the nuclei that are cut by the border."""
    image, identity = divmod(int(cut["key"][0]), MOST + 1)
    stack = nuclei.table["key"][-1] > MOST
    who = f"nucleus {identity}" + (f" of image {image}" if stack else "")
    others = f" (and {len(cut) - 1} more)" if len(cut) > 1 else ""
    return (
        f"{nuclei.name}: {who} is cut by the border at {_where(nuclei.shape, cut[0], identity, image, read)}{others}; "
        "--border-nuclei keep takes what there is of it, --border-nuclei drop makes it background"
    )


def _where(shape: tuple[int, int], row: np.ndarray, identity: int, image: int, read: ReadBox) -> str:
    """The pixels of a nucleus on the first border that it touches."""
    height, width = shape
    y0, x0, y1, x1 = (int(row[name]) for name in ("y0", "x0", "y1", "x1"))
    for touches, line, place, across, start in (
        (y0 == 0, Window(0, x0, 1, x1), "row 0", "columns", x0),
        (y1 == height, Window(height - 1, x0, height, x1), f"row {height - 1}", "columns", x0),
        (x0 == 0, Window(y0, 0, y1, 1), "column 0", "rows", y0),
        (x1 == width, Window(y0, width - 1, y1, width), f"column {width - 1}", "rows", y0),
    ):
        if touches:
            found = np.flatnonzero(read(image, line).ravel() == identity) + start
            return f"{place}, {across} {found[0]} to {found[-1]}"
    raise AssertionError("a nucleus that touches no border")
