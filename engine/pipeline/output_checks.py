"""Checks of the output and of its place, before anything is written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from engine.job import RunOptions
from engine.pipeline.memory import ITEM
from engine.pipeline.prepared import Prepared
from engine.storage.output import Unrecognisable, provenance_at

LONGEST_NAME = 200  # bytes of an output's name; names of 255 can be made, and ours are made longer for a moment


def output_state(options: RunOptions, identity: dict[str, Any]) -> str:
    """Whether there is an output already: absent, unfinished (to be resumed), finished, or replace.

    `overwrite` replaces another job and a finished one; this job's own unfinished output is resumed, so that the same
    command can be given again and again.

    Raises:
        ValueError: the output is another job's, and is not to be overwritten.
    """
    path = Path(options.out)
    try:
        provenance = provenance_at(path)
    except Unrecognisable:
        if options.overwrite:
            return "replace"
        raise
    if provenance is None:
        return "absent"
    theirs = provenance["identity"]
    differing = [key for key in (*identity, *theirs) if identity.get(key) != theirs.get(key)]  # what lacks is None
    if differing and options.overwrite:
        return "replace"
    if differing:
        key = differing[0]
        raise ValueError(
            f"{path} holds another job: its {key} is {theirs.get(key)}, yours is {identity.get(key)}; "
            "give the same settings to resume it, choose another `out`, or pass `overwrite` to replace it"
        )
    if provenance["state"] == "finished":
        return "replace" if options.overwrite else "finished"
    return "unfinished" if options.resume == "auto" else "replace"


def check_log(options: RunOptions) -> None:
    """Refuse a log that cannot be a file.

    Raises:
        ValueError: naming it.
    """
    log = options.json_log
    if not log:
        return
    path = Path(log)
    if path.is_dir() or path.is_fifo() or path.is_socket() or not path.absolute().parent.is_dir():
        raise ValueError(f"`json_log` {log}: not a file in a folder that is there; choose another")


def least_disk_bytes(prepared: Prepared) -> int:
    """Bytes that the output takes at the least: pixels compressed to a quarter, and two checkpoints of the canvas."""
    (height, width), (rows, columns) = prepared.job.size, prepared.ownership.shape
    pixels = prepared.frames.images * height * width * prepared.card.image_channels
    latents = ITEM * rows * columns * prepared.card.channels
    return pixels // 4 + 2 * latents


def what_is_there(path: Path) -> Path:
    """A path, or the nearest above it that there is."""
    return next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())


def check_place(options: RunOptions, least: int) -> None:
    """Refuse an output that cannot be written where it is to be.

    Args:
        least: Bytes that must be free on its disk.
    Raises:
        ValueError: naming the place, and what it lacks.
    """
    path = Path(options.out)
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        raise ValueError(f"`out` {path}: its name is longer than {LONGEST_NAME} bytes; choose a shorter `out`")
    parent = what_is_there(path)
    if parent != path.absolute() and not parent.is_dir():
        raise ValueError(f"`out` {path}: {parent} is not a folder; choose another `out`")
    if not os.access(parent, os.W_OK):
        raise ValueError(f"`out` {path}: {parent} cannot be written; choose another `out`")
    free = shutil.disk_usage(parent).free
    if free < least:
        raise ValueError(
            f"`out` {path}: the result takes at least {least / 2**20:.0f} MiB "
            f"but {free / 2**20:.0f} MiB are free there; choose another `out`"
        )
