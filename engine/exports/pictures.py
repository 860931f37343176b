"""Pixels as picture files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def write_one(stem: Path, pixels: np.ndarray, folder: str, suffix: str) -> None:
    """Write one image (h, w) or (c, h, w) as the files of its folder, the name of which says which they are."""
    if folder == "cond":
        np.save(stem.with_suffix(".npy"), pixels)
        write_picture(stem.with_suffix(".png"), picture_of(pixels))
    elif folder == "inst_masks":
        write_tiff(stem.with_suffix(".tif"), pixels.astype(np.uint32))
    elif suffix == ".tif" or pixels.dtype != np.uint8:
        write_tiff(stem.with_suffix(".tif"), channels_last(pixels))
    else:
        write_picture(stem.with_suffix(".png"), channels_last(pixels))


def channels_last(pixels: np.ndarray) -> np.ndarray:
    """Put channels last: (c, h, w) becomes (h, w, c), or (h, w) if it has one channel; (h, w) stays."""
    if pixels.ndim == 2:
        return pixels
    return pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0))


def picture_of(condition: np.ndarray) -> np.ndarray:
    """Draw the first three channels as red, green and blue, -1..1 as 0..255: uint8 (h, w, 3).

    A colour whose channel is missing is 0.
    """
    shown = condition[:3]
    if shown.dtype.kind == "f":
        shown = np.clip(np.rint((np.nan_to_num(shown) + 1) * 127.5), 0, 255)
    picture = np.zeros((*condition.shape[1:], 3), np.uint8)
    picture[..., : len(shown)] = shown.transpose(1, 2, 0)
    return picture


def write_picture(path: Path, pixels: np.ndarray, **settings: Any) -> None:
    """Write a picture in the format of its suffix.

    Args:
        settings: Settings of the format, as Pillow names them.
    """
    from PIL import Image

    Image.fromarray(pixels).save(path, **settings)


def write_tiff(path: Path, pixels: np.ndarray) -> None:
    import tifffile

    photometric = "rgb" if pixels.ndim == 3 else "minisblack"
    tifffile.imwrite(path, pixels, photometric=photometric, compression="zlib", compressionargs={"level": 1})
