"""Checkpoints of the canvas, written while the next level is sampled."""

from __future__ import annotations

import time

import torch

from engine.distributed.canvas import Canvas, Shards
from engine.distributed.ranks import Ranks
from engine.pipeline.background_task import BackgroundTask
from engine.storage.checkpoint import CommitMark
from engine.storage.output import Output


class CheckpointManager:
    """Checkpoints of the canvas: two slots in turn, and a mark that commits the one that is whole.

    Args:
        every: Seconds from one checkpoint to the next.
    """

    def __init__(self, ranks: Ranks, output: Output, canvas: Canvas, every: float) -> None:
        self.ranks, self.output, self.canvas, self.every = ranks, output, canvas, every
        self.last = time.monotonic()
        self.task = BackgroundTask(ranks, "checkpoint")
        self.uncommitted: CommitMark | None = None
        self.slot = 0

    def due(self) -> bool:
        """Whether rank 0's clock asks for a checkpoint, and none is being written. Local."""
        return self.ranks.rank == 0 and self.uncommitted is None and time.monotonic() - self.last >= self.every

    def written(self) -> bool:
        """Whether this rank's part of a checkpoint is on disk, and still to be committed. Local."""
        return self.uncommitted is not None and self.task.done()

    def check(self) -> None:
        """Raise what went wrong while this rank's part was written. Local."""
        self.task.check()

    def begin(self, level: int, history: bool) -> None:
        """Begin to write the canvas as it is before ``level``. Collective; waits for the checkpoint before, no longer.

        Args:
            history: Whether the estimate of the level before is written too.
        """
        self.finish()
        ownership, mark = self.canvas.ownership, CommitMark(self.slot, level, history)
        arrays = [("x", dict(self.canvas.x)), ("previous", dict(self.canvas.previous) if history else {})]

        def write() -> None:
            for name, shards in arrays:
                for shard, values in shards.items():
                    self.output.checkpoints.write(mark.slot, name, ownership.shard(shard), values.cpu().numpy())

        self.task.start(write)
        self.uncommitted = mark
        self.last = time.monotonic()

    def commit(self) -> None:
        """Set the mark that commits the checkpoint, once every rank's shards are on disk. Collective."""
        assert self.uncommitted is not None
        mark = self.uncommitted
        self.ranks.on_root(lambda: self.output.checkpoints.commit(mark))
        self.uncommitted, self.slot = None, 1 - mark.slot

    def finish(self) -> None:
        """Wait for the checkpoint that is being written, if there is one, and commit it. Collective."""
        if self.uncommitted is None:
            return
        with self.ranks.timer("store"):
            self.task.wait()
            self.ranks.agree(self.check)
            self.commit()

    def restore(self) -> int:
        """Fill the canvas from the last checkpoint, or with noise; returns the level to go on from. Collective."""
        canvas, ownership = self.canvas, self.canvas.ownership
        mark = self.ranks.on_root(self.output.checkpoints.mark)
        self.ranks.on_root(
            lambda: self.output.checkpoints.make_slots((canvas.channels, *ownership.shape), ownership.sides)
        )
        if mark is None:
            canvas.start()
            return 0
        self.slot = 1 - mark.slot

        def read(name: str) -> Shards:
            arrays = {
                shard: self.output.checkpoints.read(mark.slot, name, ownership.shard(shard))
                for shard in ownership.owned(self.ranks.rank)
            }
            return {shard: torch.from_numpy(array).to(canvas.device) for shard, array in arrays.items()}

        canvas.x = self.ranks.agree(lambda: read("x"))
        if mark.history:
            canvas.previous = self.ranks.agree(lambda: read("previous"))
        return mark.level
