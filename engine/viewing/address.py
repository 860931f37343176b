"""Where a page is served: its options on a command line, the server that listens there, the address that is printed."""

from __future__ import annotations

import argparse
import errno
import re
import secrets
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.messages import quoted

if TYPE_CHECKING:
    from engine.viewing.server import Handler, Server

HOST, PORT = "127.0.0.1", 8470
EVERYWHERE = ("0.0.0.0", "::")


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
