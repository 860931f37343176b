"""Readers of inputs: PNG, TIFF, .npy, Zarr and HDF5 become arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from engine.storage.zarr_setup import zarr

HDF5 = (".h5", ".hdf5")


def read_integers(path: Path, option: str, stack: bool = False) -> np.ndarray:
    """Read a map (h, w) of integers, as ``read_array`` does.

    Args:
        option: Name of the option that gave the path, in backticks, for messages.
        stack: Whether a stack of maps (images, h, w) is accepted too.
    Raises:
        ValueError: it is unreadable, or has other dimensions, or holds no integers.
    """
    label_map = read_array(path, option)
    if label_map.ndim != 2 and not (stack and label_map.ndim == 3):
        wanted = "two dimensions (height, width)" + (", or a stack of them three (index, height, width)" * stack)
        raise ValueError(f"{option} {path} has shape {label_map.shape}; a label map has {wanted}")
    if label_map.dtype.kind not in "uib":
        raise ValueError(f"{option} {path} holds {label_map.dtype}; a label map holds whole numbers, such as uint8")
    return label_map


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


def read_array(path: Path, option: str, color: bool = False) -> np.ndarray:
    """Read an array of any shape and type. Zarr and ``.npy`` are read where they are sliced; HDF5, PNG and TIFF whole.

    A dataset of an HDF5 file is named after a colon: ``FILE.h5:/dataset``.

    Args:
        option: Name of the option that gave the path, in backticks, for messages.
        color: Whether a PNG of several channels is accepted; it becomes RGB.
    Raises:
        ValueError: it is unreadable.
    """
    file, dataset = split_dataset(path)
    if not file.exists():
        raise ValueError(f"{option} {file} is not there")
    try:
        return _read_hdf5(file, dataset) if dataset or file.suffix in HDF5 else _open_array(file, color)
    except Exception as error:  # every reader raises its own kinds of error: users get one message
        text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{option} {path} cannot be read as PNG, TIFF, .npy, Zarr or HDF5 ({' '.join(text.split())})"
        ) from None


def split_dataset(path: Path) -> tuple[Path, str]:
    """Split ``FILE.h5:/dataset`` into file and dataset; the dataset is empty where none is named."""
    file, colon, dataset = str(path).rpartition(":")
    if colon and Path(file).suffix in HDF5:
        return Path(file), dataset
    return path, ""


def _read_hdf5(file: Path, dataset: str) -> np.ndarray:
    import h5py

    with h5py.File(file, "r") as opened:
        item = opened.get(dataset) if dataset else None
        if not isinstance(item, h5py.Dataset):
            names: list[str] = []
            opened.visititems(lambda name, item: names.append("/" + name) if isinstance(item, h5py.Dataset) else None)
            raise ValueError(f"it has no dataset {dataset or '(none was named)'}; name one as {file}:{names[:5]}")
        return item[()]


def reads_in_boxes(path: Path) -> bool:
    """Whether a file is read where it is sliced (Zarr, ``.npy``), so that every rank can read its own part."""
    return path.is_dir() or path.suffix == ".npy"


def _open_array(path: Path, color: bool) -> np.ndarray:
    if path.is_dir():
        opened = zarr.open(path, mode="r")
        if isinstance(opened, zarr.Group):
            arrays = dict(opened.arrays())
            if "0" not in arrays:
                raise ValueError("a Zarr group without an array '0'; name the array itself")
            opened = arrays["0"]
        return opened  # type: ignore[return-value]
    if path.suffix == ".npy":
        return np.load(path, mmap_mode="r", allow_pickle=False)
    if path.suffix.lower() in (".tif", ".tiff"):
        import tifffile

        return tifffile.imread(path)
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # Pillow refuses large images as an attack; here they are usual
    with Image.open(path) as image:
        if color and image.mode not in ("L", "I", "I;16", "1"):
            return np.asarray(image.convert("RGB"))
        if image.mode == "P":
            return np.asarray(image)
        if image.mode not in ("L", "I", "I;16", "1", "F"):
            raise ValueError(f"an image of mode {image.mode}; a label map has one channel of whole numbers")
        return np.asarray(image)
