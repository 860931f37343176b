"""The values that a job's files hold, as rank 0 sends them to all."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from engine.diffusion.boxes import ReadSteps
from engine.diffusion.latent_map import LatentMap
from engine.inputs.input_file import InputFile
from engine.inputs.nuclei import Nuclei
from engine.inputs.position_function import EmbeddingFunction
from engine.inputs.stored_grid import StoredGrid
from engine.storage.layout import LabelArray


@dataclass(frozen=True)
class Sources:
    """What the images of a set of nuclei are made from; image i from source i, and from the first again after the last.

    Args:
        names: Stems of the instance maps; empty: they lie in no folder.
        chosen: Of each instance map the number of its reference; empty: there is none.
        references: Stems of the references; empty: they lie in no folder.
        nbytes: The most bytes that a rank holds of references.
    """

    names: tuple[str, ...] = ()
    chosen: tuple[int, ...] = ()
    references: tuple[str, ...] = ()
    nbytes: int = 0


@dataclass(frozen=True)
class Inputs:
    """Everything that a job's files hold: plain values, sent from rank 0 to all.

    Args:
        hashes: Hash of each file's contents, by a name that says what they are; together they tell two jobs apart.
        label_array: The array of labels, classes or nuclei that is stored beside the image; None: there is none.
        labels: The label, class or style of each latent; None: 0 throughout, or still to be sampled.
        grid, region: Embeddings on a grid or by a function of position, and those of the larger region around; None:
            the model takes none.
        table: float32 (classes, D), the embedding of each class; None: the model takes its number.
        nuclei: The nuclei of the instance map.
        roi: 1 at the latents of the region of interest; None: everywhere.
        files: The files that are read during the run too, by the job's field: image, mask, roi, style_map.
        notes: What is to be said of them before the run.
        sources: Which instance map and which reference each image of a set is made from; None: they have no names.
    """

    hashes: dict[str, str] = field(default_factory=dict)
    label_array: LabelArray | None = None
    labels: LatentMap | None = None
    grid: StoredGrid | EmbeddingFunction | None = None
    region: StoredGrid | EmbeddingFunction | None = None
    table: np.ndarray | None = None
    nuclei: Nuclei | None = None
    roi: LatentMap | None = None
    files: dict[str, InputFile] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    sources: Sources | None = None

    @property
    def nbytes(self) -> int:
        """The most bytes that a rank holds of them, files that are still to be read left out."""
        nuclei = () if self.nuclei is None else self.nuclei.held
        held = (self.labels, self.grid, self.region, self.table, *nuclei, self.roi)
        references = 0 if self.sources is None else self.sources.nbytes
        return references + sum(array.nbytes for array in held if array is not None)

    def adding(self, hashes: dict[str, str], files: dict[str, InputFile], **fields: Any) -> Inputs:
        """The same with more hashes, more files and other fields."""
        return replace(self, hashes=self.hashes | hashes, files=self.files | files, **fields)

    def unread(self) -> Inputs:
        """The same without the blocks of maps that were kept while planning, and with their files closed."""
        kept = ("labels", "roi", "grid", "region")
        return replace(self, **{name: deepcopy(getattr(self, name)) for name in kept})


class LabelSource(NamedTuple):
    """The label map of the images at full size: plain values.

    Args:
        read: Reader of every ``step``-th label of a box of an image, from the box's corner.
        identity: Text that tells the map from another without reading it; empty: its contents do.
    """

    read: ReadSteps
    identity: str
