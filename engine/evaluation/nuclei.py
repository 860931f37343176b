"""Nuclei of generated images by their instance maps, beside those of a reference: how many, how large, how coloured.

A generated image was asked to have its nuclei where the map has them: if it does, what is inside a nucleus differs from
what is right around it as it does in the reference. Maps and pixels are read by box; a nucleus that lies in several
boxes is one row of the table, and what is kept is in proportion to the number of nuclei.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import chain

import numpy as np

from engine.distributed.ranks import Ranks
from engine.evaluation.crops import share
from engine.evaluation.measures import Measure, Table
from engine.evaluation.sources import FolderSource, OutputSource, Source
from engine.inputs.dataset_folder import PARTS
from engine.planning.geometry import Box, grid
from engine.storage.readers import read_integers

SIDE = 1024  # px of the boxes that are read
RING = 3  # px around a nucleus that are its surroundings
SMALLEST = 10  # px; what is smaller is no nucleus
VISIBLE = 0.02  # optical density by which a nucleus that is seen is darker than its surroundings
GROUP = "nuclei"
SUFFIXES = (".tif", ".tiff", ".png", ".npy")
# Sums over the pixels of a nucleus, and over those of the ring around it.
THREE = (np.int64, (3,))
ROW = np.dtype([("key", np.uint64), ("area", np.int64), ("inside", *THREE), ("ring", np.int64), ("outside", *THREE)])
QUANTITIES = ("area, px", "red", "green", "blue", "contrast")
ReadMap = Callable[[int, Box], np.ndarray]


def nuclei(ranks: Ranks, generated: Source, reference: Source | None) -> tuple[list[Measure], list[Table]]:
    """Statistics of the nuclei of two sources, and how far their distributions are apart. Collective.

    Args:
        generated: An output that was made from instance maps, or a folder of images/ and inst_masks/.
        reference: Likewise; None: nothing stands beside it.
    Raises:
        ValueError: a source has no instance maps, or one of another size, or no nuclei.
    """
    tables = [nuclei_of(ranks, source) for source in (generated, reference) if source is not None]
    sources = [source for source in (generated, reference) if source is not None]
    return ranks.on_root(lambda: results(tables, [megapixels(source) for source in sources]))


def nuclei_of(ranks: Ranks, source: Source, side: int = SIDE) -> np.ndarray:
    """``ROW`` (n,), a row a nucleus, by image and id; on rank 0, elsewhere none. Collective.

    Args:
        side: Of the boxes that are read, px; changes nothing else.
    """
    read = ranks.agree(lambda: map_reader(source))
    boxes = [(image, box) for image, size in enumerate(source.sizes.tolist()) for box in grid(tuple(size), side)]
    own = share(len(boxes), ranks.rank, ranks.size)
    gathered = ranks.gather(
        ranks.agree(lambda: merged(rows_in(source, read, *at) for at in boxes[own.start : own.stop]))
    )

    def whole() -> np.ndarray:
        rows = merged(iter(gathered))
        if not len(rows) and ranks.rank == 0:
            raise ValueError(f"{source.path} has no nuclei of {SMALLEST} px or more; give images with instance maps")
        return rows

    return ranks.agree(lambda: kept(whole()))


def kept(rows: np.ndarray) -> np.ndarray:
    """Those that are large enough and have surroundings."""
    return rows[(rows["area"] >= SMALLEST) & (rows["ring"] > 0)]


# ---- the table --------------------------------------------------------------------------------


def map_reader(source: Source) -> ReadMap:
    """Reader of the instance map of an image in a box.

    Raises:
        ValueError: the source has none.
    """
    if isinstance(source, OutputSource):
        label = source.output.layout.label
        if label is not None and label.name == "nuclei":
            return lambda image, box: required(source.labels(image, box))
    elif isinstance(source, FolderSource):
        files = [instance_file(source, image) for image in range(len(source.names))]
        if all(files):
            return lambda image, box: of_size(files[image], source.sizes[image])[box.y0 : box.y1, box.x0 : box.x1]  # type: ignore[arg-type]
    raise ValueError(
        f"{source.path} has no instance maps; give an output of engine.sample `instances`, or a folder with images/ "
        f"and {PARTS['instances']}/"
    )


def required(values: np.ndarray | None) -> np.ndarray:
    assert values is not None
    return values


def instance_file(source: FolderSource, image: int) -> str | None:
    """The instance map of an image in ``images/``: of the same name in ``inst_masks/``."""
    path = source.path / source.names[image]
    if path.parent.name != PARTS["appearance"]:
        return None
    folder = path.parent.parent / PARTS["instances"]
    return next((str(folder / (path.stem + end)) for end in SUFFIXES if (folder / (path.stem + end)).is_file()), None)


@lru_cache(maxsize=2)
def opened(path: str) -> np.ndarray:
    from pathlib import Path

    return read_integers(Path(path), "the instance map")


def of_size(path: str, size: np.ndarray) -> np.ndarray:
    ids = opened(path)
    if ids.shape != tuple(size):
        raise ValueError(f"{path} has shape {ids.shape} and its image {tuple(map(int, size))}; give maps of one size")
    return ids


def rows_in(source: Source, read: ReadMap, image: int, box: Box) -> np.ndarray:
    """``ROW`` of the nuclei in a box, and of the parts of rings in it.

    Rings are grown in the box and ``RING`` px around it: what lies in the box is the same for any boxes.
    """
    height, width = map(int, source.sizes[image])
    wide = Box(max(box.y0 - RING, 0), max(box.x0 - RING, 0), min(box.y1 + RING, height), min(box.x1 + RING, width))
    ids = np.asarray(read(image, wide), np.int64)
    around = grown(ids)
    within = box.within(wide)
    ids, around = ids[within].ravel(), around[within].ravel()
    pixels = source.read(image, box).reshape(-1, 3)
    parts = [sums_by(ids, pixels, "area", "inside"), sums_by(np.where(ids > 0, 0, around), pixels, "ring", "outside")]
    rows = np.concatenate(parts)
    rows["key"] |= np.uint64(image) << np.uint64(32)
    return rows


def grown(ids: np.ndarray) -> np.ndarray:
    """Ids after nuclei have grown by ``RING`` px to all four sides, where they meet the larger id first.

    >>> grown(np.array([[0, 0, 0, 0, 5]])).tolist()
    [[0, 5, 5, 5, 5]]
    """
    for _ in range(RING):
        near = np.zeros_like(ids)
        for a, b in ((np.s_[1:, :], np.s_[:-1, :]), (np.s_[:, 1:], np.s_[:, :-1])):
            near[a] = np.maximum(near[a], ids[b])
            near[b] = np.maximum(near[b], ids[a])
        ids = np.where(ids > 0, ids, near)
    return ids


def sums_by(ids: np.ndarray, pixels: np.ndarray, count: str, color: str) -> np.ndarray:
    """``ROW`` of each id above 0: how many pixels there are, and the sums of their colours."""
    chosen = np.flatnonzero(ids)
    keys, place = np.unique(ids[chosen], return_inverse=True)
    rows = np.zeros(len(keys), ROW)
    rows["key"] = keys
    rows[count] = np.bincount(place, minlength=len(keys))
    for channel in range(3):
        rows[color][:, channel] = np.bincount(place, pixels[chosen, channel], len(keys))
    return rows


def merged(parts: Iterator[np.ndarray]) -> np.ndarray:
    """One row for each key; merged whenever the rows have doubled."""
    gathered, rows, before = [np.zeros(0, ROW)], 0, 1024
    for part in parts:
        gathered.append(part)
        rows += len(part)
        if rows > 2 * before:
            gathered = [summed(np.concatenate(gathered))]
            rows = before = max(len(gathered[0]), 1024)
    return summed(np.concatenate(gathered))


def summed(rows: np.ndarray) -> np.ndarray:
    keys, place = np.unique(rows["key"], return_inverse=True)
    total = np.zeros(len(keys), ROW)
    total["key"] = keys
    for name in ROW.names[1:]:  # type: ignore[index]
        np.add.at(total[name], place, rows[name])
    return total


# ---- what is said -----------------------------------------------------------------------------


def quantities(rows: np.ndarray) -> np.ndarray:
    """float64 (5, n): area, mean colour inside, and optical density inside above that of the ring.

    Optical density: -log10 of the mean brightness, (mean + 1) / 256.
    """
    inside = rows["inside"] / rows["area"][:, None]
    outside = rows["outside"] / rows["ring"][:, None]
    contrast = np.log10((outside.mean(1) + 1) / (inside.mean(1) + 1))
    return np.stack([rows["area"].astype(np.float64), *inside.T, contrast])


def results(tables: list[np.ndarray], areas: list[float]) -> tuple[list[Measure], list[Table]]:
    """Measures and the table of one source, or of two. Local.

    Args:
        areas: Of the images of each, megapixels.
    """
    values = [quantities(rows) for rows in tables]
    per_area = [len(rows) / area for rows, area in zip(tables, areas, strict=True)]
    visible = [float((part[-1] > VISIBLE).mean()) for part in values]
    error = float(np.sqrt(visible[0] * (1 - visible[0]) / len(tables[0])))
    texts = (
        ("nuclei per megapixel", per_area, "", None, "in the instance maps"),
        ("median area", [float(np.median(part[0])) for part in values], "px", None, "in the instance maps"),
        ("seen", visible, "", error, f"share of nuclei darker than {RING} px around them by {VISIBLE} optical density"),
        (
            "contrast",
            [float(part[-1].mean()) for part in values],
            "OD",
            standard_error(values[0][-1]),
            "mean over nuclei",
        ),
    )
    measures = [
        Measure(GROUP, name, pair[0], "", pair[1] if len(pair) > 1 else None, spread, unit, says=says)
        for name, pair, unit, spread, says in texts
    ]
    if len(values) > 1:
        says = "largest difference of the two distributions; beside it, of every second nucleus of the reference"
        measures += [
            Measure(
                GROUP,
                f"{name}, Kolmogorov-Smirnov",
                largest_difference(made, known),
                "lower",
                halves_of(known),
                says=says,
            )
            for name, made, known in zip(QUANTITIES, *values, strict=True)
        ]
    columns = [f"{of} {what}" for of in ("generated", "reference")[: len(values)] for what in ("mean", "spread")]
    rows = tuple(
        tuple(chain.from_iterable((float(part[n].mean()), float(part[n].std())) for part in values))
        for n in range(len(QUANTITIES))
    )
    return measures, [Table(GROUP, "nuclei", QUANTITIES, tuple(columns), rows, "Over nuclei; colours of 0 to 255.")]


def standard_error(values: np.ndarray) -> float:
    return float(values.std() / np.sqrt(len(values)))


def largest_difference(a: np.ndarray, b: np.ndarray) -> float:
    """The two-sample statistic of Kolmogorov and Smirnov: the largest difference of the shares below a value.

    >>> largest_difference(np.array([1.0, 2.0]), np.array([2.0, 3.0]))
    0.5
    """
    every = np.concatenate([a, b])
    below = [np.searchsorted(np.sort(part), every, side="right") / len(part) for part in (a, b)]
    return float(np.abs(below[0] - below[1]).max())


def halves_of(values: np.ndarray) -> float | None:
    return largest_difference(values[::2], values[1::2]) if len(values) > 1 else None


def megapixels(source: Source) -> float:
    return float(np.prod(source.sizes, axis=1).sum()) / 1e6
