"""Between a call and its run: options checked, arrays made files, a place for the output, errors that end all ranks."""

from __future__ import annotations

import shutil
import tempfile
import traceback
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.distributed.ranks import AgreedError, Ranks
from engine.job import RunOptions, SampleJob
from engine.options import FILE
from engine.parsing import OPTIONS, nearest, split_job_and_options
from engine.pipeline.watch import CallbackFailed


class Stopped(RuntimeError):
    """The run was asked to stop before its end, and left a checkpoint."""


@dataclass
class OutputLocation:
    """Where an output lies.

    Args:
        holder: Of a temporary place: a file that says that this rank still refers to it. The place goes with the last.
    """

    path: Path
    holder: Path | None = None

    def __post_init__(self) -> None:
        if self.holder is not None:
            self.holder.touch()
            weakref.finalize(self, release, self.holder)

    @classmethod
    def choose(cls, ranks: Ranks, out: str | Path | None) -> OutputLocation:
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

    def stopped(self, interrupted: bool) -> BaseException:
        """What a call raises that was asked to stop."""
        kept = "nothing is kept, for `out` is None"
        if self.holder is None:
            kept = f"{self.path} holds a checkpoint; the same call goes on from it"
        return KeyboardInterrupt(kept) if interrupted else Stopped(kept)


def release(holder: Path) -> None:
    """Refer to a temporary place no more; remove it if nobody else does."""
    holder.unlink(missing_ok=True)
    if not list(holder.parent.glob("rank-*.held")):
        shutil.rmtree(holder.parent, ignore_errors=True)


def job_and_options(options: Mapping[str, Any]) -> tuple[SampleJob, RunOptions]:
    """Keywords -> job and run options, checked as on the command line.

    Raises:
        TypeError: a keyword that is no option.
        ValueError: a value out of its range.
    """
    for name in options:
        if name not in OPTIONS:
            raise TypeError(f"{name!r} is no option; {nearest(name)}")
    return split_job_and_options({name: value for name, value in options.items() if value is not None})


@contextmanager
def arrays_as_files(
    ranks: Ranks | None, options: Mapping[str, Any], out: str | Path | None
) -> Iterator[dict[str, Any]]:
    """The options with arrays saved as .npy files, for as long as this lasts. Collective.

    Args:
        ranks: That read the files; None: this process alone.
        out: Beside which the files lie, so that all ranks see them; None: in the folder for temporary files.
    """
    arrays = {name: value for name, value in options.items() if is_array(name, value)}
    if not arrays:
        yield dict(options)
        return
    beside = None if out is None else Path(out).absolute().parent

    def save() -> Path:
        folder = Path(tempfile.mkdtemp(prefix=".slidefield-inputs-", dir=beside))
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", np.asarray(array))
        return folder

    folder = save() if ranks is None else ranks.on_root(save)
    try:
        yield {**options, **{name: str(folder / f"{name}.npy") for name in arrays}}
    finally:
        if ranks is None or ranks.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)


def is_array(name: str, value: Any) -> bool:
    """Whether an option is given an array in place of a file."""
    takes_file = name in OPTIONS and OPTIONS[name].kind is FILE
    return takes_file and value is not None and not isinstance(value, str | Path)


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
