"""The label map of a plane: a plane of its own, of a label model, among the private files of the image's.

A request to the image's plane first asks the label map's for all that the labels of its canvas are made from: what the
label model makes at a position is a function of the position, and what is read there is cleaned over a few pixels
around, so that the labels are too.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from engine.inputs.label_cleanup import MARGIN, cleaned_on_plane, majority_box
from engine.inputs.values import LabelSource
from engine.job import RunOptions, SampleJob
from engine.models.card import ModelCard
from engine.pipeline.label_stage import label_model_of, stage_job
from engine.pipeline.prepared import Prepared
from engine.planning.geometry import Box
from engine.planning.plane import corners_of, latents_of
from engine.storage.output import Output
from engine.storage.plane_layout import PlaneLayout, label_plane


def label_plane_identity(job: SampleJob, card: ModelCard) -> dict[str, Any]:
    """What two requests' label maps must share to be of one plane: JSON values.

    Args:
        card: Card of the image model.
    Raises:
        ValueError: as of ``stage_job``.
    """
    if not job.label_model:
        return {}
    labels = label_model_of(job, card)[1]
    label_job = stage_job(job, card).resolved(labels)
    identity = {**label_job.identity(labels, {}), "size": None, "shard": None, "chunk": None}
    text = json.dumps(identity, sort_keys=True)
    prompt = labels.labels[label_job.label_numbers[0]]
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {"label_model_hash": labels.hash, "prompt": prompt, "label_map": digest}


def label_request(prepared: Prepared, options: RunOptions) -> tuple[SampleJob, RunOptions] | None:
    """What a request to a plane asks of its label map's plane; None: no label model makes it.

    Args:
        prepared: The request as a job.
        options: Those that it was given with.
    """
    job, card, cone = prepared.job, prepared.card, prepared.cone
    if not job.label_model:
        return None
    assert cone is not None
    assert prepared.plane is not None
    labels = label_model_of(job, card)[1]
    wanted = read_for(cone.canvas.scaled(card.factor), labels.label_scale)
    quiet = replace(options, json_log=None, live=None)
    return stage_job(job, card), replace(quiet, plane=str(label_plane(prepared.plane)), region=corners_of(wanted))


def read_for(box: Box, scale: int) -> Box:
    """The pixels of the label map that the labels in a box of the image are made from.

    >>> read_for(Box(-1, 0, 16, 8), scale=8)
    Box(y0=-7, x0=-6, y1=8, x1=7)
    """
    inner = latents_of(box, scale)
    return Box(inner.y0 - MARGIN, inner.x0 - MARGIN, inner.y1 + MARGIN, inner.x1 + MARGIN)


def plane_source(plane: Path, card: ModelCard, corner: tuple[int, int]) -> LabelSource:
    """The labels of a request's canvas, from the label map's plane.

    Args:
        plane: The image's plane.
        card: Card of the image model, whose labels they are.
        corner: Where the canvas begins on the plane, (y, x) in px.
    """
    output, known = Output(label_plane(plane)), len(card.labels)
    layout, scale, one_hot = output.layout, output.provenance["label_scale"], output.provenance["one_hot"]
    assert isinstance(layout, PlaneLayout)

    def levels(box: Box) -> np.ndarray:
        return output.read(layout.image, layout.on_arrays(box))[0]

    def clean(box: Box) -> np.ndarray:
        if one_hot:
            return majority_box(lambda window: np.round(levels(window) * ((known - 1) / 255)), None, box, known)
        return cleaned_on_plane(lambda window: (levels(window) + np.float32(0.5)) / 255, box, known)

    def read(image: int, box: Box, step: int) -> np.ndarray:
        place = box.moved(*corner)
        small = latents_of(place, scale)
        rows = np.arange(place.y0, place.y1, step) // scale - small.y0
        columns = np.arange(place.x0, place.x1, step) // scale - small.x0
        return clean(small)[np.ix_(rows, columns)]

    return LabelSource(read, "sampled")
