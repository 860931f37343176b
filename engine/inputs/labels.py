"""Label maps and classes: from a file, a function of position, one label throughout, or the drawn example."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path

import numpy as np

from engine.diffusion.latent_map import LatentMap
from engine.inputs.example import example_labels
from engine.inputs.input_file import label_file
from engine.inputs.label_codes import recoded_file, spread_codes, table_codes
from engine.inputs.maps import MapFile, check_size, digest_of
from engine.inputs.position_function import LabelFunction, function_hash
from engine.inputs.values import Inputs, LabelSource
from engine.job import SampleJob
from engine.models.card import ModelCard
from engine.models.files import CLASSES
from engine.options import names_function
from engine.planning.geometry import Box, Frames, grid
from engine.planning.names import LARGEST_LABEL
from engine.storage.layout import LabelArray
from engine.storage.readers import read_array

READ_SIDE = 2048  # px; side of the boxes that a whole label map is read in
TRIED_SIDE = 64  # px; side of the box that a function of position is tried with before work starts


def read_labels(job: SampleJob, card: ModelCard, frames: Frames) -> Inputs:
    """The label map or the classes, and the embeddings of the classes where the model takes those.

    Where a label model samples the map, there are no labels yet.
    """
    table, hashes = None, {}
    if card.condition == "class" and card.embedding_width:
        table = read_class_table(job, card)
        hashes["embeddings_hash"] = digest_of(table)
    known = label_count(card, table)
    entries = tuple(zip(card.labels, card.colors, strict=True)) if known == len(card.labels) else ()
    label_array = LabelArray("tissue" if card.condition == "label-map" else "classes", "uint8", entries)
    if job.label_model:
        return Inputs({}, label_array)
    source = label_source(job, card, known, frames.corner)
    if names_function(job.labels):
        hashes["labels_function"] = source.identity
        source.read(0, Box(0, 0, *job.size) & Box(0, 0, TRIED_SIDE, TRIED_SIDE), 1)  # what it returns is checked
    hashes["labels_hash"] = labels_digest(source, frames)
    return Inputs(hashes, label_array, LatentMap(frames, source.read), table=table)


def label_count(card: ModelCard, table: np.ndarray | None) -> int:
    """Number of labels that the model knows: as many as the table has class embeddings, where it has a table."""
    return len(card.labels) if table is None else len(table)


def label_source(job: SampleJob, card: ModelCard, known: int, corner: tuple[int, int] = (0, 0)) -> LabelSource:
    """Where the label map comes from: a file, a function, one label throughout each image, or the drawn example.

    Args:
        known: Number of labels that the model knows; other values are refused where they are read.
        corner: Where the canvas begins on its plane, (y, x) in latents.
    Raises:
        ValueError: a file that is no label map of this size.
    """
    drawn = card.condition == "label-map" and known >= 5 and job.known_image is None
    if job.label is not None or (job.labels is None and not drawn):
        labels = job.label_numbers or (0,)
        if max(labels) >= known:
            raise ValueError(f"`label` is {max(labels)} but the model knows {known} classes: 0 to {known - 1}")
        return LabelSource(partial(uniform_labels, labels), f"label {','.join(map(str, labels))}")
    if job.labels in (None, "example"):
        if known < 5:
            raise ValueError(
                f"`labels` example draws 5 labels but the model knows {known}; pass a label map, or `label` N"
            )
        y, x = (n * card.factor for n in corner)
        return LabelSource(partial(example_of_image, job.size[0], (y, x)), "example")
    if names_function(job.labels):
        names = card.labels if known == len(card.labels) else ()
        function = LabelFunction(str(job.labels), (corner[0] * card.factor, corner[1] * card.factor), known, names)
        return LabelSource(function.read, function_hash(function.name, "labels"))
    entries = list(zip(card.labels, card.colors, strict=True))[:known]
    stack = job.count is not None
    if job.labels_scale is not None or job.labels_table is not None:
        codes = table_codes(job.labels_table, known) if job.labels_table else spread_codes(known)
        file = recoded_file(str(job.labels), "`labels`", codes, stack)
    else:
        file = label_file(str(job.labels), "`labels`", entries, stack)
    check_size(file.array.shape, job, f"label map {file.path}", "; or `resize_labels` nearest", job.resize_labels)
    return LabelSource(MapFile(file, job.size, known, card.labels).read, "")


def uniform_labels(labels: tuple[int, ...], image: int, box: Box, step: int) -> np.ndarray:
    """One label throughout each image; the images take the labels in turn."""
    return np.full((-(-box.height // step), -(-box.width // step)), labels[image % len(labels)], np.uint8)


def example_of_image(height: int, corner: tuple[int, int], image: int, box: Box, step: int) -> np.ndarray:
    """A box of the drawn example, from a corner on; the images of a set, ``height`` px high, lie below one another."""
    y, x = corner[0] + image * (-(-height // step) * step), corner[1]
    return example_labels(Box(box.y0 + y, box.x0 + x, box.y1 + y, box.x1 + x), step)


def labels_digest(source: LabelSource, frames: Frames) -> str:
    """A hash of the whole map, read once in boxes, so that every value of it has been checked after this."""
    total = hashlib.sha256(f"{source.identity} {frames.size[0]}x{frames.size[1]}".encode())
    for image in range(frames.images if not source.identity else 0):
        for box in grid(frames.size, READ_SIDE):
            total.update(np.ascontiguousarray(source.read(image, box, 1), dtype=np.uint8).tobytes())
    return total.hexdigest()


def read_class_table(job: SampleJob, card: ModelCard) -> np.ndarray:
    """float32 (classes, D): the embedding of each class, from the job's file or the model folder.

    Raises:
        ValueError: no embeddings, or a table of another shape or kind.
    """
    kept = card.folder / "embedder" / CLASSES
    if job.embeddings is None and kept.exists():
        return kept_class_table(kept, card.embedding_width)
    if job.embeddings is None:
        raise ValueError(
            f"the model {card.folder.name} is asked for classes by embeddings and holds none; "
            "pass `embeddings` FILE.npy with one row a class"
        )
    table = np.asarray(read_array(Path(job.embeddings), "`embeddings`"))
    if table.ndim != 2 or table.shape[1] != card.embedding_width or table.dtype.kind != "f":
        raise ValueError(
            f"`embeddings` {job.embeddings} has shape {table.shape} of {table.dtype}; the model takes one row of "
            f"{card.embedding_width} numbers a class"
        )
    if not np.isfinite(table).all():
        raise ValueError(f"`embeddings` {job.embeddings} holds values that are not finite; compute them again")
    if len(table) > LARGEST_LABEL + 1:
        raise ValueError(f"`embeddings` {job.embeddings} has {len(table)} classes; at most {LARGEST_LABEL + 1}")
    return table.astype(np.float32)


def kept_class_table(path: Path, width: int) -> np.ndarray:
    """float32 (classes, D): the embeddings of the classes in a model folder.

    Raises:
        ValueError: a file without them, or with such as the model does not take.
    """
    from safetensors.numpy import load_file

    table = load_file(path).get("embeddings", np.empty(0))
    if table.ndim != 2 or table.shape[1] != width or not 1 <= len(table) <= LARGEST_LABEL + 1:
        raise ValueError(
            f"{path} has embeddings of shape {table.shape}; the model takes 1 to 64 rows of {width} numbers"
        )
    if table.dtype.kind != "f" or not np.isfinite(table).all():
        raise ValueError(f"{path} holds {table.dtype} or values that are not finite; convert the checkpoint again")
    return table.astype(np.float32)
