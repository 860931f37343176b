"""A run: prepare on rank 0, sample the levels, decode the shards, make the pyramid, sign the result."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import engine
from engine.comm import AgreedError, Ranks
from engine.conditions import LabelMap, example_labels
from engine.cover import cover_of
from engine.decode import decode_cover, image_box
from engine.geometry import Window
from engine.job import RunOptions, SampleJob
from engine.models.card import Card, read_card
from engine.plan import LevelPlan, Ownership, decode_rounds, plan_decode, plan_level
from engine.solvers import steps_of
from engine.store import (
    LABELS,
    Layout,
    Output,
    bands,
    checked_labels,
    create,
    read_label_map,
    remove,
    state_of,
)

IMAGE_CHANNELS = 3
REST_BYTES = 700 * 2**20  # Python, torch and MPI of one rank


class LabelSource(NamedTuple):
    """The label map of the canvas at full size, read in boxes, and what it is called in messages."""

    read: Callable[[Window], np.ndarray]
    name: str


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
        activations = 600 * item * card.patch**2 * int(job.batch_size or 1) // 4 + 64 * 4 * (2 * card.patch * card.factor) ** 2
        return REST_BYTES + item * level + network + 4 * shard_px + activations + self.labels.nbytes

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
            "job": {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self.job).items()},
        }

    def decode_plans(self, remaining: list[int]) -> list[LevelPlan]:
        cover = decode_cover(self.labels.shape, self.card.patch, self.card.decode_overlap)  # type: ignore[arg-type]
        return [plan_decode(cover, self.ownership, *turn) for turn in decode_rounds(remaining, self.size)]


# ---- prepare: rank 0 checks everything before anything is written ---------------------------------


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
    if not options.dry_run and state != "finished":
        check_machine(prepared, local_size)
    return replace(prepared)  # without what was worked out on the way: it is sent to all ranks


def label_source(job: SampleJob, card: Card) -> LabelSource:
    """Where the canvas's label map comes from: a file, one label throughout, or the drawn example.

    Raises:
        ValueError: a file that is no label map of this model and size.
    """
    if job.label is not None:
        label = job.label
        return LabelSource(lambda box: np.full(box.shape, label, np.uint8), f"label {label}")
    if job.labels is None:
        if len(card.labels) < 5:
            return LabelSource(lambda box: np.zeros(box.shape, np.uint8), "no labels")
        return LabelSource(example_labels, "the drawn example")
    labels = read_label_map(Path(job.labels))
    checked_labels(labels, len(card.labels), f"--labels {job.labels}", card.labels)
    height, width = job.size
    if labels.shape != job.size:
        if job.resize_labels is None:
            raise ValueError(
                f"label map {job.labels} is {labels.shape[0]} x {labels.shape[1]} px but the canvas is {height} x {width} px; "
                f"pass --size {labels.shape[0]}x{labels.shape[1]}, or --resize-labels nearest"
            )
        rows = np.arange(height) * labels.shape[0] // height
        columns = np.arange(width) * labels.shape[1] // width
        return LabelSource(lambda b: labels[np.ix_(rows[b.y0 : b.y1], columns[b.x0 : b.x1])], job.labels)
    return LabelSource(lambda b: labels[b.y0 : b.y1, b.x0 : b.x1], job.labels)


def latent_labels(source: LabelSource, job: SampleJob, card: Card) -> tuple[np.ndarray, str]:
    """The label of every latent (nearest, as DiffInfinite takes it) and a hash of the whole map.

    A canvas smaller than a window is padded with the labels of its edge.
    """
    import hashlib

    height, width = job.size
    total = hashlib.sha256(f"{height}x{width}".encode())
    parts = []
    for y0, y1 in bands(height, job.shard):
        band = np.ascontiguousarray(source.read(Window(y0, 0, y1, width)), dtype=np.uint8)
        total.update(band.tobytes())
        parts.append(band[:: card.factor, :: card.factor])
    labels = np.concatenate(parts)
    short = [(0, max(card.patch - n, 0)) for n in labels.shape]
    return np.pad(labels, short, mode="edge"), total.hexdigest()


def output_state(path: Path, identity: dict[str, Any], options: RunOptions) -> str:
    """Whether there is an output at ``path``, and whether it is this job's.

    Raises:
        ValueError: it is something else's, and was not to be overwritten.
    """
    found = state_of(path)
    if found is None:
        return "absent"
    if options.overwrite:
        return "replace"
    theirs = found["identity"]
    if theirs != identity:
        keys = [k for k in (*identity, *theirs) if identity.get(k) != theirs.get(k)]
        key = keys[0]
        raise ValueError(
            f"{path} holds another job: its {key} is {theirs.get(key)}, yours is {identity.get(key)}; "
            "give the same settings to go on with it, choose another --out, or pass --overwrite to replace it"
        )
    if found["state"] == "finished":
        return "finished"
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
            f"the plan needs {need / 2**30:.1f} GiB on this node ({local_size} ranks) but {have / 2**30:.1f} GiB are free; "
            "use more nodes, fewer ranks a node, a smaller --shard or --batch-size, or a smaller --size"
        )
    path = Path(prepared.options.out)
    parent = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    if parent != path.absolute() and not parent.is_dir():
        raise ValueError(f"--out {path}: {parent} is not a folder; choose another --out")
    if not os.access(parent, os.W_OK):
        raise ValueError(f"--out {path}: {parent} cannot be written; choose another --out")
    height, width = prepared.job.size
    least = height * width * IMAGE_CHANNELS // 4 + 2 * 4 * prepared.labels.size * prepared.card.channels
    free = shutil.disk_usage(parent).free
    if free < least:
        raise ValueError(
            f"--out {path}: the result takes at least {least / 2**20:.0f} MiB but {free / 2**20:.0f} MiB are free there; "
            "choose another --out"
        )


def available_memory() -> int:
    """Bytes free on this node, by the kernel and the control group; 0 where unknown."""
    found = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable"):
                found.append(int(line.split()[1]) * 1024)
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit.isdigit():
            found.append(int(limit) - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except OSError:
        pass
    return max(min(found), 0) if found else 0


# ---- run: the levels, then the shards -------------------------------------------------------------


class Progress:
    """One line on rank 0 with an ETA of the whole job, and the JSON-lines log."""

    def __init__(self, rank: int, evaluations: int, decodes: int, log: str | None) -> None:
        self.rank, self.start, self.shown = rank, time.monotonic(), 0.0
        self.left = {"evaluation": evaluations, "decode": decodes}
        self.rate = {"evaluation": 0.0, "decode": 0.0}  # seconds each, over all ranks
        self.spent = {"evaluation": 0.0, "decode": 0.0}
        self.done = {"evaluation": 0, "decode": 0}
        self.mark = self.start
        self.log = open(log, "a") if log and rank == 0 else None  # noqa: SIM115 - lives as long as the run

    def advance(self, kind: str, amount: int, text: str, **facts: Any) -> None:
        """Count work done since the last call and show it."""
        now = time.monotonic()
        self.spent[kind] += now - self.mark
        self.mark = now
        self.done[kind] += amount
        self.left[kind] = max(self.left[kind] - amount, 0)
        if self.log:
            record = {"time": time.time(), "seconds": round(now - self.start, 4), kind + "s": amount, **facts}
            self.log.write(json.dumps(record) + "\n")
            self.log.flush()
        if self.rank == 0 and (now - self.shown > (0.2 if sys.stdout.isatty() else 10) or not any(self.left.values())):
            self.shown = now
            line = f"{text}  {self.clock(now - self.start)} gone, {self.clock(self.eta())} to go"
            print(f"\r{line:<78}" if sys.stdout.isatty() else line, end="" if sys.stdout.isatty() else "\n", flush=True)

    def eta(self) -> float:
        """Seconds to go; a decode is taken for three evaluations until one has been seen."""
        each = {k: self.spent[k] / self.done[k] for k in self.done if self.done[k]}
        each.setdefault("decode", 3 * each.get("evaluation", 0.0))
        return sum(self.left[k] * each.get(k, 0.0) for k in self.left)

    @staticmethod
    def clock(seconds: float) -> str:
        minutes, rest = divmod(int(seconds + 0.5), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

    def end(self, text: str) -> None:
        if self.rank == 0:
            print(("\n" if sys.stdout.isatty() else "") + text, flush=True)
        if self.log:
            self.log.close()


def run(ranks: Ranks, prepared: Prepared) -> bool:
    """Sample and decode. Collective.

    Returns:
        Whether it came to the end; False: it was asked to stop, and left a checkpoint.
    """
    import torch

    from engine.canvas import Canvas
    from engine.decode import decode_canvas
    from engine.denoiser import Denoiser
    from engine.models.folder import load_model
    from engine.sampler import sample

    job, card, options = prepared.job, prepared.card, prepared.options
    device = ranks.agree(lambda: device_of(job.device, ranks.local_rank))
    if ranks.any(device == "cpu"):  # auto: all or none, for the bytes depend on the kind of device
        device = "cpu"
    torch.set_num_threads(job.threads)
    ranks.catch_signals()
    begun = time.monotonic()
    output = open_output(ranks, prepared)
    model = ranks.agree(lambda: load_model(card.folder, getattr(torch, job.dtype), device))

    schedule, timesteps = card.schedule, prepared.timesteps
    table = steps_of(
        str(job.solver), [schedule.alpha_bar[t] for t in timesteps], float(job.eta or 0), schedule.rederive_noise
    )
    canvas = Canvas(ranks, prepared.ownership, card.channels, job.seed, device)
    denoise = Denoiser(model.network, prepared.condition, schedule, int(job.batch_size or 1), getattr(torch, job.dtype), device)
    keeper = Keeper(ranks, output, canvas, options.checkpoint_every)
    first = keeper.restore()
    ledger = ranks.share(set(output.ledger()) if ranks.rank == 0 else set())
    boxes = {s: image_box(prepared.ownership.shards[s], card.factor, job.size) for s in prepared.wanted}
    remaining = [s for s in prepared.wanted if ("0", boxes[s]) not in ledger]
    about = prepared.planner()(first)[0].evaluations * (len(table) - first)
    decodes = sum(int(plan.costs.sum()) for plan in prepared.decode_plans(remaining)) if ranks.rank == 0 else 0
    progress = Progress(ranks.rank, about, decodes, options.json_log)
    if ranks.rank == 0:
        print(
            f"{job.size[0]} x {job.size[1]} px, {len(table)} levels, about {about} evaluations, "
            f"{decodes} decodes, {ranks.size} ranks on {device}" + (f", from level {first}" if first else ""),
            flush=True,
        )

    def after_level(level: int, plan: LevelPlan) -> bool:
        t = int(timesteps[level - 1])
        facts = {"level": level, "t": t, "windows": len(plan.cover)}
        progress.advance("evaluation", plan.evaluations, f"level {level}/{len(table)}", **facts)
        stop = ranks.stopping()
        if stop or level == len(table) or keeper.due():
            keeper.save(level)
        return stop

    if first < len(table) and not sample(canvas, prepared.planner(), denoise, schedule, timesteps, table, first, after_level):
        progress.end(f"stopped; {options.out} holds a checkpoint: the same command goes on from it")
        return False

    new_lines: list[dict[str, Any]] = []

    def write(shard: int, image: np.ndarray) -> None:
        box = boxes[shard]
        origin = prepared.ownership.shards[shard].scaled(card.factor)
        new_lines.append(output.write("0", box, image[(slice(None), *box.within(origin))]))

    def after_round(decoded: int, left: int) -> bool:
        record(ranks, output, new_lines)
        progress.advance("decode", decoded, "decoding", decodes_left=left)
        return ranks.stopping()

    whole = decode_canvas(
        canvas,
        model.decode,
        patch=card.patch,
        factor=card.factor,
        overlap=card.decode_overlap,
        channels=IMAGE_CHANNELS,
        remaining=remaining,
        write=write,
        after_round=after_round,
    )
    if not whole:
        progress.end(f"stopped while decoding; {options.out} holds a checkpoint: the same command goes on from it")
        return False
    build_pyramids(ranks, output)
    seconds = {"sampling": round(progress.spent["evaluation"], 2), "decoding": round(progress.spent["decode"], 2)}
    seconds["all"] = round(time.monotonic() - begun, 2)
    ranks.agree(lambda: sign(output, prepared, seconds, ranks.size, device) if ranks.rank == 0 else None)
    progress.end(f"finished {options.out} in {Progress.clock(seconds['all'])}")
    return True


def device_of(name: str, local_rank: int) -> str:
    """The device of a rank: its share of the visible GPUs by local rank, or the CPU.

    Raises:
        ValueError: cuda was asked for and is not there.
    """
    import torch

    count = torch.cuda.device_count() if name != "cpu" and torch.cuda.is_available() else 0
    if name == "cuda" and not count:
        raise ValueError("--device cuda: torch sees no GPU here; use --device cpu, or check the driver and CUDA_VISIBLE_DEVICES")
    return f"cuda:{local_rank % count}" if count else "cpu"


def open_output(ranks: Ranks, prepared: Prepared) -> Output:
    """Create the output, or take up what is there; write the label map. Collective."""
    path = Path(prepared.options.out)

    def make() -> Output:
        if prepared.state == "replace":
            remove(path)
        if prepared.state != "unfinished":
            card = prepared.card
            named = list(zip(card.labels, card.colors, strict=True))
            create(path, prepared.layout, card.pixel_size_um, named, provenance(prepared))
        output = Output(path)
        output.lock()
        output.sweep()
        output.mend_ledger()
        source, done = label_source(prepared.job, prepared.card), output.ledger()
        for box in output.boxes(0):
            if (f"{LABELS}/0", box) not in done:
                output.record([output.write(f"{LABELS}/0", box, source.read(box).astype(np.uint8))])
        return output

    made = ranks.agree(lambda: make() if ranks.rank == 0 else None)
    return made or Output(path)


def provenance(prepared: Prepared) -> dict[str, Any]:
    """What an output says of its making."""
    import torch
    import zarr

    job = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(prepared.job).items()}
    return {
        "job": job,
        "identity": prepared.identity,
        "seed": prepared.job.seed,
        "levels": len(prepared.timesteps),
        "model_hash": prepared.card.hash,
        "versions": {
            "slidefield": engine.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "zarr": zarr.__version__,
        },
    }


class Keeper:
    """Checkpoints of the canvas: two slots in turn, and a commit mark that names the whole one."""

    def __init__(self, ranks: Ranks, output: Output, canvas: Any, every: float) -> None:
        self.ranks, self.output, self.canvas, self.every = ranks, output, canvas, every
        self.last = time.monotonic()

    def due(self) -> bool:
        """Whether rank 0's clock asks for a checkpoint. Collective."""
        return self.ranks.share(time.monotonic() - self.last >= self.every)

    def save(self, level: int) -> None:
        """Write the canvas before ``level``; all ranks' shards are on disk before the mark is set. Collective."""
        canvas, ownership = self.canvas, self.canvas.ownership
        history = self.ranks.any(bool(canvas.previous))
        shape = (canvas.channels, *ownership.shape)
        slot = self.ranks.on_root(lambda: self.output.begin_checkpoint(shape, ownership.side))

        def write() -> None:
            for name, shards in (("x", canvas.x), ("previous", canvas.previous)):
                for shard, data in shards.items():
                    self.output.write_checkpoint(slot, name, ownership.shards[shard], data.cpu().numpy())

        self.ranks.agree(write)
        self.ranks.agree(
            lambda: self.output.commit_checkpoint(slot, level, history) if self.ranks.rank == 0 else None
        )
        self.last = time.monotonic()

    def restore(self) -> int:
        """Fill the canvas from the last checkpoint, or with noise; returns the level to go on from. Collective."""
        import torch

        canvas, ownership = self.canvas, self.canvas.ownership
        mark = self.ranks.on_root(self.output.checkpoint)
        if mark is None:
            canvas.start()
            return 0

        def read(name: str) -> dict[int, Any]:
            return {
                s: torch.from_numpy(self.output.read_checkpoint(mark["slot"], name, ownership.shards[s])).to(canvas.device)
                for s in ownership.owned(self.ranks.rank)
            }

        canvas.x = self.ranks.agree(lambda: read("x"))
        if mark["history"]:
            canvas.previous = self.ranks.agree(lambda: read("previous"))
        return int(mark["level"])


def record(ranks: Ranks, output: Output, lines: list[dict[str, Any]]) -> None:
    """Gather every rank's finished shards and enter them in the ledger; empties ``lines``. Collective."""
    gathered = [line for part in ranks.collect(lines) for line in part]
    ranks.agree(lambda: output.record(gathered) if ranks.rank == 0 else None)
    lines.clear()


def build_pyramids(ranks: Ranks, output: Output) -> None:
    """Make the coarser levels of image and labels, each shard by one rank. Collective."""
    done = ranks.share(set(output.ledger()) if ranks.rank == 0 else set())
    for level in range(1, len(output.layout.sizes())):
        ranks.barrier()  # the level below is whole
        todo = [
            (prefix, box)
            for prefix in ("", f"{LABELS}/")
            for box in output.boxes(level)
            if (f"{prefix}{level}", box) not in done
        ]
        mine = todo[ranks.rank :: ranks.size]
        lines = ranks.agree(lambda level=level, mine=mine: [output.halve(p, level, b) for p, b in mine])  # type: ignore[misc]
        record(ranks, output, lines)


def sign(output: Output, prepared: Prepared, seconds: dict[str, float], size: int, device: str) -> None:
    """Declare the output finished. Rank 0 calls this."""
    output.annotate(state="finished", seconds=seconds, ranks=size, device=device)
    output.drop_checkpoints()


def finish(ranks: Ranks, prepared: Prepared, path: Path) -> None:
    """Write the preview on rank 0. Collective."""
    preview = prepared.options.preview or str(path.with_suffix(".png"))
    if preview != "none":
        ranks.agree(lambda: write_preview(path, Path(preview)) if ranks.rank == 0 else None)


def write_preview(path: Path, picture: Path, most: int = 2048) -> None:
    """A PNG of the finest pyramid level of at most ``most`` px a side."""
    from PIL import Image

    output = Output(path)
    sizes = output.layout.sizes()
    level = next((i for i, size in enumerate(sizes) if max(size) <= most), len(sizes) - 1)
    pixels = output.read(str(level), Window(0, 0, *sizes[level]))
    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    temporary = picture.with_name(picture.name + ".partial")
    image.save(temporary, format="PNG")
    temporary.rename(picture)
    print(f"{picture} shows it", flush=True)


__all__ = ["AgreedError", "Prepared", "finish", "prepare", "run"]
