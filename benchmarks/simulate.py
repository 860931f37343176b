"""``python -m benchmarks.simulate``: time and efficiency on any number of ranks, from the plan and a machine.

The machine is a YAML file (``benchmarks/machines/``) of seconds and bytes. No window is enumerated: what a rank
evaluates, reads and sends away follows from its place in the run of shards, and is worked out for a sample of the
ranks, the busiest of which sets the pace. A level takes

    plan + reads + micro-batches x (evaluation + host) + writes + fuse + agreement

of which a machine may hide the exchange behind evaluations. Where evaluations vary, the levels end with the slowest
rank: the expected largest of n sums over all levels, for in between nobody waits for all others. A job is its levels,
the checkpoints on the way, the decoder's windows and the files; its efficiency is what the networks alone would take on
all ranks, over that.

``--check REPORT.json`` runs the same arithmetic over what ``benchmarks.scaling`` measured, prints measured / predicted,
and fails beyond ``--within``.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import plot_efficiency, report
from engine.planning.ownership import Ownership

MACHINES = Path(__file__).with_name("machines")
BYTES = 4  # of a float32
CHECKPOINTED = 2  # arrays: the canvas, and the history that solvers of second order keep


@dataclass(frozen=True)
class Machine:
    """What a machine takes: seconds, bytes a second.

    Args:
        batch: windows of a micro-batch.
        evaluation, spread: of a micro-batch, and its standard deviation as a share of it.
        evaluations_per_window: 1 without guidance; labels + 1 with it.
        decode: of one window of the decoder.
        ranks_per_node, cores: where a node has more ranks than cores, they share them in what follows.
        host: of the CPU, for one micro-batch: reading, stacking, combining.
        plan: of the CPU, for one window that is planned.
        fuse: for one latent of the canvas: fusing, noise, step.
        agreement: of the CPU, for each step of a level's collectives, of which there are log2(ranks).
        latency: of a message.
        bandwidth: in and out of one rank.
        hidden: share of the exchange that goes on behind evaluations, as far as these last.
        files, files_rank: of the file system, all ranks together, and of one rank.
        compressed: bytes in a file over bytes of an image; between: seconds between checkpoints.
    """

    batch: int = 8
    evaluation: float = 0.2
    spread: float = 0.0
    evaluations_per_window: float = 1.0
    decode: float = 0.05
    ranks_per_node: int = 1
    cores: int = 1
    host: float = 0.0
    plan: float = 0.0
    fuse: float = 0.0
    agreement: float = 0.0
    latency: float = 0.0
    bandwidth: float = math.inf
    hidden: float = 0.0
    files: float = math.inf
    files_rank: float = math.inf
    compressed: float = 0.6
    between: float = 300.0

    def crowd(self, ranks: int) -> float:
        """Ranks that share a core."""
        return max(min(ranks, self.ranks_per_node) / self.cores, 1.0)


def read_machine(path: Path) -> Machine:
    """A machine from its file.

    Raises:
        ValueError: a key that no machine has.
    """
    import yaml

    given = yaml.safe_load(path.read_text())
    known = {field.name for field in fields(Machine)}
    if unknown := sorted(set(given) - known):
        raise ValueError(f"{path}: unknown key {unknown[0]!r}; known: {', '.join(sorted(known))}")
    return Machine(**given)


# ---- the plan's integers, for one rank at a time ---------------------------------------------------


@dataclass(frozen=True)
class Canvas:
    """A canvas in latents, as the engine cuts it: windows of ``patch``, shards of ``shard`` a side."""

    shape: tuple[int, int]
    patch: int = 32
    shard: int = 256
    channels: int = 8
    factor: int = 8

    def ownership(self, ranks: int) -> Ownership:
        return Ownership(self.shape, (self.shard, self.shard), ranks)

    @property
    def shards(self) -> tuple[int, int]:
        return self.ownership(1).shards.counts

    def area(self, shards: np.ndarray) -> int:
        """Latents of some shards, those at the edge being narrower."""
        corners = np.stack(np.divmod(shards, self.shards[1]), 1) * self.shard
        return int(np.minimum(self.shape - corners, self.shard).prod(1).sum())

    def decodes(self, overlap: int = 16) -> int:
        """Evaluations of the decoder: a window is twice the side of the network's, and decoded in every round that
        writes a shard it touches, but for those that the shard before has left.
        """
        side = 2 * self.patch
        rows = self.shards[0] * (self.shard + side - overlap) / (side - overlap)
        columns = max(self.shape[1] - overlap, 1) / (side - overlap)
        return math.ceil(rows) * math.ceil(columns)


@dataclass(frozen=True)
class Line:
    """One axis of a shifted cover: n cells, the intervals that are used; windows start where they fit."""

    length: int
    patch: int
    offset: int

    @cached_property
    def cores(self) -> np.ndarray:
        """int64 (n, 2)."""
        edges = np.unique(
            [0, *range(self.offset if self.length > self.patch else 0, self.length, self.patch), self.length]
        )
        return np.stack([edges[:-1], edges[1:]], 1)

    def runs(self, side: int) -> np.ndarray:
        """int64 (shards + 1,): cells whose middle lies in shard s are those from runs[s] up to runs[s + 1]."""
        return np.searchsorted(self.cores.sum(1) // 2 // side, np.arange(-(-self.length // side) + 1))

    def read(self, first: np.ndarray, last: np.ndarray) -> np.ndarray:
        """int64 (n, 2): what the windows of cells ``first`` up to ``last`` read."""
        starts = np.minimum(self.cores[:, 0], max(self.length - self.patch, 0))
        return np.stack([starts[first], np.minimum(starts[last - 1] + self.patch, self.length)], 1)

    def used(self, first: np.ndarray, last: np.ndarray) -> np.ndarray:
        """int64 (n, 2): what their estimates are used in."""
        return np.stack([self.cores[first, 0], self.cores[last - 1, 1]], 1)


@dataclass(frozen=True)
class Level:
    """The windows of one level, in the order in which they are dealt: shard by shard, row by row within one."""

    canvas: Canvas
    offsets: tuple[int, int]

    @cached_property
    def lines(self) -> tuple[Line, Line]:
        y, x = (Line(n, self.canvas.patch, o) for n, o in zip(self.canvas.shape, self.offsets, strict=True))
        return y, x

    @cached_property
    def count(self) -> int:
        return math.prod(len(line.cores) for line in self.lines)

    @cached_property
    def runs(self) -> tuple[np.ndarray, np.ndarray]:
        y, x = (line.runs(self.canvas.shard) for line in self.lines)
        return y, x

    def partition_evenly(self, rank: int, ranks: int) -> range:
        """The windows of a rank, by their place in the order: those whose middle lies in its share."""
        first, last = (-((ranks - 2 * r * self.count) // (2 * ranks)) for r in (rank, rank + 1))
        return range(first, last)

    def place(self, window: int) -> tuple[int, int, int]:
        """Row and column of the shard that a window belongs to, and its place among the shard's."""
        rows, columns = self.runs
        i = int(np.searchsorted(rows, window // rows_of(columns), side="right")) - 1
        window -= int(rows[i]) * rows_of(columns)
        height = int(rows[i + 1] - rows[i])
        j = int(np.searchsorted(columns * height, window, side="right")) - 1
        return i, j, window - int(columns[j]) * height

    def blocks(self, windows: range) -> np.ndarray:
        """int64 (n, 4): disjoint boxes of cells (y0, x0, y1, x1) that are a run of windows; within a shard each."""
        if not windows:
            return np.zeros((0, 4), np.int64)
        (i0, j0, begin), (i1, j1, end) = self.place(windows.start), self.place(windows.stop - 1)
        across = self.canvas.shards[1]
        first, last = i0 * across + j0, i1 * across + j1
        rows, columns = self.runs
        i, j = np.divmod(np.arange(first, last + 1), across)
        whole = np.stack([rows[i], columns[j], rows[i + 1], columns[j + 1]], 1)
        if first == last:
            parts = [*part_of(whole[0], begin, end + 1)]
        else:
            parts = [*part_of(whole[0], begin, None), *whole[1:-1], *part_of(whole[-1], 0, end + 1)]
        blocks = np.array(parts).reshape(-1, 4)
        return blocks[((blocks[:, 2:] - blocks[:, :2]) > 0).all(1)]


def rows_of(runs: np.ndarray) -> int:
    return int(runs[-1])


def part_of(box: np.ndarray, begin: int, end: int | None) -> list[np.ndarray]:
    """At most three boxes: the cells of a box from place ``begin`` up to ``end``, row by row."""
    y0, x0, y1, x1 = box.tolist()
    width = x1 - x0
    end = (y1 - y0) * width if end is None else end
    if end <= begin:
        return []
    (top, left), (bottom, right) = divmod(begin, width), divmod(end, width)
    if top == bottom:
        return [np.array([y0 + top, x0 + left, y0 + top + 1, x0 + right])]
    full = top + (left > 0)
    pieces = [np.array([y0 + full, x0, y0 + bottom, x1])]
    if left:
        pieces.insert(0, np.array([y0 + top, x0 + left, y0 + top + 1, x1]))
    if right:
        pieces.append(np.array([y0 + bottom, x0, y0 + bottom + 1, x0 + right]))
    return pieces


@dataclass(frozen=True)
class Share:
    """What one rank does in a level: windows, latents that it reads from others, sends to and takes from them, owns."""

    windows: int
    reads: int
    read_from: int
    sends: int
    sent_to: int
    takes: int
    owned: int


def share_of(level: Level, rank: int, ranks: int) -> Share:
    canvas = level.canvas
    windows, owned = level.partition_evenly(rank, ranks), np.arange(*bounds(canvas.ownership(ranks).owned(rank)))
    blocks = level.blocks(windows)
    (y, x), (y0, x0, y1, x1) = level.lines, blocks.T
    reads, read_from = travelling(canvas, y.read(y0, y1), x.read(x0, x1), rank, ranks, once=True)
    sends, sent_to = travelling(canvas, y.used(y0, y1), x.used(x0, x1), rank, ranks, once=False)
    used = int((np.diff(y.used(y0, y1)) * np.diff(x.used(x0, x1))).sum())
    area = canvas.area(owned)
    return Share(len(windows), reads, read_from, sends, sent_to, area - (used - sends), area)


def bounds(run: range) -> tuple[int, int]:
    return run.start, run.stop


def travelling(canvas: Canvas, y: np.ndarray, x: np.ndarray, rank: int, ranks: int, once: bool) -> tuple[int, int]:
    """Latents of boxes that lie in other ranks' shards, and of how many ranks.

    Args:
        y, x: the boxes' intervals along each axis.
        once: what lies in a shard travels as one box around all of its pieces.
    """
    side, boxes = canvas.shard, np.stack([y[:, 0], x[:, 0], y[:, 1], x[:, 1]], 1)
    low, high = boxes[:, :2] // side, (boxes[:, 2:] - 1) // side
    shards, pieces = [], []
    for dy in range(int((high - low)[:, 0].max(initial=0)) + 1):
        for dx in range(int((high - low)[:, 1].max(initial=0)) + 1):
            shard = low + (dy, dx)
            inside = (shard <= high).all(1)
            corner, box = shard[inside] * side, boxes[inside]
            pieces.append(np.concatenate([np.maximum(box[:, :2], corner), np.minimum(box[:, 2:], corner + side)], 1))
            shards.append(shard[inside] @ (canvas.shards[1], 1))
    shard, piece = np.concatenate(shards), np.concatenate(pieces)
    other = canvas.ownership(ranks).owner(shard) != rank
    shard, piece = shard[other], piece[other]
    if once and len(shard):
        order = np.argsort(shard, kind="stable")
        shard, piece = shard[order], piece[order]
        new = np.flatnonzero(np.r_[True, np.diff(shard) != 0])
        low, high = np.minimum.reduceat(piece[:, :2], new), np.maximum.reduceat(piece[:, 2:], new)
        shard, piece = shard[new], np.concatenate([low, high], 1)
    area = int((piece[:, 2:] - piece[:, :2]).prod(1).sum())
    return area, len(np.unique(canvas.ownership(ranks).owner(shard)))


# ---- seconds ---------------------------------------------------------------------------------------


def expected_largest(n: int) -> float:
    """Of n standard normal values.

    >>> round(expected_largest(1), 3), round(expected_largest(2), 3), round(expected_largest(100), 2)
    (0.0, 0.564, 2.51)
    """
    x = np.linspace(-9, 9, 20001)
    below = np.array([math.erfc(-v / math.sqrt(2)) / 2 for v in x]) ** n
    return float(x[-1] - (below[1:] + below[:-1]).sum() / 2 * (x[1] - x[0]))


def level_seconds(level: Level, machine: Machine, ranks: int, levels: int, sample: int = 64) -> dict[str, float]:
    """Seconds of one level, in parts, and what its busiest rank does.

    Args:
        levels: of the job: ranks that were slow in one may be fast in the next.
        sample: how many ranks are looked at.
    """
    canvas, crowd = level.canvas, machine.crowd(ranks)
    chosen = np.unique(np.linspace(0, ranks - 1, min(ranks, sample)).round().astype(int)).tolist()
    shares = [share_of(level, rank, ranks) for rank in chosen]
    batches = max(math.ceil(math.ceil(s.windows * machine.evaluations_per_window) / machine.batch) for s in shares)
    item = BYTES * canvas.channels
    steps = math.ceil(math.log2(ranks)) if ranks > 1 else 0

    def exchange(latents: int, messages: int) -> float:
        return latents * item / machine.bandwidth + messages * machine.latency

    evaluate = batches * (machine.evaluation + machine.host) + (crowd - 1) * machine.host
    # What a rank is read from is about what it reads itself, from neighbours that are cut alike.
    travel = max(exchange(s.reads, s.read_from) + exchange(max(s.sends, s.takes), s.sent_to) for s in shares)
    parts = {
        "plan": max(s.windows for s in shares) * machine.plan * crowd,
        "evaluate": evaluate,
        "exchange": max(travel * (1 - machine.hidden), travel - evaluate),
        "fuse": max(s.owned for s in shares) * machine.fuse * crowd,
        "wait": expected_largest(ranks) * machine.spread * machine.evaluation * math.sqrt(batches / levels),
        "agree": steps * (machine.agreement * crowd + machine.latency),
    }
    busiest = {"batches": float(batches), "moved": max(s.reads + s.sends for s in shares) * item}
    return {"seconds": sum(parts.values()), **parts, **busiest}


def job_seconds(canvas: Canvas, machine: Machine, ranks: int, levels: int, sample: int = 64) -> dict[str, float]:
    """Seconds of one level, of a whole job, and what they are made of; a mean over offsets of the cover."""
    draw = np.random.default_rng(0)
    drawn = [Level(canvas, tuple(draw.integers(0, canvas.patch, 2).tolist())) for _ in range(3)]
    samples = [level_seconds(level, machine, ranks, levels, sample) for level in drawn]
    level = {name: float(np.mean([f[name] for f in samples])) for name in samples[0]}
    files = min(machine.files, ranks * machine.files_rank)
    latents = math.prod(canvas.shape)
    checkpoint = CHECKPOINTED * latents * canvas.channels * BYTES / files
    sampling = levels * level["seconds"]
    checkpoints = (1 + sampling // machine.between) * checkpoint
    decode = math.ceil(canvas.decodes() / ranks) * machine.decode
    image = 3 * latents * canvas.factor**2 * machine.compressed * 4 / 3 / files  # and its pyramid
    windows = float(np.mean([one.count for one in drawn]))
    evaluated = levels * windows * machine.evaluations_per_window / machine.batch * machine.evaluation
    work = evaluated + canvas.decodes() * machine.decode
    return {**level, "windows": windows, "job": sampling + checkpoints + decode + image, "work": work}


def rows_of_kind(kind: str, args: argparse.Namespace, machine: Machine, canvas: Canvas) -> list[dict[str, Any]]:
    """Strong: one canvas; weak: as many windows a rank."""
    rows: list[dict[str, Any]] = []
    one: dict[str, float] = {}
    for ranks in map(int, args.ranks.split(",")):
        side = (math.isqrt(args.windows_per_rank * ranks) - 1) * canvas.patch + 1  # so many windows at any offset
        grown = canvas if kind == "strong" else replace(canvas, shape=(side, side))
        now = job_seconds(grown, machine, ranks, args.levels, args.sample)
        one = one or {**now, "ranks": ranks}
        more = ranks / one["ranks"] if kind == "strong" else 1.0
        rows.append(
            {
                "kind": kind,
                "ranks": ranks,
                "canvas px": "{} x {}".format(*(n * canvas.factor for n in grown.shape)),
                "windows": int(now["windows"]),
                "micro-batches": round(now["batches"], 1),
                "level s": now["seconds"],
                "efficiency": one["seconds"] / (more * now["seconds"]),
                "ideal": one["batches"] / (more * now["batches"]),
                "job h": now["job"] / 3600,
                "job": now["work"] / (ranks * now["job"]),
                **{f"{p} %": 100 * now[p] / now["seconds"] for p in ("plan", "exchange", "fuse", "wait", "agree")},
                "MB moved": now["moved"] / 1e6,
            }
        )
    return rows


def check(path: Path, machine: Machine) -> list[dict[str, Any]]:
    """Measured beside predicted, for every row of a report of ``benchmarks.scaling``."""
    measured = json.loads(path.read_text())
    compared = []
    alone: dict[str, float] = {}
    for row in measured["rows"]:
        emulated = row["network"].startswith("emulated")
        height, width = (int(n) // measured["factor"] for n in row["canvas px"].split(" x "))
        shape = (max(height, measured["patch"]), max(width, measured["patch"]))
        canvas = Canvas(
            shape, measured["patch"], measured["shard"] // measured["factor"], measured["channels"], measured["factor"]
        )
        if not emulated and row["ranks"] == 1:
            alone.setdefault(row["kind"], row["seconds"] / row["micro-batches"])
        there = replace(
            machine,
            batch=measured["batches"]["emulated" if emulated else "real"],
            evaluation=measured["milliseconds"] / 1e3 if emulated else alone.get(row["kind"], machine.evaluation),
            spread=measured["spread"] if "+-" in row["network"] else 0.0,
        )
        level = level_seconds(Level(canvas, (1, 1)), there, row["ranks"], row["levels"], row["ranks"])
        seconds = row["levels"] * level["seconds"]
        facts = {name: row[name] for name in ("kind", "network", "ranks", "canvas px")}
        compared.append({**facts, "measured": row["seconds"], "predicted": seconds, "ratio": row["seconds"] / seconds})
    return compared


def plot(rows: Sequence[dict[str, Any]], path: str) -> None:
    """Efficiency of the levels and of whole jobs against ranks."""

    def draw(axis: Any, line: Sequence[Mapping[str, Any]]) -> None:
        for name, style in (("efficiency", "o-"), ("job", "s-"), ("ideal", ":")):
            label = {"efficiency": "levels", "job": "whole job"}.get(name, name)
            axis.plot([r["ranks"] for r in line], [r[name] for r in line], style, label=label)

    plot_efficiency(rows, path, draw)


def main(arguments: Sequence[str] | None = None) -> int:
    top = argparse.ArgumentParser(prog="python -m benchmarks.simulate", description=__doc__)
    top.add_argument("--machine", type=Path, default=MACHINES / "cluster.yaml")
    top.add_argument("--size", default="1000000x1000000", help="px of the strong canvas, HxW")
    top.add_argument("--ranks", default="1,16,64,256,1024,4096,16384")
    top.add_argument("--windows-per-rank", type=int, default=1024, help="of the weak canvases")
    top.add_argument("--levels", type=int, default=50)
    top.add_argument("--patch", type=int, default=64, help="latents of a window's side")
    top.add_argument("--channels", type=int, default=4, help="of the latents")
    top.add_argument("--factor", type=int, default=8, help="px per latent")
    top.add_argument("--shard", type=int, default=2048, help="px")
    top.add_argument("--sample", type=int, default=64, help="ranks that are looked at")
    top.add_argument("--check", type=Path, metavar="REPORT.json", help="of benchmarks.scaling: measured / predicted")
    top.add_argument("--within", type=float, default=0.05, help="fail where the check is further off")
    top.add_argument("--plot", metavar="FILE.png", help="efficiency against ranks; needs matplotlib")
    top.add_argument("--json", help="write the report here")
    args = top.parse_args(arguments)
    machine = read_machine(args.machine)
    if args.check:
        rows = check(args.check, machine)
        report("simulate-check", rows, args.json, against=args.machine.name)
        far = [row for row in rows if abs(row["ratio"] - 1) > args.within]
        print(f"{len(rows) - len(far)} of {len(rows)} within {args.within:.0%}")
        return int(bool(far))
    height, width = (-(-int(n) // args.factor) for n in args.size.split("x"))
    canvas = Canvas((height, width), args.patch, args.shard // args.factor, args.channels, args.factor)
    rows = [row for kind in ("strong", "weak") for row in rows_of_kind(kind, args, machine, canvas)]
    report("simulate", rows, args.json, on=args.machine.name, levels=args.levels)
    if args.plot:
        plot(rows, args.plot)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
