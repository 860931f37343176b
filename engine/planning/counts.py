"""What a level takes, over all ranks at once: the sums of their plans, without a plan for each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.planning.cover import Cover, windows_of
from engine.planning.ownership import Ownership, bounding_boxes, cut_by_shards, partition_by_cost
from engine.planning.plan import LabelsAndCosts


@dataclass(frozen=True)
class LevelCounts:
    """What a level takes.

    Args:
        windows: Number of windows.
        evaluations: int64 (ranks,), evaluations of each rank.
        halo, estimates: Latents that travel between ranks before and after the evaluations.
    """

    windows: int
    evaluations: np.ndarray
    halo: int
    estimates: int


def count_level(cover: Cover, ownership: Ownership, ask: LabelsAndCosts) -> LevelCounts:
    """The sums over the ranks of what ``plan_level`` gives each of them."""
    at_home = [cover.owned_by(ownership.shard(shard)) for shard in range(ownership.count)]
    window_ids = np.concatenate([*at_home, np.empty(0, np.int64)])
    _, costs = ask(window_ids)
    asked = np.nonzero(costs)[0]  # as in plan_level: a window that costs nothing is neither read nor used
    evaluator = partition_by_cost(costs[asked], 0, int(costs.sum()), ownership.size)
    evaluations = np.zeros(ownership.size, np.int64)
    np.add.at(evaluations, evaluator, costs[asked])
    evaluated = window_ids[asked]
    return LevelCounts(
        windows=len(window_ids),
        evaluations=evaluations,
        halo=halo_area(cover, ownership, evaluated, evaluator),
        estimates=estimate_area(cover, ownership, evaluated, evaluator),
    )


def halo_area(cover: Cover, ownership: Ownership, window_ids: np.ndarray, evaluator: np.ndarray) -> int:
    """Latents that ranks read of others' shards: per rank and shard the bounding box of all that it reads there."""
    reads = cut_by_shards(windows_of(cover, window_ids), ownership)
    reader = evaluator[reads.parent]
    away = reader != ownership.owner(reads.shard)
    _, around = bounding_boxes(np.stack([reader[away], reads.shard[away]], 1), reads.box[away])
    return int(((around[:, 2] - around[:, 0]) * (around[:, 3] - around[:, 1])).sum())


def estimate_area(cover: Cover, ownership: Ownership, window_ids: np.ndarray, evaluator: np.ndarray) -> int:
    """Latents of estimates that are used in others' shards."""
    cores = cut_by_shards(cover.core(window_ids), ownership)
    return int(cores.areas[evaluator[cores.parent] != ownership.owner(cores.shard)].sum())
