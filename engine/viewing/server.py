"""The addresses of the viewer, over HTTP; all are relative to the page's::

    .                                             the page
    static/NAME                                   what it is made of
    outputs.json                                  facts and state of every output; the page asks again and again
    OUTPUT/LAYER[/IMAGE]/legend.json              labels, colours, areas
    OUTPUT/LAYER[/IMAGE]/LEVEL/ROW_COLUMN.jpg     a tile; .png: without loss

OUTPUT is 0 or 1, LAYER "image" or a map's name, IMAGE the number of an image of a set. Before all stands the token,
where there is one.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from hmac import compare_digest
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from engine.command_line import as_flags
from engine.messages import one_line
from engine.viewing.pictures import Picture
from engine.viewing.viewer import Answer, NotThere
from engine.viewing.watched import Gone

STATIC = Path(__file__).parent / "static"
TYPES = {
    ".svg": "image/svg+xml",
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".txt": "text/plain",
    ".md": "text/plain",
}
CONNECTIONS = 32  # that are served at once, a thread each
WAITING = 512  # that wait for a thread; more are told to come again
FIRST, IDLE = 20, 5  # seconds that a connection may take to ask, and to ask again
TILE = re.compile(r"(\d{1,9})/(\w+)(?:/(\d{1,9}))?/(\d{1,2})/(\d{1,9})_(\d{1,9})\.(jpg|png)", re.ASCII)
HOST = re.compile(r"(?:\[([^][]*)\]|([^][:]*))(?::\d{0,5})?", re.ASCII)
LEGEND = re.compile(r"(\d{1,9})/(\w+)(?:/(\d{1,9}))?/legend\.json", re.ASCII)
BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 2\r\nConnection: close\r\nContent-Type: text/plain\r\n"
    b"Content-Length: 43\r\n\r\ntoo many requests at once; try again later\n"
)
LOOPBACK = ("localhost", "127.0.0.1", "::1")
# Of the one rule of style that OpenSeadragon adds to a page.
OF_OPENSEADRAGON = "'sha256-9xTiqzfwFaL2SGb1rmr8gysEwVVjIvqWAgmZgqFqpEE='"
# Nothing is fetched from elsewhere, and no page frames this one.
POLICY = (
    f"default-src 'none'; script-src 'self'; style-src 'self' {OF_OPENSEADRAGON}; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # the token is in the address
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "private, no-cache",  # kept, and asked for again by its tag
}


class Server(ThreadingHTTPServer):
    """The server of a viewer, listening.

    Args:
        viewer: What the handler answers from: a ``Viewer``, where that is ``Handler``.
        host, port: Where it listens; port 0: a free one.
        token: First part of every address; empty: there is none, and the address has to be the loopback's.
        handler: Of a connection; None: the viewer's.
    Raises:
        OSError: it cannot listen there.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 1024

    def __init__(
        self, viewer: Any, host: str, port: int, token: str = "", handler: type[Handler] | None = None
    ) -> None:
        self.viewer, self.token = viewer, token
        self.lock = threading.Lock()
        self.threads = 0
        self.waiting: deque[tuple[Any, Any]] = deque()
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), handler or Handler)

    def server_bind(self) -> None:
        """Bind without asking the network for this machine's name."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection on a thread; where all are busy it waits, and where too many wait it is told so."""
        with self.lock:
            if self.threads == CONNECTIONS:
                waits = len(self.waiting) < WAITING
                if waits:
                    self.waiting.append((request, client_address))
            else:
                waits, self.threads = True, self.threads + 1
                threading.Thread(target=self.work, args=(request, client_address), daemon=True).start()
        if not waits:
            self.turn_away(request)

    def work(self, request: Any, client_address: Any) -> None:
        """Serve a connection, then those that wait."""
        while True:
            self.process_request_thread(request, client_address)
            with self.lock:
                if not self.waiting:
                    self.threads -= 1
                    return
                request, client_address = self.waiting.popleft()

    def turn_away(self, request: socket.socket) -> None:
        """Answer without a thread, and without waiting for anybody."""
        with suppress(OSError):
            request.setblocking(False)
            with suppress(BlockingIOError):
                request.recv(2**16)  # what is not read makes the system drop the answer
            request.send(BUSY)
        self.shutdown_request(request)

    @property
    def crowded(self) -> bool:
        """Whether others may wait for a connection, so that none is kept open after its answer."""
        return self.threads > CONNECTIONS // 2

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exception()
        if not isinstance(error, ConnectionError | TimeoutError):  # the browser went away
            print(f"error: {one_line(f'{type(error).__name__}: {error}')}", file=sys.stderr, flush=True)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    timeout = FIRST
    wbufsize = -1  # an answer leaves in one piece,
    disable_nagle_algorithm = True  # and at once: not when the browser has acknowledged its head, 40 ms later
    server_version, sys_version = "slidefield", ""
    page_name, command_name = "index.html", "engine.view"

    def do_GET(self) -> None:
        self.answering(self.respond)

    do_HEAD = do_GET

    def answering(self, respond: Callable[[], None]) -> None:
        """Answer a request, if only by saying why there is no answer."""
        try:
            respond()
        except NotThere as error:
            self.refuse(HTTPStatus.NOT_FOUND, str(error))
        except Gone as error:
            self.refuse(HTTPStatus.GONE, str(error))
        except (ValueError, OSError, MemoryError, RecursionError) as error:
            if isinstance(error, ConnectionError | TimeoutError):
                raise
            self.refuse(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))

    def respond(self) -> None:
        """Answer a request.

        Raises:
            NotThere, Gone, ValueError: there is nothing to answer it with.
        """
        path = self.admitted()
        if path is not None:
            self.send(self.answer(path))

    def admitted(self) -> str | None:
        """The address that is asked for, without the token; None: the request was refused."""
        if not self.server.token and hostname(self.headers.get_all("Host", [])) not in LOOPBACK:
            # A page from elsewhere whose name leads here must not read what is on this machine.
            self.refuse(HTTPStatus.FORBIDDEN, f"this address is not the one that {self.command_name} printed")
            return None
        path = self.path.partition("?")[0].removeprefix("/")
        if self.server.token:
            given, _, path = path.partition("/")
            if not compare_digest(given.encode(), self.server.token.encode()):
                self.refuse(HTTPStatus.FORBIDDEN, f"the address lacks the token that {self.command_name} printed")
                return None
        return path

    def answer(self, path: str) -> Answer:
        """What there is at an address.

        Raises:
            NotThere, Gone, ValueError: nothing.
        """
        viewer = self.server.viewer
        if match := TILE.fullmatch(path):
            index, layer, image, level, row, column, kind = match.groups()
            place = (int(index), layer, int(image or 0), int(level), int(row), int(column))
            return viewer.tile(*place, kind == "png")
        if match := LEGEND.fullmatch(path):
            index, layer, image = match.groups()
            return viewer.legend(int(index), layer, int(image or 0))
        if path == "outputs.json":
            content = {"outputs": viewer.facts(), "lossless": viewer.quality is None}
            return answer_of(("application/json", as_json(content)))
        return self.page(path)

    def page(self, path: str) -> Answer:
        """The page, or a file that it is made of."""
        file = static_files().get(self.page_name if path == "" else path.removeprefix("static/"))
        if file is None or not (path == "" or path.startswith("static/")):
            raise NotThere("there is nothing at this address")
        return file

    def send(self, answer: Answer) -> None:
        """Send an answer, or that it is the one that the browser has."""
        tag = f'"{answer.tag}"'
        if tag in self.headers.get("If-None-Match", ""):
            self.begin(HTTPStatus.NOT_MODIFIED, {"ETag": tag})
            return
        (kind, content), keep = answer.make()
        headers = {"Content-Type": kind, "Content-Length": str(len(content))}
        self.begin(HTTPStatus.OK, {"ETag": tag, **headers} if keep else headers)
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, status: HTTPStatus, why: str) -> None:
        """Send one line that says why there is no answer."""
        content = f"{one_line(as_flags(why))}\n".encode()
        self.begin(status, {"Content-Type": "text/plain; charset=utf-8", "Content-Length": str(len(content))})
        if self.command != "HEAD":
            self.wfile.write(content)

    def begin(self, status: HTTPStatus, headers: dict[str, str]) -> None:
        self.connection.settimeout(IDLE)
        self.send_response(status)
        for name, value in (HEADERS | headers).items():
            self.send_header(name, value)
        if self.server.crowded:
            self.send_header("Connection", "close")  # which closes it here too
        self.end_headers()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the library says of requests that are none: a line, not a page."""
        self.close_connection = True
        status = HTTPStatus(code)
        self.refuse(status, message or status.phrase)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: standard error is for what is wrong."""


def answer_of(picture: Picture) -> Answer:
    """An answer that is there already."""
    return Answer(hashlib.sha256(picture[1]).hexdigest()[:24], lambda: (picture, True))


def as_json(value: Any) -> bytes:
    """JSON of a value; a number that JSON does not have, of a damaged file, is null.

    >>> as_json({"share": float("nan"), "of": [1, float("inf")]})
    b'{"share": null, "of": [1, null]}'
    """
    try:
        return json.dumps(value, allow_nan=False).encode()
    except ValueError:
        return json.dumps(json.loads(json.dumps(value), parse_constant=lambda _: None)).encode()


@cache
def static_files() -> dict[str, Answer]:
    """The files that the page is made of, by name; nothing else of this machine has an address."""
    return {
        file.name: answer_of((f"{TYPES[file.suffix]}; charset=utf-8", file.read_bytes()))
        for file in sorted(STATIC.iterdir())
        if file.suffix in TYPES
    }


def hostname(headers: Sequence[str]) -> str:
    """The name in a request's Host header, without the port; empty where it has none, several, or one that is no name.

    >>> hostname(["localhost:8470"]), hostname(["[::1]:8470"]), hostname(["127.0.0.1"])
    ('localhost', '::1', '127.0.0.1')
    >>> hostname(["localhost", "evil"]), hostname(["[::1]evil"]), hostname(["localhost:evil.com"])
    ('', '', '')
    """
    name = HOST.fullmatch(headers[0]) if len(headers) == 1 else None
    return (name[1] or name[2]).lower() if name else ""
