"""Semantic maps: given whole, or made from an instance map of nuclei; and the map of styles."""

from __future__ import annotations

from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from engine.diffusion.latent_map import LatentMap
from engine.inputs.labels import labels_digest, uniform_labels
from engine.inputs.maps import MapFile, bands_of, check_size, digest_of
from engine.inputs.nuclei import Nuclei, published_channels
from engine.inputs.nuclei_scan import scan_nuclei, scan_stack
from engine.inputs.values import Inputs, LabelSource, Read
from engine.job import SampleJob
from engine.models.card import ModelCard
from engine.planning.geometry import Frames, Window
from engine.storage.layout import LabelArray
from engine.storage.readers import read_array, read_integers, read_picture, reads_in_boxes


def read_semantic(job: SampleJob, card: ModelCard, frames: Frames) -> Inputs:
    """The table of the nuclei, or the check of a map given whole; and the map of styles."""
    labels, hashes = read_styles(job, frames)
    if job.map is not None:
        array = read_map(job, card)
        if array.dtype.kind == "f" and not all(np.isfinite(band).all() for band in bands_of(array)):
            raise ValueError(f"`map` {job.map} holds values that are not finite; mend the map")
        return Inputs({**hashes, "map_hash": digest_of(array)}, None, labels)
    published_channels(card.semantic_channels)
    path = Path(str(job.instances))
    instances = read_integers(path, "`instances`", stack=job.count is not None)
    check_size(instances.shape, job, f"instance map {path}")
    colors = None if job.colors else (to_color(job.nucleus_color), to_color(job.background_color))
    name = f"`instances` {path}"
    if instances.ndim == 3:
        picture = read_array(Path(job.colors), "`colors`", color=True) if job.colors else None
        nuclei = scan_stack(
            lambda first, last: np.asarray(instances[first:last]),
            instances.shape,  # type: ignore[arg-type]
            image=picture if picture is None else lambda first, last: np.asarray(picture[first:last]),
            colors=colors,
            border=job.border_nuclei,
            name=name,
        )
    else:
        shown = read_picture(Path(job.colors), "`colors`", 3, job.size) if job.colors else None
        nuclei = scan_nuclei(
            lambda box: np.asarray(instances[box.y0 : box.y1, box.x0 : box.x1]),
            job.size,
            image=shown if shown is None else lambda box: np.asarray(shown[:, box.y0 : box.y1, box.x0 : box.x1]),
            colors=colors,
            border=job.border_nuclei,
            name=name,
        )
    hashes |= {"instances_hash": digest_of(instances, np.uint32), "nuclei_hash": digest_of(nuclei.table)}
    return Inputs(hashes, LabelArray("nuclei", "uint32"), labels, nuclei=nuclei)


def to_color(color: tuple[int, ...]) -> tuple[float, float, float]:
    red, green, blue = (float(v) for v in color)
    return red, green, blue


def read_map(job: SampleJob, card: ModelCard) -> np.ndarray:
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


def read_styles(job: SampleJob, frames: Frames) -> tuple[LatentMap | None, dict[str, str]]:
    """Which style is asked for at the latents, and the hash of that."""
    source = style_source(job)
    if source is None:
        return None, {}
    return LatentMap(frames, source.read), {"style_map_hash": labels_digest(source, frames)}


def style_source(job: SampleJob) -> LabelSource | None:
    """Where the map of styles comes from; None: the first throughout."""
    styles = styles_of(job)
    if job.style_map is None and (len(styles) == 1 or job.count is None):
        if len(styles) > 1:
            raise ValueError(f"`style` {job.style} names {len(styles)} styles; pass `style_map` FILE, or one style")
        return None
    if job.style_map is None:
        return LabelSource(partial(uniform_labels, tuple(range(len(styles)))), f"{len(styles)} styles in turn")
    file = MapFile(Path(job.style_map), "`style_map`", job.size, job.count is not None, len(styles), tuple(styles))
    check_size(file.array.shape, job, f"`style_map` {job.style_map}")
    return LabelSource(file.read, "")


def styles_of(job: SampleJob) -> list[str]:
    """The model folders whose networks are used; the model's own where no style is named."""
    return [name for name in (job.style or "").split(",") if name] or [job.model]


def read_condition(of_image: Read, frames: Frames, window: Window) -> np.ndarray:
    """float32 (K, p, p): the semantic map of a window of the canvas."""
    image = window.y0 // frames.frame[0]
    rows = image * frames.frame[0]
    return of_image(image, Window(window.y0 - rows, window.x0, window.y1 - rows, window.x1))


def in_frame_reader(inputs: Inputs, job: SampleJob, card: ModelCard, stored: Read | None) -> Read:
    """A function from a box of an image, which may reach beyond it, to its semantic map."""
    if inputs.nuclei is None:
        array = read_map(job, card)

        def given(image: int, window: Window) -> np.ndarray:
            found = np.zeros((card.semantic_channels, *window.shape), np.float32)
            inner = window & Window(0, 0, *job.size)
            of_image = array if array.ndim == 3 else array[image]
            found[(slice(None), *inner.within(window))] = of_image[:, inner.y0 : inner.y1, inner.x0 : inner.x1]
            return found

        return given
    nuclei, channels = inputs.nuclei, published_channels(card.semantic_channels)
    alike = not nuclei.table["key"][-1] >> np.uint64(32)  # one map for all images
    table = lru_cache(maxsize=64)(lambda image: nuclei if alike else nuclei.image(image))

    def made(image: int, window: Window) -> np.ndarray:
        assert stored is not None
        return table(image).maps(partial(stored, image), window, channels)

    return made


def instance_source(job: SampleJob, nuclei: Nuclei) -> LabelSource:
    """The instance map as it is stored beside the images: without the nuclei that are dropped."""
    file = MapFile(Path(str(job.instances)), "`instances`", job.size, job.count is not None)

    def read(image: int, box: Window, step: int) -> np.ndarray:
        of_image = nuclei if file.array.ndim == 2 else nuclei.image(image)
        return of_image.without_dropped(file.read(image, box, step))

    return LabelSource(read, "")
