"""What a request to a plane takes from its kept levels, and leaves there."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from engine.diffusion.solvers import Step
from engine.distributed.canvas import Canvas
from engine.distributed.ranks import Ranks
from engine.planning.ownership import Ownership
from engine.planning.plane import Cone
from engine.storage.plane_levels import KnownWindows, LevelArrays, chunks_of, plane_levels


class KeptLevels:
    """The kept levels of a plane, as a request reads them and adds to them.

    What a request makes known lies in arrays of its own, a chunk a shard, until ``merge`` adds it to the plane's.

    Args:
        plane: The plane's private folder.
        own: The request's folder.
        cone: What the request takes of the plane.
        depths: How many canvases of history the solver has before each level from 1 to the last, and at the end.
    """

    def __init__(
        self, plane: Path, own: Path, cone: Cone, ownership: Ownership, channels: int, depths: Sequence[int]
    ) -> None:
        self.cone, self.ownership, self.channels, self.depths = cone, ownership, channels, depths
        self.kept = plane_levels(plane / "levels")
        self.own = LevelArrays(own, ownership.shape, ownership.sides, cone.corner)

    @property
    def levels(self) -> range:
        return range(1, len(self.depths) + 1)

    def make(self) -> None:
        """Make the arrays. Rank 0 calls this."""
        for arrays in (self.kept, self.own):
            arrays.make(self.levels, [1 + depth for depth in self.depths], self.channels)

    def exchange(self, canvas: Canvas, level: int) -> None:
        """Keep the canvas as it is before a level, and put in what was known before. Local."""
        kept_windows = self.cone.known[level - 1] if self.cone.known else ()
        for shard in canvas.x:
            place = self.ownership.shard(shard).moved(*self.cone.corner)
            both = canvas.x, *canvas.history
            if self.cone.needed[level - 1].covers(place).any():  # what ``merge`` reads
                self.own.write(level, place, np.stack([canvases[shard].cpu().numpy() for canvases in both]))
            known = np.zeros(place.shape, bool)
            for windows in kept_windows:
                known |= windows.covers(place)
            if known.any():
                here = torch.from_numpy(known).to(canvas.device)
                for canvases, kept in zip(both, self.kept.read(level, place), strict=True):
                    canvases[shard] = torch.where(here, torch.from_numpy(kept).to(canvas.device), canvases[shard])

    def merge(self, ranks: Ranks) -> None:
        """Add what the request has made known to the plane's levels. Collective; once more does no harm."""

        def merge() -> None:
            parts = ((level, box) for level in self.levels for box in chunks_of(self.cone.needed[level - 1].box))
            for level, box in islice(parts, ranks.rank, None, ranks.size):
                known = self.cone.needed[level - 1].covers(box)
                if known.any():
                    values = self.own.read(level, box)
                    kept = values if known.all() else self.kept.read(level, box)
                    self.kept.write(level, box, np.where(known, values, kept))

        ranks.agree(merge)

    def note(self, path: Path) -> None:
        """Enter in a ledger what the request has made known. Rank 0 calls this."""
        KnownWindows(path, len(self.depths), self.cone.needed[0].patch).add(self.cone.needed)


def depths_of(steps: Sequence[Step]) -> list[int]:
    """How many canvases of history there are after each step: of what the levels so far have left, its depth."""
    depths, kept = [], 0
    for step in steps:
        kept = min(kept + bool(step.keeps), step.depth)
        depths.append(kept)
    return depths
