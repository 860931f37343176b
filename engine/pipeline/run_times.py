"""Where the time of a run went: by phase, and by rank; small enough to be kept, whatever the number of ranks."""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.distributed.ranks import Ranks
from engine.distributed.timing import KINDS

START, LEVEL, DECODING, PYRAMID = "start", "level", "decoding", "pyramid"  # phases; a level has its number behind it


def gathered_times(ranks: Ranks, device: str, memory: int) -> dict[str, Any]:
    """The times of a run as JSON values: of every phase the mean over the ranks, of every rank the sum over the phases.

    Collective, after a run that came to its end or was stopped: all ranks have had the same phases.

    Args:
        memory: Most bytes that any rank has held.
    """
    laps = ranks.timer.laps
    each = np.array([[*lap.seconds, lap.evaluations] for lap in laps.values()]).reshape(len(laps), len(KINDS) + 1)
    by_rank = np.array(ranks.allgather(each.sum(0)))
    ranks.allreduce_array(each)
    return {
        "ranks": ranks.size,
        "device": device.split(":")[0],
        "memory_bytes": memory,
        "kinds": list(KINDS),
        "phases": [list(phase) for phase in laps],
        "seconds": (each[:, :-1] / ranks.size).round(4).tolist(),
        "evaluations": each[:, -1].astype(int).tolist(),
        "planned": [lap.planned for lap in laps.values()],
        "seconds_by_rank": by_rank[:, :-1].round(3).tolist(),
        "evaluations_by_rank": by_rank[:, -1].astype(int).tolist(),
    }
