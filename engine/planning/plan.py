"""Who evaluates which windows, and which boxes travel between ranks: integers alone.

Coordinates:

    latent     (y, x) on the canvas; a box is half-open, ``Box(y0, x0, y1, x1)`` or a row (y0, x0, y1, x1)
    window_id  number of a window in its cover, the same on every rank; estimates are fused in this order
    slot       position of a window in one rank's plan, 0 to len(plan) - 1: the order of evaluation there
    shard      number of a shard, row by row over the canvas; it is owned by one ``rank``, 0 to size - 1

A window, its core, its halo, and the shards that cut it: window 3 of a shifted cover of 16 x 12 latents, in shards of
8 x 8 on two ranks. The window is pushed inside the canvas, so its estimate is used in its core alone, columns 5 to 12.

      x 0               4   5           8               12
    y 0 +-------------------------------+---------------+
        | shard 0                       | shard 1       |    rank 0 owns shards 0 and 1
        |                               |               |
      3 |               +---#===========|===============#    +---+ window   #===# core
        |               : a |           | b             #
      8 +---------------:---#-----------+---------------#    a, b: halo of rank 1, which evaluates the window
        |               : c |           | d             #    c, d: its own
     11 |               +---#===========|===============#
        |                               |               |
        | shard 2                       | shard 3       |    rank 1 owns shards 2 and 3
     16 +-------------------------------+---------------+

Before it evaluates, rank 1 is sent its halo by rank 0: ``a`` of shard 0 and ``b`` of shard 1, columns 4 to 12. When it
has evaluated, it sends rank 0 what its estimate says of the core there, columns 5 to 12, to be fused by the owner of
the shards; what it says of ``c`` and ``d`` stays.

>>> from engine.planning.cover import Axis, Lattice
>>> cover = Lattice(Axis(length=16, patch=8, stride=8, offset=3), Axis(length=12, patch=8, stride=8, offset=5))
>>> once = lambda window_ids: (np.ones(len(window_ids), np.uint64), np.ones(len(window_ids), np.int64))
>>> ownership = Ownership(shape=(16, 12), sides=(8, 8), size=2)
>>> _, plan = run_in_lockstep([plan_level(rank, cover, ownership, once) for rank in range(2)])
>>> plan.window_ids.tolist(), plan.box(slot=1)
([4, 3, 5], Box(y0=3, x0=4, y1=11, x1=12))
>>> plan.halo_recvs.peer.tolist(), plan.halo_recvs.shard.tolist(), plan.halo_recvs.box.tolist()
([0, 0], [0, 1], [[3, 4, 8, 8], [3, 8, 8, 12]])
>>> sent = plan.estimate_sends[plan.estimate_sends.peer == 0]
>>> sent.window_id.tolist(), sent.shard.tolist(), sent.box.tolist()
([3, 3], [0, 1], [[3, 5, 8, 8], [3, 8, 8, 12]])

Every rank plans its own part. What it cannot work out it asks for: how much work lies before its own (a sum over the
ranks), which windows others leave to it, who reads its shards (messages between ranks that share work). Planning is
*sans-I/O*: a part is a generator that yields its requests and is sent the answers, and never communicates itself. So
the same code runs over MPI beside other work (``distributed.collectives.PlanTask``) and for all ranks in one process
(``run_in_lockstep``).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from engine.planning.cover import Cover, windows_of
from engine.planning.geometry import Box
from engine.planning.ownership import (
    DecodeRounds,
    Ownership,
    Pieces,
    bounding_boxes,
    cut_by_shards,
    partition_by_cost,
)

Messages = dict[int, np.ndarray]  # rank -> int64
# window_ids -> uint64 labels as bits, int64 evaluations
LabelsAndCosts = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
WriterOf = Callable[[np.ndarray], np.ndarray]  # shards -> the rank that fuses and writes each; -1: nobody does now
P = TypeVar("P")


@dataclass(frozen=True)
class PrefixSumRequest:
    """Asks for int64 (2, k): the sums of ``values`` over the ranks before this one, and over all ranks."""

    values: tuple[int, ...]


@dataclass(frozen=True)
class SparseExchangeRequest:
    """Asks for ``messages`` to be delivered to ranks; the answer is what this rank was sent, sender -> message."""

    messages: Messages


Planning = Generator[PrefixSumRequest | SparseExchangeRequest, Any, P]


@dataclass(frozen=True)
class HaloPieces(Pieces):
    """Boxes of the canvas that travel before the evaluations.

    Args:
        peer: int64 (n,), the rank at the other end: the reader of what is sent, the owner of what is received.
    """

    peer: np.ndarray


@dataclass(frozen=True)
class EstimatePieces(Pieces):
    """Boxes of windows' estimates that travel after the evaluations.

    Args:
        window_id: int64 (n,), the window whose estimate it is.
        peer: int64 (n,), the rank at the other end: the one that fuses what is sent, or evaluated what is received.
    """

    window_id: np.ndarray
    peer: np.ndarray


@dataclass(frozen=True)
class Plan:
    """One rank's part of a level, or of a round of decoding.

    Slots are in three runs: half of the interior windows, then those with a halo or with an estimate that others fuse,
    then the rest of the interior. So messages travel while there is work on both sides of them.

    Args:
        rank: The rank whose part it is.
        cover: All windows of the level.
        ownership: The shards of the canvas and their owners.
        window_ids: int64 (n,), the window in each slot.
        label_bits: uint64 (n,), the labels that the window in each slot is asked for, as bits.
        block: int64 (n,), the block that each slot's window is cut from.
        blocks: int64 (k, 4), boxes of the canvas around windows of consecutive slots that lie near each other.
        needs_halo: bool (k,), whether a block's windows may reach into others' shards.
        shards: The shards that this rank fuses.
        halo_sends: Boxes of this rank's own shards that others read.
        halo_recvs: Boxes of others' shards that this rank reads.
        estimate_sends: What is used of the windows in this plan; ``peer`` is this rank itself where it fuses them.
        estimate_recvs: What is used here of windows that others evaluate.
        windows, evaluations: Number of windows, and of evaluations, of all ranks together.
    """

    rank: int
    cover: Cover
    ownership: Ownership
    window_ids: np.ndarray
    label_bits: np.ndarray
    block: np.ndarray
    blocks: np.ndarray
    needs_halo: np.ndarray
    shards: Sequence[int]
    halo_sends: HaloPieces
    halo_recvs: HaloPieces
    estimate_sends: EstimatePieces
    estimate_recvs: EstimatePieces
    windows: int = 0
    evaluations: int = 0

    def __len__(self) -> int:
        return len(self.window_ids)

    def box(self, slot: int) -> Box:
        """The box of the window in a slot."""
        return Box(*windows_of(self.cover, self.window_ids[slot : slot + 1])[0].tolist())

    def travelling(self) -> tuple[int, int]:
        """Latents that this rank is sent: (before the evaluations, after them)."""
        return int(self.halo_recvs.areas.sum()), int(self.estimate_recvs.areas.sum())


def plan_level(
    rank: int, cover: Cover, ownership: Ownership, ask: LabelsAndCosts, run_ends: np.ndarray | None = None
) -> Planning[Plan]:
    """A rank's part of a level.

    The evaluations of all ranks form a line, in the order of the shards that the windows are at home in, and the line
    is cut into one run a rank.

    Args:
        ask: Tells what windows are asked for, and how many evaluations that costs.
        run_ends: Where the ranks' runs end, see ``partition_by_cost``; None: runs of equal cost.
    """
    owned = ownership.owned(rank)
    at_home = [cover.owned_by(ownership.shard(shard)) for shard in owned]
    window_ids = np.concatenate([*at_home, np.empty(0, np.int64)])
    label_bits, costs = ask(window_ids)
    home = np.repeat(np.array(owned, np.int64), list(map(len, at_home)))
    table = np.stack([home, window_ids, label_bits.view(np.int64)], 1)
    table, total = yield from deal(table, costs, ownership.size, run_ends)
    plan = yield from plan_exchanges(rank, cover, ownership, table, owned, ownership.owner)
    return replace(plan, windows=int(total[1]), evaluations=int(total[0]))


def deal(
    table: np.ndarray, costs: np.ndarray, size: int, run_ends: np.ndarray | None = None
) -> Planning[tuple[np.ndarray, np.ndarray]]:
    """Deal the windows of all ranks to all ranks, in runs of equal cost along the line of ranks.

    Args:
        table: int64 (n, 3), a row for every window at home with this rank: home shard, window_id, labels as bits.
        costs: int64 (n,), the cost of each; a window that costs nothing is dealt to nobody.
        size: Number of ranks.
        run_ends: Where the ranks' runs end, see ``partition_by_cost``; None: runs of equal cost.
    Returns:
        The rows that are dealt to this rank, sorted; and int64 (2,), the cost and the number of all windows.
    """
    before, total = yield PrefixSumRequest((int(costs.sum()), len(table)))
    asked = np.nonzero(costs)[0]  # a window that costs nothing is neither read nor used
    evaluator = partition_by_cost(costs[asked], int(before[0]), int(total[0]), size, run_ends)
    dealt = yield SparseExchangeRequest({int(to): table[asked[evaluator == to]] for to in np.unique(evaluator)})
    rows = np.concatenate([np.empty(0, np.int64), *map(np.ravel, dealt.values())]).reshape(-1, 3)
    return rows[np.lexsort((rows[:, 1], rows[:, 0]))], total


def plan_decode(
    rank: int, cover: Cover, ownership: Ownership, rounds: DecodeRounds, turn: int, kept: np.ndarray | None = None
) -> Planning[Plan]:
    """A rank's part of round number ``turn`` of decoding: an equal part of the windows that the round's shards need.

    All ranks decode, whether they write a shard in the round or not. A window is decoded once a round; it is at home
    in the first shard of the round that its core overlaps. A rank that kept its pixels has it in its part again, and
    the others are dealt in the order of their homes, so that most pixels stay where they are written.

    Args:
        kept: int64 (n,), the windows whose pixels this rank has from the round before; no two ranks have the same.
            None, on all ranks alike: nobody kept any.
    """
    own = rounds.shards(rank, turn)
    window_ids = cover.overlapping(ownership.shard(own[0])) if own else np.empty(0, np.int64)
    window_ids = window_ids[np.isin(decode_homes(cover, ownership, window_ids, rounds, turn), own)]
    stay = np.empty((0, 3), np.int64)
    if kept is not None:
        homes = decode_homes(cover, ownership, kept, rounds, turn)
        stay = decode_table(homes[homes >= 0], kept[homes >= 0])
        writers = rounds.writer(stay[:, 0], turn)
        told = yield SparseExchangeRequest({int(to): stay[writers == to, 1] for to in np.unique(writers)})
        window_ids = window_ids[~np.isin(window_ids, np.concatenate([np.empty(0, np.int64), *told.values()]))]
    homes = np.full(len(window_ids), own[0] if own else 0)
    table, _ = yield from deal(decode_table(homes, window_ids), np.ones(len(homes), np.int64), ownership.size)
    table = np.concatenate([table, stay])
    table = table[np.lexsort((table[:, 1], table[:, 0]))]
    return (yield from plan_exchanges(rank, cover, ownership, table, own, lambda shards: rounds.writer(shards, turn)))


def decode_table(homes: np.ndarray, window_ids: np.ndarray) -> np.ndarray:
    """int64 (n, 3): the rows of windows that are decoded, see ``deal``; each has one label."""
    return np.stack([homes, window_ids, np.ones_like(window_ids)], 1)


def decode_homes(
    cover: Cover, ownership: Ownership, window_ids: np.ndarray, rounds: DecodeRounds, turn: int
) -> np.ndarray:
    """int64 (n,): the first shard of a round that each window's core overlaps; -1 where it overlaps none."""
    pieces = cut_by_shards(cover.core(window_ids), ownership)
    pieces = pieces[rounds.writer(pieces.shard, turn) >= 0]
    rows, first = np.unique(pieces.parent, return_index=True)  # the first piece of each window: they are in order
    homes = np.full(len(window_ids), -1)
    homes[rows] = pieces.shard[first]
    return homes


def plan_exchanges(
    rank: int, cover: Cover, ownership: Ownership, table: np.ndarray, shards: Sequence[int], writer_of: WriterOf
) -> Planning[Plan]:
    """The plan for windows that a rank evaluates: their order, and what travels for them.

    The rank works out what it reads and what it sends; from others it hears what they read of its shards, and what they
    send.

    Args:
        table: int64 (n, 3), for every window its home shard, its window_id, its labels as bits.
        shards: The shards that this rank fuses.
    """
    phase = phases(rank, cover, ownership, table[:, 1], writer_of)
    order = np.argsort(phase, kind="stable")
    phase, (home, window_ids, label_bits) = phase[order], table[order].T
    # A block holds consecutive slots of one home shard and one phase: it is cut out of the canvas once for all of them.
    block = np.cumsum(np.r_[0, (np.diff(home) != 0) | (np.diff(phase) != 0)])[: len(window_ids)]
    boxes = windows_of(cover, window_ids)
    halo_recvs = halo_of(rank, boxes, ownership)
    estimate_sends = estimates_of(cover, window_ids, ownership, writer_of)
    # Both ends list what travels between them alike, row by row: each message is these pieces, in this order.
    peers = (set(halo_recvs.peer.tolist()) | set(estimate_sends.peer.tolist())) - {rank}
    requests = {
        peer: pack_requests(halo_recvs[halo_recvs.peer == peer], estimate_sends[estimate_sends.peer == peer])
        for peer in peers
    }
    received = yield SparseExchangeRequest(requests)
    halo_sends, estimate_recvs = unpack_requests(received)
    return Plan(
        rank=rank,
        cover=cover,
        ownership=ownership,
        window_ids=window_ids,
        label_bits=label_bits.view(np.uint64),
        block=block,
        blocks=bounding_boxes(block[:, None], boxes)[1],
        needs_halo=phase[np.unique(block, return_index=True)[1]] == 1,
        shards=shards,
        halo_sends=halo_sends,
        halo_recvs=halo_recvs,
        estimate_sends=estimate_sends,
        estimate_recvs=estimate_recvs,
    )


def phases(rank: int, cover: Cover, ownership: Ownership, window_ids: np.ndarray, writer_of: WriterOf) -> np.ndarray:
    """int64 (n,): in which phase windows are evaluated: half of the interior ones in 0 and half in 2, the others in 1.

    A window is interior if it reads this rank's shards alone, and its estimate is fused by this rank alone.
    """
    reads = cut_by_shards(windows_of(cover, window_ids), ownership)
    uses = cut_by_shards(cover.core(window_ids), ownership)
    interior = np.ones(len(window_ids), bool)
    interior[reads.parent[ownership.owner(reads.shard) != rank]] = False
    interior[uses.parent[writer_of(uses.shard) != rank]] = False
    return np.where(interior, 2 * (np.cumsum(interior) > interior.sum() / 2), 1)


def halo_of(rank: int, boxes: np.ndarray, ownership: Ownership) -> HaloPieces:
    """What windows read of other ranks' shards: of each the bounding box of all that is read."""
    reads = cut_by_shards(boxes, ownership)
    groups, around = bounding_boxes(np.stack([ownership.owner(reads.shard), reads.shard], 1), reads.box)
    halo = HaloPieces(shard=groups[:, 1], box=around, peer=groups[:, 0])
    return halo[halo.peer != rank]


def estimates_of(cover: Cover, window_ids: np.ndarray, ownership: Ownership, writer_of: WriterOf) -> EstimatePieces:
    """Where the windows' estimates are used, with the rank that fuses them; what nobody fuses is left out."""
    cores = cut_by_shards(cover.core(window_ids), ownership)
    cores = cores[writer_of(cores.shard) >= 0]
    return EstimatePieces(
        shard=cores.shard, box=cores.box, window_id=window_ids[cores.parent], peer=writer_of(cores.shard)
    )


def pack_requests(halo: HaloPieces, estimates: EstimatePieces) -> np.ndarray:
    """What a rank asks of a peer, and tells it, in one message.

    Args:
        halo: Boxes of the peer's shards that this rank reads.
        estimates: Boxes of this rank's estimates that the peer fuses.
    Returns:
        int64: n, the number of halo boxes; n rows (shard, y0, x0, y1, x1); then, to the end of the message, the rows
        of the estimates (window_id, shard, y0, x0, y1, x1).
    """
    halo_rows = np.column_stack([halo.shard, halo.box])
    estimate_rows = np.column_stack([estimates.window_id, estimates.shard, estimates.box])
    return np.concatenate([[len(halo)], halo_rows.ravel(), estimate_rows.ravel()]).astype(np.int64)


def unpack_requests(received: Messages) -> tuple[HaloPieces, EstimatePieces]:
    """What this rank is asked to send, and told that it will receive, by all its peers.

    Args:
        received: From peers to messages, as ``pack_requests`` makes them.
    """
    halo_rows, estimate_rows = [np.empty((0, 6), np.int64)], [np.empty((0, 7), np.int64)]  # with the peer before
    for peer, message in received.items():
        end = 1 + 5 * int(message[0])
        halo, estimates = message[1:end].reshape(-1, 5), message[end:].reshape(-1, 6)
        halo_rows.append(np.column_stack([np.full(len(halo), peer), halo]))
        estimate_rows.append(np.column_stack([np.full(len(estimates), peer), estimates]))
    halo, estimates = np.concatenate(halo_rows), np.concatenate(estimate_rows)
    return (
        HaloPieces(peer=halo[:, 0], shard=halo[:, 1], box=halo[:, 2:]),
        EstimatePieces(peer=estimates[:, 0], window_id=estimates[:, 1], shard=estimates[:, 2], box=estimates[:, 3:]),
    )


def run_in_lockstep(parts: Sequence[Planning[P]]) -> list[P]:
    """Run all ranks' parts in one process: every request is answered when all ranks have made theirs."""
    results: list[Any] = [None] * len(parts)
    answers: list[Any] = [None] * len(parts)
    while True:
        requests: list[Any] = []
        for rank, part in enumerate(parts):
            try:
                requests.append(part.send(answers[rank]))
            except StopIteration as end:
                results[rank] = end.value
        if not requests:
            return results
        if isinstance(requests[0], PrefixSumRequest):
            sums = np.cumsum([[0] * len(requests[0].values), *(request.values for request in requests)], 0)
            answers = [(before, sums[-1]) for before in sums]
        else:
            answers = [
                {sender: request.messages[rank] for sender, request in enumerate(requests) if rank in request.messages}
                for rank in range(len(parts))
            ]
