"""``python -m benchmarks.training_data KIND DIR --from TILES``: small data to try the published trainings on.

``patches`` cuts a folder of images into patches; ``nuclei`` marks what is dark in their red as nuclei, in the folders
of the nuclei system; ``classes`` draws eight kinds of grey texture under the names of tissue that the feature-aligned
system knows, and takes no images. None of it is a data set to learn anything from but how the trainings are used.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from engine.training.data import find_images, read_image

TISSUE = ("tumor", "stroma", "complex", "lympho", "debris", "mucosa", "adipose", "empty")
# A nucleus: its least density in red, which hematoxylin absorbs and eosin does not, and how much denser than the 41 px
# around it; px between two of them; px of the smallest.
DENSE, DENSER, AROUND, APART, LEAST = 0.3, 0.12, 20, 7, 30
SPECKLES = {"complex": 0.1, "lympho": 0.35, "debris": 0.02}  # share of the places where a texture has a spot


def cut(images: Sequence[Path], side: int) -> Iterator[np.ndarray]:
    """uint8 (side, side, 3): squares of the images, side by side."""
    for path in images:
        image = read_image(path)
        for y in range(0, image.shape[0] - side + 1, side):
            for x in range(0, image.shape[1] - side + 1, side):
                yield image[y : y + side, x : x + side]


def patches(out: Path, images: Sequence[Path], side: int, count: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for number, patch in enumerate(islice(cut(images, side), count)):
        Image.fromarray(patch).save(out / f"{number:05d}.png")


def averaged(x: torch.Tensor, reach: int) -> torch.Tensor:
    """Means of (1, 1, h, w) over squares that reach so many px to every side."""
    return F.avg_pool2d(F.pad(x, (reach,) * 4, mode="replicate"), 2 * reach + 1, 1)


def instances_of(patch: np.ndarray) -> np.ndarray:
    """uint16 (h, w): nuclei numbered from 1, each the part of the dark pixels that is nearest to its densest place."""
    red = torch.from_numpy(-np.log((patch[..., 0].astype(np.float32) + 1) / 256))[None, None]
    smooth, around = averaged(red, 4), averaged(red, AROUND)
    dark = (averaged(red, 1) > (around + DENSER).clamp(min=DENSE))[0, 0]
    peaks = (smooth == F.max_pool2d(smooth, 2 * APART + 1, 1, APART))[0, 0] & dark
    centres = torch.nonzero(peaks).float()
    if not len(centres):
        return np.zeros(patch.shape[:2], np.uint16)
    places = torch.nonzero(dark)
    nearest = torch.cdist(places.float(), centres).argmin(1)
    large = torch.bincount(nearest, minlength=len(centres))[nearest] >= LEAST
    instances = np.zeros(patch.shape[:2], np.uint16)
    instances[tuple(places[large].T.numpy())] = nearest[large].numpy() + 1
    return instances


def nuclei(out: Path, images: Sequence[Path], side: int, count: int) -> None:
    for part in ("images", "inst_masks", "bin_masks"):
        (out / part).mkdir(parents=True, exist_ok=True)
    for number, patch in enumerate(islice(cut(images, side), count)):
        instances, name = instances_of(patch), f"{number:05d}"
        Image.fromarray(patch).save(out / "images" / f"{name}.png")
        Image.fromarray(instances.astype(np.int32)).save(out / "inst_masks" / f"{name}.tif")
        Image.fromarray(((instances > 0) * 255).astype(np.uint8)).save(out / "bin_masks" / f"{name}.png")


def texture(name: str, side: int, rng: np.random.Generator) -> np.ndarray:
    """uint8 (side, side): a picture of one kind, that differs from the next of its kind in all but its manner."""
    kind = TISSUE.index(name)
    y, x = np.mgrid[:side, :side] / side
    angle, phase = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi)
    waves = np.sin(2 * np.pi * (3 + 2 * kind) * (x * np.cos(angle) + y * np.sin(angle)) + phase)
    values = 60 + 22 * kind + (30 - 3 * kind) * waves + rng.normal(0, 6, (side, side))
    if name in SPECKLES:
        small = rng.random((side // 4, side // 4)) < SPECKLES[name]
        values -= 50 * np.kron(small, np.ones((4, 4)))[:side, :side]
    return values.clip(0, 255).astype(np.uint8)


def classes(out: Path, side: int, count: int) -> None:
    rng = np.random.default_rng(0)
    for number, name in enumerate(TISSUE, 1):
        folder = out / f"{number:02d}_{name.upper()}"
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(count // len(TISSUE)):
            Image.fromarray(texture(name, side // 4 * 4, rng)).save(folder / f"{index:05d}.png")


def main(arguments: Sequence[str] | None = None) -> int:
    top = argparse.ArgumentParser(prog="python -m benchmarks.training_data", description=__doc__)
    top.add_argument("kind", choices=("patches", "nuclei", "classes"))
    top.add_argument("out", type=Path)
    top.add_argument("--from", dest="images", type=Path, metavar="DIR", help="a folder of images")
    top.add_argument("--side", type=int, default=128, help="of a picture, px")
    top.add_argument("--count", type=int, default=1000, help="pictures, at most")
    args = top.parse_args(arguments)
    if args.kind == "classes":
        classes(args.out, args.side, args.count)
        return 0
    if args.images is None:
        top.error(f"{args.kind} takes --from DIR, a folder of images")
    {"patches": patches, "nuclei": nuclei}[args.kind](args.out, find_images(args.images), args.side, args.count)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
