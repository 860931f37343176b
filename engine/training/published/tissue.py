"""Grey pictures in a folder a class, as the feature-aligned system's ``dataset.py`` reads Kather et al. 2016
(doi:10.1038/srep27988).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from engine.distributed.ranks import Ranks
from engine.training.data import IMAGE_SUFFIXES, number_at, paths_below, read_picture

GREY = np.array([0.2989, 0.587, 0.114], np.float32)  # of red, green, blue, by ITU-R BT.601


@dataclass(frozen=True)
class TissuePictures:
    """Pictures and the class of each.

    Args:
        paths: Files of the pictures.
        classes: Number of the class of each.
        side: Side that pictures are brought to, px.
        seed: Seed of the order.
    """

    paths: tuple[Path, ...]
    classes: tuple[int, ...]
    side: int
    seed: int

    def __len__(self) -> int:
        return len(self.paths)

    def picture(self, index: int) -> np.ndarray:
        """float32 (1, side, side) in [0, 1]."""
        return grey_picture(self.paths[index], self.side)

    def at(self, position: int, rng: np.random.Generator) -> tuple[np.ndarray, int]:
        """A picture, float32 (1, side, side) in [0, 1], perhaps mirrored, and its class.

        Every epoch visits each picture once, in an order of its own.
        """
        index = number_at(position, len(self), self.seed)
        mirrors = rng.integers(2, size=2)
        return np.ascontiguousarray(mirrored(self.picture(index), mirrors)), self.classes[index]


def mirrored(picture: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """The picture, mirrored along the axes (rows, columns) whose flag is 1."""
    return picture[:, :: 1 - 2 * int(axes[0]), :: 1 - 2 * int(axes[1])]


@lru_cache(maxsize=512)
def grey_picture(path: Path, side: int) -> np.ndarray:
    """float32 (1, side, side) in [0, 1]: the middle of a picture, whose smaller side is brought to ``side``.

    Raises:
        ValueError: it cannot be read.
    """
    colors = read_picture(path, color=True)
    values = colors.astype(np.float32) / 255
    grey = values[..., 0] if (colors == colors[..., :1]).all() else values @ GREY
    size = [max(round(n * side / min(grey.shape)), side) for n in grey.shape]
    scaled = F.interpolate(torch.from_numpy(grey)[None, None], size, mode="bilinear", antialias=True)[0].numpy()
    y, x = ((n - side) // 2 for n in size)
    return np.ascontiguousarray(scaled[:, y : y + side, x : x + side].clip(0, 1))


def tissue_pictures(
    data: Path, labels: Sequence[str], side: int, share: float, seed: int
) -> tuple[TissuePictures, TissuePictures]:
    """The pictures that are trained on, and those that are not: a share of every class.

    Args:
        labels: Names of the classes; a class's folder is the first whose name contains its name.
    Raises:
        ValueError: a class has no folder, or too few pictures for both.
    """
    learned: list[tuple[Path, int]] = []
    held: list[tuple[Path, int]] = []
    folders: dict[Path, str] = {}
    for number, label in enumerate(labels):
        folder = folder_of(data, label)
        if folder in folders:
            raise ValueError(
                f"`labels` names {folders[folder]} and {label}, which are both of the folder {folder.name}; name each "
                "folder's class once"
            )
        folders[folder] = label
        paths = pictures_of(folder, label)
        count = math.ceil(share * len(paths) - 1e-9)
        if count >= len(paths):
            raise ValueError(
                f"`data` {data}: class {label} has {len(paths)} pictures, none of which would be left to train on with "
                f"`hold_out` {share:g}; add pictures, hold out less, or leave the class out of `labels`"
            )
        order = np.random.default_rng((seed, 3, number)).permutation(len(paths))
        held += [(paths[index], number) for index in sorted(order[:count].tolist())]
        learned += [(paths[index], number) for index in sorted(order[count:].tolist())]
    first, second = (
        TissuePictures(tuple(path for path, _ in both), tuple(number for _, number in both), side, seed)
        for both in (learned, held)
    )
    return first, second


def folder_of(data: Path, label: str) -> Path:
    """The folder of a class.

    Raises:
        ValueError: there is none, or several.
    """
    if not data.is_dir():
        raise ValueError(f"`data` {data} is not a folder; it takes one with a folder of pictures a class")
    folders = [folder for folder in sorted(data.iterdir()) if folder.is_dir() and label.lower() in folder.name.lower()]
    if not folders:
        raise ValueError(
            f"`data` {data} holds no folder whose name contains {label}; name the classes that there are with `labels`"
        )
    if len(folders) > 1:
        raise ValueError(
            f"`data` {data} holds {len(folders)} folders of {label}, {folders[0].name} and {folders[1].name}; leave one"
        )
    return folders[0]


def pictures_of(folder: Path, label: str) -> list[Path]:
    """The pictures of a class.

    Raises:
        ValueError: there are none.
    """
    paths = paths_below(folder, IMAGE_SUFFIXES)
    if not paths:
        raise ValueError(f"{folder} holds no picture of class {label}; add some, or leave it out of `labels`")
    return paths


def class_means(pictures: TissuePictures, ranks: Ranks) -> list[float]:
    """The mean brightness of each class; reads every picture once, each rank its share. Collective.

    Raises:
        AgreedError: a picture cannot be read.
    """
    count = max(pictures.classes) + 1
    sums = np.zeros((2, count))

    def add() -> None:
        for index in range(ranks.rank, len(pictures), ranks.size):
            sums[:, pictures.classes[index]] += 1.0, pictures.picture(index).mean()

    ranks.agree(add)
    ranks.allreduce_array(sums)
    return [round(float(mean), 4) for mean in sums[1] / sums[0]]
