"""What the page of a plane is told and may ask for, and how it reaches the ranks that sample."""

from __future__ import annotations

import json
import re
import threading
import time
from dataclasses import asdict, dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from engine.command_line import as_flags
from engine.messages import one_line
from engine.planning.geometry import Box
from engine.planning.plane import FARTHEST, corners_of
from engine.serving.plane_tiles import LEVELS, PlaneTiles
from engine.serving.wanted import Wanted
from engine.viewing.server import Handler, answer_of, as_json
from engine.viewing.viewer import TILE, Answer, NotThere

PLANE_TILE = re.compile(r"(tiles|labels)/(\d{1,2})/(-?\d{1,16})_(-?\d{1,16})\.(jpg|png)", re.ASCII)
PAGE = re.compile(r"\w{1,40}", re.ASCII)
LONGEST = 4096  # bytes that a page may send


@dataclass(frozen=True)
class Cost:
    """What a region has cost.

    Args:
        region: (y0, x0, y1, x1), px.
        blocks: How many it has.
        waited: Seconds from when a page first showed one of them to when all were there.
        took: Of these, seconds of sampling.
        windows: That were evaluated, over all levels.
        known: That would have been needed too, and were known.
        ratio: Latents evaluated over those of the region at every level.
    """

    region: tuple[int, int, int, int]
    blocks: int
    waited: float
    took: float
    windows: int
    known: int
    ratio: float

    def line(self) -> str:
        """All of it in one line.

        >>> print(Cost((0, 0, 64, 64), 1, 6.2, 6.0, 400, 100, 9.75).line())
        rows 0:64, columns 0:64: 1 block after 6.2 s, each 6.0 s and 400 windows; 9.75 times its area, 100 of 500 known
        """
        y0, x0, y1, x1 = self.region
        blocks = f"{self.blocks} block{'s' if self.blocks > 1 else ''} after {self.waited:.1f} s"
        each = f"each {self.took / self.blocks:.1f} s and {self.windows / self.blocks:,.0f} windows"
        known = f"{self.known:,} of {self.known + self.windows:,} known"
        return f"rows {y0}:{y1}, columns {x0}:{x1}: {blocks}, {each}; {self.ratio:.2f} times its area, {known}"


class Service:
    """What the threads of the server and the thread that samples share; rank 0 has it.

    Args:
        plane: The plane, which need not be there yet.
        facts: What the page says of the job: JSON values.
        quality: Of JPEG; None: PNG, without loss.
    """

    def __init__(self, plane: Path, wanted: Wanted, facts: dict[str, Any], quality: int | None) -> None:
        self.plane, self.wanted, self.job_facts = plane, wanted, facts
        self.tiles = PlaneTiles(plane, quality)
        self.lock = threading.Lock()
        self.now: dict[str, Any] | None = None  # the region that is sampled
        self.says = ""  # what is wrong
        self.last: Cost | None = None
        self.total = {"blocks": 0, "seconds": 0.0, "windows": 0, "cancelled": 0}
        self.seen: tuple[int, ...] | None = None  # the plane's stamp when its regions were last told

    # -- the thread that samples --

    def learn(self) -> None:
        """Tell what is wanted what is known, where the plane has changed.

        Raises:
            ValueError: it is damaged.
        """
        snapshot = self.tiles.snapshot()
        if snapshot.stamp != self.seen:
            self.wanted.know(snapshot.regions)
            self.seen = snapshot.stamp

    def begin(self, region: Box) -> None:
        with self.lock:
            self.now = {"region": corners_of(region), "level": 0, "levels": 0, "since": time.monotonic()}
            self.says = ""

    def level(self, level: int, levels: int) -> None:
        with self.lock:
            if self.now is not None:
                self.now |= {"level": level, "levels": levels}

    def end(self, cost: Cost | None, says: str = "") -> None:
        """A region is there; or, without its cost, it was cancelled or refused."""
        with self.lock:
            self.now, self.says = None, says
            if cost is None:
                self.total["cancelled"] += not says
                return
            self.last = cost
            self.total["blocks"] += cost.blocks
            self.total["seconds"] += cost.took
            self.total["windows"] += cost.windows

    def say(self, text: str) -> None:
        """What is in the way."""
        with self.lock:
            self.says = text

    # -- the threads of the server --

    def facts(self, waiting: int) -> dict[str, Any]:
        """What the page is told: JSON values."""
        snapshot = self.tiles.snapshot()
        bounds, um = snapshot.bounds, None
        if snapshot.output is not None:
            um = snapshot.output.provenance.get("pixel_size_um")
        with self.lock:
            now = None
            if self.now is not None:
                now = {**self.now, "seconds": time.monotonic() - self.now["since"]}
            last = None if self.last is None else {**asdict(self.last), "line": self.last.line()}
            state = {"now": now, "says": one_line(as_flags(self.says)), "last": last, "total": dict(self.total)}
        return {
            **self.job_facts,
            **state,
            "name": one_line(self.plane.name),
            "um": self.job_facts.get("um") or um,
            "version": "-".join(map(str, snapshot.stamp)),
            "labels": snapshot.labels,
            "bounds": None if bounds is None else corners_of(bounds),
            "regions": len(snapshot.regions),
            "waiting": waiting,
            "block": self.wanted.side,
            "tile": TILE,
            "levels": LEVELS,
            "lossless": self.tiles.quality is None,
        }

    def look(self, told: Any) -> dict[str, Any]:
        """A page says what it shows; what it is told.

        Args:
            told: ``{"page": its name, "box": [y0, x0, y1, x1] or null}``.
        Raises:
            ValueError: it says something else.
        """
        page, box = (told.get("page"), told.get("box")) if isinstance(told, dict) else (None, None)
        if not isinstance(page, str) or not PAGE.fullmatch(page):
            raise ValueError("a page has a name of letters and digits")
        if box is not None and not is_box(box):
            raise ValueError("a box is four whole numbers, up to 2^52 px from the origin")
        return self.facts(self.wanted.look(page, None if box is None else Box(*box)))


def is_box(value: Any) -> bool:
    """Whether a value is a box that has pixels, within what positions reach.

    >>> is_box([-5, 0, 5, 9]), is_box([0, 0, 0, 9]), is_box([0, 0, 2**60, 9]), is_box("0000")
    (True, False, False, False)
    """
    if not isinstance(value, list) or len(value) != 4 or not all(type(number) is int for number in value):
        return False
    return max(map(abs, value)) <= FARTHEST and bool(Box(*value))


class PlaneHandler(Handler):
    """One connection; all addresses are relative to the page's::

    .                             the page
    static/NAME                   what it is made of
    look                          POST what the page shows: the answer says how the plane is
    tiles/LEVEL/ROW_COLUMN.jpg    a tile of the plane, row and column signed; .png: without loss
    labels/LEVEL/ROW_COLUMN.png   a tile of its labels, in their colours
    """

    page_name, command_name = "plane.html", "engine.serve"

    def do_POST(self) -> None:
        self.answering(self.take)

    def take(self) -> None:
        """Answer what a page says. A page from elsewhere can send it, and must not have anything sampled."""
        path, service = self.admitted(), self.server.viewer
        if path is None:
            self.close_connection = True  # what it says was not read
            return None
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > LONGEST:
            self.close_connection = True
            return self.refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a page says {LONGEST} bytes at most")
        content = self.rfile.read(int(length))
        if self.headers.get("Origin", "").partition("://")[2] != self.headers.get("Host"):
            return self.refuse(HTTPStatus.FORBIDDEN, "another page than that of engine.serve asks")
        if path != "look":
            raise NotThere("there is nothing at this address")
        try:
            answer = as_json(service.look(json.loads(content)))
        except (ValueError, RecursionError) as error:
            return self.refuse(HTTPStatus.BAD_REQUEST, str(error))
        self.begin(HTTPStatus.OK, {"Content-Type": "application/json", "Content-Length": str(len(answer))})
        self.wfile.write(answer)
        return None

    def answer(self, path: str) -> Answer:
        service = self.server.viewer
        if match := PLANE_TILE.fullmatch(path):
            layer, level, row, column, kind = match.groups()
            if int(level) >= LEVELS:
                raise NotThere(f"level {level}: there are {LEVELS}")
            return service.tiles.tile(layer, int(level), int(row), int(column), kind == "png")
        if path == "plane.json":
            return answer_of(("application/json", as_json(service.facts(0))))
        return self.page(path)
