"""Pixels as picture files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.inputs.nuclei import PARTS


def write_one(folder: Path, name: str, pixels: np.ndarray, suffix: str) -> None:
    """Write one image (h, w) or (c, h, w) as the file of its folder, the name of which says which it is."""
    if folder.name == "inst_masks":
        write_tiff(folder / f"{name}.tif", pixels.astype(np.uint32))
    elif suffix == ".tif" or pixels.dtype != np.uint8:
        write_tiff(folder / f"{name}.tif", channels_last(pixels))
    else:
        write_picture(folder / f"{name}.png", channels_last(pixels))


def write_condition(folder: Path, name: str, condition: np.ndarray, channels: Sequence[str]) -> None:
    """Write a condition float32 (c, h, w) as numbers, and as a strip of its parts side by side."""
    np.save(folder / f"{name}.npy", condition)
    write_picture(folder / f"{name}.png", strip_of(condition, channels))


def channels_last(pixels: np.ndarray) -> np.ndarray:
    """Put channels last: (c, h, w) becomes (h, w, c), or (h, w) if it has one channel; (h, w) stays."""
    if pixels.ndim == 2:
        return pixels
    return pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0))


def strip_of(condition: np.ndarray, channels: Sequence[str]) -> np.ndarray:
    """Draw the parts of a condition side by side, as the nuclei system does: uint8 (h, n * w, 3).

    The horizontal and the vertical map from blue (-1) over green (0) to red (1), colours as they are, edges white.
    """
    pictures, rest = [], condition
    for part in channels:
        values, rest = rest[: PARTS[part]], rest[PARTS[part] :]
        if part == "hv":
            pictures += [rainbow(value) for value in values]
        else:
            unit = (values + 1) / 2 if part == "color" else values
            pictures.append(np.rint(np.broadcast_to(unit, (3, *unit.shape[1:])).transpose(1, 2, 0) * 255))
    return np.concatenate(pictures, axis=1).astype(np.uint8)


def rainbow(values: np.ndarray) -> np.ndarray:
    """-1..1 as dark blue, blue, cyan, yellow, red, dark red: float (h, w, 3), 0..255."""
    distances = np.abs(2 * values[..., None] - np.array([1, 0, -1]))  # of red, green and blue, each from its middle
    return np.rint(np.clip(1.5 - distances, 0, 1) * 255)


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
