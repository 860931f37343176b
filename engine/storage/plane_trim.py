"""Kept levels of a plane are dropped: all, or those that no region in question would take.

First the ledger is written anew, or removed, in one step; then files go that it does not name any more. So a kill at
any moment leaves a plane whose ledger names only what is there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.planning.geometry import Box
from engine.planning.plane import Windows, latents_of, needed_windows
from engine.storage.files import discard, file_size, lock, sync, write_signed
from engine.storage.output import provenance_of
from engine.storage.plane_layout import is_there, label_plane, request_of
from engine.storage.plane_levels import MIDDLE, SIDE, KnownWindows, windows_as_json


def trim(plane: Path, region: Box | None = None) -> tuple[int, int]:
    """Drop kept levels of a plane.

    Args:
        region: In px; what it and its neighbours would take is kept. None: nothing is.
    Returns:
        How many bytes were dropped, and how many are left.
    Raises:
        ValueError: it is no plane, its ledger is damaged, or another process writes it.
    """
    provenance = provenance_of(plane)
    if provenance.get("kind") != "plane":
        raise ValueError(f"{plane} is no plane: it keeps no levels")
    private = plane / "slidefield"
    levels, request = private / "levels", request_of(plane)
    with lock(plane):
        before = size_of(levels) + size_of(request)
        kept = [] if region is None else kept_windows(private / "known.json", provenance, region)
        if kept:
            write_signed(private / "known.json", {"requests": [[windows_as_json(one) for one in kept]]})
        else:
            discard(private / "known.json")
        sync(private)
        discard(request)  # it was begun with what was known then
        if kept:
            for level, windows in enumerate(kept, 1):
                for file in chunks_without(levels / f"{level:05d}", windows):
                    discard(file)
        else:
            discard(levels)
        left = size_of(levels)
        labels = label_plane(plane)
        if region is None and is_there(labels):  # a plane of a label model, with levels of its own
            before += trim(labels)[0]
    return before - left, left


def kept_windows(ledger: Path, provenance: dict[str, Any], region: Box) -> list[Windows]:
    """For each level the known windows that a region, a window larger on all sides, takes; empty: there is none."""
    patch, factor = provenance["window"]["patch"], provenance["window"]["factor"]
    known = KnownWindows(ledger, provenance["levels"], patch).read()
    if not all(known):
        return []
    here = latents_of(region, factor)
    near = Box(here.y0 - patch, here.x0 - patch, here.y1 + patch, here.x1 + patch)  # the decoder's windows reach there
    wanted = needed_windows(near, [windows[0].offset for windows in known], patch)
    kept = []
    for windows, of_level in zip(wanted, known, strict=True):
        missing = windows.without(of_level)
        kept.append(replace(windows, mask=windows.mask & ~missing.mask))
    return kept if any(map(len, kept)) else []


def chunks_without(array: Path, windows: Windows) -> Iterator[Path]:
    """The files of an array's chunks that hold nothing of any of some windows."""
    for file in array.glob("c/0/0/*/*"):
        y, x = int(file.parent.name) * SIDE - MIDDLE, int(file.name) * SIDE - MIDDLE
        if not windows.covers(Box(y, x, y + SIDE, x + SIDE)).any():
            yield file


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(file_size(path) for path in folder.rglob("*"))
