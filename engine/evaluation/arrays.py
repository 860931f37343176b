"""Statistics of a large output through dask: its labels' areas, and how bright and dense the pixels of each label are.

Dask reads the Zarr chunk by chunk, on threads or on a cluster's workers, and counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.distributed.ranks import Ranks
from engine.evaluation.measures import Measure, Table
from engine.evaluation.optical_density import DENSITY
from engine.evaluation.plane_seams import region_of_output
from engine.exports.source import finished_output
from engine.planning.geometry import Box
from engine.storage.output import Output

if TYPE_CHECKING:
    import dask.array

SIDE = 1024  # px of a chunk that dask computes on, about
COLUMNS = 16  # of a table of intensities
PATIENCE = "30s"  # for a scheduler to answer
CHANNELS = {1: ("grey",), 3: ("R", "G", "B")}


def array_measures(ranks: Ranks, path: Path, scheduler: str | None = None) -> tuple[list[Measure], list[Table]]:
    """Area, intensities and optical density of every label of an output. Collective: rank 0 does it, others wait.

    A thread, or a worker, holds about 40 bytes for each of the 1024 x 1024 px of a chunk.

    Args:
        scheduler: Address of a dask.distributed scheduler, whose workers read the output at the same path; None:
            threads of this process.
    Raises:
        AgreedError: there is no finished output, dask is missing, the scheduler does not answer, or a worker failed.
    """
    return ranks.on_root(lambda: statistics(path, scheduler))


def statistics(path: Path, scheduler: str | None = None) -> tuple[list[Measure], list[Table]]:
    """What ``array_measures`` returns. Local.

    Raises:
        ValueError: as there.
    """
    output = finished_output(path.resolve())
    counts = histograms(output, scheduler)
    names = names_of(output)
    return measures_of(counts, names), tables_of(counts, names)


def names_of(output: Output) -> list[str]:
    """The names of what ``labels_of`` returns."""
    label = output.layout.label
    if label is None or output.layout.labels is None:
        return ["all"]
    return [name for name, _ in label.entries] or ["background", label.name]


def histograms(output: Output, scheduler: str | None) -> np.ndarray:
    """int64 (labels, channels, 256): how many pixels of each label have each value.

    Raises:
        ValueError: dask is missing, or it failed.
    """
    try:
        import dask
        import dask.array as da
    except ImportError:
        raise ValueError("statistics of arrays need dask: pip install dask") from None

    count = len(names_of(output))
    with cluster(scheduler), errors_of(output):
        region = (..., *region_of_output(output).within(Box(0, 0, *output.layout.size)))
        image = chunked(output, output.layout.image)
        labels, image = labels_of(output, image)[region], image[region]
        channels = [image[..., channel, :, :] for channel in range(output.layout.channels)]
        cells = [labels.astype(np.int32) * 256 + channel for channel in channels]  # one of 256 for every label
        edges = (-0.5, 256 * count - 0.5)
        each = dask.compute(*(da.histogram(cell, 256 * count, edges)[0] for cell in cells))
    return np.stack(each).reshape(len(each), count, 256).swapaxes(0, 1)


def labels_of(output: Output, image: dask.array.Array) -> dask.array.Array:
    """The label of every pixel: 0 where there are none, and 1 in each object of a map whose values have no names."""
    import dask.array as da

    if output.layout.labels is None:
        return da.zeros_like(image[..., 0, :, :])
    labels = chunked(output, output.layout.labels)
    return labels if output.layout.label.entries else labels > 0  # type: ignore[union-attr]


def chunked(output: Output, name: str) -> dask.array.Array:
    """An array of an output, lazily, in chunks of about 1024 px a side that no shard's border cuts."""
    import dask.array as da

    array = output.array(name)
    spec = next(spec for spec in output.layout.arrays() if spec.name == name)
    sides = (
        max(chunk, min(shard, SIDE // chunk * chunk)) for chunk, shard in zip(spec.chunks, spec.shards, strict=True)
    )
    return da.from_zarr(array, chunks=tuple(min(side, n) for side, n in zip(sides, spec.shape, strict=True)))


@contextmanager
def errors_of(output: Output) -> Iterator[None]:
    """Say in one line what dask, zarr or a worker raised.

    Raises:
        ValueError: of whatever they raised.
    """
    try:
        yield
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # codecs, stores and clusters raise errors of many kinds
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(
            f"dask could not read {output.path} ({why}); engine.verify says whether it is whole, and workers of a "
            "`scheduler` need it at the same path"
        ) from error


def cluster(scheduler: str | None) -> Any:
    """A context in which dask computes on the workers of a scheduler, or on threads.

    Raises:
        ValueError: dask.distributed is missing, or nobody answers.
    """
    if scheduler is None:
        import dask

        return dask.config.set(scheduler="threads")
    try:
        from distributed import Client
    except ImportError:
        raise ValueError(f"`scheduler` {scheduler} needs dask.distributed: pip install distributed") from None
    try:
        return Client(scheduler, timeout=PATIENCE)
    except (OSError, ValueError) as error:
        why = " ".join(str(error).split())[:160]
        raise ValueError(
            f"`scheduler` {scheduler} does not answer as a dask scheduler ({why}); give the address that it printed, "
            "as tcp://HOST:8786"
        ) from None


def densities(counts: np.ndarray) -> np.ndarray:
    """float64 (labels, channels, 2): mean optical density and its standard deviation; NaN where nothing is.

    Args:
        counts: As ``histograms`` returns them.
    """
    pixels = counts.sum(-1)
    with np.errstate(invalid="ignore"):
        mean = counts @ DENSITY / pixels
        square = counts @ DENSITY**2 / pixels
    return np.stack([mean, np.sqrt(np.maximum(square - mean**2, 0))], -1)


def measures_of(counts: np.ndarray, names: list[str]) -> list[Measure]:
    """The share of the area that each label has."""
    pixels = counts[:, 0].sum(1)
    shares = 100 * pixels / pixels.sum()
    return [
        Measure("labels", "area", float(share), unit="%", label=name, says="Share of all pixels.")
        for name, share in zip(names, shares, strict=True)
    ]


def tables_of(counts: np.ndarray, names: list[str]) -> list[Table]:
    """Optical density, and the shares of pixels over intensities, by label; labels without a pixel are left out."""
    channels, some = CHANNELS[counts.shape[1]], np.flatnonzero(counts[:, 0].sum(1))
    rows = tuple(names[n] for n in some)
    columns = tuple(f"{channel} {what}" for channel in channels for what in ("mean", "spread"))
    values = densities(counts[some]).reshape(len(some), -1)
    density = Table(
        "labels", "optical density by label", rows, columns, numbers(values), "-log10 of (value + 1) / 256."
    )
    wide = 256 // COLUMNS
    coarse = counts[some].reshape(len(some), len(channels), COLUMNS, wide).sum(-1)
    shares = 100 * coarse / coarse.sum(-1, keepdims=True)
    lines = tuple(f"{name} {channel}" for name in rows for channel in channels)
    starts = tuple(f"{n * wide}-{(n + 1) * wide - 1}" for n in range(COLUMNS))
    says = "Percent of a label's pixels with values in a range."
    return [density, Table("labels", "intensities by label", lines, starts, numbers(shares.reshape(-1, COLUMNS)), says)]


def numbers(values: np.ndarray) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in values.tolist())
