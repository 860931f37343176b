"""What a request to a plane takes from its kept levels, and leaves there."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine.diffusion.solvers import Step
from engine.distributed.canvas import Canvas
from engine.distributed.ranks import Ranks
from engine.pipeline.background_task import BackgroundTask
from engine.planning.geometry import Box
from engine.planning.ownership import Ownership
from engine.planning.plane import Cone, Windows
from engine.storage.plane_levels import LevelArrays


class KeptLevels:
    """The kept levels of a plane, as a request reads them; and its own, which are written while the network evaluates.

    Args:
        levels: Folder of the plane's kept levels.
        own: What the request keeps; None: nothing.
        cone: What the request takes of the plane.
        depths: How many canvases of history the solver has before each level from 1 to the last, and at the end.
    """

    def __init__(
        self,
        ranks: Ranks,
        levels: Path,
        own: LevelArrays | None,
        cone: Cone,
        ownership: Ownership,
        channels: int,
        depths: Sequence[int],
    ) -> None:
        self.cone, self.ownership, self.channels, self.depths = cone, ownership, channels, depths
        self.own = own
        self.known = [(one, LevelArrays(levels / one.folder, one.request)) for one in cone.known]
        self.task = BackgroundTask(ranks, "levels")
        self.problem: Exception | None = None  # of reading

    def make(self) -> None:
        """Make the arrays, and open those that are read, before work starts. Rank 0 calls this.

        Raises:
            ValueError: one cannot be read.
        """
        if self.own is not None:
            levels, arrays = range(1, len(self.depths) + 1), [1 + depth for depth in self.depths]
            self.own.make(levels, arrays, self.channels, self.cone.canvas, self.ownership.sides)
        for level in range(1, len(self.depths) + 1):
            for _, kept in self.near(level):
                kept.open(level)

    def exchange(self, canvas: Canvas, level: int) -> None:
        """Keep the canvas as it is before a level, and put in what was known before. Local.

        What goes wrong is raised by ``check``, where all ranks can agree on it.
        """
        if self.own is not None:
            self.keep(canvas, level)
        try:
            self.take(canvas, level)
        except (ValueError, OSError) as error:
            self.problem = self.problem or error

    def keep(self, canvas: Canvas, level: int) -> None:
        """Begin to write what this request has made known."""
        own, needed = self.own, self.cone.needed[level - 1]
        assert own is not None
        parts: list[tuple[Box, list[Tensor]]] = []
        for shard in canvas.x:
            place = self.place(shard)
            if needed.covers(place).any():
                parts.append((place, [canvases[shard] for canvases in (canvas.x, *canvas.history)]))

        def write() -> None:
            for place, tensors in parts:
                own.write(level, place, np.stack([tensor.cpu().numpy() for tensor in tensors]))

        self.task.start(write)

    def take(self, canvas: Canvas, level: int) -> None:
        """Put in what was known before."""
        near = self.near(level)
        for shard in canvas.x if near else ():
            place = self.place(shard)
            for windows, arrays in near:
                known = windows.covers(place)
                if not known.any():
                    continue
                here, values = torch.from_numpy(known).to(canvas.device), arrays.read(level, place)
                if np.isnan(values[..., known]).any():
                    raise ValueError(f"{arrays.path(level)} lacks what is said to be known; {arrays.way}")
                for canvases, kept in zip((canvas.x, *canvas.history), values, strict=True):
                    canvases[shard] = torch.where(here, torch.from_numpy(kept).to(canvas.device), canvases[shard])

    def near(self, level: int) -> list[tuple[Windows, LevelArrays]]:
        """The windows known before a level that the canvas meets, and where they lie."""
        known = [(one.levels[level - 1], arrays) for one, arrays in self.known]
        return [(windows, arrays) for windows, arrays in known if windows.box & self.cone.canvas]

    def place(self, shard: int) -> Box:
        """The box of a shard on the plane."""
        return self.ownership.shard(shard).moved(*self.cone.corner)

    def check(self) -> None:
        """Raise what went wrong in reading, or in writing that is done. Local."""
        if self.problem is not None:
            raise self.problem
        self.task.check()

    def pending(self) -> Future[None] | None:
        """What is still being written: a checkpoint of this level waits for it. Local."""
        return self.task.work


def depths_of(steps: Sequence[Step]) -> list[int]:
    """How many canvases of history there are after each step: of what the levels so far have left, its depth."""
    depths, kept = [], 0
    for step in steps:
        kept = min(kept + bool(step.keeps), step.depth)
        depths.append(kept)
    return depths
