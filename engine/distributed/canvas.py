"""The distributed canvas: each rank holds its shards; windows are gathered from it and estimates fused into it.

Shape suffixes: C channels, h w latents of a shard or box, p p of a window.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.diffusion.solvers import Step
from engine.distributed.ranks import Ranks
from engine.planning.ownership import Ownership
from kernels.noise import draw
from kernels.step import level_step
from kernels.values import Field, Update

Shards = dict[int, Tensor]  # shard index -> float32 (C, h, w)
LATENTS, ESTIMATES = 1, 2  # tags


class Canvas:
    """The latents ``x`` that this rank owns, and the estimate of the level before (``previous``).

    Tensors are replaced, never changed: a checkpoint may still be written from them.

    Args:
        round_index: of rejection sampling: later rounds have noise of their own at the same positions.
    """

    def __init__(
        self, ranks: Ranks, ownership: Ownership, channels: int, seed: int, device: str = "cpu", round_index: int = 0
    ) -> None:
        self.ranks, self.ownership, self.channels, self.seed, self.device = ranks, ownership, channels, seed, device
        self.round_index = round_index
        self.x: Shards = {}
        self.previous: Shards = {}
        self.known: Shards = {}
        self.known_gain = 1.0  # that the decoder will multiply by; what is known needs none
        self.unknown: dict[int, Tensor] = {}

    def start(self) -> None:
        """Unit normal noise: a function of seed and position alone. Local."""
        self.x = {s: self.noise("initial", 0, s) for s in self.ownership.owned(self.ranks.rank)}

    def check(self) -> None:
        """Local.

        Raises:
            ValueError: a value that is no number, or infinite.
        """
        if not self.finite():
            raise ValueError(
                "the canvas holds values that are not finite; float16 overflows easily: use `dtype` bfloat16 or "
                "float32; in float32 the model's weights are at fault"
            )

    def finite(self) -> bool:
        return all(bool(torch.isfinite(x).all()) for x in self.x.values())

    def field(self, purpose: str, level: int, shard: int) -> Field:
        """The noise of a shard."""
        w = self.ownership.shard(shard)
        return Field(self.seed, purpose, level + (self.round_index << 20), w.y0, w.x0)

    def noise(self, purpose: str, level: int, shard: int) -> Tensor:
        return draw(self.field(purpose, level, shard), self.channels, *self.ownership.shard(shard).shape, self.device)

    def hold_known(self, level: int, alpha_bar: float) -> None:
        """Put what is known of the clean canvas back, noised to a level, outside the mask of in-painting. Local."""
        for shard, known in self.known.items():
            noised = known * alpha_bar**0.5 if alpha_bar < 1 else known / self.known_gain
            if alpha_bar < 1:
                noised = noised + self.noise("known", level, shard) * (1 - alpha_bar) ** 0.5
            self.x[shard] = torch.where(self.unknown[shard], self.x[shard], noised)

    def step(self, denoised: Shards, coefficients: Step, level: int, clip: float | None, keep: bool) -> None:
        """One solver step on the owned shards, with noise drawn by position. Local.

        Args:
            denoised: the fused estimates; what follows the canvas's channels speaks of the noise's variance.
            keep: hold on to ``denoised`` as the next level's history.
        """
        c = coefficients
        for shard, fused in denoised.items():
            noise = self.field("step", level, shard) if c.d or c.log_variance else None
            update = Update((c.a, c.b, c.c, c.d, c.e), clip, c.log_variance, noise)
            self.x[shard] = level_step(self.x[shard], fused, self.previous.get(shard), update)
        self.previous = {shard: fused[: self.channels] for shard, fused in denoised.items()} if keep else {}
