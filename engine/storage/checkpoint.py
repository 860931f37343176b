"""Checkpoints and the round of rejection sampling say where a run goes on with an unfinished output.

Their files are::

    OUT/slidefield/checkpoint/0, 1       two slots, written in turn: float32 arrays "x" and "previous", C H W
    OUT/slidefield/checkpoint.json       commit mark: the slot that is whole, and the level to go on from
    OUT/slidefield/round.json            of a set whose images are judged, the round under way
"""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from engine.planning.geometry import Box
from engine.storage.files import write_json
from engine.storage.zarr_setup import LATENT_CODECS, zarr


@dataclass(frozen=True)
class SamplingRound:
    """A round of rejection sampling: round 0 draws everything, each later one the images that were rejected.

    Args:
        index: Number of the round, from 0.
        images: Numbers of the images that are drawn; None: all there are.
        rejected: Number of images rejected in each round before this one.
    """

    index: int = 0
    images: list[int] | None = None
    rejected: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class CommitMark:
    """The commit mark says which checkpoint is whole.

    Args:
        slot: The slot that holds it, 0 or 1.
        level: The level to go on from.
        history: Whether the slot holds the estimate of the level before ("previous") as well.
    """

    slot: int
    level: int
    history: bool


class Checkpoints:
    """The checkpoints of an output.

    Args:
        private: The output's folder ``slidefield``.
        levels: Number of levels of the job.
    """

    def __init__(self, private: Path, levels: int) -> None:
        self.private, self.levels = private, levels
        self.opened: dict[Path, zarr.Array] = {}  # opening is slow on a file system that many ranks share

    # -- the commit mark --

    def mark(self) -> CommitMark | None:
        """Read the commit mark of the last whole checkpoint; None: there is no checkpoint.

        Raises:
            ValueError: the mark is damaged.
        """
        path = self.private / "checkpoint.json"
        try:
            mark = CommitMark(**json.loads(path.read_text()))
            known = mark.slot in (0, 1) and 0 <= mark.level <= self.levels
            if known and isinstance(mark.level, int) and isinstance(mark.history, bool):
                return mark
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            pass
        raise ValueError(f"{path} is damaged; start anew with `resume` never")

    def commit(self, mark: CommitMark) -> None:
        """Set the mark, once all shards of its slot are on disk: from now on a run resumes there. Rank 0 calls this."""
        write_json(self.private / "checkpoint.json", asdict(mark))

    # -- the slots --

    def make_slots(self, shape: tuple[int, int, int], sides: tuple[int, int]) -> None:
        """Make the arrays that checkpoints are written to, where they are not there yet. Rank 0 calls this.

        Args:
            shape: Shape of the canvas of latents (C, H, W).
            sides: Rows and columns of a shard, in latents.
        """
        chunk = (shape[0], *(min(a, b) for a, b in zip(sides, shape[1:], strict=True)))
        for slot, name in itertools.product((0, 1), ("x", "previous")):
            path = self.slot_path(slot, name)
            if (path / "zarr.json").exists():  # the folder alone may be what a kill left: zarr makes it first
                continue
            zarr.create_array(
                str(path),
                shape=shape,
                chunks=chunk,
                dtype="float32",
                compressors=LATENT_CODECS,
                filters=None,
                fill_value=float("nan"),
                overwrite=True,
            )

    def slot_path(self, slot: int, name: str) -> Path:
        return self.private / "checkpoint" / str(slot) / name

    def slot_array(self, slot: int, name: str) -> zarr.Array:
        """Open an array of a slot, or return it if it is open."""
        path = self.slot_path(slot, name)
        if path not in self.opened:
            self.opened[path] = zarr.open_array(path, mode="r+")
        return self.opened[path]

    def write(self, slot: int, name: str, box: Box, latents: np.ndarray) -> None:
        """Write one shard of latents (C, h, w) to a slot. The shard's owner calls this.

        Args:
            name: "x" or "previous".
            box: Box of the shard, in latents.
        """
        self.slot_array(slot, name)[:, box.y0 : box.y1, box.x0 : box.x1] = latents

    def read(self, slot: int, name: str, box: Box) -> np.ndarray:
        """Read one shard of latents, float32 (C, h, w).

        Raises:
            ValueError: the shard is missing or damaged.
        """
        path = self.slot_path(slot, name)
        try:
            latents = np.asarray(self.slot_array(slot, name)[:, box.y0 : box.y1, box.x0 : box.x1])
        except Exception as error:  # zarr raises what its codecs and stores raise
            raise ValueError(f"checkpoint {path} is damaged ({error}); start anew with `resume` never") from error
        if np.isnan(latents).any():  # the fill value: the chunk has no file
            raise ValueError(f"checkpoint {path} lacks latents {box}; start anew with `resume` never")
        return latents

    def drop(self) -> None:
        """Remove all checkpoints, the mark first. Rank 0 calls this."""
        (self.private / "checkpoint.json").unlink(missing_ok=True)
        shutil.rmtree(self.private / "checkpoint", ignore_errors=True)
        self.opened.clear()

    # -- rounds of rejection sampling --

    def sampling_round(self) -> SamplingRound:
        """Read which round is under way."""
        path = self.private / "round.json"
        return SamplingRound(**json.loads(path.read_text())) if path.exists() else SamplingRound()

    def begin_round(self, sampling_round: SamplingRound) -> None:
        """Begin a round from noise: remove the checkpoints of the round before. Rank 0 calls this."""
        self.drop()
        write_json(self.private / "round.json", asdict(sampling_round))

    def end_rounds(self) -> None:
        """Forget which round was under way. Rank 0 calls this."""
        (self.private / "round.json").unlink(missing_ok=True)
