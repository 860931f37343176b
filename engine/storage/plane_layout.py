"""A plane is an output of one image that may grow: arrays hold the shards from a corner on, and most may be absent.

PLANE/0, 1, ...             the image, c y x, and its pyramid: what was never asked for is white
PLANE/labels/NAME/0 ...     what it was made from, and its pyramid
PLANE/slidefield/           ledger, lock, levels that are kept, and the request under way
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.planning.geometry import Box
from engine.storage.image_layout import ImageLayout, moved
from engine.storage.layout import ArraySpec

BACKGROUND = 255  # of the image, where nothing was asked for


@dataclass(frozen=True)
class PlaneLayout(ImageLayout):
    """An image whose array begins at a corner of an unbounded plane.

    Args:
        corner: Where the arrays begin, (y, x) in px of the plane: a multiple of the shard.
    """

    corner: tuple[int, int] = (0, 0)

    @property
    def complete(self) -> bool:
        return False

    def arrays(self) -> list[ArraySpec]:
        return [
            replace(spec, fill=BACKGROUND) if self.level(self.image, spec.level) == spec.name else spec
            for spec in super().arrays()
        ]

    def ome_groups(self, name: str, pixel_size_um: float) -> dict[str, dict[str, Any]]:
        return moved(super().ome_groups(name, pixel_size_um), self.corner, pixel_size_um)

    def on_arrays(self, box: Box) -> Box:
        """A box of the plane, in the arrays' own positions."""
        return box.moved(-self.corner[0], -self.corner[1])

    def holding(self, box: Box) -> PlaneLayout:
        """The same, large enough for a box of the plane."""
        y, x = self.corner
        now = Box(y, x, y + self.size[0], x + self.size[1]) if self.size != (0, 0) else box
        side = self.shard
        y0, x0 = (min(a, b) // side * side for a, b in ((now.y0, box.y0), (now.x0, box.x0)))
        y1, x1 = (-(-max(a, b) // side) * side for a, b in ((now.y1, box.y1), (now.x1, box.x1)))
        return replace(self, size=(y1 - y0, x1 - x0), corner=(y0, x0))


@dataclass(frozen=True)
class RequestLayout(ImageLayout):
    """What a request to a plane is sampled to: without a pyramid, and with the shards alone that its region meets.

    Args:
        asked: The region, px of the arrays.
    """

    asked: tuple[int, int, int, int] = (0, 0, 0, 0)

    def expects(self, box: Box) -> bool:
        return bool(box & Box(*self.asked))

    def sizes(self) -> list[tuple[int, int]]:
        return [self.size]


def is_there(plane: Path) -> bool:
    """Whether a plane, or another output, lies at a path, and not a first request alone, or nothing."""
    return plane.is_dir() and any(child.name != "slidefield" for child in plane.iterdir())


def request_of(plane: Path) -> Path:
    """Where the request under way is an output of its own."""
    return plane / "slidefield" / "request.zarr"


def levels_of(plane: Path) -> Path:
    """Where the levels are kept."""
    return plane / "slidefield" / "levels"


def known_of(plane: Path) -> Path:
    """The ledger of what is known."""
    return plane / "slidefield" / "known.json"


def label_plane(plane: Path) -> Path:
    """Where the label map's plane lies."""
    return plane / "slidefield" / "labels.zarr"
