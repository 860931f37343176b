"""Checks of the output and of its place, before anything is written."""

from __future__ import annotations

import os
import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from engine.job import RunOptions, SampleJob
from engine.messages import binary
from engine.pipeline.memory import ITEM
from engine.pipeline.prepared import Prepared
from engine.storage.metadata import kept_provenance
from engine.storage.output import Unrecognisable, provenance_at
from engine.storage.remote_output import check_owner, provenance_in
from engine.storage.remote_shards import RemoteShards
from engine.storage.store_url import check_url, handle_of, is_url, looks_like_url

LONGEST_NAME = 200  # bytes of an output's name; names of 255 can be made, and ours are made longer for a moment


def placed(options: RunOptions, rank_count: int) -> tuple[RunOptions, str | None]:
    """The options with the handle in place of an `out` in an object store, and its URL; None: `out` is a path.

    Raises:
        ValueError: a URL that is no store's, or a store without a scratch folder, or the other way round.
    """
    if not is_url(options.out):
        if looks_like_url(Path(options.out)):
            raise ValueError(f"`out` {options.out} is a URL that lost a slash; pass it as text, s3://bucket/name.zarr")
        if options.scratch is not None:
            raise ValueError(
                f"`scratch` {options.scratch} is for an output in an object store, and `out` {options.out} is a path; "
                "leave `scratch` out, or pass `out` s3://..."
            )
        return options, None
    url = check_url(options.out, rank_count)
    if options.scratch is None:
        raise ValueError(
            f"`out` {url} is in an object store: pass `scratch` DIR too, a folder that all ranks see, for its ledger "
            "and checkpoints"
        )
    if is_url(options.scratch):
        raise ValueError(f"`scratch` {options.scratch} is a URL; pass a folder that all ranks see")
    return replace(options, out=str(handle_of(url, options.scratch)), scratch=None), url


def store_state(prepared: Prepared) -> Prepared:
    """The same, with the store of an output that is given by its handle, and knowing whether the store is free.

    Raises:
        ValueError: the handle is of another place, or the store holds something else, or cannot be read.
    """
    path, options = Path(prepared.options.out), prepared.options
    kept = {} if prepared.state == "absent" else kept_provenance(path) or {}
    theirs, store = kept.get("store"), prepared.store or kept.get("store")
    if store is None:
        return prepared
    if prepared.state != "absent" and theirs != store:
        lies = f"is the handle of {theirs}" if theirs else "has its arrays itself"
        raise ValueError(f"{path} {lies}, and `out` is {store}; choose another `scratch`, or another `out`")
    shards = RemoteShards(store)
    there = provenance_in(shards)
    if there is not None and there["store_id"] != kept.get("store_id") and options.overwrite:
        return replace(prepared, store=store, state="replace")
    check_owner(shards, there, kept.get("store_id"))
    return replace(prepared, store=store)


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
    differ = differing(path, identity)
    if differ and options.overwrite:
        return "replace"
    if differ:
        key = differ[0]
        raise ValueError(
            f"{path} holds another job: its {key} is {theirs.get(key)}, yours is {identity.get(key)}; "
            "give the same settings to resume it, choose another `out`, or pass `overwrite` to replace it"
        )
    if provenance["state"] == "finished":
        return "replace" if options.overwrite else "finished"
    return "unfinished" if options.resume == "auto" else "replace"


def check_not_read(job: SampleJob, out: Path) -> None:
    """Refuse to replace an output that the job reads: its pixels would be gone before they are read.

    Raises:
        ValueError: naming what is read.
    """
    for field in fields(job):
        name = getattr(job, field.name)
        if isinstance(name, str) and Path(name).exists() and Path(name).resolve().is_relative_to(out.resolve()):
            raise ValueError(f"`{field.name}` {name} is read from `out` {out}, which it replaces; choose another `out`")


def differing(path: Path, identity: dict[str, Any]) -> list[str]:
    """The settings in which an output differs from a job; none where there is no output.

    Raises:
        Unrecognisable: something else is there.
    """
    provenance = provenance_at(path)
    theirs = identity if provenance is None else provenance["identity"]
    # a setting that an earlier version did not have is as good as left out
    return [key for key in (*identity, *theirs) if identity.get(key) != theirs.get(key)]


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
    """Bytes that the output takes on the disk at the least: pixels compressed to a quarter, and two checkpoints.

    Pixels that go to a store take none.
    """
    (height, width), (rows, columns) = prepared.job.size, prepared.ownership.shape
    pixels = prepared.frames.images * height * width * prepared.card.image_channels
    latents = ITEM * rows * columns * prepared.card.channels
    return (pixels // 4 if prepared.store is None else 0) + 2 * latents


def what_is_there(path: Path) -> Path:
    """A path, or the nearest above it that there is."""
    return next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())


def check_not_within(path: Path, option: str) -> None:
    """Refuse a place among the arrays of another output; its private folder has outputs of its own.

    Raises:
        ValueError: naming the other.
    """
    for folder in path.resolve().parents:
        if folder.name == "slidefield":
            return
        if kept_provenance(folder) is not None:
            raise ValueError(f"`{option}` {path} lies in {folder}, another output; choose another `{option}`")


def check_place(options: RunOptions, least: int, plane: Path | None = None) -> None:
    """Refuse an output that cannot be written where it is to be.

    Args:
        least: Bytes that must be free on its disk.
        plane: The plane whose request it is.
    Raises:
        ValueError: naming the place, and what it lacks.
    """
    path = Path(options.out)
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        raise ValueError(f"`out` {path}: its name is longer than {LONGEST_NAME} bytes; choose a shorter `out`")
    check_not_within(path if plane is None else plane, "out" if plane is None else "plane")
    parent = what_is_there(path)
    if parent != path.absolute() and not parent.is_dir():
        raise ValueError(f"`out` {path}: {parent} is not a folder; choose another `out`")
    if not os.access(parent, os.W_OK):
        raise ValueError(f"`out` {path}: {parent} cannot be written; choose another `out`")
    free = shutil.disk_usage(parent).free
    if free < least and plane is not None:
        raise ValueError(
            f"`plane` {plane}: the request takes at least {binary(least)} but {binary(free)} are free there; make room "
            f"(engine.trim {plane} drops kept levels and what is unfinished), or choose another `plane`"
        )
    if free < least:
        raise ValueError(
            f"`out` {path}: the result takes at least {least / 2**20:.0f} MiB "
            f"but {free / 2**20:.0f} MiB are free there; choose another `out`"
        )
