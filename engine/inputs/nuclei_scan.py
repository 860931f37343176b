"""One pass over an instance map: the table of its nuclei."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from engine.inputs.nuclei import (
    BORDERS,
    FAR,
    MERGE,
    MOST,
    ROW,
    Color,
    Nuclei,
    Read,
    ReadBox,
    ReadStack,
    _check,
    _run_starts,
)
from engine.planning.geometry import Window, grid


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


def _checked_image(pixels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if pixels.shape != shape or pixels.dtype != np.uint8:
        raise ValueError(
            f"the colours of nuclei come from an image of {pixels.dtype} {pixels.shape} where the map has {shape}; "
            "give a uint8 RGB image of the map's size"
        )
    return pixels


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


def _bordered(nuclei: Nuclei, border: str, read: ReadBox) -> Nuclei:
    """The same nuclei, after what is to be done about those at the border.

    Args:
        read: a box of image number so-and-so.
    """
    if border not in BORDERS:
        raise ValueError(f"`border_nuclei` {border}: choose from {', '.join(BORDERS)}")
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
            "pass `border_nuclei` keep, or give another map"
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
        "`border_nuclei` keep takes what there is of it, `border_nuclei` drop makes it background"
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
