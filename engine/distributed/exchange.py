"""What one rank sends and is sent in a level, and the windows it reads and fuses."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from engine.distributed.canvas import Canvas, Shards
from engine.distributed.transfer import Incoming, Outgoing
from engine.planning.cover import Cover
from engine.planning.geometry import Box
from engine.planning.plan import EstimatePieces, Plan
from kernels.fuse import accumulate, fuse, normalize
from kernels.gather import gather
from kernels.values import SeparableWeights, Weights, WinnerMap

HALO, ESTIMATES = 1, 2  # tags
Piece = tuple[int, Box, Callable[[], Tensor]]  # window_id, box, the window's estimate in the box: waits if it must


class Exchange:
    """What one rank sends and is sent in a level, or in a round of decoding, and the windows it reads.

    Nothing is sent before ``start``. Then windows are read, their estimates ``put``, and the shards fused.

    Args:
        channels: Number of channels of the estimates.
        scale: Pixels per latent, where estimates are pixels; the plan is in latents.
        device: Device that estimates are on, and are fused on; None: the canvas's.
        reads: Whether windows of the canvas are read.
        turn: Number of the level or round: the messages of one and the next are told apart.
    """

    def __init__(
        self,
        canvas: Canvas,
        plan: Plan,
        channels: int,
        *,
        scale: int = 1,
        device: str | None = None,
        reads: bool = True,
        turn: int = 0,
    ) -> None:
        self.canvas, self.plan, self.channels, self.scale = canvas, plan, channels, scale
        self.device, self.reads = device or canvas.device, reads
        self.halo_tag, self.estimates_tag = (tag + 2 * (turn % 2) for tag in (HALO, ESTIMATES))
        self.halo: dict[int, Incoming] = {}  # by the rank that sends it
        self.arriving: list[tuple[np.ndarray, Incoming]] = []  # estimates: rows of ``estimate_recvs``, the message
        self.blocks: dict[int, Tensor] = {}  # the latest block of the canvas that windows were read from
        self.estimates: dict[int, Tensor] = {}  # window_id -> estimate, of this rank's windows
        # Pixels are many bytes: they leave window by window, while the next are decoded; latents all at once.
        self.by_window = scale > 1
        sends = plan.estimate_sends
        self.to_send = [(peer, rows) for peer, rows in messages_of(sends, self.by_window) if peer != plan.rank]
        self.missing = [set(sends.window_id[rows].tolist()) for _, rows in self.to_send]

    def start(self) -> None:
        """Begin to receive everything, and send others their halos. Local."""
        ranks, plan, canvas = self.canvas.ranks, self.plan, self.canvas
        with ranks.timer("exchange"):
            for peer, rows in rows_by(plan.halo_recvs.peer) if self.reads else ():
                count = canvas.channels * int(plan.halo_recvs[rows].areas.sum())
                self.halo[peer] = Incoming(ranks, peer, self.halo_tag, count, canvas.device)
                self.halo[peer].start()
            for peer, rows in messages_of(plan.estimate_recvs, self.by_window):
                count = self.channels * self.scale**2 * int(plan.estimate_recvs[rows].areas.sum())
                self.arriving.append((rows, Incoming(ranks, peer, self.estimates_tag, count, self.device)))
                self.arriving[-1][1].start()
            for peer, rows in rows_by(plan.halo_sends.peer) if self.reads else ():
                pieces = [self.halo_piece(row) for row in rows.tolist()]
                Outgoing(ranks, peer, self.halo_tag, pieces).start()

    def halo_piece(self, row: int) -> Tensor:
        """A piece of this rank's shards that another rank reads."""
        sends, shard = self.plan.halo_sends, int(self.plan.halo_sends.shard[row])
        where = sends.window(row).within(self.plan.ownership.shard(shard))
        return self.canvas.x[shard][(slice(None), *where)]

    # ---- reading windows ------------------------------------------------------------------------

    def read(self, slots: Sequence[int], batch: int, dtype: torch.dtype) -> Tensor:
        """The latents of the windows in slots, (batch, C, p, p) channels last.

        Args:
            slots: One slot at least.
            batch: Number of windows; those beyond the slots repeat the last.
        """
        plan, parts = self.plan, []
        corners, blocks = plan.cover.corners(plan.window_ids[np.array(slots)]), plan.block[np.array(slots)]
        starts = [0, *(np.nonzero(np.diff(blocks))[0] + 1).tolist(), len(slots)]
        for start, stop in itertools.pairwise(starts):
            block = int(blocks[start])
            count = batch - start if stop == len(slots) else stop - start
            origin = (int(plan.blocks[block, 0]), int(plan.blocks[block, 1]))
            here = torch.from_numpy(corners[start:stop])
            parts.append(gather(self.block(block), here, plan.cover.patch, count, dtype, origin=origin))
        return parts[0] if len(parts) == 1 else torch.cat(parts).contiguous(memory_format=torch.channels_last)

    def block(self, index: int) -> Tensor:
        """float32 (C, h, w): a block of the plan, cut out of the canvas."""
        if index not in self.blocks:
            self.blocks = dict(list(self.blocks.items())[-1:])  # slots come block by block
            box = Box(*self.plan.blocks[index].tolist())
            self.blocks[index] = self.assembled(box, bool(self.plan.needs_halo[index]))
        return self.blocks[index]

    def assembled(self, box: Box, needs_halo: bool) -> Tensor:
        """A box of the canvas, put together from this rank's shards and, where windows need it, from its halo.

        What neither of them holds is not filled: no window reads it.
        """
        canvas, plan = self.canvas, self.plan
        out = torch.empty(canvas.channels, *box.shape, device=canvas.device)
        ownership = plan.ownership
        held = [(ownership.shard(s), canvas.x[s]) for s in ownership.overlapping(box) if s in canvas.x]
        if needs_halo:
            for peer, rows in rows_by(plan.halo_recvs.peer):
                boxes = [plan.halo_recvs.window(row) for row in rows.tolist()]
                if any(part & box for part in boxes):
                    held += zip(boxes, split(self.halo[peer].tensor(), canvas.channels, boxes), strict=True)
        for where, latents in held:
            if common := where & box:
                out[(slice(None), *common.within(box))] = latents[(slice(None), *common.within(where))]
        return out

    # ---- estimates ------------------------------------------------------------------------------

    def put(self, slot: int, estimate: Tensor) -> None:
        """Store the estimate (channels, scale p, scale p) of the window in a slot, and send what is complete. Local.

        A message leaves as soon as the last estimate in it is stored. Messages to one rank are received in the order of
        the slots: estimates that leave window by window must be put in that order.
        """
        window_id = int(self.plan.window_ids[slot])
        self.estimates[window_id] = estimate
        for (peer, rows), missing in zip(self.to_send, self.missing, strict=True):
            if window_id not in missing:
                continue
            missing.discard(window_id)
            if not missing:
                pieces = [self.piece(row)[2]() for row in rows.tolist()]
                Outgoing(self.canvas.ranks, peer, self.estimates_tag, pieces).start()

    def piece(self, row: int) -> Piece:
        """A piece of an estimate that was put, from its row in ``estimate_sends``."""
        sends, patch, scale = self.plan.estimate_sends, self.plan.cover.patch, self.scale
        window_id, box = int(sends.window_id[row]), sends.window(row).scaled(scale)
        y, x = self.plan.cover.corners(sends.window_id[row : row + 1])[0].tolist()
        whole = Box(y, x, y + patch, x + patch).scaled(scale)
        return window_id, box, lambda: self.estimates[window_id][(slice(None), *box.within(whole))]

    def pieces(self) -> dict[int, list[Piece]]:
        """For every shard that this rank fuses the pieces of estimates, in the order of their window_ids. Local."""
        plan, sends, recvs = self.plan, self.plan.estimate_sends, self.plan.estimate_recvs
        pieces: dict[int, list[Piece]] = {shard: [] for shard in plan.shards}
        for row in np.nonzero(sends.peer == plan.rank)[0].tolist():
            pieces[int(sends.shard[row])].append(self.piece(row))
        for rows, message in self.arriving:
            start = 0
            for row in rows.tolist():
                box = recvs.window(row).scaled(self.scale)
                part = partial(part_of, message, start, self.channels, box)
                pieces[int(recvs.shard[row])].append((int(recvs.window_id[row]), box, part))
                start += self.channels * box.area
        return {shard: sorted(of_shard, key=lambda piece: piece[0]) for shard, of_shard in pieces.items()}

    def fuse(self, cover: Cover | None = None) -> Shards:
        """The weighted mean of the estimates over the shards that this rank fuses; waits for what others send.

        Sums run in the order of the windows, whoever evaluated them: the same bits on any number of ranks.

        Args:
            cover: The cover whose weights are used, in units of the estimates; None: the plan's.
        """
        cover, fused = cover or self.plan.cover, {}
        fuse_shard = fuse_pixels if self.scale > 1 else fuse_latents
        with self.canvas.ranks.timer("fuse"):
            for shard, pieces in self.pieces().items():
                box = self.plan.ownership.shard(shard).scaled(self.scale)
                fused[shard] = fuse_shard(cover, box, pieces, self.channels, self.device)
        return fused


def fuse_latents(cover: Cover, shard: Box, pieces: Sequence[Piece], channels: int, device: str) -> Tensor:
    """float32 (channels, h, w): a shard fused in one kernel, from windows laid side by side."""
    if not pieces:
        return torch.zeros(channels, *shard.shape, device=device)
    window_ids = np.array([window_id for window_id, _, _ in pieces])
    corners, p = cover.corners(window_ids), cover.patch
    estimates = torch.empty(len(window_ids), channels, p, p, device=device)
    for n, (_, box, part) in enumerate(pieces):
        y, x = corners[n].tolist()
        estimates[(n, slice(None), *box.within(Box(y, x, y + p, x + p)))] = part()
    used = np.array([(box.y0, box.x0, box.y1, box.x1) for _, box, _ in pieces])
    weights = weights_of(cover, shard, pieces, device)
    return fuse(
        estimates,
        torch.from_numpy(corners),
        torch.from_numpy(used),
        (shard.y0, shard.x0, shard.y1, shard.x1),
        weights,
    )


def weights_of(cover: Cover, shard: Box, pieces: Sequence[Piece], device: str) -> Weights:
    """The weights of windows in a shard, as the kernel takes them."""
    lines = [cover.axis_weights(window_id) for window_id, _, _ in pieces]
    given = [line for line in lines if line is not None]
    if given:
        rows, columns = (torch.from_numpy(np.stack(side)).to(device) for side in zip(*given, strict=True))
        return SeparableWeights(rows, columns)
    if cover.weight(pieces[0][0], pieces[0][1]) is None:
        return None
    field = np.full(shard.shape, -1, np.int32)
    for n, (window_id, box, _) in enumerate(pieces):
        weight = cover.weight(window_id, box)
        assert weight is not None
        field[box.within(shard)][weight > 0] = n
    return WinnerMap(torch.from_numpy(field).to(device))


def fuse_pixels(cover: Cover, shard: Box, pieces: Sequence[Piece], channels: int, device: str) -> Tensor:
    """float32 (channels, h, w): a shard fused one window after another, for windows of pixels are many bytes.

    It begins with the first while others are still decoded elsewhere.
    """
    total, weights = torch.zeros(channels, *shard.shape, device=device), torch.zeros(shard.shape, device=device)
    for window_id, box, part in pieces:
        weight = cover.weight(window_id, box)
        where = box.within(shard)
        given = None if weight is None else torch.from_numpy(weight).to(device)
        accumulate(total[(slice(None), *where)], weights[where], part(), given)
    return normalize(total, weights)


def rows_by(ranks: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Each rank that occurs in a column, with the rows where it does."""
    return [(int(rank), np.nonzero(ranks == rank)[0]) for rank in np.unique(ranks)]


def messages_of(pieces: EstimatePieces, by_window: bool) -> list[tuple[int, np.ndarray]]:
    """The messages that estimates travel in, as (rank at the other end, rows): one a rank, or one a rank and window.

    Both ends list a window's pieces one after another, and windows in the order of the sender's slots.
    """
    messages = []
    for peer, rows in rows_by(pieces.peer):
        cuts = np.nonzero(np.diff(pieces.window_id[rows]))[0] + 1 if by_window else np.empty(0, np.int64)
        messages += [(peer, part) for part in np.split(rows, cuts)]
    return messages


def part_of(message: Incoming, start: int, channels: int, box: Box) -> Tensor:
    """The piece (channels, h, w) of a message that begins with value number ``start``; waits for the message."""
    return message.tensor()[start : start + channels * box.area].reshape(channels, *box.shape)


def split(message: Tensor, channels: int, boxes: Sequence[Box]) -> list[Tensor]:
    """The pieces (channels, h, w) of a message, one a box."""
    parts = torch.split(message, [channels * box.area for box in boxes])
    return [part.reshape(channels, *box.shape) for part, box in zip(parts, boxes, strict=True)]
