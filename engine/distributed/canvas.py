"""The distributed canvas: each rank holds its shards; windows are gathered from it and estimates fused into it.

Shape suffixes: C channels, h w latents of a shard.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.diffusion.solvers import Step
from engine.distributed.ranks import Ranks
from engine.planning.ownership import Ownership
from engine.planning.streams import Stream
from kernels.noise import draw
from kernels.step import level_step
from kernels.values import Field, Update

Shards = dict[int, Tensor]  # shard -> float32 (C, h, w)


@dataclass(frozen=True)
class Known:
    """What is known of the clean canvas before it is sampled (in-painting), on this rank's shards.

    Args:
        latents: The known latents of each shard.
        unknown: bool (h, w) of each shard, true where latents are to be sampled.
        alpha_bar: alpha_bar of each level; at the end of the run it is 1.
        gain: The card's ``latents_gain``: at the end known latents are divided by it, for decoding multiplies by it.
    """

    latents: Shards
    unknown: Shards
    alpha_bar: Sequence[float]
    gain: float = 1.0


class Canvas:
    """The latents ``x`` that this rank owns, and what the solver has kept of levels before (``history``).

    Tensors are replaced, never changed: a checkpoint may still be written from them.

    Args:
        round_index: Round of rejection sampling: later rounds have noise of their own at the same positions.
        corner: Where the canvas begins on the plane whose noise it has, (y, x) in latents.
    """

    def __init__(
        self,
        ranks: Ranks,
        ownership: Ownership,
        channels: int,
        seed: int,
        device: str = "cpu",
        round_index: int = 0,
        corner: tuple[int, int] = (0, 0),
    ) -> None:
        self.ranks, self.ownership, self.channels, self.seed, self.device = ranks, ownership, channels, seed, device
        self.round_index, self.corner = round_index, corner
        self.x: Shards = {}
        self.history: list[Shards] = []  # the newest first
        self.known: Known | None = None
        self.after_step: Callable[[int], None] | None = None  # called with the level that comes next
        self.keeps_estimate = False
        self.estimate: Shards = {}  # of the last level, where it is kept for those who watch

    def start(self) -> None:
        """Fill the canvas with unit normal noise, a function of seed and position alone. Local."""
        self.x = {s: self.noise("initial", 0, s) for s in self.ownership.owned(self.ranks.rank)}

    def start_from(self, known: Shards, alpha_bar: float) -> None:
        """Fill the canvas with known latents, as noisy as ``alpha_bar`` says, with the noise of ``start``. Local.

        Args:
            known: The known latents of each shard.
            alpha_bar: 1: without noise.
        """
        for shard, latents in known.items():
            noise = self.x[shard] * (1 - alpha_bar) ** 0.5
            self.x[shard] = latents.to(self.device) * alpha_bar**0.5 + noise

    def check(self) -> None:
        """Local.

        Raises:
            ValueError: A value is not a number, or infinite.
        """
        if not self.finite():
            raise ValueError(
                "the canvas holds values that are not finite; float16 overflows easily: use `dtype` bfloat16 or "
                "float32; in float32 the model's weights are at fault"
            )

    def finite(self) -> bool:
        """Whether all values are finite numbers. Local."""
        return all(bool(torch.isfinite(x).all()) for x in self.x.values())

    def field(self, purpose: str, level: int, shard: int) -> Field:
        """The noise of a level, seen from the corner of a shard on."""
        w = self.ownership.shard(shard)
        y0, x0 = w.y0 + self.corner[0], w.x0 + self.corner[1]
        return Field(self.seed, purpose, Stream(self.seed, level, self.round_index).noise_level, y0, x0)

    def noise(self, purpose: str, level: int, shard: int) -> Tensor:
        """float32 (C, h, w): the noise of a shard."""
        return draw(self.field(purpose, level, shard), self.channels, *self.ownership.shard(shard).shape, self.device)

    def hold_known(self, level: int) -> None:
        """Put back what is known, as noisy as the canvas is before ``level``; nothing where nothing is known. Local."""
        if self.known is None:
            return
        alpha_bar = self.known.alpha_bar[level] if level < len(self.known.alpha_bar) else 1.0
        for shard, known in self.known.latents.items():
            noised = known * alpha_bar**0.5 if alpha_bar < 1 else known / self.known.gain
            if alpha_bar < 1:
                noised = noised + self.noise("known", level, shard) * (1 - alpha_bar) ** 0.5
            self.x[shard] = torch.where(self.known.unknown[shard], self.x[shard], noised)

    def step(self, denoised: Shards, step: Step, level: int, clip: float | None) -> None:
        """One solver step on the owned shards, with noise drawn by position; then what is known is put back. Local.

        Args:
            denoised: The fused estimates; channels beyond the canvas's are the network's prediction of the variance.
            clip: Bound of the estimates, +- this; None: there is none.
        """
        newest: Shards = {}
        with self.ranks.timer("fuse"):
            for shard, fused in denoised.items():
                noise = self.field("step", level, shard) if step.d or step.log_variance else None
                kept, c = weighted([shards[shard] for shards in self.history], step.history)
                update = Update((step.a, step.b, c, step.d, step.e), clip, step.log_variance, noise)
                if step.keeps:
                    newest[shard] = keep(self.x[shard], fused[: self.channels], step.keeps)
                self.x[shard] = level_step(self.x[shard], fused, kept, update)
            kept_now = [newest] if step.keeps else []
            self.history = [*kept_now, *self.history][: step.depth]
            if self.keeps_estimate:
                self.estimate = {shard: fused[: self.channels] for shard, fused in denoised.items()}
            self.hold_known(level + 1)
        if self.after_step is not None:
            self.after_step(level + 1)


def keep(x: Tensor, estimate: Tensor, factors: tuple[float, float]) -> Tensor:
    """What a level keeps of a shard for those after it: the estimate itself, or the noise that it implies."""
    a, e = factors
    return x * a + estimate * e if a else estimate


def weighted(kept: list[Tensor], factors: tuple[float, ...]) -> tuple[Tensor | None, float]:
    """One tensor and its factor, which together are the weighted sum of a shard's history."""
    if len(factors) < 2:
        return (kept[0], factors[0]) if factors else (None, 0.0)
    total = kept[0] * factors[0]
    for tensor, factor in zip(kept[1:], factors[1:], strict=True):
        total += tensor * factor
    return total, 1.0
