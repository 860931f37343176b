"""Checkpoints of the canvas, written while the next level is sampled."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace

import torch

from engine.distributed.canvas import Canvas, Shards
from engine.distributed.ranks import Ranks
from engine.pipeline.background_task import BackgroundTask
from engine.storage.checkpoint import CommitMark, array_names, digest_of
from engine.storage.output import Output


class CheckpointManager:
    """Checkpoints of the canvas: two slots in turn, and a mark that commits the one that is whole.

    Args:
        every: Seconds from one checkpoint to the next.
        depth: How much history the solver keeps at most, in canvases.
        pending: Tells what else is being written that must be on the disk before a checkpoint counts.
    """

    def __init__(
        self,
        ranks: Ranks,
        output: Output,
        canvas: Canvas,
        every: float,
        depth: int,
        pending: Callable[[], Future[None] | None] = lambda: None,
    ) -> None:
        self.ranks, self.output, self.canvas, self.every, self.depth = ranks, output, canvas, every, depth
        self.pending = pending
        self.last = time.monotonic()
        self.task = BackgroundTask(ranks, "checkpoint")
        self.uncommitted: CommitMark | None = None
        self.fingerprints = 0  # of what this rank wrote of it, their sum
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

    def begin(self, level: int) -> None:
        """Begin to write the canvas as it is before ``level``, with what its solver keeps.

        Collective; waits for the checkpoint before, no longer.
        """
        self.finish()
        kept = self.canvas.history
        ownership, mark = self.canvas.ownership, CommitMark(self.slot, level, len(kept))
        arrays = {"x": dict(self.canvas.x)}
        arrays |= {name: dict(shards) for name, shards in zip(array_names(len(kept))[1:], kept, strict=True)}
        pending = self.pending()

        def write() -> None:
            self.fingerprints = 0
            for name, shards in arrays.items():
                for shard, values in shards.items():
                    box, latents = ownership.shard(shard), values.cpu().numpy()
                    self.output.checkpoints.write(mark.slot, name, box, latents)
                    self.fingerprints += mark.fingerprint(name, box, latents)
            if pending is not None:
                pending.result()

        self.task.start(write)
        self.uncommitted = mark
        self.last = time.monotonic()

    def commit(self) -> None:
        """Set the mark that commits the checkpoint, once every rank's shards are on disk. Collective."""
        assert self.uncommitted is not None
        mark = replace(self.uncommitted, digest=digest_of(self.ranks.allgather(self.fingerprints)))
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
        """Fill the canvas from the last checkpoint, or with noise; returns the level to go on from. Collective.

        Raises:
            ValueError: the checkpoint is damaged.
        """
        canvas, ownership, checkpoints = self.canvas, self.canvas.ownership, self.output.checkpoints
        mark = self.ranks.on_root(checkpoints.mark)
        if mark is not None:
            self.read(mark)
        shape, whole = (canvas.channels, *ownership.shape), None if mark is None else mark.slot
        self.ranks.on_root(lambda: checkpoints.make_slots(shape, ownership.sides, self.depth, whole))
        if mark is None:
            canvas.start()
            return 0
        self.slot = 1 - mark.slot
        return mark.level

    def read(self, mark: CommitMark) -> None:
        """Fill the canvas from the slot that a mark names. Collective.

        Raises:
            ValueError: the slot is damaged, or holds something else.
        """
        canvas, ownership, checkpoints = self.canvas, self.canvas.ownership, self.output.checkpoints
        self.fingerprints = 0

        def shards(name: str) -> Shards:
            read: Shards = {}
            for shard in ownership.owned(self.ranks.rank):
                box = ownership.shard(shard)
                latents = checkpoints.read(mark.slot, name, box)
                self.fingerprints += mark.fingerprint(name, box, latents)
                read[shard] = torch.from_numpy(latents).to(canvas.device)
            return read

        names = array_names(mark.history)
        canvas.x, *canvas.history = self.ranks.agree(lambda: [shards(name) for name in names])
        digest = digest_of(self.ranks.allgather(self.fingerprints))
        self.ranks.on_root(lambda: checkpoints.check(mark, digest))
