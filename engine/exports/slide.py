"""A part of an output as a TIFF in tiles: OME-TIFF with its pyramid, or one picture. Memory is constant."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np

from engine import __version__
from engine.exports.asked import Asked
from engine.exports.bar import with_bar
from engine.exports.bigtiff import ASCII, LONG, RATIONAL, SHORT, Tags, rational, write_bigtiff
from engine.exports.cutout import Cutout, cutout_of
from engine.exports.encoders import PALETTE, PHOTOMETRIC, Encoder, encoder_of
from engine.exports.ome_xml import ome_xml
from engine.exports.target import check_export_file, whole_target
from engine.planning.geometry import Box, Grid, grid
from engine.storage.shard_file import threads

COARSEST = 512  # px; the coarsest level is no larger
LARGEST_TILE = 512  # px a side
TOGETHER = 4  # tiles side by side that are read at once
AHEAD = 8  # of those that are read and encoded before they are written
CENTIMETER = 3  # unit of a resolution
Made = TypeVar("Made")
Item = TypeVar("Item")


def export_slide(asked: Asked) -> str:
    """Write an OME-TIFF with its pyramid; opened by whatever reads OME-TIFF, and by OpenSlide."""
    return write_tiff(asked, pyramid=True)


def export_tiff(asked: Asked) -> str:
    """Write one picture as a TIFF in tiles, without loss unless JPEG is asked for."""
    return write_tiff(asked, pyramid=False)


def write_tiff(asked: Asked, pyramid: bool) -> str:
    """Write a TIFF, and say what it holds.

    Raises:
        ValueError: what ``cutout_of``, ``encoder_of`` and ``check_export_file`` refuse.
    """
    cutout = cutout_of(asked)
    name = asked.compression or ("jpeg" if pyramid and not cutout.label and asked.quality is None else "deflate")
    name = "jpeg" if asked.quality is not None and asked.compression is None else name
    if name == "jpeg" and cutout.label:
        raise ValueError(
            "JPEG would change the numbers of labels; leave out `quality`, or choose `compression` deflate"
        )
    encoder = encoder_of(name, cutout.channels == 3, asked.quality)
    check = partial(check_export_file, asked)
    check()
    levels = cutout.halvings(COARSEST) + 1 if pyramid else 1
    with whole_target(asked.target, check) as path:
        write_slide(cutout, path, encoder, levels, described=pyramid)
    return held(cutout, levels, name)


def write_slide(cutout: Cutout, path: Path, encoder: Encoder, levels: int, described: bool = True) -> None:
    """Write the file.

    Args:
        described: Whether it has OME-XML.
    """
    description = ome_xml(cutout, path.name.partition(".")[0] or cutout.output.path.name) if described else ""
    with path.open("wb") as file:
        write_bigtiff(file, pages(cutout, encoder, levels, description))


def held(cutout: Cutout, levels: int, compression: str) -> str:
    """What a file holds, in words."""
    height, width = cutout.size()
    scale = f", {cutout.pixel_size_um:.4g} µm a pixel" if cutout.pixel_size_um else ""
    return f"{height} x {width} px in {levels} level{'s' * (levels > 1)}{scale}, {compression}"


def pages(cutout: Cutout, encoder: Encoder, levels: int, description: str) -> Iterator[tuple[Tags, Iterable[bytes]]]:
    """The levels of a file, each with its tiles."""
    side = min(max(cutout.output.layout.chunk // 16 * 16, 16), LARGEST_TILE)  # a TIFF's tiles have multiples of 16 px
    grids = [grid(cutout.size(halvings), side) for halvings in range(levels)]
    groups = [(halvings, group) for halvings, tiles in enumerate(grids) for group in groups_of(tiles)]

    def make(item: tuple[int, Sequence[Box]]) -> list[bytes]:
        halvings, group = item
        return encoded(cutout, encoder, halvings, group, side)

    encoded_tiles = (tile for group in in_order(make, groups) for tile in group)
    all_tiles = with_bar(encoded_tiles, sum(map(len, grids)), "tiles")
    for halvings, tiles in enumerate(grids):
        facts = {} if halvings or not description else {270: (ASCII, description)}
        yield {**tags_of(cutout, encoder, halvings, side), **facts}, islice(all_tiles, len(tiles))


def groups_of(tiles: Grid) -> Iterator[Sequence[Box]]:
    """The tiles of a level, row by row, those of a few that lie side by side together."""
    rows, columns = tiles.counts
    for row in range(rows):
        for first in range(0, columns, TOGETHER):
            yield [tiles[row * columns + column] for column in range(first, min(first + TOGETHER, columns))]


def encoded(cutout: Cutout, encoder: Encoder, halvings: int, group: Sequence[Box], side: int) -> list[bytes]:
    """The bytes of tiles side by side; at the image's edge the last pixel is repeated."""
    whole = Box(group[0].y0, group[0].x0, group[-1].y1, group[-1].x1)
    pixels = cutout.read(whole, halvings)
    beyond = (side - whole.height, len(group) * side - whole.width)
    pixels = np.pad(pixels, ((0, beyond[0]), (0, beyond[1]), *((0, 0) for _ in pixels.shape[2:])), mode="edge")
    return [encoder.encode(np.ascontiguousarray(pixels[:, x : x + side])) for x in range(0, pixels.shape[1], side)]


def in_order(make: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """What is made of every item, on threads, ``AHEAD`` of them before they are asked for."""
    waiting: deque = deque()
    for item in items:
        waiting.append(threads().submit(make, item))
        if len(waiting) > AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def tags_of(cutout: Cutout, encoder: Encoder, halvings: int, side: int) -> Tags:
    """The tags of a level, but for those of its tiles' places."""
    height, width = cutout.size(halvings)
    bits = 8 * cutout.dtype.itemsize
    tags: dict[int, tuple[int, str | Sequence[int]]] = {
        256: (LONG, [width]),
        257: (LONG, [height]),
        258: (SHORT, [bits] * cutout.channels),
        277: (SHORT, [cutout.channels]),
        284: (SHORT, [1]),  # channels pixel by pixel
        305: (ASCII, f"slidefield {__version__}"),
        322: (LONG, [side]),
        323: (LONG, [side]),
        **encoder.tags,
    }
    if cutout.pixel_size_um:
        per_cm = rational(1e4 / (cutout.pixel_size_um * 2**halvings))
        tags |= {282: (RATIONAL, per_cm), 283: (RATIONAL, per_cm), 296: (SHORT, [CENTIMETER])}
    if cutout.label and cutout.label.entries and bits == 8:
        tags |= {PHOTOMETRIC: (SHORT, [PALETTE]), 320: (SHORT, color_map(cutout.label.entries))}
    return tags


def color_map(entries: Sequence[tuple[str, tuple[int, int, int]]]) -> list[int]:
    """The colours of values 0 to 255, all reds first, as 16 bits."""
    colors = np.zeros((3, 256), np.int64)
    colors[:, : len(entries)] = np.array([color[:3] for _, color in entries[:256]]).T
    return (257 * colors).ravel().tolist()
