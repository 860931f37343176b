"""Sets of small pictures that the tests of evaluations share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def pictures(folder: Path, count: int, side: int = 32, seed: int = 0, shade: float = 150, grey: bool = False) -> Path:
    """A folder of pictures of coloured noise at two scales."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for index in range(count):
        coarse = rng.normal(0, 30, (side // 8, side // 8, 3)).repeat(8, 0).repeat(8, 1)
        pixels = np.clip(shade + coarse + rng.normal(0, 10, (side, side, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels[..., 0] if grey else pixels).save(folder / f"{index:04d}.png")
    return folder


def labelled_pictures(folder: Path, count: int, seed: int = 0, labels: int = 3, wrong: bool = False) -> Path:
    """Pictures of 48 px with label maps of squares of 16; the brightest channel is the label, or ``wrong`` the next."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng((seed, 1))
    for index in range(count):
        drawn = rng.permutation(np.arange(9) % labels).reshape(3, 3).repeat(16, 0).repeat(16, 1)
        pixels = rng.integers(60, 100, (48, 48, 3)) + 120 * (np.arange(3) == drawn[..., None] % 3)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index:04d}.png")
        shown = (drawn + 1) % labels if wrong else drawn
        Image.fromarray(shown.astype(np.uint8)).save(folder / f"{index:04d}_mask.png")
    return folder


def moments(pixels: np.ndarray) -> np.ndarray:
    """Float (n, 6): mean and spread of each channel, for ``--features``."""
    flat = pixels.reshape(len(pixels), -1, 3).astype(np.float64) / 255
    return np.concatenate([flat.mean(1), flat.std(1)], 1)
