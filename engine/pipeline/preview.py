"""A picture of an output, for those who look before they measure."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from engine.distributed.ranks import Ranks
from engine.job import RunOptions
from engine.planning.geometry import Box
from engine.storage.files import whole_file
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
    """Write the picture, on rank 0. Collective."""
    ranks.on_root(lambda: write_preview(options))


def write_preview(options: RunOptions) -> None:
    """A PNG of the finest pyramid level of at most ``MOST`` px a side, reduced further where there is none."""
    from PIL import PngImagePlugin

    picture = preview_path(options)
    if picture is None:
        return
    image = thumbnail(Output(Path(options.out)), LONGEST_SIDE)
    facts = PngImagePlugin.PngInfo()
    facts.add_text("Software", MADE_BY)
    with whole_file(picture) as temporary:
        image.save(temporary, format="PNG", pnginfo=facts)
    print(f"{picture} shows it", flush=True)


def thumbnail(output: Output, most: int) -> Image.Image:
    """A picture of at most ``most`` px a side: of an image a level of its pyramid, of a set its first images."""
    from PIL import Image

    layout = output.layout
    pixels = contact_sheet(output, layout, most) if isinstance(layout, SetLayout) else finest(output, most)
    image = Image.fromarray(np.ascontiguousarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)))
    return image.reduce(-(-max(image.size) // most))


def finest(output: Output, most: int) -> np.ndarray:
    """uint8 (c, h, w): the finest pyramid level of at most ``most`` px a side, or the coarsest."""
    sizes = output.layout.sizes()
    level = next((i for i, size in enumerate(sizes) if max(size) <= most), len(sizes) - 1)
    return output.read(str(level), Box(0, 0, *sizes[level]))


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
