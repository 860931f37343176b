"""Pixels as files that a browser draws: JPEG or PNG of images, PNG of maps, and hatching where shards are damaged."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from engine.planning.geometry import Box
from engine.reporting.labels import coded
from engine.viewing.pixels import ABSENT, DAMAGED

STRIPE = 10  # px, of the hatching
HATCH = np.array([(214, 40, 98), (255, 226, 234)], np.uint8)
WORD = 96  # px, least side of a damaged part that the word is written on
Picture = tuple[str, bytes]  # its type, and the file


def picture_of_image(values: np.ndarray, state: np.ndarray, box: Box, quality: int | None) -> Picture:
    """A tile of an image.

    Args:
        values: uint8 (c, h, w); of more than three channels the first three are shown, of two the first.
        state: Of every pixel.
        box: Where the tile lies, so that hatching goes on from one to the next.
        quality: Of JPEG; None: PNG, without loss. What is not there yet is transparent: then it is PNG too.
    """
    shown = np.ascontiguousarray(values[:3].transpose(1, 2, 0) if len(values) >= 3 else values[0])
    image = Image.fromarray(shown)
    if (state == DAMAGED).any():
        image = hatched(image.convert("RGB"), state, box)
    if (state == ABSENT).any():
        image = image.convert("RGB")
        image.putalpha(Image.fromarray(np.where(state == ABSENT, 0, 255).astype(np.uint8)))
        quality = None
    return saved(image, quality)


def picture_of_map(values: np.ndarray, state: np.ndarray, box: Box, colors: np.ndarray) -> Picture:
    """A tile of a map: a PNG with a palette, in which value 0 is transparent, as the OME-Zarr metadata has it.

    Args:
        values: Whole numbers (h, w).
        colors: uint8 (labels, 3), at most 256; a value beyond them has the last colour.
    """
    indices = np.minimum(coded(values, colors), len(colors) - 1).astype(np.uint8)
    image = Image.fromarray(indices)
    image.putpalette(colors.tobytes())
    if (state == ABSENT).any() or (state == DAMAGED).any():
        drawn = (state == DAMAGED) | (state != ABSENT) & (indices > 0)
        image = hatched(image.convert("RGB"), state, box)
        image.putalpha(Image.fromarray(np.where(drawn, 255, 0).astype(np.uint8)))
        return saved(image, None)
    return saved(image, None, transparency=0)


def hatched(image: Image.Image, state: np.ndarray, box: Box) -> Image.Image:
    """An RGB image, with stripes and a word where it is damaged: it must not pass for tissue, nor for black."""
    damaged = state == DAMAGED
    y, x = np.mgrid[box.y0 : box.y0 + box.height, box.x0 : box.x0 + box.width]
    stripes = HATCH[((y + x) // STRIPE) % 2]
    result = Image.fromarray(np.where(damaged[..., None], stripes, np.asarray(image)))
    rows, columns = np.flatnonzero(damaged.any(1)), np.flatnonzero(damaged.any(0))
    if min(len(rows), len(columns)) >= WORD:
        draw, place = ImageDraw.Draw(result), (int(columns.mean()), int(rows.mean()))
        font = ImageFont.load_default(size=18)
        draw.rectangle(draw.textbbox(place, " damaged ", font, anchor="mm"), fill="white")
        draw.text(place, "damaged", tuple(HATCH[0].tolist()), font, anchor="mm")
    return result


def saved(image: Image.Image, quality: int | None, **options: int) -> Picture:
    """The file of an image: JPEG of a quality, or PNG."""
    file = io.BytesIO()
    if quality is None:
        image.save(file, "PNG", compress_level=1, **options)
        return "image/png", file.getvalue()
    image.save(file, "JPEG", quality=quality)
    return "image/jpeg", file.getvalue()
