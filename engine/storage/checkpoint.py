"""Checkpoints, and the round of rejection sampling under way: what a run resumes an unfinished output from.

Their files are::

    OUT/slidefield/checkpoint/0, 1       two slots, written in turn: float32 arrays "x", "previous", ..., C H W
    OUT/slidefield/checkpoint.json       commit mark: the slot that is whole, the level to go on from, and a
                                         digest that binds the two to what the slot holds
    OUT/slidefield/round.json            of a set whose images are judged, the round under way
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from engine.planning.geometry import Box
from engine.storage.files import discard, read_signed, sync_new, write_signed
from engine.storage.zarr_setup import LATENT_CODECS, zarr

MOST_HISTORY = 3  # of plms


@dataclass(frozen=True)
class SamplingRound:
    """A round of rejection sampling: round 0 draws everything, each later one the images that were rejected.

    Args:
        index: Number of the round, from 0.
        images: Numbers of the images that are drawn; None: all there are.
        rejected: Number of images rejected in each round before this one.
        scores: The score of each image when it was last drawn, where the rule has scores; else empty.
    """

    index: int = 0
    images: list[int] | None = None
    rejected: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class CommitMark:
    """The commit mark says which checkpoint is whole.

    Args:
        slot: The slot that holds it, 0 or 1.
        level: The level to go on from.
        history: How many arrays beside "x" the slot holds, of what the solver has kept of levels before.
        digest: Sum of the ``fingerprint`` of every shard of the slot, modulo 2^64, in hexadecimal.
    """

    slot: int
    level: int
    history: int
    digest: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.history, int) or not 0 <= self.history <= MOST_HISTORY:
            raise ValueError(f"history is {self.history!r}: expected 0 to {MOST_HISTORY}")

    def fingerprint(self, name: str, box: Box, latents: np.ndarray) -> int:
        """Hash one shard of the checkpoint together with its place, the slot, the level and the history.

        Fingerprints are added up over shards and ranks, in any order: a slot that holds another level, or a shard of
        another, has another sum.

        Args:
            latents: float32 (C, h, w).
        """
        hashed = hashlib.sha256(repr((self.slot, self.level, self.history, name, box)).encode())
        hashed.update(np.ascontiguousarray(latents).data)
        return int.from_bytes(hashed.digest()[:8], "little")


def array_names(history: int) -> list[str]:
    """The arrays of a checkpoint: the canvas, and what the solver has kept, the newest first.

    >>> array_names(2)
    ['x', 'previous', 'previous2']
    """
    return ["x", *(f"previous{'' if age == 1 else age}" for age in range(1, history + 1))]


def digest_of(fingerprints: Iterable[int]) -> str:
    """The digest of a checkpoint, from the fingerprints of its shards or from sums of them.

    >>> digest_of([1, 2**64 + 1])
    '0000000000000002'
    """
    return f"{sum(fingerprints) % 2**64:016x}"


class Checkpoints:
    """The checkpoints of an output.

    Args:
        private: The output's folder ``slidefield``.
        levels: Number of levels of the job.
    """

    def __init__(self, private: Path, levels: int) -> None:
        self.private, self.levels = private, levels
        self.opened: dict[Path, zarr.Array] = {}  # opening is slow on a file system that many ranks share
        self.kept: set[Path] = set()  # folders that the disk has

    # -- the commit mark --

    def mark(self) -> CommitMark | None:
        """Read the commit mark of the last whole checkpoint; None: there is no checkpoint.

        Raises:
            ValueError: the mark is damaged.
        """
        path = self.private / "checkpoint.json"
        try:
            mark = CommitMark(**read_signed(path))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            raise ValueError(f"{path} is damaged; start anew with `resume` never") from None
        if not 0 <= mark.level <= self.levels:
            raise ValueError(f"{path} says level {mark.level} of {self.levels}; start anew with `resume` never")
        return mark

    def commit(self, mark: CommitMark) -> None:
        """Set the mark, once all shards of its slot are on disk: from now on a run resumes there. Rank 0 calls this."""
        write_signed(self.private / "checkpoint.json", asdict(mark))

    def check(self, mark: CommitMark, digest: str) -> None:
        """Compare what was read from the slot with what the mark says of it.

        Args:
            digest: The digest of what was read.
        Raises:
            ValueError: they are not of one checkpoint.
        """
        if digest != mark.digest:
            raise ValueError(
                f"{self.private / 'checkpoint.json'} says that slot {mark.slot} holds level {mark.level}, "
                "and it holds something else; start anew with `resume` never"
            )

    # -- the slots --

    def make_slots(
        self, shape: tuple[int, int, int], sides: tuple[int, int], history: int, whole: int | None = None
    ) -> None:
        """Make the arrays that checkpoints are written to, whatever is there. Rank 0 calls this.

        Args:
            shape: Shape of the canvas of latents (C, H, W).
            sides: Rows and columns of a shard, in latents.
            history: Number of arrays beside the canvas.
            whole: The slot that holds a checkpoint, which stays as it is; None: neither does.
        """
        chunk = (shape[0], *(min(a, b) for a, b in zip(sides, shape[1:], strict=True)))
        for slot, name in itertools.product((0, 1), array_names(history)):
            path = self.slot_path(slot, name)
            if slot == whole:
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
            sync_new(path / "zarr.json", self.private, self.kept)

    def slot_path(self, slot: int, name: str) -> Path:
        return self.private / "checkpoint" / str(slot) / name

    def slot_array(self, slot: int, name: str) -> zarr.Array:
        """Open an array of a slot, or return it if it is open."""
        path = self.slot_path(slot, name)
        if path not in self.opened:
            self.opened[path] = zarr.open_array(path, mode="r+")
        return self.opened[path]

    def write(self, slot: int, name: str, box: Box, latents: np.ndarray) -> None:
        """Write one shard of latents (C, h, w) to a slot, and have the disk keep it. The shard's owner calls this.

        Args:
            name: One of ``array_names``.
            box: Box of the shard, in latents.
        """
        array = self.slot_array(slot, name)
        array[:, box.y0 : box.y1, box.x0 : box.x1] = latents
        place = (str(start // side) for start, side in zip((0, box.y0, box.x0), array.chunks, strict=True))
        sync_new(self.slot_path(slot, name).joinpath("c", *place), self.private, self.kept)

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
        if latents.shape[1:] != box.shape or latents.dtype != np.float32 or np.isnan(latents).any():
            # NaN is the fill value: the chunk has no file
            raise ValueError(f"checkpoint {path} lacks latents {box}; start anew with `resume` never")
        return latents

    def drop(self) -> None:
        """Remove all checkpoints, the mark first. Rank 0 calls this."""
        discard(self.private / "checkpoint.json")
        discard(self.private / "checkpoint")
        self.opened.clear()
        self.kept.clear()

    # -- rounds of rejection sampling --

    def sampling_round(self) -> SamplingRound:
        """Read which round is under way.

        Raises:
            ValueError: the file that says so is damaged.
        """
        path = self.private / "round.json"
        try:
            return SamplingRound(**read_signed(path))
        except FileNotFoundError:
            return SamplingRound()
        except (ValueError, TypeError):
            raise ValueError(f"{path} is damaged; start anew with `resume` never") from None

    def begin_round(self, sampling_round: SamplingRound) -> None:
        """Begin a round from noise: remove the checkpoints of the round before. Rank 0 calls this."""
        self.drop()
        write_signed(self.private / "round.json", asdict(sampling_round))

    def end_rounds(self) -> None:
        """Forget which round was under way. Rank 0 calls this."""
        discard(self.private / "round.json")
