"""The only importer of zarr, and of numcodecs and h5py should they be needed: output, ledger, checkpoints, inputs.

Layout of an output::

    OUT/zarr.json            group: OME-Zarr 0.5 multiscales; the job and its provenance under "slidefield"
    OUT/0, 1, ...            the image, c y x, and its pyramid
    OUT/labels/tissue/0 ...  the label map that it was made from, y x, and its pyramid
    OUT/slidefield/          ledger.jsonl, checkpoint.json and the slots of latents; no zarr member
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from engine.geometry import Window, grid

# A finished shard is a file, whatever is in it: an absent one is damage, not emptiness.
zarr.config.set({"threading.max_workers": 2, "async.concurrency": 4, "array.write_empty_chunks": True})
LABELS = "labels/tissue"
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
class Layout:
    """The shapes of an output's arrays.

    Args:
        size: of the image, px.
        channels: of the image.
        shard, chunk: px.
    """

    size: tuple[int, int]
    channels: int
    shard: int
    chunk: int

    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of each pyramid level, down to one shard."""
        found = [self.size]
        while max(found[-1]) > self.shard:
            found.append((-(-found[-1][0] // 2), -(-found[-1][1] // 2)))
        return found

    def files(self) -> int:
        """Files of the finished output, metadata included."""
        shards = sum(len(grid(size, self.shard)) for size in self.sizes())
        return 2 * shards + 2 * len(self.sizes()) + 3 + 3  # two multiscales; three groups; ledger, lock, checkpoint


class Output:
    """One output group; opened by every rank, created by rank 0 alone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.private = path / "slidefield"
        self.held: IO[str] | None = None  # the lock, on rank 0 of a run
        try:
            self.group = zarr.open_group(path, mode="r+")
            self.provenance: dict[str, Any] = dict(self.group.attrs["slidefield"])  # type: ignore[arg-type]
            layout = self.provenance["layout"]
            self.layout = Layout(tuple(layout["size"]), layout["channels"], layout["shard"], layout["chunk"])
            self.array("0")
        except (KeyError, TypeError, ValueError, FileNotFoundError, AssertionError) as error:
            raise ValueError(f"{path} is damaged ({error}); sample it anew elsewhere, or remove it yourself") from None

    @property
    def finished(self) -> bool:
        return self.provenance["state"] == "finished"

    # -- image and labels --

    def array(self, name: str) -> zarr.Array:
        found = self.group[name]
        assert isinstance(found, zarr.Array)
        return found

    def write(self, name: str, box: Window, data: np.ndarray) -> dict[str, Any]:
        """Write one whole shard and return its line for the ledger. Its one writer calls this."""
        self.array(name)[(..., slice(box.y0, box.y1), slice(box.x0, box.x1))] = data
        return ledger_line(name, box, digest(data))

    def read(self, name: str, box: Window) -> np.ndarray:
        return np.asarray(self.array(name)[(..., slice(box.y0, box.y1), slice(box.x0, box.x1))])

    def boxes(self, level: int) -> list[Window]:
        """The shards of a pyramid level, cut at the image's edge."""
        return grid(self.layout.sizes()[level], self.layout.shard)

    def halve(self, name: str, level: int, box: Window) -> dict[str, Any]:
        """Make one shard of pyramid level ``level`` from the level below it."""
        below = self.layout.sizes()[level - 1]
        source = self.read(f"{name}{level - 1}", box.scaled(2) & Window(0, 0, *below))
        data = source[..., ::2, ::2] if name else halved(source)
        return self.write(f"{name}{level}", box, data)

    def shard_file(self, name: str, box: Window) -> Path:
        """Where a shard lies on disk."""
        lead = [] if name.startswith(LABELS) else ["0"]
        side = self.layout.shard
        return self.path.joinpath(name, "c", *lead, str(box.y0 // side), str(box.x0 // side))

    # -- ledger --

    def record(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Append to the ledger of finished shards. Rank 0 calls this, after the shards are on disk."""
        with (self.private / "ledger.jsonl").open("a") as stream:
            stream.writelines(json.dumps(line) + "\n" for line in lines)
            stream.flush()
            os.fsync(stream.fileno())

    def ledger(self) -> dict[tuple[str, Window], str]:
        """(array, box) -> sha256 of every shard that was finished; a torn last line counts for nothing."""
        found = {}
        try:
            content = (self.private / "ledger.jsonl").read_text(errors="replace")
        except FileNotFoundError:
            return {}
        for line in content.splitlines():
            try:
                entry = json.loads(line)
                found[entry["array"], Window(*entry["box"])] = entry["sha256"]
            except (ValueError, KeyError, TypeError):
                continue
        return found

    def mend_ledger(self) -> None:
        """Drop a torn last line, and lines of shards that are not there (any more). Rank 0 calls this."""
        lines = [
            ledger_line(array, box, sha)
            for (array, box), sha in self.ledger().items()
            if self.shard_file(array, box).exists()
        ]
        temporary = self.private / "ledger.jsonl.partial"
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))
        temporary.rename(self.private / "ledger.jsonl")

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

    def begin_checkpoint(self, shape: tuple[int, int, int], side: int) -> int:
        """Choose and make the slot that is not committed; returns its number. Rank 0 calls this."""
        mark = self.checkpoint()
        slot = 1 - mark["slot"] if mark else 0
        for name in ("x", "previous"):
            path = self.private / "checkpoint" / str(slot) / name
            if not (path / "zarr.json").exists():  # zarr makes the folder first: a kill may have come between
                zarr.create_array(
                    str(path),
                    shape=shape,
                    chunks=(shape[0], side, side),
                    dtype="float32",
                    compressors=[Crc32cCodec()],
                    filters=None,
                    fill_value=float("nan"),
                    overwrite=True,
                )
        return slot

    def write_checkpoint(self, slot: int, name: str, box: Window, data: np.ndarray) -> None:
        """Write one shard of latents to a slot. Its owner calls this."""
        array = zarr.open_array(self.private / "checkpoint" / str(slot) / name, mode="r+")
        array[:, box.y0 : box.y1, box.x0 : box.x1] = data

    def commit_checkpoint(self, slot: int, level: int, history: bool) -> None:
        """All shards of the slot are on disk: from now on it is the one to resume from. Rank 0 calls this."""
        write_json(self.private / "checkpoint.json", {"slot": slot, "level": level, "history": history})

    def read_checkpoint(self, slot: int, name: str, box: Window) -> np.ndarray:
        """float32 (C, h, w).

        Raises:
            ValueError: the shard is missing or damaged.
        """
        path = self.private / "checkpoint" / str(slot) / name
        try:
            data = np.asarray(zarr.open_array(path, mode="r")[:, box.y0 : box.y1, box.x0 : box.x1])
        except Exception as error:  # zarr raises what its codecs and stores raise
            raise ValueError(f"checkpoint {path} is damaged ({error}); start anew with --resume never") from error
        if np.isnan(data).any():
            raise ValueError(f"checkpoint {path} lacks latents {box}; start anew with --resume never")
        return data

    def drop_checkpoints(self) -> None:
        """Rank 0 calls this."""
        (self.private / "checkpoint.json").unlink(missing_ok=True)
        shutil.rmtree(self.private / "checkpoint", ignore_errors=True)

    # -- provenance --

    def annotate(self, **values: Any) -> None:
        """Set fields of the provenance. Rank 0 calls this."""
        self.provenance |= values
        self.group.attrs["slidefield"] = self.provenance

    def sweep(self) -> None:
        """Remove what a killed run left half written. Rank 0 calls this."""
        for leftover in self.path.rglob("*.partial"):
            leftover.unlink(missing_ok=True)


def create(
    path: Path,
    layout: Layout,
    pixel_size_um: float,
    labels: Sequence[tuple[str, Sequence[int]]],
    provenance: Mapping[str, Any],
) -> None:
    """Create an output's groups and arrays, beside its place and then by a rename. Rank 0 calls this."""
    path.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".creating", dir=path.parent))
    building.chmod(0o755)
    group = zarr.open_group(building, mode="w", zarr_format=3)
    tissue = group.create_group("labels").create_group("tissue")
    for level, size in enumerate(layout.sizes()):
        for parent, lead in ((group, (layout.channels,)), (tissue, ())):
            parent.create_array(
                str(level),
                shape=(*lead, *size),
                chunks=(*(1 for _ in lead), layout.chunk, layout.chunk),
                shards=(*lead, layout.shard, layout.shard),
                dtype=np.uint8,  # a model has 64 labels at the most
                compressors=[ZstdCodec(level=1, checksum=True)],
                dimension_names=["c", "y", "x"][3 - len(size) - len(lead) :],
                fill_value=0,
            )
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [multiscale(layout, pixel_size_um, with_channel=True, method="2x2 mean, round half to even")],
        "omero": {
            "channels": [
                channel(name, color) for name, color in zip("RGB", ("FF0000", "00FF00", "0000FF"), strict=True)
            ]
        },
    }
    group["labels"].attrs["ome"] = {"version": "0.5", "labels": ["tissue"]}
    tissue.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [multiscale(layout, pixel_size_um, with_channel=False, method="nearest")],
        "image-label": {
            "colors": [{"label-value": i, "rgba": [*color, 255 if i else 0]} for i, (_, color) in enumerate(labels)],
            "properties": [{"label-value": i, "name": name} for i, (name, _) in enumerate(labels)],
            "source": {"image": "../../"},
        },
    }
    group.attrs["slidefield"] = {
        **provenance,
        "state": "unfinished",
        "layout": {
            "size": list(layout.size),
            "channels": layout.channels,
            "shard": layout.shard,
            "chunk": layout.chunk,
        },
    }
    (building / "slidefield").mkdir()
    try:
        building.rename(path)
    except OSError:
        shutil.rmtree(building)
        raise ValueError(f"{path} was made by another run meanwhile; wait for it, or choose another --out") from None


def multiscale(layout: Layout, pixel_size_um: float, *, with_channel: bool, method: str) -> dict[str, Any]:
    """The OME-Zarr 0.5 metadata of one pyramid."""
    lead = [{"name": "c", "type": "channel"}] if with_channel else []
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
    return {"name": "image" if with_channel else "tissue", "axes": axes, "datasets": datasets, "type": method}


def channel(name: str, color: str) -> dict[str, Any]:
    return {"label": name, "color": color, "active": True, "window": {"min": 0, "max": 255, "start": 0, "end": 255}}


def halved(image: np.ndarray) -> np.ndarray:
    """uint8 (c, h, w) -> (c, ceil(h / 2), ceil(w / 2)): means of 2 x 2, rounded half to even; edges repeat.

    >>> halved(np.array([[[0, 1], [1, 0]]], np.uint8)).tolist(), halved(np.array([[[1, 2], [1, 2]]], np.uint8)).tolist()
    ([[[0]]], [[[2]]])
    """
    h, w = image.shape[1:]
    padded = np.pad(image, ((0, 0), (0, h % 2), (0, w % 2)), mode="edge").astype(np.uint16)
    total = padded[:, ::2, ::2] + padded[:, 1::2, ::2] + padded[:, ::2, 1::2] + padded[:, 1::2, 1::2]
    quotient, rest = total >> 2, total & 3
    return (quotient + ((rest > 2) | ((rest == 2) & (quotient & 1 == 1)))).astype(np.uint8)


def ledger_line(array: str, box: Window, sha256: str) -> dict[str, Any]:
    return {"array": array, "box": [box.y0, box.x0, box.y1, box.x1], "sha256": sha256}


def digest(data: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(data).tobytes()).hexdigest()


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


def read_label_map(path: Path) -> np.ndarray:
    """A label map (h, w) of integers; Zarr and ``.npy`` are read where they are sliced, PNG and TIFF whole.

    Raises:
        ValueError: unreadable, not two-dimensional, or not integers.
    """
    if not path.exists():
        raise ValueError(f"--labels {path} is not there")
    try:
        found = _open_labels(path)
    except Exception as error:  # many readers, many kinds of error: one message
        text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(
            f"--labels {path} cannot be read as PNG, TIFF, .npy or Zarr ({' '.join(text.split())})"
        ) from None
    if found.ndim != 2:
        raise ValueError(f"--labels {path} has shape {found.shape}; a label map has two dimensions (height, width)")
    if found.dtype.kind not in "uib":
        raise ValueError(f"--labels {path} holds {found.dtype}; a label map holds whole numbers, such as uint8")
    return found


def reads_in_boxes(path: Path) -> bool:
    """Whether a label map is read where it is sliced, so that every rank can read its own part."""
    return path.is_dir() or path.suffix == ".npy"


def _open_labels(path: Path) -> np.ndarray:
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
        if image.mode == "P":
            return np.asarray(image)
        if image.mode not in ("L", "I", "I;16", "1", "F"):
            raise ValueError(f"an image of mode {image.mode}; a label map has one channel of whole numbers")
        return np.asarray(image)


def checked_labels(labels: np.ndarray, known: int, name: str, names: Sequence[str]) -> None:
    """Refuse values that the model does not have, naming the first and where it lies."""
    for y in range(0, labels.shape[0], 4096):
        band = labels[y : y + 4096]
        wrong = (band < 0) | (band >= known)
        if wrong.any():
            row, column = (int(v[0]) for v in np.nonzero(wrong))
            listed = ", ".join(f"{i} {n}" for i, n in enumerate(names))
            raise ValueError(
                f"{name} has value {int(band[row, column])} at row {y + row}, column {column}; the model knows {listed}"
            )


def bands(height: int, side: int) -> Iterator[tuple[int, int]]:
    for y in range(0, height, side):
        yield y, min(y + side, height)
