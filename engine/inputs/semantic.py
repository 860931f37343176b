"""Semantic maps: given whole, or made from an instance map of nuclei; and the map of styles."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from engine.diffusion.boxes import ReadImageBox
from engine.diffusion.latent_map import LatentMap
from engine.inputs.class_map import add_class_map, class_map_of, is_class_map, map_file
from engine.inputs.dataset_folder import path_of
from engine.inputs.input_file import InputFile, integer_file
from engine.inputs.labels import labels_digest, uniform_labels
from engine.inputs.maps import MapFile, bands_of, box_of, check_size, digest_of
from engine.inputs.nuclei import Nuclei, published_channels
from engine.inputs.nuclei_scan import check_colors, scan_nuclei
from engine.inputs.references import add_references, appearance_of, check_options
from engine.inputs.values import Inputs, LabelSource, Sources
from engine.job import SampleJob
from engine.models.card import ModelCard
from engine.planning.geometry import Box, Frames
from engine.storage.layout import LabelArray
from engine.storage.picture_folder import MapFolder
from engine.storage.readers import read_array, read_picture, reads_in_boxes


def read_semantic(job: SampleJob, card: ModelCard, frames: Frames) -> Inputs:
    """The semantic map that is given whole, or the nuclei that it is made from; and the map of styles.

    Raises:
        ValueError: a map of another size or kind, or nuclei that are cut by the border.
    """
    inputs = add_styles(Inputs(), job, frames)
    return add_map(inputs, job, card) if job.map is not None else add_nuclei(inputs, job, card)


# ---- a map that is given whole ----------------------------------------------------------------------


def add_map(inputs: Inputs, job: SampleJob, card: ModelCard) -> Inputs:
    """The inputs with the hash of the map, which every rank reads in boxes."""
    check_options(job, has_colors=True)
    if is_class_map(job, card):
        return add_class_map(inputs, job, card)
    if job.instances is not None or job.map_ids is not None:
        which = "`instances`" if job.instances is not None else "`map_ids`"
        raise ValueError(
            f"`map` {job.map} is a semantic map given whole; leave {which} out, or pass a map of class ids"
        )
    array = open_map(job, card)
    if array.dtype.kind == "f" and not all(np.isfinite(band).all() for band in bands_of(array)):
        raise ValueError(f"`map` {job.map} holds values that are not finite; mend the map")
    return inputs.adding({"map_hash": digest_of(array)}, {})


def open_map(job: SampleJob, card: ModelCard) -> np.ndarray:
    """A semantic map (K, h, w), or a stack of them, read where it is sliced."""
    path = Path(str(job.map))
    array = read_array(path, "`map`")
    if not reads_in_boxes(path):
        raise ValueError(f"`map` {path} is read in boxes by every rank; save it as .npy or Zarr, channels first")
    stack = job.count is not None and array.ndim == 4
    channels = array.shape[-3] if array.ndim >= 3 else 0
    if channels != card.semantic_channels or not (stack or array.ndim == 3):
        raise ValueError(
            f"`map` {path} has shape {array.shape}; the model takes {card.semantic_channels} channels first, "
            f"({card.semantic_channels}, height, width)"
        )
    check_size((*array.shape[:1], *array.shape[-2:]) if stack else array.shape[-2:], job, f"`map` {path}")
    if array.dtype.kind not in "fuib":
        raise ValueError(f"`map` {path} holds {array.dtype}; a semantic map holds numbers")
    return array


# ---- nuclei -----------------------------------------------------------------------------------------


def add_nuclei(inputs: Inputs, job: SampleJob, card: ModelCard) -> Inputs:
    """The inputs with the table of the nuclei of the instance map, which is stored beside the image."""
    has_colors = "color" in published_channels(card.semantic_channels)  # refuses channels that nuclei cannot fill
    if job.map_ids is not None:
        raise ValueError(f"`map_ids` {job.map_ids} is for a map of class ids; pass `map` FILE, or leave it out")
    check_options(job, has_colors)
    file = instance_file(job)
    instances = file.array
    check_size(instances.shape, job, f"instance map {file.path}")
    nuclei = scan_nuclei(
        partial(box_of, instances),
        job.size,
        images=1 if instances.ndim == 2 else len(instances),
        pixels=color_reader(job, instances.shape) if job.colors else None,
        colors=None if job.colors else (rgb(job.nucleus_color), rgb(job.background_color)),
        border=job.border_nuclei,
        least_area=job.least_area or 0,
        split=job.torn_nuclei == "split",
        name=str(file),
    )
    hashes = {"instances_hash": digest_of(instances, np.uint32), "nuclei_hash": digest_of(nuclei.table)}
    inputs = inputs.adding(hashes, {}, label_array=LabelArray("nuclei", "uint32"), nuclei=nuclei)
    names = instances.folder.names if isinstance(instances, MapFolder) else ()
    inputs = replace(inputs, sources=Sources(names) if names else None)
    if not has_colors:
        return inputs
    inputs = add_references(inputs, job, nuclei, names, instances.ndim > 2)
    if "appearance" not in inputs.files:
        said = "the network was trained on the pixels of an image in random order as its colours: --appearance FILE"
        inputs = replace(inputs, notes=(*inputs.notes, said))
    return inputs


def instance_file(job: SampleJob) -> InputFile:
    """A job's instance map; of a set also a stack or a folder of them."""
    path = path_of(job, "instances")
    return map_file(str(path), "`instances`", job.count)


def color_reader(job: SampleJob, shape: tuple[int, ...]) -> ReadImageBox:
    """A reader of the image, uint8 (3, h, w), that nuclei and background take their mean colours from.

    Args:
        shape: Shape of the instance map, (h, w), or of the stack, (images, h, w).
    """
    path, option = Path(str(job.colors)), "`colors`"
    if len(shape) == 2:
        picture = read_picture(path, option, 3, job.size)
        return lambda image, box: np.asarray(picture[:, box.y0 : box.y1, box.x0 : box.x1])
    pictures = read_array(path, option, color=True)
    check_colors(pictures, (shape[0], 3, *shape[1:]))
    return lambda image, box: np.asarray(pictures[image, :, box.y0 : box.y1, box.x0 : box.x1])


def rgb(color: tuple[int, ...]) -> tuple[float, float, float]:
    red, green, blue = (float(v) for v in color)
    return red, green, blue


def instance_source(job: SampleJob, nuclei: Nuclei) -> LabelSource:
    """The instance map as it is stored beside the images: without the nuclei that are dropped."""
    file = instance_file(job)
    instances = MapFile(file, job.size)

    def read(image: int, box: Box, step: int) -> np.ndarray:
        of_image = nuclei if file.array.ndim == 2 else nuclei.image(image)
        return of_image.without_dropped(instances.read(image, box, step))

    return LabelSource(read, "")


# ---- styles -----------------------------------------------------------------------------------------


def add_styles(inputs: Inputs, job: SampleJob, frames: Frames) -> Inputs:
    """The inputs with the style of each latent, where a job names several.

    Raises:
        ValueError: several styles for one image without a map of them.
    """
    styles = styles_of(job)
    if job.style_map is not None:
        file = integer_file(job.style_map, "`style_map`", stack=job.count is not None)
        check_size(file.array.shape, job, str(file))
        source, files = LabelSource(style_map(file, job).read, ""), {"style_map": file}
    elif len(styles) == 1:
        return inputs
    elif job.count is None:
        raise ValueError(f"`style` {job.style} names {len(styles)} styles; pass `style_map` FILE, or one style")
    else:
        in_turn = partial(uniform_labels, tuple(range(len(styles))))
        source, files = LabelSource(in_turn, f"{len(styles)} styles in turn"), {}
    hashes = {"style_map_hash": labels_digest(source, frames)}
    return inputs.adding(hashes, files, labels=LatentMap(frames, source.read))


def style_map(file: InputFile, job: SampleJob) -> MapFile:
    """The map of which style is asked for where."""
    styles = styles_of(job)
    return MapFile(file, job.size, len(styles), tuple(styles))


def styles_of(job: SampleJob) -> list[str]:
    """The model folders whose networks are used: the model's own where no style is named."""
    return [name for name in (job.style or "").split(",") if name] or [job.model]


# ---- the condition of a window ----------------------------------------------------------------------


def read_condition(read: ReadImageBox, frames: Frames, window: Box) -> np.ndarray:
    """float32 (K, p, p): the semantic map of a window of the canvas.

    Args:
        read: Reader of the semantic map of an image, see ``semantic_reader``.
    """
    image = window.y0 // frames.frame[0]
    rows = image * frames.frame[0]
    return read(image, Box(window.y0 - rows, window.x0, window.y1 - rows, window.x1))


def semantic_reader(
    inputs: Inputs, job: SampleJob, card: ModelCard, read_instances: ReadImageBox | None
) -> ReadImageBox:
    """A reader of float32 (K, h, w), the semantic map of a box of an image, which may reach beyond the image.

    Args:
        read_instances: Reader of the instance map that is stored beside the images; needed where the map is made from
            nuclei and is read.
    """
    if "map" in inputs.files:
        return partial(class_map_of(inputs, job, card).read, job.size)
    if inputs.nuclei is None:
        return partial(given_map, open_map(job, card), job.size)
    nuclei, channels = inputs.nuclei, published_channels(card.semantic_channels)
    one_for_all = not nuclei.table["key"][-1] >> np.uint64(32)
    of_image = lru_cache(maxsize=64)(lambda image: nuclei if one_for_all else nuclei.image(image))
    appearance = appearance_of(inputs, job)

    def made(image: int, window: Box) -> np.ndarray:
        assert read_instances is not None
        colors = None if appearance is None else partial(appearance.colors, image)
        return of_image(image).maps(partial(read_instances, image), window, channels, colors)

    return made


def given_map(array: np.ndarray, size: tuple[int, int], image: int, window: Box) -> np.ndarray:
    """float32 (K, h, w): a box of a semantic map (K, H, W), or of one of a stack; 0 beyond its edge."""
    values = np.zeros((array.shape[-3], *window.shape), np.float32)
    inner = window & Box(0, 0, *size)
    of_image = array if array.ndim == 3 else array[image]
    values[(slice(None), *inner.within(window))] = of_image[:, inner.y0 : inner.y1, inner.x0 : inner.x1]
    return values
