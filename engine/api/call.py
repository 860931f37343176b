"""Between a call and its run: arguments checked, arrays made files, a place for the output."""

from __future__ import annotations

import numbers
import os
import shutil
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.api.temporary import claim, make_folder, release
from engine.distributed.ranks import AgreedError, Ranks
from engine.inputs.position_function import name_of_given
from engine.job import RunOptions, SampleJob
from engine.messages import quoted
from engine.options import FILE, PATH, ROWS, names_function
from engine.parsing import JOB_OPTIONS, OPTIONS, nearest, split_job_and_options
from engine.pipeline.collective_call import array_fact, array_text
from engine.planning.geometry import Box
from engine.storage.store_url import handle_of, is_url, looks_like_url

NAMES = {"model": "embedded", "label_model": "embedded", "labels": "example", "preview": "none"}  # that are no paths
PLANNED = {
    "dry_run": "pipe.plan(...) says what a job would take",
    "json": "pipe.plan(...).facts is what --dry-run --json prints",
    "measure": "pass `speed` to pipe.plan, evaluations a second of one rank",
    "model": "a pipeline has one model; make another with engine.Pipeline.from_pretrained(...)",
}
BY_POSITION = ("labels", "embeddings", "region_embeddings")  # which a function of position may give
# Keywords that mean nothing in a place, and where they belong instead.
NOT_OF_A_PLAN = PLANNED
NOT_OF_A_PLANE = {**PLANNED, "out": "a plane is written to its own path"}
NOT_OF_A_CALL = {
    **PLANNED,
    "continue_": "python -m engine.sample --continue OUT --region=... continues an image",
    **dict.fromkeys(
        ("plane", "region", "hold", "keep_levels"), "pipe.plane(path, rows, columns) samples a region of a plane"
    ),
    "ranks": "pipe.plan(ranks=N) plans for N; a call runs on those of `comm`, as mpiexec -n N started them",
}
NOT_OF_A_PIPELINE = {
    **{name: way for name, way in NOT_OF_A_CALL.items() if name != "model"},
    **{
        name: f"pass it to the call, pipe({name}=...)"
        for name in ("out", "scratch", "preview", "report", "on_level", "progress", "comm")
    },
}


class Stopped(RuntimeError):
    """The run was asked to stop before its end, and left a checkpoint."""


# ---- arguments ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arguments:
    """What a call is given.

    Args:
        values: Options by name, those that are arrays left out; paths are absolute.
        arrays: Arrays that are given in place of files.
        given: Fields of the job as its output keeps them, see ``Prepared.given``.
    """

    values: dict[str, Any]
    arrays: dict[str, Any]
    given: dict[str, str]

    @classmethod
    def of(cls, options: Mapping[str, Any], elsewhere: Mapping[str, str]) -> Arguments:
        """Keywords as they are given.

        Args:
            elsewhere: The way out for each keyword that means nothing here.
        Raises:
            TypeError: a keyword that is no option, or that means nothing here.
        """
        for name in options:
            if name in elsewhere:
                raise TypeError(f"{name!r} means nothing here; {elsewhere[name]}")
            if name not in OPTIONS:
                raise TypeError(f"{name!r} is no option; {nearest(name)}")
        arrays = {name: as_array(name, value) for name, value in options.items() if is_array(name, value)}
        values = {name: as_option(name, value) for name, value in options.items() if name not in arrays}
        moved = {name for name in values if name in JOB_OPTIONS and is_path(name) and values[name] != options[name]}
        paths = {name for name in moved if not callable(options[name])}
        given = {name: os.fspath(options[name]) for name in paths} | dict.fromkeys(arrays, "array")
        return cls(values, arrays, given)

    def overriding(self, other: Arguments) -> Arguments:
        """Those of a call, on top of the pipeline's."""

        def over(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
            again = {*self.values, *self.arrays}
            return {**{name: value for name, value in theirs.items() if name not in again}, **ours}

        return Arguments(
            over(self.values, other.values), over(self.arrays, other.arrays), over(self.given, other.given)
        )

    def checked(self) -> tuple[SampleJob, RunOptions]:
        """The job and the run options, without the arrays.

        Raises:
            ValueError: a value out of its range.
        """
        return split_job_and_options(self.values)

    def facts(self) -> dict[str, str]:
        """Text that tells every argument from another; checks them.

        Raises:
            ValueError: a value out of its range.
        """
        plain = {name: repr(value) for part in self.checked() for name, value in vars(part).items()}
        return {**plain, **{name: array_fact(array) for name, array in self.arrays.items()}}

    def converted(self) -> Arguments:
        """The same with numpy arrays, which lazy ones are read for.

        Raises:
            ValueError: one that cannot be read, naming the option.
        """
        return Arguments(self.values, {name: to_numpy(name, array) for name, array in self.arrays.items()}, self.given)


def is_path(name: str) -> bool:
    """Whether an option is a path."""
    return name in OPTIONS and OPTIONS[name].kind in (PATH, FILE, ROWS)


def is_array(name: str, value: Any) -> bool:
    """Whether an option is given an array in place of a file."""
    kind = OPTIONS[name].kind if name in OPTIONS else None
    no_array = (str, os.PathLike) if kind is FILE else (str, os.PathLike, numbers.Integral)
    return kind in (FILE, ROWS) and value is not None and not callable(value) and not isinstance(value, no_array)


def region_of(rows: Any, columns: Any) -> Box:
    """A region of a plane.

    Args:
        rows, columns: First, and the one after the last, px.
    Raises:
        ValueError: one of them is no two whole numbers.
    """
    spans = []
    for name, given in (("rows", rows), ("columns", columns)):
        span = tuple(given) if isinstance(given, tuple | list | np.ndarray) and len(given) == 2 else ()
        if not span or not all(isinstance(end, numbers.Integral) and not isinstance(end, bool) for end in span):
            raise ValueError(f"`{name}` is {quoted(given)}; give the first and the one after the last, as (-256, 512)")
        spans.append([int(end) for end in span])
    (y0, y1), (x0, x1) = spans
    return Box(y0, x0, y1, x1)


def as_option(name: str, value: Any) -> Any:
    """A value as the option takes it: names of functions and of torch's dtypes, one side of a square, absolute paths.

    Paths are made absolute because Python may change its folder, after a call and in the middle of one.
    """
    if name in ("dtype", "device") and type(value).__module__ == "torch":
        return str(value).removeprefix("torch.")
    if name == "size" and isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return (int(value), int(value))
    if name in BY_POSITION and callable(value):
        return name_of_given(value)
    if not is_path(name) or not isinstance(value, str | os.PathLike):
        return value
    text = os.fspath(value)
    if (
        not isinstance(text, str)
        or not text
        or text == NAMES.get(name)
        or (name in BY_POSITION and names_function(text))
    ):
        return text
    if name == "out" and (is_url(text) or looks_like_url(Path(text))):
        return text
    if OPTIONS[name].kind is ROWS and text.strip().isdigit():
        return text
    return ",".join(map(absolute, text.split(","))) if name == "style" else absolute(text)


def absolute(path: str) -> str:
    """A path that stays the same when Python changes its folder."""
    return path if os.path.isabs(path) else os.path.join(os.getcwd(), path)


def as_array(name: str, value: Any) -> Any:
    """What is given in place of a file, as something that has a shape and a type.

    Raises:
        ValueError: it is no array.
    """
    array = value if hasattr(value, "shape") and hasattr(value, "dtype") else to_numpy(name, value)
    if isinstance(array, np.ndarray) and (array.dtype.kind not in "biuf" or not array.ndim):
        raise ValueError(f"`{name}` is of type {type(value).__name__}: expected a file, or an array of numbers")
    return array


def to_numpy(name: str, value: Any) -> np.ndarray:
    """An array of numpy.

    Raises:
        ValueError: it cannot be one, naming the option.
    """
    try:
        return np.asarray(value)
    except Exception as error:  # of whatever library it is
        why = " ".join(str(error).split())
        raise ValueError(f"`{name}` is of type {type(value).__name__}, which numpy cannot read ({why})") from error


# ---- arrays as files ------------------------------------------------------------------------


@contextmanager
def arrays_as_files(ranks: Ranks | None, arguments: Arguments) -> Iterator[dict[str, Any]]:
    """The options with arrays saved as .npy files, for as long as this lasts. Collective.

    The files lie beside the output, so that all ranks see them; without one, in the folder for temporary files. A
    message about such a file says that it is an array.

    Args:
        ranks: That read the files; None: this process alone.
    """
    if not arguments.arrays:
        yield dict(arguments.values)
        return

    def save() -> Path:
        folder = make_folder(".slidefield-inputs-", folder_above(local_part(arguments.values)))
        try:
            held.append(claim(folder))
            for name, array in arguments.arrays.items():
                np.save(folder / f"{name}.npy", array, allow_pickle=False)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return folder

    held: list[Any] = []
    try:
        folder = save() if ranks is None else ranks.on_root(save)
        files = {name: str(folder / f"{name}.npy") for name in arguments.arrays}
        try:
            yield {**arguments.values, **files}
        except (AgreedError, ValueError) as error:
            text = str(error)
            for name, file in files.items():
                text = text.replace(file, array_text(arguments.arrays[name]))
            if text == str(error):
                raise
            raise (AgreedError if isinstance(error, AgreedError) else ValueError)(text) from None
    finally:
        for stream in held:
            release(stream, os.getpid())


def local_part(values: Mapping[str, Any]) -> str | None:
    """The path of the output; of one in an object store that of its handle; None: there is none."""
    out = values.get("out")
    return str(handle_of(out, values.get("scratch") or "")) if out is not None and is_url(out) else out


def out_of(values: Mapping[str, Any], place: Path) -> str:
    """The output as options name it: its URL, or its path."""
    return values["out"] if is_url(values.get("out") or "") else str(place)


def folder_above(out: str | None) -> Path | None:
    """The nearest folder above an output that is there; None: there is no output, or none can be written there."""
    if out is None:
        return None
    folder = next(parent for parent in Path(out).parents if parent.is_dir())
    return folder if os.access(folder, os.W_OK) else None


# ---- the place of the output ----------------------------------------------------------------


@dataclass
class OutputLocation:
    """Where an output lies.

    Args:
        path: Absolute.
        held: Of a temporary place: this process's claim on its folder, which goes with the last claim.
    """

    path: Path
    held: Any = None

    def __post_init__(self) -> None:
        if self.temporary:
            weakref.finalize(self, release, self.held, os.getpid())

    @property
    def temporary(self) -> bool:
        return self.held is not None

    @classmethod
    def choose(cls, ranks: Ranks, out: str | None) -> OutputLocation:
        """The place that was named, or a temporary one that all ranks see. Collective.

        Raises:
            AgreedError: none was named and the ranks are on several nodes.
        """
        if out is not None:
            return cls(Path(out))
        if ranks.any(ranks.local_size != ranks.size):
            raise AgreedError("`out` is None but the ranks are on several nodes; name a place that all of them see")
        folder = ranks.on_root(lambda: make_folder("slidefield-image-"))
        place = cls(folder / "image.zarr", ranks.agree(lambda: claim(folder, ranks.rank)))
        ranks.barrier()  # none lets go before all hold on
        return place

    def stopped(self, interrupted: bool) -> BaseException:
        """What a call raises that was asked to stop."""
        kept = f"{self.path} holds a checkpoint; the same call goes on from it"
        if self.temporary:
            kept = "nothing is kept, for `out` is None"
        return KeyboardInterrupt(kept) if interrupted else Stopped(kept)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.temporary:
            raise TypeError(
                "an image without `out` cannot be pickled, for its store goes with this process; "
                "pass `out` to the call, or pass on the pixels, image[...]"
            )
        return OutputLocation, (self.path,)
