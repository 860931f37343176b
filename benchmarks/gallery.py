"""``python -m benchmarks.gallery DIR --tiles TILES [--model MODEL]``: sample the pictures of docs/gallery.

A contact sheet of eight seeds, six crops at 100 % beside six of the tiles, a large sample, and the default picture with
its label map; each sampled by ``engine.sample`` into ``--work``, where what is there already is not sampled again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.picture import with_labels
from engine.pipeline.preview import thumbnail
from engine.planning.geometry import Box
from engine.storage.output import Output
from engine.training.data import find_images, read_image

SEEDS, SIDE, LARGE = 8, 1024, 4096
CROPS, CROP = 6, 256  # at 100 %
GAP = 8  # px of white between pictures


def sampled(out: Path, size: int, seed: int, model: str, options: Sequence[str]) -> Output:
    """A finished output; ``engine.sample`` leaves one that is finished as it is."""
    words = ["--model", str(model), "--size", f"{size}x{size}", "--seed", str(seed), "--preview", "none", *options]
    subprocess.run([sys.executable, "-m", "engine.sample", "--out", str(out), *words], check=True)
    return Output(out)


def shrunk(output: Output, factor: int) -> np.ndarray:
    """uint8 (h, w, 3): the image with its sides divided."""
    return np.asarray(thumbnail(output, max(output.layout.size) // factor).convert("RGB"))


def crops_of(outputs: Sequence[Output]) -> list[np.ndarray]:
    """A crop of each of some images, at 100 %, from places that follow a fixed rule and no choice."""
    crops = []
    for index, output in enumerate(outputs):
        h, w = output.layout.size
        y, x = (h - CROP) * (index % 3) // 2, (w - CROP) * (index % 2)
        crops.append(output.read("0", Box(y, x, y + CROP, x + CROP)).transpose(1, 2, 0))
    return crops


def tiles_crops(tiles: Path, count: int) -> list[np.ndarray]:
    """Crops of as many tiles, evenly spread over their list, at 100 %."""
    images = find_images(tiles)
    chosen = [images[(2 * i + 1) * len(images) // (2 * count)] for i in range(count)]
    return [read_image(path)[:CROP, :CROP] for path in chosen]


def sheet(pictures: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Pictures of one size beside one another, with white between them."""
    h, w = pictures[0].shape[:2]
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    whole = np.full((rows * (h + GAP) - GAP, columns * (w + GAP) - GAP, 3), 255, np.uint8)
    for index, picture in enumerate(pictures):
        y, x = index // columns * (h + GAP), index % columns * (w + GAP)
        whole[y : y + h, x : x + w] = picture
    return whole


def main(arguments: Sequence[str] | None = None) -> int:
    top = argparse.ArgumentParser(prog="python -m benchmarks.gallery", description=__doc__)
    top.add_argument("folder", type=Path, help="where the pictures go")
    top.add_argument("--tiles", type=Path, required=True, help="images to show beside")
    top.add_argument("--model", default="embedded", help="a model folder (default: embedded)")
    top.add_argument("--work", type=Path, default=Path(".gallery"), help="where the outputs go (default: .gallery)")
    top.add_argument("--seeds", type=int, default=SEEDS, help=f"pictures of the sheet (default: {SEEDS})")
    top.add_argument("--side", type=int, default=SIDE, help=f"px of a picture of the sheet (default: {SIDE})")
    top.add_argument("--large", type=int, default=LARGE, help=f"px of the large one (default: {LARGE}; 0: none)")
    top.add_argument("--option", action="append", default=[], help="for engine.sample, as --option=--steps=10")
    args = top.parse_args(arguments)
    args.folder.mkdir(parents=True, exist_ok=True)
    args.work.mkdir(parents=True, exist_ok=True)
    outputs = [sampled(args.work / f"{s}.zarr", args.side, s, args.model, args.option) for s in range(args.seeds)]
    pictures = {
        "default.jpg": with_labels(outputs[0]),
        "seeds.jpg": sheet([shrunk(output, 2) for output in outputs], 4),
        "crops.jpg": np.concatenate(
            [
                sheet(crops_of([outputs[i % len(outputs)] for i in range(CROPS)]), 3),
                np.full((CROP * 2 + GAP, 3 * GAP, 3), 255, np.uint8),
                sheet(tiles_crops(args.tiles, CROPS), 3),
            ],
            1,
        ),
    }
    if args.large:
        large = sampled(args.work / "large.zarr", args.large, 0, args.model, args.option)
        pictures["large.jpg"] = shrunk(large, max(args.large // 1024, 1))
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(args.folder / name, quality=88)
        print(f"{args.folder / name}: {pixels.shape[1]} x {pixels.shape[0]} px")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
