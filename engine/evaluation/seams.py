"""Do the lines that the engine draws show in its image? The score of every kind of line of a finished output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from engine.distributed.ranks import AgreedError, Ranks
from engine.evaluation.crops import share
from engine.evaluation.measures import Measure
from engine.evaluation.plane_seams import lines_of_plane, region_of_plane
from engine.exports.source import finished_output
from engine.models.card import read_card
from engine.planning.cover import Lattice, RandomCover, cover_of
from engine.planning.decode_cover import decoder_windows
from engine.planning.geometry import Box, Frames, Grid
from engine.planning.plane import lattice_level
from engine.storage.layout import Layout
from engine.storage.output import Output
from engine.storage.plane_layout import PlaneLayout
from engine.storage.set_layout import SetLayout

LAST_LEVELS = 5
BESIDE = (*range(-6, -1), *range(2, 7))  # px from a line: the same tissue, but no line
Lines = dict[str, tuple[np.ndarray, np.ndarray]]  # rows y (between y - 1 and y) and columns x, by kind of line


def seam_measures(ranks: Ranks, path: Path) -> list[Measure]:
    """The seam score of a finished output by kind of line. Collective; the same numbers on any number of ranks.

    For every kind of line that the engine draws (windows of the last levels, shards, windows of the decoder, the
    latents' lattice) the mean absolute difference of the pixels across a line, over the same two to six pixels to
    either side of it: 1 where nothing shows. Neighbours, not the whole image, because one line's tissue differs from
    another's by more than a seam does. Kinds without a line are left out. A rank holds a row of chunks of a shard.
    Of a plane it is the largest region that was asked for at once.

    Raises:
        AgreedError: there is no finished output, its windows are not known any more, or no line can be scored.
    """
    output = ranks.agree(lambda: finished_output(path))
    frames = ranks.on_root(lambda: frames_of(output))
    if isinstance(output.layout, SetLayout):
        scores = scores_of_set(ranks, output, frames)
    elif isinstance(output.layout, PlaneLayout):
        scores = scores_of_plane(ranks, output, output.layout)
    else:
        scores = scores_of_image(ranks, output, frames)
    measures = [measure for kind, sums in scores.items() for measure in measures_of(kind, *sums)]
    if not measures:
        raise AgreedError(f"no line of {path} can be scored: it has none, or no pixel beside one differs from the next")
    return measures


def measures_of(kind: str, count: float, on: float, others: float, mean: float, square: float) -> list[Measure]:
    """The score of a kind of line, if there is such a line.

    The standard error is what lines anywhere else would give: the spread over all other lines, over the root of how
    many lines there are.

    Args:
        count, on: Number of lines, and the sum of their ratios.
        others, mean, square: Number of all other lines, the sum of their ratios and that of their squares.
    """
    if not count:
        return []
    variance = max(square / others - (mean / others) ** 2, 0.0) if others else np.nan
    says = f"Difference of pixels across {count:.0f} lines over that beside them; 1 is no seam."
    error = float((variance / count) ** 0.5)
    return [Measure("seams", kind, float(on / count), "one", error=error if others else None, says=says)]


def scores_of_image(ranks: Ranks, output: Output, frames: Frames) -> dict[str, np.ndarray]:
    """Sums over the lines of one image by kind of line, see ``sums_over``; each rank reads its rows. Collective."""
    lines = ranks.on_root(lambda: lines_of(output.provenance, frames))
    ratios = ratios_by_line(ranks, partial(output.read_part, 0), boxes_of(output.layout), output.layout.channels)
    return {kind: sums_over(ratios, at) for kind, at in lines.items()}


def scores_of_plane(ranks: Ranks, output: Output, layout: PlaneLayout) -> dict[str, np.ndarray]:
    """The same of a region of a plane. Collective."""
    region = region_of_plane(output.provenance)
    there = layout.on_arrays(region)
    lines = lines_of_plane(output.provenance, layout.shard, region, LAST_LEVELS)
    boxes = boxes_of(replace(layout, size=region.shape))

    def read(box: Box) -> np.ndarray:
        return output.read_part(0, box.moved(there.y0, there.x0))

    ratios = ratios_by_line(ranks, read, boxes, layout.channels)
    return {kind: sums_over(ratios, at) for kind, at in lines.items()}


def ratios_by_line(ranks: Ranks, read: Callable[[Box], np.ndarray], boxes: Grid, channels: int) -> list[np.ndarray]:
    """The ratios of every line of an image, see ``ratios_of``; each rank reads its rows. Collective."""
    mine = share(boxes.counts[0], ranks.rank, ranks.size)
    sums = ranks.agree(lambda: differences(read, boxes, mine))
    for one in sums:
        ranks.allreduce_array(one)
    return ratios_of(sums, boxes.shape, channels)


def scores_of_set(ranks: Ranks, output: Output, frames: Frames) -> dict[str, np.ndarray]:
    """The same of all images of a set, each with its own windows; each rank reads its images. Collective."""
    size, boxes, job = output.layout.size, boxes_of(output.layout), output.provenance["job"]

    def own() -> list[dict[str, np.ndarray]]:
        scores = []
        for image in share(frames.images, ranks.rank, ranks.size):
            sums = differences(partial(output.read_part, image), boxes, range(boxes.counts[0]))
            ratios = ratios_of(sums, size, output.layout.channels)
            lines = lines_of(output.provenance, frames, image, levels=LAST_LEVELS if job.get("accept") is None else 0)
            scores.append({kind: sums_over(ratios, at) for kind, at in lines.items()})
        return scores

    every = [score for scores in ranks.allgather(ranks.agree(own)) for score in scores]
    return {kind: np.sum([score[kind] for score in every], 0) for kind in every[0]}


# ---- differences, read by box -------------------------------------------------------------------


def boxes_of(layout: Layout) -> Grid:
    """The boxes that an image is read in: as high as a chunk and as wide as a shard."""
    return Grid(layout.size, (layout.chunk, max(layout.shard, layout.chunk)))


def differences(read: Callable[[Box], np.ndarray], boxes: Grid, rows: range) -> tuple[np.ndarray, np.ndarray]:
    """Sums of absolute differences across every line of an image, of some rows of boxes.

    Args:
        read: Reads a box of the image: unsigned (c, h, w).
        boxes: The image, cut into boxes.
        rows: Rows of boxes.
    Returns:
        int64 (height + 1,) and (width + 1,): across the line between y - 1 and y, and between x - 1 and x.
    """
    (height, width), columns = boxes.shape, boxes.counts[1]
    down, right = np.zeros(height + 1, np.int64), np.zeros(width + 1, np.int64)
    above: list[np.ndarray] = []  # the last row of pixels of every box of the row before
    for row in rows:
        row_boxes = [boxes[row * columns + column] for column in range(columns)]
        if not above and row:
            above = [read(Box(box.y0 - 1, box.x0, box.y0, box.x1))[:, 0] for box in row_boxes]
        left, last_rows = None, []
        for column, box in enumerate(row_boxes):
            pixels = read(box)
            down[box.y0 + 1 : box.y1] += apart(pixels[:, 1:], pixels[:, :-1]).sum((0, 2), np.int64)
            right[box.x0 + 1 : box.x1] += apart(pixels[:, :, 1:], pixels[:, :, :-1]).sum((0, 1), np.int64)
            if above:
                down[box.y0] += apart(pixels[:, 0], above[column]).sum(dtype=np.int64)
            if left is not None:
                right[box.x0] += apart(pixels[:, :, 0], left).sum(dtype=np.int64)
            left = pixels[:, :, -1].copy()
            last_rows.append(pixels[:, -1].copy())
        above = last_rows
    return down, right


def apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Absolute differences of unsigned integers, which stay as small as they are.

    >>> apart(np.array([3, 250], np.uint8), np.array([250, 3], np.uint8)).tolist()
    [247, 247]
    """
    return np.maximum(a, b) - np.minimum(a, b)


def ratios_of(sums: tuple[np.ndarray, np.ndarray], size: tuple[int, int], channels: int) -> list[np.ndarray]:
    """float64 (height + 1,) and (width + 1,): difference across each line over that across its neighbours.

    It is NaN at the image's edge, and where the neighbours do not differ at all.
    """
    ratios = []
    for own, length in zip(sums, reversed(size), strict=True):
        steps = own / (channels * length)
        steps[[0, -1]] = np.nan
        near = np.stack([shifted(steps, by) for by in BESIDE])
        known = ~np.isnan(near)
        beside = np.where(known, near, 0).sum(0) / np.maximum(known.sum(0), 1)
        ratios.append(np.divide(steps, beside, out=np.full_like(steps, np.nan), where=beside > 0))
    return ratios


def shifted(steps: np.ndarray, by: int) -> np.ndarray:
    """The values ``by`` places on; NaN beyond the ends.

    >>> shifted(np.array([1.0, 2.0, 3.0]), 1).tolist()
    [2.0, 3.0, nan]
    """
    out, n = np.full_like(steps, np.nan), len(steps)
    out[max(-by, 0) : max(n - max(by, 0), 0)] = steps[max(by, 0) : max(n + min(by, 0), 0)]
    return out


def sums_over(ratios: list[np.ndarray], lines: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """float64 (5,): number of lines and sum of their ratios; of all other lines these two, and the sum of squares."""
    sums = np.zeros(5)
    for ratio, at in zip(ratios, lines, strict=True):
        is_line = np.zeros(len(ratio), bool)
        is_line[at[(at > 0) & (at < len(ratio) - 1)]] = True
        known = ~np.isnan(ratio)
        on, others = ratio[is_line & known], ratio[~is_line & known]
        sums += [len(on), on.sum(), len(others), others.sum(), (others**2).sum()]
    return sums


# ---- the lines of a job -------------------------------------------------------------------------


def frames_of(output: Output) -> Frames:
    """The images on the canvas of latents, as the output says; one of an earlier version asks its model's folder.

    Raises:
        ValueError: the folder is gone, or holds another model now.
    """
    provenance, count = output.provenance, getattr(output.layout, "count", None)
    window = provenance.get("window")
    if window is None:
        name = provenance["job"]["model"]
        way = "put that model back, or sample the output anew"
        try:
            card = read_card(name)
        except (ValueError, OSError):
            raise ValueError(
                f"{output.path} does not say what windows it has, and its model {name} is gone; {way}"
            ) from None
        if card.hash != provenance["model_hash"]:
            raise ValueError(f"{output.path} does not say what windows it has, and {name} is another model now; {way}")
        window = {"factor": card.factor, "patch": card.patch}
    return Frames(output.layout.size, window["factor"], window["patch"], count)


def lines_of(provenance: dict[str, Any], frames: Frames, image: int = 0, levels: int = LAST_LEVELS) -> Lines:
    """The lines, in pixels, that the engine drew for a job, or would draw with windows that are not shifted.

    Args:
        image: Number of the image, of a set.
        levels: How many of the last levels; 0: their windows are left out.
    """
    job, f, patch = provenance["job"], frames.factor, frames.patch
    height, width = frames.size
    decoder = decoder_windows(
        frames.frame, patch, job.get("decode_weights", "smooth"), job["decode_overlap"], job.get("stride")
    )

    def every(side: int) -> tuple[np.ndarray, np.ndarray]:
        return np.arange(0, height, side), np.arange(0, width, side)

    windows = (
        {f"windows of the last {levels} levels": window_lines(provenance, frames, image, levels)} if levels else {}
    )
    rows, columns = edges_of(decoder)
    return {
        **windows,
        "windows of a fixed lattice": every(patch * f),
        "windows of the decoder": (rows * f, columns * f),
        **({"shards": every(job["shard"])} if frames.count is None else {}),
        "latents": every(f),
    }


def window_lines(provenance: dict[str, Any], frames: Frames, image: int, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """The edges of the windows of the last levels: of their cores, or of random windows where these begin.

    Levels share windows where the job has ``hold``: ``benchmarks.held`` makes such images, as planes do theirs.
    """
    job, last = provenance["job"], provenance["levels"]
    hold = job.get("hold", 1)
    inverted = last // 2 if job.get("start") == "inverted" else 0  # levels that lead to noise come first
    rows, columns = [], []
    for level in range(max(last - levels, inverted), last):
        cover = cover_of(
            job["cover"],
            frames.frame,
            frames.patch,
            job["seed"],
            lattice_level(level, last, hold),
            stride=job.get("stride") or frames.patch,
            weights=job["weights"],
            image=image,
        )
        y, x = edges_of(cover)
        rows.append(y * frames.factor)
        columns.append(x * frames.factor)
    return np.unique(np.concatenate(rows)), np.unique(np.concatenate(columns))


def edges_of(cover: Lattice | RandomCover) -> tuple[np.ndarray, np.ndarray]:
    """The rows and the columns, in latents, where cores begin and end."""
    if isinstance(cover, RandomCover):
        return cover.top_left[:, 0], cover.top_left[:, 1]
    rows, columns = (np.concatenate(axis.cores(np.arange(axis.count))) for axis in (cover.rows, cover.columns))
    return rows, columns
