"""What a job's files hold, as plain values that rank 0 sends to all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from engine.diffusion.latent_map import LatentMap, ReadSteps
from engine.inputs.nuclei import Nuclei
from engine.planning.geometry import Window
from engine.storage.layout import LabelArray

Read = Callable[[int, Window], np.ndarray]  # a box of an image of the job


@dataclass(frozen=True)
class Inputs:
    """What the files hold: plain values, sent from rank 0 to all.

    Args:
        hashes: of the files' contents, by what they are.
        stored: what is stored beside the image; None: nothing.
        labels: of the latents of the canvas; None: 0 throughout, or not known yet.
        grid, region: embeddings.
        table: of the classes.
        nuclei: of the instance map.
        roi: 1 at the latents of the region of interest; None: everywhere.
    """

    hashes: dict[str, str] = field(default_factory=dict)
    stored: LabelArray | None = None
    labels: LatentMap | None = None
    grid: np.ndarray | None = None
    region: np.ndarray | None = None
    table: np.ndarray | None = None
    nuclei: Nuclei | None = None
    roi: LatentMap | None = None

    @property
    def nbytes(self) -> int:
        nuclei = None if self.nuclei is None else self.nuclei.table
        held = (self.labels, self.grid, self.region, self.table, nuclei, self.roi)
        return sum(array.nbytes for array in held if array is not None)


class LabelSource(NamedTuple):
    """The label map of the images at full size: plain values.

    Args:
        read: (image, box, step) -> every ``step``-th label of a box, from its corner.
        identity: what tells it from another map, without reading it; empty: its content does.
    """

    read: ReadSteps
    identity: str
