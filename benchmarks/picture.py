"""``python -m benchmarks.picture OUT.zarr FILE.jpg``: the image and its label map side by side, as in the README.

With ``--beside DIR`` it shows the sample beside images of DIR, such as tiles that DiffInfinite made, both at 100 %.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from engine.planning.geometry import Box
from engine.storage.output import Output
from engine.training.data import find_images, read_image


def with_labels(output: Output) -> np.ndarray:
    """uint8 (h, w + h / 2, 3): the image, and its label map at half the size."""
    whole = Box(0, 0, *output.layout.size)
    image = output.read("0", whole).transpose(1, 2, 0)
    labels = output.read("labels/tissue/0", whole)[::2, ::2]
    attributes: Any = output.group["labels/tissue"].attrs
    colors = attributes["ome"]["image-label"]["colors"]
    table = np.array([entry["rgba"][:3] for entry in colors], np.uint8)
    side = np.full((image.shape[0], labels.shape[1], 3), 255, np.uint8)
    side[: labels.shape[0]] = table[labels]
    return np.concatenate([image, side], 1)


def beside(output: Output, tiles: Path, side: int = 512) -> np.ndarray:
    """uint8: a crop of the sample, and tiles, at 100 %."""
    image = output.read("0", Box(0, 0, 2 * side, 2 * side)).transpose(1, 2, 0)
    others = [read_image(path)[:side, :side] for path in find_images(tiles)[3::20][:4]]
    return np.concatenate([image, np.concatenate([np.concatenate(others[:2], 1), np.concatenate(others[2:], 1)])], 1)


def main(arguments: Sequence[str] | None = None) -> int:
    top = argparse.ArgumentParser(prog="python -m benchmarks.picture", description=__doc__)
    top.add_argument("out", type=Path, help="a finished output of engine.sample")
    top.add_argument("picture", type=Path)
    top.add_argument("--beside", type=Path, metavar="DIR", help="a folder of images to show beside")
    args = top.parse_args(arguments)
    output = Output(args.out)
    pixels = beside(output, args.beside) if args.beside else with_labels(output)
    Image.fromarray(pixels).save(args.picture, quality=90)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
