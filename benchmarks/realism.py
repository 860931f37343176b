"""``python -m benchmarks.realism OUT.zarr --tiles DIR``: how near is a sample to the tiles of a folder?

Optical density per channel (mean and spread), the radial power spectrum, and the sliced Wasserstein distance over a
Laplacian pyramid (Karras et al. 2018, arXiv:1710.10196) beside the same distance between two halves of the tiles.
With ``--mosaic FILE.npy`` it writes a label map of the tiles' own label maps instead, to sample from: then both sides
show the same labels.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import report
from engine.planning.geometry import Box
from engine.storage.output import Output
from engine.training.data import find_images, read_image, read_mask

SIDE = 512  # px of a tile; samples are cut into tiles of this side
PERIODS = ((4, 6), (6, 8), (8, 11), (11, 16), (16, 23), (23, 32), (32, 45), (45, 64))  # px


def optical_density(tiles: np.ndarray) -> np.ndarray:
    """-log10 of transmitted light, for uint8 tiles (n, h, w, 3); background is 255."""
    return -np.log10((tiles.astype(np.float32) + 1) / 256)


def density_rows(tiles: np.ndarray, made: np.ndarray) -> list[dict[str, Any]]:
    rows = []
    for c, name in enumerate("RGB"):
        a, b = (optical_density(t[..., c]) for t in (tiles, made))
        for what, x, y in (("mean", a.mean(), b.mean()), ("spread", a.std(), b.std())):
            rows.append(
                {
                    "measure": f"optical density {name} {what}",
                    "tiles": float(x),
                    "made": float(y),
                    "compared": float(y / x),
                }
            )
    return rows


def spectrum(tiles: np.ndarray) -> np.ndarray:
    """Power of the grey tiles in each band of ``PERIODS``, Hann-windowed."""
    side = tiles.shape[1]
    grey = tiles.astype(np.float32).mean(-1)
    grey -= grey.mean((1, 2), keepdims=True)
    hann = np.hanning(side).astype(np.float32)
    power = (np.abs(np.fft.rfft2(grey * hann[:, None] * hann)) ** 2).mean(0)
    radius = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    return np.array([power[(radius > 1 / high) & (radius <= 1 / low)].mean() for low, high in PERIODS])


def spectrum_rows(tiles: np.ndarray, made: np.ndarray) -> list[dict[str, Any]]:
    a, b = spectrum(tiles), spectrum(made)
    return [
        {
            "measure": f"power, periods {low} to {high} px (dB)",
            "tiles": float(10 * np.log10(x)),
            "made": float(10 * np.log10(y)),
            "compared": float(10 * np.log10(y / x)),
        }
        for (low, high), x, y in zip(PERIODS, a, b, strict=True)
    ]


def halve(images: np.ndarray) -> np.ndarray:
    n, h, w, c = images.shape
    return images.reshape(n, h // 2, 2, w // 2, 2, c).mean((2, 4))


def descriptors(tiles: np.ndarray, rng: np.random.Generator, levels: int = 4, each: int = 96) -> list[np.ndarray]:
    """7 x 7 patches of every level of the Laplacian pyramid, one row a patch, channels normalised over all patches."""
    of_levels, images = [], tiles.astype(np.float32)
    for level in range(levels):
        smaller = halve(images)
        band = images - smaller.repeat(2, 1).repeat(2, 2) if level < levels - 1 else images
        patches = []
        for image in band:
            y = rng.integers(0, image.shape[0] - 7, each)
            x = rng.integers(0, image.shape[1] - 7, each)
            patches += [image[a : a + 7, b : b + 7] for a, b in zip(y, x, strict=True)]
        of_levels.append(np.stack(patches))
        images = smaller
    return of_levels


def sliced_wasserstein(a: np.ndarray, b: np.ndarray, seed: int = 0, directions: int = 256) -> float:
    """Mean over the pyramid's levels, times 1000; patches are normalised by the statistics of ``a``."""
    rng = np.random.default_rng(seed)
    n = min(len(a), len(b))
    distances = []
    for x, y in zip(descriptors(a[:n], rng), descriptors(b[:n], rng), strict=True):
        mean, std = x.mean((0, 1, 2)), x.std((0, 1, 2)) + 1e-6
        u, v = (((t - mean) / std).reshape(len(t), -1) for t in (x, y))
        axis = rng.standard_normal((u.shape[1], directions)).astype(np.float32)
        axis /= np.linalg.norm(axis, axis=0)
        distances.append(np.abs(np.sort(u @ axis, 0) - np.sort(v @ axis, 0)).mean())
    return float(np.mean(distances) * 1000)


def distance_rows(tiles: np.ndarray, made: np.ndarray, draws: int = 5) -> list[dict[str, Any]]:
    """The distance of the sample to as many tiles as it has, and of as many tiles to as many others: means of draws."""
    rng = np.random.default_rng(0)
    n = min(len(made), len(tiles) // 2)
    own, between = [], []
    for draw in range(draws):
        order = rng.permutation(len(tiles))
        own.append(sliced_wasserstein(tiles[order[:n]], tiles[order[n : 2 * n]], draw))
        between.append(sliced_wasserstein(tiles[order[:n]], made[rng.permutation(len(made))[:n]], draw))
    a, b = float(np.mean(own)), float(np.mean(between))
    return [{"measure": f"sliced Wasserstein x 1000, {n} tiles", "tiles": a, "made": b, "compared": b / a}]


def cut(image: np.ndarray, side: int = SIDE) -> np.ndarray:
    """(c, h, w) -> whole tiles (n, side, side, c)."""
    c, h, w = image.shape
    rows, columns = h // side, w // side
    tiles = image[:, : rows * side, : columns * side].reshape(c, rows, side, columns, side)
    return tiles.transpose(1, 3, 2, 4, 0).reshape(-1, side, side, c)


def mosaic(tiles: Path, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """The label maps of rows x columns tiles, beside one another: uint8."""
    images = find_images(tiles)
    chosen = np.random.default_rng(seed).permutation(len(images))[: rows * columns]
    maps = [read_mask(images[i]).astype(np.uint8) for i in chosen]
    return np.concatenate([np.concatenate(maps[r * columns : (r + 1) * columns], 1) for r in range(rows)])


def main(arguments: Sequence[str] | None = None) -> int:
    top = argparse.ArgumentParser(prog="python -m benchmarks.realism", description=__doc__)
    top.add_argument("out", type=Path, nargs="?", help="a finished output of engine.sample")
    top.add_argument("--tiles", type=Path, required=True, help="folder of tiles")
    top.add_argument("--mosaic", metavar="FILE.npy", help="write a label map of 4 x 4 tiles and stop")
    top.add_argument("--json", help="write the report here")
    args = top.parse_args(arguments)
    if args.mosaic:
        np.save(args.mosaic, mosaic(args.tiles, 4, 4))
        return 0
    if args.out is None:
        top.error("an output is needed")
    output = Output(args.out)
    made = cut(output.read("0", Box(0, 0, *output.layout.size)))
    tiles = np.stack([read_image(path)[:SIDE, :SIDE] for path in find_images(args.tiles)])
    rows = density_rows(tiles, made) + spectrum_rows(tiles, made) + distance_rows(tiles, made)
    report("realism", rows, args.json, job=output.provenance["job"], tiles=len(tiles), made_tiles=len(made))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
