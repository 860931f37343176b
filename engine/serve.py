"""``python -m engine.serve PLANE.zarr [options of engine.sample]``: pan over a plane in the browser, without end.

What the page shows and the plane has not got is sampled, on all ranks, nearest the middle of the screen first. A plane
that is there has its own settings; of a new one they are given as to engine.sample (--labels, --label, --seed, --steps,
--hold, ...). The page is served on this machine alone, until Ctrl-C or TERM, which leave the plane whole. With --host
it is served to others too, behind a token in the address. Exit status: 0 ended by a signal, 1 refused.
"""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.command_line import Parser, gives_help
from engine.messages import one_line
from engine.viewing.address import HOST, PORT, address_of, listening, open_browser, path_of, port_number, quality_number

if TYPE_CHECKING:
    from engine.distributed.ranks import Ranks
    from engine.job import RunOptions, SampleJob

BLOCK, TOGETHER = 512, 4
SIDES = (64, 4096)  # px of a block, least and most
NOT_SERVED = (
    "plane",
    "region",
    "out",
    "preview",
    "report",
    "size",
    "live",
    "dry_run",
    "json",
    "measure",
    "ranks",
    "overwrite",
)


def parser() -> Parser:
    top = Parser(prog="python -m engine.serve", description=__doc__, allow_abbrev=False)
    top.add_argument("plane", type=path_of, help="the plane; it is made where it is not there")
    text = f"where the page is served (default: {PORT}; 0: a port that is free)"
    top.add_argument("--port", type=port_number, default=PORT, metavar="N", help=text)
    text = "name or number of the network that it is served on, 0.0.0.0 for all (default: this machine alone)"
    top.add_argument("--host", default=HOST, help=text)
    text = f"side of the blocks that are sampled, {SIDES[0]} to {SIDES[1]} (default: {BLOCK})"
    top.add_argument("--block", type=block_side, default=BLOCK, metavar="PX", help=text)
    top.add_argument("--quality", type=quality_number, default=90, metavar="Q", help="of JPEG, 1 to 95 (default: 90)")
    top.add_argument("--lossless", action="store_true", help="send PNG in place of JPEG: every pixel as it is stored")
    top.add_argument("--open", action="store_true", help="open the page in the browser")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve a plane, as the command line says. Collective over all ranks; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if gives_help(parser, arguments):
        return 0
    from engine.distributed.launch import run_main  # numpy, for which --help does not wait

    return run_main(lambda ranks: serve(ranks, arguments))


def serve(ranks: Ranks, arguments: list[str]) -> int:
    """Serve until a signal. Collective; what is wrong is agreed upon before the page is there."""
    given, job, options = ranks.agree(lambda: read(arguments))
    ranks.catch_signals()
    from engine.serving.work import Work  # torch

    server = ranks.agree(lambda: begin(given, job, options, ranks) if ranks.rank == 0 else None)
    service = None if server is None else server.viewer
    thread = None
    try:
        if server is not None:
            thread = threading.Thread(target=partial(server.serve_forever, 0.1), daemon=True)
            thread.start()
            address = address_of(server, given.host)
            print(f"{address} shows {one_line(str(given.plane))}; Ctrl-C ends it", flush=True)
            if given.open:
                open_browser(address)
        Work(ranks, job, options, service).run()
    finally:
        if server is not None and thread is not None:
            server.shutdown()
            server.server_close()
    return 0


def begin(given: argparse.Namespace, job: SampleJob, options: RunOptions, ranks: Ranks) -> Any:
    """The server, once a request to the plane would not be refused. Rank 0 calls this.

    Raises:
        ValueError: it would be, or the server cannot listen.
    """
    from engine.pipeline.output_checks import check_place
    from engine.pipeline.plane_request import prepare_request
    from engine.planning.geometry import Box
    from engine.planning.plane import corners_of
    from engine.serving.service import PlaneHandler, Service
    from engine.serving.wanted import Wanted

    first = replace(options, region=corners_of(Box(0, 0, given.block, given.block)), dry_run=True)
    request = prepare_request(job, first, ranks.size, ranks.local_size)
    check_place(replace(options, out=str(options.plane)), 0)
    prepared, card = request.prepared, request.prepared.card
    settings = {name: getattr(prepared.job, name) for name in ("label", "labels", "seed", "steps", "solver")}
    told = {name: value for name, value in settings.items() if value is not None}
    facts = {"um": card.pixel_size_um, "model": card.folder.name, "settings": {**told, "hold": request.hold}}
    wanted = Wanted(given.block, max(TOGETHER, ranks.size))
    service = Service(request.path, wanted, {**facts, "ranks": ranks.size}, None if given.lossless else given.quality)
    return listening(service, given.host, given.port, PlaneHandler)


def read(arguments: list[str]) -> tuple[argparse.Namespace, SampleJob, RunOptions]:
    """The arguments, and the job of the plane: its own where it is there, with what is given.

    Raises:
        ValueError: an argument that is none, or that does not go with a page.
    """
    from engine.parsing import EITHER, given_options, read_job_file, split_job_and_options

    given, rest = parser().parse_known_args(arguments)
    named = given_options(rest)
    file = named.pop("job", None)
    values = {**({} if file is None else read_job_file(Path(file))), **named}
    wrong = next((name for name in NOT_SERVED if name in values), None)
    if wrong is not None:
        raise ValueError(f"`{wrong}` does not go with a plane that is served: the page asks for what it shows")
    own = settings_of(given.plane)
    for ways in EITHER:
        if any(name in values for name in ways):  # another than the plane's is refused by its name
            own = {name: value for name, value in own.items() if name not in ways}
    job, options = split_job_and_options({"checkpoint_every": 3600, **own, **values, "plane": str(given.plane)})
    return given, job, options


def settings_of(plane: Path) -> dict[str, Any]:
    """The settings of a plane that is there; none of one that is to be made.

    Raises:
        ValueError: what is there is damaged, or no output of ours.
    """
    from engine.parsing import JOB_OPTIONS
    from engine.storage.output import provenance_of
    from engine.storage.plane_layout import is_there

    if not is_there(plane):
        return {}
    provenance = provenance_of(plane)
    job = {name: value for name, value in provenance["job"].items() if name in JOB_OPTIONS and value is not None}
    job.pop("size", None)  # of the first request's canvas
    return {**job, "hold": provenance["hold"]} if "hold" in provenance else {}


def block_side(text: str) -> int:
    """A side of blocks, for argparse."""
    if not text.isascii() or not text.isdigit() or not SIDES[0] <= int(text) <= SIDES[1]:
        raise argparse.ArgumentTypeError(f"{text} is not {SIDES[0]} to {SIDES[1]}")
    return int(text)


if __name__ == "__main__":
    raise SystemExit(main())
