"""Prepare a run on rank 0: check everything before anything is written, and say what the run will do."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from engine.conditions import LabelMap, example_labels
from engine.cover import cover_of, decode_cover
from engine.geometry import Window, grid
from engine.job import RunOptions, SampleJob
from engine.models.card import Card, read_card
from engine.plan import LevelPlan, Ownership, decode_rounds, image_box, plan_decode, plan_level
from engine.preview import check_preview
from engine.store import Layout, checked_labels, read_label_map, state_of

IMAGE_CHANNELS = 3
READ_SIDE = 2048  # px of a label map read at once; a multiple of every factor
REST_BYTES = 700 * 2**20  # Python, torch and MPI of one rank


class LabelSource(NamedTuple):
    """The label map of the canvas at full size.

    Args:
        read: (box, step) -> every ``step``-th label of a box, from its corner.
        identity: what tells it from another map, without reading it; empty: its content does.
    """

    read: Callable[[Window, int], np.ndarray]
    identity: str


@dataclass(frozen=True)
class Prepared:
    """A checked job and the facts it needs: plain values, sent from rank 0 to all.

    Args:
        size: ranks that the plan is for.
        labels: the label of every latent, (H, W).
        identity: what another job must share to be the same.
        state: of the output before the run: absent, unfinished (to be resumed), finished, or replace.
    """

    job: SampleJob
    options: RunOptions
    card: Card
    size: int
    labels: np.ndarray
    identity: dict[str, Any]
    state: str

    @cached_property
    def ownership(self) -> Ownership:
        return Ownership(self.labels.shape, self.job.shard // self.card.factor, self.size)  # type: ignore[arg-type]

    @cached_property
    def condition(self) -> LabelMap:
        return LabelMap(self.labels, float(self.job.guidance))  # type: ignore[arg-type]

    @cached_property
    def timesteps(self) -> np.ndarray:
        return self.card.schedule.levels(self.job.steps)  # type: ignore[arg-type]

    @cached_property
    def layout(self) -> Layout:
        return Layout(self.job.size, IMAGE_CHANNELS, self.job.shard, self.job.chunk)

    @cached_property
    def wanted(self) -> list[int]:
        """The shards of the canvas that hold pixels of the image."""
        return [i for i, s in enumerate(self.ownership.shards) if image_box(s, self.card.factor, self.job.size)]

    def planner(self) -> Callable[[int], tuple[LevelPlan, np.ndarray]]:
        """A function from a level to its plan and the labels of its windows; levels are asked for in turn.

        The same on every rank that asks for the same levels: what a rank did beyond its share in one level it is
        spared in the next.
        """
        ahead = np.zeros(self.size)
        job, patch, shape = self.job, self.card.patch, self.labels.shape

        def plan(level: int) -> tuple[LevelPlan, np.ndarray]:
            nonlocal ahead
            cover = cover_of(job.cover, shape, patch, job.seed, level, stride=job.stride or patch, weights=job.weights)  # type: ignore[arg-type]
            present = self.condition.present(cover)
            found = plan_level(cover, self.condition.costs(present), self.ownership, ahead)
            ahead = ahead + found.evaluations_of_ranks() - found.evaluations / self.size
            return found, present

        return plan

    def memory_bytes(self, contributions: int) -> int:
        """The most that one rank is expected to hold, everything included.

        Args:
            contributions: latents that all ranks' estimates of a level cover, together.
        """
        card, job = self.card, self.job
        item = 4 * card.channels
        share = -(-len(self.ownership.shards) // self.size) * min(self.ownership.side**2, self.labels.size)
        level = 4 * share + 4 * (contributions // self.size + card.patch**2 * int(job.batch_size or 1))
        network = sum(f.stat().st_size for f in card.folder.rglob("*.safetensors")) * 4
        side = min(self.job.shard, max(self.labels.shape) * card.factor)
        shard_px = 4 * IMAGE_CHANNELS * side**2
        activations = (
            600 * item * card.patch**2 * int(job.batch_size or 1) // 4 + 64 * 4 * (2 * card.patch * card.factor) ** 2
        )
        drawn = 12 * self.labels.size if job.cover == "random" else 0
        return REST_BYTES + item * level + network + 4 * shard_px + activations + self.labels.nbytes + drawn

    def plan_summary(self) -> dict[str, Any]:
        """The plan as ``--dry-run`` prints it."""
        windows, evaluations, exchanged, contributions = [], [], 0, 0
        per_rank = np.zeros(self.size, np.int64)
        plan_of = self.planner()
        for level in range(len(self.timesteps)):
            plan, _ = plan_of(level)
            windows.append(len(plan.cover))
            evaluations.append(plan.evaluations)
            per_rank += plan.evaluations_of_ranks()
            exchanged += sum(plan.travelling()) * 4 * self.card.channels
            contributions = max(contributions, int(plan.writes.areas.sum()))
        for plan in self.decode_plans(self.wanted):
            before, after = plan.travelling()
            exchanged += 4 * (before * self.card.channels + after * self.card.factor**2 * IMAGE_CHANNELS)
        return {
            "latent_shape": [self.card.channels, *self.labels.shape],
            "levels": len(self.timesteps),
            "windows_per_level": windows,
            "evaluations_per_level": evaluations,
            "evaluations": int(sum(evaluations)),
            "evaluations_per_rank": {"min": int(per_rank.min()), "max": int(per_rank.max())},
            "exchange_bytes": int(exchanged),
            "memory_bytes_per_rank": self.memory_bytes(contributions),
            "shards": len(self.wanted),
            "files": self.layout.files(),
            "ranks": self.size,
            "job": self.job.plain(),
        }

    def decode_plans(self, remaining: list[int]) -> Iterator[LevelPlan]:
        """The rounds of decoding, one after another."""
        cover = decode_cover(self.labels.shape, self.card.patch, int(self.job.decode_overlap or 0))  # type: ignore[arg-type]
        return (plan_decode(cover, self.ownership, *turn) for turn in decode_rounds(remaining, self.size))


def prepare(job: SampleJob, options: RunOptions, size: int, local_size: int) -> Prepared:
    """Check a job against its model, labels, output and machine; writes nothing. Rank 0 calls this.

    Raises:
        ValueError: anything that would stop the run, with the way out.
    """
    card = read_card(job.model)
    job = job.resolved(card)
    source = label_source(job, card)
    labels, labels_hash = latent_labels(source, job, card)
    identity = job.identity(card, labels_hash)
    state = "absent" if options.dry_run else output_state(Path(options.out), identity, options)
    prepared = Prepared(job, options, card, size, labels, identity, state)
    if not options.dry_run:
        check_preview(options)
    if not options.dry_run and state != "finished":
        check_machine(prepared, local_size)
    return replace(prepared)  # without what was worked out on the way: it is sent to all ranks


def label_source(job: SampleJob, card: Card, check: bool = True) -> LabelSource:
    """Where the canvas's label map comes from: a file, one label throughout, or the drawn example.

    Args:
        check: look through a file for values that the model does not have.
    Raises:
        ValueError: a file that is no label map of this model and size.
    """
    if job.label is not None or (job.labels is None and len(card.labels) < 5):
        label = job.label or 0
        return LabelSource(
            lambda box, step: np.full((-(-box.height // step), -(-box.width // step)), label, np.uint8),
            f"label {label}",
        )
    if job.labels is None:
        return LabelSource(example_labels, "example")
    labels = read_label_map(Path(job.labels))
    if check:
        checked_labels(labels, len(card.labels), f"--labels {job.labels}", card.labels)
    height, width = job.size
    if labels.shape != job.size and job.resize_labels is None:
        raise ValueError(
            f"label map {job.labels} is {labels.shape[0]} x {labels.shape[1]} px "
            f"but the canvas is {height} x {width} px; "
            f"pass --size {labels.shape[0]}x{labels.shape[1]}, or --resize-labels nearest"
        )

    def read(box: Window, step: int) -> np.ndarray:
        rows = np.arange(box.y0, box.y1, step) * labels.shape[0] // height
        columns = np.arange(box.x0, box.x1, step) * labels.shape[1] // width
        part = labels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        return np.asarray(part)[np.ix_(rows - rows[0], columns - columns[0])]

    return LabelSource(read, "")


def latent_labels(source: LabelSource, job: SampleJob, card: Card) -> tuple[np.ndarray, str]:
    """The label of every latent (nearest, as DiffInfinite takes it) and a hash of the whole map.

    A canvas smaller than a window is padded with the labels of its edge.
    """
    height, width = job.size
    factor = card.factor
    labels = np.empty((-(-height // factor), -(-width // factor)), np.uint8)
    total = hashlib.sha256(f"{source.identity} {height}x{width}".encode())
    for box in grid(job.size, READ_SIDE):
        if source.identity:
            nearest = source.read(box, factor)
        else:
            part = np.ascontiguousarray(source.read(box, 1), dtype=np.uint8)
            total.update(part.tobytes())
            nearest = part[::factor, ::factor]
        y, x = box.y0 // factor, box.x0 // factor
        labels[y : y + nearest.shape[0], x : x + nearest.shape[1]] = nearest
    short = [(0, max(card.patch - n, 0)) for n in labels.shape]
    return np.pad(labels, short, mode="edge"), total.hexdigest()


def output_state(path: Path, identity: dict[str, Any], options: RunOptions) -> str:
    """Whether there is an output at ``path``, and whether it is this job's.

    ``--overwrite`` replaces another job and a finished one; this job's own unfinished output is gone on with, so that
    the same command can be given again and again.

    Raises:
        ValueError: it is something else's, and was not to be overwritten.
    """
    found = state_of(path)
    if found is None:
        return "absent"
    theirs = found["identity"]
    if theirs != identity and options.overwrite:
        return "replace"
    if theirs != identity:
        keys = [k for k in (*identity, *theirs) if identity.get(k) != theirs.get(k)]
        key = keys[0]
        raise ValueError(
            f"{path} holds another job: its {key} is {theirs.get(key)}, yours is {identity.get(key)}; "
            "give the same settings to go on with it, choose another --out, or pass --overwrite to replace it"
        )
    if found["state"] == "finished":
        return "replace" if options.overwrite else "finished"
    return "unfinished" if options.resume == "auto" else "replace"


def check_machine(prepared: Prepared, local_size: int) -> None:
    """Refuse what cannot fit into this node's memory or the output's disk.

    Raises:
        ValueError: naming what is needed and what there is.
    """
    summary_level, _ = prepared.planner()(0)
    need = prepared.memory_bytes(int(summary_level.writes.areas.sum())) * local_size
    have = available_memory()
    if have and need > have:
        raise ValueError(
            f"the plan needs {need / 2**30:.1f} GiB on this node ({local_size} ranks) "
            f"but {have / 2**30:.1f} GiB are free; "
            "use more nodes, fewer ranks a node, a smaller --shard or --batch-size, or a smaller --size"
        )
    log = prepared.options.json_log
    if log and (Path(log).is_dir() or not Path(log).absolute().parent.is_dir()):
        raise ValueError(f"--json-log {log}: not a file in a folder that is there; choose another")
    path = Path(prepared.options.out)
    parent = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    if parent != path.absolute() and not parent.is_dir():
        raise ValueError(f"--out {path}: {parent} is not a folder; choose another --out")
    if not os.access(parent, os.W_OK):
        raise ValueError(f"--out {path}: {parent} cannot be written; choose another --out")
    height, width = prepared.job.size
    least = height * width * IMAGE_CHANNELS // 4 + 2 * 4 * prepared.labels.size * prepared.card.channels
    free = shutil.disk_usage(parent).free
    if free < least and prepared.state != "unfinished":
        raise ValueError(
            f"--out {path}: the result takes at least {least / 2**20:.0f} MiB "
            f"but {free / 2**20:.0f} MiB are free there; choose another --out"
        )


def available_memory() -> int:
    """Bytes free on this node, by the kernel and this process's control groups; 0 where unknown."""
    found = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable"):
                found.append(int(line.split()[1]) * 1024)
        group = Path("/sys/fs/cgroup") / Path("/proc/self/cgroup").read_text().split("::", 1)[1].strip().lstrip("/")
        while group.is_relative_to("/sys/fs/cgroup"):
            limit = (group / "memory.max").read_text().strip() if (group / "memory.max").exists() else "max"
            if limit.isdigit():
                facts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                cached = int(facts.get("inactive_file", 0)) + int(facts.get("active_file", 0))
                found.append(int(limit) - int((group / "memory.current").read_text()) + cached)
            group = group.parent
    except (OSError, IndexError, ValueError):
        pass
    return max(min(found), 0) if found else 0
