"""What one rank sends and is sent in a level, and the windows it reads and fuses."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from engine.distributed.canvas import ESTIMATES, LATENTS, Canvas, Shards
from engine.distributed.transfer import ReceiveBuffer, SendBuffer
from engine.planning.cover import Cover
from engine.planning.geometry import Window
from engine.planning.ownership import Pieces
from engine.planning.plan import Plan
from kernels.fuse import accumulate, fuse, normalize
from kernels.gather import gather
from kernels.values import SeparableWeights, Weights, WinnerMap


class Exchange:
    """What one rank sends and is sent in a level, or in a round of decoding, and the windows it reads.

    Args:
        channels: of the estimates.
        scale: estimates are in units ``scale`` times finer than the plan (pixels per latent).
        device: where estimates are, and are fused.
        reads: whether windows of the canvas are read.
        turn: of the level or round: messages of one and the next are told apart.
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
        self.device = device or canvas.device
        ranks, c = canvas.ranks, canvas.channels
        latents, self.estimates_tag = (tag + 2 * (turn % 2) for tag in (LATENTS, ESTIMATES))
        self.latents = {
            source: ReceiveBuffer(ranks, source, latents, c * int(plan.halo_recvs[rows].areas.sum()), canvas.device)
            for source, rows in rows_by(plan.halo_recvs.key if reads else np.empty(0))
        }
        self.estimates = {
            source: ReceiveBuffer(
                ranks,
                source,
                self.estimates_tag,
                channels * scale**2 * int(plan.estimate_recvs[rows].areas.sum()),
                self.device,
            )
            for source, rows in rows_by(plan.source_rank)
        }
        for target, rows in rows_by(plan.halo_sends.key if reads else np.empty(0)):
            pieces = [
                canvas.x[int(plan.halo_sends.shard[row])][self.index(plan.halo_sends, row)] for row in rows.tolist()
            ]
            SendBuffer(ranks, target, latents, pieces)
        self.blocks: dict[int, Tensor] = {}
        self.own: dict[int, Tensor] = {}  # place of a window -> estimate
        self.parcels = {target: rows for target, rows in rows_by(plan.dest_rank) if target != plan.rank}
        self.lacking = {target: set(plan.estimate_sends.key[rows].tolist()) for target, rows in self.parcels.items()}

    def index(self, pieces: Pieces, row: int) -> tuple[slice, slice, slice]:
        """Where a piece lies in its shard."""
        return (slice(None), *pieces.window(row).within(self.plan.source.shard(int(pieces.shard[row]))))

    # ---- reading windows ------------------------------------------------------------------------

    def read(self, slots: Sequence[int], batch: int, dtype: torch.dtype) -> Tensor:
        """The latents of windows, (batch, C, p, p) channels last; what follows the last window repeats it.

        Args:
            slots: of the windows in the plan; at least one.
        """
        plan, parts = self.plan, []
        corners, blocks = plan.cover.corners(plan.ids[np.array(slots)]), plan.block[np.array(slots)]
        starts = [0, *(np.nonzero(np.diff(blocks))[0] + 1).tolist(), len(slots)]
        for start, stop in itertools.pairwise(starts):
            block = int(blocks[start])
            allocate_buffer = batch - start if stop == len(slots) else stop - start
            origin = (int(plan.blocks[block, 0]), int(plan.blocks[block, 1]))
            here = torch.from_numpy(corners[start:stop])
            parts.append(gather(self.block(block), here, plan.cover.patch, allocate_buffer, dtype, origin=origin))
        return parts[0] if len(parts) == 1 else torch.cat(parts).contiguous(memory_format=torch.channels_last)

    def block(self, index: int) -> Tensor:
        """float32 (C, h, w): a part of the canvas that holds windows that lie near each other."""
        if index not in self.blocks:
            self.blocks = dict(list(self.blocks.items())[-1:])  # windows come block by block
            self.blocks[index] = self.assembled(
                Window(*self.plan.blocks[index].tolist()), bool(self.plan.needs_halo[index])
            )
        return self.blocks[index]

    def assembled(self, box: Window, needs_halo: bool) -> Tensor:
        """A box of the canvas, of what this rank owns and, where windows reach beyond it, what it was sent.

        The rest of the box is not filled: no window reads it.
        """
        canvas, plan = self.canvas, self.plan
        out = torch.empty(canvas.channels, *box.shape, device=canvas.device)
        held = [(plan.source.shard(s), canvas.x[s]) for s in plan.source.overlapping(box) if s in canvas.x]
        if needs_halo:
            for source, rows in rows_by(plan.halo_recvs.key):
                boxes = [plan.halo_recvs.window(row) for row in rows.tolist()]
                if any(part & box for part in boxes):
                    held += zip(boxes, split(self.latents[source].tensor(), canvas.channels, boxes), strict=True)
        for where, latents in held:
            if common := where & box:
                out[(slice(None), *common.within(box))] = latents[(slice(None), *common.within(where))]
        return out

    # ---- estimates ------------------------------------------------------------------------------

    def put(self, slot: int, estimate: Tensor) -> None:
        """Take the estimate (channels, scale p, scale p) of a window; it leaves with the last that its reader needs."""
        self.own[slot] = estimate
        for target, lacking in self.lacking.items():
            if slot not in lacking:
                continue
            lacking.discard(slot)
            rows = self.parcels[target]
            if not lacking:
                SendBuffer(self.canvas.ranks, target, self.estimates_tag, [self.piece(row) for row in rows.tolist()])

    def piece(self, row: int) -> Tensor:
        """What of an estimate is used in a shard."""
        plan, slot = self.plan, int(self.plan.estimate_sends.key[row])
        window, box = plan.box(slot).scaled(self.scale), plan.estimate_sends.window(row).scaled(self.scale)
        return self.own[slot][(slice(None), *box.within(window))]

    def arrived(self) -> dict[int, list[tuple[int, Window, Tensor]]]:
        """For every shard that this rank fuses the (window, box, estimate) used in it, in the order of the windows.

        Waits for what others send.
        """
        plan, scale = self.plan, self.scale
        found: dict[int, list[tuple[int, Window, Tensor]]] = {shard: [] for shard in plan.shards}
        for row in np.nonzero(plan.dest_rank == plan.rank)[0].tolist():
            index = int(plan.ids[plan.estimate_sends.key[row]])
            found[int(plan.estimate_sends.shard[row])].append(
                (index, plan.estimate_sends.window(row).scaled(scale), self.piece(row))
            )
        for source_rank, rows in rows_by(plan.source_rank):
            boxes = [plan.estimate_recvs.window(row).scaled(scale) for row in rows.tolist()]
            parts = split(self.estimates[source_rank].tensor(), self.channels, boxes)
            for row, box, part in zip(rows.tolist(), boxes, parts, strict=True):
                found[int(plan.estimate_recvs.shard[row])].append((int(plan.estimate_recvs.key[row]), box, part))
        return {shard: sorted(pieces, key=lambda piece: piece[0]) for shard, pieces in found.items()}

    def fuse(self, cover: Cover | None = None) -> Shards:
        """The weighted mean of the estimates over the shards that this rank fuses.

        Sums run in the order of the windows, whoever evaluated them: the same bits on any number of ranks.

        Args:
            cover: whose weights are used, in units of the estimates; None: the plan's.
        """
        cover, scale = cover or self.plan.cover, self.scale
        fused = {}
        for shard, pieces in self.arrived().items():
            slot = self.plan.source.shard(shard).scaled(scale)
            whole = fuse_pixels if scale > 1 else fuse_latents
            fused[shard] = whole(cover, slot, pieces, self.channels, self.device)
        return fused


def fuse_latents(
    cover: Cover, slot: Window, pieces: Sequence[tuple[int, Window, Tensor]], channels: int, device: str
) -> Tensor:
    """float32 (channels, h, w): in one kernel, from windows laid side by side."""
    if not pieces:
        return torch.zeros(channels, *slot.shape, device=device)
    ids = np.array([index for index, _, _ in pieces])
    corners, p = cover.corners(ids), cover.patch
    estimates = torch.empty(len(ids), channels, p, p, device=device)
    for n, (_, box, part) in enumerate(pieces):
        y, x = corners[n].tolist()
        estimates[(n, slice(None), *box.within(Window(y, x, y + p, x + p)))] = part
    keep = np.array([(box.y0, box.x0, box.y1, box.x1) for _, box, _ in pieces])
    weights = weights_of(cover, slot, pieces, device)
    return fuse(
        estimates,
        torch.from_numpy(corners),
        torch.from_numpy(keep),
        (slot.y0, slot.x0, slot.y1, slot.x1),
        weights,
    )


def weights_of(cover: Cover, slot: Window, pieces: Sequence[tuple[int, Window, Tensor]], device: str) -> Weights:
    """The weights of windows in a shard, as the kernel takes them."""
    lines = [cover.axis_weights(index) for index, _, _ in pieces]
    given = [line for line in lines if line is not None]
    if given:
        rows, columns = (torch.from_numpy(np.stack(side)).to(device) for side in zip(*given, strict=True))
        return SeparableWeights(rows, columns)
    if cover.weight(pieces[0][0], pieces[0][1]) is None:
        return None
    field = np.full(slot.shape, -1, np.int32)
    for n, (index, box, _) in enumerate(pieces):
        weight = cover.weight(index, box)
        assert weight is not None
        field[box.within(slot)][weight > 0] = n
    return WinnerMap(torch.from_numpy(field).to(device))


def fuse_pixels(
    cover: Cover, slot: Window, pieces: Sequence[tuple[int, Window, Tensor]], channels: int, device: str
) -> Tensor:
    """float32 (channels, h, w): one window after another, for windows of pixels are many bytes."""
    total, weights = torch.zeros(channels, *slot.shape, device=device), torch.zeros(slot.shape, device=device)
    for index, box, part in pieces:
        weight = cover.weight(index, box)
        where = box.within(slot)
        given = None if weight is None else torch.from_numpy(weight).to(device)
        accumulate(total[(slice(None), *where)], weights[where], part, given)
    return normalize(total, weights)


def rows_by(ranks: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Each rank that occurs, with the rows where it does."""
    return [(int(rank), np.nonzero(ranks == rank)[0]) for rank in np.unique(ranks)]


def split(message: Tensor, channels: int, boxes: Sequence[Window]) -> list[Tensor]:
    """The pieces (channels, h, w) of a message."""
    parts = torch.split(message, [channels * box.area for box in boxes])
    return [part.reshape(channels, *box.shape) for part, box in zip(parts, boxes, strict=True)]
