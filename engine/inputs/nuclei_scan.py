"""One pass over the instance maps of one image or of a stack: the table of their nuclei."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from engine.diffusion.boxes import ReadImageBox
from engine.inputs.nuclei import BORDERS, FAR, LARGEST_ID, ROW, Color, Flat, Nuclei, check_ids, run_starts
from engine.inputs.nuclei_pieces import find_pieces
from engine.inputs.nuclei_rows import merged, rows_of_runs
from engine.planning.geometry import Box, grid


def scan_nuclei(
    read: ReadImageBox,
    shape: tuple[int, int],
    images: int = 1,
    *,
    pixels: ReadImageBox | None = None,
    colors: tuple[Color, Color] | None = None,
    border: str = "refuse",
    least_area: int = 0,
    split: bool = False,
    empty: bool = False,
    side: int = 2048,
    name: str = "the instance map",
) -> Nuclei:
    """The table of the nuclei of one map, or of a stack of maps that have nothing to do with one another.

    One pass, with memory for a box and the table. Ids may repeat from image to image: a nucleus is known by the image's
    number times 2^32 plus its id, and ``Nuclei.image`` gives an image's own table.

    Args:
        read: Reader of the map of an image: integers (height, width); 0 is background.
        shape: Height and width of every image, px.
        images: Number of images in the stack.
        pixels: Reader of a picture uint8 (3, height, width) of each image, which the mean colours are taken from.
        colors: Colours of all nuclei and of all background, instead.
        border: What becomes of nuclei that touch the border of an image: "refuse", "keep" what there is of them, "drop"
            (treat as background), "published" (kept, but with distance maps of 0 where they begin in the first two rows
            or columns, for there the nuclei system cuts an empty box).
        least_area: Area below which the distance maps of a nucleus are 0, px.
        split: Whether parts of one id that do not touch have distance maps of their own.
        empty: Whether there may be nothing but background.
        side: Height and width of the boxes that are read, px; changes nothing else.
        name: Name of the map, for messages.
    Raises:
        ValueError: no map of whole numbers from 0 to 2^32 - 1; a nucleus cut by the border; nothing but background in
            any image.

    >>> def read(image, box):
    ...     return np.eye(4, dtype=int)[box.within(Box(0, 0, 4, 4))]
    >>> scan_nuclei(read, (4, 4), border="keep").table[["key", "area"]].tolist()  # the background, and one nucleus
    [(0, 12), (1, 4)]
    """
    if len(shape) != 2:
        raise ValueError(f"{name} has shape {tuple(shape)}; it needs two dimensions (height, width)")

    def parts() -> Iterator[np.ndarray]:
        for image in range(images):
            for box in grid(shape, side):
                ids = read(image, box)
                check_ids(ids, name, box.shape)
                shown = None if pixels is None else check_colors(pixels(image, box), (3, *box.shape))
                yield _merged(_runs(ids, image, box, shown))

    table = _total(parts(), images)
    pieces = find_pieces(read, shape, images, side) if split else None
    flat = Flat(least_area, border == "published")
    nuclei = Nuclei(shape, table, np.zeros(len(table), bool), colors, pixels is not None, name, flat, pieces)
    return nuclei if empty and not len(nuclei) else _bordered(nuclei, border, read)


def check_colors(pixels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Refuse a picture, or a stack of them, that is not uint8 RGB of the map's size."""
    if pixels.shape != shape or pixels.dtype != np.uint8:
        raise ValueError(
            f"the colours of nuclei come from an image of {pixels.dtype} {pixels.shape} where the map has {shape}; "
            "give a uint8 RGB image of the map's size"
        )
    return pixels


def _runs(ids: np.ndarray, image: int, box: Box, rgb: np.ndarray | None) -> np.ndarray:
    """A row of the table for every run of one id within a row of pixels.

    Pixels are looked at once, and all the rest is done with runs.
    """
    starts = run_starts(ids)
    rows = rows_of_runs(ids, starts, image, box)
    if rgb is not None:
        rows["color"] = np.add.reduceat(rgb.reshape(3, -1), starts, axis=1, dtype=np.int64).T
    return rows


def _merged(rows: np.ndarray) -> np.ndarray:
    """One row for each key, by ascending key."""
    return merged(rows, rows["key"])


def _total(parts: Iterable[np.ndarray], images: int) -> np.ndarray:
    """All parts in one table, with a row for every image's background; merged whenever its rows have doubled."""
    background = np.zeros(images, ROW)
    background["key"] = np.arange(images, dtype=np.uint64) << np.uint64(32)
    background["y0"] = background["x0"] = FAR
    gathered, rows, merged_rows = [background], images, images
    for part in parts:
        gathered.append(part)
        rows += len(part)
        if rows > 2 * merged_rows:
            gathered = [_merged(np.concatenate(gathered))]
            rows = merged_rows = len(gathered[0])
    return _merged(np.concatenate(gathered))


def _bordered(nuclei: Nuclei, border: str, read: ReadImageBox) -> Nuclei:
    """The same nuclei, after those at the border were refused, kept or dropped.

    Args:
        read: Reader of the instance map of an image.
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
    touches &= table["key"] & np.uint64(LARGEST_ID) > 0
    if border in ("keep", "published") or not touches.any():
        return nuclei
    if border == "refuse":
        raise ValueError(_cut(nuclei, table[touches], read))
    inside = replace(nuclei, table=_into_background(table, touches), dropped=touches)
    if not len(inside):
        raise ValueError(
            f"{nuclei.name} has no nucleus that is not cut by the border ({touches.sum()} are); "
            "pass `border_nuclei` keep, or give another map"
        )
    return inside


def _into_background(table: np.ndarray, dropped: np.ndarray) -> np.ndarray:
    """The table with the pixels of dropped nuclei counted with their image's background."""
    counted = table.copy()
    background = np.searchsorted(table["key"], table["key"][dropped] & ~np.uint64(LARGEST_ID))
    for name in ("area", "color"):
        np.add.at(counted[name], background, table[name][dropped])
    return counted


def _cut(nuclei: Nuclei, cut: np.ndarray, read: ReadImageBox) -> str:
    """The message about the nuclei that are cut by the border."""
    image, identity = divmod(int(cut["key"][0]), LARGEST_ID + 1)
    stack = nuclei.table["key"][-1] > LARGEST_ID
    who = f"nucleus {identity}" + (f" of image {image}" if stack else "")
    others = f" (and {len(cut) - 1} more)" if len(cut) > 1 else ""
    return (
        f"{nuclei.name}: {who} is cut by the border at {_where(nuclei.shape, cut[0], identity, image, read)}{others}; "
        "`border_nuclei` keep takes what there is of it, `border_nuclei` drop makes it background"
    )


def _where(shape: tuple[int, int], row: np.ndarray, identity: int, image: int, read: ReadImageBox) -> str:
    """Text that says where on the first border that it touches the pixels of a nucleus lie."""
    height, width = shape
    y0, x0, y1, x1 = (int(row[name]) for name in ("y0", "x0", "y1", "x1"))
    for touches, line, place, across, start in (
        (y0 == 0, Box(0, x0, 1, x1), "row 0", "columns", x0),
        (y1 == height, Box(height - 1, x0, height, x1), f"row {height - 1}", "columns", x0),
        (x0 == 0, Box(y0, 0, y1, 1), "column 0", "rows", y0),
        (x1 == width, Box(y0, width - 1, y1, width), f"column {width - 1}", "rows", y0),
    ):
        if touches:
            positions = np.flatnonzero(read(image, line).ravel() == identity) + start
            return f"{place}, {across} {positions[0]} to {positions[-1]}"
    raise AssertionError("a nucleus that touches no border")
