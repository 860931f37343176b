"""Which folders an output becomes, and from which of its arrays each is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from engine.storage.output import Output


@dataclass(frozen=True)
class Part:
    """One folder of the export.

    Args:
        folder: Name of the folder.
        array: Name of the output's array that it is made from.
        make: From pixels of that array to those that are written.
    """

    folder: str
    array: str
    make: Callable[[np.ndarray], np.ndarray] = np.asarray

    def eight_bits(self, output: Output) -> bool:
        """Whether the pixels that are written are uint8."""
        return self.make is mask_of or output.array(self.array).dtype == np.uint8


def parts_of_set(output: Output) -> list[Part]:
    """The folders that are written for a set."""
    label = output.layout.label and output.layout.label.name
    parts = [Part("samples", "images")]
    if label == "nuclei":
        parts += [Part("labels", label, mask_of), Part("inst_masks", label)]
    elif label:
        parts.append(Part("labels", label))
    return parts


def parts_of_image(output: Output) -> list[Part]:
    """The folders that are written for one image."""
    parts = [Part("samples", output.layout.image)]
    if output.layout.label and output.layout.labels:
        nuclei = output.layout.label.name == "nuclei"
        parts.append(Part("labels", output.layout.labels, mask_of if nuclei else np.asarray))
        parts += [Part("inst_masks", output.layout.labels)] * nuclei
    return parts


def mask_of(instances: np.ndarray) -> np.ndarray:
    """Turn an instance map into a mask: uint8, 255 in nuclei and 0 outside."""
    return np.where(instances > 0, np.uint8(255), np.uint8(0))
