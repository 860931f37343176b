"""Regions of an unbounded plane: what each asks for is sampled on a canvas of its own, and added to the plane.

A request is a job like any other, whose output lies among the plane's private files until it is finished. Then it is
added: a new plane is made beside the old one, of links to the shards that stay and of new ones, and takes its place. So
a kill or a full disk at any moment leaves the plane as it was, or as it is to be.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from engine.distributed.ranks import Ranks
from engine.job import RunOptions, SampleJob
from engine.models.card import read_card
from engine.options import names_function
from engine.pipeline.kept_levels import KeptLevels, depths_of
from engine.pipeline.outputs import facts_of_label_maps, present_versions
from engine.pipeline.plane_labels import label_request
from engine.pipeline.prepare import decoder_lattice, prepare
from engine.pipeline.prepared import Prepared
from engine.pipeline.run import Load, check_models, run
from engine.pipeline.sampling_round import steps_of_job
from engine.pipeline.watch import Watch
from engine.planning.geometry import Box
from engine.planning.plane import (
    FARTHEST,
    Request,
    Windows,
    area_ratio,
    corners_of,
    latents_of,
    needed_windows,
    whole_windows,
)
from engine.storage.create import create
from engine.storage.files import discard, lock, sync, sync_tree
from engine.storage.ledger import FinishedShard
from engine.storage.metadata import keep_metadata
from engine.storage.output import Output, output_to_read, provenance_of
from engine.storage.plane_layout import PlaneLayout, is_there, label_plane, request_of
from engine.storage.plane_levels import KnownWindows
from engine.storage.run_times import join_times

SHARD = 512  # px; most of a request's own shards: what it decodes of them beyond its region is lost
OF_REQUESTS = (
    "corner",
    "region",
    "size",
    "shard",
    "chunk",
    "labels_hash",
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
    """

    path: Path
    job: SampleJob
    prepared: Prepared
    region: Box
    hold: int
    known: bool = False
    labels: PlaneRequest | None = None


def prepare_request(job: SampleJob, options: RunOptions, rank_count: int, ranks_per_node: int) -> PlaneRequest:
    """Check a request to a plane, and what is known for it. Rank 0 calls this.

    Raises:
        ValueError: anything that would stop it, with the way out.
    """
    plane, region, hold = place_of(options)
    check_region(region)
    check_plane_job(job, options)
    recover(plane)
    there = provenance_of(plane) if is_there(plane) else None
    if there is not None and there["kind"] != "plane":
        raise ValueError(f"`plane` {plane} is an {there['kind']}, which has edges; choose another `plane`")
    private, card = plane / "slidefield", read_card(job.model)
    own = replace(options, out=str(request_of(plane)), preview="none", report=False, plane=None, region=None)
    given, job = job, replace(job, shard=min(job.shard, SHARD), chunk=min(job.chunk, SHARD))
    request = Request(region, hold, (), plane)
    first = prepare(job, replace(own, dry_run=True), rank_count, ranks_per_node, request)
    identity = plane_identity(first, hold)
    if there is not None:
        check_same(plane, there["identity"], identity)
        request = replace(request, known=KnownWindows(private / "known.json", len(first.timesteps), card.patch).read())
        if is_known(there, region):
            return PlaneRequest(plane, given, first, region, hold, known=True)
    prepared = prepare(job, own, rank_count, ranks_per_node, request)
    asked = label_request(prepared, options)
    labels = None if asked is None else prepare_request(*asked, rank_count, ranks_per_node)
    return PlaneRequest(plane, given, prepared, region, hold, labels=labels)


def place_of(options: RunOptions) -> tuple[Path, Box, int]:
    """The plane, the region and the levels that hold a lattice.

    Raises:
        ValueError: no region.
    """
    assert options.plane is not None
    if options.region is None:
        raise ValueError(f"`plane` {options.plane} has no edges; name the part that is wanted, `region` Y0:Y1,X0:X1")
    return Path(options.plane).absolute(), Box(*options.region), options.hold


def check_plane_job(job: SampleJob, options: RunOptions) -> None:
    """Refuse what goes with images that have edges alone.

    Raises:
        ValueError: naming it.
    """
    if job.cover != "shifted" and job.cover is not None:
        why = "is drawn over a whole canvas" if job.cover == "random" else "lies on a lattice that begins at a corner"
        raise ValueError(f"`cover` {job.cover} {why}, and a plane has none; leave `cover` out")
    for name in ("count", "continue_", "image", "mask", "roi", "map", "instances", "accept", "embeddings"):
        if getattr(job, name) is not None:
            raise ValueError(f"`{name}` is of an image with edges; leave it out, or `plane`")
    if job.labels not in (None, "example") and not names_function(job.labels):
        raise ValueError(
            f"`labels` {job.labels} has edges; pass `labels` module:function or example, `label` or `label_model`, or "
            "leave out `plane`"
        )
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


def missing(region: Box, known: list[Box]) -> list[Box]:
    """The parts of a box that none of others holds.

    >>> missing(Box(0, 0, 4, 4), [Box(0, 0, 4, 2), Box(0, 1, 3, 4)])
    [Box(y0=3, x0=2, y1=4, x1=4)]
    """
    parts = [region]
    for box in known:
        parts = [rest for part in parts for rest in around(part, part & box)]
    return parts


def around(box: Box, hole: Box) -> list[Box]:
    """A box without a box in it, as up to four boxes."""
    if not hole:
        return [box]
    rest = [
        Box(box.y0, box.x0, hole.y0, box.x1),
        Box(hole.y1, box.x0, box.y1, box.x1),
        Box(hole.y0, box.x0, hole.y1, hole.x0),
        Box(hole.y0, hole.x1, hole.y1, box.x1),
    ]
    return [part for part in rest if part]


def cost_text(request: PlaneRequest) -> str:
    """What a request costs: latents that are evaluated, over those of its region at every level."""
    if request.labels is not None:
        return f"{cost_text(request.labels)}\n{cost_text(replace(request, labels=None))}"
    region, cone = request.region, request.prepared.cone
    where = f"{request.path}: rows {region.y0}:{region.y1}, columns {region.x0}:{region.x1}"
    if request.known:
        return f"{where} are there already"
    assert cone is not None
    ratio = area_ratio(cone.needed, latents_of(region, request.prepared.card.factor))
    windows = sum(map(len, cone.needed))
    of_all = sum(map(len, needed_windows_of(request)))
    known = f"{of_all - windows:,} of {of_all:,} are known" if windows < of_all else "none is known"
    return f"{where}: {windows:,} windows to evaluate, {ratio:.2f} times its own area a level; {known}"


def needed_windows_of(request: PlaneRequest) -> list[Windows]:
    """The windows of all levels that a request would need if nothing were known."""
    cone, card = request.prepared.cone, request.prepared.card
    assert cone is not None
    final = whole_windows(latents_of(request.region, card.factor), *decoder_lattice(request.prepared.job, card))
    return needed_windows(final, [windows.offset for windows in cone.needed], card.patch)


# ---- sampling -----------------------------------------------------------------------------------


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
    if request.labels is not None:
        ranks.on_root(lambda: check_models(request.prepared))
        if not sample_request(ranks, request.labels, load, watch):
            return False
    if request.prepared.state != "finished" and not run(ranks, request.prepared, load, watch):
        return False
    add(ranks, request)
    return True


def locked(plane: Path) -> Any:
    (plane / "slidefield").mkdir(parents=True, exist_ok=True)
    return lock(plane)


def add(ranks: Ranks, request: PlaneRequest) -> None:
    """Add a finished request to its plane. Collective; once more does no harm."""
    prepared = request.prepared
    made = ranks.agree(lambda: Output(Path(prepared.options.out)))
    kept = kept_levels(request, made)
    kept.merge(ranks)
    building = next_of(request.path)
    ranks.on_root(lambda: begin_next(request, building))
    output = ranks.agree(lambda: Output(building, ranks.rank))
    touched = add_pixels(ranks, request, made, output)
    add_pyramid(ranks, output, touched)
    ranks.barrier()
    ranks.on_root(lambda: finish_next(request, output, kept))


def kept_levels(request: PlaneRequest, made: Output) -> KeptLevels:
    prepared = request.prepared
    assert prepared.cone is not None
    depths = depths_of(steps_of_job(prepared))
    private, own = request.path / "slidefield", made.private / "levels"
    return KeptLevels(private, own, prepared.cone, prepared.ownership, prepared.card.channels, depths)


def begin_next(request: PlaneRequest, building: Path) -> None:
    """Make the next plane, large enough, of links to the shards that there are. Rank 0 calls this."""
    discard(building)
    prepared, old = request.prepared, None
    layout = prepared.layout
    before = PlaneLayout((0, 0), layout.channels, request.job.shard, request.job.chunk, layout.label)
    if is_there(request.path):
        old = Output(request.path)
        before = plane_layout(old)
    new = before.holding(request.region)
    regions = [] if old is None else old.provenance["regions"]
    name = request.path.name.removesuffix(".zarr")
    create(building, new, prepared.card.pixel_size_um, plane_provenance(request, regions), name)
    if old is not None:
        link_shards(old, building, new, new.on_arrays(request.region))


def plane_layout(output: Output) -> PlaneLayout:
    assert isinstance(output.layout, PlaneLayout)
    return output.layout


def plane_provenance(request: PlaneRequest, regions: list[Any]) -> dict[str, Any]:
    prepared = request.prepared
    card = prepared.card
    return {
        "kind": "plane",
        "job": prepared.plain_job,
        "identity": plane_identity(prepared, request.hold),
        "hold": request.hold,
        "regions": [*regions, list(corners_of(request.region))],
        "seed": prepared.job.seed,
        "levels": len(prepared.timesteps),
        "model_hash": card.hash,
        "window": {"patch": card.patch, "factor": card.factor},
        "pixel_size_um": card.pixel_size_um,
        **facts_of_label_maps(card),
        "versions": present_versions(),
    }


def link_shards(old: Output, building: Path, new: PlaneLayout, region: Box) -> None:
    """Link the shards of a plane into the next, with their lines of the ledger.

    Of the pyramid those alone that stay as they are: halves of shards are no shards of the levels above. Shards at full
    size that the region meets are linked to be read, and get their lines when they are written.
    """
    before = plane_layout(old)
    dy, dx = before.corner[0] - new.corner[0], before.corner[1] - new.corner[1]
    grids = {spec.name: new.boxes(spec.level) for spec in new.arrays()}
    levels = {spec.name: spec.level for spec in new.arrays()}
    lines = []
    for shard in old.ledger:
        full = shard.array in before.finest
        if not full and ((dy, dx) != (0, 0) or shard.array not in grids):
            continue
        box = shard.box.moved(dy, dx) if full else shard.box
        whole = grids[shard.array][grids[shard.array].index_of(box)]
        written = bool(box.scaled(2 ** levels[shard.array]) & region)
        if whole != box or (written and not full):
            continue  # of the pyramid: cut otherwise by the new edge, or to be made anew
        target = building / new.shard_file(shard.array, box)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(old.path / before.shard_file(shard.array, shard.box), target)
        if not written:
            lines.append(FinishedShard(shard.array, box, shard.sha256, 0, shard.size).line())
    (building / "slidefield" / "ledger.jsonl").write_text("".join(lines))


def add_pixels(ranks: Ranks, request: PlaneRequest, made: Output, output: Output) -> set[Box]:
    """Write the shards that a request's region meets. Collective.

    Returns:
        Their boxes.
    """
    prepared, layout = request.prepared, plane_layout(output)
    assert prepared.cone is not None
    region, source = layout.on_arrays(request.region), prepared.cone.pixels(prepared.card.factor)
    meeting = [box for box in layout.boxes() if box & region]

    def write() -> None:
        for box in meeting[ranks.rank :: ranks.size]:
            part = box & region
            there = part.moved(source.y0 - region.y0, source.x0 - region.x0)
            for name, theirs in zip(layout.finest, made.layout.finest, strict=True):
                pixels = output.read(name, box)  # what is not there reads as background
                pixels[(..., *part.within(box))] = made.read(theirs, there)
                output.write(name, box, pixels)

    ranks.agree(write)
    return set(meeting)


def add_pyramid(ranks: Ranks, output: Output, touched: set[Box]) -> None:
    """Make the shards of coarser levels above those that were written, or that are not there. Collective."""
    layout = output.layout
    for level in range(1, len(layout.sizes())):
        ranks.barrier()
        boxes = [box for box in layout.boxes(level) if is_due(output, level, box, touched)]
        ranks.agree(partial(halve_all, output, level, boxes[ranks.rank :: ranks.size]))
        touched = set(boxes)


def is_due(output: Output, level: int, box: Box, touched: set[Box]) -> bool:
    """Whether a shard of a level is to be made: one below it is new, or it is absent and one below is there."""
    image, layout = output.layout.image, output.layout
    below = [part for part in layout.boxes(level - 1) if part & box.scaled(2)]
    if any(part in touched for part in below):
        return True
    if output.shards.size(layout.shard_file(layout.level(image, level), box)):
        return False
    return any(output.shards.size(layout.shard_file(layout.level(image, level - 1), part)) for part in below)


def halve_all(output: Output, level: int, boxes: list[Box]) -> None:
    for box in boxes:
        for name in output.layout.finest:
            output.halve(name, level, box)


def finish_next(request: PlaneRequest, output: Output, kept: KeptLevels) -> None:
    """Let the next plane take the place of the one before. Rank 0 calls this."""
    plane, building = request.path, output.path
    output.ledger.merge(check=True)
    output.annotate(state="finished")
    private, new = plane / "slidefield", building / "slidefield"
    for name in ("levels", label_plane(plane).name):
        if (private / name).is_dir():
            shutil.copytree(private / name, new / name, copy_function=os.link)
    for name in ("known.json", "lock"):
        if (private / name).exists():
            os.link(private / name, new / name)
    kept.note(new / "known.json")
    join_times(building, (plane, Path(request.prepared.options.out)))
    keep_metadata(building)
    sync_tree(building)
    old = old_of(plane)
    discard(old)
    plane.rename(old)
    building.rename(plane)
    sync(plane.parent)
    discard(old)


def next_of(plane: Path) -> Path:
    return plane.with_name(f".{plane.name}.next")


def old_of(plane: Path) -> Path:
    return plane.with_name(f".{plane.name}.old")


def recover(plane: Path) -> None:
    """Finish what a kill has interrupted between the two renamings.

    Raises:
        ValueError: another process is between them.
    """
    old = old_of(plane)
    if not plane.exists() and old.exists():
        with locked(old):
            old.rename(plane)


# ---- reading ------------------------------------------------------------------------------------


def read_region(path: Path, region: Box) -> np.ndarray:
    """uint8 (c, h, w): a region of a plane.

    Raises:
        ValueError: a part of it was never asked for; it names one.
    """
    check_region(region)
    output = output_to_read(path)
    if not isinstance(output.layout, PlaneLayout):
        raise ValueError(f"{path} is no plane; slice it instead")
    layout = output.layout
    absent = missing(region, [Box(*box) for box in output.provenance["regions"]])
    if absent:
        part = absent[0]
        where = f"{part.y0}:{part.y1},{part.x0}:{part.x1}"
        raise ValueError(f"{path} has not all of the region: {where} is not there; sample it with `region` {where}")
    return output.read(layout.image, layout.on_arrays(region))
