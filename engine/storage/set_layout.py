"""An output of a set of independent images has these files::

OUT/zarr.json            group: the job and its provenance under "slidefield"
OUT/images               index c y x
OUT/NAME                 what each was made from, index y x: "tissue", "classes" or "nuclei"
OUT/slidefield/          ledger, lock and, while unfinished, checkpoints: no member of the Zarr group
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import Any

import numpy as np

from engine.planning.geometry import Box, Grid, grid
from engine.storage.layout import ArraySpec, Layout


@dataclass(frozen=True, kw_only=True)
class SetLayout(Layout):
    """A set of independent images of one size: array "images", and its labels as array NAME; there is no pyramid.

    Args:
        count: Number of images.
        group: Number of images in a shard.
    """

    count: int
    group: int = 1

    @property
    def image(self) -> str:
        return "images"

    @property
    def labels(self) -> str | None:
        return None if self.label is None else self.label.name

    def sizes(self) -> list[tuple[int, int]]:
        return [self.size]

    def boxes(self, level: int = 0) -> Grid:
        """List the boxes of the shards: their rows are images, and they have one column."""
        return grid((self.count, 1), (self.group, 1))

    def arrays(self) -> list[ArraySpec]:
        return [self._array(name) for name in self.finest]

    def _array(self, name: str) -> ArraySpec:
        lead = (self.channels,) if name == self.image else ()
        chunk = tuple(min(self.chunk, -(-n // 8) * 8) for n in self.size)
        whole_image = tuple(-(-n // m) * m for n, m in zip(self.size, chunk, strict=True))  # rounded up to whole chunks
        return ArraySpec(
            name=name,
            level=0,
            dtype=self.dtype_of(name),
            shape=(self.count, *lead, *self.size),
            chunks=(1, *lead, *chunk),
            shards=(self.group, *lead, *whole_image),
            axes=("index", "c", "y", "x") if lead else ("index", "y", "x"),
        )

    def ome_groups(self, name: str, pixel_size_um: float) -> dict[str, dict[str, Any]]:
        return {}  # OME-Zarr has no word for a set of images

    def index(self, box: Box) -> tuple[Any, ...]:
        return (slice(box.y0, box.y1),)

    def index_in(self, image: int, box: Box) -> tuple[Any, ...]:
        return (image, ..., slice(box.y0, box.y1), slice(box.x0, box.x1))

    def shard_file(self, name: str, box: Box) -> PurePath:
        rest = ["0"] * (3 if name == self.image else 2)  # a shard holds its images whole
        return PurePath(name, "c", str(box.y0 // self.group), *rest)

    def shards_with(self, images: Sequence[int]) -> np.ndarray:
        return np.unique(np.array(images, np.int64) // self.group)

    def assemble(self, box: Box, read: Callable[[int, Box], np.ndarray]) -> np.ndarray:
        whole_image = Box(0, 0, *self.size)
        return np.stack([read(image, whole_image) for image in range(box.y0, box.y1)])

    def in_order(self) -> Iterator[tuple[Any, ...]]:
        return map(self.index, self.boxes())

    def attributes(self) -> dict[str, Any]:
        return asdict(self)

    def shape_text(self) -> str:
        return f"{super().shape_text()}, {self.count} images"
