"""An S3 server on this machine's loopback (moto's), whose answers a test may refuse."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from s3fs import S3FileSystem
from werkzeug.serving import make_server
from werkzeug.wrappers import Request, Response

BUCKET = "field"
REASONS = {403: "AccessDenied", 503: "SlowDown"}
Refuse = Callable[[str, str], int]  # (method, path) -> the status of an answer; 0: the server's own


class ObjectStore:
    """The server, listening on a free port.

    Args:
        refuse: What is not done that clients ask for.
    """

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line a request
        self.refuse: Refuse = lambda method, path: 0
        self.asked: list[tuple[str, str]] = []  # (method, path) of what was asked for
        self.server = make_server("127.0.0.1", 0, self.answer, threaded=True)
        self.moto = DomainDispatcherApplication(create_backend_app)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.server.port}",
            "AWS_ACCESS_KEY_ID": "tester",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",  # without credentials nobody waits for those of a machine at Amazon
            "AWS_MAX_ATTEMPTS": "2",
        }

    def answer(self, environ: dict[str, Any], start_response: Any) -> Any:
        request = Request(environ)
        self.asked.append((request.method, request.path))
        if status := self.refuse(request.method, request.path):
            request.get_data()
            text = f"<Error><Code>{REASONS[status]}</Code><Message>{REASONS[status]} here</Message></Error>"
            return Response(text, status, mimetype="application/xml")(environ, start_response)
        return self.moto(environ, start_response)

    @property
    def files(self) -> S3FileSystem:
        return S3FileSystem(skip_instance_cache=True, use_listings_cache=False)

    def names(self, below: str = "") -> dict[str, int]:
        """The objects below a path in the bucket, and their sizes."""
        top = f"{BUCKET}/{below}".rstrip("/")
        listing = self.files.find(top, detail=True)
        return {path.removeprefix(f"{top}/"): facts["size"] for path, facts in listing.items()}

    @contextmanager
    def refusing(self, refuse: Refuse) -> Iterator[None]:
        self.refuse = refuse
        try:
            yield
        finally:
            self.refuse = lambda method, path: 0

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()
