"""Crops of what an output is looked at beside: another output, a slide or picture, or a folder of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.embedding.patches import without_maps
from engine.exports.source import check_shards
from engine.planning.geometry import Box
from engine.reporting.pictures import Picture, photograph
from engine.reporting.places import chosen, is_empty
from engine.reporting.views import LETTERS, centre, crop_boxes, spread_over
from engine.storage.output import output_to_read
from engine.storage.set_layout import SetLayout
from engine.storage.slides import Slide, is_picture, open_slide, pictures_in

AS_THEY_ARE = "pixels as they are"
TRIES = 8  # pictures of a folder that are looked at for one that is no bare background
SMALLEST_SCALE, LARGEST_SCALE = 0.5, 8.0  # of crops that are resized to the output's resolution


@dataclass(frozen=True)
class Reference:
    """Crops of the other images.

    Args:
        name: Of the file or folder.
        says: Which crops they are, and how their resolution goes with the output's.
    """

    name: str
    crops: Sequence[Picture]
    says: str


def reference_of(path: Path, side: int, count: int, pixel_size_um: float | None) -> Reference:
    """Crops at fixed places, of a folder from the middle of pictures evenly spread over it, by name.

    Args:
        side: Side of a crop, px.
        pixel_size_um: The output's; crops of a slide that knows its own are resized to it.
    Raises:
        ValueError: nothing is there, or nothing that can be read.
    """
    if not path.exists():
        raise ValueError(f"`against` {path} is not there; name an output, a slide, a picture or a folder of pictures")
    if (path / "slidefield").is_dir():
        return of_output(path, side, count)
    if is_picture(path):
        return of_slide(path, side, count, pixel_size_um)
    return of_folder(path, side, count)


def of_output(path: Path, side: int, count: int) -> Reference:
    """Crops of an output of ours: an image at fixed places, of a set the middle of images evenly spread over it."""
    output = output_to_read(path)
    if not output.finished:
        raise ValueError(f"`against` {path} is unfinished; give the command that samples it again, or leave it out")
    check_shards(output)
    layout, crops = output.layout, []
    if isinstance(layout, SetLayout):
        for number in spread_over(layout.count, count):
            pixels = output.read_part(number, centre(layout.size, side))
            crops.append(photograph(pixels, f"The middle of image {number} of {path.name}.", f"image {number}"))
    else:
        for letter, box in zip(LETTERS, crop_boxes(output)[:count], strict=False):
            crops.append(photograph(output.read(layout.image, box), f"A crop of {path.name}.", letter.lower()))
    um = output.provenance.get("pixel_size_um")
    return Reference(path.name, crops, f"{um:g} µm a pixel" if um else AS_THEY_ARE)


def of_slide(path: Path, side: int, count: int, pixel_size_um: float | None) -> Reference:
    """Crops of a slide or picture, at the output's resolution where both are known."""
    slide = open_slide(path, "`against`")
    own, scale, resolution = slide.pixel_size_um, 1.0, AS_THEY_ARE
    if own and pixel_size_um:
        scale = pixel_size_um / own
        if not SMALLEST_SCALE <= scale <= LARGEST_SCALE:
            raise ValueError(
                f"`against` {path} has {own:g} µm a pixel and the output {pixel_size_um:g}; too far from one another "
                "to be shown beside: choose a slide of a nearer resolution"
            )
        resolution = f"{own:g} µm a pixel" + ("" if scale == 1 else f", resized to {pixel_size_um:g}")
    taken = min(round(side * scale), *slide.size)

    def read(box: Box) -> np.ndarray:
        return slide.read(box, round(box.height / scale)).transpose(2, 0, 1)

    boxes = chosen(slide.size, taken, count, read) if min(slide.size) > taken else [square(slide, taken)]
    crops = [photograph(read(box), f"A crop of {path.name}.", f"y {box.y0:,}, x {box.x0:,}") for box in boxes[:count]]
    return Reference(path.name, crops, resolution)


def of_folder(path: Path, side: int, count: int) -> Reference:
    """The middle of pictures of a folder."""
    names = without_maps(pictures_in(path))
    if not names:
        raise ValueError(f"`against` {path} has no pictures; name an output, a slide, or a folder of PNG, JPEG or TIFF")
    taken: dict[str, np.ndarray] = {}
    for number in spread_over(len(names), count):
        following = [names[(number + n) % len(names)] for n in range(min(TRIES, len(names)))]
        name, pixels = first_filled(path, [name for name in following if name not in taken] or following, side)
        taken[name] = pixels
    crops = [photograph(pixels, f"The middle of {name}.", Path(name).name) for name, pixels in taken.items()]
    says = f"the middle of {len(crops)} of {len(names):,} pictures, evenly spread by name; {AS_THEY_ARE}"
    return Reference(path.resolve().name, crops, says)


def first_filled(path: Path, names: Sequence[str], side: int) -> tuple[str, np.ndarray]:
    """The name and the middle (c, h, w) of the first of these pictures that shows something there, or of the last."""
    for name in names:
        slide = open_slide(path / name, "the picture")
        box = square(slide, min(side, *slide.size))
        pixels = slide.read(box, box.height).transpose(2, 0, 1)
        if not is_empty(pixels):
            break
    return name, pixels


def square(slide: Slide, side: int) -> Box:
    """The square in the middle of a slide."""
    return centre(slide.size, side)
