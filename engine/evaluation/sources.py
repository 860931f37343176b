"""What is evaluated: an output of ours, a slide or another large image, or a folder of images. All are read by box."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from engine.embedding.patches import without_maps
from engine.evaluation.plane_seams import region_of_output
from engine.exports.source import finished_output
from engine.planning.geometry import Box
from engine.storage.output import Output
from engine.storage.readers import read_integers
from engine.storage.set_layout import SetLayout
from engine.storage.slides import Slide, is_picture, open_slide, pictures_in
from engine.storage.store_url import refuse_url
from engine.training.data import mask_of

OUTPUT_KEY = '"slidefield"'  # in the metadata of an output of ours


class Source(Protocol):
    """Images that are read by box: plain values, sent to every rank; each opens the files itself."""

    @property
    def path(self) -> Path: ...

    @property
    def kind(self) -> str:
        """``image``, ``set``, ``slide`` or ``folder``."""

    @property
    def channels(self) -> int:
        """1 for grey images, or 3."""

    @property
    def pixel_size_um(self) -> float | None:
        """Micrometres per pixel; None: it is not known."""

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the labels; empty: they have none."""

    @property
    def sizes(self) -> np.ndarray:
        """int64 (n, 2): height and width of each image, px."""

    def read(self, image: int, box: Box) -> np.ndarray:
        """uint8 (h, w, 3): a box of one of the images, within it."""

    def labels(self, image: int, box: Box) -> np.ndarray | None:
        """Unsigned (h, w): the label map in a box; None: the image has none."""

    def named(self, image: int) -> str:
        """An image in a message."""


@dataclass(frozen=True)
class OutputSource:
    """A finished output of ``engine.sample``: one image, a set, or of a plane the largest region that was asked for."""

    path: Path

    @cached_property
    def output(self) -> Output:
        return finished_output(self.path)

    @property
    def kind(self) -> str:
        return "set" if isinstance(self.output.layout, SetLayout) else "image"

    @property
    def channels(self) -> int:
        return self.output.layout.channels

    @property
    def pixel_size_um(self) -> float | None:
        if self.kind == "image":
            return self.output.pixel_size_um
        return self.output.provenance.get("pixel_size_um")  # a set has no OME metadata

    @property
    def label_names(self) -> tuple[str, ...]:
        label = self.output.layout.label
        return tuple(name for name, _ in label.entries) if label else ()

    @cached_property
    def region(self) -> Box:
        return region_of_output(self.output)

    @cached_property
    def sizes(self) -> np.ndarray:
        layout = self.output.layout
        count = layout.count if isinstance(layout, SetLayout) else 1
        return np.array([self.region.shape] * count, np.int64)

    def read(self, image: int, box: Box) -> np.ndarray:
        pixels = self.output.read_part(image, box.moved(self.region.y0, self.region.x0))
        return np.broadcast_to(np.moveaxis(pixels, 0, -1), (*box.shape, 3))

    def labels(self, image: int, box: Box) -> np.ndarray | None:
        layout = self.output.layout
        if layout.labels is None:
            return None
        if not isinstance(layout, SetLayout):
            return self.output.read(layout.labels, box.moved(self.region.y0, self.region.x0))
        return np.asarray(self.output.array(layout.labels)[layout.index_in(image, box)])

    def named(self, image: int) -> str:
        return f"image {image} of {self.path}" if self.kind == "set" else str(self.path)

    def __reduce__(self) -> tuple[Any, ...]:
        return OutputSource, (self.path,)


@dataclass(frozen=True)
class SlideSource:
    """A slide, or any large image that ``open_slide`` reads."""

    path: Path
    kind: str = "slide"
    channels: int = 3
    label_names: tuple[str, ...] = ()

    @cached_property
    def slide(self) -> Slide:
        return open_slide(self.path, "the slide")

    @property
    def pixel_size_um(self) -> float | None:
        return self.slide.pixel_size_um

    @property
    def sizes(self) -> np.ndarray:
        return np.array([self.slide.size], np.int64)

    def read(self, image: int, box: Box) -> np.ndarray:
        return box_of(self.slide, box)

    def labels(self, image: int, box: Box) -> np.ndarray | None:
        mask = mask_of(self.path)
        return part_of_map(mask, self.slide.size, box) if mask.exists() else None

    def named(self, image: int) -> str:
        return str(self.path)

    def __reduce__(self) -> tuple[Any, ...]:
        return SlideSource, (self.path,)


@dataclass(frozen=True)
class FolderSource:
    """The pictures in a folder, each with its label map ``_mask.png`` beside it where there is one."""

    path: Path
    names: tuple[str, ...]
    sizes: np.ndarray
    channels: int
    kind: str = "folder"
    pixel_size_um: float | None = None
    label_names: tuple[str, ...] = ()

    def read(self, image: int, box: Box) -> np.ndarray:
        return box_of(opened_picture(self.path / self.names[image]), box)

    def labels(self, image: int, box: Box) -> np.ndarray | None:
        mask = mask_of(self.path / self.names[image])
        h, w = map(int, self.sizes[image])
        return part_of_map(mask, (h, w), box) if mask.exists() else None

    def named(self, image: int) -> str:
        return self.names[image]


def source_of(path: Path, option: str) -> Source:
    """Open what is at a path.

    Args:
        option: Name of what gave the path, for messages.
    Raises:
        ValueError: nothing that can be evaluated is there.
    """
    refuse_url(path)
    if not path.exists():
        raise ValueError(f"{option} {path} is not there; give an output, a slide, or a folder of images")
    if path.is_dir() and is_picture(path):
        if is_output(path):
            source = OutputSource(path)
            source.output.layout  # noqa: B018 - it is opened here, for its errors
            return source
        return slide_of(path)
    return folder_of(path, option) if path.is_dir() else slide_of(path)


def is_output(path: Path) -> bool:
    """Whether a Zarr store says that it is an output of ours."""
    metadata = path / "zarr.json"
    return metadata.is_file() and OUTPUT_KEY in metadata.read_text(encoding="utf-8", errors="replace")


def slide_of(path: Path) -> SlideSource:
    source = SlideSource(path)
    source.slide  # noqa: B018 - it is opened here, for its errors
    return source


def folder_of(path: Path, option: str) -> FolderSource:
    """The pictures below a folder.

    Raises:
        ValueError: there are none, or one cannot be read, or grey ones are among coloured ones.
    """
    names = without_maps(pictures_in(path))
    if not names:
        raise ValueError(f"{option} {path} holds no picture (PNG, JPEG, TIFF); give a folder of images")
    facts = [size_and_channels(path / name) for name in names]
    channels = facts[0][1]
    other = next((i for i, fact in enumerate(facts) if fact[1] != channels), None)
    if other is not None:
        grey, colored = (names[0], names[other]) if channels == 1 else (names[other], names[0])
        raise ValueError(f"{path}: {grey} is grey and {colored} is not; give a folder of one kind")
    return FolderSource(path, tuple(names), np.array([size for size, _ in facts], np.int64), channels)


def size_and_channels(path: Path) -> tuple[tuple[int, int], int]:
    """Height and width of a picture, and 1 or 3; from its header.

    Raises:
        ValueError: it is no picture.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return (image.height, image.width), 1 if image.mode in ("1", "L", "LA", "I;16") else 3
    except UnidentifiedImageError:  # BigTIFF with many channels, for one
        return open_slide(path, "the image").size, 3
    except OSError as error:
        raise ValueError(f"{path} cannot be read as a picture ({' '.join(str(error).split())[:120]})") from None


@lru_cache(maxsize=2)
def opened_picture(path: Path) -> Slide:
    return open_slide(path, "the image")


def part_of_map(path: Path, size: tuple[int, int], box: Box) -> np.ndarray:
    """A box of the label map of an image.

    Raises:
        ValueError: it has another size than the image, px.
    """
    labels = opened_map(path)
    if labels.shape != size:
        raise ValueError(
            f"{path} has shape {labels.shape} but its image is {size[0]} x {size[1]} px; give a label map of that size"
        )
    return labels[box.y0 : box.y1, box.x0 : box.x1]


@lru_cache(maxsize=2)
def opened_map(path: Path) -> np.ndarray:
    return read_integers(path, "the label map")


def box_of(slide: Slide, box: Box) -> np.ndarray:
    """uint8 (h, w, 3): a box at full size."""
    side = max(box.shape)
    if box.shape == (side, side):
        return slide.read(box, side)
    strips = [slide.read(square, min(box.shape)) for square in squares_of(box)]
    return joined(strips, box)


def squares_of(box: Box) -> list[Box]:
    """Squares side by side that cover a box; the last lies over the one before it where it would pass the end.

    >>> squares_of(Box(0, 0, 2, 5))
    [Box(y0=0, x0=0, y1=2, x1=2), Box(y0=0, x0=2, y1=2, x1=4), Box(y0=0, x0=3, y1=2, x1=5)]
    """
    side, longest = min(box.shape), max(box.shape)
    starts = [min(start, longest - side) for start in range(0, longest, side)]
    if box.height == side:
        return [Box(box.y0, box.x0 + at, box.y1, box.x0 + at + side) for at in starts]
    return [Box(box.y0 + at, box.x0, box.y0 + at + side, box.x1) for at in starts]


def joined(parts: list[np.ndarray], box: Box) -> np.ndarray:
    """The squares of ``squares_of`` as one picture."""
    whole = np.empty((*box.shape, 3), np.uint8)
    for square, part in zip(squares_of(box), parts, strict=True):
        whole[square.within(box)] = part
    return whole
