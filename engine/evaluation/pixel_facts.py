"""What the measures of realism know of every crop: read once, each rank its share, and gathered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from engine.distributed.ranks import Ranks
from engine.evaluation.crops import Crops, share
from engine.evaluation.optical_density import DensitySums, density_sums, table_of
from engine.evaluation.sliced_wasserstein import descriptors
from engine.evaluation.spectrum import bands, power_of, repeats_at

MOSTLY = 0.5  # share of a crop that one label has, more than which the crop counts as of it
NO_LABEL = -1


@dataclass(frozen=True)
class PixelFacts:
    """Of the crops of a set, in their order, on every rank; but for the patches, of which a rank has its crops' own.

    Args:
        density: Sums of optical density.
        bands: float64 (crops, 8): mean power over periods.
        repeats: float64 (crops,): autocorrelation at the pitch.
        patches: Of this rank, for each level: float32 (crops of them, each, 7, 7, 3).
    """

    density: DensitySums
    bands: np.ndarray
    repeats: np.ndarray
    patches: list[np.ndarray]


def labels_of(ranks: Ranks, crops: Crops) -> np.ndarray:
    """int64 (n,): the label that more than half of each crop has; -1: none has. Collective.

    Raises:
        AgreedError: a label map cannot be read.
    """
    mine = share(len(crops), ranks.rank, ranks.size)
    own = ranks.agree(lambda: np.array([label_of(classes_of(crops.labels(n))) for n in mine], np.int64))
    return np.concatenate(ranks.allgather(own))


def classes_of(labels: np.ndarray | None) -> np.ndarray | None:
    """A label map as it is; of the ids of objects, which take more than a byte, 1 in each and 0 around them."""
    return labels if labels is None or labels.dtype.itemsize == 1 else (labels > 0).astype(np.uint8)


def label_of(labels: np.ndarray | None) -> int:
    """The label of more than half of a map.

    >>> label_of(np.array([[2, 2], [2, 0]])), label_of(np.array([[2, 2], [0, 0]])), label_of(None)
    (2, -1, -1)
    """
    if labels is None:
        return NO_LABEL
    names, counts = np.unique(labels, return_counts=True)
    return int(names[counts.argmax()]) if counts.max() > MOSTLY * labels.size else NO_LABEL


def facts_of(
    ranks: Ranks,
    crops: Crops,
    pitch: int,
    chosen: np.ndarray,
    each: int,
    generator: Callable[[int], np.random.Generator],
) -> PixelFacts:
    """Read every crop once. Collective.

    Args:
        pitch: px.
        chosen: Sorted numbers of the crops that patches are drawn from.
        each: Patches of a crop at each level.
        generator: Draws the patches of a crop, from its number.
    Raises:
        AgreedError: a crop cannot be read.
    """
    mine, wanted = share(len(crops), ranks.rank, ranks.size), set(chosen.tolist())

    def own() -> tuple[list, np.ndarray, list[list[np.ndarray]]]:
        sums, values, patches = [], np.empty((len(mine), 9)), []
        for row, number in enumerate(mine):
            pixels = crops.read(number)
            power = power_of(pixels)
            sums += density_sums(pixels, classes_of(crops.labels(number)), number)
            values[row] = [*bands(power), repeats_at(power, pitch)]
            if number in wanted:
                patches.append(descriptors(pixels, each, generator(number)))
        return sums, values, patches

    sums, values, patches = ranks.agree(own)
    gathered = np.concatenate(ranks.allgather(values))
    table = table_of([row for rows in ranks.allgather(sums) for row in rows])
    return PixelFacts(table, gathered[:, :8], gathered[:, 8], [np.stack(level) for level in zip(*patches, strict=True)])


def gathered_level(ranks: Ranks, facts: PixelFacts, level: int) -> np.ndarray:
    """float32 (patches, 7, 7, 3): those of a level, of all ranks, in the order of crops. Collective."""
    own = facts.patches[level] if facts.patches else np.empty((0, 0), np.float32)
    parts = [part.reshape(-1, *part.shape[2:]) for part in ranks.allgather(own) if part.size]
    return np.concatenate(parts)
