"""The output that is exported: finished, whole, and read with errors that say what to do."""

from __future__ import annotations

from pathlib import Path

from engine.planning.geometry import Box
from engine.storage.output import Output, output_to_read, provenance_at
from engine.storage.store_url import refuse_url


def finished_output(path: Path, levels: int | None = 1) -> Output:
    """Open the output at a path.

    Args:
        levels: Number of levels of the pyramid that have to be whole; None: all.
    Raises:
        ValueError: there is none, or it is unfinished, or lacks shards, or has channels that no picture has.
    """
    refuse_url(path)
    try:
        provenance = provenance_at(path)
    except ValueError:
        raise ValueError(f"{path} is no output of engine.sample; give one") from None
    if provenance is None:
        raise ValueError(f"{path} is not there; give an output of engine.sample")
    output = output_to_read(path)
    if not output.finished:
        state = output.provenance["state"]
        raise ValueError(f"{path} is {state}; give its command again to finish it first")
    if output.layout.channels not in (1, 3):
        raise ValueError(f"{path} has {output.layout.channels} channels; PNG and TIFF are written of 1 or 3")
    check_shards(output, levels)
    return output


def check_shards(output: Output, levels: int | None = 1) -> None:
    """Refuse an output that lacks a shard, which would be exported black; what a plane lacks is white."""
    if not output.layout.complete:
        return
    layout, sizes = output.layout, output.shards.sizes()
    for level in range(len(layout.sizes()))[:levels]:
        for name in (layout.level(finest, level) for finest in layout.finest):
            for box in layout.boxes(level):
                if not sizes(layout.shard_file(name, box)):
                    raise ValueError(
                        f"{output.path} lacks a shard of {name}, {box_text(box)}; "
                        f"python -m engine.verify {output.path} says what else is missing"
                    )


def box_text(box: Box) -> str:
    """Name a box, for people."""
    return f"rows {box.y0}:{box.y1} columns {box.x0}:{box.x1}"
