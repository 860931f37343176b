"""Folders of made-up pictures with label maps, for what is measured of pixels."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_pictures(folder: Path, count: int, side: int = 96, seed: int = 0, soft: bool = False, pitch: int = 0) -> Path:
    """Noise of several scales: a bright half (label 1) and a dark one (label 2), mirrored in every second picture.

    Args:
        soft: Whether it is blurred.
        pitch: Period of a faint lattice that lies over it, px; 0: none.
    """
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    for n in range(count):
        noise = sum(
            rng.normal(0, 12, (side // scale, side // scale, 3)).repeat(scale, 0).repeat(scale, 1)
            for scale in (1, 2, 4, 8)
        )
        if soft:
            noise = (noise + np.roll(noise, 1, 0) + np.roll(noise, 1, 1)) / 3
        labels = np.where((np.arange(side) < side // 2) ^ (n % 2), 1, 2).astype(np.uint8)[None].repeat(side, 0)
        pixels = noise + np.where(labels == 1, 190, 90)[..., None]
        if pitch:
            line = 6 * np.cos(2 * np.pi * np.arange(side) / pitch)
            pixels = pixels + (line + line[:, None])[..., None]
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"p{n:02}.png")
        Image.fromarray(labels).save(folder / f"p{n:02}_mask.png")
    return folder
