"""The shapes of an output's arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.planning.geometry import Grid, grid


@dataclass(frozen=True)
class LabelArray:
    """What an image was made from, stored beside it.

    Args:
        name: of the array.
        dtype: unsigned.
        entries: (name, RGB) of every value; empty where they are too many to have names.
    """

    name: str
    dtype: str = "uint8"
    entries: tuple[tuple[str, tuple[int, int, int]], ...] = ()


@dataclass(frozen=True)
class Layout:
    """The shapes of an output's arrays.

    Args:
        size: of an image, px.
        channels: of the image.
        shard, chunk: px.
        label: what is stored beside the image; None: nothing.
        count: of a set, its images; None: one image.
        group: images of a set in one shard.
    """

    size: tuple[int, int]
    channels: int
    shard: int
    chunk: int
    label: LabelArray | None = None
    count: int | None = None
    group: int = 1

    @property
    def image(self) -> str:
        """The name of the array with the image or images."""
        return "0" if self.count is None else "images"

    @property
    def labels(self) -> str | None:
        """The name of the array with the labels at full size."""
        if self.label is None:
            return None
        return f"labels/{self.label.name}/0" if self.count is None else self.label.name

    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of each pyramid level, down to one shard; a set has none but the first."""
        found = [self.size]
        while self.count is None and max(found[-1]) > self.shard:
            found.append((-(-found[-1][0] // 2), -(-found[-1][1] // 2)))
        return found

    def level(self, name: str, level: int) -> str:
        """The name of the array ``level`` of the pyramid that an array is the finest of."""
        return f"{name.removesuffix('0')}{level}" if level else name

    def boxes(self, level: int = 0) -> Grid:
        """The shards of a pyramid level, cut at the image's edge; of a set, rows are images."""
        if self.count is not None:
            return grid((self.count, 1), (self.group, 1))
        return grid(self.sizes()[level], self.shard)

    def arrays(self) -> list[tuple[str, int]]:
        """(name, pyramid level) of every array."""
        finest = [name for name in (self.image, self.labels) if name]
        return [(self.level(name, i), i) for i in range(len(self.sizes())) for name in finest]

    def files(self) -> int:
        """Files of the finished output, metadata included."""
        shards = sum(len(self.boxes(level)) for _, level in self.arrays())
        groups = 3 if self.label and self.count is None else 1
        return shards + len(self.arrays()) + groups + 3  # ledger, lock, checkpoint


def layout_of(values: Mapping[str, Any]) -> Layout:
    """A layout from the attributes that ``create`` wrote."""
    label = values.get("label")
    if label is not None:
        entries = tuple((name, tuple(color)) for name, color in label["entries"])
        label = LabelArray(label["name"], label["dtype"], entries)
    return Layout(**{**values, "size": tuple(values["size"]), "label": label})
