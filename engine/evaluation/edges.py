"""Are an image's edges and corners as sharp as its interior?"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from engine.distributed.ranks import Ranks
from engine.evaluation.crops import Crops, share
from engine.evaluation.measures import Measure
from engine.evaluation.spectrum import power_of, radii

SIDE = 64  # px of a crop at an edge
PERIODS = (2, 8)  # px: what is sharp
MOST = 512  # pairs of crops
NAMES = {False: "sharpness at edges", True: "sharpness at corners"}


def edge_measures(ranks: Ranks, generated: Crops, reference: Crops) -> list[Measure]:
    """Power at periods of 2 to 8 px in crops at an image's edge or corner, over that in the crop next to each inside.

    Neighbours, because tissue differs from place to place by more than an edge does; 0 dB where edges are like the
    interior. Images of less than 192 px a side are left out. Collective; the same numbers on any number of ranks.

    Raises:
        AgreedError: a crop cannot be read.
    """
    made, kept = (differences(ranks, crops) for crops in (generated, reference))
    measures = []
    for corner, name in NAMES.items():
        (value, error), (beside, _) = (mean_of(part[corner]) for part in (made, kept))
        if value is not None:
            says = "Power at periods of 2 to 8 px there, over that in the crop next to it inside; 0 is alike."
            measures.append(Measure("realism", name, value, "zero", beside, error, "dB", says=says))
    return measures


def mean_of(values: np.ndarray) -> tuple[float | None, float | None]:
    """Mean and its standard error; None: there are too few values."""
    if not len(values):
        return None, None
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else None


def differences(ranks: Ranks, crops: Crops) -> dict[bool, np.ndarray]:
    """dB: edge less inside of every pair, at edges (False) and at corners (True). Collective."""
    outer, inner, corner = pairs_of(crops)
    mine = share(len(outer), ranks.rank, ranks.size)

    def own() -> np.ndarray:
        pairs = ((sharpness(outer.read(n)), sharpness(inner.read(n))) for n in mine)
        return np.array([edge - inside for edge, inside in pairs])

    every = np.concatenate(ranks.allgather(ranks.agree(own)))
    known = np.isfinite(every)  # not white, where a region of interest ends
    return {is_corner: every[known & (corner == is_corner)] for is_corner in NAMES}


def sharpness(crop: np.ndarray) -> float:
    """dB of mean power at periods of 2 to 8 px; -inf: it is of one colour."""
    radius, (low, high) = radii(len(crop)), PERIODS
    power = power_of(crop)[(radius > 1 / high) & (radius <= 1 / low)].mean()
    return float(10 * np.log10(power)) if power > 1e-9 else -np.inf


def pairs_of(crops: Crops, seed: int = 0) -> tuple[Crops, Crops, np.ndarray]:
    """Crops of 64 px at the edges of the source's images, the crops next to them inside, and which are at corners.

    All corners come first, then edges that are drawn at random, 512 together at most.
    """
    span, sizes = round(SIDE * crops.scale), crops.source.sizes
    rng = np.random.default_rng((seed, len(sizes)))
    large = np.flatnonzero((sizes >= 3 * span).all(1))
    chosen = rng.permutation(large)[: MOST // 8]
    outer, corner = [np.empty((0, 3), np.int64)], [np.empty(0, bool)]
    for image in np.sort(chosen):
        places, is_corner = around(sizes[image], span, MOST // len(chosen), rng)
        outer.append(np.insert(places, 0, image, axis=1))
        corner.append(is_corner)
    at = np.concatenate(outer)
    last = sizes[at[:, 0]] - span
    inside = at.copy()
    inside[:, 1:] += span * (at[:, 1:] == 0) - span * (at[:, 1:] == last)
    shared = replace(crops, side=SIDE)
    return replace(shared, places=at), replace(shared, places=inside), np.concatenate(corner)


def around(size: np.ndarray, span: int, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """int64 (n, 2), bool (n,): the four corners of an image, and places along its edges."""
    h, w = (size - span).tolist()
    corners = [(0, 0), (0, w), (h, 0), (h, w)]
    along = [[(0, x), (h, x)] for x in range(2 * span, w - 2 * span + 1, span)]
    along += [[(y, 0), (y, w)] for y in range(2 * span, h - 2 * span + 1, span)]
    edges = [place for pair in along for place in pair]
    edges = [edges[n] for n in np.sort(rng.permutation(len(edges))[: max(count - 4, 0)])]
    return np.array(corners + edges, np.int64), np.arange(4 + len(edges)) < 4
