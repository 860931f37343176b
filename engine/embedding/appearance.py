"""Numbers of how a patch looks, for clusters of styles where no network is at hand: stains and texture.

The stains are told apart by the optical densities of haematoxylin and eosin of Ruifrok and Johnston 2001 (Anal. Quant.
Cytol. Histol. 23, 291), the same for every picture, so that a stain of another shade gives other numbers.
"""

from __future__ import annotations

import numpy as np

NAME = "appearance"  # as ``engine.embed --with`` knows it
STAINS = ((0.65, 0.704, 0.286), (0.072, 0.99, 0.105), (0.268, 0.57, 0.776))  # haematoxylin, eosin, what is left; in RGB
SHARES = (10, 50, 90)  # percentiles
SCALES = 4  # 1, 2, 4, 8 px
FAINTEST = 1e-3  # density a pixel; flatter textures are alike


def appearance(patches: np.ndarray) -> np.ndarray:
    """Of each stain its mean, spread and percentiles, and its gradients at 1, 2, 4 and 8 px.

    Args:
        patches: uint8 (n, p, p, 3).
    Returns:
        float32 (n, 27) of patches of 16 px or more; of smaller ones fewer scales.
    """
    return np.stack([numbers_of(densities(patch)) for patch in patches]).astype(np.float32)


def densities(patch: np.ndarray) -> np.ndarray:
    """float32 (3, p, p): how much of each stain there is in a patch, uint8 (p, p, 3); 0 where it is white."""
    optical = -np.log10((patch.astype(np.float32) + 1) / 256)
    of_stains = np.array([np.array(stain) / np.linalg.norm(stain) for stain in STAINS])
    return np.moveaxis(optical @ np.linalg.inv(of_stains).astype(np.float32), -1, 0)


def numbers_of(stains: np.ndarray) -> np.ndarray:
    """float (D,) of densities (3, p, p)."""
    flat = stains.reshape(len(stains), -1)
    shades = [flat.mean(1), flat.std(1), *np.percentile(flat, SHARES, axis=1)]
    textures = []
    for _ in range(SCALES):
        if stains.shape[1] < 2:
            break
        steps = (np.abs(np.diff(stains, axis=axis)).mean((1, 2)) for axis in (1, 2))
        textures.append(np.log(sum(steps) / 2 + FAINTEST))
        stains = mean_of_squares(stains)
    return np.concatenate([*shades, *textures])


def mean_of_squares(image: np.ndarray) -> np.ndarray:
    """(c, h // 2, w // 2): the mean of each 2 x 2 pixels."""
    c, h, w = image.shape
    return image[:, : h // 2 * 2, : w // 2 * 2].reshape(c, h // 2, 2, w // 2, 2).mean((2, 4))
