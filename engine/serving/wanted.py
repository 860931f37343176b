"""What is asked of a plane: the blocks that pages show and that are not known, nearest the middle of a screen first.

Threads of the server tell what pages look at; the thread that samples takes from it what comes next.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.planning.geometry import Box, missing
from engine.planning.plane import FARTHEST, corners_of

AWAY = 10.0  # seconds without a word after which a page is taken to be closed
MOST_SEEN = 1024  # blocks that a page may look at; of more none is asked for

Block = tuple[int, int]  # its row and column on the lattice of blocks through the origin


@dataclass(frozen=True)
class Look:
    """What one page shows: a box of the plane in px, and when it said so."""

    box: Box
    when: float


class Wanted:
    """What pages look at, and what of it is known. Threads share it.

    Args:
        side: Of a block, px.
        together: Blocks that are sampled as one region, at most.
        clock: Seconds, for ``AWAY``.
    """

    def __init__(self, side: int, together: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.side, self.together, self.clock = side, together, clock
        self.changed = threading.Condition()
        self.looks: dict[str, Look] = {}
        self.asked: dict[Block, float] = {}  # blocks that wait, and since when
        self.regions: list[Box] = []
        self.there: dict[Block, bool] = {}  # whether a block is known, of those that were looked at
        self.failed: dict[Block, float] = {}  # until when a block is not tried again

    # -- what the pages say --

    def look(self, page: str, box: Box | None) -> int:
        """A page shows a box, or nothing to be sampled; how many blocks wait."""
        with self.changed:
            if box is None or self.count(box) > MOST_SEEN:
                self.looks.pop(page, None)
            else:
                self.looks[page] = Look(box, self.clock())
            waiting = self.waiting()
            self.changed.notify_all()
            return len(waiting)

    def count(self, box: Box) -> int:
        spans = ((box.y0, box.y1), (box.x0, box.x1))
        rows, columns = (-(-stop // self.side) - start // self.side for start, stop in spans)
        return rows * columns

    # -- what is sampled --

    def know(self, regions: Sequence[Box]) -> None:
        """The plane has these regions now."""
        with self.changed:
            self.regions = list(regions)
            self.there.clear()

    def fail(self, region: Box, seconds: float) -> None:
        """Sampling a region was refused: its blocks are not tried again for so long."""
        with self.changed:
            self.failed |= dict.fromkeys(self.blocks(region), self.clock() + seconds)

    def next(self, timeout: float) -> tuple[Box, float] | None:
        """The region that comes next, px, and since when its first block waits; None: nothing is wanted meanwhile."""
        with self.changed:
            waiting = self.waiting()
            if not waiting:
                self.changed.wait(timeout)
                waiting = self.waiting()
            if not waiting:
                return None
            region = self.joined(min(waiting, key=self.distance), waiting)
            return region, min(self.asked[block] for block in self.blocks(region))

    def in_sight(self, region: Box) -> bool:
        """Whether any page still shows a part of a region."""
        with self.changed:
            return any(look.box & region for look in self.present())

    # -- with the lock held --

    def present(self) -> list[Look]:
        now = self.clock()
        self.looks = {page: look for page, look in self.looks.items() if now - look.when < AWAY}
        return list(self.looks.values())

    def waiting(self) -> dict[Block, float]:
        """Blocks that pages show and that are not known, and since when."""
        now, seen = self.clock(), {block for look in self.present() for block in self.blocks(look.box)}
        self.failed = {block: until for block, until in self.failed.items() if until > now}
        wanted = {block for block in seen if not self.is_there(block) and block not in self.failed}
        self.asked = {block: self.asked.get(block, now) for block in wanted}
        return self.asked

    def is_there(self, block: Block) -> bool:
        if block not in self.there:
            box = self.box_of(block)
            beyond = max(map(abs, corners_of(box))) > FARTHEST
            self.there[block] = beyond or not missing(box, [known for known in self.regions if known & box])
        return self.there[block]

    def distance(self, block: Block) -> tuple[float, Block]:
        """How far a block is from the middle of the nearest screen, squared; of equals the first block."""
        box = self.box_of(block)
        away = (
            (box.y0 + box.y1 - look.box.y0 - look.box.y1) ** 2 + (box.x0 + box.x1 - look.box.x0 - look.box.x1) ** 2
            for look in self.looks.values()
        )
        return min(away), block

    def joined(self, first: Block, waiting: dict[Block, float]) -> Box:
        """A rectangle of blocks that all wait, around one of them: cones overlap, so that together they cost less."""
        y0, x0, y1, x1 = first[0], first[1], first[0] + 1, first[1] + 1
        while True:
            rows, columns = range(y0, y1), range(x0, x1)
            beside = [
                (y0 - 1, x0, y1, x1, [(y0 - 1, x) for x in columns]),
                (y0, x0, y1 + 1, x1, [(y1, x) for x in columns]),
                (y0, x0 - 1, y1, x1, [(y, x0 - 1) for y in rows]),
                (y0, x0, y1, x1 + 1, [(y, x1) for y in rows]),
            ]
            fitting = [
                larger
                for larger in beside
                if (larger[2] - larger[0]) * (larger[3] - larger[1]) <= self.together
                and all(block in waiting for block in larger[4])
            ]
            if not fitting:
                return Box(y0, x0, y1, x1).scaled(self.side)
            y0, x0, y1, x1, _ = min(fitting, key=lambda larger: min(map(self.distance, larger[4])))

    def box_of(self, block: Block) -> Box:
        return Box(*block, block[0] + 1, block[1] + 1).scaled(self.side)

    def blocks(self, box: Box) -> list[Block]:
        rows = range(box.y0 // self.side, -(-box.y1 // self.side))
        columns = range(box.x0 // self.side, -(-box.x1 // self.side))
        return [(y, x) for y in rows for x in columns]
