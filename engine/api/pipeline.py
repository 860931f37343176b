"""A pipeline: a model, and the jobs that it is called with.

>>> import engine
>>> pipe = engine.Pipeline.from_pretrained("embedded")
>>> image = pipe(size=(256, 256), labels="example", steps=1, progress=False)
>>> image
<Image 3 x 256 x 256 uint8, finished, seed 0, in memory>
>>> image[:, :2, :2].shape
(3, 2, 2)

Every option of ``python -m engine.sample`` is a keyword of the same name, is checked alike and gives the same bytes.
Under MPI every call that samples is collective: all ranks of the communicator make it, with the same arguments; one
call at a time.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.api.call import (
    NOT_OF_A_CALL,
    NOT_OF_A_PIPELINE,
    NOT_OF_A_PLAN,
    NOT_OF_A_PLANE,
    Arguments,
    OutputLocation,
    absolute,
    arrays_as_files,
    local_part,
    out_of,
    region_of,
)
from engine.api.image import Image
from engine.distributed.launch import ranks_of
from engine.options import number, read_as
from engine.parsing import RUN_OPTIONS, split_job_and_options
from engine.pipeline.collective_call import Facts, agreed, array_text, failing_together
from engine.pipeline.dry_run import Plan, plan_facts
from engine.pipeline.mending import examined
from engine.pipeline.plane import sample_request
from engine.pipeline.plane_request import prepare_request
from engine.pipeline.prepare import prepare
from engine.pipeline.prepared import Prepared
from engine.pipeline.preview import write_preview
from engine.pipeline.run import kept_models, run  # torch now: an interrupt while it is imported would leave half of it
from engine.pipeline.watch import Bar, OnLevel, Silent, View, Watch
from engine.planning.plane import corners_of
from engine.reporting.page import write_report

if TYPE_CHECKING:
    from engine.models.folder import Model


class Pipeline:
    """A model, and the job that its options describe; calling it samples.

    docs/options.md lists all options; ``help(engine.SampleJob)`` and ``help(engine.RunOptions)`` do too.

    Args:
        model: Model folder, or ``embedded``.
        settings: Options that every call starts from (``device``, ``dtype``, ``compile``, ``threads``, ``size``, ...).
            None, here and in calls, leaves an option to the model; options with a default of their own refuse it.

    Raises:
        ValueError: an option out of its range, naming the field; at a call also whatever would stop the run.
        TypeError: a keyword that is no option, or that belongs to a call.
    """

    def __init__(self, model: str | Path = "embedded", **settings: Any) -> None:
        self._arguments = Arguments.of({"model": model, **settings}, NOT_OF_A_PIPELINE)
        self._arguments.facts()  # checks them now
        self._models: dict[Any, list[Model]] = {}

    @classmethod
    def from_pretrained(
        cls, model: str | Path = "embedded", *, device: str = "auto", dtype: str = "float32", **settings: Any
    ) -> Pipeline:
        """A pipeline of a model folder; its networks are loaded at the first call and kept.

        Args:
            model: Folder that ``engine.train`` wrote, ``engine.models.convert`` made or diffusers saved; ``embedded``
                is the one in the package.
            device: ``auto``, ``cpu`` or ``cuda``; with ``auto`` the GPUs, if every rank has one.
            dtype: Of the networks: ``float32``, ``bfloat16`` or ``float16``.
            settings: Other options that every call starts from, see docs/options.md.
        Raises:
            ValueError: the folder is no model, or an option is out of its range.
            TypeError: a keyword that is no option, or that belongs to a call.
        """
        from engine.models.card import read_card

        pipe = cls(model, device=device, dtype=dtype, **settings)
        read_card(os.fspath(model))  # a wrong folder is refused here, not at the first call
        return pipe

    @property
    def settings(self) -> dict[str, Any]:
        """What every call starts from; paths are absolute."""
        return {**self._arguments.values, **self._arguments.arrays}

    def __repr__(self) -> str:
        arguments = self._arguments
        texts = {name: repr(arguments.given.get(name, value)) for name, value in arguments.values.items()}
        texts |= {name: array_text(array) for name, array in arguments.arrays.items()}
        return f"Pipeline({', '.join(f'{name}={text}' for name, text in texts.items())})"

    def __getstate__(self) -> dict[str, Any]:
        """The pipeline without its networks, which are loaded again where it is unpickled."""
        return {**self.__dict__, "_models": {}}

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
            out: OME-Zarr to write; an unfinished one of the same job is resumed, a finished one is opened. The URL of
                one in an object store (``s3://...``) takes ``scratch`` too, a folder that all ranks see. None: the
                result lives in a temporary store for as long as the returned image, or a view of it, does.
            comm: mpi4py communicator; None: all ranks that were started together (one, in a notebook). It takes one
                call at a time: from a callback or another thread give another communicator.
            on_level: Called after every level of the image as ``on_level(level, levels, preview)`` on every rank;
                ``preview()`` is collective and returns the present estimate of the image, uint8 (h, w, 3) of at most
                512 px a side. Returning True stops the run, which leaves a checkpoint in ``out``.
            progress: Whether a tqdm bar shows the run; None: where rank 0 has a terminal or a notebook.
            options: The job: ``size``, ``labels``, ``seed``, ``steps``, ``guidance``, ... (docs/options.md), and
                ``overwrite``, ``resume``, ``checkpoint_every``, ``json_log``, ``preview`` (a PNG to write), ``report``
                (a page beside ``out``), ``live`` (for ``slidefield view`` while it samples). Files may be given as
                arrays instead.
        Raises:
            ValueError: an option or a file that does not suit, naming the field, or arguments that are not the same on
                all ranks; before anything is written.
            TypeError: a keyword that is no option, or that means nothing here.
            RuntimeError: another call is under way on this communicator.
            Stopped: ``on_level`` asked for a stop.
            KeyboardInterrupt: Ctrl-C, once the level is done and its checkpoint written; at once at the second.
        """
        ranks = ranks_of(comm)

        def check() -> tuple[Arguments, Facts]:
            if on_level is not None and not callable(on_level):
                raise TypeError(f"`on_level` is {on_level!r}: expected a function of (level, levels, preview)")
            named = {"preview": "none", **options, **({} if out is None else {"out": out})}
            arguments = Arguments.of(named, NOT_OF_A_CALL).overriding(self._arguments)
            told = "None" if on_level is None else "a function"
            if arguments.values.get("report") and arguments.values.get("out") is None:
                raise ValueError("`report` is written beside the output; pass `out` too")
            facts = {**arguments.facts(), "out": repr(arguments.values.get("out")), "on_level": told}
            return arguments.converted() if ranks.rank == 0 else arguments, facts

        with ranks.one_call():
            arguments = agreed(ranks, check)
            with failing_together(ranks), arrays_as_files(ranks, arguments) as values:
                place = OutputLocation.choose(ranks, local_part(values))
                job, given = split_job_and_options({**values, "out": out_of(values, place.path)})
                prepared = ranks.on_root(lambda: prepare(job, given, ranks.size, ranks.local_size))
                run_options = prepared.options
                prepared = examined(ranks, replace(prepared, given=arguments.given))
                completed, interrupted = prepared.state == "finished", False
                if not completed:
                    with ranks.catching_interrupts():
                        completed = run(ranks, prepared, self._load, Watch(view_of(progress), on_level))
                    ranks.flush()
                    interrupted = not completed and ranks.any(ranks.interrupted is not None)
                if completed:
                    ranks.on_root(lambda: write_preview(run_options))
                    if run_options.report:
                        ranks.on_root(lambda: write_report(place.path))
                ranks.barrier()
        if not completed:
            raise place.stopped(interrupted)
        return Image(place)

    def plane(
        self,
        path: str | Path,
        rows: tuple[int, int],
        columns: tuple[int, int],
        *,
        hold: int = 3,
        comm: Any = None,
        progress: bool | None = None,
        **options: Any,
    ) -> Image:
        """Sample a region of an unbounded plane, and add it to the plane's OME-Zarr. Collective over ``comm``.

        Args:
            path: The plane; it is made where it is not there.
            rows, columns: First, and the one after the last, px; they may be negative.
            hold: Levels that share windows; more make a region cheaper. A plane has one number.
            comm, progress, options: As of a call; ``labels`` may be a function of a box of the plane.
        Returns:
            The plane, of which ``region(rows, columns)`` reads.
        Raises:
            ValueError, TypeError, RuntimeError, KeyboardInterrupt: As of a call.
        """
        ranks, place = ranks_of(comm), OutputLocation(Path(absolute(os.fspath(path))))

        def check() -> tuple[Arguments, Facts]:
            region = corners_of(region_of(rows, columns))
            named = {"preview": "none", **options, "plane": place.path, "region": region, "hold": hold}
            arguments = Arguments.of(named, NOT_OF_A_PLANE).overriding(self._arguments)
            return arguments.converted() if ranks.rank == 0 else arguments, arguments.facts()

        with ranks.one_call():
            arguments = agreed(ranks, check)
            with failing_together(ranks), arrays_as_files(ranks, arguments) as values:
                job, run_options = split_job_and_options(values)
                request = ranks.on_root(lambda: prepare_request(job, run_options, ranks.size, ranks.local_size))
                with ranks.catching_interrupts():
                    completed = sample_request(ranks, request, self._load, Watch(view_of(progress)))
                ranks.flush()
                interrupted = not completed and ranks.any(ranks.interrupted is not None)
        if not completed:
            raise place.stopped(interrupted)
        return Image(place)

    def plan(self, *, ranks: int = 1, speed: float | None = None, **options: Any) -> Plan:
        """What a job would take, without running it. Local: no rank is asked.

        Args:
            ranks: How many the plan is for.
            speed: Evaluations a second of one rank; None: the plan says no time.
            options: The job, as for a call.
        Raises:
            ValueError, TypeError: as a call does.
        """
        count = RUN_OPTIONS["ranks"].read(ranks)
        if speed is not None:
            speed = read_speed(speed)
        arguments = Arguments.of(options, NOT_OF_A_PLAN).overriding(self._arguments).converted()
        arguments.checked()
        with arrays_as_files(None, arguments) as values:
            job, run_options = split_job_and_options({**values, "dry_run": True, "preview": "none", "report": False})
            prepared = replace(prepare(job, run_options, count, count), given=arguments.given)
            return Plan(plan_facts(prepared), speed)

    def _load(self, prepared: Prepared, device: str) -> list[Model]:
        """The networks of a job, loaded once for as long as this pipeline lives."""
        return kept_models(self._models, prepared, device)


def read_speed(speed: Any) -> float:
    """A speed above 0.

    Raises:
        ValueError: it is none.
    """
    value = float(read_as(number(0), speed, "`speed`"))
    if not value:
        raise ValueError(f"`speed` is {speed!r}: expected evaluations a second above 0; leave it out for no time")
    return value


def view_of(progress: bool | None) -> View:
    """A bar, or nothing; None: a bar where somebody looks, on a terminal or in a notebook."""
    if progress is None:
        progress = sys.stderr.isatty() or "ipykernel" in sys.modules
    return Bar() if progress else Silent()
