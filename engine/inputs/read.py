"""Everything that a job's files hold: read, checked and hashed in one visit, on rank 0."""

from __future__ import annotations

from collections.abc import Callable

from engine.inputs.embeddings import read_embeddings
from engine.inputs.labels import read_labels
from engine.inputs.masks import add_known_image, add_roi
from engine.inputs.semantic import read_semantic
from engine.inputs.values import Inputs
from engine.job import SampleJob
from engine.models.card import ModelCard
from engine.planning.geometry import Frames

READERS: dict[str, Callable[[SampleJob, ModelCard, Frames], Inputs]] = {
    "label-map": read_labels,
    "class": read_labels,
    "embedding": read_embeddings,
    "semantic": read_semantic,
    "none": lambda job, card, frames: Inputs(),
}


def read(job: SampleJob, card: ModelCard, frames: Frames) -> Inputs:
    """Read and check every file that a job names. Rank 0 calls this.

    Returns:
        The contents with the hash of each; the model's own hash, a style's and a sampled label map's are not among
        them.
    Raises:
        ValueError: a file that does not suit the model or the canvas, with the way out.
    """
    inputs = READERS[card.condition](job, card, frames)
    inputs = add_roi(inputs, job, frames)
    return add_known_image(inputs, job, card)
