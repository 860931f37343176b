"""The known image, and masks: what in-painting samples anew, and the region of interest."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from engine.diffusion.latent_map import LatentMap
from engine.inputs.input_file import InputFile, integer_file
from engine.inputs.maps import bands_of, check_size, digest_of
from engine.inputs.resize import scaled_to
from engine.inputs.values import Inputs
from engine.job import SampleJob
from engine.models.card import ModelCard
from engine.planning.geometry import Box, Frames
from engine.storage.readers import read_integers, read_picture


def add_roi(inputs: Inputs, job: SampleJob, frames: Frames) -> Inputs:
    """The inputs with the region of interest, where the job names one.

    Raises:
        ValueError: a mask of other proportions, or one that marks nothing.
    """
    if job.roi is None:
        return inputs
    mask = InputFile(Path(job.roi), "`roi`", partial(read_scaled, size=job.size))
    if not marks_anything(mask):
        raise ValueError(f"`roi` {job.roi} is 0 throughout: nothing is wanted; mark the region with 1 or 255")
    height, width = mask.source.shape
    scaled = f"{mask}, {height} x {width} px, is scaled to {job.size[0]} x {job.size[1]} px"
    notes = (scaled,) if (height, width) != job.size else ()
    return inputs.adding({"roi_hash": digest_of(mask.source)}, {"roi": mask}, roi=roi_map(mask, frames), notes=notes)


def read_scaled(path: Path, option: str, size: tuple[int, int]) -> Any:
    """A mask of any size, as if it had the image's."""
    return scaled_to(read_integers(path, option), size, f"{option} {path}")


def add_known_image(inputs: Inputs, job: SampleJob, card: ModelCard) -> Inputs:
    """The inputs with the known image (c, h, w) and, of an in-painting, the mask (h, w) of what is sampled anew.

    Raises:
        ValueError: files of another size or kind, or a mask that marks nothing.
    """
    if job.image is None:
        return inputs
    if job.mask is not None:
        mask = inpainting_mask(job)
        inputs = inputs.adding({"mask_hash": digest_of(mask.array)}, {"mask": mask})
    reader = partial(read_picture, channels=card.image_channels, size=job.size)
    image = InputFile(Path(job.image), "`image`", reader)
    return inputs.adding({"image_hash": digest_of(image.array)}, {"image": image})


def inpainting_mask(job: SampleJob) -> InputFile:
    """The mask of what is sampled anew.

    Raises:
        ValueError: it has another size, or marks nothing.
    """
    mask = integer_file(str(job.mask), "`mask`")
    check_size(mask.array.shape, job, str(mask))
    if not marks_anything(mask):
        raise ValueError(f"`mask` {job.mask} is 0 throughout: there is nothing to paint; mark it with 1 or 255")
    return mask


def marks_anything(mask: InputFile) -> bool:
    return any(band.any() for band in bands_of(mask.source))


def roi_map(mask: InputFile, frames: Frames) -> LatentMap:
    """1 at the latents that hold any pixel of the region of interest."""
    return LatentMap(frames, partial(marked_latents, mask), repeats=False)


def marked_latents(mask: InputFile, image: int, box: Box, factor: int) -> np.ndarray:
    return latents_with_any(mask.array, box, factor)


def latents_with_any(mask: np.ndarray, box: Box, factor: int) -> np.ndarray:
    """bool (h, w): the latents of a box that hold any pixel of a mask; as many as the mask reaches.

    Args:
        box: Box in px, from a latent's corner on; what of it lies beyond the mask is left out.
    """
    part = np.asarray(mask[box.y0 : box.y1, box.x0 : box.x1]) != 0
    part = np.pad(part, [(0, -n % factor) for n in part.shape])
    height, width = part.shape
    return np.asarray(part.reshape(height // factor, factor, width // factor, factor).any((1, 3)))
