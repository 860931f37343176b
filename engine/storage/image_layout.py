"""An output of one image has these files::

OUT/zarr.json            group: OME-Zarr 0.5 metadata; the job and its provenance under "slidefield"
OUT/0, 1, ...            the image, c y x, and its pyramid
OUT/labels/NAME/0 ...    what it was made from, y x, and its pyramid: "tissue", "classes" or "nuclei"
OUT/labels/roi/0 ...     1 in the region of interest, where one was given, and its pyramid
OUT/slidefield/          ledger, lock and, while unfinished, checkpoints, in the folder of an array without values
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import Any

import numpy as np

from engine.planning.geometry import Box, Grid, grid
from engine.storage.files import bands
from engine.storage.layout import ArraySpec, LabelArray, Layout
from engine.storage.ome_metadata import image_metadata, label_metadata, labels_metadata

ROI = LabelArray("roi", "uint8", (("outside", (0, 0, 0)), ("region of interest", (255, 200, 0))))
COARSEST = 512  # px; a screen shows it whole, whatever the shard


@dataclass(frozen=True)
class ImageLayout(Layout):
    """One image with its pyramid: the image is array "0", its labels are "labels/NAME/0".

    Args:
        coarsest: Side in px of what holds the coarsest level of the pyramid; a shard, where that is smaller.
        region: Whether a region of interest is stored: as another label map, "labels/roi/0".
    """

    coarsest: int = COARSEST
    region: bool = False

    @property
    def image(self) -> str:
        return "0"

    @property
    def labels(self) -> str | None:
        return None if self.label is None else f"labels/{self.label.name}/0"

    @property
    def roi(self) -> str | None:
        return f"labels/{ROI.name}/0" if self.region else None

    def sizes(self) -> list[tuple[int, int]]:
        """List the height and width of each pyramid level: halves, down to one that a screen shows."""
        sizes = [self.size]
        while max(sizes[-1]) > min(self.shard, self.coarsest):
            height, width = sizes[-1]
            sizes.append((-(-height // 2), -(-width // 2)))
        return sizes

    def boxes(self, level: int = 0) -> Grid:
        """List the boxes of the shards of a pyramid level: they are squares of pixels, cut at the image's edge."""
        return grid(self.sizes()[level], self.shard)

    def arrays(self) -> list[ArraySpec]:
        return [self._array(name, level) for level in range(len(self.sizes())) for name in self.finest]

    def _array(self, finest: str, level: int) -> ArraySpec:
        lead = (self.channels,) if finest == self.image else ()
        return ArraySpec(
            name=self.level(finest, level),
            level=level,
            dtype=self.dtype_of(finest),
            shape=(*lead, *self.sizes()[level]),
            chunks=(*lead, self.chunk, self.chunk),
            shards=(*lead, self.shard, self.shard),
            axes=("c", "y", "x") if lead else ("y", "x"),
        )

    def ome_groups(self, name: str, pixel_size_um: float) -> dict[str, dict[str, Any]]:
        levels, maps = len(self.sizes()), ([self.label] if self.label else []) + ([ROI] if self.region else [])
        groups = {"": image_metadata(name, self.channels, levels, pixel_size_um)}
        if maps:
            groups["labels"] = labels_metadata([label.name for label in maps])
        for label in maps:
            groups[f"labels/{label.name}"] = label_metadata(label.name, label.entries, levels, pixel_size_um)
        return groups

    def index(self, box: Box) -> tuple[Any, ...]:
        return (..., slice(box.y0, box.y1), slice(box.x0, box.x1))

    def index_in(self, image: int, box: Box) -> tuple[Any, ...]:
        return self.index(box)

    def shard_file(self, name: str, box: Box) -> PurePath:
        lead = [] if name.startswith("labels/") else ["0"]
        return PurePath(name, "c", *lead, str(box.y0 // self.shard), str(box.x0 // self.shard))

    def shards_with(self, images: Sequence[int]) -> np.ndarray:
        return np.arange(len(self.boxes()) if len(images) else 0)

    def assemble(self, box: Box, read: Callable[[int, Box], np.ndarray]) -> np.ndarray:
        return read(0, box)

    def in_order(self) -> Iterator[tuple[Any, ...]]:
        height, width = self.size
        for c in range(self.channels):
            for y0, y1 in bands(height, self.shard):
                yield c, slice(y0, y1), slice(width)

    def attributes(self) -> dict[str, Any]:
        return {**asdict(self), "count": None, "group": 1}  # a set's fields are said too: version 0.1 reads them


@dataclass(frozen=True)
class PlacedLayout(ImageLayout):
    """An image that lies beside another: the metadata says where.

    Args:
        origin: Where it begins, (y, x) in px of the other.
    """

    origin: tuple[int, int] = (0, 0)

    def ome_groups(self, name: str, pixel_size_um: float) -> dict[str, dict[str, Any]]:
        return moved(super().ome_groups(name, pixel_size_um), self.origin, pixel_size_um)


def moved(groups: dict[str, dict[str, Any]], start: tuple[int, int], pixel_size_um: float) -> dict[str, dict[str, Any]]:
    """OME-Zarr metadata of an image that begins elsewhere, (y, x) in px."""
    for metadata in groups.values():
        for multiscale in metadata.get("multiscales", ()):
            for dataset in multiscale["datasets"]:
                translation = dataset["coordinateTransformations"][1]["translation"]
                for axis, at in zip((-2, -1), start, strict=True):
                    translation[axis] += at * pixel_size_um
    return groups
