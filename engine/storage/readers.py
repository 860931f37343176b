"""Readers of inputs: PNG, TIFF, .npy, Zarr and HDF5 become arrays."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from engine.storage.settings_file import check_regular
from engine.storage.zarr_setup import zarr

HDF5 = (".h5", ".hdf5")
HDF5_DEFAULT = "slidefield_dataset"  # attribute of a file: the dataset that is meant where none is named
HDF5_CACHE = 2**24  # bytes of chunks that an open file keeps
PICTURES = ("PNG", "JPEG", "JPEG2000", "BMP", "GIF", "WEBP", "PPM")  # Pillow's; others start programs, or read C's way
METADATA = ("zarr.json", ".zarray", ".zgroup")
DrawnLabel = tuple[str, tuple[int, int, int]]  # name and RGB


class SlicedInput:
    """An array in Zarr or HDF5 that somebody else wrote: read where it is sliced; where that fails, it says which file.

    Args:
        name: Option and path, for messages.
    """

    def __init__(self, array: Any, name: str) -> None:
        self.array, self.name = array, name
        self.shape, self.dtype = tuple(array.shape), np.dtype(array.dtype)
        self.ndim, self.nbytes = len(self.shape), int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        try:
            with quiet():
                return np.asarray(self.array[index])
        except Exception as error:  # every codec raises its own kinds of error
            raise ValueError(f"{self.name} is damaged: a part of it cannot be read ({reason(error)})") from None

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        whole = self[...]
        return whole if dtype is None else whole.astype(dtype)


@contextmanager
def quiet() -> Iterator[None]:
    """While this lasts, libraries neither warn nor log: what is wrong with a file is said once, by us."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def reason(error: Exception) -> str:
    """What a library's error says, on one line."""
    text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())


def read_integers(path: Path, option: str, stack: bool = False) -> np.ndarray:
    """Read a map (h, w) of integers, as ``read_array`` does.

    Args:
        option: Name of the option that gave the path, in backticks, for messages.
        stack: Whether a stack of maps (images, h, w) is accepted too.
    Raises:
        ValueError: it is unreadable, or has other dimensions, or holds no integers.
    """
    return checked_integers(read_array(path, option), path, option, stack)


def checked_integers(label_map: np.ndarray, path: Path, option: str, stack: bool) -> np.ndarray:
    """A map of integers, or a stack of maps, as it is.

    Raises:
        ValueError: it has other dimensions, or holds no integers.
    """
    if label_map.ndim != 2 and not (stack and label_map.ndim == 3):
        wanted = "two dimensions (height, width)" + (", or a stack of them three (index, height, width)" * stack)
        raise ValueError(f"{option} {path} has shape {label_map.shape}; a label map has {wanted}")
    if label_map.dtype.kind not in "uib":
        raise ValueError(f"{option} {path} holds {label_map.dtype}; a label map holds whole numbers, such as uint8")
    return label_map


def read_label_map(path: Path, option: str, labels: Sequence[DrawnLabel], stack: bool = False) -> np.ndarray:
    """Read a label map (h, w): of whole numbers, as ``read_integers`` does, or drawn in the labels' colours.

    Args:
        labels: Name and RGB of each label, 0 first.
        stack: Whether a stack of maps (images, h, w) is accepted too.
    Raises:
        ValueError: as ``read_integers``; where it is sliced, of a colour that is no label's.
    """
    drawn = read_array(path, option, labels=labels)
    if drawn.dtype == np.uint8 and drawn.ndim in (3, 3 + stack) and drawn.shape[-1] in (3, 4):
        return ColoredMap(drawn, labels, f"{option} {path}")  # type: ignore[return-value]
    return checked_integers(drawn, path, option, stack)


class ColoredMap:
    """A label map drawn in colours, sliced like the map of labels uint8 (h, w), or a stack of maps (images, h, w).

    Args:
        drawn: uint8 (h, w, 3) or (h, w, 4), or a stack of such. Where it is transparent the label is 0, as viewers of
            OME-Zarr draw label 0.
        labels: Name and RGB of each label, 0 first.
        name: Option and path, for messages.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, drawn: np.ndarray, labels: Sequence[DrawnLabel], name: str) -> None:
        self.drawn, self.labels, self.name = drawn, labels, name
        self.shape, self.ndim = drawn.shape[:-1], drawn.ndim - 1

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: tuple[Any, ...]) -> np.ndarray:
        pixels, none = np.asarray(self.drawn[index]), len(self.labels)
        values = np.full(pixels.shape[:-1], none, np.uint8)
        for label in reversed(range(none)):  # of two labels of one colour, the first
            values[(pixels[..., :3] == self.labels[label][1]).all(-1)] = label
        if pixels.shape[-1] == 4:
            values[pixels[..., 3] < 255] = none
            values[pixels[..., 3] == 0] = 0
        if (wrong := values == none).any():
            y, x = np.argwhere(wrong)[0].tolist()
            row, column = (at + (part.start or 0) for at, part in zip((y, x), index[-2:], strict=True))
            color = ",".join(map(str, pixels[y, x]))
            known = ", ".join(f"{','.join(map(str, color))} {name}" for name, color in self.labels)
            raise ValueError(
                f"{self.name} has the colour {color} at row {row}, column {column}; "
                f"the model's labels are drawn in {known}"
            )
        return values


def read_picture(path: Path, option: str, channels: int, size: tuple[int, int]) -> np.ndarray:
    """Read an image uint8, stored as (h, w, c), (c, h, w) or, of one channel, (h, w).

    Args:
        option: Name of the option that gave the path, in backticks, for messages.
        channels: Number of channels that it must have.
        size: Height and width that it must have, px.
    Returns:
        An array (c, h, w), or what slices like one.
    Raises:
        ValueError: it is unreadable, or has another size, type or number of channels.
    """
    picture = read_array(path, option, color=True)
    if picture.ndim == 2 and channels == 1:
        picture = picture[None]
    elif picture.ndim == 3 and picture.shape[2] == channels and picture.shape[0] != channels:
        picture = np.moveaxis(np.asarray(picture), 2, 0)
    shape = picture.shape
    if picture.ndim != 3 or shape[0] != channels or picture.dtype != np.uint8:
        raise ValueError(
            f"{option} {path} has shape {shape} of {picture.dtype}; expected an image of {channels} channels, uint8"
        )
    if shape[1:] != size:
        raise ValueError(
            f"{option} {path} is {shape[1]} x {shape[2]} px but the canvas is {size[0]} x {size[1]} px; "
            f"pass `size` {shape[1]}x{shape[2]}"
        )
    return picture


def read_array(
    path: Path,
    option: str,
    color: bool = False,
    labels: Sequence[DrawnLabel] | None = None,
    in_rows: bool = False,
) -> np.ndarray:
    """Read an array of any shape and type. Zarr and ``.npy`` are read where they are sliced; HDF5, PNG and TIFF whole.

    A dataset of an HDF5 file is named after a colon: ``FILE.h5:/dataset``; what ``engine.embed`` wrote needs no name.

    Args:
        option: Name of the option that gave the path, in backticks, for messages.
        color: Whether a PNG of several channels is accepted; it becomes RGB.
        labels: Name and RGB of each label, for a label map that may be drawn in them; a palette of these colours
            becomes the labels.
        in_rows: Whether HDF5 is read where it is sliced too.
    Raises:
        ValueError: it is unreadable, or holds no values, or a single one.
    """
    file, dataset = split_dataset(path)
    if not file.exists():
        raise ValueError(f"{option} {file} is not there")
    check_regular(file, f"{option} {file}", folder=True)
    try:
        with quiet():
            if dataset or file.suffix in HDF5:
                stored = _open_hdf5(file, dataset, f"{option} {path}")
                opened: Any = stored if in_rows else np.asarray(stored)
            else:
                opened = _open_array(file, color, labels, f"{option} {path}")
    except Exception as error:  # every reader raises its own kinds of error: users get one message
        raise ValueError(f"{option} {path} cannot be read as PNG, TIFF, .npy, Zarr or HDF5 ({reason(error)})") from None
    if not opened.ndim or 0 in opened.shape:
        what = "no values" if opened.ndim else "a single value"
        wanted = "rows" if in_rows else "an image's size"
        raise ValueError(f"{option} {path} holds {what} (its shape is {opened.shape}); pass an array of {wanted}")
    return opened


def split_dataset(path: Path) -> tuple[Path, str]:
    """Split ``FILE.h5:/dataset`` into file and dataset; the dataset is empty where none is named."""
    file, colon, dataset = str(path).rpartition(":")
    if colon and Path(file).suffix in HDF5:
        return Path(file), dataset
    return path, ""


def read_rows(path: Path, option: str) -> np.ndarray:
    """Read an array as ``read_array`` does, HDF5 too where it is sliced: files of any length."""
    return read_array(path, option, in_rows=True)


def _open_hdf5(file: Path, dataset: str, name: str) -> SlicedInput:
    import h5py

    opened = h5py.File(file, "r", locking=False, rdcc_nbytes=HDF5_CACHE)  # some file systems have no locks
    dataset = dataset or opened.attrs.get(HDF5_DEFAULT, "")
    item = opened.get(dataset) if dataset else None
    if not isinstance(item, h5py.Dataset):
        names: list[str] = []
        opened.visititems(lambda name, item: names.append("/" + name) if isinstance(item, h5py.Dataset) else None)
        raise ValueError(f"it has no dataset {dataset or '(none was named)'}; name one as {file}:{names[:5]}")
    if item.shape is None:
        raise ValueError(f"its dataset {dataset} holds no values; name another")
    return SlicedInput(item, name)


def reads_in_boxes(path: Path) -> bool:
    """Whether a file is read where it is sliced (Zarr, ``.npy``), so that every rank can read its own part."""
    return path.is_dir() or path.suffix == ".npy"


def _open_array(path: Path, color: bool, labels: Sequence[DrawnLabel] | None, name: str) -> np.ndarray:
    if path.is_dir():
        return _open_zarr(path, name)  # type: ignore[return-value]
    if path.suffix == ".npy":
        return _open_npy(path)
    if path.suffix.lower() in (".tif", ".tiff"):
        import tifffile

        return tifffile.imread(path)
    return _read_picture(path, color, labels)


def _read_picture(path: Path, color: bool, labels: Sequence[DrawnLabel] | None) -> np.ndarray:
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # Pillow refuses large images as an attack; here they are usual
    with Image.open(path, formats=PICTURES) as image:
        check_room(image.size, len(image.getbands()))
        if color and image.mode not in ("L", "I", "I;16", "1"):
            return np.asarray(image.convert("RGB"))
        if image.mode == "P":
            values = np.asarray(image)
            return values if labels is None else _palette_labels(values, np.asarray(image.getpalette("RGB")), labels)
        if image.mode in ("RGB", "RGBA") and labels is not None:
            return np.asarray(image)
        if image.mode not in ("L", "I", "I;16", "1", "F"):
            raise ValueError(f"an image of mode {image.mode}; a label map has one channel of whole numbers")
        return np.asarray(image)


def check_room(size: tuple[int, int], channels: int) -> None:
    """Refuse a picture that does not fit into this machine's memory, before it is unpacked.

    Raises:
        ValueError: naming its size, and the formats that are read in boxes.
    """
    need, have = math.prod(size) * channels, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if need > have:
        raise ValueError(
            f"{size[1]} x {size[0]} px take {need / 2**30:,.0f} GiB unpacked and this machine has {have / 2**30:,.0f}; "
            "save it as .npy or Zarr, which are read in boxes"
        )


def _palette_labels(values: np.ndarray, palette: np.ndarray, labels: Sequence[DrawnLabel]) -> np.ndarray:
    """The labels of a picture with a palette: by colour where all its colours are labels', else its values."""
    by_color = {color: label for label, (_, color) in reversed(list(enumerate(labels)))}
    colors = [tuple(color) for color in palette.reshape(-1, 3).tolist()]
    used = np.flatnonzero(np.bincount(values.ravel(), minlength=256))
    if any(index >= len(colors) or colors[index] not in by_color for index in used):
        return values
    table = np.zeros(256, np.uint8)
    table[used] = [by_color[colors[index]] for index in used]
    return table[values]


def _open_zarr(path: Path, name: str) -> SlicedInput:
    for folder in (path, path / "0"):
        for file in METADATA:
            if (folder / file).exists():
                check_regular(folder / file, str(folder / file))
    opened = zarr.open(path, mode="r")
    if isinstance(opened, zarr.Group):
        arrays = dict(opened.arrays())
        if "0" not in arrays:
            raise ValueError("a Zarr group without an array '0'; name the array itself")
        opened = arrays["0"]
    return SlicedInput(opened, name)


def _open_npy(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError:  # an array of no values cannot be mapped
        if path.stat().st_size > 2**16:
            raise
        return np.load(path, allow_pickle=False)
