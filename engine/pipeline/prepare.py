"""Prepare a run on rank 0: check everything before anything is written, and say what the run will do."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from engine.diffusion.conditions import Condition
from engine.inputs.condition import condition_of
from engine.inputs.masks import check_inpainting, read_roi
from engine.inputs.read import read_inputs
from engine.inputs.semantic import styles_of
from engine.inputs.values import Inputs
from engine.job import RunOptions, SampleJob
from engine.models.card import ModelCard, read_card
from engine.pipeline.accept import check_accept
from engine.pipeline.label_stage import label_stage, with_default_labels
from engine.pipeline.preview import check_preview
from engine.planning.cover import Cover, StackedCover, cover_of, strided
from engine.planning.decode_cover import decode_cover, gaussian_pixel_cover, pixel_cover
from engine.planning.geometry import Frames
from engine.planning.ownership import DecodeRounds, Ownership
from engine.planning.plan import Ask, Plan, Planning, plan_decode, plan_level, run_in_lockstep
from engine.storage.image_layout import ImageLayout
from engine.storage.layout import Layout
from engine.storage.output import state_of
from engine.storage.readers import reads_in_boxes
from engine.storage.set_layout import SetLayout

REST_BYTES = 700 * 2**20  # Python, torch and MPI of one rank


@dataclass(frozen=True)
class Prepared:
    """A checked job and the facts it needs: plain values, sent from rank 0 to all.

    Args:
        cards: of the model, and of the networks of its styles.
        size: ranks that the plan is for.
        inputs: what the job's files hold.
        identity: what another job must share to be the same.
        state: of the output before the run: absent, unfinished (to be resumed), finished, or replace.
        label_stage: the run that samples the label map, where a label model does; until it is done ``inputs`` has no
            labels.
    """

    job: SampleJob
    options: RunOptions
    cards: tuple[ModelCard, ...]
    size: int
    inputs: Inputs
    identity: dict[str, Any]
    state: str
    label_stage: Prepared | None = None

    @property
    def card(self) -> ModelCard:
        return self.cards[0]

    @cached_property
    def frames(self) -> Frames:
        return Frames(self.job.size, self.card.factor, self.card.patch, self.job.count)

    @cached_property
    def ownership(self) -> Ownership:
        return Ownership(self.frames.shape, self.frames.shard_sides(self.job.shard), self.size)

    @cached_property
    def condition(self) -> Condition:
        return condition_of(self.inputs, self.job, self.card, self.frames)

    @property
    def guided_levels(self) -> range:
        return range(*(self.job.guidance_interval or (0, len(self.timesteps))))

    @cached_property
    def timesteps(self) -> np.ndarray:
        return self.card.schedule.levels(self.job.steps)  # type: ignore[arg-type]

    @cached_property
    def layout(self) -> Layout:
        job = self.job
        channels = 1 if self.card.role == "labels" else self.card.image_channels
        shared = (job.size, channels, job.shard, job.chunk, self.inputs.stored)
        if job.count is None:
            return ImageLayout(*shared)
        return SetLayout(*shared, count=job.count, group=self.frames.group(job.shard))

    @cached_property
    def wanted(self) -> range | np.ndarray:
        """The shards of the canvas that hold pixels of the image, in order: all, where it is not padded by shards."""
        count, (rows, columns) = self.ownership.count, self.layout.boxes().counts
        if count == len(self.layout.boxes()):
            return range(count)
        return (np.arange(rows)[:, None] * self.ownership.columns + np.arange(columns)).ravel()

    def empty(self, shard: int) -> bool:
        """Whether a shard lies wholly outside the region of interest: nothing of it is decoded."""
        roi, w = self.inputs.roi, self.ownership.shard(shard)
        return roi is not None and not roi[w.y0 : w.y1, w.x0 : w.x1].any()

    def cover(self, level: int, images: Sequence[int] | None = None, round_index: int = 0) -> Cover:
        """The windows of a level.

        Args:
            images: of a set, those that are sampled; None: all.
            round_index: of rejection sampling, which samples them again.
        """
        job, card, frames = self.job, self.card, self.frames

        def of_image(image: int) -> Cover:
            return cover_of(
                job.cover,
                frames.frame,
                card.patch,
                job.seed,
                level,
                stride=job.stride or card.patch,
                weights=job.weights,
                image=image,
                round_index=round_index,
            )

        return self.stacked(of_image, card.patch, 1, images)

    def stacked(self, of_image: Callable[[int], Cover], patch: int, scale: int, images: Sequence[int] | None) -> Cover:
        """The cover of one image, or of those of a set, below one another."""
        if self.job.count is None:
            return of_image(0)
        chosen = range(self.job.count) if images is None else np.array(images)
        return StackedCover(patch * scale, self.frames.frame[0] * scale, of_image, chosen)

    def asked(self, level: int, cover: Cover) -> Ask:
        """A function from windows to the labels that each is asked for, as bits, and its evaluations."""
        condition = self.condition if level in self.guided_levels else self.condition.unguided()
        region = None if self.inputs.roi is None else Condition(labels=self.inputs.roi)

        def ask(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            label_bits = condition.label_bits(cover, ids)
            if region is not None:
                label_bits[region.label_bits(cover, ids) < 2] = 0  # asks for nothing
            return label_bits, condition.costs(label_bits)

        return ask

    def part(
        self,
        rank: int,
        level: int,
        shares: np.ndarray | None,
        images: Sequence[int] | None = None,
        round_index: int = 0,
    ) -> Planning[Plan]:
        """A rank's part of the plan of a level."""
        cover = self.cover(level, images, round_index)
        return plan_level(rank, cover, self.ownership, self.asked(level, cover), shares)

    def parts(self, level: int) -> list[Plan]:
        """Every rank's part of the plan of a level, made here."""
        cover = self.cover(level)
        ask = self.asked(level, cover)
        return run_in_lockstep([plan_level(rank, cover, self.ownership, ask) for rank in range(self.size)])

    def decode_covers(self, images: Sequence[int] | None = None) -> tuple[Cover, Cover]:
        """The decoder's windows, in latents and, with their weights, in pixels."""
        job, card, frame = self.job, self.card, self.frames.frame
        if job.decode_weights == "gaussian":
            stride = job.stride or card.patch // 4
            cover = strided(frame, card.patch, stride, "uniform")
            pixels = gaussian_pixel_cover(cover, card.factor)
        else:
            cover = decode_cover(frame, card.patch, int(job.decode_overlap or 0))
            pixels = pixel_cover(cover, card.factor, int(job.decode_overlap or 0))
        return (
            self.stacked(lambda image: cover, cover.patch, 1, images),
            self.stacked(lambda image: pixels, cover.patch, card.factor, images),
        )

    @property
    def contributions(self) -> int:
        """Latents that all estimates of a level cover together, about."""
        job, latents = self.job, self.ownership.shape[0] * self.ownership.shape[1]
        times = {"strided": (self.card.patch / (job.stride or self.card.patch)) ** 2, "random": 2.5}
        return int(latents * times.get(job.cover, 1))

    def decode_parts(self, remaining: range | np.ndarray) -> Iterator[Plan]:
        """Every rank's part of every round of decoding, made here."""
        cover, _ = self.decode_covers()
        if self.inputs.roi is not None:
            remaining = np.array([shard for shard in remaining if not self.empty(int(shard))])
        rounds = DecodeRounds(remaining, self.size)
        for turn in range(len(rounds)):
            yield from run_in_lockstep(
                [plan_decode(rank, cover, self.ownership, rounds, turn) for rank in range(self.size)]
            )

    def memory_bytes(self) -> int:
        """The most that one rank is expected to hold, everything included."""
        card, job, shape = self.card, self.job, self.ownership.shape
        item, latents = 4 * card.channels, shape[0] * shape[1]
        rows, columns = (min(a, b) for a, b in zip(self.ownership.sides, shape, strict=True))
        share = -(-self.ownership.count // self.size) * rows * columns
        level = (6 + 2 * bool(job.image)) * share  # two of them while a checkpoint is written
        known = [Path(name) for name in (job.image, job.mask) if name and not reads_in_boxes(Path(name))]
        held = self.inputs.nbytes + len(known) * job.size[0] * job.size[1] * card.image_channels
        level += 4 * (2 * self.contributions // self.size + card.patch**2 * int(job.batch_size or 1))
        network = sum(f.stat().st_size for c in self.cards for f in c.folder.rglob("*.safetensors")) * 4
        shard_px = 4 * card.image_channels * rows * columns * card.factor**2
        activations = (
            600 * item * card.patch**2 * int(job.batch_size or 1) // 4 + 64 * 4 * (2 * card.patch * card.factor) ** 2
        )
        drawn = 12 * latents if job.cover == "random" else 0
        return REST_BYTES + item * level + network + 4 * shard_px + activations + held + drawn

    def plan_summary(self) -> dict[str, Any]:
        """The plan as ``--dry-run`` prints it.

        Where the label map is still to be sampled, evaluations are the least there can be: one a window.
        """
        facts: dict[str, Any] = {
            "latent_shape": [self.card.channels, *self.ownership.shape],
            "levels": len(self.timesteps),
            "shards": len(self.wanted),
            "files": self.layout.files(),
            "ranks": self.size,
            "job": self.job.plain(),
        }
        if self.label_stage is not None:
            facts = {"label_map": self.label_stage.plan_summary(), **facts, "evaluations_are": "at least"}
        windows, evaluations, exchanged = [], [], 0
        per_rank = np.zeros(self.size, np.int64)
        for level in range(len(self.timesteps)):
            parts = self.parts(level)
            windows.append(parts[0].windows)
            evaluations.append(parts[0].evaluations)
            condition = self.condition if level in self.guided_levels else self.condition.unguided()
            per_rank += [int(condition.costs(part.label_bits).sum()) for part in parts]
            exchanged += sum(sum(part.travelling()) for part in parts) * 4 * self.card.channels
        for part in self.decode_parts(self.wanted) if self.card.factor > 1 else ():
            before, after = part.travelling()
            exchanged += 4 * (before * self.card.channels + after * self.card.factor**2 * self.card.image_channels)
        return {
            **facts,
            "windows_per_level": windows,
            "evaluations_per_level": evaluations,
            "evaluations": int(sum(evaluations)),
            "evaluations_per_rank": {"min": int(per_rank.min()), "max": int(per_rank.max())},
            "exchange_bytes": int(exchanged),
            "memory_bytes_per_rank": self.memory_bytes(),
        }


def prepare(job: SampleJob, options: RunOptions, size: int, local_size: int) -> Prepared:
    """Check a job against its model, inputs, output and machine; writes nothing. Rank 0 calls this.

    Raises:
        ValueError: anything that would stop the run, with the way out.
    """
    card = read_card(job.model)
    if not card.decodes:
        raise ValueError(f"`model` {job.model} has no autoencoder; convert the checkpoint again with --vae DIR")
    job = with_default_labels(job, card).resolved(card)
    cards = style_cards(job, card)
    frames = Frames(job.size, card.factor, card.patch, job.count)
    inputs = read_inputs(job, card, frames)
    uniform = card.condition in ("class", "label-map") and job.labels is None and job.label is not None
    check_accept(job.accept, len(card.labels) if inputs.table is None else len(inputs.table), uniform)
    roi, roi_hashes = read_roi(job, frames)
    inputs = replace(inputs, roi=roi)
    hashes = {**inputs.hashes, **roi_hashes, **check_inpainting(job, card)}
    stage = None
    if job.label_model:
        label_job, label_options = label_stage(job, options, card)
        stage = prepare(label_job, replace(label_options, dry_run=True), size, local_size)
        hashes["labels_hash"] = f"sampled {digest_of_identity(stage.identity)}"
    if job.style:
        hashes["style_hash"] = " ".join(c.hash for c in cards)
    identity = job.identity(card, hashes)
    state = "absent" if options.dry_run else output_state(Path(options.out), identity, options)
    if stage is not None:
        there = state == "unfinished"
        stage = replace(
            stage,
            options=label_options,
            state=output_state(Path(label_options.out), stage.identity, label_options) if there else "absent",
        )
    prepared = Prepared(job, options, cards, size, inputs, identity, state, stage)
    if not options.dry_run:
        check_preview(options)
    if not options.dry_run and state != "finished":
        check_machine(prepared, local_size)
    unread = replace(inputs, labels=deepcopy(inputs.labels), roi=deepcopy(inputs.roi))
    return replace(prepared, inputs=unread)  # without what was read and worked out on the way: it is sent to all ranks


def style_cards(job: SampleJob, card: ModelCard) -> tuple[ModelCard, ...]:
    """The cards of a job's styles, of the same network as the model.

    Raises:
        ValueError: a style that cannot take the model's place.
    """
    if not job.style:
        return (card,)
    for name in styles_of(job):
        if not Path(name).is_dir():
            raise ValueError(f"`style` {name} is not there; pass model folders, separated by commas")
    cards = tuple(read_card(name) for name in styles_of(job))
    for name, other in zip(styles_of(job), cards, strict=True):
        if replace(other, folder=card.folder, hash="", defaults={}) != replace(card, hash="", defaults={}):
            raise ValueError(f"`style` {name} is another kind of model than {card.folder}; give one trained alike")
    return cards


def digest_of_identity(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


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
            "give the same settings to go on with it, choose another `out`, or pass `overwrite` to replace it"
        )
    if found["state"] == "finished":
        return "replace" if options.overwrite else "finished"
    return "unfinished" if options.resume == "auto" else "replace"


def check_machine(prepared: Prepared, local_size: int) -> None:
    """Refuse what cannot fit into this node's memory or the output's disk.

    Raises:
        ValueError: naming what is needed and what there is.
    """
    shape = prepared.ownership.shape
    latents = shape[0] * shape[1]
    need = prepared.memory_bytes() * local_size
    have = available_memory()
    if have and need > have:
        raise ValueError(
            f"the plan needs {need / 2**30:.1f} GiB on this node ({local_size} ranks) "
            f"but {have / 2**30:.1f} GiB are free; "
            "use more nodes, fewer ranks a node, a smaller `shard` or `batch_size`, or a smaller `size`"
        )
    log = prepared.options.json_log
    if log and (Path(log).is_dir() or not Path(log).absolute().parent.is_dir()):
        raise ValueError(f"`json_log` {log}: not a file in a folder that is there; choose another")
    path = Path(prepared.options.out)
    parent = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    if parent != path.absolute() and not parent.is_dir():
        raise ValueError(f"`out` {path}: {parent} is not a folder; choose another `out`")
    if not os.access(parent, os.W_OK):
        raise ValueError(f"`out` {path}: {parent} cannot be written; choose another `out`")
    height, width = prepared.job.size
    least = prepared.frames.images * height * width * prepared.card.image_channels // 4
    least += 2 * 4 * latents * prepared.card.channels
    free = shutil.disk_usage(parent).free
    if free < least and prepared.state != "unfinished":
        raise ValueError(
            f"`out` {path}: the result takes at least {least / 2**20:.0f} MiB "
            f"but {free / 2**20:.0f} MiB are free there; choose another `out`"
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
