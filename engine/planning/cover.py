"""The windows of a level and where each counts: pure functions of (cover, canvas, seed, level).

Every window has the model's full patch size and lies inside the canvas, and every latent is covered. Windows are named
by their numbers in the cover, ``window_id``. A cover answers for the numbers it is given, in closed form: none but the
random one lists its windows, so that a rank's work does not grow with the canvas.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

import numpy as np

from engine.planning.geometry import Box
from engine.planning.names import COVERS, WEIGHTS
from engine.planning.streams import Stream

IMAGE_BITS = 32  # a window_id of a set: below these bits its number in its image's cover, above them the image's number


class Cover(Protocol):
    """The windows of one level. Estimates are fused in the order of their window_ids.

    A window's *core* is the box that its estimate is used in; its *home* is the box that holds its core's middle, of
    boxes that tile the canvas.
    """

    @property
    def patch(self) -> int:
        """Side of a window."""

    def corners(self, window_ids: np.ndarray) -> np.ndarray:
        """int64 (n, 2): the top left corners (y0, x0) of windows."""

    def core(self, window_ids: np.ndarray) -> np.ndarray:
        """int64 (n, 4): the cores (y0, x0, y1, x1) of windows."""

    def overlapping(self, box: Box) -> np.ndarray:
        """int64 (n,): the windows whose estimates are used in a box, in order."""

    def owned_by(self, box: Box) -> np.ndarray:
        """int64 (n,): the windows at home in a box, in order."""

    def axis_weights(self, window_id: int) -> tuple[np.ndarray, np.ndarray] | None:
        """float32 (patch,) twice: weights by row and by column, whose products are a window's; None: it has none."""

    def weight(self, window_id: int, box: Box) -> np.ndarray | None:
        """float32: the weights of a window's estimate in a box of its core; None: 1 throughout."""


def windows_of(cover: Cover, window_ids: np.ndarray) -> np.ndarray:
    """int64 (n, 4): the boxes of whole windows."""
    corners = cover.corners(window_ids)
    return np.concatenate([corners, corners + cover.patch], 1)


@dataclass(frozen=True)
class Axis:
    """Windows along one side of a canvas, in closed form.

    Args:
        length: Length of the side; at least ``patch``.
        patch: Side of a window.
        stride: Distance from one window to the next.
        offset: Length of the first core, [0, offset); cores of length ``patch`` follow, and none overlap. None: the
            core of every window is the whole window, and windows overlap.
    """

    length: int
    patch: int
    stride: int
    offset: int | None = None

    @property
    def count(self) -> int:
        """Number of windows."""
        first = self.patch if self.offset is None else self.offset
        return 1 + -(-(self.length - first) // self.stride) if self.length > first else 1

    def cores(self, i: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """int64 (n,) twice: the cores of windows, [start, stop)."""
        if self.offset is None:
            start = self.starts(i)
            return start, start + self.patch
        return np.maximum(self.offset + (i - 1) * self.stride, 0), np.minimum(
            self.offset + i * self.stride, self.length
        )

    def starts(self, i: np.ndarray) -> np.ndarray:
        """int64 (n,): where windows start; one that would reach beyond the end is pushed inside."""
        start = i * self.stride if self.offset is None else np.maximum(self.offset + (i - 1) * self.stride, 0)
        return np.minimum(start, self.length - self.patch)

    def overlapping(self, start: int, stop: int) -> np.ndarray:
        """int64 (n,): the windows whose core overlaps [start, stop)."""
        reach = self.patch if self.offset is None else self.offset
        first = max(start - reach, -self.stride) // self.stride + 1
        last = (stop - 1 - (0 if self.offset is None else self.offset)) // self.stride + (self.offset is not None)
        if self.offset is None and stop > self.length - self.patch:
            last = self.count - 1  # the last window was pushed inside: it starts before its multiple of the stride
        return np.arange(max(first, 0), min(last, self.count - 1) + 1)

    def owned_by(self, start: int, stop: int) -> np.ndarray:
        """int64 (n,): the windows whose core has its middle in [start, stop)."""
        near = self.overlapping(start, stop)
        low, high = self.cores(near)
        middle = (low + high) // 2
        return near[(middle >= start) & (middle < stop)]


@dataclass(frozen=True)
class Taper:
    """The weights of an estimate along one side of its window.

    Args:
        base: float32 (patch,), the weights of every window.
        ramp_in, ramp_out: float32 (patch,), factors for a window that has another before it, or after it; None: 1.
    """

    base: np.ndarray
    ramp_in: np.ndarray | None = None
    ramp_out: np.ndarray | None = None

    def of(self, index: int, count: int) -> np.ndarray:
        """float32 (patch,): the weights of window number ``index`` of ``count`` along the side."""
        line = self.base
        if self.ramp_in is not None and index:
            line = line * self.ramp_in
        if self.ramp_out is not None and index < count - 1:
            line = line * self.ramp_out
        return line


@dataclass(frozen=True)
class Lattice:
    """The windows at every row of one axis and every column of another, numbered row by row.

    Args:
        rows, columns: Windows along the height and along the width of the canvas.
        taper: Weights along both sides of a window; a latent's weight is their product. None: cores are disjoint.
    """

    rows: Axis
    columns: Axis
    taper: Taper | None = None

    @property
    def patch(self) -> int:
        return self.rows.patch

    def __len__(self) -> int:
        return self.rows.count * self.columns.count

    def corners(self, window_ids: np.ndarray) -> np.ndarray:
        row, column = np.divmod(window_ids, self.columns.count)
        return np.stack([self.rows.starts(row), self.columns.starts(column)], 1)

    def core(self, window_ids: np.ndarray) -> np.ndarray:
        row, column = np.divmod(window_ids, self.columns.count)
        (y0, y1), (x0, x1) = self.rows.cores(row), self.columns.cores(column)
        return np.stack([y0, x0, y1, x1], 1)

    def overlapping(self, box: Box) -> np.ndarray:
        return self._block(self.rows.overlapping(box.y0, box.y1), self.columns.overlapping(box.x0, box.x1))

    def owned_by(self, box: Box) -> np.ndarray:
        return self._block(self.rows.owned_by(box.y0, box.y1), self.columns.owned_by(box.x0, box.x1))

    def _block(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        return (rows[:, None] * self.columns.count + columns[None]).ravel()

    def axis_weights(self, window_id: int) -> tuple[np.ndarray, np.ndarray] | None:
        if self.taper is None:
            return None
        row, column = divmod(window_id, self.columns.count)
        return self.taper.of(row, self.rows.count), self.taper.of(column, self.columns.count)

    def weight(self, window_id: int, box: Box) -> np.ndarray | None:
        lines = self.axis_weights(window_id)
        if lines is None:
            return None
        y, x = box.within(Box(*windows_of(self, np.array([window_id]))[0].tolist()))
        return np.multiply.outer(lines[0][y], lines[1][x])


def shifted(shape: tuple[int, int], patch: int, seed: int, level: int, image: int = 0, round_index: int = 0) -> Lattice:
    """Disjoint windows on a lattice that is shifted by a new random offset along each axis at each level.

    The lattice cuts the canvas into cells, and each cell is the core of one window. A cell at the edge is narrower than
    a window, which is then pushed inside the canvas. At most (ceil(H / patch) + 1) (ceil(W / patch) + 1) windows.

    Source: the shifted windows of SpotDiffusion (Frolov et al. 2024, arXiv:2407.15507), without its wrap-around.
    """
    drawn = Stream(seed, level, round_index, image).cover_generator().integers(0, patch, 2)  # one stream for both axes
    offsets = (int(offset) or patch if n > patch else patch for n, offset in zip(shape, drawn, strict=True))
    rows, columns = (Axis(n, patch, patch, offset) for n, offset in zip(shape, offsets, strict=True))
    return Lattice(rows, columns)


def strided(shape: tuple[int, int], patch: int, stride: int, weights: str) -> Lattice:
    """Windows every ``stride`` latents, the last pushed inside; overlapping estimates are averaged by their weights."""
    rows, columns = (Axis(n, patch, stride) for n in shape)
    return Lattice(rows, columns, Taper(window_weights(weights, patch)))


@dataclass(frozen=True)
class RandomCover:
    """Windows at random positions, listed over the whole canvas: the one cover that has no closed form.

    Args:
        patch: Side of a window.
        top_left: int64 (n, 2), the windows' top left corners.
        winner: int32 (H, W), the window whose estimate each latent takes.
    """

    patch: int
    top_left: np.ndarray
    winner: np.ndarray

    def __len__(self) -> int:
        return len(self.top_left)

    def corners(self, window_ids: np.ndarray) -> np.ndarray:
        return self.top_left[window_ids]

    def core(self, window_ids: np.ndarray) -> np.ndarray:
        return windows_of(self, window_ids)

    def overlapping(self, box: Box) -> np.ndarray:
        return np.unique(self.winner[box.y0 : box.y1, box.x0 : box.x1]).astype(np.int64)

    def owned_by(self, box: Box) -> np.ndarray:
        y, x = (self.top_left + self.patch // 2).T
        return np.nonzero((y >= box.y0) & (y < box.y1) & (x >= box.x0) & (x < box.x1))[0]

    def axis_weights(self, window_id: int) -> None:
        return None

    def weight(self, window_id: int, box: Box) -> np.ndarray:
        return (self.winner[box.y0 : box.y1, box.x0 : box.x1] == window_id).astype(np.float32)


def random(
    shape: tuple[int, int], patch: int, seed: int, level: int, image: int = 0, round_index: int = 0
) -> RandomCover:
    """Windows centred on random latents that no window covers yet, until all are covered; the first to cover one wins.

    Every rank draws all windows one after another: time and memory grow with the canvas.

    Source: DiffInfinite (Aversa et al. 2023, arXiv:2306.13384).
    """
    rng = Stream(seed, level, round_index, image).cover_generator()
    winner = np.full(shape, -1, np.int32)
    corners: list[tuple[int, int]] = []
    # Centres come in one random order, and those covered meanwhile are skipped: the same distribution as drawing each
    # centre from the latents that are still uncovered.
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
        patch: Side of a window.
        height: Height of an image.
        draw: Makes the cover of an image, from the image's number.
        images: Numbers of the images that have windows, sorted; the others have none.
    """

    patch: int
    height: int
    draw: Callable[[int], Cover]
    images: range | np.ndarray
    _cover: Callable[[int], Cover] = field(init=False, repr=False)  # ``draw``, its latest results cached

    def __post_init__(self) -> None:
        object.__setattr__(self, "_cover", lru_cache(maxsize=1024)(self.draw))

    def corners(self, window_ids: np.ndarray) -> np.ndarray:
        return self._boxes(window_ids, lambda cover, own: cover.corners(own), 2)

    def core(self, window_ids: np.ndarray) -> np.ndarray:
        return self._boxes(window_ids, lambda cover, own: cover.core(own), 4)

    def _boxes(self, window_ids: np.ndarray, ask: Callable[[Cover, np.ndarray], np.ndarray], width: int) -> np.ndarray:
        """int64 (n, width): what the covers of the windows' images answer, rows moved down to the images' places."""
        boxes = np.empty((len(window_ids), width), np.int64)
        images, own = self._split(window_ids)
        for image in np.unique(images).tolist():
            rows = np.nonzero(images == image)[0]
            boxes[rows] = ask(self._cover(image), own[rows])
            boxes[rows, ::2] += image * self.height
        return boxes

    @staticmethod
    def _split(window_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The images of windows, and the windows' numbers in the covers of their images."""
        return window_ids >> IMAGE_BITS, window_ids & (2**IMAGE_BITS - 1)

    def overlapping(self, box: Box) -> np.ndarray:
        return self._ids_in(box, lambda cover, part: cover.overlapping(part))

    def owned_by(self, box: Box) -> np.ndarray:
        return self._ids_in(box, lambda cover, part: cover.owned_by(part))

    def _ids_in(self, box: Box, ask: Callable[[Cover, Box], np.ndarray]) -> np.ndarray:
        """int64 (n,): the windows that the covers of the images in a box name, of the box's part in each."""
        window_ids = [np.empty(0, np.int64)]
        for image in range(box.y0 // self.height, (box.y1 - 1) // self.height + 1):
            row = np.searchsorted(self.images, image)
            if row < len(self.images) and self.images[row] == image:
                window_ids.append(ask(self._cover(image), self._within_image(box, image)) + (image << IMAGE_BITS))
        return np.concatenate(window_ids)

    def _within_image(self, box: Box, image: int) -> Box:
        """The part of a box that lies in an image, in the image's own coordinates."""
        top = image * self.height
        return Box(max(box.y0 - top, 0), box.x0, min(box.y1 - top, self.height), box.x1)

    def axis_weights(self, window_id: int) -> tuple[np.ndarray, np.ndarray] | None:
        return self._cover(window_id >> IMAGE_BITS).axis_weights(window_id & (2**IMAGE_BITS - 1))

    def weight(self, window_id: int, box: Box) -> np.ndarray | None:
        image, own = window_id >> IMAGE_BITS, window_id & (2**IMAGE_BITS - 1)
        return self._cover(image).weight(own, self._within_image(box, image))


def cover_of(
    kind: str,
    shape: tuple[int, int],
    patch: int,
    seed: int,
    level: int,
    *,
    stride: int,
    weights: str,
    image: int = 0,
    round_index: int = 0,
) -> Lattice | RandomCover:
    """The cover of a level, by its name.

    Args:
        stride, weights: Distance and weights of a strided cover's windows; no other cover uses them.
        image: Number of the image, where a job has several: each has covers of its own.
        round_index: Round of rejection sampling: later rounds have other covers.
    """
    if kind == "shifted":
        return shifted(shape, patch, seed, level, image, round_index)
    if kind == "random":
        return random(shape, patch, seed, level, image, round_index)
    if kind == "strided":
        return strided(shape, patch, stride, weights)
    raise ValueError(f"`cover` is {kind!r}; known: {', '.join(COVERS)}")


def window_weights(kind: str, side: int) -> np.ndarray:
    """float32 (side,): weights along a window's side, symmetric about its middle and positive everywhere.

    ``uniform`` is 1; ``gaussian`` is exp(-(r / 0.5)^2 / 2), with r the distance from the middle in half sides; ``hann``
    is a raised cosine of side + 2 samples without the zeros at its ends.
    """
    r = (np.arange(side) - (side - 1) / 2) / (side / 2)
    line = {
        "uniform": np.ones(side),
        "gaussian": np.exp(-0.5 * (r / 0.5) ** 2),
        "hann": np.cos(np.pi / 2 * (np.arange(side) - (side - 1) / 2) / ((side + 1) / 2)) ** 2,
    }
    if kind not in line:
        raise ValueError(f"`weights` is {kind!r}; known: {', '.join(WEIGHTS)}")
    return line[kind].astype(np.float32)
