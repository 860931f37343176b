"""The crops that measures are taken of: squares of one side, on a grid or drawn at random."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from engine.embedding.bank import UNLIKE, in_grey
from engine.embedding.patches import SMALLEST_SCALE
from engine.evaluation.sources import Source
from engine.planning.geometry import Box
from engine.storage.slides import resized

SIDE = 256  # px of a crop of large images


@dataclass(frozen=True)
class Crops:
    """Square crops of a source's images: plain values, sent to every rank.

    Args:
        places: int64 (n, 3): image, row and column of each crop's corner, px of the source.
        side: Side of a crop, px.
        scale: Pixels of the source per pixel of the crop.
        grey: Whether colours are replaced by their mean.
        stated_um: Pixel size of a source that does not say its own, as the user states it; None: it is not known.
    """

    source: Source
    places: np.ndarray
    side: int
    scale: float = 1.0
    grey: bool = False
    stated_um: float | None = None

    def __len__(self) -> int:
        return len(self.places)

    @property
    def span(self) -> int:
        """Side of a crop in the source, px."""
        return round(self.side * self.scale)

    @property
    def pixel_size_um(self) -> float | None:
        """Micrometres per pixel of the crops; None: it is not known."""
        own = self.source.pixel_size_um or self.stated_um
        return own and own * self.scale

    def box(self, number: int) -> Box:
        _, y, x = map(int, self.places[number])
        return Box(y, x, y + self.span, x + self.span)

    def read(self, number: int) -> np.ndarray:
        """uint8 (side, side, 3)."""
        pixels = resized(self.source.read(int(self.places[number, 0]), self.box(number)), self.side)
        return in_grey(pixels) if self.grey else pixels

    def labels(self, number: int) -> np.ndarray | None:
        """Unsigned (side, side): the label map of a crop; None: there is none."""
        labels = self.source.labels(int(self.places[number, 0]), self.box(number))
        if labels is None or len(labels) == self.side:
            return labels
        at = np.arange(self.side) * self.span // self.side
        return labels[at[:, None], at]

    def named(self, number: int) -> str:
        """A crop in a message."""
        image, y, x = map(int, self.places[number])
        return f"{self.source.named(image)}, {self.side} px from row {y}, column {x}"

    def batches(self, numbers: range, size: int) -> Iterator[range]:
        """Runs of at most ``size`` of some numbers."""
        for first in range(numbers.start, numbers.stop, size):
            yield range(first, min(first + size, numbers.stop))

    def pixels(self, numbers: range) -> np.ndarray:
        """uint8 (n, side, side, 3)."""
        return np.stack([self.read(number) for number in numbers])

    def part(self, numbers: np.ndarray) -> Crops:
        """Some of the crops."""
        return replace(self, places=self.places[numbers])

    def facts(self) -> dict[str, Any]:
        """What an evaluation says of them."""
        return {
            "path": str(self.source.path),
            "kind": self.source.kind,
            "images": len(self.source.sizes),
            "crops": len(self),
            "crop_px": self.side,
            "scale": self.scale,
            "pixel_size_um": self.source.pixel_size_um or self.stated_um,
        }


def crops_of(
    source: Source,
    side: int,
    count: int | None = None,
    seed: int = 0,
    pixel_size_um: float | None = None,
    grey: bool = False,
    stated_um: float | None = None,
) -> Crops:
    """Crops of a source.

    Args:
        side: px.
        count: Number to draw at random, without two at one place; None: all that lie side by side.
        pixel_size_um: What the crops are to have; None: the source's own.
        stated_um: The source's own, where it does not say it.
    Raises:
        ValueError: an image is smaller than a crop, or the source's pixel size is not known, or another than is stated.
    """
    scale = scale_of(source, pixel_size_um, stated_um)
    sizes = source.sizes
    span = round(side * scale)
    small = np.flatnonzero((sizes < span).any(1))
    if len(small):
        h, w = map(int, sizes[small[0]])
        name = source.named(int(small[0]))
        where = name if str(source.path) in name else f"{source.path}: {name}"
        raise ValueError(f"{where} is {h} x {w} px, smaller than a crop of {span} px; choose a smaller `crop`")
    places = on_grid(sizes, span) if count is None else drawn(sizes, span, count, seed)
    return Crops(source, places, side, scale, grey, stated_um)


def scale_of(source: Source, pixel_size_um: float | None, stated_um: float | None = None) -> float:
    """Pixels of the source per pixel of a crop.

    Raises:
        ValueError: the source's pixel size is not known, or it says another than is stated.
    """
    own = source.pixel_size_um
    if own and stated_um and abs(own / stated_um - 1) > UNLIKE:
        raise ValueError(
            f"`pixel_size_of` states {stated_um:g} um and {source.path} itself says {own:g}; leave it out for that set"
        )
    own = own or stated_um
    if pixel_size_um is None:
        return 1.0
    if own is None:
        raise ValueError(
            f"`pixel_size` {pixel_size_um:g} is given but {source.path} does not say its own; state it with "
            "`pixel_size_of`, or leave it out to take pixels as they are"
        )
    scale = pixel_size_um / own
    if scale < SMALLEST_SCALE:
        raise ValueError(
            f"`pixel_size` {pixel_size_um:g} would enlarge {source.path} {1 / scale:.3g} times: its own is {own:g}"
        )
    return scale


def on_grid(sizes: np.ndarray, span: int) -> np.ndarray:
    """int64 (n, 3): all crops of images that lie side by side.

    >>> on_grid(np.array([[5, 4], [2, 2]]), 2).tolist()
    [[0, 0, 0], [0, 0, 2], [0, 2, 0], [0, 2, 2], [1, 0, 0]]
    """
    places = []
    for image, (h, w) in enumerate(sizes.tolist()):
        rows, columns = np.meshgrid(np.arange(h // span), np.arange(w // span), indexing="ij")
        places.append(np.stack([np.full(rows.size, image), rows.ravel() * span, columns.ravel() * span], 1))
    return np.concatenate(places).astype(np.int64)


def drawn(sizes: np.ndarray, span: int, count: int, seed: int) -> np.ndarray:
    """int64 (count, 3): crops drawn evenly over all places of all images, in the images' order.

    Raises:
        ValueError: there are fewer places.
    """
    room = np.prod(sizes - span + 1, axis=1)
    ends = np.cumsum(room)
    if count > ends[-1]:
        raise ValueError(f"`crops` {count} is more than the {ends[-1]} places of a crop; choose fewer")
    rng = np.random.default_rng((seed, count))
    if 4 * count > ends[-1]:
        return placed(np.sort(rng.permutation(ends[-1])[:count]), room, ends, sizes, span)
    chosen = np.unique(rng.integers(ends[-1], size=count))
    while len(chosen) < count:
        more = rng.integers(ends[-1], size=count - len(chosen))
        chosen = np.unique(np.concatenate([chosen, more]))
    return placed(chosen, room, ends, sizes, span)


def placed(chosen: np.ndarray, room: np.ndarray, ends: np.ndarray, sizes: np.ndarray, span: int) -> np.ndarray:
    """int64 (n, 3): places by their numbers, counted image by image, row by row."""
    image = np.searchsorted(ends, chosen, side="right")
    y, x = np.divmod(chosen - (ends - room)[image], (sizes - span + 1)[image, 1])
    return np.stack([image, y, x], 1).astype(np.int64)


def check_alike(generated: Crops, reference: Crops) -> None:
    """Refuse sets that are of two kinds.

    Raises:
        ValueError: one is grey and the other is not, or their magnification differs.
    """
    a, b = generated.source, reference.source
    if a.channels != b.channels and not (generated.grey and reference.grey):
        grey, colored = (a, b) if a.channels == 1 else (b, a)
        raise ValueError(f"{grey.path} is grey and {colored.path} is not; pass `grey` to compare both in grey")
    sizes = [crops.pixel_size_um for crops in (generated, reference)]
    if sizes[0] and sizes[1] and abs(sizes[0] / sizes[1] - 1) > UNLIKE:
        raise ValueError(
            f"{a.path} has pixels of {sizes[0]:g} um and {b.path} of {sizes[1]:g} um; pass `pixel_size` UM to resample "
            "to one"
        )


def share(count: int, rank: int, ranks: int) -> range:
    """The run of ``count`` things that a rank takes.

    >>> [share(7, rank, 3) for rank in range(3)]
    [range(0, 2), range(2, 4), range(4, 7)]
    """
    return range(count * rank // ranks, count * (rank + 1) // ranks)
