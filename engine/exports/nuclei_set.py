"""What the images of a set of nuclei were made from, once more: their conditions, references and names."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from engine.exports.pictures import channels_last, write_picture
from engine.inputs.appearance import Appearance
from engine.inputs.maps import box_of
from engine.inputs.nuclei import channel_count
from engine.inputs.nuclei_scan import scan_nuclei
from engine.inputs.references import References, appearance_by, hashes_of, references_of
from engine.job import SampleJob
from engine.options import options_of
from engine.planning.geometry import Box
from engine.storage.output import Output

CONDITION = ("hv", "edges")  # channels of the condition where the output does not name those of its model


class NucleiSet:
    """A set of images of nuclei, and what its provenance says of how they came to be.

    References are not in the output: they are read from where they lay, if they are still there and the same.
    """

    def __init__(self, output: Output) -> None:
        facts = output.provenance
        self.identity: dict[str, Any] = facts.get("identity", {})
        self.sources: dict[str, Any] = facts.get("sources", {})
        known = {k: v for k, v in facts.get("job", {}).items() if k in options_of(SampleJob) and v is not None}
        self.job = SampleJob(**known)
        self.references = self._references() if self.sources.get("chosen") else None
        channels = tuple(facts.get("condition_channels", CONDITION))
        colored = self.references is not None or not (self.sources.get("chosen") or self.job.colors)
        self.channels = tuple(part for part in channels if part != "color" or colored)
        self.appearance: Appearance | None = None
        if self.references is not None:
            self.appearance = appearance_by(self.references, self.sources["chosen"], self.job.seed)

    def _references(self) -> References | None:
        """The references, if they are those that the set was made from."""
        try:
            references = references_of(self.job)
            assert references is not None
            digests, _ = hashes_of(references)
        except (ValueError, OSError):
            return None
        return references if all(self.identity.get(name) == value for name, value in digests.items()) else None

    def conditions(self, instances: np.ndarray, first: int) -> np.ndarray:
        """The conditions of images, without colours if those were taken from an image that is not at hand.

        Args:
            instances: Their instance maps (images, h, w).
            first: Number of the first of them in the set.
        Returns:
            float32 (images, channels, h, w).
        """
        job, shape = self.job, instances.shape
        if not instances.any() and "color" not in self.channels:
            return np.zeros((shape[0], channel_count(self.channels), *shape[1:]), np.float32)
        nuclei = scan_nuclei(
            partial(box_of, instances),
            shape[1:],  # type: ignore[arg-type]
            len(instances),
            colors=(job.nucleus_color, job.background_color),  # type: ignore[arg-type]
            border="published" if job.border_nuclei == "published" else "keep",
            least_area=job.least_area or 0,
            split=job.torn_nuclei == "split",
            empty=True,
        )
        box = Box(0, 0, *shape[1:])

        def maps(index: int, ids: np.ndarray) -> np.ndarray:
            colors = None if self.appearance is None else partial(self.appearance.colors, first + index)
            return nuclei.image(index).maps(lambda part: ids[part.within(box)], box, self.channels, colors)

        return np.stack([maps(index, ids) for index, ids in enumerate(instances)])

    def write_references(self, folder: Path, names: list[str]) -> None:
        """Write the reference of every image under the image's name, where references are at hand."""
        if self.references is None:
            return
        folder.mkdir()
        chosen = self.sources["chosen"]
        for index, name in enumerate(names):
            picture = self.references.picture(chosen[index % len(chosen)])
            write_picture(folder / f"{name}.png", channels_last(picture))


def names_of(output: Output, count: int) -> list[str]:
    """The names of a set's files: those of the instance maps, as the nuclei system counts them on, or numbers."""
    stems = output.provenance.get("sources", {}).get("names") or ()
    if not stems:
        digits = max(6, len(str(count - 1)))
        return [f"{index:0{digits}}" for index in range(count)]
    return list(_counted_on([stems[index % len(stems)] for index in range(count)]))


def _counted_on(stems: list[str]) -> Iterator[str]:
    """Each stem, or the first of STEM_0, STEM_1, ... that was not used.

    >>> list(_counted_on(["a", "b", "a", "a"]))
    ['a', 'b', 'a_0', 'a_1']
    """
    used: set[str] = set()
    tried: dict[str, int] = {}
    for stem in stems:
        name = stem
        while name in used:
            name, tried[stem] = f"{stem}_{tried.get(stem, 0)}", tried.get(stem, 0) + 1
        used.add(name)
        yield name
