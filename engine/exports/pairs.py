"""Images and their label maps beside one another in one folder, as DiffInfinite writes them and ``engine.train`` reads.

sample0000.jpg         an image; .png or .tif with another format
sample0000_mask.png    its label map, uint8: the number of each pixel's label
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from engine.exports.parts import Part
from engine.exports.pictures import channels_last, write_picture, write_tiff
from engine.exports.single_image import LARGEST_PNG, whole_image
from engine.storage.output import Output
from engine.storage.set_layout import SetLayout

OF_LABELS = ("tissue", "classes")  # arrays whose values are numbers of labels
JPEG = {"quality": 95, "subsampling": 0}  # colours at full size


def write_pairs(output: Output, folder: Path, suffix: str) -> None:
    """Write an image or a set, and the label map of each image; one shard of a set is in memory at a time.

    Raises:
        ValueError: the output has no label map, or is larger than a picture can be.
    """
    layout = output.layout
    if layout.label is None or layout.labels is None or layout.label.name not in OF_LABELS:
        stored = "nothing" if layout.label is None else layout.label.name
        raise ValueError(
            f"{output.path} stores {stored} beside its images, and pairs are of images and label maps; "
            "leave out `layout` for the folders"
        )
    if isinstance(layout, SetLayout):
        digits = max(4, len(str(layout.count - 1)))
        for box in layout.boxes():
            images, labels = output.read(layout.image, box), output.read(layout.labels, box)
            for index, (image, mask) in enumerate(zip(images, labels, strict=True), box.y0):
                write_pair(folder / f"sample{index:0{digits}}", channels_last(image), mask, suffix)
        return
    if max(layout.size) > LARGEST_PNG:
        raise ValueError(
            f"{output.path} is {layout.size[0]} x {layout.size[1]} px and pairs are pictures of at most {LARGEST_PNG} "
            "px a side; leave out `layout` for TIFF in tiles"
        )
    image, mask = (whole_image(output, Part("samples", name)) for name in (layout.image, layout.labels))
    write_pair(folder / "sample0000", image, mask, suffix)


def write_pair(stem: Path, image: np.ndarray, mask: np.ndarray, suffix: str) -> None:
    """Write one image (h, w) or (h, w, c) and its label map (h, w), both uint8."""
    if suffix == ".tif":
        write_tiff(stem.with_suffix(suffix), image)
    else:
        write_picture(stem.with_suffix(suffix), image, **(JPEG if suffix == ".jpg" else {}))
    write_picture(stem.with_name(f"{stem.name}_mask.png"), mask)
