"""One image as files: PNG, or TIFF in tiles, read one row of them at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from engine.exports.bar import with_bar
from engine.exports.parts import Part, parts_of_image
from engine.exports.pictures import channels_last, write_picture
from engine.planning.geometry import Box
from engine.storage.files import bands
from engine.storage.output import Output

LARGEST_PNG = 16384  # px a side; a PNG is written from memory, so larger images become TIFF
LARGEST_TILE = 1024  # px a side of a TIFF's tiles


def write_image(output: Output, folder: Path, suffix: str) -> None:
    """Write the files of one image: TIFF in tiles, or PNG if it is small enough."""
    tiff = suffix == ".tif" or max(output.layout.size) > LARGEST_PNG
    for part in parts_of_image(output):
        (folder / part.folder).mkdir()
        stem = folder / part.folder / "000000"
        if tiff or not part.eight_bits(output):
            write_tiles(output, part, stem.with_suffix(".tif"))
        else:
            write_picture(stem.with_suffix(".png"), whole_image(output, part))


def whole_image(output: Output, part: Part) -> np.ndarray:
    """Put an image together from its shards: uint8 (h, w) or (h, w, c)."""
    channels = output.array(part.array).shape[:-2]
    image = np.empty((*output.layout.size, *(c for c in channels if c > 1)), np.uint8)
    for box in output.layout.boxes():
        image[box.y0 : box.y1, box.x0 : box.x1] = channels_last(part.make(output.read(part.array, box)))
    return image


def write_tiles(output: Output, part: Part, path: Path) -> None:
    """Write a BigTIFF whose tiles are the output's chunks, with the size of a pixel."""
    import tifffile

    array = output.array(part.array)
    side = min(max(output.layout.chunk // 16 * 16, 16), LARGEST_TILE)  # a TIFF's tiles have multiples of 16 px a side
    color = array.ndim == 3 and array.shape[0] == 3
    per_cm = 1e4 / output.pixel_size_um
    tifffile.imwrite(
        path,
        tiles(output, part, side),
        shape=(*output.layout.size, *([3] if color else [])),
        dtype=np.uint8 if part.eight_bits(output) else array.dtype,
        bigtiff=True,
        tile=(side, side),
        photometric="rgb" if color else "minisblack",
        compression="zlib",
        compressionargs={"level": 1},
        resolution=(per_cm, per_cm),
        resolutionunit="CENTIMETER",
    )


def tiles(output: Output, part: Part, side: int) -> Iterator[np.ndarray]:
    """Read the tiles of an image, row by row: one row of tiles is in memory at a time."""
    height, width = output.layout.size
    for y0, y1 in with_bar(bands(height, side), -(-height // side), "rows of tiles"):
        band = channels_last(part.make(output.read(part.array, Box(y0, 0, y1, width))))
        for x in range(0, width, side):
            yield band[:, x : x + side]
