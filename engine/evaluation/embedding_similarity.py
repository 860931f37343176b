"""Do images show what their embeddings ask for? The cosine of embeddings asked for and made, of Large-Image-Diffusion.

An image is conditioned on the embedding of a patch at every cell of a grid, an image of a set on one. What comes out is
cut into patches there, each is embedded by the same extractor, and the cosine with what was asked is taken (Graikos et
al. 2024, arXiv:2312.07330). Beside it stands the cosine with what was asked half the grid away: of an extractor whose
embeddings are all alike both are high.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.distributed.ranks import Ranks
from engine.embedding.extractors import FeatureExtractor
from engine.evaluation.crops import share
from engine.evaluation.measures import Measure
from engine.evaluation.sources import OutputSource
from engine.inputs.embeddings import checked_hash, rows_in_file
from engine.inputs.input_file import InputFile
from engine.inputs.stored_grid import StoredGrid
from engine.job import SampleJob
from engine.models.card import ModelCard, read_card
from engine.options import names_function, options_of
from engine.planning.geometry import Box
from engine.storage.embedding_file import read_origin
from engine.storage.readers import HDF5, read_rows, split_dataset

BATCH = 32
GROUP = "embeddings"


@dataclass(frozen=True)
class Asked:
    """Embeddings that were asked for, and where in the images what they ask for is: plain values.

    Args:
        cells: int64 (n, 2): rows and columns of the grid; of a set the image's number and 0.
        places: int64 (n, 3): image, row and column of each patch's corner, px.
        side: Of a patch, px; 0: the image whole.
    """

    grid: StoredGrid
    cells: np.ndarray
    places: np.ndarray
    side: int

    def box(self, number: int, size: np.ndarray) -> Box:
        if not self.side:
            return Box(0, 0, int(size[0]), int(size[1]))
        y, x = map(int, self.places[number, 1:])
        return Box(y, x, y + self.side, x + self.side)

    def embedding(self, number: int) -> np.ndarray:
        """float64 (D,) of length 1."""
        y, x = map(int, self.cells[number])
        return with_length_1(np.asarray(self.grid[y] if self.grid.is_set else self.grid[y, x], np.float64))


def embedding_similarity(ranks: Ranks, source: OutputSource, extractor: FeatureExtractor) -> list[Measure]:
    """Mean cosine of embeddings asked for and made, and of those asked for elsewhere, with standard errors. Collective.

    Args:
        extractor: The one that made the embeddings.
    Raises:
        ValueError: the output was not made from embeddings, or they or the model are not there any more or others, or
            another extractor made them.
    """
    asked = ranks.on_root(lambda: asked_of(source, extractor))
    count = len(asked.cells)
    own, sums = share(count, ranks.rank, ranks.size), np.zeros((2, 2))

    def compare() -> None:
        for first in range(own.start, own.stop, BATCH):
            batch = range(first, min(first + BATCH, own.stop))
            made = features_at(source, asked, batch, extractor)
            for number, vector in zip(batch, made, strict=True):
                pair = (asked.embedding(number), asked.embedding((number + count // 2) % count))
                cosines = np.array([vector @ other for other in pair])
                sums[:] += cosines, cosines**2

    ranks.agree(compare)
    ranks.allreduce_array(sums)
    mean, square = sums / count
    error = np.sqrt(np.clip(square - mean**2, 0, None) / max(count - 1, 1))
    says = f"of {count} patches, by {extractor.name}"
    names = ("cosine of asked and made", "higher"), ("cosine with what is asked elsewhere", "")
    return [
        Measure(GROUP, name, float(mean[n]), better, None, float(error[n]), says=says)
        for n, (name, better) in enumerate(names)
    ]


def features_at(source: OutputSource, asked: Asked, batch: range, extractor: FeatureExtractor) -> np.ndarray:
    """float64 (n, D): the embeddings of what was made, of length 1."""
    images = [int(asked.places[number, 0]) for number in batch]
    boxes = [asked.box(number, source.sizes[image]) for number, image in zip(batch, images, strict=True)]
    pixels = np.stack([source.read(image, box) for image, box in zip(images, boxes, strict=True)])
    features, _ = extractor(pixels, lambda index: f"{source.named(images[index])} at {boxes[index]}")
    if features.shape[1] != asked.grid.width:
        raise ValueError(
            f"{asked.grid.file} has {asked.grid.width} numbers each and {extractor.name} makes {features.shape[1]}; "
            "pass the `features` that made them"
        )
    return with_length_1(features.astype(np.float64))


def with_length_1(vectors: np.ndarray) -> np.ndarray:
    """
    >>> with_length_1(np.array([3.0, 4.0])).tolist()
    [0.6, 0.8]
    """
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


# ---- what was asked -----------------------------------------------------------------------------


def asked_of(source: OutputSource, extractor: FeatureExtractor) -> Asked:
    """The embeddings that an output was made from. Local.

    Raises:
        ValueError: as ``embedding_similarity`` says.
    """
    facts = source.output.provenance
    known = {k: v for k, v in facts.get("job", {}).items() if k in options_of(SampleJob) and v is not None}
    job = SampleJob(**known)
    if job.embeddings is None or "embeddings_hash" not in facts.get("identity", {}):
        raise ValueError(f"{source.path} was not made from embeddings; this measure is for outputs that were")
    if names_function(job.embeddings):
        raise ValueError(f"{source.path} was made from {job.embeddings}, a function; this measure is for files")
    card = card_of(job, str(facts.get("model_hash")), source.path)
    file = InputFile(Path(job.embeddings), "`embeddings`", read_rows)
    check_extractor(file.path, int(np.prod(file.array.shape[:-1])), extractor)
    width = file.array.shape[-1]
    grid = StoredGrid(file, rows_in_file(file, "rows", job.rows, job, card), width, source.kind == "set")
    if checked_hash(grid) != facts["identity"]["embeddings_hash"]:
        raise ValueError(f"{file} is not what {source.path} was made from; bring back the file as it was")
    return placed(grid, job, card, source)


def card_of(job: SampleJob, model_hash: str, path: Path) -> ModelCard:
    """The card of the model that made an output, which knows its window.

    Raises:
        ValueError: it is not there, or another.
    """
    card = read_card(job.model)
    if card.hash != model_hash or card.condition != "embedding":
        raise ValueError(f"`model` {job.model} is not the one that made {path}; bring back the folder as it was")
    return card


def check_extractor(path: Path, count: int, extractor: FeatureExtractor) -> None:
    """Refuse another extractor than a file of ``engine.embed`` says it is of.

    Raises:
        ValueError: naming both.
    """
    file, _ = split_dataset(path)
    facts = read_origin(file, count)[0] if file.suffix in HDF5 else {}
    if facts.get("extractor_hash") not in (None, "", extractor.hash):
        raise ValueError(
            f"`embeddings` {path} were made by {facts.get('extractor')} and `features` is {extractor.name}, or another "
            "version; pass the same"
        )


def placed(grid: StoredGrid, job: SampleJob, card: ModelCard, source: OutputSource) -> Asked:
    """Where each embedding's patch lies; patches that reach beyond the image are left out.

    Raises:
        ValueError: none lies within.
    """
    rows, columns = grid.rows.shape
    cells = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), -1).reshape(-1, 2)
    if grid.is_set:
        return Asked(grid, cells, np.stack([cells[:, 0], 0 * cells[:, 0], 0 * cells[:, 0]], 1), 0)
    side = card.patch * card.factor
    pitch = job.pitch or side
    shift = 0 if job.interpolation == "corner" else (pitch - side) // 2
    corners = cells * pitch + shift
    within = ((corners >= 0) & (corners + side <= source.sizes[0])).all(1)
    if not within.any():
        raise ValueError(f"{source.path} has no room for a patch of {side} px; no embedding can be compared")
    places = np.concatenate([np.zeros((int(within.sum()), 1), np.int64), corners[within]], 1)
    return Asked(grid, cells[within], places, side)
