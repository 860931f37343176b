"""A pipeline: a model, and the jobs that it is called with.

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

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.api.call import OutputLocation, arrays_as_files, failing_together, is_array, job_and_options
from engine.api.image import Image
from engine.distributed.launch import ranks_of
from engine.pipeline.dry_run import Plan, plan_facts
from engine.pipeline.mending import examined
from engine.pipeline.prepare import prepare
from engine.pipeline.prepared import Prepared
from engine.pipeline.watch import Bar, OnLevel, Silent, View, Watch

if TYPE_CHECKING:
    from engine.models.folder import Model


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
        job_and_options(self.settings)  # checks them now

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
            Stopped: ``on_level`` asked for a stop.
            KeyboardInterrupt: Ctrl-C, once the level is done and its checkpoint written; at once at the second.
        """
        from engine.pipeline.run import run  # torch

        ranks = ranks_of(comm)
        job_and_options(
            {**self.settings, **{name: value for name, value in options.items() if not is_array(name, value)}}
        )
        with failing_together(ranks), arrays_as_files(ranks, options, out) as options:
            place = OutputLocation.choose(ranks, out)
            job, run_options = job_and_options({**self.settings, **options, "out": str(place.path), "preview": "none"})
            prepared = ranks.on_root(lambda: prepare(job, run_options, ranks.size, ranks.local_size))
            prepared = examined(ranks, prepared)
            if prepared.state != "finished":
                with ranks.catching_interrupts():
                    completed = run(ranks, prepared, self._load, Watch(view_of(progress), on_level))
                ranks.flush()
                if not completed:
                    raise place.stopped(ranks.any(ranks.interrupted is not None))
            ranks.barrier()
        return Image(place)

    def plan(self, *, ranks: int = 1, speed: float | None = None, **options: Any) -> Plan:
        """What a job would take, without running it. Local: no rank is asked.

        Args:
            ranks: How many the plan is for.
            speed: Evaluations a second of one rank; None: the plan says no time.
            options: The job, as for a call.
        """
        with arrays_as_files(None, options, None) as options:
            job, run_options = job_and_options({**self.settings, **options, "dry_run": True, "preview": "none"})
            prepared = prepare(job, run_options, ranks, ranks)
            return Plan(plan_facts(prepared), speed)

    def _load(self, prepared: Prepared, device: str) -> list[Model]:
        """The networks of a job, loaded once for as long as this pipeline lives."""
        from engine.pipeline.run import load_models

        job = prepared.job
        key = (tuple(card.hash for card in prepared.cards), job.dtype, job.compile, device)
        if key not in self._models:
            self._models[key] = load_models(prepared, device)
        return self._models[key]


def view_of(progress: bool | None) -> View:
    """A bar, or nothing; None: a bar where somebody looks, on a terminal or in a notebook."""
    if progress is None:
        progress = sys.stderr.isatty() or "ipykernel" in sys.modules
    return Bar() if progress else Silent()
