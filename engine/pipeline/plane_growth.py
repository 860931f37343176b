"""A finished request is added to its plane.

A new plane is made beside the old one, of links to the shards that stay and of new ones, and takes its place. So a kill
or a full disk at any moment leaves the plane as it was, or as it is to be.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

from engine.distributed.ranks import Ranks
from engine.pipeline.outputs import facts_of_label_maps, present_versions
from engine.pipeline.plane_checks import plane_layout
from engine.pipeline.plane_request import PlaneRequest, plane_identity
from engine.planning.geometry import Box
from engine.planning.plane import KnownWindows, corners_of
from engine.storage.create import create
from engine.storage.files import checksum, discard, sync, sync_tree
from engine.storage.ledger import FinishedShard
from engine.storage.metadata import keep_metadata
from engine.storage.output import Output
from engine.storage.plane_layout import PlaneLayout, is_there, known_of, levels_of
from engine.storage.plane_levels import KnownLedger, next_folder
from engine.storage.plane_swap import discard_next, next_of, swap
from engine.storage.run_times import join_times


def add(ranks: Ranks, request: PlaneRequest) -> None:
    """Add a finished request to its plane. Collective; once more does no harm."""
    prepared = request.prepared
    made = ranks.agree(lambda: Output(Path(prepared.options.out)))
    building = next_of(request.path)
    ranks.on_root(lambda: begin_next(request, building))
    output = ranks.agree(lambda: Output(building, ranks.rank))
    touched = add_pixels(ranks, request, made, output)
    add_pyramid(ranks, output, touched)
    ranks.barrier()
    ranks.on_root(lambda: finish_next(request, made, output))


def begin_next(request: PlaneRequest, building: Path) -> None:
    """Make the next plane, large enough, of links to the shards that there are. Rank 0 calls this."""
    discard_next(request.path)
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
        source = old.path / before.shard_file(shard.array, shard.box)
        if not full and not source.is_file():
            continue  # lost: it is made anew from those below
        target = building / new.shard_file(shard.array, box)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(source, target)
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
    meeting = list(layout.boxes().meeting(region))

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
    layout = plane_layout(output)
    regions = [layout.on_arrays(Box(*region)) for region in output.provenance["regions"]]
    for level in range(1, len(layout.sizes())):
        regions = [region.halved() for region in regions]
        boxes = ranks.on_root(partial(shards_due, output, level, regions, touched))  # before any rank writes one
        ranks.agree(partial(halve_all, output, level, boxes[ranks.rank :: ranks.size]))
        touched = set(boxes)


def shards_due(output: Output, level: int, regions: list[Box], touched: set[Box]) -> list[Box]:
    """The shards of a level that are to be made, of those that regions meet: boxes in px of the level."""
    grid = output.layout.boxes(level)
    above = dict.fromkeys(box for region in regions for box in grid.meeting(region))
    return [box for box in above if is_due(output, level, box, touched)]


def is_due(output: Output, level: int, box: Box, touched: set[Box]) -> bool:
    """Whether a shard of a level is to be made: one below it is new, or it is absent and one below is there."""
    image, layout = output.layout.image, output.layout
    below = list(layout.boxes(level - 1).meeting(box.scaled(2)))
    if any(part in touched for part in below):
        return True
    if output.shards.size(layout.shard_file(layout.level(image, level), box)):
        return False
    return any(output.shards.size(layout.shard_file(layout.level(image, level - 1), part)) for part in below)


def halve_all(output: Output, level: int, boxes: list[Box]) -> None:
    for box in boxes:
        for name in output.layout.finest:
            output.halve(name, level, box)


def finish_next(request: PlaneRequest, made: Output, output: Output) -> None:
    """Let the next plane take the place of the one before. Rank 0 calls this."""
    plane, building = request.path, output.path
    output.ledger.merge(check=True)
    output.annotate(state="finished")
    lock = plane / "slidefield" / "lock"
    if lock.exists():
        os.link(lock, building / "slidefield" / "lock")
    keep_levels(request, made, building)
    join_times(building, (plane, made.path))
    keep_metadata(building)
    sync_tree(building)
    swap(plane)


def keep_levels(request: PlaneRequest, made: Output, building: Path) -> None:
    """Keep the levels of a finished request beside those that the plane has, and enter them in the next one's ledger.

    Until the next one takes its place nobody knows of them.
    """
    plane, cone = request.path, request.prepared.cone
    assert cone is not None
    known, own = list(ledger_of(plane, request).read()), levels_of(made.path)
    if request.prepared.options.keep_levels and any(map(len, cone.needed)):
        folder = next_folder(known)
        target = levels_of(plane) / folder
        if own.is_dir():  # else a kill came after it was moved
            discard(target)
            target.parent.mkdir(exist_ok=True)
            own.rename(target)
            sync(target.parent)
            sync(own.parent)
        known.append(KnownWindows(folder, cone.needed, checksum(request.prepared.identity)))
    if known:
        ledger_of(building, request).write(known)


def ledger_of(plane: Path, request: PlaneRequest) -> KnownLedger:
    prepared = request.prepared
    return KnownLedger(known_of(plane), prepared.card.patch, plane_identity(prepared, request.hold))
