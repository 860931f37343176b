"""Checks of the output and of the machine, before anything is written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from engine.job import RunOptions
from engine.storage.output import state_of


def output_state(options: RunOptions, identity: dict[str, Any]) -> str:
    """Whether there is an output already: absent, unfinished (to be resumed), finished, or replace.

    `overwrite` replaces another job and a finished one; this job's own unfinished output is resumed, so that the same
    command can be given again and again.

    Raises:
        ValueError: the output is another job's, and is not to be overwritten.
    """
    path = Path(options.out)
    provenance = state_of(path)
    if provenance is None:
        return "absent"
    theirs = provenance["identity"]
    if theirs != identity and options.overwrite:
        return "replace"
    if theirs != identity:
        key = next(k for k in (*identity, *theirs) if identity.get(k) != theirs.get(k))
        raise ValueError(
            f"{path} holds another job: its {key} is {theirs.get(key)}, yours is {identity.get(key)}; "
            "give the same settings to go on with it, choose another `out`, or pass `overwrite` to replace it"
        )
    if provenance["state"] == "finished":
        return "replace" if options.overwrite else "finished"
    return "unfinished" if options.resume == "auto" else "replace"


def check_memory(bytes_per_rank: int, local_size: int) -> None:
    """Refuse a plan that does not fit into this node's memory.

    Args:
        local_size: Number of ranks on this node.
    Raises:
        ValueError: naming what is needed and what there is.
    """
    need, have = bytes_per_rank * local_size, available_memory()
    if have and need > have:
        raise ValueError(
            f"the plan needs {need / 2**30:.1f} GiB on this node ({local_size} ranks) "
            f"but {have / 2**30:.1f} GiB are free; "
            "use more nodes, fewer ranks a node, a smaller `shard` or `batch_size`, or a smaller `size`"
        )


def available_memory() -> int:
    """Bytes free on this node, by the kernel and this process's control groups; 0 where unknown."""
    limits = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable"):
                limits.append(int(line.split()[1]) * 1024)
        group = Path("/sys/fs/cgroup") / Path("/proc/self/cgroup").read_text().split("::", 1)[1].strip().lstrip("/")
        while group.is_relative_to("/sys/fs/cgroup"):
            limit = (group / "memory.max").read_text().strip() if (group / "memory.max").exists() else "max"
            if limit.isdigit():
                facts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                cached = int(facts.get("inactive_file", 0)) + int(facts.get("active_file", 0))
                limits.append(int(limit) - int((group / "memory.current").read_text()) + cached)
            group = group.parent
    except (OSError, IndexError, ValueError):
        pass
    return max(min(limits), 0) if limits else 0


def check_log(options: RunOptions) -> None:
    """Refuse a log that cannot be a file.

    Raises:
        ValueError: naming it.
    """
    log = options.json_log
    if log and (Path(log).is_dir() or not Path(log).absolute().parent.is_dir()):
        raise ValueError(f"`json_log` {log}: not a file in a folder that is there; choose another")


def check_place(options: RunOptions, least: int) -> None:
    """Refuse an output that cannot be written where it is to be.

    Args:
        least: Bytes that must be free on its disk.
    Raises:
        ValueError: naming the place, and what it lacks.
    """
    path = Path(options.out)
    parent = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
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
