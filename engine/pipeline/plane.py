"""Regions of an unbounded plane: what each asks for is sampled on a canvas of its own, and added to the plane.

A request is a job like any other, whose output lies among the plane's private files until it is finished.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from engine.distributed.ranks import Ranks
from engine.pipeline.plane_checks import check_files, check_plane
from engine.pipeline.plane_growth import add
from engine.pipeline.plane_request import PlaneRequest, check_region, check_unchanged
from engine.pipeline.run import Load, check_models, run
from engine.pipeline.watch import Watch
from engine.planning.geometry import Box, missing
from engine.storage.output import output_to_read
from engine.storage.plane_layout import PlaneLayout
from engine.storage.plane_swap import locked, steady


def sample_request(ranks: Ranks, request: PlaneRequest, load: Load | None = None, watch: Watch | None = None) -> bool:
    """Sample what a request lacks, and add it to the plane. Collective.

    Args:
        load, watch: As of ``run``.
    Returns:
        Whether it came to its end; False: it was asked to stop, and left a checkpoint.
    """
    if request.known:
        return True
    held = ranks.agree(lambda: locked(request.path) if ranks.rank == 0 else None)
    try:
        return sample_locked(ranks, request, load, watch)
    finally:
        if held is not None:
            held.close()


def sample_locked(ranks: Ranks, request: PlaneRequest, load: Load | None, watch: Watch | None) -> bool:
    """``sample_request`` of those who have locked the plane. Collective."""
    ranks.on_root(lambda: check_unchanged(request))
    ranks.on_root(lambda: check_plane(request.path))
    if request.labels is not None:
        ranks.on_root(lambda: check_models(request.prepared))
        if not sample_request(ranks, request.labels, load, watch):
            return False
    if request.prepared.state != "finished" and not run(ranks, request.prepared, load, watch):
        return False
    add(ranks, request)
    return True


def read_region(path: Path, region: Box) -> np.ndarray:
    """uint8 (c, h, w): a region of a plane, to which another process may add meanwhile.

    Raises:
        ValueError: a part of it was never asked for, or is lost; it names one.
    """
    check_region(region)
    return steady(path, lambda: region_now(path, region))


def region_now(path: Path, region: Box) -> np.ndarray:
    """``read_region`` of a plane that stays the same."""
    output = output_to_read(path)
    if not isinstance(output.layout, PlaneLayout):
        raise ValueError(f"{path} is no plane; slice it instead")
    layout = output.layout
    absent = missing(region, [Box(*box) for box in output.provenance["regions"]])
    if absent:
        part = absent[0]
        where = f"{part.y0}:{part.y1},{part.x0}:{part.x1}"
        raise ValueError(f"{path} has not all of the region: {where} is not there; sample it with `region` {where}")
    check_files(output, region)
    return output.read(layout.image, layout.on_arrays(region))
