"""The distributed canvas: each rank holds its shards; windows are gathered from it and estimates fused into it.

Shape suffixes: C channels, h w latents of a shard or box, p p of a window.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from engine.comm import Ranks
from engine.cover import Cover
from engine.plan import LevelPlan, Ownership
from engine.solvers import Step
from kernels.fuse import accumulate, normalize
from kernels.philox import standard_normal
from kernels.step import learned_spread, step

Shards = dict[int, Tensor]  # shard index -> float32 (C, h, w)


class Canvas:
    """The latents ``x`` that this rank owns, and the estimate of the level before (``previous``).

    Args:
        attempt: 0 for the first drawing; others have noise of their own at the same positions.
    """

    def __init__(
        self, ranks: Ranks, ownership: Ownership, channels: int, seed: int, device: str = "cpu", attempt: int = 0
    ) -> None:
        self.ranks, self.ownership, self.channels, self.seed, self.device = ranks, ownership, channels, seed, device
        self.attempt = attempt
        self.x: Shards = {}
        self.previous: Shards = {}
        self.known: Shards = {}
        self.known_gain = 1.0  # that the decoder will multiply by; what is known needs none
        self.repaint: dict[int, Tensor] = {}

    def start(self) -> None:
        """Unit normal noise: a function of seed and position alone. Local."""
        self.x = {s: self.noise("initial", 0, s) for s in self.ownership.owned(self.ranks.rank)}

    def check(self) -> None:
        """Local.

        Raises:
            ValueError: a value that is no number, or infinite.
        """
        if not all(bool(torch.isfinite(x).all()) for x in self.x.values()):
            raise ValueError(
                "the canvas holds values that are not finite; float16 overflows easily: use --dtype bfloat16 or float32"
            )

    def noise(self, purpose: str, level: int, shard: int) -> Tensor:
        w = self.ownership.shards[shard]
        place = (w.y0, w.x0, w.y1, w.x1)
        return standard_normal(self.seed, purpose, level + (self.attempt << 20), place, self.channels, self.device)

    def hold_known(self, level: int, alpha_bar: float) -> None:
        """Put what is known of the clean canvas back, noised to a level, where it is not to be repainted. Local."""
        for shard, known in self.known.items():
            noised = known * alpha_bar**0.5 if alpha_bar < 1 else known / self.known_gain
            if alpha_bar < 1:
                noised = noised + self.noise("known", level, shard) * (1 - alpha_bar) ** 0.5
            self.x[shard] = torch.where(self.repaint[shard], self.x[shard], noised)

    def gather(self, plan: LevelPlan) -> Callable[[int], Tensor]:
        """Fetch what this rank reads in a level. Collective.

        Returns:
            A function from a window's index to its latents (C, p, p).
        """
        mine = self.ranks.rank
        reads, owners = plan.reads, self.ownership.owner[plan.reads.shard]
        sends, receives, shards, boxes = [], [], [], []
        for row in np.nonzero((reads.item == mine) | (owners == mine))[0].tolist():
            reader, owner, shard, box = int(reads.item[row]), int(owners[row]), int(reads.shard[row]), reads.window(row)
            if owner == mine:
                part = self.x[shard][(slice(None), *box.within(self.ownership.shards[shard]))]
                sends.append((reader, part.cpu().numpy()))
            if reader == mine:
                receives.append((owner, (self.channels, *box.shape)))
                shards.append(shard)
                boxes.append(box)
        held = dict(zip(shards, zip(boxes, self.ranks.exchange(sends, receives), strict=True), strict=True))

        def read(index: int) -> Tensor:
            window = plan.cover.window(index)
            out = np.empty((self.channels, *window.shape), np.float32)
            for shard in self.ownership.meeting(window):
                box, part = held[shard]
                common = window & box
                out[(slice(None), *common.within(window))] = part[(slice(None), *common.within(box))]
            return torch.from_numpy(out)

        return read

    def step(self, denoised: Shards, coefficients: Step, level: int, clip: float | None, keep: bool) -> None:
        """One solver step on the owned shards, with noise drawn by position. Local.

        Args:
            denoised: the fused estimates; what follows the canvas's channels speaks of the noise's variance.
            keep: hold on to ``denoised`` as the next level's history.
        """
        c = coefficients
        for shard, fused in denoised.items():
            estimate, word = fused[: self.channels], fused[self.channels :]
            spread = learned_spread(word, c.log_variance) if c.log_variance else None
            noise = self.noise("step", level, shard) if c.d or c.log_variance else None
            self.x[shard] = step(
                self.x[shard], estimate, self.previous.get(shard), noise, (c.a, c.b, c.c, c.d, c.e), clip, spread
            )
        self.previous = {shard: fused[: self.channels] for shard, fused in denoised.items()} if keep else {}


def fuse(
    ranks: Ranks,
    plan: LevelPlan,
    estimates: Mapping[int, Tensor],
    channels: int,
    *,
    cover: Cover | None = None,
    scale: int = 1,
    device: str = "cpu",
) -> Shards:
    """Send estimates to the ranks that write their shards and take the weighted mean there. Collective.

    Sums run in the order of the cover's windows, whoever evaluated them: the same bits on any number of ranks.

    Args:
        estimates: of this rank's windows, (channels, scale p, scale p).
        cover: whose weights are used, in units of the estimates; by default the plan's.
        scale: estimates are in units ``scale`` times finer than the plan (pixels per latent).
    Returns:
        The shards that this rank writes.
    """
    mine = ranks.rank
    cover = cover or plan.cover
    writes = plan.writes
    readers, writers = plan.reader[writes.item], plan.writer[writes.shard]
    sends, receives, rows = [], [], []
    for row in np.nonzero((readers == mine) | (writers == mine))[0].tolist():
        item, box = int(writes.item[row]), writes.window(row).scaled(scale)
        if readers[row] == mine:
            window = plan.cover.window(item).scaled(scale)
            part = estimates[item][(slice(None), *box.within(window))]
            sends.append((int(writers[row]), part.cpu().numpy()))
        if writers[row] == mine:
            receives.append((int(readers[row]), (channels, *box.shape)))
            rows.append(row)
    parts = ranks.exchange(sends, receives)
    shards = {int(s): plan.source.shards[int(s)].scaled(scale) for s in np.nonzero(plan.writer == mine)[0]}
    totals = {s: torch.zeros(channels, *w.shape, device=device) for s, w in shards.items()}
    weights = {s: torch.zeros(w.shape, device=device) for s, w in shards.items()}
    for row, data in zip(rows, parts, strict=True):  # rows are ordered by item
        item, shard, box = int(writes.item[row]), int(writes.shard[row]), writes.window(row).scaled(scale)
        weight = cover.weight(item, box)
        where = box.within(shards[shard])
        accumulate(
            totals[shard][(slice(None), *where)],
            weights[shard][where],
            torch.from_numpy(data).to(device),
            None if weight is None else torch.from_numpy(weight).to(device),
        )
    return {s: normalize(totals[s], weights[s]) for s in shards}
