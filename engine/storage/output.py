"""The only importer of zarr and h5py: output, ledger, checkpoints, inputs.

Layout of an output of one image::

    OUT/zarr.json            group: OME-Zarr 0.5 multiscales; the job and its provenance under "slidefield"
    OUT/0, 1, ...            the image, c y x, and its pyramid
    OUT/labels/NAME/0 ...    what it was made from, y x, and its pyramid: "tissue", "classes" or "nuclei"
    OUT/slidefield/          ledger.jsonl, of an unfinished output ledger/RANK.jsonl, checkpoint.json and the slots of
                             latents, and copies of inputs; no zarr member

and of a set of independent images::

    OUT/zarr.json            group: the job and its provenance under "slidefield"
    OUT/images               index c y x
    OUT/tissue, ...          what each was made from, index y x
    OUT/slidefield/          as above
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec

from engine.planning.geometry import Grid, Window
from engine.storage.create import CODECS
from engine.storage.files import digest, file_size, halved, write_json
from engine.storage.layout import layout_of

# A finished shard is a file, whatever is in it: an absent one is damage, not emptiness.
zarr.config.set({"threading.max_workers": 2, "async.concurrency": 4, "array.write_empty_chunks": True})


ZARR_VERSION = zarr.__version__


@dataclass(frozen=True)
class SamplingRound:
    """What is drawn at a time: at first everything, then those images of a set that were not accepted.

    Args:
        index: counted from 0.
        images: None: all there are.
        rejected: how many images of each round before this one were not accepted.
    """

    index: int = 0
    images: list[int] | None = None
    rejected: list[int] = field(default_factory=list)


class Finished(NamedTuple):
    """A line of the ledger: a shard that is on disk.

    Args:
        round_index: of a set, the round in which it was written.
    """

    array: str
    box: Window
    sha256: str
    round_index: int = 0

    def text(self) -> str:
        box = self.box
        line = {"array": self.array, "box": [box.y0, box.x0, box.y1, box.x1], "sha256": self.sha256}
        return json.dumps({**line, "round": self.round_index} if self.round_index else line) + "\n"


class Output:
    """One output group; opened by every rank, created by rank 0 alone.

    Args:
        rank: whose ledger is written.
    """

    def __init__(self, path: Path, rank: int = 0) -> None:
        self.path, self.rank = path, rank
        self.private = path / "slidefield"
        self.earlier: dict[str, np.ndarray] = {}  # ``latest()`` when a run took it up
        self.held: IO[str] | None = None  # the lock, on rank 0 of a run
        self.opened: dict[Path, zarr.Array] = {}  # a file system of many ranks is slow to open
        try:
            self.group = zarr.open_group(path, mode="r+")
            self.provenance: dict[str, Any] = dict(self.group.attrs["slidefield"])  # type: ignore[arg-type]
            self.layout = layout_of(self.provenance["layout"])
            self.array(self.layout.image)
        except (KeyError, TypeError, ValueError, FileNotFoundError, AssertionError) as error:
            raise ValueError(f"{path} is damaged ({error}); sample it anew elsewhere, or remove it yourself") from None

    @property
    def finished(self) -> bool:
        return self.provenance["state"] == "finished"

    # -- image and labels --

    def array(self, name: str) -> zarr.Array:
        path = self.path / name
        if path not in self.opened:
            try:
                found = self.group[name]
            except (KeyError, OSError) as error:
                raise ValueError(f"{path} is gone ({error}); put it back, or start anew with `resume` never") from None
            assert isinstance(found, zarr.Array)
            self.opened[path] = found
        return self.opened[path]

    def index(self, box: Window) -> tuple[Any, ...]:
        """Where a box lies in the arrays."""
        if self.layout.count is not None:
            return (slice(box.y0, box.y1),)
        return (..., slice(box.y0, box.y1), slice(box.x0, box.x1))

    def write(self, name: str, box: Window, data: np.ndarray, round_index: int = 0) -> None:
        """Write one whole shard and enter it in this rank's ledger. Its one writer calls this."""
        self.array(name)[self.index(box)] = data
        self.record(Finished(name, box, digest(data), round_index))

    def read(self, name: str, box: Window) -> np.ndarray:
        """What is stored in a box.

        Raises:
            ValueError: a shard of it is damaged.
        """
        array = self.array(name)
        try:
            return np.asarray(array[self.index(box)])
        except Exception as error:  # zarr raises what its codecs and stores raise
            file, why = self.shard_file(name, box), " ".join(str(error).split())
            raise ValueError(f"{file} cannot be read ({why}); remove it, then give the same command again") from error

    def halve(self, finest: str, level: int, box: Window) -> None:
        """Make one shard of pyramid level ``level`` from those below it, one after another."""
        half = self.layout.shard // 2

        def part(y: int, x: int) -> np.ndarray:
            below = (Window(y, x, y + half, x + half) & box).scaled(2)  # zarr stops at the image's edge
            name = self.layout.level(finest, level - 1)
            if not file_size(self.shard_file(name, below)):  # zarr would take it for zeros
                raise ValueError(f"{self.shard_file(name, below)} is gone; give the same command again to make it anew")
            source = self.read(name, below)
            return halved(source) if finest == self.layout.image else source[..., ::2, ::2]

        rows = [[part(y, x) for x in range(box.x0, box.x1, half)] for y in range(box.y0, box.y1, half)]
        self.write(self.layout.level(finest, level), box, np.block(rows))

    def shard_file(self, name: str, box: Window) -> Path:
        """Where a shard lies on disk."""
        if self.layout.count is not None:
            rest = ["0"] * (self.array(name).ndim - 1)
            return self.path.joinpath(name, "c", str(box.y0 // self.layout.group), *rest)
        lead = [] if name.startswith("labels/") else ["0"]
        side = self.layout.shard
        return self.path.joinpath(name, "c", *lead, str(box.y0 // side), str(box.x0 // side))

    # -- ledger --

    def record(self, shard: Finished) -> None:
        """Append a line to this rank's ledger. Its writer calls this, after the shard is on disk."""
        folder = self.private / "ledger"
        folder.mkdir(exist_ok=True)
        with (folder / f"{self.rank:05}.jsonl").open("a") as stream:
            stream.write(shard.text())
            stream.flush()
            os.fsync(stream.fileno())

    def ledger(self) -> Iterator[Finished]:
        """The lines of all ranks' ledgers, one after another; what names no shard, as a torn last line, is passed over.

        The ranks' lines are in no order: of those about one shard that of the latest round counts.
        """
        for file in (self.private / "ledger.jsonl", *sorted((self.private / "ledger").glob("*.jsonl"))):
            if not file.exists():
                continue
            with file.open(errors="replace") as stream:
                for text in stream:
                    try:
                        line = json.loads(text)
                        box, round_index = (
                            Window(*map(int, line["box"])),
                            int(line.get("round", line.get("attempt", 0))),
                        )
                        boxes = self.shards[line["array"]]
                        if boxes[boxes.index_of(box)] == box and round_index in range(128):
                            yield Finished(line["array"], box, str(line["sha256"]), round_index)
                    except (ValueError, LookupError, TypeError, AttributeError):
                        continue

    def place(self, shard: Finished) -> int:
        """Which of its array's shards it is."""
        return self.shards[shard.array].index_of(shard.box)

    @cached_property
    def shards(self) -> dict[str, Grid]:
        """Of every array."""
        return {name: self.layout.boxes(level) for name, level in self.layout.arrays()}

    def latest(self) -> dict[str, np.ndarray]:
        """Of every array that has any finished shard: int8 (shards,), the round that each was last finished in.

        -1: it is not finished. Reads the ledger through.
        """
        found: dict[str, np.ndarray] = {}
        for shard in self.ledger():
            name = shard.array
            if name not in found:
                found[name] = np.full(len(self.shards[name]), -1, np.int8)
            place = self.place(shard)
            found[name][place] = max(found[name][place], shard.round_index)
        return found

    def merge_ledger(self, check: bool = False) -> None:
        """Make one ledger of all ranks', of the line that counts about each shard. Rank 0 calls this.

        Args:
            check: drop lines of shards that are not there (any more), or hold nothing.
        """
        latest = self.latest()
        merged = self.private / "ledger.jsonl.partial"
        with merged.open("w") as stream:
            for shard in self.ledger():
                place = self.place(shard)
                if latest[shard.array][place] != shard.round_index:
                    continue
                latest[shard.array][place] = -1  # one line is enough
                if not check or file_size(self.shard_file(shard.array, shard.box)):
                    stream.write(shard.text())
            stream.flush()
            os.fsync(stream.fileno())
        merged.rename(self.private / "ledger.jsonl")
        shutil.rmtree(self.private / "ledger", ignore_errors=True)

    def lacking(self) -> list[Path]:
        """The shards that are not in the ledger, one of each array that lacks any."""
        latest, found = self.latest(), []
        for name, boxes in self.shards.items():
            absent = np.nonzero(latest.get(name, np.full(len(boxes), -1)) < 0)[0]
            found += [self.shard_file(name, boxes[int(absent[0])])] if len(absent) else []
        return found

    # -- inputs --

    def keep_input(self, name: str, data: np.ndarray) -> str:
        """Keep a copy of an input that is read in boxes, until the output is finished; returns where it is."""
        path = self.private / "inputs" / name
        side = self.layout.chunk
        chunks = (*(1 for _ in data.shape[:-2]), *(min(side, n) for n in data.shape[-2:]))
        zarr.create_array(str(path), data=data, chunks=chunks, compressors=CODECS, overwrite=True)
        return str(path)

    # -- a set's rounds of rejection sampling --

    def sampling_round(self) -> SamplingRound:
        """Which round is under way."""
        path = self.private / "round.json"
        return SamplingRound(**json.loads(path.read_text())) if path.exists() else SamplingRound()

    def begin_round(self, sampling_round: SamplingRound) -> None:
        """Draw some images again, from noise. Rank 0 calls this."""
        self.drop_checkpoints()
        write_json(self.private / "round.json", asdict(sampling_round))

    # -- checkpoints --

    def checkpoint(self) -> dict[str, Any] | None:
        """The commit mark of the last whole checkpoint: slot, level, and whether it has history.

        Raises:
            ValueError: the mark is damaged.
        """
        path = self.private / "checkpoint.json"
        try:
            mark = json.loads(path.read_text())
            whole = mark["slot"] in (0, 1) and 0 <= mark["level"] <= self.provenance["levels"]
            if whole and isinstance(mark["level"], int) and isinstance(mark["history"], bool):
                return mark
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            pass
        raise ValueError(f"{path} is damaged; start anew with `resume` never")

    def make_slots(self, shape: tuple[int, int, int], sides: tuple[int, int]) -> None:
        """Make what checkpoints are written to. Rank 0 calls this."""
        for slot, name in itertools.product((0, 1), ("x", "previous")):
            path = self.slot_path(slot, name)
            if not (path / "zarr.json").exists():  # zarr makes the folder first: a kill may have come between
                zarr.create_array(
                    str(path),
                    shape=shape,
                    chunks=(shape[0], *(min(a, b) for a, b in zip(sides, shape[1:], strict=True))),
                    dtype="float32",
                    compressors=[Crc32cCodec()],
                    filters=None,
                    fill_value=float("nan"),
                    overwrite=True,
                )

    def slot_path(self, slot: int, name: str) -> Path:
        return self.private / "checkpoint" / str(slot) / name

    def slot_array(self, slot: int, name: str) -> zarr.Array:
        path = self.slot_path(slot, name)
        if path not in self.opened:
            self.opened[path] = zarr.open_array(path, mode="r+")
        return self.opened[path]

    def write_checkpoint(self, slot: int, name: str, box: Window, data: np.ndarray) -> None:
        """Write one shard of latents to a slot. Its owner calls this."""
        self.slot_array(slot, name)[:, box.y0 : box.y1, box.x0 : box.x1] = data

    def commit_checkpoint(self, slot: int, level: int, history: bool) -> None:
        """All shards of the slot are on disk: from now on it is the one to resume from. Rank 0 calls this."""
        write_json(self.private / "checkpoint.json", {"slot": slot, "level": level, "history": history})

    def read_checkpoint(self, slot: int, name: str, box: Window) -> np.ndarray:
        """float32 (C, h, w).

        Raises:
            ValueError: the shard is missing or damaged.
        """
        path = self.slot_path(slot, name)
        try:
            data = np.asarray(self.slot_array(slot, name)[:, box.y0 : box.y1, box.x0 : box.x1])
        except Exception as error:  # zarr raises what its codecs and stores raise
            raise ValueError(f"checkpoint {path} is damaged ({error}); start anew with `resume` never") from error
        if np.isnan(data).any():
            raise ValueError(f"checkpoint {path} lacks latents {box}; start anew with `resume` never")
        return data

    def drop_checkpoints(self) -> None:
        """Rank 0 calls this."""
        (self.private / "checkpoint.json").unlink(missing_ok=True)
        shutil.rmtree(self.private / "checkpoint", ignore_errors=True)
        self.opened = {path: array for path, array in self.opened.items() if self.private not in path.parents}

    def tidy(self) -> None:
        """Remove what only an unfinished output needs. Rank 0 calls this."""
        self.drop_checkpoints()
        (self.private / "round.json").unlink(missing_ok=True)
        for name in ("labels.zarr", "inputs"):
            shutil.rmtree(self.private / name, ignore_errors=True)

    # -- provenance --

    def annotate(self, **values: Any) -> None:
        """Set fields of the provenance. Rank 0 calls this."""
        self.provenance |= values
        self.group.attrs["slidefield"] = self.provenance

    def sweep(self) -> None:
        """Remove what a killed run left half written. Rank 0 calls this."""
        for leftover in self.path.rglob("*.partial"):
            leftover.unlink(missing_ok=True)


def state_of(path: Path) -> dict[str, Any] | None:
    """The provenance of an output; None where nothing lies at the path.

    Raises:
        ValueError: something lies there that is no output of ours.
    """
    if not path.exists() and not path.is_symlink():
        return None
    try:
        attributes = json.loads((path / "zarr.json").read_text())["attributes"]["slidefield"]
        assert isinstance(attributes["identity"], dict)
        return attributes
    except (OSError, ValueError, KeyError, TypeError, AssertionError):
        raise ValueError(
            f"{path} is there but is no output of engine.sample; remove it yourself, or choose another `out`"
        ) from None
