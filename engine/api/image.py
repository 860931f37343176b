"""An output as an array: read where it is sliced."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import fields
from functools import cached_property
from itertools import product
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.api.call import OutputLocation, absolute, region_of
from engine.command_line import comma_separated
from engine.distributed.launch import ranks_of
from engine.job import SampleJob
from engine.pipeline.collective_call import failing_together
from engine.pipeline.plane_checks import plane_layout
from engine.pipeline.preview import thumbnail
from engine.planning.geometry import Box
from engine.storage.integrity import damage, pixels_sha256
from engine.storage.layout import ArraySpec
from engine.storage.output import Output, output_to_read, provenance_of
from engine.storage.plane_layout import PlaneLayout
from engine.storage.plane_swap import steady
from engine.storage.remote_shards import Unreachable
from engine.storage.set_layout import SetLayout

if TYPE_CHECKING:
    import dask.array
    import xarray

    from engine.evaluation.measures import Evaluation

THUMBNAIL = 512  # px a side, of the picture that a notebook shows


class Damaged(ValueError):
    """An output has shards that are missing or changed; the message names them."""


class Array:
    """An array of an output, read where it is sliced, as numpy does. Its store lives as long as it does.

    Of an unfinished output, what is not written yet reads as zeros.

    Args:
        place: Where the output lies.
        output: The output, open.
        name: Of the array in the output.
    """

    def __init__(self, place: OutputLocation, output: Output, name: str) -> None:
        self._place, self._output, self._name = place, output, name

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
        """The pixels of an index.

        Raises:
            Damaged: a shard cannot be read, or of a finished output is gone; it names the file.
            ValueError: a plane has grown since it was opened, and its arrays begin elsewhere.
        """
        if isinstance(self._output.layout, PlaneLayout):
            return steady(self._output.path, lambda: self._plane_pixels(key))
        return self._pixels(key)

    def _plane_pixels(self, key: Any) -> np.ndarray:
        path, corner = self._output.path, list(plane_layout(self._output).corner)
        if path.is_dir() and provenance_of(path)["layout"]["corner"] != corner:
            raise ValueError(
                f"{path} has grown, and its arrays begin elsewhere; open it again: engine.open({str(path)!r})"
            )
        return self._pixels(key)

    def _pixels(self, key: Any) -> np.ndarray:
        array, name, shards = self._output.array(self._name), self._name, self._output.shards
        if not self._output.path.is_dir():
            raise Damaged(f"{self._output.path} is gone")
        whole = self._output.finished and self._output.layout.complete
        for index in shards_of(key, self._spec):
            try:
                there = self._output.check_file(shard_file(name, index))
            except Unreachable:
                raise
            except ValueError as error:
                raise Damaged(str(error)) from None
            if there is None and whole:
                raise Damaged(f"{shards.where(shard_file(name, index))} is gone; {self._output.way_out()}")
        try:
            return np.asarray(array[key])
        except (IndexError, Unreachable):
            raise
        except Exception as error:  # zarr raises what its codecs and stores raise
            for index in shards_of(key, self._spec):
                try:
                    array[shard_slices(index, self._spec)]
                except Exception as damaged:
                    file, why = shards.where(shard_file(name, index)), " ".join(str(damaged).split())
                    raise Damaged(f"{file} cannot be read ({why}); {self._output.way_out()}") from error
            raise

    @cached_property
    def _spec(self) -> ArraySpec:
        return next(spec for spec in self._output.layout.arrays() if spec.name == self._name)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[...], dtype)

    def __copy__(self) -> Array:
        """Itself: nothing of it can change."""
        return self

    def __deepcopy__(self, memo: Any) -> Array:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return array_at, (self._place, self._name)

    def to_dask(self) -> dask.array.Array:
        """A lazy dask array, its chunks those of the store's shards. Needs dask.

        Raises:
            ImportError: dask is not installed.
        """
        try:
            import dask.array
        except ImportError:
            raise ImportError("lazy arrays need dask: pip install dask") from None
        chunks = tuple(min(side, length) for side, length in zip(self._spec.shards, self.shape, strict=True))
        meta = np.empty((0,) * self.ndim, self.dtype)
        return dask.array.from_array(self, chunks=chunks, name=False, asarray=False, fancy=False, meta=meta)

    def __repr__(self) -> str:
        where = "in memory" if self._place.temporary else str(self._output.path)
        return f"<Array {self._name} {' x '.join(map(str, self.shape))} {self.dtype}, {where}>"


class Image(Array):
    """A sampled image, (c, y, x) uint8, or a set of images, (index, c, y, x); read where it is sliced.

    Args:
        place: Where the output lies; a temporary one is removed with the last reference to this image and its views.
    """

    def __init__(self, place: OutputLocation) -> None:
        output = output_to_read(place.path)
        super().__init__(place, output, output.layout.image)

    def __reduce__(self) -> tuple[Any, ...]:
        return Image, (self._place,)

    @property
    def path(self) -> Path:
        """The OME-Zarr on disk."""
        return self._place.path

    @property
    def provenance(self) -> dict[str, Any]:
        """What the output says of its making: job, model hash, device, versions, seconds, ... A copy."""
        return deepcopy(self._output.provenance)

    @property
    def job(self) -> SampleJob:
        """The job that made it, the model's defaults in place; a file that was given as an array is ``array``."""
        known = {field.name for field in fields(SampleJob)}
        return SampleJob(**{name: value for name, value in self.provenance["job"].items() if name in known})

    @property
    def seed(self) -> int:
        return int(self.provenance["seed"])

    def settings_of(self, index: int) -> dict[str, Any]:
        """What one image of a set has of the settings that its images take in turn; empty where all are alike.

        Raises:
            IndexError: the set has no such image.
        """
        layout, in_turn = self._output.layout, self.provenance.get("in_turn") or [{}]
        image = range(layout.count if isinstance(layout, SetLayout) else 1)[index]
        return dict(in_turn[image % len(in_turn)])

    @property
    def state(self) -> str:
        """``finished`` or ``unfinished``."""
        return str(self.provenance["state"])

    @cached_property
    def labels(self) -> Array | None:
        """What it was made from, (y, x) or (index, y, x): labels, classes or nuclei; None where nothing is stored."""
        name = self._output.layout.labels
        return None if name is None else Array(self._place, self._output, name)

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names of the labels by their values; empty where they have none."""
        label = self._output.layout.label
        return () if label is None else tuple(name for name, _ in label.entries)

    def verify(self) -> str:
        """The sha256 of the pixels, as ``python -m engine.verify`` prints it.

        Raises:
            ValueError: the image is unfinished.
            Damaged: naming the shards that are missing or changed.
        """
        output = self._output
        if isinstance(output.layout, PlaneLayout):  # to which another process may add meanwhile
            return steady(output.path, lambda: verified(output_to_read(output.path)))
        return verified(output)

    def evaluate(
        self,
        real: str | Path,
        *,
        train: str | Path | None = None,
        metrics: str | Sequence[str] | None = None,
        comm: Any = None,
        **settings: Any,
    ) -> Evaluation:
        """How good is it, beside other images? Prints as a table. Collective over the ranks of ``comm``.

        Args:
            real: Images that the model was not trained on: an output, a slide, a folder; see ``engine.evaluate``.
            train: Those that it was trained on; None: copies are not looked for.
            metrics: Names that ``engine.evaluate --help`` lists, or a text of them with commas; None: all that the sets
                allow but long ones.
            comm: mpi4py communicator; None: all ranks that were started together.
            settings: Fields of ``engine.evaluation.run.Settings`` and ``engine.evaluation.inputs.Cropping``.
        Raises:
            ValueError: a set cannot be read, or a metric not be taken.
            TypeError: there is no such setting.
        """
        asked = comma_separated(metrics) if isinstance(metrics, str) else metrics
        from engine.evaluation.call import evaluate_parts, evaluator_of, parts_of
        from engine.evaluation.inputs import Cropping
        from engine.evaluation.run import Settings

        of_crops = {field.name for field in fields(Cropping)}
        cropping = Cropping(**{name: value for name, value in settings.items() if name in of_crops})
        others = {name: value for name, value in settings.items() if name not in of_crops}
        paths = {"generated": self.path, "reference": Path(real)}
        if train is not None:
            paths["train"] = Path(train)
        ranks = ranks_of(comm)
        with failing_together(ranks):
            evaluator = evaluator_of(ranks, paths, Settings(cropping, **others))
            return evaluate_parts(evaluator, parts_of(evaluator, asked), asked)

    def export(self, target: str | Path, *, region: str | Box | None = None, comm: Any = None, **options: Any) -> Path:
        """Write it as a file or a folder for other programs, as ``engine.export`` does. Collective.

        Args:
            target: Its name says what is wanted: ``slide.ome.tiff``, ``picture.png``, ..., or a folder.
            region: Part of the image in pixels of level 0, ``"Y0:Y1,X0:X1"`` or a box.
            comm: mpi4py communicator; None: all ranks that were started together. Tiles are shared among them.
            options: Fields of ``engine.exports.asked.Asked``: ``level=2``, ``labels=True``, ``overwrite=True``, ...
        Returns:
            The target.
        Raises:
            ValueError: the output is unfinished or damaged; the target is there, or of no kind; an option has no use.
            TypeError: there is no such option.
        """
        from engine.exports.asked import Asked
        from engine.exports.kinds import export

        place = Path(absolute(os.fspath(target)))
        wanted: dict[str, Any] = {"region": region, **options}  # which Asked checks and converts
        asked, ranks = Asked(self.path, place, **wanted), ranks_of(comm)
        with failing_together(ranks):
            export(ranks, asked)
        return place

    def region(self, rows: tuple[int, int], columns: tuple[int, int]) -> np.ndarray:
        """uint8 (c, h, w): a region of a plane, by its positions on the plane, which may be negative.

        Args:
            rows, columns: First, and the one after the last, px.
        Raises:
            ValueError: this is no plane, or a part of the region was never asked for; it names one.
        """
        from engine.pipeline.plane import read_region

        return read_region(self.path, region_of(rows, columns))

    def to_xarray(self) -> xarray.DataArray:
        """A lazy DataArray with named axes, y and x in micrometres. Needs xarray and dask.

        Raises:
            ImportError: one of them is not installed.
        """
        try:
            import xarray
        except ImportError:
            raise ImportError("labelled arrays need xarray: pip install xarray dask") from None

        pixel = float(self.provenance.get("pixel_size_um", 1.0))
        axes = ("index", "c", "y", "x")[-self.ndim :]
        coordinates = {axis: (np.arange(self.shape[axes.index(axis)]) + 0.5) * pixel for axis in "yx"}
        return xarray.DataArray(
            self.to_dask(), dims=axes, coords=coordinates, name="image", attrs={"units": "micrometer"}
        )

    def __repr__(self) -> str:
        where = "in memory" if self._place.temporary else str(self.path)
        return f"<Image {' x '.join(map(str, self.shape))} {self.dtype}, {self.state}, seed {self.seed}, {where}>"

    def _repr_png_(self) -> bytes:
        """A picture of at most 512 px a side, for notebooks."""
        import io

        buffer = io.BytesIO()
        thumbnail(self._output, THUMBNAIL).save(buffer, format="PNG")
        return buffer.getvalue()


def open(path: str | Path) -> Image:
    """An output of this engine, finished or not; of an unfinished one, what is not written yet reads as zeros.

    Raises:
        ValueError: nothing lies there, or something else.
    """
    place = Path(absolute(os.fspath(path)))
    return Image(OutputLocation(place))


def verified(output: Output) -> str:
    """The sha256 of an output's pixels, as ``Image.verify``."""
    wrong = list(damage(output))
    if wrong:
        raise Damaged(f"{output.path}: " + "; ".join(wrong))
    if not output.finished:
        raise ValueError(f"{output.path} is unfinished; make the same call again to finish it, then open it again")
    return pixels_sha256(output)


def array_at(place: OutputLocation, name: str) -> Array:
    """An array of the output at a place."""
    return Array(place, output_to_read(place.path), name)


# ---- the shards of an index -----------------------------------------------------------------


def shards_of(key: Any, spec: ArraySpec) -> Iterator[tuple[int, ...]]:
    """The shards that an index reads, by their numbers along every axis; at least those."""
    keys = list(key) if isinstance(key, tuple) else [key]
    if (at := next((i for i, part in enumerate(keys) if part is Ellipsis), None)) is not None:
        keys[at : at + 1] = [slice(None)] * (len(spec.shape) - len(keys) + 1)
    keys += [slice(None)] * (len(spec.shape) - len(keys))
    yield from product(*(numbers_along(*axis) for axis in zip(keys, spec.shape, spec.shards, strict=False)))


def numbers_along(part: Any, length: int, side: int) -> list[int]:
    """The numbers of the shards that one part of an index reads along its axis.

    >>> numbers_along(slice(5, 12), 20, 8), numbers_along(-1, 20, 8), numbers_along([0, 19], 20, 8)
    ([0, 1], [2], [0, 2])
    """
    if isinstance(part, slice):
        wanted = range(length)[part]
        if not wanted:
            return []
        if abs(wanted.step) <= side:
            return list(range(min(wanted[0], wanted[-1]) // side, max(wanted[0], wanted[-1]) // side + 1))
        return sorted({index // side for index in wanted})
    values = np.asarray(part)
    if values.dtype.kind not in "iub":  # zarr says what is wrong with it
        return []
    values = np.flatnonzero(values) if values.dtype.kind == "b" else np.where(values < 0, values + length, values)
    return np.unique(values[(values >= 0) & (values < length)] // side).tolist()


def shard_slices(index: tuple[int, ...], spec: ArraySpec) -> tuple[slice, ...]:
    """The index of a shard."""
    return tuple(slice(i * side, (i + 1) * side) for i, side in zip(index, spec.shards, strict=True))


def shard_file(name: str, index: tuple[int, ...]) -> PurePath:
    """The file of a shard, relative to the output."""
    return PurePath(name, "c", *map(str, index))
