"""Checkpoints of the canvas."""

from __future__ import annotations

import time

import torch

from engine.canvas import Canvas, Shards
from engine.comm import Ranks
from engine.store import Output


class Keeper:
    """Checkpoints of the canvas: two slots in turn, and a commit mark that names the whole one."""

    def __init__(self, ranks: Ranks, output: Output, canvas: Canvas, every: float) -> None:
        self.ranks, self.output, self.canvas, self.every = ranks, output, canvas, every
        self.last = time.monotonic()

    def due(self) -> bool:
        """Whether rank 0's clock asks for a checkpoint. Collective."""
        return self.ranks.share(time.monotonic() - self.last >= self.every)

    def save(self, level: int) -> None:
        """Write the canvas before ``level``; all ranks' shards are on disk before the mark is set. Collective."""
        canvas, ownership = self.canvas, self.canvas.ownership
        history = self.ranks.any(bool(canvas.previous))
        shape = (canvas.channels, *ownership.shape)
        slot = self.ranks.on_root(lambda: self.output.begin_checkpoint(shape, ownership.sides))

        def write() -> None:
            for name, shards in (("x", canvas.x), ("previous", canvas.previous)):
                for shard, data in shards.items():
                    self.output.write_checkpoint(slot, name, ownership.shards[shard], data.cpu().numpy())

        with self.ranks.timer("store"):
            self.ranks.agree(write)
        self.ranks.on_root(lambda: self.output.commit_checkpoint(slot, level, history))
        self.last = time.monotonic()

    def restore(self) -> int:
        """Fill the canvas from the last checkpoint, or with noise; returns the level to go on from. Collective."""
        canvas, ownership = self.canvas, self.canvas.ownership
        mark = self.ranks.on_root(self.output.checkpoint)
        if mark is None:
            canvas.start()
            return 0

        def read(name: str) -> Shards:
            return {
                s: torch.from_numpy(self.output.read_checkpoint(mark["slot"], name, ownership.shards[s])).to(
                    canvas.device
                )
                for s in ownership.owned(self.ranks.rank)
            }

        canvas.x = self.ranks.agree(lambda: read("x"))
        if mark["history"]:
            canvas.previous = self.ranks.agree(lambda: read("previous"))
        return int(mark["level"])
