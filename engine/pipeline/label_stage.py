"""The label stage: a label model samples the label map, at its own scale, and the image is sampled from that.

Source: DiffInfinite (Aversa et al. 2023, arXiv:2306.13384).
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from engine.inputs.label_cleanup import REACH, clean_box, majority_box
from engine.inputs.resize import nearest_box
from engine.inputs.values import LabelSource
from engine.job import RunOptions, SampleJob, listed
from engine.messages import shortened
from engine.models.card import ModelCard, read_card
from engine.models.files import EMBEDDED, EMBEDDED_LABELS
from engine.planning.geometry import Box
from engine.storage.output import Output


def with_default_labels(job: SampleJob, card: ModelCard) -> SampleJob:
    """Where no labels are named the embedded model has the drawn map, which shows all of them.

    The images of a set have label maps that the embedded label model samples, each its own; so has an image for which
    that model is told anything, such as a prompt.
    """
    named = (job.labels, job.label, job.label_model, job.known_image)
    told = (job.count, job.prompt, job.label_steps, job.label_guidance)
    if card.folder != EMBEDDED.resolve() or any(value is not None for value in named):
        return job
    return job if all(value is None for value in told) else replace(job, label_model="embedded")


def label_stage(job: SampleJob, options: RunOptions, card: ModelCard) -> tuple[SampleJob, RunOptions]:
    """The job that samples the label map, or the label maps of a set, and its options.

    They are written among the image's private files, and removed with them once the image is finished.

    Args:
        card: Card of the image model.
    Raises:
        ValueError: no label model, one of other labels, or a prompt that it does not know.
    """
    labels = label_model_of(job, card)[1]
    size = (-(-job.size[0] // labels.label_scale), -(-job.size[1] // labels.label_scale))
    if labels.factor > 1 and min(size) < REACH:
        raise ValueError(
            f"`size` {job.size[0]}x{job.size[1]} has a label map of {size[0]} x {size[1]} px, "
            f"too small for its clean-up; choose at least {REACH * labels.label_scale} px a side"
        )
    out = str(Path(options.out) / "slidefield" / "labels.zarr")
    quiet = replace(options, out=out, preview="none", report=False, live=None, json_log=None, region=None)
    return replace(stage_job(job, card), size=size), replace(quiet, overwrite=False, mend=True)


def stage_job(job: SampleJob, card: ModelCard) -> SampleJob:
    """The job that samples the label map, without its size.

    Args:
        card: Card of the image model.
    Raises:
        ValueError: as of ``label_stage``.
    """
    name, labels = label_model_of(job, card)
    side = stage_shard(job, labels)
    return SampleJob(  # never compiled: a map has too few windows to pay for it
        model=name,
        count=job.count,
        shard=side,
        chunk=side,
        label=prompt_classes(job.prompt, labels),
        seed=stage_seed(job.seed),
        steps=job.label_steps,
        guidance=job.label_guidance,
        dtype=job.dtype,
        device=job.device,
        threads=job.threads,
    )


def label_model_of(job: SampleJob, card: ModelCard) -> tuple[str, ModelCard]:
    """The label model's folder and card.

    Raises:
        ValueError: no label model, or one of other labels than the image model's.
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
    return name, labels


def stage_shard(job: SampleJob, labels: ModelCard) -> int:
    """Side of the label map's shards, px: each covers about as much of the image as one of the image's, so that the
    map has enough shards for all ranks.
    """
    window = labels.patch * labels.factor
    return max(job.shard // labels.label_scale // window, 1) * window


def stage_seed(seed: int) -> int:
    """The label map's own seed: a hash, because a sum could give one job's map the noise of another job's image.

    >>> stage_seed(0) != stage_seed(1) - 1
    True
    """
    return int.from_bytes(hashlib.sha256(f"label map {seed}".encode()).digest()[:8], "little") & (2**63 - 1)


def prompt_classes(prompt: int | str | tuple[int | str, ...] | None, labels: ModelCard) -> int | tuple[int, ...]:
    """The class, or the classes in turn, that a prompt names by name or number; without a prompt the first.

    Raises:
        ValueError: a class that the label model does not know.
    """

    def class_of(one: int | str) -> int:
        if one in labels.labels:
            return labels.labels.index(str(one))
        if isinstance(one, int) and one < len(labels.labels):
            return one
        raise ValueError(f"`prompt` {shortened(str(one))}: the label model knows {listed(labels)}; choose one of these")

    if isinstance(prompt, tuple):
        return tuple(map(class_of, prompt))
    return 0 if prompt is None else class_of(prompt)


def stage_source(stage: Output, card: ModelCard, size: tuple[int, int]) -> LabelSource:
    """The label maps at the images' size, from the label stage's finished output.

    Args:
        card: Card of the image model, whose labels they are.
        size: Height and width of the image, px.
    """
    scale = stage.provenance["label_scale"]
    if stage.provenance["one_hot"]:
        return LabelSource(partial(enlarged, stage, scale, card), "sampled")
    return LabelSource(partial(cleaned, stage, card, size), "sampled")


def enlarged(stage: Output, scale: int, card: ModelCard, image: int, box: Box, step: int) -> np.ndarray:
    """A box of the map at the image's size, after specks and holes were voted away.

    A model with one channel a label has no boundaries to clean: none of its labels lies between two others.
    """
    size, known = stage.layout.size, len(card.labels)

    def read_labels(window: Box) -> np.ndarray:
        return np.round(stage.read_part(image, window)[0] * ((known - 1) / 255))

    def voted(window: Box) -> np.ndarray:
        return majority_box(read_labels, size, window, known)

    return nearest_box(voted, size, (size[0] * scale, size[1] * scale), box, step)


def cleaned(stage: Output, card: ModelCard, size: tuple[int, int], image: int, box: Box, step: int) -> np.ndarray:
    """A box of the map at the image's size, after the published clean-up."""

    def read(window: Box) -> np.ndarray:
        return (
            stage.read_part(image, window)[0] + np.float32(0.5)
        ) / 255  # the clean-up truncates this to the stored level

    return clean_box(read, stage.layout.size, size, box, len(card.labels), step)
