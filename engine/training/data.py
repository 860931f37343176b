"""Training patches from a folder of images, each with an optional label map beside it.

A patch is a function of (seed, position in the run) alone: any number of ranks sees the same patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from engine.inputs.dataset_folder import MASK_ENDING

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")


def find_images(folder: Path) -> list[Path]:
    """All images below a folder, sorted; label maps (``*_mask.png``) are not images.

    Raises:
        ValueError: the folder holds no image.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; `data` is a folder of PNG, JPEG or TIFF images")
    paths = [path for path in paths_below(folder, IMAGE_SUFFIXES) if not path.name.endswith(MASK_ENDING)]
    if not paths:
        raise ValueError(f"no image ({', '.join(IMAGE_SUFFIXES)}) below {folder}")
    return paths


def paths_below(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """All files below a folder with one of the endings, sorted; none whose name begins with a dot."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in suffixes and not p.name.startswith("."))


def hold_out(images: Sequence[Path], count: int) -> list[Path]:
    """The images that no network is trained on: ``count`` of those with a label map, evenly spread over their list.

    Of images without any label map, ``count`` of all.

    Raises:
        ValueError: that is more than a quarter of them.

    >>> [str(path) for path in hold_out([Path(f"{i}.png") for i in range(12)], 3)]
    ['2.png', '6.png', '10.png']
    """
    able = [path for path in images if mask_of(path).exists()] or list(images)
    if len(able) < 4 * count:
        kind = "images with a label map" if len(able) < len(images) else "images"
        raise ValueError(
            f"`hold_out` {count} is more than a quarter of the {len(able)} {kind}; choose {len(able) // 4} or fewer"
        )
    return [able[(2 * i + 1) * len(able) // (2 * count)] for i in range(count)]


def spread(count: int, total: int, data: Path) -> list[int]:
    """Numbers of what is held out of a list: ``count`` of ``total``, evenly spread.

    Raises:
        ValueError: that is more than half.

    >>> spread(2, 8, Path("data"))
    [2, 6]
    """
    if count > total // 2:
        raise ValueError(f"`hold_out` {count} is more than half of the {total} of {data}")
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def number_at(position: int, count: int, seed: int) -> int:
    """Which of ``count`` things a position of a run is of: every epoch visits each once, in an order of its own.

    >>> sorted(number_at(position, 5, 0) for position in range(5, 10))
    [0, 1, 2, 3, 4]
    """
    epoch, place = divmod(position, count)
    return int(order_of(epoch, count, seed)[place])


@lru_cache(maxsize=4)
def order_of(epoch: int, count: int, seed: int) -> np.ndarray:
    """int64 (count,): a permutation."""
    return np.random.default_rng((seed, 0, epoch)).permutation(count)


def mask_of(image: Path) -> Path:
    """Where the label map of an image would be."""
    return image.with_name(image.stem + MASK_ENDING)


def check_bits(image: Image.Image, path: Path) -> None:
    """Refuse a picture of more than 8 bits a value: Pillow would clip it to white.

    Raises:
        ValueError: naming it.
    """
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"{path} holds more than 8 bits a value (mode {image.mode}); save it with 8")


def read_picture(path: Path, color: bool = False) -> np.ndarray:
    """A picture as it is, or in RGB.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        with Image.open(path) as image:
            if color:
                check_bits(image, path)
            return np.asarray(image.convert("RGB") if color else image)
    except (OSError, SyntaxError) as error:  # Pillow says so of a broken PNG
        raise ValueError(f"{path} cannot be read as a picture ({' '.join(str(error).split())[:120]})") from None


@lru_cache(maxsize=512)
def read_image(path: Path) -> np.ndarray:
    """uint8 (h, w, 3), kept in memory; see ``read_picture``."""
    return read_picture(path, color=True)


@lru_cache(maxsize=512)
def read_mask(path: Path) -> np.ndarray:
    """uint8 (h, w) label map beside an image; zeros (unknown) where there is none.

    Raises:
        ValueError: it is no map, or has another size than the image.
    """
    mask, size = mask_of(path), read_image(path).shape[:2]
    if not mask.exists():
        return np.zeros(size, np.uint8)
    labels = read_picture(mask)
    if labels.shape != size:
        raise ValueError(
            f"{mask} has shape {labels.shape} but {path} is {size[0]} x {size[1]} px; a label map has one channel, and "
            "its image's size"
        )
    if labels.max() > 255:
        raise ValueError(f"{mask} holds the label {labels.max()}; labels go to 255")
    return labels.astype(np.uint8)


def dihedral(array: np.ndarray, which: int) -> np.ndarray:
    """One of the eight rotations and reflections of the first two axes; ``which`` in 0..7."""
    turned = np.rot90(array, which % 4)
    return turned[:, ::-1] if which >= 4 else turned


@dataclass(frozen=True)
class Patches:
    """Square patches of the images, in a shuffled order without end."""

    images: tuple[Path, ...]
    size: int
    seed: int

    def __post_init__(self) -> None:
        for path in self.images:
            with Image.open(path) as image:
                if min(image.size) < self.size:
                    raise ValueError(
                        f"{path} is {image.height} x {image.width} px, smaller than a patch of {self.size}; "
                        "choose smaller patches"
                    )

    def image_at(self, position: int) -> Path:
        """The image of a position: every epoch visits each image once, in an order of its own."""
        return self.images[number_at(position, len(self.images), self.seed)]

    def patch(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        """uint8 (size, size, 3) and its int64 label map (size, size)."""
        path = self.image_at(position)
        image, mask = read_image(path), read_mask(path)
        rng = np.random.default_rng((self.seed, 1, position))
        y = int(rng.integers(image.shape[0] - self.size + 1))
        x = int(rng.integers(image.shape[1] - self.size + 1))
        turn = int(rng.integers(8))
        box = (slice(y, y + self.size), slice(x, x + self.size))
        return dihedral(image[box], turn), dihedral(mask[box], turn)
