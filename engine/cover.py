"""The windows of a level and what each contributes: pure functions of (cover, canvas, seed, level).

Every window has the model's full patch size and lies inside the canvas; every latent is covered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from engine.geometry import Window

COVERS = ("shifted", "random", "strided")
WEIGHTS = ("uniform", "gaussian", "hann")
LARGEST_LABEL = 63  # labels that occur in a window are counted in 64 bits
TRIM = 0.25  # share of the overlap at a window's border that its neighbour decides alone


@dataclass(frozen=True)
class Cover:
    """The windows of one level, in the order in which they are fused.

    Args:
        patch: side of a window.
        corners: int64 (n, 2), top-left (y0, x0) of every window.
        keep: int64 (n, 4), the box (y0, x0, y1, x1) of a window that its estimate is used in.
        lines: how much an estimate counts, as products of float32 (rows, patch) and (columns, patch); None: the
            boxes are disjoint.
        winner: int32 (H, W), where a latent belongs to one of the windows that cover it; else None.
        rows, columns: a lattice's intervals [start, stop) of ``keep`` along each axis, row-major; else None.

    Where several images share a canvas, ``lines`` are those of one of them.
    """

    patch: int
    corners: np.ndarray
    keep: np.ndarray
    lines: tuple[np.ndarray, np.ndarray] | None = None
    winner: np.ndarray | None = None
    rows: np.ndarray | None = None
    columns: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.corners)

    def window(self, index: int) -> Window:
        y, x = (int(v) for v in self.corners[index])
        return Window(y, x, y + self.patch, x + self.patch)

    def kept(self, index: int) -> Window:
        return Window(*(int(v) for v in self.keep[index]))

    def touching(self, box: Window) -> np.ndarray:
        """The windows that are used in a box, in their order."""
        if self.rows is None or self.columns is None:
            k = self.keep
            return np.nonzero((k[:, 0] < box.y1) & (k[:, 2] > box.y0) & (k[:, 1] < box.x1) & (k[:, 3] > box.x0))[0]
        rows = np.nonzero((self.rows[:, 0] < box.y1) & (self.rows[:, 1] > box.y0))[0]
        columns = np.nonzero((self.columns[:, 0] < box.x1) & (self.columns[:, 1] > box.x0))[0]
        return (rows[:, None] * len(self.columns) + columns[None]).ravel()

    def weight(self, index: int, box: Window) -> np.ndarray | None:
        """float32 weights of a window's estimate in a box of its ``keep``; None: 1 throughout."""
        if self.winner is not None:
            return (self.winner[box.y0 : box.y1, box.x0 : box.x1] == index).astype(np.float32)
        if self.lines is None:
            return None
        row, column = divmod(index % (len(self.lines[0]) * len(self.lines[1])), len(self.lines[1]))
        y, x = box.within(self.window(index))
        return np.multiply.outer(self.lines[0][row][y], self.lines[1][column][x])


def shifted(shape: tuple[int, int], patch: int, seed: int, level: int, image: int = 0) -> Cover:
    """A disjoint lattice with a new random offset in each axis at each level.

    The canvas is cut into cells along the lattice; a cell at the edge is narrower than a window, whose
    window is then pushed inside the canvas and used in the cell alone. At most
    (ceil(H / patch) + 1) (ceil(W / patch) + 1) windows.

    Source: the shifted windows of SpotDiffusion (Frolov et al. 2024, arXiv:2407.15507), without its wrap-around.
    """
    offsets = _random(seed, level, image).integers(0, patch, 2)
    rows, columns = (
        _cells(n, patch, int(offset) if n > patch else 0) for n, offset in zip(shape, offsets, strict=True)
    )
    starts = [np.minimum(cells[:, 0], n - patch) for cells, n in zip((rows, columns), shape, strict=True)]
    return _lattice(patch, starts, (rows, columns))


def strided(shape: tuple[int, int], patch: int, stride: int, weights: str) -> Cover:
    """Windows every ``stride`` latents, the last pushed inside; overlapping estimates are averaged."""
    starts = [np.minimum(np.arange(0, n - patch + stride, stride), n - patch) for n in shape]
    intervals = [np.stack([s, s + patch], 1) for s in starts]
    line = window_weights(weights, patch)
    lines = tuple(np.broadcast_to(line, (len(s), patch)) for s in starts)
    return _lattice(patch, starts, intervals, lines)  # type: ignore[arg-type]


def random(shape: tuple[int, int], patch: int, seed: int, level: int, image: int = 0) -> Cover:
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
    starts = np.array(corners, np.int64)
    return Cover(patch, starts, np.concatenate([starts, starts + patch], 1), winner=winner)


def cover_of(
    kind: str, shape: tuple[int, int], patch: int, seed: int, level: int, *, stride: int, weights: str, image: int = 0
) -> Cover:
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


def stacked(covers: Sequence[Cover], images: Sequence[int], shape: tuple[int, int], count: int) -> Cover:
    """The covers of some of ``count`` images of one shape that lie below one another on a canvas."""
    moves = [np.array([image * shape[0], 0], np.int64) for image in images]
    corners = np.concatenate([c.corners + move for c, move in zip(covers, moves, strict=True)])
    keep = np.concatenate([c.keep + np.tile(move, 2) for c, move in zip(covers, moves, strict=True)])
    winner = None
    if covers[0].winner is not None:
        winner = np.full((count * shape[0], shape[1]), -1, np.int32)
        first = 0
        for cover, image in zip(covers, images, strict=True):
            assert cover.winner is not None
            winner[image * shape[0] : (image + 1) * shape[0]] = cover.winner + first
            first += len(cover)
    return Cover(covers[0].patch, corners, keep, covers[0].lines, winner)


def decode_cover(shape: tuple[int, int], patch: int, overlap: int) -> Cover:
    """The decoder's windows: a lattice in latents, a function of the canvas alone.

    Args:
        patch: of the model; the decoder's windows have twice its side where the canvas has room.
        overlap: latents that neighbouring windows share.
    """
    side = min(2 * patch, *shape)
    overlap = min(overlap, side // 2)
    return strided(shape, side, max(side - overlap, 1), "uniform")


def pixel_cover(cover: Cover, factor: int, overlap: int) -> Cover:
    """The same windows in pixels, with weights that rise smoothly over the overlap, and are 1 at the canvas edge."""
    ramp = max(min(overlap, cover.patch // 2) * factor, 1)
    s = np.clip(((np.arange(cover.patch * factor) + 0.5) / ramp - TRIM) / (1 - 2 * TRIM), 0, 1)
    rising = np.maximum(s * s * (3 - 2 * s), 1e-4).astype(np.float32)  # never zero: a sum of weights divides

    def line(windows: int) -> np.ndarray:
        found = np.ones((windows, len(rising)), np.float32)
        found[1:] *= rising
        found[:-1] *= rising[::-1]
        return found

    return _scaled(cover, factor, line)


def gaussian_pixel_cover(cover: Cover, factor: int) -> Cover:
    """The same windows in pixels, weighted by exp(-r^2 / 0.8^2), r from -1 to 1 across a window.

    Source: Large-Image-Diffusion's merging of decoded windows (Graikos et al. 2024, arXiv:2312.07330).
    """
    r = np.linspace(-1, 1, cover.patch * factor)
    bell = np.exp(-((r / 0.8) ** 2)).astype(np.float32)
    return _scaled(cover, factor, lambda windows: np.broadcast_to(bell, (windows, len(bell))))


def _scaled(cover: Cover, factor: int, line: Callable[[int], np.ndarray]) -> Cover:
    """A lattice in units ``factor`` times finer, with new weights: ``line`` gives those of so many windows in a row."""
    assert cover.rows is not None
    assert cover.columns is not None
    return Cover(
        cover.patch * factor,
        cover.corners * factor,
        cover.keep * factor,
        (line(len(cover.rows)), line(len(cover.columns))),
        None,
        cover.rows * factor,
        cover.columns * factor,
    )


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


def _cells(length: int, patch: int, offset: int) -> np.ndarray:
    """int64 (n, 2): [0, length) cut at offset, offset + patch, ..."""
    cuts = np.arange(offset, length, patch)
    edges = np.unique(np.concatenate([[0], cuts, [length]]))
    return np.stack([edges[:-1], edges[1:]], 1).astype(np.int64)


def _lattice(
    patch: int,
    starts: Sequence[np.ndarray],
    intervals: Sequence[np.ndarray],
    lines: tuple[np.ndarray, np.ndarray] | None = None,
) -> Cover:
    """Every row with every column: windows from where they start and the intervals that they are used in."""
    rows, columns = intervals
    y, x = (v.ravel() for v in np.meshgrid(np.arange(len(rows)), np.arange(len(columns)), indexing="ij"))
    corners = np.stack([starts[0][y], starts[1][x]], 1).astype(np.int64)
    keep = np.stack([rows[y, 0], columns[x, 0], rows[y, 1], columns[x, 1]], 1).astype(np.int64)
    return Cover(patch, corners, keep, lines, None, rows, columns)
