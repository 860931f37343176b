"""What a plane says that it has is on the disk: looked at before anything is added to it, or read from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from engine.planning.geometry import Box
from engine.storage.metadata import damaged_metadata, restore_metadata
from engine.storage.output import Output, output_to_read
from engine.storage.plane_layout import PlaneLayout, is_there
from engine.storage.plane_swap import locked


def plane_layout(output: Output) -> PlaneLayout:
    assert isinstance(output.layout, PlaneLayout)
    return output.layout


def check_plane(plane: Path) -> None:
    """Refuse to add to a plane that has lost shards; a ``zarr.json`` that was lost is written anew.

    Rank 0 calls this, of those who have locked the plane, before work starts.

    Raises:
        ValueError: naming one.
    """
    if not is_there(plane):
        return
    restore_metadata(plane)
    output = Output(plane)
    sizes, finished = output.shards.sizes(), {(shard.array, shard.box): shard for shard in output.ledger}
    for region in output.provenance["regions"]:
        for name, box in shards_of(output, Box(*region)):
            shard = finished.get((name, box))
            if shard is None or not output.ledger.has_file(shard, sizes):
                raise lost(output, name, box, " from its ledger" if shard is None else "")


def check_region_of(plane: Path, region: Box) -> None:
    """Refuse a plane that has lost shards of a region that is known. Rank 0 calls this.

    Raises:
        ValueError: naming one.
    """
    if any(damaged_metadata(plane)):
        with locked(plane):
            restore_metadata(plane)
    check_files(output_to_read(plane), region)


def check_files(output: Output, region: Box) -> None:
    """Refuse a region whose shards have no file any more: it would be white without a word.

    Raises:
        ValueError: naming one.
    """
    sizes = output.shards.sizes()
    for name, box in shards_of(output, region):
        if not sizes(output.layout.shard_file(name, box)):
            raise lost(output, name, box)


def shards_of(output: Output, region: Box) -> Iterator[tuple[str, Box]]:
    """The shards at full size that a region of the plane meets: name of the array and box."""
    layout = plane_layout(output)
    for box in layout.boxes().meeting(layout.on_arrays(region)):
        yield from ((name, box) for name in layout.finest)


def lost(output: Output, name: str, box: Box, where: str = "") -> ValueError:
    return ValueError(
        f"{output.path} has lost {output.layout.shard_file(name, box)}{where}; put it back (engine.verify "
        f"{output.path} names all that is damaged), or sample it anew to another `plane`"
    )
