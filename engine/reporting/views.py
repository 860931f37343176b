"""What an output shows: the image or images small, crops at full resolution, and what they were made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.pipeline.preview import finest
from engine.planning.geometry import Box
from engine.reporting.labels import Share, coded, colors_of, legend_of, shares_of
from engine.reporting.pictures import Picture, drawing, photograph, reduced
from engine.reporting.places import chosen
from engine.storage.output import Output
from engine.storage.set_layout import SetLayout

THUMBNAIL = 1200  # px, longest side of an image that is shown whole
OF_A_SET = 256  # px, the same of one image of a set
SHEET = 24  # images of a set that are shown
SIDE, CROPS = 256, 4  # px, and number, of crops at full resolution
COUNTED = 2**24  # pixels of labels that shares are counted in, about
LETTERS = "ABCDEFGH"


@dataclass(frozen=True)
class Mark:
    """Where a crop lies in the picture of the whole image, in percent of it."""

    name: str
    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True)
class LabelView:
    """What an image was made from.

    Args:
        name: Name of the array: tissue, classes or nuclei.
        pictures: Of the whole image, or of the images of a set that are shown.
        crops: At the places of the image's crops.
        legend: The labels that occur, by area.
        counted: What the shares were counted in, in words.
    """

    name: str
    pictures: Sequence[Picture]
    crops: Sequence[Picture]
    legend: Sequence[Share]
    counted: str


@dataclass(frozen=True)
class View:
    """What an output shows.

    Args:
        pictures: The image, or those of the set that are shown.
        crops: At full resolution.
        marks: Where they lie in the picture; empty of a set.
        labels: What it was made from; None: nothing is stored.
        side: Side of a crop, px; of an image that is smaller, its longest side.
    """

    pictures: Sequence[Picture]
    crops: Sequence[Picture]
    marks: Sequence[Mark]
    labels: LabelView | None
    side: int


def view_of(output: Output) -> View:
    """The pictures of an output, read by box: of an image from its pyramid, of a set band by band.

    Raises:
        ValueError: a shard cannot be read.
    """
    return view_of_set(output, output.layout) if isinstance(output.layout, SetLayout) else view_of_image(output)


# ---- one image ------------------------------------------------------------------------------


def view_of_image(output: Output) -> View:
    layout = output.layout
    height, width = layout.size
    pixels = finest(output, layout.image, 2 * THUMBNAIL)
    whole = photograph(pixels, f"The whole image of {height} by {width} px, reduced.", most=THUMBNAIL)
    boxes = crop_boxes(output)
    crops = [
        photograph(output.read(layout.image, box), f"Crop {letter} at full resolution.", letter)
        for letter, box in zip(LETTERS, boxes, strict=False)
    ]
    marks = [
        Mark(
            letter,
            *(100 * a / b for a, b in zip((box.x0, box.y0, box.width, box.height), (width, height) * 2, strict=True)),
        )
        for letter, box in zip(LETTERS, boxes, strict=False)
    ]
    labels = labels_of_image(output, boxes) if layout.labels else None
    marks = [] if boxes[0].shape == layout.size else marks  # the crop is the image
    return View([whole], crops, marks, labels, max(boxes[0].shape))


def crop_boxes(output: Output) -> list[Box]:
    """Where the crops of an image lie."""
    return chosen(output.layout.size, SIDE, CROPS, lambda box: output.read(output.layout.image, box))


def labels_of_image(output: Output, boxes: Sequence[Box]) -> LabelView:
    """The label map, its crops, and the shares of its labels, counted in the finest level of at most 4096 px a side."""
    layout = output.layout
    assert layout.label is not None
    assert layout.labels is not None
    most = int(COUNTED**0.5)
    values = finest(output, layout.labels, most)
    colors = colors_of(layout.label.entries)
    whole = drawing(coded(values, colors), colors, "The map that the image was made from, reduced.", most=THUMBNAIL)
    crops = [
        drawing(coded(output.read(layout.labels, box), colors), colors, f"Crop {letter} of the map.", letter)
        for letter, box in zip(LETTERS, boxes, strict=False)
    ]
    factor = round(layout.size[0] / values.shape[0])
    counted = "every pixel" if factor == 1 else f"one pixel in {factor**2:,}"
    return LabelView(
        layout.label.name,
        [whole],
        crops,
        legend_of(shares_of(values, len(layout.label.entries)), layout.label.entries),
        counted,
    )


# ---- a set ----------------------------------------------------------------------------------


def view_of_set(output: Output, layout: SetLayout) -> View:
    numbers = spread_over(layout.count, SHEET)
    pictures = [small(output, number, caption_of(output.provenance, number)) for number in numbers]
    box = centre(layout.size, SIDE)
    crops = [
        photograph(
            output.read_part(number, box), f"The middle of image {number} at full resolution.", f"image {number}"
        )
        for number in spread_over(layout.count, CROPS)
    ]
    return View(pictures, crops, [], labels_of_set(output, layout, numbers), max(box.shape))


def small(output: Output, number: int, name: str) -> Picture:
    """One image of a set."""

    def read(y0: int, y1: int) -> np.ndarray:
        return output.read_part(number, Box(y0, 0, y1, output.layout.size[1]))

    alt = f"Image {number} of the set."
    return photograph(reduced(read, output.layout.size, OF_A_SET), alt, name)


def labels_of_set(output: Output, layout: SetLayout, numbers: Sequence[int]) -> LabelView | None:
    """The maps of the images that are shown, and the shares of labels in as many images as make ``COUNTED`` pixels."""
    if layout.label is None or layout.labels is None:
        return None
    entries, step = layout.label.entries, -(-max(layout.size) // OF_A_SET)
    colors = colors_of(entries)

    def read(number: int) -> np.ndarray:
        """Every step-th pixel of every step-th row, read band by band."""
        (height, width), rows = layout.size, 64 * step
        boxes = [Box(y, 0, min(y + rows, height), width) for y in range(0, height, rows)]
        return np.concatenate([output.read_part(number, box, layout.labels)[::step, ::step] for box in boxes])

    pictures = [drawing(coded(read(n), colors), colors, f"The map of image {n}.", f"{n}") for n in numbers]
    count = max(min(layout.count, COUNTED // max(read(0).size, 1)), 1)
    of_each = [shares_of(read(number), len(entries)) for number in spread_over(layout.count, count)]
    legend = legend_of(np.mean(of_each, axis=0), entries)
    images = "all images" if count == layout.count else f"{count:,} of {layout.count:,} images, evenly spread"
    counted = images if step == 1 else f"{images}, one pixel in {step**2:,}"
    return LabelView(layout.label.name, pictures, [], legend, counted)


def caption_of(provenance: Mapping[str, Any], number: int) -> str:
    """The number of an image, and what it has of the settings that the set's images take in turn.

    >>> caption_of({"in_turn": [{"label": 1}, {"label": 3}]}, 5)
    '5: label 3'
    """
    in_turn = provenance.get("in_turn") or [{}]
    settings = in_turn[number % len(in_turn)]
    return f"{number}" + (": " if settings else "") + ", ".join(f"{name} {value}" for name, value in settings.items())


def spread_over(count: int, most: int) -> list[int]:
    """Numbers of at most so many things, evenly spread over all.

    >>> spread_over(3, 5), spread_over(101, 3)
    ([0, 1, 2], [0, 50, 100])
    """
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()


def centre(size: tuple[int, int], side: int) -> Box:
    """The box in the middle of an image.

    >>> centre((300, 100), 200)
    Box(y0=50, x0=0, y1=250, x1=100)
    """
    (y0, height), (x0, width) = ((max(length - side, 0) // 2, min(length, side)) for length in size)
    return Box(y0, x0, y0 + height, x0 + width)
