"""Pixels as pictures that stand in the page itself: JPEG of photographs, PNG of labels, both as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

QUALITY = 85  # of JPEG
BAND = 2**22  # pixels that are read at once of an image without a pyramid


@dataclass(frozen=True)
class Picture:
    """A picture in the page.

    Args:
        uri: Data URI of the file.
        width, height: Of the file, px.
        alt: What it shows, for those who cannot see it.
        name: Word or letter that the text calls it by.
    """

    uri: str
    width: int
    height: int
    alt: str
    name: str = ""


def photograph(pixels: np.ndarray, alt: str, name: str = "", most: int | None = None) -> Picture:
    """A JPEG.

    Args:
        pixels: uint8 (c, h, w); of more than three channels the first three are shown, of two the first.
        most: Longest side, px; None: as it is.
    """
    from PIL import Image

    shown = pixels[:3].transpose(1, 2, 0) if len(pixels) >= 3 else pixels[0]
    image = Image.fromarray(np.ascontiguousarray(shown))
    if most is not None and max(image.size) > most:
        image.thumbnail((most, most), Image.Resampling.LANCZOS)
    return encoded(image, alt, name)


def drawing(labels: np.ndarray, colors: np.ndarray, alt: str, name: str = "", most: int | None = None) -> Picture:
    """A PNG of a label map in the labels' colours.

    Args:
        labels: Whole numbers (h, w).
        colors: uint8 (labels, 3), at most 256; a value beyond them has the last colour.
        most: Longest side, px: every n-th pixel is shown; None: all.
    """
    from PIL import Image

    step = 1 if most is None else -(-max(labels.shape) // most)
    indices = np.minimum(labels[::step, ::step], len(colors) - 1).astype(np.uint8)
    image = Image.fromarray(indices)
    image.putpalette(colors.astype(np.uint8).tobytes())
    return encoded(image, alt, name, "PNG")


def encoded(image: Image.Image, alt: str, name: str, format: str = "JPEG") -> Picture:
    """A picture of PIL's as a data URI."""
    file = io.BytesIO()
    if format == "JPEG":
        image.save(file, "JPEG", quality=QUALITY, optimize=True)
    else:
        image.save(file, format, optimize=True)
    text = base64.b64encode(file.getvalue()).decode()
    return Picture(f"data:image/{format.lower()};base64,{text}", image.width, image.height, alt, name)


def decoded(text: str, alt: str) -> Picture | None:
    """A PNG in base64, as an evaluation has it, as a picture; None: it is none.

    >>> decoded("no picture", "") is None
    True
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=("PNG",)) as image:
            return encoded(image.convert("RGB"), alt, "")
    except (ValueError, OSError, SyntaxError, Image.DecompressionBombError):
        return None


def reduced(read: Callable[[int, int], np.ndarray], size: Sequence[int], most: int) -> np.ndarray:
    """An image at a fraction of its size, read band by band: uint8 (c, h, w), means of squares of pixels.

    Args:
        read: From the first row and the row after the last to pixels (c, rows, width).
        size: Height and width.
        most: Longest side of the result, px.

    >>> reduced(lambda y0, y1: np.full((3, y1 - y0, 90), 7, np.uint8), (250, 90), 100).shape
    (3, 84, 30)
    """
    from PIL import Image

    factor = -(-max(size) // most)
    rows = max(BAND // (size[1] * factor), 1) * factor
    bands = []
    for y in range(0, size[0], rows):
        pixels = read(y, min(y + rows, size[0]))
        bands.append([np.asarray(Image.fromarray(np.ascontiguousarray(one)).reduce(factor)) for one in pixels])
    return np.concatenate([np.stack(band) for band in bands], axis=1)
