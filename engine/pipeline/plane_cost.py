"""What a request to a plane takes: the cone's area over the region's, and the plan of its evaluations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from engine.pipeline.dry_run import plan_facts
from engine.pipeline.plane_request import PlaneRequest
from engine.pipeline.prepare import decoder_lattice
from engine.pipeline.prepared import Prepared
from engine.planning.plane import Windows, area_ratio, corners_of, latents_of, needed_windows, whole_windows


def request_facts(request: PlaneRequest, measure: Callable[[Prepared], dict[str, Any]] | None = None) -> dict[str, Any]:
    """The plan of a request as JSON values: as ``plan_facts``, with ``plane``, the windows of its cone.

    Args:
        measure: Gives the speed of this machine with a job's networks; None: the plan says no time.
    """
    if request.known:
        return {"plane": {"region": corners_of(request.region), "windows": 0}, "evaluations": 0}
    facts = plan_facts(request.prepared)
    if measure is not None:
        facts["measured"] = measure(request.prepared)
    if request.labels is not None:
        facts["label_map"] = request_facts(request.labels, measure)
        facts["evaluations_are"] = "at least"
    cost = {"size": request.region.shape, **windows_of(request), "area_ratio": ratio_of(request)}
    return {**facts, "plane": {"region": corners_of(request.region), **cost}}


def cost_text(request: PlaneRequest) -> str:
    """What a request costs: latents that are evaluated, over those of its region at every level."""
    if request.labels is not None:
        return f"{cost_text(request.labels)}\n{cost_text(replace(request, labels=None))}"
    region = request.region
    where = f"{request.path}: rows {region.y0}:{region.y1}, columns {region.x0}:{region.x1}"
    if request.known:
        return f"{where} are there already"
    counts = windows_of(request)
    windows, known = counts["windows"], counts["known_windows"]
    said = f"{known:,} of {windows + known:,} are known" if known else "none is known"
    return f"{where}: {windows:,} windows to evaluate, {ratio_of(request):.2f} times its own area a level; {said}"


def ratio_of(request: PlaneRequest) -> float:
    """Latents that are evaluated, over those of the region at every level."""
    assert request.prepared.cone is not None
    return area_ratio(request.prepared.cone.needed, latents_of(request.region, request.prepared.card.factor))


def windows_of(request: PlaneRequest) -> dict[str, int]:
    """Windows of all levels that are evaluated, and those that are known."""
    assert request.prepared.cone is not None
    windows = sum(map(len, request.prepared.cone.needed))
    return {"windows": windows, "known_windows": sum(map(len, needed_windows_of(request))) - windows}


def needed_windows_of(request: PlaneRequest) -> list[Windows]:
    """The windows of all levels that a request would need if nothing were known."""
    cone, card = request.prepared.cone, request.prepared.card
    assert cone is not None
    final = whole_windows(latents_of(request.region, card.factor), *decoder_lattice(request.prepared.job, card))
    return needed_windows(final, [windows.offset for windows in cone.needed], card.patch)
