"""A part of an output as one PNG or JPEG: PNG is written strip by strip, with the palette of a label map."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Sequence
from functools import partial
from typing import IO

import numpy as np

from engine.exports.asked import Asked
from engine.exports.bar import with_bar
from engine.exports.cutout import Cutout, cutout_of
from engine.exports.encoders import QUALITY
from engine.exports.target import check_export_file, whole_target
from engine.planning.geometry import Box
from engine.storage.files import bands

STRIP = 2**25  # bytes of pixels that are in memory at once
LARGEST_JPEG = 16384  # px a side; a JPEG is written from memory
UP = 2  # a filter of PNG: rows as differences from those above
GREY, RGB, PALETTE = 0, 2, 3  # kinds of PNG


def export_png(asked: Asked) -> str:
    """Write a PNG, and say what it holds."""
    cutout = cutout_of(asked)
    if cutout.dtype != np.uint8:
        raise ValueError(f"labels of {asked.out} are numbers of {cutout.dtype}; choose .tiff or .ome.tiff as TARGET")
    check = partial(check_export_file, asked)
    check()
    height, width = cutout.size()
    rows = max(STRIP // (width * cutout.channels), 1)
    boxes = [Box(y0, 0, y1, width) for y0, y1 in bands(height, min(rows, cutout.output.layout.chunk))]
    strips = (cutout.read(box) for box in with_bar(boxes, len(boxes), "strips"))
    with whole_target(asked.target, check) as path, path.open("wb") as file:
        write_png(file, cutout.size(), strips, cutout.channels, cutout.pixel_size_um, palette_of(cutout))
    return f"{height} x {width} px"


def export_jpeg(asked: Asked) -> str:
    """Write a JPEG, and say what it holds."""
    from PIL import Image

    cutout = cutout_of(asked)
    if cutout.label:
        raise ValueError("JPEG would change the numbers of labels; choose .png as TARGET, or leave out `labels`")
    height, width = cutout.size()
    if max(height, width) > LARGEST_JPEG:
        raise ValueError(
            f"a JPEG has at most {LARGEST_JPEG} px a side, and this would have {height} x {width}; choose .png or "
            ".ome.tiff as TARGET, or a coarser `level`, or a `region`"
        )
    check = partial(check_export_file, asked)
    check()
    pixels = cutout.read(Box(0, 0, height, width))
    with whole_target(asked.target, check) as path:
        Image.fromarray(pixels).save(path, "JPEG", quality=asked.quality or QUALITY)
    return f"{height} x {width} px"


def palette_of(cutout: Cutout) -> bytes:
    """The colours of a label map, as PNG has them; empty: values without names, or an image."""
    entries: Sequence[tuple[str, tuple[int, int, int]]] = cutout.label.entries if cutout.label else ()
    return b"".join(bytes(color[:3]) for _, color in entries[:256])


def write_png(
    file: IO[bytes],
    size: tuple[int, int],
    strips: Iterable[np.ndarray],
    channels: int,
    pixel_size_um: float | None = None,
    palette: bytes = b"",
) -> None:
    """Write a PNG of 8 bits strip by strip (ISO/IEC 15948).

    Args:
        strips: uint8 (rows, width) or (rows, width, 3), from top to bottom; one is in memory at a time.
        palette: RGB of values 0, 1, ...; black is added where there are values beyond them. Empty: grey or RGB.
    """
    kind = RGB if channels == 3 else PALETTE if palette else GREY
    file.write(b"\x89PNG\r\n\x1a\n")
    write_chunk(file, b"IHDR", struct.pack(">IIBBBBB", size[1], size[0], 8, kind, 0, 0, 0))
    if pixel_size_um:
        per_metre = min(round(1e6 / pixel_size_um), 2**31 - 1)
        write_chunk(file, b"pHYs", struct.pack(">IIB", per_metre, per_metre, 1))
    if palette:
        write_chunk(file, b"PLTE", palette.ljust(768, b"\0"))
    packer = zlib.compressobj(4)
    above = np.zeros((1, size[1] * channels), np.uint8)
    for strip in strips:
        rows = np.concatenate([above, strip.reshape(len(strip), -1)])
        filtered = np.empty((len(strip), rows.shape[1] + 1), np.uint8)
        filtered[:, 0], filtered[:, 1:] = UP, rows[1:] - rows[:-1]
        above = rows[-1:]
        write_chunk(file, b"IDAT", packer.compress(filtered.data))
    write_chunk(file, b"IDAT", packer.flush())
    write_chunk(file, b"IEND", b"")


def write_chunk(file: IO[bytes], name: bytes, data: bytes) -> None:
    """Write a chunk of a PNG with its checksum."""
    file.write(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(name))))
