"""Embeddings on a grid over the canvas, or one for every image of a set."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from engine.inputs.maps import digest_of
from engine.inputs.values import Inputs
from engine.job import SampleJob
from engine.models.card import ModelCard
from engine.planning.geometry import Frames
from engine.storage.readers import read_array


def read_embeddings(job: SampleJob, card: ModelCard, frames: Frames) -> Inputs:
    """The embeddings that a job names, and those of the larger region around each.

    Raises:
        ValueError: embeddings of another extractor or number, or such as the model has no token for.
    """
    hashes, grids = {}, {}
    for option, width in (("embeddings", card.embedding_width), ("region_embeddings", card.region_width)):
        value = getattr(job, option)
        if value is None:
            continue
        name = f"`{option}`"
        if not width:
            raise ValueError(f"{name} {value} is given but the model has no such token; leave it out")
        array = np.asarray(read_array(Path(value), name))
        grids[option] = on_grid(array, job, card, frames, f"{name} {value}", width)
        hashes[f"{option}_hash"] = digest_of(grids[option])
    return Inputs(hashes, None, grid=grids["embeddings"], region=grids.get("region_embeddings"))


def on_grid(array: np.ndarray, job: SampleJob, card: ModelCard, frames: Frames, what: str, width: int) -> np.ndarray:
    """float32 (rows, columns, width), or (images, width) of a set.

    Args:
        array: Embeddings as the file has them: (rows, columns, width), or a list (n, width) in that order.
        what: Name of the file, for messages.
        width: Numbers of an embedding that the model takes.
    """
    if array.dtype.kind != "f" or not np.isfinite(array).all():
        raise ValueError(f"{what} holds {array.dtype}; embeddings are finite floating-point numbers")
    if array.shape[-1] != width:
        raise ValueError(
            f"{what} has shape {array.shape}: {array.shape[-1]} numbers each, but the model takes {width}; "
            "give embeddings of the extractor that the model was trained with"
        )
    if job.count is not None:
        if array.shape != (job.count, width):
            raise ValueError(f"{what} has shape {array.shape}; a set of {job.count} takes one row an image")
        return array.astype(np.float32)
    pitch = job.pitch or card.patch * card.factor
    rows, columns = (-(-n // pitch) for n in job.size)
    given = job.grid or (array.shape[:2] if array.ndim == 3 else (rows, columns))
    listed = array.reshape(-1, width)
    if len(listed) != given[0] * given[1]:
        raise ValueError(
            f"{what} holds {len(listed)} embeddings, not {given[0]} x {given[1]}; pass `grid` HxW of that many"
        )
    if given != (rows, columns):
        raise ValueError(
            f"{what} is a grid of {given[0]} x {given[1]} "
            f"but {job.size[0]} x {job.size[1]} px take {rows} x {columns}, one every {pitch} px; "
            f"pass `size` {given[0] * pitch}x{given[1] * pitch}, or another `pitch`"
        )
    return listed.reshape(rows, columns, width).astype(np.float32)
