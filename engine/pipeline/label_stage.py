"""The hierarchy: a label model samples the label map, at its own scale, and the image is sampled from it.

Source: DiffInfinite (Aversa et al. 2023, arXiv:2306.13384).
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from engine.inputs.label_cleanup import REACH, clean_box, majority_box
from engine.inputs.values import LabelSource
from engine.job import RunOptions, SampleJob
from engine.models.card import ModelCard, read_card
from engine.models.files import EMBEDDED, EMBEDDED_LABELS
from engine.planning.geometry import Window
from engine.storage.output import Output


def with_default_labels(job: SampleJob, card: ModelCard) -> SampleJob:
    """The embedded model samples its label map with the embedded label model, where no labels are named."""
    named = (job.labels, job.label, job.label_model, job.count, job.image)
    if card.folder != EMBEDDED.resolve() or any(value is not None for value in named):
        return job
    return replace(job, label_model="embedded")


def label_stage(job: SampleJob, options: RunOptions, card: ModelCard) -> tuple[SampleJob, RunOptions]:
    """The job that samples the label map, and where it goes: beside the image's private files, until that is done.

    Raises:
        ValueError: no label model, one of other labels, or a prompt that it does not know.
    """
    name = str(EMBEDDED_LABELS) if job.label_model == "embedded" else str(job.label_model)
    if job.label_model != "embedded" and not Path(name).is_dir():
        raise ValueError(f"`label_model` {name} is not there; pass a label model's folder, or 'embedded'")
    labels = read_card(name)
    if labels.role != "labels":
        raise ValueError(f"`label_model` {job.label_model} samples images, not label maps; pass a label model")
    if labels.label_count != len(card.labels):
        raise ValueError(
            f"`label_model` {job.label_model} makes maps of {labels.label_count} labels but the model knows "
            f"{len(card.labels)}; pass models that were trained on the same labels"
        )
    size = (-(-job.size[0] // labels.label_scale), -(-job.size[1] // labels.label_scale))
    side = stage_shard(job, labels)
    if labels.factor > 1 and min(size) < REACH:
        raise ValueError(
            f"`size` {job.size[0]}x{job.size[1]} has a label map of {size[0]} x {size[1]} px, "
            f"too small for its clean-up; choose at least {REACH * labels.label_scale} px a side"
        )
    made = SampleJob(  # never compiled: a map has too few windows to pay for it
        model=name,
        size=size,
        shard=side,
        chunk=side,
        label=prompt_class(job.prompt, labels),
        seed=stage_seed(job.seed),
        steps=job.label_steps,
        guidance=job.label_guidance,
        dtype=job.dtype,
        device=job.device,
        threads=job.threads,
    )
    out = str(Path(options.out) / "slidefield" / "labels.zarr")
    return made, replace(options, out=out, preview="none", overwrite=False, json_log=None)


def stage_shard(job: SampleJob, labels: ModelCard) -> int:
    """Side of the label map's shards, px: of about as much of the image as its own, so that ranks share it."""
    window = labels.patch * labels.factor
    return max(job.shard // labels.label_scale // window, 1) * window


def stage_seed(seed: int) -> int:
    """A seed of its own for the label map, hashed: no sum, which would give stage 2 of one seed to stage 1 of another.

    >>> stage_seed(0) != stage_seed(1) - 1
    True
    """
    return int.from_bytes(hashlib.sha256(f"label map {seed}".encode()).digest()[:8], "little") & (2**63 - 1)


def prompt_class(prompt: str | None, labels: ModelCard) -> int:
    """The class that a prompt names, by name or number; by default the first."""
    if prompt is None:
        return 0
    if prompt in labels.labels:
        return labels.labels.index(prompt)
    if prompt.isdigit() and int(prompt) < len(labels.labels):
        return int(prompt)
    names = ", ".join(f"{i} {name}" for i, name in enumerate(labels.labels))
    raise ValueError(f"`prompt` {prompt}: the label model knows {names}; choose one of these")


def stage_source(stage: Output, card: ModelCard, size: tuple[int, int]) -> LabelSource:
    """The label map at the image's size, from the label stage's finished output."""
    scale = stage.provenance["label_scale"]
    if stage.provenance["one_hot"]:
        return LabelSource(partial(enlarged, stage, scale, card), "sampled")
    return LabelSource(partial(cleaned, stage, card, size), "sampled")


def enlarged(stage: Output, scale: int, card: ModelCard, image: int, box: Window, step: int) -> np.ndarray:
    """A box of the map at the image's size, its specks and holes voted away; nearest.

    What one channel a label gave has no boundaries to clean: no label lies between two others.
    """
    rows = np.arange(box.y0, box.y1, step) // scale
    columns = np.arange(box.x0, box.x1, step) // scale
    held = Window(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)

    def read(window: Window) -> np.ndarray:
        return np.round(stage.read("0", window)[0] * ((len(card.labels) - 1) / 255))

    labels = majority_box(read, stage.layout.size, held, len(card.labels))
    return labels[np.ix_(rows - held.y0, columns - held.x0)]


def cleaned(stage: Output, card: ModelCard, size: tuple[int, int], image: int, box: Window, step: int) -> np.ndarray:
    """A box of the map at the image's size, after the published clean-up."""

    def read(window: Window) -> np.ndarray:
        return (stage.read("0", window)[0] + np.float32(0.5)) / 255  # what the clean-up truncates to the same levels

    found = clean_box(read, stage.layout.size, size, box, len(card.labels))
    return found[::step, ::step].astype(np.uint8)
