"""``python -m engine.sample``: arguments -> job -> plan -> run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine import __version__
from engine.command_line import gives_help, launched_rank
from engine.parsing import parse, parser

if TYPE_CHECKING:
    from engine.distributed.ranks import Ranks
    from engine.job import RunOptions, SampleJob
    from engine.pipeline.plane_request import PlaneRequest
    from engine.pipeline.prepared import Prepared


def main(arguments: Sequence[str] | None = None) -> int:
    """Sample, as the command line says. Collective over all ranks; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if "--version" in arguments:
        if launched_rank() == 0:
            print(f"slidefield {__version__}")
        return 0
    if gives_help(parser, arguments):
        return 0
    from engine.distributed.launch import run_main  # numpy, for which --help does not wait

    return run_main(lambda ranks: sample(ranks, arguments), goes_on=True)


def sample(ranks: Ranks, arguments: list[str]) -> int:
    """One job from its arguments to its output. Collective; errors of the user are agreed upon before any work."""
    job, options = ranks.agree(lambda: parse(arguments))

    ranks.catch_signals()
    import json

    from engine.command_line import STOPPED
    from engine.pipeline.dry_run import Plan
    from engine.pipeline.mending import examined
    from engine.pipeline.prepare import prepare  # zarr, for which wrong arguments do not wait
    from engine.pipeline.preview import preview, preview_path
    from engine.pipeline.report_file import report_path
    from engine.storage.output import Output

    if options.plane is not None:
        return sample_plane(ranks, job, options)
    size = ranks_planned_for(options, ranks)
    prepared = ranks.on_root(lambda: prepare(job, options, size, ranks.local_size))
    options = prepared.options  # `out` is a path now
    if options.dry_run:
        facts = ranks.on_root(lambda: facts_of(prepared, options.measure))
        say(ranks, lambda: json.dumps(facts) if options.json else repr(Plan(facts)))
        return 0
    prepared = examined(ranks, prepared)
    if prepared.state == "finished":
        ranks.on_root(lambda: Output(Path(options.out)).tidy())  # a kill may have come between the two
        if (picture := preview_path(options)) and not picture.exists():
            preview(ranks, options)
        if options.report and not report_path(Path(options.out)).exists():
            report(ranks, Path(options.out))
        say(ranks, lambda: f"{options.out} is finished already: the same job; --overwrite samples it again")
        return 0

    from engine.pipeline.run import run  # torch: a second or more

    if not run(ranks, prepared):
        return STOPPED
    preview(ranks, options)
    if options.report:
        report(ranks, Path(options.out))
    return 0


def sample_plane(ranks: Ranks, job: SampleJob, options: RunOptions) -> int:
    """A request to a plane; the exit status. Collective."""
    from engine.command_line import STOPPED
    from engine.pipeline.plane import sample_request
    from engine.pipeline.plane_cost import cost_text
    from engine.pipeline.plane_request import prepare_request

    size = ranks_planned_for(options, ranks)
    request = ranks.on_root(lambda: prepare_request(job, options, size, ranks.local_size))
    if options.dry_run:
        text = ranks.on_root(lambda: plan_text(request, options))
        say(ranks, lambda: text)
        return 0
    say(ranks, lambda: cost_text(request))
    if request.known:
        return 0
    if not sample_request(ranks, request):
        return STOPPED
    say(ranks, lambda: f"{options.plane} has it")
    return 0


def plan_text(request: PlaneRequest, options: RunOptions) -> str:
    """What a request to a plane would take, in lines or as JSON."""
    import json

    from engine.pipeline.dry_run import Plan
    from engine.pipeline.plane_cost import cost_text, request_facts

    facts = request_facts(request, measured if options.measure else None)
    if options.json:
        return json.dumps(facts)
    return cost_text(request) if request.known else f"{cost_text(request)}\n{Plan(facts)!r}"


def ranks_planned_for(options: RunOptions, ranks: Ranks) -> int:
    """The number of ranks that a job is planned for."""
    return options.ranks if options.dry_run and options.ranks else ranks.size


def report(ranks: Ranks, out: Path) -> None:
    """Write the report on rank 0, and say so. Collective."""
    from engine.reporting.page import write_report

    file = ranks.on_root(lambda: write_report(out))
    if ranks.rank == 0:
        print(f"{file} reports it", flush=True)


def facts_of(prepared: Prepared, measure: bool) -> dict[str, Any]:
    """What the job would take; with the speed of this machine, if it is to be measured."""
    from engine.pipeline.dry_run import plan_facts

    facts = plan_facts(prepared)
    if measure:
        facts["measured"] = measured(prepared)
        if prepared.label_stage is not None:
            facts["label_map"]["measured"] = measured(prepared.label_stage)
    return facts


def measured(prepared: Prepared) -> dict[str, Any]:
    """The speed of this machine with a job's networks."""
    from engine.pipeline.measure import measure  # torch

    return measure(prepared)


def say(ranks: Ranks, text: Callable[[], str]) -> None:
    """Print on rank 0 while the others wait. Collective."""
    if ranks.rank == 0:
        print(text(), flush=True)
    ranks.barrier()


if __name__ == "__main__":
    raise SystemExit(main())
