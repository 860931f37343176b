"""``python -m engine.view OUT [OTHER]``: look at an output in the browser, at any size, or at two side by side in step.

It serves a page on this machine alone, until Ctrl-C; nothing is fetched from elsewhere. An output that is unfinished,
that changes or that is removed meanwhile is shown as it is; one that is not there yet is shown when a run begins it.
With --host it is served to others too, behind a token in the address. Exit status: 0 ended by Ctrl-C, 1 refused.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path

from engine.command_line import Parser, on_one_rank, print_error
from engine.messages import did_you_mean, one_line
from engine.viewing.address import (
    HOST,
    PORT,
    address_of,
    listening,
    open_browser,
    path_of,
    port_number,
    quality_number,
)


def parser() -> Parser:
    top = Parser(prog="python -m engine.view", description=__doc__)
    top.add_argument("out", type=path_of, nargs="+", help="an output of engine.sample, or two")
    text = f"where the page is served (default: {PORT}; 0: a port that is free)"
    top.add_argument("--port", type=port_number, default=PORT, metavar="N", help=text)
    text = "name or number of the network that it is served on, 0.0.0.0 for all (default: this machine alone)"
    top.add_argument("--host", default=HOST, help=text)
    top.add_argument("--quality", type=quality_number, default=90, metavar="Q", help="of JPEG, 1 to 95 (default: 90)")
    top.add_argument("--lossless", action="store_true", help="send PNG in place of JPEG: every pixel as it is stored")
    top.add_argument("--open", action="store_true", help="open the page in the browser")
    return top


@on_one_rank
def main(arguments: Sequence[str] | None = None) -> int:
    try:
        given = parser().parse_args(arguments)
        if len(given.out) > 2:
            raise ValueError(f"{len(given.out)} outputs are named; one is shown, or two side by side")
        from engine.viewing.viewer import Viewer  # zarr

        viewer = Viewer(given.out, None if given.lossless else given.quality)
        server = listening(viewer, given.host, given.port)
    except (ValueError, OSError, MemoryError) as error:
        print_error(error)
        return 1
    address = address_of(server, given.host)
    names = " and ".join(one_line(str(path)) for path in given.out)
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a script that started it in the background ignores them
        signal.signal(number, signal.default_int_handler)
    try:
        print(f"{address} shows {names}; Ctrl-C ends it", flush=True)
        for watched in viewer.watched:
            if watched.awaited:
                print(awaiting(watched.path), flush=True)
        if given.open:
            open_browser(address)
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
    return 0


def awaiting(path: Path) -> str:
    """The line that says what is waited for, with a name in the same folder that may have been meant."""
    near = did_you_mean(path.name, (one.name for one in path.absolute().parent.iterdir()))
    return one_line(f"{path} is not there yet; it is shown when a run begins it" + (f" ({near})" if near else ""))


if __name__ == "__main__":
    raise SystemExit(main())
