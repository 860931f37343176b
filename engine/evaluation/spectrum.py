"""What a crop's Fourier transform says: its power over periods, and whether it repeats at a pitch."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

PERIODS = ((4, 6), (6, 8), (8, 11), (11, 16), (16, 23), (23, 32), (32, 45), (45, 64))  # px


def power_of(crop: np.ndarray) -> np.ndarray:
    """float64 (side, side // 2 + 1): the power of a crop in grey, less its mean and Hann-windowed.

    Args:
        crop: uint8 (side, side, 3).
    """
    grey = crop.astype(np.float64).mean(-1)
    hann = np.hanning(len(grey))
    return np.abs(np.fft.rfft2((grey - grey.mean()) * hann[:, None] * hann)) ** 2


def bands(power: np.ndarray) -> np.ndarray:
    """float64 (8,): mean power in each band of ``PERIODS``; NaN where a crop is too small to have one."""
    means = [power[inside].mean() if inside.any() else np.nan for inside in rings(len(power))]
    return np.array(means)


@lru_cache(maxsize=4)
def rings(side: int) -> list[np.ndarray]:
    """bool (side, side // 2 + 1), of every band: the frequencies in it."""
    radius = radii(side)
    return [(radius > 1 / high) & (radius <= 1 / low) for low, high in PERIODS]


def radii(side: int) -> np.ndarray:
    """float64 (side, side // 2 + 1): cycles per pixel."""
    return np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])


def repeats_at(power: np.ndarray, pitch: int) -> float:
    """How far the autocorrelation at multiples of a pitch lies above that half a pitch beside, of rows and columns.

    By the theorem of Wiener and Khinchin, of the crop's second difference over half a pitch, which takes away what is
    smooth; at two to four times the pitch, where tissue hardly correlates any more and what a decoder draws at every
    latent does. 0 where nothing keeps to the pitch; above it (below 2) a pattern repeats from latent to latent, below
    it one alternates.

    Args:
        power: As ``power_of`` returns it, of a crop of five pitches or more.
        pitch: px, at least 2.
    """
    side, half = len(power), pitch // 2
    at = np.array([times * pitch for times in (2, 3, 4) if times * pitch + half <= side // 2])
    values = []
    for axis, frequencies in enumerate((np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])):
        gain = (2 - 2 * np.cos(2 * np.pi * frequencies * half)) ** 2
        line = np.fft.irfft2(power * gain, (side, side))[(slice(None), 0) if axis == 0 else 0]
        if line[0] > 0:  # not of one colour
            values.append((line[at] - (line[at - half] + line[at + half]) / 2).mean() / line[0])
    return float(np.mean(values)) if values else 0.0
