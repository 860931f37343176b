"""Masks: the region of interest, and what in-painting samples anew."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from engine.diffusion.latent_map import LatentMap
from engine.inputs.maps import MapFile, bands_of, check_size, digest_of
from engine.job import SampleJob
from engine.models.card import ModelCard
from engine.planning.geometry import Frames, Window
from engine.storage.readers import read_integers, read_picture


def read_roi(job: SampleJob, frames: Frames) -> tuple[LatentMap | None, dict[str, str]]:
    """The latents that hold any pixel of the region of interest, and the hash of its mask."""
    if job.roi is None:
        return None, {}
    mask = read_region(job)
    if not any(band.any() for band in bands_of(mask)):
        raise ValueError(f"`roi` {job.roi} is 0 throughout: nothing is wanted; mark the region with 1 or 255")
    return roi_map(job, frames), {"roi_hash": digest_of(mask)}


def roi_map(job: SampleJob, frames: Frames) -> LatentMap:
    """1 at the latents that hold any pixel of the region of interest."""
    return LatentMap(frames, partial(wanted_latents, MapFile(Path(str(job.roi)), "`roi`", job.size)), repeats=False)


def wanted_latents(mask: MapFile, image: int, box: Window, factor: int) -> np.ndarray:
    return latents_with_any(mask.array, box, factor)


def latents_with_any(mask: np.ndarray, box: Window, factor: int) -> np.ndarray:
    """bool (h, w): the latents of a box that hold any pixel of a mask; as many as the mask reaches.

    Args:
        box: px, from a latent's corner on; what of it lies beyond the mask is left out.
    """
    part = np.asarray(mask[box.y0 : box.y1, box.x0 : box.x1]) != 0
    part = np.pad(part, [(0, -n % factor) for n in part.shape])
    height, width = part.shape
    return np.asarray(part.reshape(height // factor, factor, width // factor, factor).any((1, 3)))


def read_region(job: SampleJob) -> np.ndarray:
    """The mask (h, w) of what is wanted: not 0."""
    mask = read_integers(Path(str(job.roi)), "`roi`")
    check_size(mask.shape, job, f"`roi` {job.roi}")
    return mask


def check_inpainting(job: SampleJob, card: ModelCard) -> dict[str, str]:
    """Read the known image and the mask of an in-painting; returns the hashes of what they hold."""
    if job.image is None:
        return {}
    mask = read_mask(job)
    if not any(np.asarray(band).any() for band in bands_of(mask)):
        raise ValueError(f"`mask` {job.mask} is 0 throughout: there is nothing to paint; mark it with 1 or 255")
    return {"image_hash": digest_of(read_known(job, card)), "mask_hash": digest_of(mask)}


def read_known(job: SampleJob, card: ModelCard) -> np.ndarray:
    """The known image, uint8 (c, h, w)."""
    return read_picture(Path(str(job.image)), "`image`", card.image_channels, job.size)


def read_mask(job: SampleJob) -> np.ndarray:
    """The mask (h, w) of what is to be sampled anew: not 0."""
    mask = read_integers(Path(str(job.mask)), "`mask`")
    check_size(mask.shape, job, f"`mask` {job.mask}")
    return mask
