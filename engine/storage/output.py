"""An output is read and written shard by shard, and carries its provenance.

``image_layout.py`` and ``set_layout.py`` draw its files.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePath
from typing import IO, Any

import numpy as np

from engine.planning.geometry import Box
from engine.storage.checkpoint import Checkpoints, SamplingRound
from engine.storage.files import IS_NO_FILE, NO_FILE, Stamp, discard, halved
from engine.storage.image_layout import ImageLayout, PlacedLayout
from engine.storage.layout import LabelArray, Layout
from engine.storage.ledger import FinishedShard, Ledger
from engine.storage.live_files import LiveFiles
from engine.storage.metadata import ROOT, content_of, damaged_metadata, kept_provenance, write_provenance
from engine.storage.plane_layout import PlaneLayout, RequestLayout, request_of
from engine.storage.plane_swap import steady
from engine.storage.remote_output import publish
from engine.storage.remote_shards import RemoteShards, Unreachable
from engine.storage.set_layout import SetLayout
from engine.storage.shard_file import encode_shard, threads
from engine.storage.shard_store import LocalShards, ShardStore
from engine.storage.store_url import refuse_url
from engine.storage.zarr_setup import PIXEL_CODECS, zarr


class Output:
    """An output that is open: ``create`` makes it on rank 0, then every rank opens it.

    Args:
        path: The output's folder.
        rank: The rank whose ledger is written.
    Raises:
        ValueError: the output is damaged.
    """

    def __init__(self, path: Path, rank: int = 0) -> None:
        self.path, self.private = path, path / "slidefield"
        self.earlier: dict[str, np.ndarray] = {}  # the ledger's ``latest()`` when this run began: what is not done anew
        self.held: IO[str] | None = None  # the open lock file: it locks the output; rank 0 of a run alone has one
        self.opened: dict[Path, zarr.Array] = {}  # opening is slow on a file system that many ranks share
        try:
            self.group = zarr.open_group(path, mode="r+")
            self.provenance: dict[str, Any] = dict(self.group.attrs["slidefield"])  # type: ignore[arg-type]
            self.layout = layout_of(self.provenance["layout"])
            store = self.provenance.get("store")
            self.shards: ShardStore = LocalShards(path) if store is None else RemoteShards(store)
            self.arrays = self.shards.group(path) if isinstance(self.shards, RemoteShards) else self.group
            image = next(spec for spec in self.layout.arrays() if spec.name == self.layout.image)
            assert self.array(image.name).shape == image.shape, f"the image is not of {self.layout.shape_text()}"
            assert self.finished or self.provenance["state"] == "unfinished", "it does not say whether it is finished"
        except Unreachable:
            raise
        except Exception as error:  # zarr raises errors of many kinds for metadata that says nothing it knows
            why = f"{path} is damaged ({' '.join(str(error).split())})"
            raise ValueError(f"{why}; the command that sampled it mends it, or `overwrite` replaces it") from None
        self.ledger = Ledger(path, self.layout, rank, self.shards)
        self.checkpoints = Checkpoints(self.private, self.provenance.get("levels", 0))
        self.live = LiveFiles(self.private)

    def close(self) -> None:
        """Let go of the lock; whoever is next may write. A process that goes on after a run calls this."""
        if self.held is not None:
            self.held.close()
            self.held = None

    # -- shards --

    def array(self, name: str) -> zarr.Array:
        """Open an array of the output, or return it if it is open.

        Raises:
            ValueError: it is gone.
        """
        path = self.path / name
        if path not in self.opened:
            try:
                array = self.arrays[name]
                assert isinstance(array, zarr.Array), "it is no array"
            except Exception as error:  # as above
                why = f"{path} is damaged ({' '.join(str(error).split())})"
                raise ValueError(f"{why}; give the command that sampled it again") from None
            self.opened[path] = array
        return self.opened[path]

    def shard_file(self, name: str, box: Box) -> Path:
        """Name the file of a shard; of one in a store nothing lies there."""
        return self.path / self.layout.shard_file(name, box)

    def where(self, name: str, box: Box) -> Path | str:
        """Name the file of a shard, or its URL, for messages."""
        return self.shards.where(self.layout.shard_file(name, box))

    def write(self, name: str, box: Box, pixels: np.ndarray, round_index: int = 0) -> None:
        """Write one whole shard and enter it in this rank's ledger. The shard's one writer calls this.

        Args:
            round_index: The round of rejection sampling that drew it.
        Raises:
            ValueError: another program removed the shard as soon as it was there, or its store refuses it.
        """
        parts, sha256 = encode_shard(self.array(name), pixels)
        size = self.shards.put(self.layout.shard_file(name, box), parts)
        self.ledger.append(FinishedShard(name, box, sha256.result(), round_index, size))

    def read(self, name: str, box: Box) -> np.ndarray:
        """Read the pixels in a box.

        Raises:
            Unreachable: its store cannot be read.
            ValueError: a shard of the box is damaged.
        """
        return self._read(name, self.layout.index(box), box)

    def read_part(self, image: int, box: Box, name: str | None = None) -> np.ndarray:
        """Read the pixels in a box of one of the images, at full size: (c, h, w).

        Args:
            name: Another of ``Layout.finest``, of which it is (h, w).
        Raises:
            ValueError: a shard of the box is damaged.
        """
        place = Box(image, 0, image + 1, 1) if isinstance(self.layout, SetLayout) else box
        return self._read(name or self.layout.image, self.layout.index_in(image, box), place)

    def _read(self, name: str, index: tuple[Any, ...], box: Box) -> np.ndarray:
        """Read a part of an array by its index.

        Args:
            box: The same as a box of the layout, for the message.
        """
        array = self.array(name)
        for shard in self.shards_met(name, box):
            self.check_file(self.layout.shard_file(name, shard))
        try:
            return np.asarray(array[index])
        except Unreachable:
            raise
        except Exception as error:  # zarr raises what its codecs and stores raise
            file, why = self.where(name, self.unreadable(name, box)), " ".join(str(error).split())
            raise ValueError(f"{file} cannot be read ({why}); {self.way_out()}") from error

    def unreadable(self, name: str, box: Box) -> Box:
        """The first shard that a box meets and that cannot be read; the box itself, where each by itself can."""
        array = self.array(name)
        for shard in self.shards_met(name, box):
            try:
                array[self.layout.index(shard)]
            except Exception:
                return shard
        return box

    def shards_met(self, name: str, box: Box) -> Iterator[Box]:
        """The shards of an array that a box meets."""
        return self.ledger.shards[name].meeting(box)

    def check_file(self, name: PurePath) -> Stamp | None:
        """The stamp of a shard; None: there is none.

        Raises:
            ValueError: what lies in its place is empty or no file, which zarr would read as a shard that is absent.
        """
        stamp = self.shards.stamp(name)
        if stamp == NO_FILE:
            raise ValueError(f"{self.shards.where(name)} cannot be read (it {IS_NO_FILE}); {self.way_out()}")
        return stamp

    def way_out(self) -> str:
        """What to do about a shard that is missing or cannot be read."""
        if not self.finished:
            return "remove it, then give the same command again"
        return f"engine.verify {self.path} says what else is damaged; the same job with `mend` makes it anew"

    def halve(self, finest: str, level: int, box: Box) -> None:
        """Make one shard of a pyramid level from the four of the level below, on threads.

        Args:
            finest: Name of the array at full size. An image is averaged; of labels every second pixel is taken.
            level: Level to be made, 1 or more.
            box: Box of the shard.
        Raises:
            ValueError: a shard below has no file.
        """
        half, below = self.layout.shard // 2, self.layout.level(finest, level - 1)

        def quarter(y: int, x: int) -> np.ndarray:
            source = (Box(y, x, y + half, x + half) & box).scaled(2)  # may pass the image's edge: zarr stops there
            there = self.shards.size(self.layout.shard_file(below, source))
            if self.layout.complete and not there:  # zarr would read zeros
                raise ValueError(f"{self.where(below, source)} is gone; give the same command again to make it anew")
            whole = self.read(below, source)
            return halved(whole) if finest == self.layout.image else whole[..., ::2, ::2]

        self.array(below)  # opened once, and not by every thread
        rows = range(box.y0, box.y1, half)
        parts = [[threads().submit(quarter, y, x) for x in range(box.x0, box.x1, half)] for y in rows]
        pixels = np.block([[part.result() for part in row] for row in parts])
        self.write(self.layout.level(finest, level), box, pixels)

    # -- what only an unfinished output has --

    def keep_input(self, name: str, values: np.ndarray) -> str:
        """Keep a copy of an input so that every rank can read its own boxes of it; ``tidy`` removes it.

        Returns:
            Path of the copy, a Zarr array.
        """
        path, side = self.private / "inputs" / name, self.layout.chunk
        chunks = (*(1 for _ in values.shape[:-2]), *(min(side, n) for n in values.shape[-2:]))
        zarr.create_array(str(path), data=values, chunks=chunks, compressors=PIXEL_CODECS, overwrite=True)
        return str(path)

    def tidy(self) -> None:
        """Remove what only an unfinished output needs. Rank 0 calls this."""
        self.checkpoints.drop()
        self.checkpoints.end_rounds()
        self.live.remove()
        discard(self.ledger.forgotten)
        for name in ("labels.zarr", "inputs"):
            discard(self.private / name)

    def sweep(self) -> None:
        """Remove files that a killed run left half written, and what it said of itself. Rank 0 calls this."""
        self.live.remove()
        for leftover in self.path.rglob("*.partial"):
            discard(leftover)

    def forget(self, shards: Collection[tuple[str, Box]]) -> None:
        """Remove shards that are damaged, files and lines, so that they are made anew. Rank 0 calls this.

        A set whose images are judged begins with round 0 again, which draws what these shards have lost; shards that
        later rounds have finished stay as they are.

        Args:
            shards: As (array, box).
        """
        for name, box in shards:
            self.shards.remove(self.layout.shard_file(name, box))
        if self.finished:
            self.ledger.remember(set(shards))
        self.ledger.merge(without=set(shards))
        if self.checkpoints.sampling_round().index and any(name == self.layout.image for name, _ in shards):
            self.checkpoints.begin_round(SamplingRound())

    # -- provenance --

    @property
    def finished(self) -> bool:
        return self.provenance["state"] == "finished"

    @property
    def pixel_size_um(self) -> float:
        """Side of a pixel at full size, micrometres: the last scale in the OME-Zarr metadata."""
        ome: Any = self.group.attrs["ome"]
        return float(ome["multiscales"][0]["datasets"][0]["coordinateTransformations"][0]["scale"][-1])

    def annotate(self, **values: Any) -> None:
        """Set fields of the provenance. Rank 0 calls this."""
        self.provenance |= values
        write_provenance(self.path, self.provenance)
        if isinstance(self.shards, RemoteShards):
            publish(self.shards, self.path, self.finished)


def output_to_read(path: Path) -> Output:
    """Open an output for those who only read it: of a finished one every ``zarr.json`` says what was written.

    Raises:
        ValueError: nothing lies there, no output of ours, or a damaged one.
    """
    return steady(path, lambda: output_now(path))


def output_now(path: Path) -> Output:
    """``output_to_read`` of one in whose place no other is put meanwhile."""
    provenance_of(path)
    output = Output(path)
    damaged = next(damaged_metadata(path), None) if output.finished else None
    if damaged is not None:
        raise ValueError(f"{path / damaged} does not say any more what was written; {output.way_out()}")
    return output


def layout_of(attributes: Mapping[str, Any]) -> Layout:
    """Make the layout that ``Layout.attributes`` described.

    Raises:
        KeyError, TypeError: the attributes describe none.
    """
    label = attributes["label"]
    if label is not None:
        entries = tuple((name, tuple(color)) for name, color in label["entries"])
        label = LabelArray(label["name"], label["dtype"], entries)
    height, width = attributes["size"]
    channels, shard, chunk = (attributes[name] for name in ("channels", "shard", "chunk"))
    if not all(type(length) is int and length > 0 for length in (height, width, channels, shard, chunk)):
        raise TypeError("lengths of its layout are no whole numbers")
    shared = ((height, width), channels, shard, chunk, label)
    if attributes["count"] is None:
        coarsest = attributes.get("coarsest", attributes["shard"])  # version 0.1: a shard
        if "corner" in attributes:
            y, x = attributes["corner"]
            return PlaneLayout(*shared, coarsest, attributes.get("region", False), (y, x))
        if "origin" in attributes:
            y, x = attributes["origin"]
            return PlacedLayout(*shared, coarsest, attributes.get("region", False), (y, x))
        if "asked" in attributes:
            return RequestLayout(*shared, coarsest, attributes.get("region", False), tuple(attributes["asked"]))
        return ImageLayout(*shared, coarsest, attributes.get("region", False))
    return SetLayout(*shared, count=attributes["count"], group=attributes["group"])


class Unrecognisable(ValueError):
    """An output is ours, and does not say any more what it is of."""


def provenance_at(path: Path) -> dict[str, Any] | None:
    """Read the provenance of an output without opening its arrays; None: nothing lies at the path.

    Raises:
        Unrecognisable: an output of ours lies there, whose ``zarr.json`` is damaged, and the copy of it too.
        ValueError: something lies there that is no output of ours.
    """
    if not path.exists() and not path.is_symlink():
        return None
    try:
        provenance = kept_provenance(path) or content_of(path / ROOT)["attributes"]["slidefield"]
        assert isinstance(provenance["identity"], dict)
        assert provenance["state"] in ("unfinished", "finished")
        return provenance
    except (KeyError, TypeError, AssertionError):
        pass
    if (path / "slidefield").is_dir() and not (path / ROOT).exists() and not kept_provenance(path) and begun(path):
        raise Unrecognisable(f"{path} is a plane that has no finished request yet")
    if any((path / "slidefield" / name).exists() for name in ("metadata.json", "ledger.jsonl", "ledger", "lock")):
        raise Unrecognisable(
            f"{path} is an output whose zarr.json is damaged beyond repair; "
            "pass `overwrite` to replace it, or choose another `out`"
        )
    raise ValueError(f"{path} is there but is no output of engine.sample; remove it yourself, or choose another `out`")


def begun(plane: Path) -> bool:
    """Whether the first request to a plane is under way, or was stopped: nothing of the plane is there but that."""
    names = {entry.name for entry in (plane / "slidefield").iterdir()}
    return "lock" in names and (request_of(plane).exists() or len(names) == 1)


def provenance_of(path: Path) -> dict[str, Any]:
    """Read the provenance of the output that lies at a path, for those who only read it.

    Raises:
        ValueError: nothing lies there, or no output of ours.
    """
    refuse_url(path)
    try:
        provenance = provenance_at(path)
    except Unrecognisable:
        raise
    except ValueError:
        raise ValueError(f"{path} is no output of engine.sample") from None
    if provenance is None:
        raise ValueError(f"{path} is not there")
    return provenance
