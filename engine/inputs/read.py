"""What a job's files hold: read and checked on rank 0, then turned into the condition on every rank."""

from __future__ import annotations

from engine.diffusion.latent_map import LatentMap
from engine.inputs.embeddings import read_embeddings
from engine.inputs.labels import label_source, labels_digest, read_class_table
from engine.inputs.maps import digest_of
from engine.inputs.semantic import read_semantic
from engine.inputs.values import Inputs
from engine.job import SampleJob
from engine.models.card import ModelCard
from engine.planning.geometry import Frames
from engine.storage.layout import LabelArray


def read_inputs(job: SampleJob, card: ModelCard, frames: Frames) -> Inputs:
    """Read and check all files that a job names, but for its in-painting. Rank 0 calls this.

    Raises:
        ValueError: a file that does not suit the model or the canvas, with the way out.
    """
    if card.condition == "embedding":
        return read_embeddings(job, card, frames)
    if card.condition == "semantic":
        return read_semantic(job, card, frames)
    if card.condition == "none":
        return Inputs()
    table, known, hashes = None, len(card.labels), {}
    if card.condition == "class" and card.embedding_width:
        table = read_class_table(job, card)
        known = len(table)
        hashes["embeddings_hash"] = digest_of(table)
    entries = tuple(zip(card.labels, card.colors, strict=True)) if known == len(card.labels) else ()
    stored = LabelArray("tissue" if card.condition == "label-map" else "classes", "uint8", entries)
    if job.label_model:
        return Inputs({}, stored)
    source = label_source(job, card, known)
    digest = labels_digest(source, frames)
    return Inputs({**hashes, "labels_hash": digest}, stored, LatentMap(frames, source.read), table=table)
