"""The lines that the engine draws in a region of a plane: all lie on lattices through positions of the plane."""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.planning.decode_cover import unbounded_decoder
from engine.planning.geometry import Box
from engine.planning.plane import offsets
from engine.storage.output import Output
from engine.storage.plane_layout import PlaneLayout


def region_of_output(output: Output) -> Box:
    """What of an output is measured, px of its arrays: all; of a plane ``region_of_plane``, the rest of it is white."""
    if not isinstance(output.layout, PlaneLayout):
        return Box(0, 0, *output.layout.size)
    return output.layout.on_arrays(region_of_plane(output.provenance))


def region_of_plane(provenance: dict[str, Any]) -> Box:
    """The largest of the regions that were asked for, px of the plane."""
    return max((Box(*box) for box in provenance["regions"]), key=lambda box: box.area)


def lines_of_plane(
    provenance: dict[str, Any], shard: int, region: Box, levels: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The lines by kind: rows and columns, px of the region.

    Args:
        shard: Side of a shard, px.
        levels: How many of the last levels.
    """
    job, factor, patch = provenance["job"], provenance["window"]["factor"], provenance["window"]["patch"]
    count = provenance["levels"]
    of_levels = offsets(job["seed"], count, patch, provenance["hold"])[max(count - levels, 0) :]
    side, stride = unbounded_decoder(factor, patch, job["decode_weights"], job["decode_overlap"], job["stride"])

    def lines(distance: int, *starts: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Those of lattices with one distance, each from its own start on."""
        rows = [at for y, _ in starts for at in range((y - region.y0) % distance, region.height, distance)]
        columns = [at for _, x in starts for at in range((x - region.x0) % distance, region.width, distance)]
        return np.unique(rows).astype(np.int64), np.unique(columns).astype(np.int64)

    windows = [(y * factor, x * factor) for y, x in of_levels]
    return {
        f"windows of the last {levels} levels": lines(patch * factor, *windows),
        "windows of a fixed lattice": lines(patch * factor, (0, 0)),
        "windows of the decoder": lines(stride * factor, (0, 0), (side * factor, side * factor)),
        "shards": lines(shard, (0, 0)),
        "latents": lines(factor, (0, 0)),
    }
