"""The windows of a level and what each contributes: pure functions of (cover, canvas, seed, level).

Every window has the model's full patch size and lies inside the canvas; every latent is covered. A window has a
number; what is asked about windows is answered for the numbers given, in closed form: no cover but the random one
lists its windows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

import numpy as np

from engine.planning.geometry import Window
from engine.planning.names import COVERS, WEIGHTS

IMAGE_BITS = 32  # a window of a set has its image's number above its own


class Cover(Protocol):
    """The windows of one level. Estimates are fused in the order of the windows' numbers."""

    @property
    def patch(self) -> int:
        """Side of a window."""

    def corners(self, ids: np.ndarray) -> np.ndarray:
        """int64 (n, 2), top-left (y0, x0) of windows."""

    def core(self, ids: np.ndarray) -> np.ndarray:
        """int64 (n, 4), the box (y0, x0, y1, x1) of each window that its estimate is used in."""

    def overlapping(self, box: Window) -> np.ndarray:
        """int64 (n,): the windows that are used in a box, in order."""

    def owned_by(self, box: Window) -> np.ndarray:
        """int64 (n,): the windows at home in a box, by the middle of their ``keep``; each has one home."""

    def axis_weights(self, index: int) -> tuple[np.ndarray, np.ndarray] | None:
        """float32 (patch,) twice, where a window's weights are products of lines; else None."""

    def weight(self, index: int, box: Window) -> np.ndarray | None:
        """float32 weights of a window's estimate in a box of its ``keep``; None: 1 throughout."""


def windows_of(cover: Cover, ids: np.ndarray) -> np.ndarray:
    """int64 (n, 4): the whole boxes of windows."""
    corners = cover.corners(ids)
    return np.concatenate([corners, corners + cover.patch], 1)


@dataclass(frozen=True)
class Axis:
    """Windows along one side of a canvas, in closed form.

    Args:
        length: of the side; at least ``patch``.
        patch: of a window.
        stride: from one window to the next.
        offset: the first window's estimate is used in [0, offset) alone, every other's in the ``patch`` that follows;
            None: each is used wherever its window lies, and windows overlap.
    """

    length: int
    patch: int
    stride: int
    offset: int | None = None

    @property
    def count(self) -> int:
        first = self.patch if self.offset is None else self.offset
        return 1 + -(-(self.length - first) // self.stride) if self.length > first else 1

    def cores(self, i: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """int64 (n,) twice: where windows are used, [start, stop)."""
        if self.offset is None:
            start = self.starts(i)
            return start, start + self.patch
        return np.maximum(self.offset + (i - 1) * self.stride, 0), np.minimum(
            self.offset + i * self.stride, self.length
        )

    def starts(self, i: np.ndarray) -> np.ndarray:
        """int64 (n,): where windows begin; one that would reach beyond the end is pushed inside."""
        begin = i * self.stride if self.offset is None else np.maximum(self.offset + (i - 1) * self.stride, 0)
        return np.minimum(begin, self.length - self.patch)

    def overlapping(self, start: int, stop: int) -> np.ndarray:
        """int64 (n,): the windows that are used anywhere in [start, stop)."""
        reach = self.patch if self.offset is None else self.offset
        first = max(start - reach, -self.stride) // self.stride + 1
        last = (stop - 1 - (0 if self.offset is None else self.offset)) // self.stride + (self.offset is not None)
        if self.offset is None and stop > self.length - self.patch:
            last = self.count - 1  # pushed inside, it begins before its place
        return np.arange(max(first, 0), min(last, self.count - 1) + 1)

    def owned_by(self, start: int, stop: int) -> np.ndarray:
        """int64 (n,): the windows whose cell has its middle in [start, stop)."""
        near = self.overlapping(start, stop)
        low, high = self.cores(near)
        middle = (low + high) // 2
        return near[(middle >= start) & (middle < stop)]


@dataclass(frozen=True)
class Taper:
    """How much an estimate counts along one side of its window.

    Args:
        base: float32 (patch,).
        ramp_in, ramp_out: float32 (patch,), multiply it where there is a window before, or after; None: 1.
    """

    base: np.ndarray
    ramp_in: np.ndarray | None = None
    ramp_out: np.ndarray | None = None

    def of(self, index: int, count: int) -> np.ndarray:
        """float32 (patch,): of one of ``count`` windows."""
        line = self.base
        if self.ramp_in is not None and index:
            line = line * self.ramp_in
        if self.ramp_out is not None and index < count - 1:
            line = line * self.ramp_out
        return line


@dataclass(frozen=True)
class Lattice:
    """Every window of a column of rows with every window of a row of columns, numbered row by row.

    Args:
        taper: of both sides; weights are products. None: the cells are disjoint.
    """

    rows: Axis
    columns: Axis
    taper: Taper | None = None

    @property
    def patch(self) -> int:
        return self.rows.patch

    def __len__(self) -> int:
        return self.rows.count * self.columns.count

    def corners(self, ids: np.ndarray) -> np.ndarray:
        row, column = np.divmod(ids, self.columns.count)
        return np.stack([self.rows.starts(row), self.columns.starts(column)], 1)

    def core(self, ids: np.ndarray) -> np.ndarray:
        row, column = np.divmod(ids, self.columns.count)
        (y0, y1), (x0, x1) = self.rows.cores(row), self.columns.cores(column)
        return np.stack([y0, x0, y1, x1], 1)

    def overlapping(self, box: Window) -> np.ndarray:
        return self._block(self.rows.overlapping(box.y0, box.y1), self.columns.overlapping(box.x0, box.x1))

    def owned_by(self, box: Window) -> np.ndarray:
        return self._block(self.rows.owned_by(box.y0, box.y1), self.columns.owned_by(box.x0, box.x1))

    def _block(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        return (rows[:, None] * self.columns.count + columns[None]).ravel()

    def axis_weights(self, index: int) -> tuple[np.ndarray, np.ndarray] | None:
        if self.taper is None:
            return None
        row, column = divmod(index, self.columns.count)
        return self.taper.of(row, self.rows.count), self.taper.of(column, self.columns.count)

    def weight(self, index: int, box: Window) -> np.ndarray | None:
        lines = self.axis_weights(index)
        if lines is None:
            return None
        y, x = box.within(Window(*windows_of(self, np.array([index]))[0].tolist()))
        return np.multiply.outer(lines[0][y], lines[1][x])


def shifted(shape: tuple[int, int], patch: int, seed: int, level: int, image: int = 0) -> Lattice:
    """A disjoint lattice with a new random offset in each axis at each level.

    The canvas is cut into cells along the lattice; a cell at the edge is narrower than a window, whose
    window is then pushed inside the canvas and used in the cell alone. At most
    (ceil(H / patch) + 1) (ceil(W / patch) + 1) windows.

    Source: the shifted windows of SpotDiffusion (Frolov et al. 2024, arXiv:2407.15507), without its wrap-around.
    """
    offsets = _random(seed, level, image).integers(0, patch, 2)
    leads = (int(offset) or patch if n > patch else patch for n, offset in zip(shape, offsets, strict=True))
    rows, columns = (Axis(n, patch, patch, offset) for n, offset in zip(shape, leads, strict=True))
    return Lattice(rows, columns)


def strided(shape: tuple[int, int], patch: int, stride: int, weights: str) -> Lattice:
    """Windows every ``stride`` latents, the last pushed inside; overlapping estimates are averaged."""
    rows, columns = (Axis(n, patch, stride) for n in shape)
    return Lattice(rows, columns, Taper(window_weights(weights, patch)))


@dataclass(frozen=True)
class RandomCover:
    """Windows that were drawn one after another: the one exception, listed over the whole canvas.

    Args:
        places: int64 (n, 2), the corners.
        winner: int32 (H, W), the window that each latent belongs to.
    """

    patch: int
    places: np.ndarray
    winner: np.ndarray

    def __len__(self) -> int:
        return len(self.places)

    def corners(self, ids: np.ndarray) -> np.ndarray:
        return self.places[ids]

    def core(self, ids: np.ndarray) -> np.ndarray:
        return windows_of(self, ids)

    def overlapping(self, box: Window) -> np.ndarray:
        return np.unique(self.winner[box.y0 : box.y1, box.x0 : box.x1]).astype(np.int64)

    def owned_by(self, box: Window) -> np.ndarray:
        y, x = (self.places + self.patch // 2).T
        return np.nonzero((y >= box.y0) & (y < box.y1) & (x >= box.x0) & (x < box.x1))[0]

    def axis_weights(self, index: int) -> None:
        return None

    def weight(self, index: int, box: Window) -> np.ndarray:
        return (self.winner[box.y0 : box.y1, box.x0 : box.x1] == index).astype(np.float32)


def random(shape: tuple[int, int], patch: int, seed: int, level: int, image: int = 0) -> RandomCover:
    """DiffInfinite's: windows centred on latents not yet covered, until all are; the first to cover wins.

    Drawn one window after another over the whole canvas: time and memory grow with the canvas on every rank.
    """
    rng = _random(seed, level, image)
    winner = np.full(shape, -1, np.int32)
    corners: list[tuple[int, int]] = []
    # Centres in a random order; those covered meanwhile are passed over. The same law as drawing anew each time.
    for centre in rng.permutation(shape[0] * shape[1]):
        cy, cx = divmod(int(centre), shape[1])
        if winner[cy, cx] >= 0:
            continue
        y = min(max(cy - patch // 2, 0), shape[0] - patch)
        x = min(max(cx - patch // 2, 0), shape[1] - patch)
        view = winner[y : y + patch, x : x + patch]
        view[view < 0] = len(corners)
        corners.append((y, x))
    return RandomCover(patch, np.array(corners, np.int64), winner)


@dataclass(frozen=True)
class StackedCover:
    """The covers of images of one shape that lie below one another on a canvas.

    Args:
        patch: side of a window.
        height: of an image.
        draw: the cover of an image.
        images: sorted, those that have windows; the others have none.
    """

    patch: int
    height: int
    draw: Callable[[int], Cover]
    images: range | np.ndarray
    _kept: Callable[[int], Cover] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_kept", lru_cache(maxsize=1024)(self.draw))

    def corners(self, ids: np.ndarray) -> np.ndarray:
        return self._each(ids, lambda cover, own: cover.corners(own), 2)

    def core(self, ids: np.ndarray) -> np.ndarray:
        return self._each(ids, lambda cover, own: cover.core(own), 4)

    def _each(self, ids: np.ndarray, ask: Callable[[Cover, np.ndarray], np.ndarray], width: int) -> np.ndarray:
        found = np.empty((len(ids), width), np.int64)
        image, own = ids >> IMAGE_BITS, ids & (2**IMAGE_BITS - 1)
        for one in np.unique(image).tolist():
            rows = np.nonzero(image == one)[0]
            found[rows] = ask(self._kept(one), own[rows])
            found[rows, ::2] += one * self.height
        return found

    def overlapping(self, box: Window) -> np.ndarray:
        return self._meeting(box, lambda cover, part: cover.overlapping(part))

    def owned_by(self, box: Window) -> np.ndarray:
        return self._meeting(box, lambda cover, part: cover.owned_by(part))

    def _meeting(self, box: Window, ask: Callable[[Cover, Window], np.ndarray]) -> np.ndarray:
        found = [np.empty(0, np.int64)]
        for image in range(box.y0 // self.height, (box.y1 - 1) // self.height + 1):
            place = np.searchsorted(self.images, image)
            if place < len(self.images) and self.images[place] == image:
                found.append(ask(self._kept(image), self._within_image(box, image)) + (image << IMAGE_BITS))
        return np.concatenate(found)

    def _within_image(self, box: Window, image: int) -> Window:
        """What of a box lies in an image, from the image's corner."""
        top = image * self.height
        return Window(max(box.y0 - top, 0), box.x0, min(box.y1 - top, self.height), box.x1)

    def axis_weights(self, index: int) -> tuple[np.ndarray, np.ndarray] | None:
        return self._kept(index >> IMAGE_BITS).axis_weights(index & (2**IMAGE_BITS - 1))

    def weight(self, index: int, box: Window) -> np.ndarray | None:
        image, own = index >> IMAGE_BITS, index & (2**IMAGE_BITS - 1)
        return self._kept(image).weight(own, self._within_image(box, image))


def cover_of(
    kind: str, shape: tuple[int, int], patch: int, seed: int, level: int, *, stride: int, weights: str, image: int = 0
) -> Lattice | RandomCover:
    """The cover of a level, by its name.

    Args:
        image: of several independent ones.
    """
    if kind == "shifted":
        return shifted(shape, patch, seed, level, image)
    if kind == "random":
        return random(shape, patch, seed, level, image)
    if kind == "strided":
        return strided(shape, patch, stride, weights)
    raise ValueError(f"cover is {kind!r}; known: {', '.join(COVERS)}")


def window_weights(kind: str, side: int) -> np.ndarray:
    """float32 (side,), symmetric about the middle (side - 1) / 2, positive everywhere; a window's are the products.

    ``gaussian`` is exp(-(r / 0.5)^2 / 2) with r in half sides, ``hann`` a raised cosine of side + 2 samples
    without its zeros.
    """
    r = (np.arange(side) - (side - 1) / 2) / (side / 2)
    line = {
        "uniform": np.ones(side),
        "gaussian": np.exp(-0.5 * (r / 0.5) ** 2),
        "hann": np.cos(np.pi / 2 * (np.arange(side) - (side - 1) / 2) / ((side + 1) / 2)) ** 2,
    }
    if kind not in line:
        raise ValueError(f"weights is {kind!r}; known: {', '.join(WEIGHTS)}")
    return line[kind].astype(np.float32)


def _random(seed: int, level: int, image: int) -> np.random.Generator:
    """A Philox stream of its own for every (seed, level, image); both axes are drawn from the one stream."""
    key = np.array([seed & (2**64 - 1), 0x636F766572 << 24 | level], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, image]))
