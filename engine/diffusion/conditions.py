"""What a window is asked for, by position, and what it costs to ask.

Every latent has a label: of a label map, a class, a style, or 0 throughout. A label is asked for by one evaluation
under its key, and guided by another under the key of its null. Keys are small integers that a condition gives out; a
window is evaluated once for every key that is needed where its estimate is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from engine.diffusion.latent_map import LatentMap
from engine.planning.cover import LARGEST_LABEL, Cover
from engine.planning.geometry import Window

BITS = np.uint64(1) << np.arange(LARGEST_LABEL + 1, dtype=np.uint64)
ModelInputs = dict[str, np.ndarray]  # what a network is given beside latents and timestep, batch first


@dataclass(frozen=True)
class Condition:
    """What all conditions share; alone, of a model that is asked for nothing.

    Args:
        guidance: weight w in null + w (cond - null); 1 is off.
        labels: unsigned integers (H, W), below 64, sliced by box; None: 0 throughout.
    """

    guidance: float = 1.0
    labels: np.ndarray | LatentMap | None = None

    def keys(self, label: int) -> tuple[int | None, int | None]:
        """The keys of a label's evaluation and of its null; None: there is none."""
        return 1, None

    def inputs(self, asked: Sequence[tuple[Window, int]]) -> ModelInputs:
        """What the network is given for each (window, key)."""
        return {}

    def network(self, key: int) -> int:
        """Which of the model's networks answers a key."""
        return 0

    def label_bits(self, cover: Cover, ids: np.ndarray) -> np.ndarray:
        """uint64 (n,): bit k is set where label k occurs where a window is used."""
        if self.labels is None:
            return np.ones(len(ids), np.uint64)
        found = np.empty(len(ids), np.uint64)
        for n, (index, box) in enumerate(zip(ids.tolist(), cover.core(ids).tolist(), strict=True)):
            kept = Window(*box)
            part, weight = self.crop(kept), cover.weight(index, kept)
            counts = np.bincount((part if weight is None else part[weight > 0]).ravel(), minlength=LARGEST_LABEL + 1)
            found[n] = np.bitwise_or.reduce(BITS[counts > 0])
        return found

    def requests(self, label_bits: int) -> list[int]:
        """The keys of the evaluations of a window whose labels are the bits of ``label_bits``, in order.

        >>> LabelMap(2.0).requests(0b1011), LabelMap(1.0).requests(0b1010)
        ([0, 1, 3], [1, 3])
        """
        needed = set()
        for cond, null in map(self.keys, labels_of(label_bits)):
            needed |= {cond, null} if self.guidance != 1 and null is not None else {null if cond is None else cond}
        return sorted(key for key in needed if key is not None)

    def unguided(self) -> Condition:
        """The same without guidance, and so without the nulls that only it needs."""
        return replace(self, guidance=1.0)

    def costs(self, label_bits: np.ndarray) -> np.ndarray:
        """int64 (windows,): how many evaluations each window takes."""
        known, inverse = np.unique(label_bits, return_inverse=True)
        return np.array([len(self.requests(int(p))) for p in known], np.int64)[inverse]

    def crop(self, window: Window) -> np.ndarray:
        assert self.labels is not None
        return self.labels[window.y0 : window.y1, window.x0 : window.x1]


def labels_of(label_bits: int) -> Iterable[int]:
    return (k for k in range(LARGEST_LABEL + 1) if label_bits >> k & 1)


@dataclass(frozen=True)
class LabelMap(Condition):
    """A label for every latent, read by the network as a map of 0 and 1 (DiffInfinite's image model).

    Label 0 is unknown: it asks for nothing, is never guided and costs nothing more; it is the null of all others.
    """

    def keys(self, label: int) -> tuple[int | None, int | None]:
        return label or None, 0

    def inputs(self, asked: Sequence[tuple[Window, int]]) -> ModelInputs:
        maps = [
            self.crop(window) == key if key and self.labels is not None else np.full(window.shape, bool(key))
            for window, key in asked
        ]
        return {"label": np.array([key for _, key in asked]), "mask": np.stack(maps)[:, None].astype(np.float32)}


@dataclass(frozen=True)
class ClassMap(Condition):
    """A class for every latent, given to the network as a number or as an embedding.

    Args:
        has_null: whether the model was trained without a class too.
        table: float32 (classes, D), the embeddings; None: the network is given the number, -1 for the null.
    """

    has_null: bool = True
    table: np.ndarray | None = None

    def keys(self, label: int) -> tuple[int | None, int | None]:
        return label + 1, 0 if self.has_null else None

    def inputs(self, asked: Sequence[tuple[Window, int]]) -> ModelInputs:
        classes = np.array([key - 1 for _, key in asked])
        if self.table is None:
            return {"label": classes}
        return {"embedding": np.where(classes[:, None] < 0, np.float32(0), self.table[classes])}  # zero is the null


@dataclass(frozen=True)
class EmbeddingGrid(Condition):
    """Embeddings on a grid, one per ``pitch`` latents; a window is asked for what lies at its place between them.

    Spherical interpolation along x, then along y (Graikos et al. 2024, arXiv:2312.07330); the grid's edge repeats.

    Args:
        grid: float32 (h, w, D); of independent images (images, D).
        region: the like, of a second token; None: zero.
        pitch: latents per embedding.
        at: ``centre``: an embedding belongs to the middle of its cell, and a window is asked for at its middle;
            ``corner``: both at their top-left corner, as published. The same where the pitch is the window's side.
        rows: height of one image, where there are several below one another.
    """

    grid: np.ndarray | None = None
    region: np.ndarray | None = None
    pitch: float = 1.0
    at: str = "centre"
    rows: int | None = None

    def keys(self, label: int) -> tuple[int | None, int | None]:
        return 1, 0

    def inputs(self, asked: Sequence[tuple[Window, int]]) -> ModelInputs:
        assert self.grid is not None
        found = {"embedding": np.stack([self.read(self.grid, window) * np.float32(key) for window, key in asked])}
        if self.region is not None:
            found["region"] = np.stack([self.read(self.region, window) * np.float32(key) for window, key in asked])
        return found

    def read(self, grid: np.ndarray, window: Window) -> np.ndarray:
        """float32 (D,): the embedding of a window."""
        if self.rows is not None:
            return grid[window.y0 // self.rows]
        half = 0.5 if self.at == "centre" else 0.0
        y = (window.y0 + half * window.height) / self.pitch - half
        x = (window.x0 + half * window.width) / self.pitch - half
        (y0, y1, fy), (x0, x1, fx) = _between(y, grid.shape[0]), _between(x, grid.shape[1])
        return slerp(slerp(grid[y0, x0], grid[y0, x1], fx), slerp(grid[y1, x0], grid[y1, x1], fx), fy)


def _between(position: float, count: int) -> tuple[int, int, float]:
    """The two places of a line that a position lies between, and how far."""
    position = min(max(position, 0.0), float(count - 1))
    low = min(int(position), count - 1)
    return low, min(low + 1, count - 1), position - low


def slerp(a: np.ndarray, b: np.ndarray, t: float) -> np.ndarray:
    """Spherical interpolation from ``a`` to ``b``; linear where they point nearly the same or the opposite way.

    >>> slerp(np.array([1.0, 0.0]), np.array([0.0, 1.0]), 0.5).round(3).tolist()
    [0.707, 0.707]
    """
    if t == 0:
        return a
    length = np.linalg.norm(a) * np.linalg.norm(b)
    cosine = float(np.dot(a, b) / length) if length else 1.0
    if abs(cosine) > 0.9995:
        return ((1 - t) * a + t * b).astype(a.dtype)
    angle = np.arccos(cosine)
    return ((np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)).astype(a.dtype)


@dataclass(frozen=True)
class SemanticMap(Condition):
    """A map of several channels at the canvas's resolution, given to the network whole; its null is zero.

    Args:
        labels: of styles: which network makes which latents; None: the first makes all.
        read: from a window to float32 (K, p, p).
        styles: how many networks there are.
        channels: K.
    """

    read: Callable[[Window], np.ndarray] | None = None
    channels: int = 0
    styles: int = 1

    def keys(self, label: int) -> tuple[int | None, int | None]:
        return 2 * label + 1, 2 * label

    def network(self, key: int) -> int:
        return key // 2 if self.styles > 1 else 0

    def inputs(self, asked: Sequence[tuple[Window, int]]) -> ModelInputs:
        assert self.read is not None
        known: dict[Window, np.ndarray] = {}
        for window in {window for window, key in asked if key % 2}:
            known[window] = self.read(window)
        maps = [known[w] if key % 2 else np.zeros((self.channels, *w.shape), np.float32) for w, key in asked]
        return {"map": np.stack(maps)}
