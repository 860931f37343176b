"""``python -m engine.view OUT [OTHER]``: look at an output in the browser, at any size, or at two side by side in step.

It serves a page on this machine alone, until Ctrl-C; nothing is fetched from elsewhere. An output that is unfinished,
that changes or that is removed meanwhile is shown as it is. With --host it is served to others too, behind a token in
the address. Exit status: 0 ended by Ctrl-C, 1 refused.
"""

from __future__ import annotations

import argparse
import errno
import re
import secrets
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.command_line import Parser, print_error
from engine.messages import one_line, quoted

if TYPE_CHECKING:
    from engine.viewing.server import Handler, Server

HOST, PORT = "127.0.0.1", 8470
EVERYWHERE = ("0.0.0.0", "::")


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
        if given.open:
            open_browser(address)
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
    return 0


def listening(viewer: Any, host: str, port: int, handler: type[Handler] | None = None) -> Server:
    """The server, behind a token where others than this machine reach it.

    Args:
        viewer, handler: As of ``Server``.
    Raises:
        ValueError: it cannot listen there.
    """
    from engine.viewing.server import LOOPBACK, Server

    if not host:
        way = f"leave it out for this machine alone, or pass `host` {EVERYWHERE[0]} for all"
        raise ValueError(f"`host` is empty; {way}")
    try:
        return Server(viewer, host, port, "" if host in LOOPBACK else secrets.token_urlsafe(16), handler)
    except (UnicodeError, TypeError):  # dots in a row, or a NUL
        raise ValueError(f"`host` {quoted(host)} is no name of a machine") from None
    except socket.gaierror as error:
        raise ValueError(f"`host` {host} is no address of this machine ({error.strerror})") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ValueError(f"`port` {port} is in use; choose another, or 0 for one that is free") from None
        if error.errno == errno.EACCES:
            raise ValueError(f"`port` {port} is not for you to use; choose one above 1023") from None
        if error.errno == errno.EADDRNOTAVAIL:
            raise ValueError(f"`host` {host} is no address of this machine") from None
        raise


def address_of(server: Server, host: str) -> str:
    """The address of the page, with its token."""
    name = socket.gethostname() if host in EVERYWHERE else host
    name = f"[{name}]" if ":" in name else name
    return f"http://{name}:{server.server_port}/" + (f"{server.token}/" if server.token else "")


def open_browser(address: str) -> None:
    import webbrowser

    if not webbrowser.open(address):
        print("there is no browser to open it with; copy the address", flush=True)


def path_of(text: str) -> Path:
    """A path, for argparse."""
    if "\0" in text:
        raise argparse.ArgumentTypeError(f"{quoted(text)} is no path: no name has a NUL in it")
    return Path(text)


def port_number(text: str) -> int:
    """A port, for argparse."""
    if not re.fullmatch("[0-9]{1,5}", text) or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text} is no port; choose 1024 to 65535, or 0 for one that is free")
    return int(text)


def quality_number(text: str) -> int:
    """A quality of JPEG, for argparse."""
    if not re.fullmatch("[0-9]{1,5}", text) or not 1 <= int(text) <= 95:
        raise argparse.ArgumentTypeError(f"{text} is not 1 to 95; for every pixel as it is stored pass --lossless")
    return int(text)


if __name__ == "__main__":
    raise SystemExit(main())
