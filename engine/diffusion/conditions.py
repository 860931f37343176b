"""Conditions: what each window is asked for, and how many evaluations that takes.

Every latent has a label: a label map's, its class, its style, or 0 throughout. A label takes one evaluation of the
network, and if it is guided another one without it, its *null*. A condition names these evaluations by small integers,
*keys*; a window is evaluated once for every key that its core needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from engine.diffusion.latent_map import LatentMap
from engine.planning.cover import Cover, windows_of
from engine.planning.geometry import Box
from engine.planning.names import LARGEST_LABEL

BITS = np.uint64(1) << np.arange(LARGEST_LABEL + 1, dtype=np.uint64)
ModelInputs = dict[str, np.ndarray]  # what a network is given beside latents and timestep, batch first


@dataclass(frozen=True)
class GuidanceInTurn:
    """Guidance weights of the images of a set: image i has the weight at i modulo their number.

    Args:
        weights: Weight of each place.
        rows: Height of one image, in latents; the images lie below one another.
    """

    weights: tuple[float, ...]
    rows: int

    def places(self, tops: Any) -> Any:
        """The place of a window by its first row, or those of several.

        >>> GuidanceInTurn((1.0, 4.0), 16).places(np.array([0, 8, 16, 40])).tolist()
        [0, 0, 1, 0]
        """
        return tops // self.rows % len(self.weights)


@dataclass(frozen=True)
class Condition:
    """What all conditions share; by itself it is the condition of a model that takes none.

    Args:
        guidance: Weight w in null + w (cond - null); 1 is off.
        labels: Label of every latent, unsigned integers (H, W) below 64, sliced by box; None: 0 throughout.
        in_turn: Weights that take the place of ``guidance``, an image after the other; None: all have the same.
    """

    guidance: float = 1.0
    labels: np.ndarray | LatentMap | None = None
    in_turn: GuidanceInTurn | None = field(default=None, kw_only=True)

    @cached_property
    def by_place(self) -> tuple[Condition, ...]:
        """The condition with each of the weights in turn, by its place."""
        assert self.in_turn is not None
        return tuple(replace(self, guidance=weight, in_turn=None) for weight in self.in_turn.weights)

    def of(self, window: Box) -> Condition:
        """The condition with the guidance weight of a window's image."""
        if self.in_turn is None:
            return self
        return self.by_place[self.in_turn.places(window.y0)]

    def keys(self, label: int) -> tuple[int | None, int | None]:
        """The keys of a label's evaluation and of its null's; None: there is no such evaluation."""
        return 1, None

    def inputs(self, asked: Sequence[tuple[Box, int]]) -> ModelInputs:
        """The network's inputs for each (window, key), batch first."""
        return {}

    def network(self, key: int) -> int:
        """Index of the network that evaluates a key."""
        return 0

    def check(self) -> None:
        """Raise what went wrong while inputs were made, where it is not raised at once."""

    def label_bits(self, cover: Cover, window_ids: np.ndarray) -> np.ndarray:
        """uint64 (n,): the labels of windows; bit k is set if label k occurs where the window's estimate is used."""
        if self.labels is None:
            return np.ones(len(window_ids), np.uint64)
        bits = np.empty(len(window_ids), np.uint64)
        for n, (window_id, box) in enumerate(zip(window_ids.tolist(), cover.core(window_ids).tolist(), strict=True)):
            core = Box(*box)
            labels, weight = self.crop(core), cover.weight(window_id, core)
            used = labels if weight is None else labels[weight > 0]
            counts = np.bincount(used.ravel(), minlength=LARGEST_LABEL + 1)
            bits[n] = np.bitwise_or.reduce(BITS[counts > 0])
        return bits

    def requests(self, label_bits: int) -> list[int]:
        """The keys of a window's evaluations, in order, from its labels as bits.

        >>> LabelMap(2.0).requests(0b1011), LabelMap(1.0).requests(0b1010)
        ([0, 1, 3], [1, 3])
        """
        needed = set()
        for cond, null in map(self.keys, labels_of(label_bits)):
            needed |= {cond, null} if self.guidance != 1 and null is not None else {null if cond is None else cond}
        return sorted(key for key in needed if key is not None)

    def first_request(self, cover: Cover) -> tuple[Box, int]:
        """The first window of a cover, and the key of an evaluation that it takes: for trials, one like any other."""
        first = np.zeros(1, np.int64)
        window = Box(*windows_of(cover, first)[0].tolist())
        return window, self.of(window).requests(int(self.label_bits(cover, first)[0]))[0]

    def unguided(self) -> Condition:
        """The same condition without guidance, and so without the nulls that only guidance needs."""
        return replace(self, guidance=1.0, in_turn=None)

    def at_level(self, level: int, guided_levels: range | None) -> Condition:
        """The condition of a level, which is guided only in some levels; None: in all."""
        return self if guided_levels is None or level in guided_levels else self.unguided()

    def costs_of(self, cover: Cover, window_ids: np.ndarray, label_bits: np.ndarray) -> np.ndarray:
        """int64 (n,): number of evaluations of each window of a cover."""
        if self.in_turn is None:
            return self.costs(label_bits)
        places = self.in_turn.places(windows_of(cover, window_ids)[:, 0])
        costs = np.zeros(len(window_ids), np.int64)
        for place in np.unique(places).tolist():
            costs[places == place] = self.by_place[place].costs(label_bits[places == place])
        return costs

    def costs(self, label_bits: np.ndarray) -> np.ndarray:
        """int64 (windows,): number of evaluations of each window, where all have the same guidance."""
        distinct, inverse = np.unique(label_bits, return_inverse=True)
        return np.array([len(self.requests(int(bits))) for bits in distinct], np.int64)[inverse]

    def crop(self, window: Box) -> np.ndarray:
        """The labels of a window."""
        assert self.labels is not None
        return self.labels[window.y0 : window.y1, window.x0 : window.x1]


def labels_of(label_bits: int) -> Iterable[int]:
    """The labels whose bits are set, in order."""
    return (k for k in range(LARGEST_LABEL + 1) if label_bits >> k & 1)


@dataclass(frozen=True)
class LabelMap(Condition):
    """A label for every latent, given to the network as a number and a map of where it lies (DiffInfinite's model).

    Label 0 is unknown: it is the null of all others, and is never guided.
    """

    def keys(self, label: int) -> tuple[int | None, int | None]:
        return label or None, 0

    def inputs(self, asked: Sequence[tuple[Box, int]]) -> ModelInputs:
        maps = [
            self.crop(window) == key if key and self.labels is not None else np.full(window.shape, bool(key))
            for window, key in asked
        ]
        return {"label": np.array([key for _, key in asked]), "mask": np.stack(maps)[:, None].astype(np.float32)}


@dataclass(frozen=True)
class ClassMap(Condition):
    """A class for every latent, given to the network as a number or as an embedding.

    Args:
        has_null: Whether the model was also trained without a class.
        table: float32 (classes, D), the classes' embeddings; None: the network is given the number, -1 for the null.
    """

    has_null: bool = True
    table: np.ndarray | None = None

    def keys(self, label: int) -> tuple[int | None, int | None]:
        return label + 1, 0 if self.has_null else None

    def inputs(self, asked: Sequence[tuple[Box, int]]) -> ModelInputs:
        classes = np.array([key - 1 for _, key in asked])
        if self.table is None:
            return {"label": classes}
        return {"embedding": np.where(classes[:, None] < 0, np.float32(0), self.table[classes])}  # the null is zero


class Embeddings(Protocol):
    """An array of embeddings (h, w, D) or (images, D), or what is indexed like one."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, index: Any, /) -> np.ndarray: ...


@dataclass(frozen=True)
class EmbeddingGrid(Condition):
    """Embeddings on a grid, one per ``pitch`` latents; a window's embedding is interpolated between them.

    Interpolation is spherical, along x, then along y (Graikos et al. 2024, arXiv:2312.07330); the grid's edge repeats.

    Args:
        grid: Embeddings, float32 (h, w, D); of independent images (images, D). An array, or what is indexed like one.
        region: Embeddings of a second token, likewise; None: zero.
        pitch: Latents per embedding.
        at: Positions of embeddings and windows: ``centre``, the middles of cell and window; ``corner``, their top left
            corners, as published. It makes no difference where the pitch is the window's side.
        rows: Height of one image, in latents, where there are several below one another.
    """

    grid: Embeddings | None = None
    region: Embeddings | None = None
    pitch: float = 1.0
    at: str = "centre"
    rows: int | None = None

    def keys(self, label: int) -> tuple[int | None, int | None]:
        return 1, 0

    def inputs(self, asked: Sequence[tuple[Box, int]]) -> ModelInputs:
        assert self.grid is not None
        grids = {"embedding": self.grid} if self.region is None else {"embedding": self.grid, "region": self.region}
        return {
            name: np.stack([self.read(grid, window) * np.float32(key) for window, key in asked])  # key 0: the null
            for name, grid in grids.items()
        }

    def read(self, grid: Embeddings, window: Box) -> np.ndarray:
        """float32 (D,): the embedding of a window."""
        if self.rows is not None:
            return grid[window.y0 // self.rows]
        half = 0.5 if self.at == "centre" else 0.0
        y = (window.y0 + half * window.height) / self.pitch - half
        x = (window.x0 + half * window.width) / self.pitch - half
        (y0, y1, fy), (x0, x1, fx) = _between(y, grid.shape[0]), _between(x, grid.shape[1])
        return slerp(slerp(grid[y0, x0], grid[y0, x1], fx), slerp(grid[y1, x0], grid[y1, x1], fx), fy)


@dataclass(frozen=True)
class EmbeddingField(Condition):
    """Embeddings by functions of position: a window's is what they say of its box; the null is zero.

    A function that fails while windows are evaluated fails on one rank: the window is then asked for the null, and
    ``check`` raises it where all ranks can agree.

    Args:
        functions: From the name of a model's input to its function, which returns float32 (D,).
        width: Numbers D of each.
        problems: What went wrong.
    """

    functions: dict[str, Callable[[Box], np.ndarray]] = field(default_factory=dict)
    width: dict[str, int] = field(default_factory=dict)
    problems: list[Exception] = field(default_factory=list)

    def keys(self, label: int) -> tuple[int | None, int | None]:
        return 1, 0

    def inputs(self, asked: Sequence[tuple[Box, int]]) -> ModelInputs:
        return {name: np.stack([self.read(name, window, key) for window, key in asked]) for name in self.functions}

    def read(self, name: str, window: Box, key: int) -> np.ndarray:
        if key and not self.problems:
            try:
                return self.functions[name](window)
            except ValueError as error:
                self.problems.append(error)
        return np.zeros(self.width[name], np.float32)

    def check(self) -> None:
        if self.problems:
            raise self.problems[0]


def _between(position: float, count: int) -> tuple[int, int, float]:
    """The two cells of an axis that a position lies between, and how far it is from the first."""
    position = min(max(position, 0.0), float(count - 1))
    low = min(int(position), count - 1)
    return low, min(low + 1, count - 1), position - low


def slerp(a: np.ndarray, b: np.ndarray, t: float) -> np.ndarray:
    """Spherical interpolation from ``a`` to ``b``; linear where they have nearly the same or opposite directions.

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
    """A map of several channels at the canvas's resolution, given to the network as it is; its null is zero.

    Args:
        labels: Style of every latent, the index of the network that makes it; None: the first network makes all.
        read: Reads the map in a window, float32 (K, p, p).
        channels: Number of channels K.
        styles: Number of networks.
    """

    read: Callable[[Box], np.ndarray] | None = None
    channels: int = 0
    styles: int = 1

    def keys(self, label: int) -> tuple[int | None, int | None]:
        return 2 * label + 1, 2 * label

    def network(self, key: int) -> int:
        return key // 2 if self.styles > 1 else 0

    def inputs(self, asked: Sequence[tuple[Box, int]]) -> ModelInputs:
        assert self.read is not None
        read = {window: self.read(window) for window in {window for window, key in asked if key % 2}}
        maps = [read[w] if key % 2 else np.zeros((self.channels, *w.shape), np.float32) for w, key in asked]
        return {"map": np.stack(maps)}
