"""The sets that an evaluation is of: generated, reference and training set; images, or what was made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from engine.evaluation.crops import SIDE, Crops, check_alike, crops_of
from engine.evaluation.frechet import Statistics, read_statistics
from engine.evaluation.sources import Source, source_of
from engine.storage.readers import HDF5, read_rows, split_dataset

ROLES = {"generated": "generated", "reference": "the reference", "train": "the training set"}  # in messages
OPTIONS = {"generated": "generated", "reference": "`real`", "train": "`train`"}
ARGUMENTS = {role: option.strip("`") for role, option in OPTIONS.items()}  # as users name them
STATISTICS, FEATURES = ".npz", (".npy", *HDF5)


@dataclass(frozen=True)
class Given:
    """A set: crops of images, features in a file, or a mean and a covariance. Plain values, sent to every rank."""

    role: str
    path: Path
    crops: Crops | None = None
    rows: int | None = None
    statistics: Statistics | None = None

    @property
    def name(self) -> str:
        return ROLES[self.role]

    @property
    def count(self) -> int | None:
        """Number of crops, or of rows of features; None: it is not known."""
        return len(self.crops) if self.crops is not None else self.rows

    def read_features(self) -> np.ndarray:
        """Features in a file (n, D), read where they are sliced.

        Raises:
            ValueError: it holds something else.
        """
        rows = read_rows(self.path, OPTIONS[self.role])
        if len(rows.shape) != 2 or rows.dtype.kind != "f":
            raise ValueError(
                f"{self.path} holds {rows.dtype} of shape {tuple(rows.shape)}; expected features (n, D), floating-point"
            )
        return rows

    def facts(self) -> dict[str, Any]:
        """What an evaluation says of it."""
        if self.crops is not None:
            return self.crops.facts()
        kind = "features" if self.rows is not None else "statistics"
        return {"path": str(self.path), "kind": kind, "crops": self.count}


@dataclass(frozen=True)
class Cropping:
    """How images are cut.

    Args:
        crop: Side, px; None: images of sets and folders whole where all are squares of one size, else 256 px.
        crops: Number to draw at random of every set; None: all that lie side by side.
        pixel_size: Micrometres, what crops are resampled to; None: they are as they are.
        grey: Whether colours are replaced by their mean.
        pixel_size_of: Micrometres per pixel of sets that do not say it, by ``generated``, ``real`` and ``train``.
    """

    crop: int | None = None
    crops: int | None = None
    seed: int = 0
    pixel_size: float | None = None
    grey: bool = False
    pixel_size_of: Mapping[str, float] = field(default_factory=dict)


def open_sets(paths: dict[str, Path], cropping: Cropping) -> dict[str, Given]:
    """The sets at some paths, by role.

    Raises:
        ValueError: one cannot be read, or they are not of one kind.
    """
    check_stated(paths, cropping.pixel_size_of)
    sources = {role: source_of(path, OPTIONS[role]) for role, path in paths.items() if is_images(path)}
    side = cropping.crop or common_side(list(sources.values()), cropping.pixel_size)
    sets = {}
    for role, path in paths.items():
        if role in sources:
            source = sources[role]
            stated = cropping.pixel_size_of.get(ARGUMENTS[role])
            crops = crops_of(source, side, cropping.crops, cropping.seed, cropping.pixel_size, cropping.grey, stated)
            sets[role] = Given(role, path, crops)
        elif path.suffix == STATISTICS:
            check_there(path, role)
            sets[role] = Given(role, path, statistics=read_statistics(path))
        else:
            check_there(split_dataset(path)[0], role)
            sets[role] = Given(role, path, rows=len(Given(role, path).read_features()))
    made = sets["generated"].crops
    for other in sets.values():
        if other.crops is not None and other.crops is not made and made is not None:
            check_alike(made, other.crops)
    return sets


def check_stated(paths: Mapping[str, Path], stated: Mapping[str, float]) -> None:
    """Refuse pixel sizes of what is no set of images of this evaluation.

    Raises:
        ValueError: naming it.
    """
    images = [ARGUMENTS[role] for role, path in paths.items() if is_images(path)]
    other = next((name for name in stated if name not in images), None)
    if other is not None:
        raise ValueError(f"`pixel_size_of` names {other}, which is no set of images here; name {', '.join(images)}")


def is_images(path: Path) -> bool:
    return split_dataset(path)[0].suffix not in (STATISTICS, *FEATURES) or path.is_dir()


def check_there(path: Path, role: str) -> None:
    if not path.is_file():
        raise ValueError(f"{OPTIONS[role]} {path} is not there; give images, features (.npy, .h5) or statistics (.npz)")


def common_side(sources: Sequence[Source], pixel_size_um: float | None) -> int:
    """The side of all images, px, where they are squares of one size and none is a large image; else ``SIDE``."""
    sizes = {int(length) for source in sources for length in np.unique(source.sizes)}
    whole = all(source.kind in ("set", "folder") for source in sources) and pixel_size_um is None
    return sizes.pop() if whole and len(sizes) == 1 else SIDE
