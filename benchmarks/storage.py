"""``python -m benchmarks.storage``: the store's bandwidth a rank, against plain files of the same bytes.

Through ``engine.storage``, every rank its own: whole shards of an image written and read, shards of the pyramid made,
shards of a checkpoint written and read. Plain is as many uncompressed bytes in one file a shard; for the pyramid four
files read and one written. Arithmetic is what the store has to do besides, in memory and in one thread: zstd, sha256,
means. The three take turns, all ranks at the same, after a turn that does not count; "store / plain" is the median
over turns and ranks of one turn's ratio.

To the page cache, neither plain files nor readers wait for the disk, and what is read was written just before. (A
virtual machine may have to ask its host for each page that it never used: then plain writes are ten times slower than
memory.) To the disk, both call fsync after every file, and all files are dropped from the cache (``posix_fadvise``)
before every turn.

The store itself has the disk keep every shard that it counts. "sync ms a shard" is what that costs: the median
difference to "unsynced", which does the same without.

"bound by" is the slower of arithmetic and plain files. "explained" is what the two take one after the other, over the
store's seconds: what is missing to 1 is zarr's own; it is more than 1 where zarr's two threads overlap them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numcodecs.zstd import Zstd

from benchmarks.report import report
from engine.distributed.launch import run_main
from engine.distributed.ranks import Ranks
from engine.planning.geometry import Box
from engine.storage.create import create
from engine.storage.files import digest, halved
from engine.storage.image_layout import ImageLayout
from engine.storage.ledger import FinishedShard
from engine.storage.output import Output
from engine.storage.zarr_setup import ZARR_VERSION

CHANNELS, FACTOR = 8, 8  # of the embedded model's latents
ZSTD = Zstd(level=1, checksum=True)
Work = Callable[[Box], list[Path]]  # what is done to a shard -> the files that it wrote


@dataclass(frozen=True)
class Task:
    """Something that is done to shards.

    Args:
        nbytes: read and written for one shard, uncompressed.
        turns: the shards of each turn.
        ways: of doing it: store, plain, and arithmetic where there is any.
    """

    what: str
    nbytes: int
    turns: list[list[Box]]
    ways: dict[str, Work]


def tissue(side: int, seed: int) -> np.ndarray:
    """uint8 (3, side, side) that compresses like tissue: a smooth field and noise."""
    y, x = np.ogrid[:side, :side]
    smooth = np.stack([190 + 20 * np.sin(x / 80 + c) * np.cos(y / 60 - c) for c in range(3)])
    noise = np.random.default_rng(seed).normal(0, 6, smooth.shape)
    return np.clip(smooth + noise, 0, 255).astype(np.uint8)


class Shards:
    """One rank's shards, and the ways to write and to read them; making it is collective, the rest local.

    Args:
        folder: empty, the same on all ranks; the store's output and the plain files are made there.
        shard: px; those of latents are ``FACTOR`` times smaller.
        turns: of every task; in each one shard of the pyramid, and the four that it is made from.
    """

    def __init__(self, ranks: Ranks, folder: Path, shard: int, turns: int) -> None:
        layout = ImageLayout((2 * shard * turns, 2 * shard * ranks.size), 3, shard, shard // 4)
        ranks.on_root(lambda: create(folder / "o.zarr", layout, 0.5, {"identity": {}, "levels": 1}))
        ranks.on_root((folder / "plain").mkdir)
        self.plain, self.output = folder / "plain", ranks.agree(lambda: Output(folder / "o.zarr"))
        self.shard, self.side, self.chunk = shard, shard // FACTOR, layout.chunk
        shape = (CHANNELS, *(n // FACTOR for n in layout.size))
        ranks.on_root(lambda: self.output.checkpoints.make_slots(shape, (self.side, self.side), 1))  # type: ignore[arg-type]
        self.slot = 0
        self.image = tissue(shard, ranks.rank)
        random = np.random.default_rng(ranks.rank)
        self.latents = random.standard_normal((CHANNELS, self.side, self.side)).astype(np.float32)
        self.coded = [ZSTD.encode(chunk) for chunk in self.chunks()]
        self.coarse = list(layout.boxes(1))[ranks.rank :: ranks.size]

    def tasks(self) -> list[Task]:
        """In this order: what one reads, another has written."""
        image, latents = self.image.nbytes, self.latents.nbytes
        fine, coarse = [self.below(box) for box in self.coarse], [[box] for box in self.coarse]
        return [
            Task(
                "write",
                image,
                fine,
                {
                    "store": self.write,
                    "unsynced": self.write_unsynced,
                    "plain": self.write_plain,
                    "arithmetic": self.encode,
                },
            ),
            Task("read", image, fine, {"store": self.read, "plain": self.read_plain, "arithmetic": self.decode}),
            Task(
                "pyramid", 5 * image, coarse, {"store": self.halve, "plain": self.halve_plain, "arithmetic": self.mean}
            ),
            Task(
                "checkpoint",
                latents,
                fine,
                {"store": self.save, "unsynced": self.save_unsynced, "plain": self.save_plain},
            ),
            Task("resume", latents, fine, {"store": self.resume, "plain": self.resume_plain}),
        ]

    def below(self, box: Box) -> list[Box]:
        """The four shards that a shard of the pyramid is made from."""
        corners = [(2 * box.y0 + y, 2 * box.x0 + x) for y in (0, self.shard) for x in (0, self.shard)]
        return [Box(y, x, y + self.shard, x + self.shard) for y, x in corners]

    def latent(self, box: Box) -> Box:
        return Box(*(n // FACTOR for n in (box.y0, box.x0, box.y1, box.x1)))

    def chunks(self) -> list[np.ndarray]:
        starts = range(0, self.shard, self.chunk)
        boxes = [(slice(y, y + self.chunk), slice(x, x + self.chunk)) for y in starts for x in starts]
        return [np.ascontiguousarray(self.image[:, *box]) for box in boxes]

    def check(self) -> None:
        """What the tasks wrote is what was meant."""
        box, coarse = self.below(self.coarse[-1])[0], self.coarse[-1]
        made = self.output.read("1", coarse)[:, : self.shard // 2, : self.shard // 2]
        latents = self.output.checkpoints.read(self.slot, "x", self.latent(box))
        pairs = ((self.output.read("0", box), self.image), (made, halved(self.image)), (latents, self.latents))
        if not all(np.array_equal(a, b) for a, b in pairs):
            raise ValueError("the store holds something else than was written")

    # -- through the store --

    def write(self, box: Box) -> list[Path]:
        self.output.write("0", box, self.image)
        return [self.output.shard_file("0", box)]

    def write_unsynced(self, box: Box) -> list[Path]:
        self.output.array("0")[self.output.layout.index(box)] = self.image
        self.output.ledger.append(FinishedShard("0", box, digest(self.image)))
        return [self.output.shard_file("0", box)]

    def read(self, box: Box) -> list[Path]:
        self.output.read("0", box)
        return []

    def halve(self, box: Box) -> list[Path]:
        self.output.halve("0", 1, box)
        return [self.output.shard_file("1", box)]

    def save(self, box: Box) -> list[Path]:
        self.output.checkpoints.write(self.slot, "x", self.latent(box), self.latents)
        place = (str(box.y0 // self.shard), str(box.x0 // self.shard))
        return [self.output.private.joinpath("checkpoint", str(self.slot), "x", "c", "0", *place)]

    def save_unsynced(self, box: Box) -> list[Path]:
        part = self.latent(box)
        array = self.output.checkpoints.slot_array(self.slot, "x")
        array[:, part.y0 : part.y1, part.x0 : part.x1] = self.latents
        return []

    def resume(self, box: Box) -> list[Path]:
        self.output.checkpoints.read(self.slot, "x", self.latent(box))
        return []

    # -- plain files --

    def file(self, kind: str, box: Box) -> Path:
        return self.plain / f"{kind}-{box.y0}-{box.x0}"

    def put(self, kind: str, box: Box, data: np.ndarray) -> list[Path]:
        with self.file(kind, box).open("wb", buffering=0) as stream:
            stream.write(data.data)
        return [self.file(kind, box)]

    def write_plain(self, box: Box) -> list[Path]:
        return self.put("image", box, self.image)

    def read_plain(self, box: Box) -> list[Path]:
        self.file("image", box).read_bytes()
        return []

    def halve_plain(self, box: Box) -> list[Path]:
        for part in self.below(box):
            self.read_plain(part)
        return self.put("half", box, self.image)

    def save_plain(self, box: Box) -> list[Path]:
        return self.put("latents", box, self.latents)

    def resume_plain(self, box: Box) -> list[Path]:
        self.file("latents", box).read_bytes()
        return []

    # -- in memory --

    def encode(self, box: Box) -> list[Path]:
        digest(self.image)
        for chunk in self.chunks():
            ZSTD.encode(chunk)
        return []

    def decode(self, box: Box) -> list[Path]:
        for coded in self.coded:
            ZSTD.decode(coded)
        return []

    def mean(self, box: Box) -> list[Path]:
        for _ in range(4):
            self.decode(box)
            halved(self.image)
        return self.encode(box)


def sync(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def drop(folder: Path) -> None:
    """Out of the page cache, what the disk has."""
    for path in (p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def race(ranks: Ranks, folder: Path, task: Task, disk: bool) -> dict[str, np.ndarray]:
    """Seconds of every way, (ranks, turns), without the first turn; the order changes. Collective."""
    seconds: dict[str, list[float]] = {way: [] for way in task.ways}
    for turn, boxes in enumerate(task.turns):
        for way in list(task.ways)[:: 1 if turn % 2 else -1]:
            if disk:
                ranks.on_root(lambda: drop(folder))
            ranks.barrier()
            begun = time.perf_counter()
            for box in boxes:
                for path in task.ways[way](box):
                    if disk:
                        sync(path)
            seconds[way].append(time.perf_counter() - begun)
    return {way: np.array(ranks.allgather(values))[:, 1:] for way, values in seconds.items()}


def row_of(task: Task, seconds: dict[str, np.ndarray], disk: bool) -> dict[str, Any]:
    mib = task.nbytes * len(task.turns[0]) / 2**20

    def rate(way: str) -> float | None:
        return mib / float(np.median(seconds[way])) if way in seconds else None

    store, plain, arithmetic = seconds["store"], seconds["plain"], seconds.get("arithmetic", np.zeros(1))
    sync = store - seconds["unsynced"] if "unsynced" in seconds else None
    return {
        "what": task.what,
        "to": "disk" if disk else "page cache",
        "ranks": len(store),
        "MiB": mib * store.shape[1],
        "MiB/s per rank": rate("store"),
        "plain MiB/s per rank": rate("plain"),
        "store / plain": float(np.median(plain / store)),
        "arithmetic MiB/s": rate("arithmetic"),
        "bound by": "arithmetic" if np.median(arithmetic) > np.median(plain) else "files",
        "explained": float(np.median((plain + arithmetic) / store)),
        "sync ms a shard": None if sync is None else float(np.median(sync)) / len(task.turns[0]) * 1e3,
    }


def work(ranks: Ranks, args: argparse.Namespace) -> int:
    """All tasks on the ranks that were started together. Collective."""
    shards = Shards(ranks, Path(args.folder), args.shard, args.turns + 1)
    rows = [row_of(task, race(ranks, Path(args.folder), task, args.disk), args.disk) for task in shards.tasks()]
    ranks.agree(shards.check)
    if ranks.rank == 0:
        sizes = (shards.image.nbytes, sum(map(len, shards.coded)))
        Path(args.json).write_text(json.dumps({"rows": rows, "compressed": sizes[0] / sizes[1]}))
    ranks.barrier()
    return 0


def start(ranks: int, args: argparse.Namespace, disk: bool) -> dict[str, Any]:
    """The same on so many ranks, in a folder of its own."""
    beside = Path(sys.executable).with_name("mpiexec")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        own = ["--worker", "--folder", folder, "--json", f"{folder}/rows.json", *(["--disk"] if disk else [])]
        own += ["--shard", str(args.shard), "--turns", str(args.turns)]
        launcher = [str(beside) if beside.exists() else "mpiexec", "-n", str(ranks)]
        subprocess.run([*launcher, sys.executable, "-m", "benchmarks.storage", *own], check=True)
        return json.loads(Path(f"{folder}/rows.json").read_text())


def main(arguments: Sequence[str] | None = None) -> int:
    top = argparse.ArgumentParser(prog="python -m benchmarks.storage", description=__doc__)
    top.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    top.add_argument("--shard", type=int, default=2048, help="px")
    top.add_argument("--turns", type=int, default=4, help="that count; a rank writes four shards in each")
    top.add_argument("--folder", help="on the file system that is measured (default: the temporary files')")
    top.add_argument("--disk", action="store_true", help="to the disk alone (default: to the page cache, then that)")
    top.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    top.add_argument("--json", help="write the report here")
    args = top.parse_args(arguments)
    if args.worker:
        return run_main(lambda ranks: work(ranks, args))
    runs = [start(n, args, disk) for disk in ([True] if args.disk else [False, True]) for n in args.ranks]
    rows = [row for part in runs for row in part["rows"]]
    facts = {"zarr": ZARR_VERSION, "shard": args.shard, "turns": args.turns, "compressed": runs[0]["compressed"]}
    report("storage", rows, args.json, **facts)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
