"""``python -m engine.sample``: arguments -> job -> plan -> run."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from engine.comm import Ranks, run_main
from engine.job import parse, parser

STOPPED = 75  # exit status of a run that was asked to stop and left a checkpoint


def main(arguments: Sequence[str] | None = None) -> int:
    """Sample, as the command line says. Collective over all ranks; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"} & set(arguments):
        if launched_rank() == 0:
            parser().print_help()
        return 0
    return run_main(lambda ranks: sample(ranks, arguments))


def launched_rank() -> int:
    """This process's rank as its launcher tells it, without MPI."""
    names = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")
    return next((int(os.environ[n]) for n in names if os.environ.get(n, "").isdigit()), 0)


def sample(ranks: Ranks, arguments: list[str]) -> int:
    """One job from its arguments to its output. Collective; errors of the user are agreed upon before any work."""
    job, options = ranks.agree(lambda: parse(arguments))

    from engine.run import finish, prepare, run  # numpy and zarr: not in the way of --help or of wrong arguments

    size = options.ranks if options.dry_run and options.ranks else ranks.size
    prepared = ranks.on_root(lambda: prepare(job, options, size, ranks.local_size))
    if options.dry_run:
        if ranks.rank == 0:
            import json

            print(json.dumps(prepared.plan_summary()))
        ranks.barrier()
        return 0
    if prepared.state == "finished":
        if ranks.rank == 0:
            print(f"{options.out} is finished already: the same job; --overwrite samples it again", flush=True)
        ranks.barrier()
        return 0
    if not run(ranks, prepared):
        return STOPPED
    finish(ranks, prepared, Path(options.out))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
