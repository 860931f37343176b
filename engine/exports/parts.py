"""Which folders an output becomes, and from which of its arrays each is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from engine.inputs.maps import box_of
from engine.inputs.nuclei import channel_count
from engine.inputs.nuclei_scan import scan_nuclei
from engine.planning.geometry import Box
from engine.storage.output import Output

CONDITION = ("hv", "edges")  # channels of the condition where the output does not name those of its model


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
        parts.append(Part("cond", label, partial(condition_maps, output.provenance)))
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


def condition_maps(provenance: Mapping[str, Any], instances: np.ndarray) -> np.ndarray:
    """Make the condition of instance maps, without colours if those were taken from an image.

    Args:
        provenance: The output's, which names the channels of the condition.
        instances: (images, h, w).
    Returns:
        float32 (images, channels, h, w).
    """
    shape, job = instances.shape, provenance.get("job", {})
    channels = tuple(provenance.get("condition_channels", CONDITION))
    colors = (job["nucleus_color"], job["background_color"]) if "color" in channels and not job["colors"] else None
    channels = tuple(part for part in channels if part != "color" or colors)
    if not instances.any():
        return np.zeros((shape[0], channel_count(channels), *shape[1:]), np.float32)
    nuclei = scan_nuclei(partial(box_of, instances), shape[1:], len(instances), colors=colors, border="keep")  # type: ignore[arg-type]
    box = Box(0, 0, *shape[1:])

    def maps(index: int, ids: np.ndarray) -> np.ndarray:
        return nuclei.image(index).maps(lambda part: ids[part.within(box)], box, channels)

    return np.stack([maps(index, ids) for index, ids in enumerate(instances)])
