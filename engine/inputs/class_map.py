"""Semantic maps that are made from a map of class ids: one channel a class, and the edges of instances behind them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from engine.inputs.input_file import InputFile, integer_file
from engine.inputs.maps import bands_of, box_of, check_size, digest_of
from engine.inputs.nuclei import edges
from engine.inputs.values import Inputs
from engine.job import SampleJob
from engine.models.card import ModelCard
from engine.planning.geometry import Box
from engine.storage.picture_folder import MapFolder, PictureFolder, is_picture_folder
from engine.storage.readers import checked_integers, read_array

MASK = 255  # value of a model of one channel where its map is not 0, as the system has it
UNLABELLED = {"ade20k": 150, "coco": 182}  # the class of pixels without one


def map_file(path: str, option: str, count: int | None) -> InputFile:
    """A map of integers (h, w); of a set also a stack of maps, or a folder of them.

    Args:
        count: Number of images of a set; None: the job is one image.
    """
    if is_picture_folder(Path(path)):
        return InputFile(Path(path), option, partial(read_folder, count=count))  # type: ignore[arg-type]
    return integer_file(path, option, stack=count is not None)


def read_folder(path: Path, option: str, count: int | None) -> MapFolder:
    """A folder of maps as a stack of ``count``, which takes them in turn.

    Raises:
        ValueError: the job is one image.
    """
    folder = PictureFolder(path, option)
    if count is None:
        raise ValueError(f"{option} {path} is a folder of {len(folder)} maps; pass `count` {len(folder)}, or one map")
    return MapFolder(folder, count)


def is_class_map(job: SampleJob, card: ModelCard) -> bool:
    """Whether a job's map is one of class ids, and not a semantic map given whole."""
    path = Path(str(job.map))
    if is_picture_folder(path):
        return True
    array = read_array(path, "`map`")
    whole = array.ndim > 2 and array.shape[-3] == card.semantic_channels
    return not whole and array.dtype.kind in "uib" and (array.ndim == 2 or (array.ndim == 3 and job.count is not None))


class ClassMap(NamedTuple):
    """A map of class ids, and of the instances whose edges are the last channel.

    Args:
        channels: Number of channels of the semantic map.
        ids: How the file's numbers become classes: one of the values of ``map_ids``.
    """

    file: InputFile
    instances: InputFile | None
    channels: int
    ids: str

    @property
    def classes(self) -> int:
        """Number of classes that the model knows."""
        return self.channels - (self.instances is not None)

    def classes_of(self, values: np.ndarray) -> np.ndarray:
        """int64, the classes that the file's numbers mean."""
        if self.ids == "mask" or self.channels == 1:
            return (values != 0).astype(np.int64)
        classes = values.astype(np.int64)
        if self.ids == "ade20k":
            return np.where(classes == 0, UNLABELLED[self.ids], classes - 1)
        return np.where(classes == MASK, UNLABELLED[self.ids], classes) if self.ids == "coco" else classes

    def read(self, size: tuple[int, int], image: int, window: Box) -> np.ndarray:
        """float32 (channels, h, w): the semantic map of a box of an image; 0 beyond its edge."""
        maps = np.zeros((self.channels, *window.shape), np.float32)
        inner = window & Box(0, 0, *size)
        if not inner:
            return maps
        classes = self.classes_of(box_of(self.file.array, image, inner))
        inside = inner.within(window)
        if self.channels == 1:
            maps[(0, *inside)] = MASK * classes
            return maps
        maps[(slice(self.classes), *inside)] = classes == np.arange(self.classes)[:, None, None]
        if self.instances is not None:
            held = Box(inner.y0 - 1, inner.x0 - 1, inner.y1 + 1, inner.x1 + 1) & Box(0, 0, *size)
            maps[(-1, *inside)] = edges(box_of(self.instances.array, image, held))[inner.within(held)]
        return maps


def class_map_of(inputs: Inputs, job: SampleJob, card: ModelCard) -> ClassMap:
    """A job's map of class ids, as every rank reads it."""
    return ClassMap(inputs.files["map"], inputs.files.get("instances"), card.semantic_channels, job.map_ids or "plain")


def add_class_map(inputs: Inputs, job: SampleJob, card: ModelCard) -> Inputs:
    """The inputs with a map of class ids, which every rank reads in boxes.

    Raises:
        ValueError: a map of another size, or with an id that the model has no class for.
    """
    files = {"map": map_file(str(job.map), "`map`", job.count)}
    if job.instances is not None:
        files["instances"] = map_file(job.instances, "`instances`", job.count)
        if card.semantic_channels < 2:
            raise ValueError(f"`instances` {job.instances} gives edges but the model takes 1 channel; leave it out")
    for file in files.values():
        check_size(file.array.shape, job, str(file))
        checked_integers(file.array, file.path, file.option, stack=True)
    hashes = {f"{name}_hash": digest_of(file.array) for name, file in files.items()}
    inputs = inputs.adding(hashes, files)
    check_classes(class_map_of(inputs, job, card))
    return inputs


def check_classes(class_map: ClassMap) -> None:
    """Refuse ids that the model has no class for.

    Raises:
        ValueError: naming one.
    """
    for band in bands_of(class_map.file.array):
        classes = class_map.classes_of(band)
        if (wrong := (classes < 0) | (classes >= class_map.classes)).any() and class_map.channels > 1:
            edged = " beside its edges" if class_map.instances is not None else ""
            raise ValueError(
                f"{class_map.file} has id {int(band[wrong][0])}; the model has {class_map.classes} classes{edged}, "
                f"0 to {class_map.classes - 1}; `map_ids` says how a dataset numbers them"
            )
