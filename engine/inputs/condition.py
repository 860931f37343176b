"""The condition of a job's windows, built on every rank from what rank 0 read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from engine.diffusion.boxes import ReadImageBox
from engine.diffusion.conditions import (
    ClassMap,
    Condition,
    EmbeddingField,
    EmbeddingGrid,
    GuidanceInTurn,
    LabelMap,
    SemanticMap,
)
from engine.inputs.position_function import EmbeddingFunction
from engine.inputs.semantic import read_condition, semantic_reader, styles_of
from engine.inputs.values import Inputs
from engine.job import SampleJob
from engine.models.card import ModelCard
from engine.planning.geometry import Box, Frames


def condition_of(
    inputs: Inputs, job: SampleJob, card: ModelCard, frames: Frames, read_instances: ReadImageBox | None = None
) -> Condition:
    """What the windows of the canvas are asked for.

    Args:
        read_instances: Reader of the instance map that is stored beside the images; needed only to evaluate windows
            of a model of nuclei, not to plan.
    """
    condition = condition_of_kind(inputs, job, card, frames, read_instances)
    weights = [settings["guidance"] for settings in job.in_turn() if "guidance" in settings]
    return replace(condition, in_turn=GuidanceInTurn(tuple(weights), frames.frame[0])) if weights else condition


def condition_of_kind(
    inputs: Inputs, job: SampleJob, card: ModelCard, frames: Frames, read_instances: ReadImageBox | None
) -> Condition:
    """The condition of the model's kind, with the first image's guidance weight."""
    weight = job.guidance_weights[0]
    if card.condition == "label-map":
        return LabelMap(weight, inputs.labels)
    if card.condition == "class":
        return ClassMap(weight, inputs.labels, card.has_null, inputs.table)
    if card.condition == "embedding":
        functions: dict[str, Callable[[Box], np.ndarray]] = {
            name: function.read
            for name, function in (("embedding", inputs.grid), ("region", inputs.region))
            if isinstance(function, EmbeddingFunction)
        }
        if functions:
            width = {"embedding": card.embedding_width, "region": card.region_width}
            return EmbeddingField(weight, None, functions, width)
        assert not isinstance(inputs.grid, EmbeddingFunction)
        assert not isinstance(inputs.region, EmbeddingFunction)
        pitch = (job.pitch or card.patch * card.factor) / card.factor
        rows = None if job.count is None else frames.frame[0]
        return EmbeddingGrid(weight, None, inputs.grid, inputs.region, pitch, str(job.interpolation), rows)
    if card.condition == "semantic":
        read = partial(read_condition, semantic_reader(inputs, job, card, read_instances), frames)
        return SemanticMap(weight, inputs.labels, read, card.semantic_channels, len(styles_of(job)))
    return Condition(weight)
