"""Checkpoints of the canvas, written while the next level is sampled."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from engine.distributed.canvas import Canvas, Shards
from engine.distributed.ranks import Ranks
from engine.storage.checkpoint import CommitMark
from engine.storage.output import Output


class CheckpointManager:
    """Checkpoints of the canvas: two slots in turn, and a commit mark that names the whole one."""

    def __init__(self, ranks: Ranks, output: Output, canvas: Canvas, every: float) -> None:
        self.ranks, self.output, self.canvas, self.every = ranks, output, canvas, every
        self.last = time.monotonic()
        self.pool = ThreadPoolExecutor(1, "checkpoint")
        self.writing: Future[None] | None = None
        self.mark = CommitMark(0, 0, False)  # of the checkpoint that is being written
        self.slot = 0

    def due(self) -> bool:
        """Whether rank 0's clock asks for a checkpoint, and none is being written. Local."""
        return self.ranks.rank == 0 and self.writing is None and time.monotonic() - self.last >= self.every

    def written(self) -> bool:
        """Whether this rank's part of a checkpoint is on disk, not yet committed. Local."""
        return self.writing is not None and self.writing.done()

    def raise_problem(self) -> None:
        """Raise what went wrong while this rank's part was written. Local."""
        if self.written():
            assert self.writing is not None
            self.writing.result()

    def begin(self, level: int, history: bool) -> None:
        """Begin to write the canvas before ``level``. Collective; nobody waits, unless for the checkpoint before it.

        Args:
            history: the next level needs the estimate of the last.
        """
        self.finish()
        ownership = self.canvas.ownership
        shards = [("x", dict(self.canvas.x)), ("previous", dict(self.canvas.previous) if history else {})]
        self.mark = CommitMark(self.slot, level, history)

        def write() -> None:
            for name, held in shards:
                for shard, data in held.items():
                    self.output.checkpoints.write(self.mark.slot, name, ownership.shard(shard), data.cpu().numpy())

        self.writing = self.pool.submit(write)
        self.last = time.monotonic()

    def commit(self) -> None:
        """Set the mark: all ranks' shards are on disk. Collective."""
        self.ranks.on_root(lambda: self.output.checkpoints.commit(self.mark))
        self.writing, self.slot = None, 1 - self.mark.slot

    def finish(self) -> None:
        """Wait for the checkpoint that is being written, if there is one, and commit it. Collective."""
        if self.writing is None:
            return
        with self.ranks.timer("store"):
            self.ranks.wait_until(self.writing.done)
            self.ranks.agree(self.raise_problem)
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
            return {
                s: torch.from_numpy(self.output.checkpoints.read(mark.slot, name, ownership.shard(s))).to(canvas.device)
                for s in ownership.owned(self.ranks.rank)
            }

        canvas.x = self.ranks.agree(lambda: read("x"))
        if mark.history:
            canvas.previous = self.ranks.agree(lambda: read("previous"))
        return mark.level
