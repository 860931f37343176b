"""Latents -> pixels: window by window with overlap weights, shard by shard, in rounds over all ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from engine.canvas import Canvas, Shards, fuse
from engine.cover import decode_cover, pixel_cover
from engine.plan import LevelPlan, decode_rounds, plan_decode


def decode_windows(
    plan: LevelPlan, rank: int, read: Callable[[int], Tensor], decode: Callable[[Tensor], Tensor]
) -> dict[int, Tensor]:
    """Decode this rank's windows of a round, one at a time: float32 (c, side, side). Local."""
    with torch.inference_mode():
        return {w: decode(read(w)[None])[0].float().cpu() for w in plan.windows_of(rank)}


def to_uint8(pixels: Tensor) -> np.ndarray:
    """Pixels in [-1, 1] -> uint8, rounded to the nearest."""
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()


def write_all(images: Shards, write: Callable[[int, np.ndarray], None]) -> None:
    for shard, pixels in images.items():
        write(shard, to_uint8(pixels))


def decode_canvas(
    canvas: Canvas,
    decode: Callable[[Tensor], Tensor],
    *,
    patch: int,
    factor: int,
    overlap: int,
    channels: int,
    remaining: Sequence[int],
    write: Callable[[int, np.ndarray], None],
    after_round: Callable[[int], bool],
) -> bool:
    """Decode the remaining shards. Collective.

    Args:
        decode: (1, C, p, p) normalised latents -> (1, c, factor p, factor p) in [-1, 1].
        channels: of the image.
        write: stores one decoded shard, uint8 (c, h, w); called by the shard's one writer.
        after_round: windows decoded in the round -> whether to stop here.
    Returns:
        Whether all shards were written.
    """
    ranks, ownership = canvas.ranks, canvas.ownership
    cover = decode_cover(ownership.shape, patch, overlap)
    pixels = pixel_cover(cover, factor, overlap)
    rounds = decode_rounds(remaining, ranks.size)
    for turn, (shards, writers) in enumerate(rounds):
        plan = plan_decode(cover, ownership, shards, writers)
        decoded = decode_windows(plan, ranks.rank, canvas.gather(plan), decode)
        images = fuse(ranks, plan, decoded, channels, cover=pixels, scale=factor)
        ranks.agree(partial(write_all, images, write))
        if after_round(int(plan.costs.sum())) and turn + 1 < len(rounds):
            return False
    return True
