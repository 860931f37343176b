"""What a run under way has left of itself: its picture in place of pixels that are not there yet, and how far it is."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from engine.planning.geometry import Box
from engine.planning.preview_grid import PreviewGrid
from engine.storage.live_files import LiveFiles, PicturePart, Stamps

AGE = 0.5  # seconds for which the picture and the state are taken as known
MOST_RANKS = 64  # whose work the page lists
LOST = 15.0  # seconds without a word, beside three pauses, after which the run is said to be silent


@dataclass(frozen=True, eq=False)
class LivePicture:
    """The picture of what is sampled so far.

    Args:
        grid: What its pixels stand for.
        factor: Pixels of the image per latent.
        level: Levels that are done, of the part that has the fewest.
        pixels: uint8 (h, w, 4), RGBA; transparent where no rank has shown its part.
        stamp: Changes with the picture.
    """

    grid: PreviewGrid
    factor: int
    level: int
    pixels: np.ndarray
    stamp: Stamps

    def read(self, image: int, level: int, box: Box) -> np.ndarray | None:
        """uint8 (h, w, 4): the picture enlarged, or reduced, to a box of a pyramid level; None: it has none of it."""
        if image >= self.grid.images:
            return None
        rows, side = self.grid.rows, self.grid.step * self.factor / 2**level  # px of the level per pixel of the picture
        height, width = rows, self.pixels.shape[1]
        shown = Image.fromarray(self.pixels[image * rows : (image + 1) * rows])
        part = (box.x0 / side, box.y0 / side, min(box.x1 / side, width), min(box.y1 / side, height))
        return np.asarray(shown.resize((box.width, box.height), Image.Resampling.BILINEAR, box=part))


def live_picture_of(parts: Iterable[PicturePart], stamp: Stamps) -> LivePicture | None:
    """The picture that the ranks' parts make, those of one job; None: there are none."""
    whole = None
    for part in parts:
        if whole is None:
            pixels = np.zeros((*part.grid.shape, 4), np.uint8)
            whole = LivePicture(part.grid, part.factor, part.level, pixels, stamp)
        if (part.grid, part.factor) == (whole.grid, whole.factor):
            here = whole.pixels[part.top : part.top + len(part.pixels)]
            here[...] = np.where(part.pixels[..., 3:] > 0, part.pixels, here)
            whole = LivePicture(whole.grid, whole.factor, min(whole.level, part.level), whole.pixels, stamp)
    return whole


class LiveWatch:
    """What a run says of itself, read again when it changes, and no oftener than it is worth. Threads share it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.looked = -AGE
        self.picture: LivePicture | None = None
        self.facts: dict[str, Any] | None = None
        self.heard: tuple[Stamps, float] = ((), 0.0)  # what there was to hear, and since when

    def look(self, files: LiveFiles) -> None:
        """Read what is new."""
        with self.lock:
            now = time.monotonic()
            if now - self.looked < AGE:
                return
            stamp = files.stamps(".npz")
            if stamp != (self.picture.stamp if self.picture else ()):
                self.picture = live_picture_of(files.parts(), stamp)
            said = files.stamps("status.json")
            if said != self.heard[0]:
                self.heard = said, now
            self.facts = self.facts_now(files, now - self.heard[1])
            self.looked = time.monotonic()

    def facts_now(self, files: LiveFiles, silent: float) -> dict[str, Any] | None:
        """How far the run is, for the page: JSON values; None: it says nothing of it."""
        status = files.status()
        if status is None:
            return None
        ranks = [one for one in map(work_of, files.ranks(MOST_RANKS)) if one]
        lost = silent > LOST + 3 * as_number(status.get("pause"))
        level = None if self.picture is None else self.picture.level
        return {**status, "ranks": ranks, "level": level, "silent": round(silent) if lost else 0}

    def forget(self) -> None:
        """Of a finished output there is nothing to say."""
        with self.lock:
            self.picture, self.facts = None, None


def work_of(facts: dict[str, Any]) -> dict[str, Any] | None:
    """What the page is told of one rank: the share of its time that it did not wait, its speed, its memory."""
    seconds = facts.get("seconds")
    span = as_number(facts.get("span"))
    if not isinstance(seconds, dict) or span <= 0:
        return None
    busy = 1 - as_number(seconds.get("wait")) / span
    speed = as_number(facts.get("evaluations")) / span
    return {"rank": facts.get("rank"), "busy": min(max(busy, 0), 1), "speed": speed, "memory": facts.get("memory")}


def as_number(value: Any) -> float:
    """A number that was read; 0 for what is none.

    >>> as_number(2), as_number(float("nan")), as_number(10**400), as_number("2")
    (2.0, 0.0, 0.0, 0.0)
    """
    try:
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else 0.0
    except OverflowError:
        return 0.0
