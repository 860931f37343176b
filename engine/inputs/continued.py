"""A finished image that is continued past its edge: what a region has of it is known, and the rest is painted."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from engine.inputs.input_file import InputFile
from engine.inputs.maps import digest_of
from engine.inputs.values import Inputs
from engine.job import RunOptions, SampleJob
from engine.models.card import ModelCard
from engine.planning.geometry import Box
from engine.planning.names import LARGEST_SIDE
from engine.storage.image_layout import ImageLayout, PlacedLayout
from engine.storage.output import Output, output_to_read


def continued_region(job: SampleJob, options: RunOptions, card: ModelCard) -> Box:
    """The region that a job continues an image in, px of that image.

    Raises:
        ValueError: it has nothing of the image, or nothing beside it; or there is no such image.
    """
    if options.region is None:
        way = "pass `region` Y0:Y1,X0:X1 too, in pixels of that image, which may be negative"
        raise ValueError(f"`continue_` {job.continue_}: where to is not said; {way}")
    region, image = Box(*options.region), Box(0, 0, *image_to_continue(Path(str(job.continue_)), card).layout.size)
    text = f"`region` {region.y0}:{region.y1},{region.x0}:{region.x1}"
    if job.size not in (SampleJob.size, region.shape):
        size = f"{job.size[0]}x{job.size[1]}"
        raise ValueError(f"`size` {size} does not go with `continue_`: {text} gives the size; leave `size` out")
    if max(region.shape) > LARGEST_SIDE:
        raise ValueError(f"{text} is larger than {LARGEST_SIDE} px a side; choose a smaller one")
    is_of = f"{job.continue_}, which is {image.height} x {image.width} px"
    if not region & image:
        raise ValueError(f"{text} has no pixel of {is_of}: nothing is known to go on from; let it overlap the image")
    if region & image == region:
        raise ValueError(f"{text} lies inside {is_of}: there is nothing to add; let it reach past the edge")
    if region.y0 % card.factor or region.x0 % card.factor:
        y, x = (n // card.factor * card.factor for n in (region.y0, region.x0))
        raise ValueError(
            f"{text} begins between the model's latents, which are {card.factor} px wide; begin it at {y},{x}"
        )
    return region


def image_to_continue(path: Path, card: ModelCard) -> Output:
    """The output of an image.

    Raises:
        ValueError: it is no finished image of the model's kind.
    """
    output = output_to_read(path)
    if type(output.layout) not in (ImageLayout, PlacedLayout) or not output.finished:
        kind = f"a {output.provenance['kind']}" if output.finished else output.provenance["state"]
        raise ValueError(f"`continue_` {path} is {kind}; give a finished image")
    if output.layout.channels != card.image_channels:
        raise ValueError(
            f"`continue_` {path} has {output.layout.channels} channels, and images of {card.folder.name} "
            f"{card.image_channels}; choose its model"
        )
    return output


class Continued:
    """The image as a region sees it, uint8 (c, h, w), sliced like an array; where it has no pixel it is mirrored.

    What lies beyond is mixed into what is painted over the first pixels: its last pixel drawn out was seen as a smear.
    """

    ndim, dtype = 3, np.dtype(np.uint8)

    def __init__(self, output: Output, region: Box) -> None:
        self.output, self.region = output, region
        self.shape = (output.layout.channels, *region.shape)

    def __getitem__(self, index: tuple[Any, ...]) -> np.ndarray:
        channels, *place = expanded(index, 3)
        (height, width), box = self.output.layout.size, box_at(place, self.region)
        rows, columns = mirrored(box.y0, box.y1, height), mirrored(box.x0, box.x1, width)
        known = Box(int(rows.min()), int(columns.min()), int(rows.max()) + 1, int(columns.max()) + 1)
        pixels = self.output.read_part(0, known)[channels]
        return pixels[..., rows - known.y0, :][..., columns - known.x0]


def mirrored(start: int, stop: int, length: int) -> np.ndarray:
    """Positions in a line of so many pixels, where it ends they turn back.

    >>> mirrored(-3, 5, 3).tolist()
    [2, 1, 0, 0, 1, 2, 2, 1]
    """
    there = np.arange(start, stop) % (2 * length)
    return np.minimum(there, 2 * length - 1 - there)


class Beside:
    """Where a region has no pixel of the image: uint8 (h, w), 1 there, sliced like an array."""

    ndim, dtype = 2, np.dtype(np.uint8)

    def __init__(self, output: Output, region: Box) -> None:
        self.image, self.region = Box(0, 0, *output.layout.size), region
        self.shape = region.shape

    def __getitem__(self, index: tuple[Any, ...]) -> np.ndarray:
        box = box_at(expanded(index, 2), self.region)
        beside = np.ones(box.shape, np.uint8)
        if known := box & self.image:
            beside[known.within(box)] = 0
        return beside


def expanded(index: tuple[Any, ...], axes: int) -> list[Any]:
    """An index with an entry for each axis.

    >>> expanded((0, slice(3, 4)), 3)
    [0, slice(3, 4, None), slice(None, None, None)]
    >>> expanded((..., slice(2)), 2)
    [slice(None, None, None), slice(None, 2, None)]
    """
    at = index.index(...) if ... in index else len(index)
    return [*index[:at], *[slice(None)] * (axes - len(index) + (at < len(index))), *index[at + 1 :]]


def box_at(place: Sequence[slice], region: Box) -> Box:
    """Two slices of a region as a box of the image."""
    (y0, y1, _), (x0, x1, _) = (part.indices(length) for part, length in zip(place, region.shape, strict=True))
    return Box(y0, x0, y1, x1).moved(region.y0, region.x0)


def read_continued(path: Path, option: str, region: Box) -> Any:
    return Continued(output_to_read(path), region)


def read_beside(path: Path, option: str, region: Box) -> Any:
    return Beside(output_to_read(path), region)


def add_continued(inputs: Inputs, job: SampleJob, region: Box) -> Inputs:
    """The inputs with the known image and the mask of a region, which are read box by box."""
    path = Path(str(job.continue_))
    image, mask = (
        InputFile(path, "`continue_`", partial(read, region=region)) for read in (read_continued, read_beside)
    )
    output = output_to_read(path)
    known = read_continued(path, "`continue_`", region & Box(0, 0, *output.layout.size))  # the region may be any size
    hashes = {"continued_hash": digest_of(known), "continued_at": f"{region.y0},{region.x0}"}
    return inputs.adding(hashes, {"image": image, "mask": mask})
