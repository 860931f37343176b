"""The decoder's windows: boxes in latents, and the same boxes in pixels with the weights they are blended by."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from engine.planning.cover import Lattice, Taper, strided

TRIM = 0.25  # outer quarter of the overlap has the least weight, 1e-4: decoders are worst at their border


def decoder_windows(
    shape: tuple[int, int], patch: int, weights: str, overlap: int | None, stride: int | None
) -> Lattice:
    """The decoder's windows of a job, in latents; with weights ``gaussian`` they are the sampler's own.

    Args:
        overlap, stride: Latents that the decoder's windows share; distance of the sampler's. None: a job's least.
    """
    if weights == "gaussian":
        return strided(shape, patch, stride or patch // 4, "uniform")
    return decode_cover(shape, patch, int(overlap or 0))


def unbounded_decoder(
    factor: int, patch: int, weights: str, overlap: int | None, stride: int | None
) -> tuple[int, int]:
    """Side and stride of the decoder's windows on a plane, in latents; without a decoder those of single pixels."""
    if factor == 1:
        return 1, 1
    room = (4 * patch, 4 * patch)  # more than a window, as there always is on a plane
    axis = decoder_windows(room, patch, weights, overlap, stride).rows
    return axis.patch, axis.stride


def decode_cover(shape: tuple[int, int], patch: int, overlap: int) -> Lattice:
    """The decoder's windows, in latents: a lattice that depends on the canvas alone.

    Args:
        patch: Side of the model's windows; the decoder's have twice that side where the canvas has room.
        overlap: Latents that neighbouring windows share.
    """
    side = min(2 * patch, *shape)
    overlap = min(overlap, side // 2)
    return strided(shape, side, max(side - overlap, 1), "uniform")


def pixel_cover(cover: Lattice, factor: int, overlap: int) -> Lattice:
    """The same windows in pixels, with weights that rise smoothly over the overlap and are 1 at the canvas's edge."""
    ramp = max(min(overlap, cover.patch // 2) * factor, 1)
    s = np.clip(((np.arange(cover.patch * factor) + 0.5) / ramp - TRIM) / (1 - 2 * TRIM), 0, 1)
    # Never zero: estimates are divided by the sum of their weights.
    rising = np.maximum(s * s * (3 - 2 * s), 1e-4).astype(np.float32)
    return scaled(cover, factor, Taper(np.ones_like(rising), rising, rising[::-1]))


def gaussian_pixel_cover(cover: Lattice, factor: int) -> Lattice:
    """The same windows in pixels, weighted by exp(-r^2 / 0.8^2), r from -1 to 1 across a window.

    Source: Large-Image-Diffusion's merging of decoded windows (Graikos et al. 2024, arXiv:2312.07330).
    """
    r = np.linspace(-1, 1, cover.patch * factor)
    return scaled(cover, factor, Taper(np.exp(-((r / 0.8) ** 2)).astype(np.float32)))


def scaled(cover: Lattice, factor: int, taper: Taper) -> Lattice:
    """A lattice of overlapping windows in units ``factor`` times finer, with new weights."""
    rows, columns = (
        replace(axis, length=axis.length * factor, patch=axis.patch * factor, stride=axis.stride * factor)
        for axis in (cover.rows, cover.columns)
    )
    return Lattice(rows, columns, taper)
