"""The pairs that tiles are: pixels of an image and of its map at one place, their name, and how much each label has."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace

import numpy as np

from engine.exports.cutout import Cutout, corner_of
from engine.exports.one_picture import palette_of, write_png
from engine.exports.tiling import Tile, Tiling
from engine.planning.geometry import Box


@dataclass(frozen=True)
class TilePairs:
    """Tiles of an image and of its map.

    Args:
        image: What tiles are cut from.
        map: The labels or instances of the same pixels; None: there are none.
    """

    image: Cutout
    map: Cutout | None
    tiling: Tiling

    def read(self, cutout: Cutout, tile: Tile) -> np.ndarray:
        """The pixels of a tile: (h, w) or (h, w, 3)."""
        side = self.tiling.side
        box = Box(tile.y, tile.x, tile.y + side, tile.x + side)
        return replace(cutout, image=self.number(tile)).read(box)

    def number(self, tile: Tile) -> int:
        """The number of the image of a set that a tile is of."""
        return tile.image if self.tiling.apart else self.image.image

    def shares(self, tile: Tile) -> list[float]:
        """The share of each label in a tile; of instances that of the background, and of all others."""
        if self.map is None:
            return []
        values, count = self.read(self.map, tile), len(self.names)
        counts = np.bincount(np.minimum(values, count - 1).ravel().astype(np.int64), minlength=count)
        return (counts / values.size).tolist()

    @property
    def names(self) -> list[str]:
        """The names of the labels that shares are of; those that have none are named by numbers."""
        if self.map is None or self.map.label is None:
            return []
        if self.map.label.name == "nuclei":
            return ["background", "nuclei"]
        return [name for name, _ in self.map.label.entries] or [f"{self.map.label.name} {i}" for i in range(256)]

    def key(self, tile: Tile) -> str:
        """The name of a tile: its place in px of level 0, which sorts as the tiles do."""
        y, x = self.place(tile)
        return f"{tile.image:06d}_" * self.tiling.apart + f"y{y:06d}_x{x:06d}"

    def place(self, tile: Tile) -> tuple[int, int]:
        """The corner of a tile in px of level 0; of a plane its position there, which may be negative."""
        box, level, (y, x) = self.image.box, self.image.level, corner_of(self.image.output.layout)
        return ((box.y0 + tile.y) << level) + y, ((box.x0 + tile.x) << level) + x

    def pictures(self, tile: Tile) -> tuple[bytes, bytes | None]:
        """A tile as PNG, and its mask; None: there is no map."""
        pixels = self.read(self.image, tile)
        image = png(pixels, self.image)
        return image, None if self.map is None else png(self.read(self.map, tile), self.map)


def png(pixels: np.ndarray, cutout: Cutout) -> bytes:
    """Pixels of a cutout as PNG. Numbers of instances are counted anew from 1, in 16 bits."""
    file = io.BytesIO()
    if pixels.dtype == np.uint8:
        channels = 1 if pixels.ndim == 2 else pixels.shape[2]
        write_png(file, pixels.shape[:2], [pixels], channels, cutout.pixel_size_um, palette_of(cutout))
    else:
        from PIL import Image

        ids, numbers = np.unique(pixels, return_inverse=True)
        first = 0 if ids[0] == 0 else 1
        Image.fromarray((numbers.reshape(pixels.shape) + first).astype(np.uint16)).save(file, "PNG")
    return file.getvalue()
