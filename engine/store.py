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

import fcntl
import hashlib
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from engine.geometry import Grid, Window, grid

# A finished shard is a file, whatever is in it: an absent one is damage, not emptiness.
zarr.config.set({"threading.max_workers": 2, "async.concurrency": 4, "array.write_empty_chunks": True})
ZARR_VERSION = zarr.__version__


def write_json(path: Path, value: Any) -> None:
    """Write a small file whole or not at all."""
    temporary = path.with_name(path.name + ".partial")
    with temporary.open("w") as stream:
        json.dump(value, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.rename(path)


# ---- the output ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelArray:
    """What an image was made from, stored beside it.

    Args:
        name: of the array.
        dtype: unsigned.
        entries: (name, RGB) of every value; empty where they are too many to have names.
    """

    name: str
    dtype: str = "uint8"
    entries: tuple[tuple[str, tuple[int, int, int]], ...] = ()


@dataclass(frozen=True)
class Layout:
    """The shapes of an output's arrays.

    Args:
        size: of an image, px.
        channels: of the image.
        shard, chunk: px.
        label: what is stored beside the image; None: nothing.
        count: of a set, its images; None: one image.
        group: images of a set in one shard.
    """

    size: tuple[int, int]
    channels: int
    shard: int
    chunk: int
    label: LabelArray | None = None
    count: int | None = None
    group: int = 1

    @property
    def image(self) -> str:
        """The name of the array with the image or images."""
        return "0" if self.count is None else "images"

    @property
    def labels(self) -> str | None:
        """The name of the array with the labels at full size."""
        if self.label is None:
            return None
        return f"labels/{self.label.name}/0" if self.count is None else self.label.name

    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of each pyramid level, down to one shard; a set has none but the first."""
        found = [self.size]
        while self.count is None and max(found[-1]) > self.shard:
            found.append((-(-found[-1][0] // 2), -(-found[-1][1] // 2)))
        return found

    def level(self, name: str, level: int) -> str:
        """The name of the array ``level`` of the pyramid that an array is the finest of."""
        return f"{name.removesuffix('0')}{level}" if level else name

    def boxes(self, level: int = 0) -> Grid:
        """The shards of a pyramid level, cut at the image's edge; of a set, rows are images."""
        if self.count is not None:
            return grid((self.count, 1), (self.group, 1))
        return grid(self.sizes()[level], self.shard)

    def arrays(self) -> list[tuple[str, int]]:
        """(name, pyramid level) of every array."""
        finest = [name for name in (self.image, self.labels) if name]
        return [(self.level(name, i), i) for i in range(len(self.sizes())) for name in finest]

    def files(self) -> int:
        """Files of the finished output, metadata included."""
        shards = sum(len(self.boxes(level)) for _, level in self.arrays())
        groups = 3 if self.label and self.count is None else 1
        return shards + len(self.arrays()) + groups + 3  # ledger, lock, checkpoint


@dataclass(frozen=True)
class Drawing:
    """What is drawn at a time: at first everything, then those images of a set that were not accepted.

    Args:
        attempt: counted from 0.
        images: None: all there are.
        rejected: how many images of each drawing before this one were not accepted.
    """

    attempt: int = 0
    images: list[int] | None = None
    rejected: list[int] = field(default_factory=list)


class Finished(NamedTuple):
    """A line of the ledger: a shard that is on disk.

    Args:
        attempt: of a set, the drawing in which it was written.
    """

    array: str
    box: Window
    sha256: str
    attempt: int = 0

    def text(self) -> str:
        box = self.box
        line = {"array": self.array, "box": [box.y0, box.x0, box.y1, box.x1], "sha256": self.sha256}
        return json.dumps({**line, "attempt": self.attempt} if self.attempt else line) + "\n"


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
                raise ValueError(f"{path} is gone ({error}); put it back, or start anew with --resume never") from None
            assert isinstance(found, zarr.Array)
            self.opened[path] = found
        return self.opened[path]

    def index(self, box: Window) -> tuple[Any, ...]:
        """Where a box lies in the arrays."""
        if self.layout.count is not None:
            return (slice(box.y0, box.y1),)
        return (..., slice(box.y0, box.y1), slice(box.x0, box.x1))

    def write(self, name: str, box: Window, data: np.ndarray, attempt: int = 0) -> None:
        """Write one whole shard and enter it in this rank's ledger. Its one writer calls this."""
        self.array(name)[self.index(box)] = data
        self.record(Finished(name, box, digest(data), attempt))

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

        The ranks' lines are in no order: of those about one shard that of the latest drawing counts.
        """
        for file in (self.private / "ledger.jsonl", *sorted((self.private / "ledger").glob("*.jsonl"))):
            if not file.exists():
                continue
            with file.open(errors="replace") as stream:
                for text in stream:
                    try:
                        line = json.loads(text)
                        box, attempt = Window(*map(int, line["box"])), int(line.get("attempt", 0))
                        boxes = self.shards[line["array"]]
                        if boxes[boxes.index_of(box)] == box and attempt in range(128):
                            yield Finished(line["array"], box, str(line["sha256"]), attempt)
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
        """Of every array that has any finished shard: int8 (shards,), the drawing that each was last finished in.

        -1: it is not finished. Reads the ledger through.
        """
        found: dict[str, np.ndarray] = {}
        for shard in self.ledger():
            name = shard.array
            if name not in found:
                found[name] = np.full(len(self.shards[name]), -1, np.int8)
            place = self.place(shard)
            found[name][place] = max(found[name][place], shard.attempt)
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
                if latest[shard.array][place] != shard.attempt:
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

    # -- a set's drawings --

    def drawing(self) -> Drawing:
        """Which drawing is under way."""
        path = self.private / "drawing.json"
        return Drawing(**json.loads(path.read_text())) if path.exists() else Drawing()

    def begin_drawing(self, drawing: Drawing) -> None:
        """Draw some images again, from noise. Rank 0 calls this."""
        self.drop_checkpoints()
        write_json(self.private / "drawing.json", asdict(drawing))

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
        raise ValueError(f"{path} is damaged; start anew with --resume never")

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
            raise ValueError(f"checkpoint {path} is damaged ({error}); start anew with --resume never") from error
        if np.isnan(data).any():
            raise ValueError(f"checkpoint {path} lacks latents {box}; start anew with --resume never")
        return data

    def drop_checkpoints(self) -> None:
        """Rank 0 calls this."""
        (self.private / "checkpoint.json").unlink(missing_ok=True)
        shutil.rmtree(self.private / "checkpoint", ignore_errors=True)
        self.opened = {path: array for path, array in self.opened.items() if self.private not in path.parents}

    def tidy(self) -> None:
        """Remove what only an unfinished output needs. Rank 0 calls this."""
        self.drop_checkpoints()
        (self.private / "drawing.json").unlink(missing_ok=True)
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


def file_size(path: Path) -> int:
    """Bytes of a file; 0 where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def create(path: Path, layout: Layout, pixel_size_um: float, provenance: Mapping[str, Any]) -> None:
    """Create an output's groups and arrays, beside its place and then by a rename. Rank 0 calls this."""
    path.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".creating", dir=path.parent))
    building.chmod(0o755)
    group = zarr.open_group(building, mode="w", zarr_format=3)
    if layout.count is None:
        create_image(group, layout, pixel_size_um)
    else:
        create_set(group, layout)
    group.attrs["slidefield"] = {**provenance, "state": "unfinished", "layout": asdict(layout)}
    (building / "slidefield").mkdir()
    try:
        building.rename(path)
    except OSError:
        shutil.rmtree(building)
        raise ValueError(f"{path} was made by another run meanwhile; wait for it, or choose another --out") from None


def layout_of(values: Mapping[str, Any]) -> Layout:
    """A layout from the attributes that ``create`` wrote."""
    label = values.get("label")
    if label is not None:
        entries = tuple((name, tuple(color)) for name, color in label["entries"])
        label = LabelArray(label["name"], label["dtype"], entries)
    return Layout(**{**values, "size": tuple(values["size"]), "label": label})


CODECS = [ZstdCodec(level=1, checksum=True)]


def create_image(group: zarr.Group, layout: Layout, pixel_size_um: float) -> None:
    """The arrays and metadata of one image with its pyramid and labels."""
    for name, level in layout.arrays():
        is_image = not name.startswith("labels/")
        lead = (layout.channels,) if is_image else ()
        group.create_array(
            name,
            shape=(*lead, *layout.sizes()[level]),
            chunks=(*(1 for _ in lead), layout.chunk, layout.chunk),
            shards=(*lead, layout.shard, layout.shard),
            dtype="uint8" if is_image or layout.label is None else layout.label.dtype,
            compressors=CODECS,
            dimension_names=["c", "y", "x"] if is_image else ["y", "x"],
            fill_value=0,
        )
    colors = {1: [("grey", "FFFFFF")]}.get(
        layout.channels, list(zip("RGB", ("FF0000", "00FF00", "0000FF"), strict=True))
    )
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [multiscale(layout, pixel_size_um, "image", method="2x2 mean, round half to even")],
        "omero": {"channels": [channel(name, color) for name, color in colors]},
    }
    if layout.label is None:
        return
    label = layout.label
    group["labels"].attrs["ome"] = {"version": "0.5", "labels": [label.name]}
    facts: dict[str, Any] = {"source": {"image": "../../"}}
    if label.entries:
        facts["colors"] = [
            {"label-value": i, "rgba": [*color, 255 if i else 0]} for i, (_, color) in enumerate(label.entries)
        ]
        facts["properties"] = [{"label-value": i, "name": name} for i, (name, _) in enumerate(label.entries)]
    group[f"labels/{label.name}"].attrs["ome"] = {
        "version": "0.5",
        "multiscales": [multiscale(layout, pixel_size_um, label.name, method="nearest")],
        "image-label": facts,
    }


def create_set(group: zarr.Group, layout: Layout) -> None:
    """The arrays of a set of images: index c y x, and index y x of what they were made from."""
    for name, _ in layout.arrays():
        lead = (layout.channels,) if name == layout.image else ()
        inner = tuple(min(layout.chunk, -(-n // 8) * 8) for n in layout.size)
        outer = tuple(-(-n // m) * m for n, m in zip(layout.size, inner, strict=True))
        group.create_array(
            name,
            shape=(layout.count, *lead, *layout.size),  # type: ignore[arg-type]
            chunks=(1, *lead, *inner),
            shards=(layout.group, *lead, *outer),
            dtype="uint8" if name == layout.image or layout.label is None else layout.label.dtype,
            compressors=CODECS,
            dimension_names=["index", *(["c"] if lead else []), "y", "x"],
            fill_value=0,
        )


def multiscale(layout: Layout, pixel_size_um: float, name: str, *, method: str) -> dict[str, Any]:
    """The OME-Zarr 0.5 metadata of one pyramid."""
    lead = [{"name": "c", "type": "channel"}] if name == "image" else []
    datasets = []
    for level in range(len(layout.sizes())):
        scale = pixel_size_um * 2**level
        # A pixel of a coarser level is centred half a pixel further in.
        shift = pixel_size_um * (2**level - 1) / 2 if method != "nearest" else 0.0
        transforms = [
            {"type": "scale", "scale": [*(1.0 for _ in lead), scale, scale]},
            {"type": "translation", "translation": [*(0.0 for _ in lead), shift, shift]},
        ]
        datasets.append({"path": str(level), "coordinateTransformations": transforms})
    axes = [*lead, *({"name": n, "type": "space", "unit": "micrometer"} for n in "yx")]
    return {"name": name, "axes": axes, "datasets": datasets, "type": method}


def channel(name: str, color: str) -> dict[str, Any]:
    return {"label": name, "color": color, "active": True, "window": {"min": 0, "max": 255, "start": 0, "end": 255}}


def halved(image: np.ndarray) -> np.ndarray:
    """uint8 (c, h, w) -> (c, ceil(h / 2), ceil(w / 2)): means of 2 x 2, rounded half to even; edges repeat.

    >>> halved(np.array([[[0, 1], [1, 0]]], np.uint8)).tolist(), halved(np.array([[[1, 2], [1, 2]]], np.uint8)).tolist()
    ([[[0]]], [[[2]]])
    """
    h, w = image.shape[1:]
    if h % 2 or w % 2:
        image = np.pad(image, ((0, 0), (0, h % 2), (0, w % 2)), mode="edge")
    rows = np.add(image[:, ::2], image[:, 1::2], dtype=np.uint16)
    total = rows[..., ::2] + rows[..., 1::2]
    return ((total + 1 + (total >> 2 & 1)) >> 2).astype(np.uint8)  # a half goes up from an odd quotient alone


def digest(data: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(data).data).hexdigest()


def lock(path: Path) -> IO[str]:
    """Hold an output for as long as the file returned is open. Rank 0 calls this.

    Raises:
        ValueError: another run holds it.
    """
    held = (path / "slidefield" / "lock").open("w")
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"{path} is being written by another run; wait for it, or choose another --out") from None
    except OSError:
        pass  # a file system without locks
    return held


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
            f"{path} is there but is no output of engine.sample; remove it yourself, or choose another --out"
        ) from None


def remove(path: Path) -> None:
    """Remove an output; it first goes out of the way by a rename, so that no half of it stays under its name."""
    going = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".removing", dir=path.parent))
    path.rename(going / "output")
    shutil.rmtree(going)


# ---- inputs -------------------------------------------------------------------------------------


def read_integers(path: Path, option: str, stack: bool = False) -> np.ndarray:
    """A map (h, w) of integers; Zarr and ``.npy`` are read where they are sliced, PNG and TIFF whole.

    Args:
        option: of the command line, for messages.
        stack: (images, h, w) will do too.
    Raises:
        ValueError: unreadable, of other dimensions, or not integers.
    """
    found = read_array(path, option)
    if found.ndim != 2 and not (stack and found.ndim == 3):
        wanted = "two dimensions (height, width)" + (", or a stack of them three (index, height, width)" * stack)
        raise ValueError(f"{option} {path} has shape {found.shape}; a label map has {wanted}")
    if found.dtype.kind not in "uib":
        raise ValueError(f"{option} {path} holds {found.dtype}; a label map holds whole numbers, such as uint8")
    return found


def read_picture(path: Path, option: str, channels: int, size: tuple[int, int]) -> np.ndarray:
    """An image uint8 (h, w, c), or (c, h, w) of Zarr or ``.npy``, as something sliced like (c, h, w).

    Raises:
        ValueError: unreadable, or of another size or kind.
    """
    found = read_array(path, option, color=True)
    if found.ndim == 2 and channels == 1:
        found = found[None]
    elif found.ndim == 3 and found.shape[2] == channels and found.shape[0] != channels:
        found = np.moveaxis(np.asarray(found), 2, 0)
    if found.ndim != 3 or found.shape[0] != channels or found.dtype != np.uint8:
        raise ValueError(
            f"{option} {path} has shape {found.shape} of {found.dtype}; expected an image of {channels} channels, uint8"
        )
    if found.shape[1:] != size:
        raise ValueError(
            f"{option} {path} is {found.shape[1]} x {found.shape[2]} px but the canvas is {size[0]} x {size[1]} px; "
            f"pass --size {found.shape[1]}x{found.shape[2]}"
        )
    return found


def read_array(path: Path, option: str, color: bool = False) -> np.ndarray:
    """An array of any kind: Zarr and ``.npy`` are read where they are sliced, HDF5, PNG and TIFF whole.

    HDF5 is named with the dataset: ``FILE.h5:/dataset``.

    Args:
        color: RGB images will do.
    Raises:
        ValueError: unreadable.
    """
    file, dataset = split_dataset(path)
    if not file.exists():
        raise ValueError(f"{option} {file} is not there")
    try:
        return _read_hdf5(file, dataset) if dataset or file.suffix in HDF5 else _open_array(file, color)
    except Exception as error:  # many readers, many kinds of error: one message
        text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{option} {path} cannot be read as PNG, TIFF, .npy, Zarr or HDF5 ({' '.join(text.split())})"
        ) from None


HDF5 = (".h5", ".hdf5")


def split_dataset(path: Path) -> tuple[Path, str]:
    """``FILE.h5:/dataset`` -> file and dataset; the dataset is empty where none is named."""
    file, colon, dataset = str(path).rpartition(":")
    if colon and Path(file).suffix in HDF5:
        return Path(file), dataset
    return path, ""


def _read_hdf5(file: Path, dataset: str) -> np.ndarray:
    import h5py

    with h5py.File(file, "r") as opened:
        found = opened.get(dataset) if dataset else None
        if not isinstance(found, h5py.Dataset):
            names: list[str] = []
            opened.visititems(lambda name, item: names.append("/" + name) if isinstance(item, h5py.Dataset) else None)
            raise ValueError(f"it has no dataset {dataset or '(none was named)'}; name one as {file}:{names[:5]}")
        return found[()]


def reads_in_boxes(path: Path) -> bool:
    """Whether a label map is read where it is sliced, so that every rank can read its own part."""
    return path.is_dir() or path.suffix == ".npy"


def _open_array(path: Path, color: bool) -> np.ndarray:
    if path.is_dir():
        opened = zarr.open(path, mode="r")
        if isinstance(opened, zarr.Group):
            arrays = dict(opened.arrays())
            if "0" not in arrays:
                raise ValueError("a Zarr group without an array '0'; name the array itself")
            opened = arrays["0"]
        return opened  # type: ignore[return-value]
    if path.suffix == ".npy":
        return np.load(path, mmap_mode="r", allow_pickle=False)
    if path.suffix.lower() in (".tif", ".tiff"):
        import tifffile

        return tifffile.imread(path)
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # whole slides are what this is for
    with Image.open(path) as image:
        if color and image.mode not in ("L", "I", "I;16", "1"):
            return np.asarray(image.convert("RGB"))
        if image.mode == "P":
            return np.asarray(image)
        if image.mode not in ("L", "I", "I;16", "1", "F"):
            raise ValueError(f"an image of mode {image.mode}; a label map has one channel of whole numbers")
        return np.asarray(image)


def bands(height: int, side: int) -> Iterator[tuple[int, int]]:
    for y in range(0, height, side):
        yield y, min(y + side, height)
