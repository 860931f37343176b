"""What a run leaves in its output for those who watch: how far it is, what each rank does, a small picture so far.

The sampling thread hands over what there is and goes on; a thread of its own makes pictures of it and writes them. No
rank waits for another: each writes its own part.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from engine.distributed.canvas import Canvas
from engine.distributed.timing import Timer
from engine.models.card import ModelCard
from engine.models.latent_colors import SIDE, Colors, colors_of_pixels, fitted_colors
from engine.pipeline.decode import to_uint8
from engine.pipeline.memory import peak_memory
from engine.pipeline.progress import Progress
from engine.planning.geometry import Box
from engine.planning.preview_grid import PreviewGrid
from engine.storage.live_files import LiveFiles, PicturePart

OFTEN = 1.0  # seconds; no oftener than this it is said how far the job is, and what a rank does
LONGEST_END = 5.0  # seconds that the end of a run waits for what is still written
Piece = tuple[Box, Tensor]  # pixels of the picture, and the latents (C, h, w) that make them
Shot = tuple[Box, np.ndarray]  # pixels of the picture, and what they are once they are decoded, uint8 (h, w, 3)


@dataclass(frozen=True)
class Estimate:
    """What a rank has of the picture after a level."""

    grid: PreviewGrid
    factor: int  # pixels of the image per latent
    level: int
    colors: Colors
    pieces: Sequence[Piece]


class Live:
    """Writes what one rank has to show, until the run ends; whatever goes wrong with that, the run goes on.

    Args:
        seconds: From one picture to the next, at least.
        progress: The clock of the job; rank 0's is written down.
        timer: Where this rank's time goes.
    """

    def __init__(self, rank: int, files: LiveFiles, seconds: float, progress: Progress, timer: Timer) -> None:
        self.rank, self.files, self.seconds, self.progress, self.timer = rank, files, seconds, progress, timer
        self.last = self.told = -math.inf  # when a picture was handed over, and what this rank does
        timer.switch(timer.kind)
        self.counted = time.perf_counter(), dict(timer.seconds), 0  # at the last look at what this rank does
        self.estimate: Estimate | None = None  # still to be written
        self.decoded: list[Shot] = []  # likewise
        self.part: PicturePart | None = None  # that was written last
        self.work: dict[str, Any] | None = None  # likewise
        self.woken, self.ended = threading.Event(), False
        self.failed: set[str] = set()  # why
        self.thread = threading.Thread(target=self._write_on, daemon=True)

    def __enter__(self) -> Live:
        self.thread.start()
        return self

    def __exit__(self, *problem: object) -> None:
        self.end()

    def end(self) -> None:
        """Write what is left, and nothing more. Local; waits for the disk, but not for ever."""
        self.ended = True
        self.woken.set()
        self.thread.join(LONGEST_END)

    # ---- the thread that samples ----------------------------------------------------------------

    def due(self) -> bool:
        """Whether rank 0's clock asks for a picture. Local."""
        return self.rank == 0 and time.monotonic() - self.last >= self.seconds

    def show(self, make: Callable[[], Estimate]) -> None:
        """Hand over what ``make`` gives; what was handed over before and is not written yet is left out. Local."""
        self.last = time.monotonic()
        with self._trying():
            self.estimate = make()
        self.woken.set()

    def count(self, evaluations: int) -> None:
        """Look what this rank did since the last look, if that is a while ago. Local; cheap.

        Args:
            evaluations: That it made in this run until now.
        """
        now, (then, before, made) = time.perf_counter(), self.counted
        if now - self.told < OFTEN:
            return
        self.timer.switch(self.timer.kind)
        seconds = dict(self.timer.seconds)
        spent = {kind: round(seconds[kind] - before[kind], 4) for kind in seconds}
        facts = {"rank": self.rank, "span": round(now - then, 4), "seconds": spent}
        self.work = {**facts, "evaluations": evaluations - made, "memory": peak_memory()}
        self.counted, self.told = (now, seconds, evaluations), now
        self.woken.set()

    def put_shard(self, grid: PreviewGrid, card: ModelCard, box: Box, pixels: Tensor) -> None:
        """Hand over a shard that is decoded. Local; cheap.

        Args:
            box: Of the shard, in latents.
            pixels: float32 (c, h, w), of all of it.
        """
        with self._trying():
            self.decoded += shots_of(grid, card, box, pixels)
        if time.monotonic() - self.last >= self.seconds:
            self.last = time.monotonic()
            self.woken.set()

    # ---- the thread that writes -----------------------------------------------------------------

    def _write_on(self) -> None:
        pause = max(self.seconds, OFTEN) if self.rank == 0 else None
        last = False
        while not last:
            self.woken.wait(pause)
            self.woken.clear()
            last = self.ended
            with self._trying():
                self._write()

    def _write(self) -> None:
        estimate, self.estimate = self.estimate, None
        work, self.work = self.work, None
        if self.rank == 0:
            self.files.write_status({**facts_of(self.progress), "pause": self.seconds, "ended": self.ended})
        if work is not None:
            self.files.write_rank(self.rank, work)
        self.part = picture_of(estimate) if estimate is not None else self.part
        shots, self.decoded = self.decoded, []
        if self.part is not None and (estimate is not None or shots):
            put_shots(self.part, shots)
            self.files.write_part(self.rank, self.part)

    @contextmanager
    def _trying(self) -> Iterator[None]:
        """Do work that may fail: a picture is not worth ending a run for. Rank 0 says what went wrong, once."""
        try:
            yield
        except Exception as error:
            why = str((error.strerror if isinstance(error, OSError) else None) or error)
            if self.rank == 0 and why not in self.failed:
                self.progress.say(f"note: the picture for `live` could not be made ({why}); sampling goes on")
            self.failed.add(why)


def present_estimate(canvas: Canvas, grid: PreviewGrid, factor: int, level: int, colors: Colors) -> Estimate:
    """What a rank's canvas, which keeps its estimates, has of the picture after so many levels. Local."""
    pieces = [piece for shard in canvas.estimate for piece in pieces_of(canvas, grid, shard)]
    return Estimate(grid, factor, level, colors, pieces)


def facts_of(progress: Progress) -> dict[str, Any]:
    """How far a job is, as JSON values."""
    state = progress.state()
    facts = {"text": state.text, "share": round(state.share, 4), "gone": state.gone, "left": state.left}
    return {**facts, "rates": dict(state.rates), "memory": state.memory}


def pieces_of(canvas: Canvas, grid: PreviewGrid, shard: int) -> list[Piece]:
    """What a shard has of the picture: latents that are the means of those that a pixel stands for."""
    box, estimate = canvas.ownership.shard(shard), canvas.estimate[shard]
    pieces = []
    for latents, pixels in grid.pieces(box):
        values = estimate[(slice(None), *latents.within(box))]
        # A pixel that another shard cuts is the mean of what lies here: ``ceil_mode`` divides by that.
        small = F.avg_pool2d(values[None], grid.step, ceil_mode=True)[0] if grid.step > 1 else values
        pieces.append((pixels, small))
    return pieces


def picture_of(estimate: Estimate) -> PicturePart | None:
    """A rank's part of the picture; None: it has nothing of it."""
    if not estimate.pieces:
        return None
    top = min(box.y0 for box, _ in estimate.pieces)
    bottom = max(box.y1 for box, _ in estimate.pieces)
    columns = estimate.grid.shape[1]
    pixels = np.zeros((bottom - top, columns, 4), np.uint8)
    whole = Box(top, 0, bottom, columns)
    for box, latents in estimate.pieces:
        pixels[box.within(whole)] = colored_latents(latents.float().cpu().numpy(), estimate.colors)
    return PicturePart(estimate.grid, estimate.factor, estimate.level, top, pixels)


def shots_of(grid: PreviewGrid, card: ModelCard, box: Box, pixels: Tensor) -> list[Shot]:
    """What a decoded shard has of the picture: means of the pixels that a pixel of it stands for."""
    side, shots = grid.step * card.factor, []
    for latents, place in grid.pieces(box):
        values = pixels[(slice(None), *latents.scaled(card.factor).within(box.scaled(card.factor)))]
        small = to_uint8(F.avg_pool2d(values[None], side, ceil_mode=True)[0], card.pixel_range)
        shots.append((place, (small[:3] if len(small) >= 3 else small[:1].repeat(3, axis=0)).transpose(1, 2, 0)))
    return shots


def put_shots(part: PicturePart, shots: Sequence[Shot]) -> None:
    """Put what is decoded into a rank's part of the picture; pixels that are another rank's stay as they are."""
    rows, columns = part.pixels.shape[:2]
    whole = Box(part.top, 0, part.top + rows, columns)
    for place, colors in shots:
        if common := place & whole:
            here = part.pixels[common.within(whole)]
            own = here[..., 3] > 0
            here[own, :3] = colors[common.within(place)][own]


def colored_latents(latents: np.ndarray, colors: Colors) -> np.ndarray:
    """uint8 (h, w, 4) of latents (C, h, w): opaque; grey where there is one colour."""
    table = np.asarray(colors, np.float32)
    shape = latents.shape[1:]
    values = table[:, :-1] @ latents.reshape(len(latents), -1) + table[:, -1:]
    shades = (np.nan_to_num(values).clip(-1, 1) * 127.5 + 127.5).round().astype(np.uint8)
    opaque = np.full((1, shades.shape[1]), 255, np.uint8)
    three = shades if len(shades) == 3 else shades.repeat(3, axis=0)
    return np.concatenate([three, opaque]).T.reshape(*shape, 4)


def colors_of(card: ModelCard, decode: Callable[[Tensor], Tensor] | None, side: int = SIDE) -> Colors:
    """The map from a canvas's latents to colours: the card's, or one that is fitted now to the decoder. Local.

    Args:
        decode: From normalised latents to pixels; None: the canvas holds pixels.
        side: Latents of a window that is decoded.
    """
    if decode is None:
        return colors_of_pixels(card.channels, card.pixel_range)
    colors = card.latent_colors or fitted_colors(decode, card.channels, count=1, side=side)
    return tuple((*(factor * card.latents_gain for factor in row[:-1]), row[-1]) for row in colors)
