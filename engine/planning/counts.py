"""What a level, or a round of decoding, takes over all ranks: the sums of their plans, without a plan for each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from engine.planning.cover import Cover, windows_of
from engine.planning.ownership import DecodeRounds, Ownership, bounding_boxes, cut_by_shards, partition_by_cost
from engine.planning.plan import LabelsAndCosts, WriterOf, decode_homes


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
        estimates=estimate_area(cover, ownership, evaluated, evaluator, ownership.owner),
    )


def count_decode(cover: Cover, ownership: Ownership, rounds: DecodeRounds) -> Iterator[LevelCounts]:
    """The sums over the ranks of what ``plan_decode`` gives each of them, for every round.

    Windows whose pixels a rank kept from the round before count as windows, and not as evaluations.
    """
    kept = keeper = np.empty(0, np.int64)
    for turn in range(len(rounds)):
        near = [cover.overlapping(ownership.shard(shard)) for shard in shards_of_round(rounds, turn)]
        window_ids = np.unique(np.concatenate([*near, np.empty(0, np.int64)]))
        homes = decode_homes(cover, ownership, window_ids, rounds, turn)
        stays = np.isin(window_ids, kept)
        line = np.lexsort((window_ids, homes, stays))[: len(window_ids) - int(stays.sum())]  # those that are dealt
        decoder = np.empty(len(window_ids), np.int64)
        decoder[line] = partition_by_cost(np.ones(len(line), np.int64), 0, len(line), ownership.size)
        decoder[stays] = keeper[np.searchsorted(kept, window_ids[stays])]
        yield LevelCounts(
            windows=len(window_ids),
            evaluations=np.bincount(decoder[line], minlength=ownership.size),
            halo=halo_area(cover, ownership, window_ids, decoder),
            estimates=estimate_area(cover, ownership, window_ids, decoder, partial(rounds.writer, turn=turn)),
        )
        kept, keeper = window_ids, decoder


def shards_of_round(rounds: DecodeRounds, turn: int) -> list[int]:
    """The shards that are written in a round, by all ranks."""
    remaining = np.asarray(rounds.remaining)
    return remaining[rounds.writer(remaining, turn) >= 0].tolist()


def halo_area(cover: Cover, ownership: Ownership, window_ids: np.ndarray, evaluator: np.ndarray) -> int:
    """Latents that ranks read of others' shards: per rank and shard the bounding box of all that it reads there."""
    reads = cut_by_shards(windows_of(cover, window_ids), ownership)
    reader = evaluator[reads.parent]
    away = reader != ownership.owner(reads.shard)
    _, around = bounding_boxes(np.stack([reader[away], reads.shard[away]], 1), reads.box[away])
    return int(((around[:, 2] - around[:, 0]) * (around[:, 3] - around[:, 1])).sum())


def estimate_area(
    cover: Cover, ownership: Ownership, window_ids: np.ndarray, evaluator: np.ndarray, writer_of: WriterOf
) -> int:
    """Latents of estimates that are used in shards that others fuse."""
    cores = cut_by_shards(cover.core(window_ids), ownership)
    writer = writer_of(cores.shard)
    return int(cores.areas[(writer >= 0) & (writer != evaluator[cores.parent])].sum())
