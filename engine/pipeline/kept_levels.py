"""What a request to a plane takes from its kept levels, and leaves there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from engine.diffusion.solvers import Step
from engine.distributed.canvas import Canvas
from engine.distributed.ranks import Ranks
from engine.planning.ownership import Ownership
from engine.planning.plane import Cone
from engine.storage.plane_levels import KnownWindows, PlaneLevels, chunks_of
from engine.storage.zarr_setup import zarr


class KeptLevels:
    """The kept levels of a plane, as a request reads them and adds to them.

    What a request makes known lies in files of its own, a chunk a shard, until ``commit`` adds it to the plane's.

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
        self.kept, self.own = PlaneLevels(plane / "levels"), own

    @property
    def levels(self) -> range:
        return range(1, len(self.depths) + 1)

    def make(self) -> None:
        """Make the arrays. Rank 0 calls this."""
        counts = [1 + depth for depth in self.depths]
        self.kept.make(self.levels, counts, self.channels)
        for level, count in zip(self.levels, counts, strict=True):
            if not (self.own / f"{level:05d}" / "zarr.json").exists():
                zarr.create_array(
                    str(self.own / f"{level:05d}"),
                    shape=(count, self.channels, *self.ownership.shape),
                    chunks=(count, self.channels, *self.ownership.sides),
                    dtype="float32",
                    compressors=[zarr.codecs.Crc32cCodec()],
                )

    def exchange(self, canvas: Canvas, level: int) -> None:
        """Keep the canvas as it is before a level, and put in what was known before. Local."""
        array = zarr.open_array(str(self.own / f"{level:05d}"), mode="r+")
        for shard in canvas.x:
            box = self.ownership.shard(shard)
            values = np.stack([canvases[shard].cpu().numpy() for canvases in (canvas.x, *canvas.history)])
            array[(slice(None), slice(None), slice(box.y0, box.y1), slice(box.x0, box.x1))] = values
            for windows in self.cone.known[level - 1] if self.cone.known else ():
                place = box.moved(*self.cone.corner)
                known = windows.covers(place)
                if known.any():
                    earlier = self.kept.read(level, place)
                    for canvases, kept in zip((canvas.x, *canvas.history), earlier, strict=True):
                        here = torch.from_numpy(known).to(canvas.device)
                        canvases[shard] = torch.where(here, torch.from_numpy(kept).to(canvas.device), canvases[shard])

    def merge(self, ranks: Ranks) -> None:
        """Add what the request has made known to the plane's levels. Collective; once more does no harm."""

        def merge() -> None:
            turn, (y, x) = 0, self.cone.corner
            for level in self.levels:
                windows = self.cone.needed[level - 1]
                array = zarr.open_array(str(self.own / f"{level:05d}"), mode="r")
                for box in chunks_of(windows.box):
                    turn += 1
                    known = windows.covers(box)
                    if turn % ranks.size != ranks.rank or not known.any():
                        continue
                    own = box.moved(-y, -x)
                    part = slice(own.y0, own.y1), slice(own.x0, own.x1)
                    self.kept.merge(level, box, np.asarray(array[(slice(None), slice(None), *part)]), known)

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
