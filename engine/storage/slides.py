"""Slides and other pictures that are read by box: through tiffslide or OpenSlide where installed, else by ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from engine.planning.geometry import Box
from engine.storage.readers import METADATA, SlicedInput, quiet, read_array, reason
from engine.storage.settings_file import check_regular
from engine.storage.zarr_setup import zarr

TIFFS = (".tif", ".tiff")
SLIDES = (".svs", ".ndpi", ".scn", ".mrxs", ".vms", ".vmu", ".bif", ".svslide", ".dcm")
LIBRARIES = (("tiffslide", "TiffSlide"), ("openslide", "OpenSlide"))  # their objects have the same methods
MICROSCOPE = {"pixel_size_um": "mpp-x", "magnification": "objective-power"}  # properties, behind the library's name


class Slide(Protocol):
    """A picture that is read by box.

    Attributes:
        size: Height and width, px.
        pixel_size_um: Micrometres per pixel; None: it is not known.
        magnification: Of the objective; None: it is not known.
    """

    size: tuple[int, int]
    pixel_size_um: float | None
    magnification: float | None

    def read(self, box: Box, side: int) -> np.ndarray:
        """uint8 (side, side, 3): a box of the picture, half-open and within it, resized."""


class LibrarySlide:
    """A slide that tiffslide or OpenSlide reads, at the level that is nearest to the size that is asked for."""

    def __init__(self, opened: Any, library: str, path: Path) -> None:
        self.opened, self.path = opened, path
        self.size: tuple[int, int] = tuple(map(int, opened.dimensions[::-1]))  # type: ignore[assignment]
        facts = {name: opened.properties.get(f"{library}.{key}") for name, key in MICROSCOPE.items()}
        self.pixel_size_um, self.magnification = (above_zero(facts[name]) for name in MICROSCOPE)

    def read(self, box: Box, side: int) -> np.ndarray:
        from PIL import Image

        level = self.opened.get_best_level_for_downsample(box.width / side)
        shrunk = self.opened.level_downsamples[level]
        width, height = (max(round(length / shrunk), 1) for length in (box.width, box.height))
        try:
            region = self.opened.read_region((box.x0, box.y0), level, (width, height))
        except Exception as error:  # each library raises its own kinds
            why = f"{self.path} is damaged: rows {box.y0}:{box.y1} columns {box.x0}:{box.x1} cannot be read"
            raise ValueError(f"{why} ({reason(error)})") from None
        if region.mode == "RGBA":  # transparent where nothing was scanned
            white = Image.new("RGBA", region.size, "white")
            white.alpha_composite(region)
            region = white
        return resized(np.asarray(region.convert("RGB")), side)


class ArraySlide:
    """A picture in an array (h, w, 3), or (3, h, w), or of one channel (h, w)."""

    pixel_size_um: float | None = None
    magnification: float | None = None

    def __init__(self, array: np.ndarray, name: str) -> None:
        shape = array.shape
        self.array = array
        self.channels_first = len(shape) == 3 and shape[0] in (1, 3) and shape[2] not in (1, 3, 4)
        channels = 1 if len(shape) == 2 else shape[0 if self.channels_first else -1]
        if len(shape) not in (2, 3) or channels not in (1, 3, 4) or array.dtype != np.uint8:
            raise ValueError(f"{name} has shape {shape} of {array.dtype}; expected an image, uint8, grey or RGB")
        self.size: tuple[int, int] = shape[1:] if self.channels_first else shape[:2]

    def read(self, box: Box, side: int) -> np.ndarray:
        place = (slice(box.y0, box.y1), slice(box.x0, box.x1))
        pixels = np.asarray(self.array[(..., *place) if self.channels_first else place])
        if self.channels_first:
            pixels = np.moveaxis(pixels, 0, -1)
        pixels = pixels.reshape(*box.shape, -1)[..., :3]
        return resized(np.broadcast_to(pixels, (*box.shape, 3)), side)


def open_slide(path: Path, option: str) -> Slide:
    """Open a slide or another picture: PNG, JPEG, TIFF, .npy, Zarr.

    Args:
        option: Name of what gave the path, for messages.
    Raises:
        ValueError: it is not there, or nothing that is installed reads it.
    """
    if not path.exists():
        raise ValueError(f"{option} {path} is not there")
    check_regular(path, f"{option} {path}", folder=True)
    kind = path.suffix.lower()
    problems: list[str] = []
    if kind in (*SLIDES, *TIFFS):
        for slide in opened_by_libraries(path, problems):
            return slide
    if kind in SLIDES:
        why = "; ".join(problems) or "pip install tiffslide, or openslide-python with openslide-bin"
        raise ValueError(f"{option} {path} cannot be read as a slide ({why})")
    return ArraySlide(
        tiff_in_boxes(path) if kind in TIFFS else read_array(path, option, color=True), f"{option} {path}"
    )


def is_picture(path: Path) -> bool:
    """Whether a path is one picture, and not a folder of pictures: a folder may be a Zarr store."""
    return not path.is_dir() or any((path / file).exists() for file in METADATA)


def opened_by_libraries(path: Path, problems: list[str]) -> Iterator[LibrarySlide]:
    """The slide, by the first library that is installed and reads it; why others do not is added to ``problems``."""
    for library, reader in LIBRARIES:
        try:
            module = import_module(library)
        except ImportError:
            continue
        try:
            with quiet():
                yield LibrarySlide(getattr(module, reader)(path), library, path)
        except Exception as error:  # each raises its own kinds
            problems.append(f"{library}: {reason(error)}")


def tiff_in_boxes(path: Path) -> Any:
    """A TIFF as an array that is read where it is sliced: mapped, or decoded by tile."""
    import tifffile

    try:
        with quiet():
            try:
                return tifffile.memmap(path, mode="r")
            except ValueError:  # compressed
                return SlicedInput(zarr.open(tifffile.imread(path, aszarr=True, level=0), mode="r"), str(path))
    except Exception:  # of versions that do not go together, and of files that are none
        return read_array(path, "the image")


def resized(pixels: np.ndarray, side: int) -> np.ndarray:
    """uint8 (side, side, 3), by Lanczos's filter where the size differs."""
    from PIL import Image

    if pixels.shape[:2] == (side, side):
        return np.ascontiguousarray(pixels)
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize((side, side), Image.Resampling.LANCZOS))


def above_zero(text: Any) -> float | None:
    """A number of a slide's properties; None where it is none.

    >>> above_zero("0.25"), above_zero(None), above_zero("unknown")
    (0.25, None, None)
    """
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if 0 < value < float("inf") else None


def pictures_in(folder: Path, suffixes: Sequence[str] = (".png", ".jpg", ".jpeg", *TIFFS)) -> list[str]:
    """The pictures in a folder and those below it, in the order of their names; none whose name begins with a dot."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return sorted(path.relative_to(folder).as_posix() for path in files if path.suffix.lower() in suffixes)
