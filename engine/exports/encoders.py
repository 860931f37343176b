"""Pixels as the tiles of a TIFF: how each compression encodes one, and the tags that say so."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from engine.exports.bigtiff import SHORT, Tags
from engine.storage.shard_file import ZSTD

QUALITY = 90  # of JPEG
COMPRESSION, PHOTOMETRIC, PREDICTOR, SUBSAMPLING, BLACK_WHITE = 259, 262, 317, 530, 532  # tags
GREY, RGB, PALETTE, YCBCR = 1, 2, 3, 6  # how colours are said


@dataclass(frozen=True)
class Encoder:
    """A compression.

    Args:
        encode: From pixels (h, w) or (h, w, 3) to bytes.
        tags: Those that say how they are to be read.
    """

    encode: Callable[[np.ndarray], bytes]
    tags: Tags = field(default_factory=dict)


def jpeg(color: bool, quality: int) -> Encoder:
    """JPEG; colours at half size each way, as scanners have them."""
    from PIL import Image

    def encode(pixels: np.ndarray) -> bytes:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=2)
        return file.getvalue()

    tags = {COMPRESSION: (SHORT, [7]), PHOTOMETRIC: (SHORT, [YCBCR if color else GREY])}
    return Encoder(encode, {**tags, SUBSAMPLING: (SHORT, [2, 2])} if color else tags)


def lossless(name: str, color: bool) -> Encoder:
    """Differences of neighbours along a row (TIFF 6.0, predictor 2), compressed; or pixels as they are."""
    photometric = {PHOTOMETRIC: (SHORT, [RGB if color else GREY])}
    if name == "none":
        return Encoder(lambda pixels: pixels.tobytes(), {COMPRESSION: (SHORT, [1]), **photometric})
    pack, number = PACKERS[name]

    def encode(pixels: np.ndarray) -> bytes:
        differences = pixels.copy()
        differences[:, 1:] -= pixels[:, :-1]
        return pack(differences.tobytes())

    return Encoder(encode, {COMPRESSION: (SHORT, [number]), PREDICTOR: (SHORT, [2]), **photometric})


PACKERS: Mapping[str, tuple[Callable[[bytes], bytes], int]] = {
    "deflate": (lambda data: zlib.compress(data, 4), 8),
    "zstd": (lambda data: bytes(ZSTD.encode(data)), 50000),
}
COMPRESSIONS = ("jpeg", *PACKERS, "none")


def encoder_of(name: str, color: bool, quality: int | None) -> Encoder:
    """The compression of a name.

    Raises:
        ValueError: there is none, or it has no quality.
    """
    if name not in COMPRESSIONS:
        raise ValueError(f"`compression` is {name!r}; choose {', '.join(COMPRESSIONS)}")
    if name == "jpeg":
        return jpeg(color, quality or QUALITY)
    if quality is not None:
        raise ValueError(f"`quality` is of JPEG, and {name} keeps every pixel; leave out `quality`, or choose jpeg")
    return lossless(name, color)
