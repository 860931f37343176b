"""Latents -> pixels: window by window with overlap weights, shard by shard, in rounds over all ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from engine.canvas import Canvas, fuse
from engine.cover import Cover, strided
from engine.geometry import Window
from engine.plan import LevelPlan, decode_rounds, plan_decode

TRIM = 0.25  # share of the overlap at a window's border that its neighbour decides alone


def decode_cover(shape: tuple[int, int], patch: int, overlap: int) -> Cover:
    """The decoder's windows: a lattice in latents, a function of the canvas alone.

    Args:
        patch: of the model; the decoder's windows have twice its side where the canvas has room.
        overlap: latents that neighbouring windows share.
    """
    side = min(2 * patch, *shape)
    overlap = min(overlap, side // 2)
    return strided(shape, side, max(side - overlap, 1), "uniform")


def pixel_cover(cover: Cover, factor: int, overlap: int) -> Cover:
    """The same windows in pixels, with weights that rise smoothly over the overlap."""
    side = cover.patch * factor
    ramp = max(min(overlap, cover.patch // 2) * factor, 1)
    edge = (np.minimum(np.arange(side), np.arange(side)[::-1]) + 0.5) / ramp
    s = np.clip((edge - TRIM) / (1 - 2 * TRIM), 0, 1)
    line = np.maximum(s * s * (3 - 2 * s), 1e-4)  # never zero: at the canvas edge one window stands alone
    weights = np.outer(line, line).astype(np.float32)
    return replace(cover, patch=side, corners=cover.corners * factor, keep=cover.keep * factor, weights=weights)


def decode_windows(
    plan: LevelPlan, rank: int, read: Callable[[int], Tensor], decode: Callable[[Tensor], Tensor]
) -> dict[int, Tensor]:
    """Decode this rank's windows of a round, one at a time: float32 (c, side, side). Local."""
    with torch.inference_mode():
        return {w: decode(read(w)[None])[0].float().cpu() for w in plan.windows_of(rank)}


def to_uint8(pixels: Tensor) -> np.ndarray:
    """Pixels in [-1, 1] -> uint8, rounded to the nearest."""
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()


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
    after_round: Callable[[int, int], bool],
) -> bool:
    """Decode the remaining shards. Collective.

    Args:
        decode: (1, C, p, p) normalised latents -> (1, c, factor p, factor p) in [-1, 1].
        channels: of the image.
        write: stores one decoded shard, uint8 (c, h, w); called by the shard's one writer.
        after_round: (windows decoded in the round, windows still to come) -> whether to stop here.
    Returns:
        Whether all shards were written.
    """
    ranks, ownership = canvas.ranks, canvas.ownership
    cover = decode_cover(ownership.shape, patch, overlap)
    pixels = pixel_cover(cover, factor, overlap)
    plans = [plan_decode(cover, ownership, *turn) for turn in decode_rounds(remaining, ranks.size)]
    counts = [int(plan.costs.sum()) for plan in plans]
    for turn, plan in enumerate(plans):
        decoded = decode_windows(plan, ranks.rank, canvas.gather(plan), decode)
        shards = fuse(ranks, plan, decoded, channels, cover=pixels, scale=factor)
        ranks.agree(lambda shards=shards: [write(s, to_uint8(image)) for s, image in shards.items()])  # type: ignore[misc]
        if after_round(counts[turn], sum(counts[turn + 1 :])) and turn + 1 < len(plans):
            return False
    return True


def image_box(shard: Window, factor: int, size: tuple[int, int]) -> Window:
    """The pixels of a shard that lie in the image; empty where the canvas was padded."""
    return shard.scaled(factor) & Window(0, 0, *size)
