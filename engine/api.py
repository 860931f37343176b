"""The Python door: a pipeline that samples, an image that is read where it is sliced, and the loop in memory.

>>> import engine
>>> pipe = engine.Pipeline.from_pretrained("embedded")
>>> image = pipe(size=(256, 256), labels="example", steps=1, progress=False)
>>> image
<Image 3 x 256 x 256 uint8, finished, seed 0, in memory>
>>> image[:, :2, :2].shape
(3, 2, 2)

Every option of ``python -m engine.sample`` is a keyword of the same name, is checked alike and gives the same bytes.
Under MPI every call that samples is collective: all ranks of the communicator make it, with the same arguments.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import traceback
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.distributed.launch import ranks_of
from engine.distributed.ranks import AgreedError, Ranks
from engine.job import RunOptions, SampleJob
from engine.options import OPTIONS, divided, nearest
from engine.pipeline.dry_run import plan_summary
from engine.pipeline.prepare import prepare
from engine.pipeline.prepared import Prepared
from engine.pipeline.preview import thumbnail
from engine.pipeline.watch import Bar, CallbackFailed, OnLevel, Silent, View, Watch
from engine.storage.integrity import damage, pixels_sha256
from engine.storage.output import Output, state_of

if TYPE_CHECKING:
    import dask.array
    import xarray

    from engine.models.folder import Model

FILES = ("labels", "embeddings", "region_embeddings", "map", "instances", "colors", "style_map", "image", "mask", "roi")
THUMBNAIL = 512  # px a side, of the picture that a notebook shows


class Damaged(ValueError):
    """An output has shards that are missing or changed; the message names them."""


class Pipeline:
    """A model, and the job that its options describe; calling it samples.

    Args:
        model: Model folder, or ``embedded``.
        settings: Options that every call starts from (``device``, ``dtype``, ``compile``, ``threads``, ...).

    Raises:
        ValueError: an option out of its range, naming the field; at a call also whatever would stop the run.
        TypeError: a keyword that is no option.
    """

    def __init__(self, model: str | Path = "embedded", **settings: Any) -> None:
        self.settings = {"model": str(model), **settings}
        self._models: dict[Any, list[Model]] = {}
        jobs_of(self.settings)  # checks them now

    @classmethod
    def from_pretrained(
        cls, model: str | Path = "embedded", *, device: str = "auto", dtype: str = "float32", **settings: Any
    ) -> Pipeline:
        """A pipeline of a model folder; its networks are loaded at the first call and kept.

        Args:
            device: ``auto``, ``cpu`` or ``cuda``; with ``auto`` the GPUs, if every rank has one.
            dtype: Of the networks: ``float32``, ``bfloat16`` or ``float16``.
        """
        from engine.models.card import read_card

        read_card(str(model))  # a wrong folder is refused here, not at the first call
        return cls(model, device=device, dtype=dtype, **settings)

    def __repr__(self) -> str:
        return f"Pipeline({', '.join(f'{name}={value!r}' for name, value in self.settings.items())})"

    def __call__(
        self,
        *,
        out: str | Path | None = None,
        comm: Any = None,
        on_level: OnLevel | None = None,
        progress: bool | None = None,
        **options: Any,
    ) -> Image:
        """Sample one image, or with ``count`` a set of images. Collective over ``comm``.

        Args:
            out: OME-Zarr to write; an unfinished one of the same job is gone on with, a finished one is opened. None:
                the result lives in a temporary store for as long as the returned image does.
            comm: mpi4py communicator; None: all ranks that were started together (one, in a notebook).
            on_level: Called after every level of the image as ``on_level(level, levels, preview)`` on every rank;
                ``preview()`` is collective and returns the present estimate of the image, uint8 (h, w, 3) of at most
                512 px a side. Returning True stops the run, which leaves a checkpoint in ``out``.
            progress: Whether a tqdm bar shows the run; None: where rank 0 has a terminal or a notebook.
            options: The job: ``size``, ``labels``, ``seed``, ``steps``, ``guidance``, ... and ``overwrite``,
                ``resume``, ``checkpoint_every``, ``json_log``. Files may be given as arrays instead.
        Raises:
            ValueError: an option or a file that does not suit, naming the field; before anything is written.
            Stopped: ``on_level`` or a signal asked for a stop.
        """
        from engine.pipeline.run import run  # torch

        ranks = ranks_of(comm)
        jobs_of({**self.settings, **{name: value for name, value in options.items() if is_setting(value)}})
        with failing_together(ranks), arrays_as_files(ranks, options, out) as options:
            place = Place.choose(ranks, out)
            job, run_options = jobs_of({**self.settings, **options, "out": str(place.path), "preview": "none"})
            prepared = ranks.on_root(lambda: prepare(job, run_options, ranks.size, ranks.local_size))
            if prepared.state != "finished":
                with threads_as_before():
                    ended = run(ranks, prepared, self._load, Watch(view_of(progress), on_level))
                ranks.flush()
                if not ended:
                    raise Stopped(f"{place.path} holds a checkpoint; the same call goes on from it")
            ranks.barrier()
        return Image(place)

    def plan(self, *, ranks: int = 1, speed: float | None = None, **options: Any) -> Plan:
        """What a job would take, without running it. Local: no rank is asked.

        Args:
            ranks: How many the plan is for.
            speed: Evaluations a second of one rank; None: the plan says no time.
            options: The job, as for a call.
        """
        job, run_options = jobs_of({**self.settings, **options, "dry_run": True, "preview": "none"})
        prepared = prepare(job, run_options, ranks, ranks)
        return Plan(plan_summary(prepared), speed)

    def _load(self, prepared: Prepared, device: str) -> list[Model]:
        """The networks of a job, loaded once for as long as this pipeline lives."""
        from engine.pipeline.run import load_models

        job = prepared.job
        key = (tuple(card.hash for card in prepared.cards), job.dtype, job.compile, device)
        if key not in self._models:
            self._models[key] = load_models(prepared, device)
        return self._models[key]


class Stopped(RuntimeError):
    """The run was asked to stop before its end, and left a checkpoint."""


@dataclass(frozen=True)
class Plan:
    """What a job would take: printed as a table, read as a mapping of ``facts``.

    Args:
        facts: As ``--dry-run --json`` prints them.
        speed: Evaluations a second of one rank; None: not known.
    """

    facts: Mapping[str, Any]
    speed: float | None = None

    @property
    def evaluations(self) -> int:
        """Evaluations of the network by all ranks together, the label stage's included."""
        stage = self.facts.get("label_map", {})
        return int(self.facts["evaluations"]) + int(stage.get("evaluations", 0))

    @property
    def seconds(self) -> float | None:
        """Seconds of the evaluations, as the busiest rank takes them; None where no speed was given."""
        if self.speed is None:
            return None
        stages = (self.facts, self.facts.get("label_map", {}))
        return sum(stage.get("evaluations_per_rank", {}).get("max", 0) for stage in stages) / self.speed

    def rows(self) -> list[tuple[str, str]]:
        """(what, how much), for people."""
        facts, least = self.facts, "at least " if "evaluations_are" in self.facts else ""
        channels, height, width = facts["latent_shape"]
        per_rank = facts["evaluations_per_rank"]
        rows = [
            ("image", " x ".join(map(str, facts["job"]["size"])) + " px"),
            ("canvas", f"{channels} x {height} x {width} latents, {facts['shards']} shards"),
            ("levels", f"{facts['levels']}"),
            ("ranks", f"{facts['ranks']}"),
            ("evaluations", f"{least}{self.evaluations:,}"),
            ("evaluations a rank", f"{per_rank['min']:,} to {per_rank['max']:,}"),
            ("exchanged", binary(facts["exchange_bytes"])),
            ("memory a rank", binary(facts["memory_bytes_per_rank"])),
            ("files", f"{facts['files']:,}"),
        ]
        return rows if self.seconds is None else [*rows, ("time of the evaluations", f"{self.seconds:,.0f} s")]

    def __repr__(self) -> str:
        rows = self.rows()
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)

    def _repr_html_(self) -> str:
        return (
            "<table>" + "".join(f"<tr><td>{name}</td><td>{value}</td></tr>" for name, value in self.rows()) + "</table>"
        )


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

    def __init__(self, place: Place) -> None:
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
    if state_of(place) is None:
        raise ValueError(f"{place} is not there")
    return Image(Place(place))


# ---- between the call and the run ---------------------------------------------------------------


@dataclass
class Place:
    """Where an output lies.

    Args:
        holder: Of a temporary place: a file that says that this rank still refers to it. The place goes with the last.
    """

    path: Path
    holder: Path | None = None

    def __post_init__(self) -> None:
        if self.holder is not None:
            self.holder.touch()
            weakref.finalize(self, let_go, self.holder)

    @classmethod
    def choose(cls, ranks: Ranks, out: str | Path | None) -> Place:
        """The place that was named, or a temporary one that all ranks see. Collective.

        Raises:
            ValueError: none was named and the ranks are on several nodes.
        """
        if out is not None:
            return cls(Path(out))
        if ranks.any(ranks.local_size != ranks.size):
            raise ValueError("`out` is None but the ranks are on several nodes; name a place that all of them see")
        folder = ranks.on_root(lambda: tempfile.mkdtemp(prefix="slidefield-"))
        place = cls(Path(folder) / "image.zarr", Path(folder) / f"rank-{ranks.rank}.held")
        ranks.barrier()  # none lets go before all hold on
        return place


def let_go(holder: Path) -> None:
    """Refer to a temporary place no more; remove it if nobody else does."""
    holder.unlink(missing_ok=True)
    if not list(holder.parent.glob("rank-*.held")):
        shutil.rmtree(holder.parent, ignore_errors=True)


def jobs_of(options: Mapping[str, Any]) -> tuple[SampleJob, RunOptions]:
    """Keywords -> job and run options, checked as on the command line.

    Raises:
        TypeError: a keyword that is no option.
        ValueError: a value out of its range.
    """
    for name in options:
        if name not in OPTIONS:
            raise TypeError(f"{name!r} is no option; {nearest(name)}")
    return divided({name: value for name, value in options.items() if value is not None})


@contextmanager
def arrays_as_files(ranks: Ranks, options: dict[str, Any], out: str | Path | None) -> Iterator[dict[str, Any]]:
    """The options with files in place of arrays, for as long as the run lasts. Collective."""
    arrays = {name: options[name] for name in FILES if name in options and not is_path(options[name])}
    if not arrays:
        yield options
        return
    beside = None if out is None else Path(out).absolute().parent

    def write() -> dict[str, str]:
        folder = Path(tempfile.mkdtemp(prefix=".slidefield-inputs-", dir=beside))
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", np.asarray(array))
        return {name: str(folder / f"{name}.npy") for name in arrays}

    files = ranks.on_root(write)
    try:
        yield {**options, **files}
    finally:
        if ranks.rank == 0:
            shutil.rmtree(Path(next(iter(files.values()))).parent, ignore_errors=True)


def is_path(value: Any) -> bool:
    return value is None or isinstance(value, str | Path)


def is_setting(value: Any) -> bool:
    """Whether a value is an option's own, and not an array in place of a file."""
    return is_path(value) or isinstance(value, bool | int | float | tuple | list)


@contextmanager
def failing_together(ranks: Ranks) -> Iterator[None]:
    """Errors that all ranks agreed on reach every caller; any other error of one rank of several ends all ranks.

    Without that the others would wait for it without end.
    """
    try:
        yield
    except AgreedError as error:
        ranks.barrier()
        raise ValueError(str(error)) from None
    except CallbackFailed as failed:
        raise failed.error from failed.__cause__
    except (Stopped, KeyboardInterrupt):
        raise
    except BaseException:
        if ranks.size > 1:
            ranks.abort(f"rank {ranks.rank} of {ranks.size} failed, ending all:\n{traceback.format_exc()}")
        raise


@contextmanager
def threads_as_before() -> Iterator[None]:
    """Give torch back its number of threads, which a run sets to the job's."""
    import torch

    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def view_of(progress: bool | None) -> View:
    """A bar, or nothing; None: a bar where somebody looks, on a terminal or in a notebook."""
    if progress is None:
        progress = sys.stderr.isatty() or "ipykernel" in sys.modules
    return Bar() if progress else Silent()


def binary(count: int) -> str:
    """Bytes for people.

    >>> binary(3 * 2**20)
    '3.0 MiB'
    """
    size, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.1f} {units[0]}"
