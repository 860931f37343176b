"""A request to a plane: what is asked, checked before anything is written, and what it costs."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.job import RunOptions, SampleJob
from engine.models.card import read_card
from engine.options import names_function
from engine.pipeline.output_checks import what_is_there
from engine.pipeline.plane_checks import check_region_of
from engine.pipeline.plane_labels import label_request
from engine.pipeline.prepare import prepare
from engine.pipeline.prepared import Prepared
from engine.planning.geometry import Box, missing
from engine.planning.plane import (
    FARTHEST,
    Request,
    corners_of,
)
from engine.storage.files import checksum
from engine.storage.output import provenance_of
from engine.storage.plane_layout import is_there, known_of, request_of
from engine.storage.plane_levels import KnownLedger
from engine.storage.plane_swap import recover
from engine.storage.store_url import looks_like_url

SHARD = 512  # px; most of a request's own shards: what it decodes of them beyond its region is lost
OF_REQUESTS = (
    "corner",
    "region",
    "size",
    "shard",
    "chunk",
    "labels_hash",
    "keep_levels",
    "cone",
)  # of a request's identity, not of the plane's


@dataclass(frozen=True)
class PlaneRequest:
    """A checked request.

    Args:
        path: The plane.
        job: The job as it was given: the plane's shards are as it says.
        prepared: The request as a job.
        region: In px of the plane.
        hold: Levels that share a lattice.
        known: Whether all of the region is in the plane already.
        labels: The request to the plane of its label map; None: no label model makes that, or nothing is to be made.
        seen: ``state_of`` the plane when it was checked.
    """

    path: Path
    job: SampleJob
    prepared: Prepared
    region: Box
    hold: int
    known: bool = False
    labels: PlaneRequest | None = None
    seen: str = ""


def prepare_request(job: SampleJob, options: RunOptions, rank_count: int, ranks_per_node: int) -> PlaneRequest:
    """Check a request to a plane, and what is known for it. Rank 0 calls this.

    Raises:
        ValueError: anything that would stop it, with the way out.
    """
    plane, region, hold = place_of(options)
    check_region(region)
    check_plane_job(job, options)
    recover(plane)
    seen = state_of(plane)  # before it is looked at: what another run does from now on is refused when it is locked
    there = provenance_of(plane) if is_there(plane) else None
    if there is not None and there["kind"] != "plane":
        raise ValueError(f"`plane` {plane} has edges: it is of kind {there['kind']}; choose another `plane`")
    card = read_card(job.model)
    own = replace(options, out=str(request_of(plane)), preview="none", report=False, plane=None, region=None)
    given, job = job, replace(job, shard=min(job.shard, SHARD), chunk=min(job.chunk, SHARD))
    request = Request(region, hold, (), plane)
    first = prepare(job, replace(own, dry_run=True), rank_count, ranks_per_node, request)
    identity = plane_identity(first, hold)
    if there is not None:
        check_same(plane, there["identity"], identity)
        request = replace(request, known=KnownLedger(known_of(plane), card.patch, identity).read())
        if is_known(there, region):
            check_region_of(plane, region)
            return PlaneRequest(plane, given, first, region, hold, known=True)
    check_writable(plane)
    prepared = prepare(job, own, rank_count, ranks_per_node, request)
    asked = label_request(prepared, options)
    labels = None if asked is None else prepare_request(*asked, rank_count, ranks_per_node)
    return PlaneRequest(plane, given, prepared, region, hold, labels=labels, seen=seen)


def check_writable(plane: Path) -> None:
    """Refuse a plane that nothing can be added to: the next state of it is made beside it.

    Raises:
        ValueError: naming the folder that cannot be written.
    """
    for folder in (what_is_there(plane), what_is_there(plane.parent)):
        if not os.access(folder, os.W_OK):
            raise ValueError(f"`plane` {plane}: {folder} cannot be written; choose another `plane`")


def state_of(plane: Path) -> str:
    """What changes when a request is added to a plane, or levels are dropped."""
    known = known_of(plane)
    content = known.read_bytes().hex() if known.is_file() else ""
    return checksum({"known": content, "plane": provenance_of(plane) if is_there(plane) else {}})


def check_unchanged(request: PlaneRequest) -> None:
    """Refuse a request to a plane that has changed since the request was checked.

    Raises:
        ValueError: it has.
    """
    if state_of(request.path) != request.seen:
        raise ValueError(f"`plane` {request.path} was changed by another run in between; ask again")


def place_of(options: RunOptions) -> tuple[Path, Box, int]:
    """The plane, the region and the levels that hold a lattice.

    Raises:
        ValueError: no region, or no place for a plane.
    """
    assert options.plane is not None
    if options.region is None:
        raise ValueError(f"`plane` {options.plane} has no edges; name the part that is wanted, `region` Y0:Y1,X0:X1")
    return place_named(Path(options.plane)), Box(*options.region), options.hold


def place_named(path: Path) -> Path:
    """Where a plane lies, or is to lie, with links followed.

    Raises:
        ValueError: no plane can be there.
    """
    if looks_like_url(path):
        raise ValueError(f"`plane` {path} is a URL, and a plane is a local folder; pass a path")
    try:
        plane = path.resolve()
    except (OSError, RuntimeError):
        raise ValueError(f"`plane` {path}: its symbolic links lead in a circle; choose another `plane`") from None
    if plane.exists() and not plane.is_dir():
        raise ValueError(f"`plane` {path} is a file; choose another `plane`")
    return plane


def check_plane_job(job: SampleJob, options: RunOptions) -> None:
    """Refuse what goes with images that have edges alone.

    Raises:
        ValueError: naming it.
    """
    if job.cover != "shifted" and job.cover is not None:
        why = "is drawn over a whole canvas" if job.cover == "random" else "lies on a lattice that begins at a corner"
        raise ValueError(f"`cover` {job.cover} {why}, and a plane has none; leave `cover` out")
    for name in ("count", "continue_", "image", "mask", "roi", "map", "instances", "accept"):
        if getattr(job, name) is not None:
            raise ValueError(f"`{name}` is of an image with edges; leave it out, or `plane`")
    for name, given, default in (("size", job.size, SampleJob.size), ("out", options.out, RunOptions.out)):
        if given != default:
            raise ValueError(f"`{name}` is of an image with edges; leave it out: a plane has `region` in its place")
    if options.preview not in (None, "none"):
        raise ValueError("`preview` is of an image with edges; engine.export copies a part of a plane; leave it out")
    if job.labels not in (None, "example") and not names_function(job.labels):
        raise ValueError(
            f"`labels` {job.labels} has edges; pass `labels` module:function or example, `label` or `label_model`, or "
            "leave out `plane`"
        )
    for name in ("embeddings", "region_embeddings"):
        if (given := getattr(job, name)) is not None and not names_function(given):
            raise ValueError(f"`{name}` {given} has edges; pass `{name}` module:function, or leave out `plane`")
    for name in ("overwrite", "report", "scratch"):
        if getattr(options, name):
            raise ValueError(
                f"`{name}` does not go with `plane`, a local output to which requests are added; leave it out"
            )


def check_region(region: Box) -> None:
    """Refuse a region without pixels, or beyond what positions reach.

    Raises:
        ValueError: naming it.
    """
    text = f"`region` {region.y0}:{region.y1},{region.x0}:{region.x1}"
    if not region:
        raise ValueError(f"{text} holds no pixel; give its first row and the one after its last, then its columns")
    if max(map(abs, corners_of(region))) > FARTHEST:
        raise ValueError(f"{text} reaches beyond 2^52 px from the origin, where positions end; choose one nearer")


def plane_identity(prepared: Prepared, hold: int) -> dict[str, Any]:
    """What two requests must share to be of one plane: JSON values."""
    own = {name: value for name, value in prepared.identity.items() if name not in OF_REQUESTS}
    return json.loads(json.dumps({**own, "hold": hold}))


def check_same(plane: Path, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """Refuse a request of another job than the plane's.

    Raises:
        ValueError: naming what differs.
    """
    differ = [name for name in (*ours, *theirs) if ours.get(name) != theirs.get(name)]
    if differ:
        name = differ[0]
        raise ValueError(
            f"`plane` {plane} is of another job: its {name} is {theirs.get(name)}, yours is {ours.get(name)}; "
            "give its settings, or choose another `plane`"
        )


def is_known(provenance: dict[str, Any], region: Box) -> bool:
    """Whether one of a plane's requests, or several together, have all of a region."""
    return not missing(region, [Box(*box) for box in provenance["regions"]])
