"""Inputs as arrays: PNG, TIFF, .npy, Zarr and HDF5."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import zarr


def read_integers(path: Path, option: str, stack: bool = False) -> np.ndarray:
    """A map (h, w) of integers; Zarr and ``.npy`` are read where they are sliced, PNG and TIFF whole.

    Args:
        option: of the command line, for messages.
        stack: (images, h, w) will do too.
    Raises:
        ValueError: unreadable, of other dimensions, or not integers.
    """
    found = read_array(path, option)
    if found.ndim != 2 and not (stack and found.ndim == 3):
        wanted = "two dimensions (height, width)" + (", or a stack of them three (index, height, width)" * stack)
        raise ValueError(f"{option} {path} has shape {found.shape}; a label map has {wanted}")
    if found.dtype.kind not in "uib":
        raise ValueError(f"{option} {path} holds {found.dtype}; a label map holds whole numbers, such as uint8")
    return found


def read_picture(path: Path, option: str, channels: int, size: tuple[int, int]) -> np.ndarray:
    """An image uint8 (h, w, c), or (c, h, w) of Zarr or ``.npy``, as something sliced like (c, h, w).

    Raises:
        ValueError: unreadable, or of another size or kind.
    """
    found = read_array(path, option, color=True)
    if found.ndim == 2 and channels == 1:
        found = found[None]
    elif found.ndim == 3 and found.shape[2] == channels and found.shape[0] != channels:
        found = np.moveaxis(np.asarray(found), 2, 0)
    if found.ndim != 3 or found.shape[0] != channels or found.dtype != np.uint8:
        raise ValueError(
            f"{option} {path} has shape {found.shape} of {found.dtype}; expected an image of {channels} channels, uint8"
        )
    if found.shape[1:] != size:
        raise ValueError(
            f"{option} {path} is {found.shape[1]} x {found.shape[2]} px but the canvas is {size[0]} x {size[1]} px; "
            f"pass `size` {found.shape[1]}x{found.shape[2]}"
        )
    return found


def read_array(path: Path, option: str, color: bool = False) -> np.ndarray:
    """An array of any kind: Zarr and ``.npy`` are read where they are sliced, HDF5, PNG and TIFF whole.

    HDF5 is named with the dataset: ``FILE.h5:/dataset``.

    Args:
        color: RGB images will do.
    Raises:
        ValueError: unreadable.
    """
    file, dataset = split_dataset(path)
    if not file.exists():
        raise ValueError(f"{option} {file} is not there")
    try:
        return _read_hdf5(file, dataset) if dataset or file.suffix in HDF5 else _open_array(file, color)
    except Exception as error:  # many readers, many kinds of error: one message
        text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{option} {path} cannot be read as PNG, TIFF, .npy, Zarr or HDF5 ({' '.join(text.split())})"
        ) from None


HDF5 = (".h5", ".hdf5")


def split_dataset(path: Path) -> tuple[Path, str]:
    """``FILE.h5:/dataset`` -> file and dataset; the dataset is empty where none is named."""
    file, colon, dataset = str(path).rpartition(":")
    if colon and Path(file).suffix in HDF5:
        return Path(file), dataset
    return path, ""


def _read_hdf5(file: Path, dataset: str) -> np.ndarray:
    import h5py

    with h5py.File(file, "r") as opened:
        found = opened.get(dataset) if dataset else None
        if not isinstance(found, h5py.Dataset):
            names: list[str] = []
            opened.visititems(lambda name, item: names.append("/" + name) if isinstance(item, h5py.Dataset) else None)
            raise ValueError(f"it has no dataset {dataset or '(none was named)'}; name one as {file}:{names[:5]}")
        return found[()]


def reads_in_boxes(path: Path) -> bool:
    """Whether a label map is read where it is sliced, so that every rank can read its own part."""
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

    Image.MAX_IMAGE_PIXELS = None  # whole slides are what this is for
    with Image.open(path) as image:
        if color and image.mode not in ("L", "I", "I;16", "1"):
            return np.asarray(image.convert("RGB"))
        if image.mode == "P":
            return np.asarray(image)
        if image.mode not in ("L", "I", "I;16", "1", "F"):
            raise ValueError(f"an image of mode {image.mode}; a label map has one channel of whole numbers")
        return np.asarray(image)
