"""Who owns which shards, who evaluates which windows, which rectangles travel: integers.

Every rank plans its own part. What it cannot know by arithmetic it is told: how much work lies before its own (one
sum over the ranks), which windows others leave to it, and who reads its shards (a few messages between ranks that
share work). A rank's part is a generator that yields what it asks and is sent the answer, so that the same code runs
over MPI, in step with other work, and for many ranks in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from engine.planning.cover import Cover, windows_of
from engine.planning.geometry import Window
from engine.planning.ownership import DecodeRounds, Ownership, Pieces, bounding_pieces, cut_by_shards, partition_by_cost

Messages = dict[int, np.ndarray]  # rank -> int64
Ask = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # windows -> uint64 labels as bits, int64 evaluations
P = TypeVar("P")


@dataclass(frozen=True)
class PrefixSumRequest:
    """Asks for int64 (2, k): the sums over the ranks before this one, and over all."""

    values: tuple[int, ...]


@dataclass(frozen=True)
class SparseExchangeRequest:
    """Asks for messages to be delivered; the answer is what this rank was sent: sender -> message."""

    messages: Messages


Planning = Generator[PrefixSumRequest | SparseExchangeRequest, Any, P]


@dataclass(frozen=True)
class Plan:
    """One rank's part of a level, or of a round of decoding.

    Windows are held in the order in which they are evaluated: some that are this rank's affair alone, then those that
    others' latents or shards have a part in, then the rest, so that messages travel while there is work.

    Args:
        cover: of all windows.
        ids: int64 (n,), the windows that this rank evaluates.
        present: uint64 (n,), the labels that each is asked for, as bits.
        block: int64 (n,), which block each window is cut from.
        blocks: int64 (k, 4), boxes of the canvas that hold windows that lie near each other.
        beyond: bool (k,), whether a block's windows may reach into others' shards.
        shards: that this rank fuses.
        gives, gets: what travels before: boxes of own shards with the rank that reads them (``item``), and of others'
            shards with the rank that owns them.
        sends, takes: what travels after: of a window evaluated here (``item``: its place in ``ids``) with the rank
            that fuses (``writer``), this one included; and of windows evaluated elsewhere (``item``: the window), with
            the rank that evaluates (``sender``).
        windows, evaluations: of all ranks.
    """

    rank: int
    cover: Cover
    source: Ownership
    ids: np.ndarray
    label_bits: np.ndarray
    block: np.ndarray
    blocks: np.ndarray
    needs_halo: np.ndarray
    shards: Sequence[int]
    halo_sends: Pieces
    halo_recvs: Pieces
    estimate_sends: Pieces
    dest_rank: np.ndarray
    estimate_recvs: Pieces
    source_rank: np.ndarray
    windows: int = 0
    evaluations: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    def box(self, place: int) -> Window:
        """Of the window at a place in ``ids``."""
        return Window(*windows_of(self.cover, self.ids[place : place + 1])[0].tolist())

    def travelling(self) -> tuple[int, int]:
        """Canvas elements (per channel) that this rank is sent: (before the evaluations, after them)."""
        return int(self.halo_recvs.areas.sum()), int(self.estimate_recvs.areas.sum())


def plan_level(
    rank: int,
    cover: Cover,
    ownership: Ownership,
    ask: Ask,
    shares: np.ndarray | None = None,
) -> Planning[Plan]:
    """A rank's part of a level: the evaluations of all ranks, cut in equal runs along the order of the shards.

    Args:
        ask: what each window is asked for, and what that costs.
        shares: see ``partition_by_cost``.
    """
    own = ownership.owned(rank)
    at_home = [cover.owned_by(ownership.shard(shard)) for shard in own]
    ids = np.concatenate([*at_home, np.empty(0, np.int64)])
    label_bits, costs = ask(ids)
    table = np.stack([np.repeat(np.array(own, np.int64), list(map(len, at_home))), ids, label_bits.view(np.int64)], 1)
    before, total = yield PrefixSumRequest((int(costs.sum()), len(ids)))
    asked = np.nonzero(costs)[0]  # a window that costs nothing is neither read nor used
    target = partition_by_cost(costs[asked], int(before[0]), int(total[0]), ownership.size, shares)
    left = yield SparseExchangeRequest({int(to): table[asked[target == to]] for to in np.unique(target)})
    table = np.concatenate([np.empty(0, np.int64), *map(np.ravel, left.values())]).reshape(-1, 3)
    table = table[np.lexsort((table[:, 1], table[:, 0]))]
    found = yield from part_of(rank, cover, ownership, table, own, ownership.owner)
    return replace(found, windows=int(total[1]), evaluations=int(total[0]))


def part_of(
    rank: int,
    cover: Cover,
    ownership: Ownership,
    table: np.ndarray,
    shards: Sequence[int],
    writer_of: Callable[[np.ndarray], np.ndarray],
) -> Planning[Plan]:
    """What travels for the windows that a rank evaluates: it tells those who own what they read, and who fuse them.

    Args:
        table: int64 (n, 3): the shard near which each window lies, the window, its labels as bits.
        shards: that this rank fuses.
        writer_of: from shards to the rank that fuses each; -1: nobody does now.
    """
    phase = phases(rank, cover, ownership, table[:, 1], writer_of)
    order = np.argsort(phase, kind="stable")
    phase, (near, ids, label_bits) = phase[order], table[order].T
    block = np.cumsum(np.r_[0, (np.diff(near) != 0) | (np.diff(phase) != 0)])[: len(ids)]
    boxes = windows_of(cover, ids)
    estimate_sends = cut_by_shards(cover.core(ids), ownership)
    estimate_sends = estimate_sends[writer_of(estimate_sends.shard) >= 0]
    dest_rank = writer_of(estimate_sends.shard)
    reads = cut_by_shards(boxes, ownership)
    halo_recvs = bounding_pieces(Pieces(ownership.owner(reads.shard), reads.shard, reads.box))
    halo_recvs = halo_recvs[halo_recvs.key != rank]
    messages = {}
    for to in (set(halo_recvs.key.tolist()) | set(dest_rank.tolist())) - {rank}:
        asked, told = halo_recvs[halo_recvs.key == to], estimate_sends[dest_rank == to]
        parts = (
            [len(asked)],
            np.column_stack([asked.shard, asked.box]).ravel(),
            np.column_stack([ids[told.key], told.shard, told.box]).ravel(),
        )
        messages[to] = np.concatenate(parts).astype(np.int64)
    heard = yield SparseExchangeRequest(messages)
    given, taken = [np.empty((0, 6), np.int64)], [np.empty((0, 7), np.int64)]
    for source_rank, message in heard.items():
        cut = 1 + 5 * int(message[0])
        for listed, found in ((message[1:cut].reshape(-1, 5), given), (message[cut:].reshape(-1, 6), taken)):
            found.append(np.column_stack([np.full(len(listed), source_rank), listed]))
    give, take = np.concatenate(given), np.concatenate(taken)
    return Plan(
        rank=rank,
        cover=cover,
        source=ownership,
        ids=ids,
        label_bits=label_bits.view(np.uint64),
        block=block,
        blocks=bounding_pieces(Pieces(block, np.zeros_like(block), boxes)).box,
        needs_halo=phase[np.unique(block, return_index=True)[1]] == 1,
        shards=shards,
        halo_sends=Pieces(give[:, 0], give[:, 1], give[:, 2:]),
        halo_recvs=halo_recvs,
        estimate_sends=estimate_sends,
        dest_rank=dest_rank,
        estimate_recvs=Pieces(take[:, 1], take[:, 2], take[:, 3:]),
        source_rank=take[:, 0],
    )


def phases(
    rank: int, cover: Cover, ownership: Ownership, ids: np.ndarray, writer_of: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """When windows are evaluated: 1 those that other ranks' shards have a part in; half of the others before, 0, and
    half after, 2.
    """
    reads, estimate_sends = cut_by_shards(windows_of(cover, ids), ownership), cut_by_shards(cover.core(ids), ownership)
    alone = np.ones(len(ids), bool)
    alone[reads.key[ownership.owner(reads.shard) != rank]] = False
    alone[estimate_sends.key[writer_of(estimate_sends.shard) != rank]] = False
    return np.where(alone, 2 * (np.cumsum(alone) > alone.sum() / 2), 1)


def plan_decode(rank: int, cover: Cover, ownership: Ownership, rounds: DecodeRounds, turn: int) -> Planning[Plan]:
    """A rank's part of one round of decoding: the windows that touch its shard, but for those that are a neighbour's.

    A window is decoded once a round, by the writer of the first shard of the round that it touches.
    """
    own = rounds.shards(rank, turn)
    ids = cover.overlapping(ownership.shard(own[0])) if own else np.empty(0, np.int64)
    touched = cut_by_shards(cover.core(ids), ownership)
    touched = touched[rounds.writer(touched.shard, turn) >= 0]
    windows, first = np.unique(touched.key, return_index=True)  # the first of each: pieces are in order
    ids = ids[windows[touched.shard[first] == own]] if own else ids
    near = np.full(len(ids), own[0] if own else 0)
    table = np.stack([near, ids, np.ones_like(ids)], 1)
    found = yield from part_of(rank, cover, ownership, table, own, lambda shards: rounds.writer(shards, turn))
    return found


def run_in_lockstep(parts: Sequence[Planning[P]]) -> list[P]:
    """Run all ranks' parts in one process."""
    results: list[Any] = [None] * len(parts)
    answers: list[Any] = [None] * len(parts)
    while True:
        asked: list[Any] = []
        for rank, part in enumerate(parts):
            try:
                asked.append(part.send(answers[rank]))
            except StopIteration as end:
                results[rank] = end.value
        if not asked:
            return results
        if isinstance(asked[0], PrefixSumRequest):
            totals = np.cumsum([[0] * len(asked[0].values), *(one.values for one in asked)], 0)
            answers = [(before, totals[-1]) for before in totals]
        else:
            answers = [
                {source_rank: one.messages[rank] for source_rank, one in enumerate(asked) if rank in one.messages}
                for rank in range(len(parts))
            ]
