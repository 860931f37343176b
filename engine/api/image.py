"""An output as an array: read where it is sliced."""

from __future__ import annotations

from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.api.call import OutputLocation
from engine.job import SampleJob
from engine.pipeline.preview import thumbnail
from engine.storage.integrity import damage, pixels_sha256
from engine.storage.output import Output, provenance_at

if TYPE_CHECKING:
    import dask.array
    import xarray

THUMBNAIL = 512  # px a side, of the picture that a notebook shows


class Damaged(ValueError):
    """An output has shards that are missing or changed; the message names them."""


class Array:
    """An array of an output, read where it is sliced, as numpy does.

    Args:
        output: That holds it.
        name: Of the array in the output.
    """

    def __init__(self, output: Output, name: str) -> None:
        self._output, self._name = output, name

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._output.array(self._name).shape)

    @property
    def dtype(self) -> np.dtype:
        return self._output.array(self._name).dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        return np.asarray(self._output.array(self._name)[key])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[...], dtype)

    def to_dask(self) -> dask.array.Array:
        """A lazy dask array, its chunks those of the store's shards."""
        import dask.array

        return dask.array.from_zarr(str(self._output.path / self._name))


class Image(Array):
    """A sampled image, (c, y, x) uint8, or a set of images, (index, c, y, x); read where it is sliced.

    Args:
        place: Where the output lies; a temporary one is removed with the last reference to this image.
    """

    def __init__(self, place: OutputLocation) -> None:
        self._place = place
        output = Output(place.path)
        super().__init__(output, output.layout.image)

    @property
    def path(self) -> Path:
        """The OME-Zarr on disk."""
        return self._place.path

    @property
    def provenance(self) -> dict[str, Any]:
        """What the output says of its making: job, model hash, device, versions, seconds, ..."""
        return dict(self._output.provenance)

    @property
    def job(self) -> SampleJob:
        """The job that made it, the model's defaults in place."""
        known = {field.name for field in fields(SampleJob)}
        return SampleJob(**{name: value for name, value in self.provenance["job"].items() if name in known})

    @property
    def seed(self) -> int:
        return int(self.provenance["seed"])

    @property
    def state(self) -> str:
        """``finished`` or ``unfinished``."""
        return str(self.provenance["state"])

    @cached_property
    def labels(self) -> Array | None:
        """What it was made from, (y, x) or (index, y, x): labels, classes or nuclei; None where nothing is stored."""
        name = self._output.layout.labels
        return None if name is None else Array(self._output, name)

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names of the labels by their values; empty where they have none."""
        label = self._output.layout.label
        return () if label is None else tuple(name for name, _ in label.entries)

    def verify(self) -> str:
        """The sha256 of the pixels, as ``python -m engine.verify`` prints it.

        Raises:
            Damaged: naming the shards that are missing or changed.
        """
        wrong = list(damage(self._output))
        if wrong:
            raise Damaged(f"{self.path}: " + "; ".join(wrong))
        return pixels_sha256(self._output)

    def to_xarray(self) -> xarray.DataArray:
        """A lazy DataArray with named axes, y and x in micrometres. Needs xarray and dask.

        Raises:
            ImportError: xarray is not installed.
        """
        import xarray

        pixel = float(self.provenance.get("pixel_size_um", 1.0))
        axes = ("index", "c", "y", "x")[-self.ndim :]
        coordinates = {axis: (np.arange(self.shape[axes.index(axis)]) + 0.5) * pixel for axis in "yx"}
        return xarray.DataArray(
            self.to_dask(), dims=axes, coords=coordinates, name="image", attrs={"units": "micrometer"}
        )

    def __repr__(self) -> str:
        where = "in memory" if self._place.holder else str(self.path)
        return f"<Image {' x '.join(map(str, self.shape))} {self.dtype}, {self.state}, seed {self.seed}, {where}>"

    def _repr_png_(self) -> bytes:
        """A picture of at most 512 px a side, for notebooks."""
        import io

        buffer = io.BytesIO()
        thumbnail(self._output, THUMBNAIL).save(buffer, format="PNG")
        return buffer.getvalue()


def open(path: str | Path) -> Image:
    """An output of this engine, finished or not.

    Raises:
        ValueError: nothing lies there, or something else.
    """
    place = Path(path)
    if provenance_at(place) is None:
        raise ValueError(f"{place} is not there")
    return Image(OutputLocation(place))
