"""Kept levels of a plane are dropped: all, or those that no region in question would take.

First the ledger is written anew, or removed, in one step; then files go that it does not name any more. So a kill at
any moment leaves a plane whose ledger names only what is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from engine.planning.geometry import Box
from engine.planning.plane import KnownWindows, Windows, latents_of, needed_windows
from engine.storage.files import discard, file_size, lock, sync
from engine.storage.output import provenance_of
from engine.storage.plane_layout import is_there, known_of, label_plane, levels_of, request_of
from engine.storage.plane_levels import KnownLedger, LevelArrays
from engine.storage.plane_swap import discard_next, recover


def trim(plane: Path, region: Box | None = None) -> tuple[int, int]:
    """Drop kept levels of a plane.

    Args:
        region: In px; what it and its neighbours would take is kept. None: nothing is.
    Returns:
        How many bytes were dropped, and how many are left.
    Raises:
        ValueError: it is no plane, its ledger is damaged, or another process writes it.
    """
    plane = plane.resolve()
    recover(plane)
    if plane.exists() and not is_there(plane):
        raise ValueError(f"{plane} has no finished request yet: it keeps no levels")
    provenance = provenance_of(plane)
    if provenance.get("kind") != "plane":
        raise ValueError(f"{plane} is no plane: it keeps no levels")
    levels, request, ledger = levels_of(plane), request_of(plane), known_of(plane)
    with lock(plane):
        before = size_of(levels) + size_of(request)
        patch, factor = provenance["window"]["patch"], provenance["window"]["factor"]
        known = KnownLedger(ledger, patch, provenance["identity"])
        kept = [] if region is None else kept_windows(known.read(), latents_of(region, factor))
        if kept:
            known.write(kept)
        else:
            discard(ledger)
        sync(ledger.parent)
        discard(request)  # it was begun with what was known then
        discard_next(plane)
        discard_levels(levels, kept)
        left = size_of(levels)
        labels = label_plane(plane)
        if region is None and is_there(labels):  # a plane of a label model, with levels of its own
            before += trim(labels)[0]
    return before - left, left


def kept_windows(known: Sequence[KnownWindows], region: Box) -> list[KnownWindows]:
    """The known windows that a region of latents, a window larger on all sides, takes."""
    if not known:
        return []
    levels = known[0].levels
    patch = levels[0].patch
    near = Box(region.y0 - patch, region.x0 - patch, region.y1 + patch, region.x1 + patch)  # where the decoder reaches
    wanted = needed_windows(near, [windows.offset for windows in levels], patch)
    kept = [replace(one, levels=tuple(map(both, one.levels, wanted))) for one in known]
    return [one for one in kept if any(map(len, one.levels))]


def both(windows: Windows, others: Windows) -> Windows:
    """The windows of a lattice that are among others, too."""
    return replace(windows, mask=windows.mask & ~windows.without([others]).mask)


def discard_levels(levels: Path, kept: Sequence[KnownWindows]) -> None:
    """Remove the chunks that hold nothing of any of the windows that are kept."""
    folders = {one.folder for one in kept}
    for folder in levels.glob("*"):
        if folder.name not in folders:
            discard(folder)
    if not kept:
        discard(levels)
    for one in kept:
        arrays = LevelArrays(levels / one.folder, one.request)
        for level, windows in enumerate(one.levels, 1):
            for file, box in arrays.chunks(level).items():
                if not windows.covers(box).any():
                    discard(file)


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(file_size(path) for path in folder.rglob("*"))
