"""A picture of an output, for those who look before they measure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from engine.distributed.ranks import Ranks
from engine.job import RunOptions
from engine.planning.geometry import Box
from engine.storage.files import whole_file
from engine.storage.image_layout import ImageLayout
from engine.storage.layout import LabelArray
from engine.storage.output import Output
from engine.storage.set_layout import SetLayout

if TYPE_CHECKING:
    from PIL import Image

MADE_BY = "slidefield"  # the Software field of our pictures: a picture that has it may be replaced
LONGEST_SIDE = 2048  # px; longest side of a picture


def preview_path(options: RunOptions) -> Path | None:
    """The file that the preview is written to; None: no preview is wanted."""
    if options.preview == "none":
        return None
    return Path(options.preview) if options.preview else Path(options.out).with_suffix(".png")


def check_preview(options: RunOptions) -> None:
    """Refuse to write over a picture that is not one of ours, or into a folder that is not there.

    Raises:
        ValueError: naming the picture.
    """
    picture = preview_path(options)
    if picture is None:
        return
    if picture.absolute() == Path(options.out).absolute():
        raise ValueError(f"`out` {options.out} and the preview would be the same file; end `out` with .zarr")
    if options.preview and not picture.absolute().parent.is_dir():
        raise ValueError(f"`preview` {picture}: {picture.parent} is not a folder; make it, or pass `preview` none")
    if picture.exists() and not is_ours(picture):
        raise ValueError(
            f"the preview would replace {picture}, which is not one of ours; "
            "pass `preview` with another name, or `preview` none"
        )


def is_ours(picture: Path) -> bool:
    """Whether a file is a picture that this program wrote."""
    from PIL import Image

    if not picture.is_file():
        return False
    try:
        with Image.open(picture, formats=("PNG",)) as image:
            return image.info.get("Software") == MADE_BY
    except OSError:
        return False


def preview(ranks: Ranks, options: RunOptions) -> None:
    """Write the picture, on rank 0, and say so. Collective."""
    picture = ranks.on_root(lambda: write_preview(options))
    if picture is not None and ranks.rank == 0:
        print(f"{picture} shows it", flush=True)


def write_preview(options: RunOptions) -> Path | None:
    """A PNG of the image, at most ``LONGEST_SIDE`` px a side; beside it its label map, where the labels have names.

    Returns:
        The file; None: none is wanted.
    """
    from PIL import PngImagePlugin

    picture = preview_path(options)
    if picture is None:
        return None
    output = Output(Path(options.out))
    image = thumbnail(output, LONGEST_SIDE)
    if output.layout.label is not None and output.layout.label.entries and isinstance(output.layout, ImageLayout):
        image = with_labels(image, output.layout.label, finest(output, str(output.layout.labels), LONGEST_SIDE))
    facts = PngImagePlugin.PngInfo()
    facts.add_text("Software", MADE_BY)
    with whole_file(picture) as temporary:
        image.save(temporary, format="PNG", pnginfo=facts)
    return picture


def thumbnail(output: Output, most: int) -> Image.Image:
    """A picture of at most ``most`` px a side: of an image a level of its pyramid, of a set its first images."""
    from PIL import Image

    layout = output.layout
    if isinstance(layout, SetLayout):
        pixels = contact_sheet(output, layout, most)
    else:
        pixels = finest(output, layout.image, most)
    image = Image.fromarray(np.ascontiguousarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)))
    return image.reduce(-(-max(image.size) // most))


def with_labels(image: Image.Image, label: LabelArray, values: np.ndarray) -> Image.Image:
    """The image, its label map in colours on the right, and below them the labels that occur, by share.

    Args:
        values: (h, w), label values at any size.
    """
    from PIL import Image

    colors = np.array([color[:3] for _, color in label.entries], np.uint8)
    labels = Image.fromarray(colors[values]).resize(image.size, Image.Resampling.NEAREST)
    shares = np.bincount(values.ravel(), minlength=len(colors)) / values.size
    picture = Image.new("RGB", (2 * image.width, image.height), "white")
    picture.paste(image.convert("RGB"), (0, 0))
    picture.paste(labels, (image.width, 0))
    shown = [index for index in np.argsort(-shares).tolist() if shares[index]]
    names = [f"{label.entries[index][0]} {max(round(100 * shares[index]), 1)} %" for index in shown]
    return with_legend(picture, names, colors[shown].tolist())


def with_legend(picture: Image.Image, names: Sequence[str], colors: Sequence[Sequence[int]]) -> Image.Image:
    """The picture on top of a strip of names, each behind its colour, from the middle on; as many lines as it takes."""
    from PIL import Image, ImageDraw, ImageFont

    line = max(picture.height // 32, 18)  # px; height of a line
    font, middle = ImageFont.load_default(size=0.66 * line), picture.width // 2
    places, x, y = [], middle, picture.height
    for name in names:
        width = int(2.5 * line + font.getlength(name))
        if x > middle and x + width > picture.width:
            x, y = middle, y + line
        places.append((x, y))
        x += width
    whole = Image.new("RGB", (picture.width, y + line + line // 4), "white")
    whole.paste(picture, (0, 0))
    draw = ImageDraw.Draw(whole)
    for (x, y), name, color in zip(places, names, colors, strict=True):
        top = y + line // 4
        draw.rectangle((x, top, x + int(0.7 * line), top + int(0.7 * line)), fill=tuple(color), outline="grey")
        draw.text((x + line, y + 0.22 * line), name, "black", font)
    return whole


def finest(output: Output, array: str, most: int) -> np.ndarray:
    """(..., h, w): the finest pyramid level of at most ``most`` px a side, or the coarsest.

    Args:
        array: Name of the finest array of the pyramid.
    """
    sizes = output.layout.sizes()
    level = next((i for i, size in enumerate(sizes) if max(size) <= most), len(sizes) - 1)
    return output.read(output.layout.level(array, level), Box(0, 0, *sizes[level]))


def contact_sheet(output: Output, layout: SetLayout, most: int) -> np.ndarray:
    """uint8 (c, h, w): the first images of a set, side by side."""
    (height, width), count = layout.size, layout.count
    columns = max(min(math.ceil(count**0.5), most // width), 1)
    rows = max(min(-(-count // columns), most // height), 1)
    sheet = np.full((layout.channels, rows * height, columns * width), 255, np.uint8)
    for index in range(min(count, rows * columns)):
        row, column = divmod(index, columns)
        where = (slice(row * height, (row + 1) * height), slice(column * width, (column + 1) * width))
        sheet[(slice(None), *where)] = output.read(layout.image, Box(index, 0, index + 1, 1))[0]
    return sheet
