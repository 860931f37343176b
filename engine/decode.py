"""Latents -> pixels: window by window with overlap weights, shard by shard, in rounds over all ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from engine.canvas import Canvas, Shards, fuse
from engine.cover import Cover
from engine.plan import LevelPlan, decode_rounds, plan_decode


def decode_windows(
    plan: LevelPlan, rank: int, read: Callable[[int], Tensor], decode: Callable[[Tensor], Tensor]
) -> dict[int, Tensor]:
    """Decode this rank's windows of a round, one at a time: float32 (c, side, side). Local."""
    with torch.inference_mode():
        return {w: decode(read(w)[None])[0].float().cpu() for w in plan.windows_of(rank)}


def to_uint8(pixels: Tensor, black_white: tuple[float, float] = (-1.0, 1.0)) -> np.ndarray:
    """Pixels -> uint8, clipped and rounded to the nearest.

    Args:
        black_white: the values that become 0 and 255.
    """
    if black_white != (-1.0, 1.0):
        black, white = black_white
        pixels = (pixels - black) * (2 / (white - black)) - 1
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()


def to_label_levels(pixels: Tensor, count: int) -> np.ndarray:
    """A decoded label map as uint8 (1, h, w): labels spread over 0 to 255.

    Of a model with one channel a label the label is the largest; of others the mean of the channels' nearest labels,
    as published.

    Args:
        pixels: (c, h, w), about [-1, 1].
        count: how many labels there are.
    """
    most = count - 1
    if len(pixels) == count:
        labels = pixels.argmax(0, keepdim=True)
    else:
        labels = (((pixels + 1) / 2).clamp(0, 1) * most).round().mean(0, keepdim=True).round().long()
    return (labels * 255 // most).to(torch.uint8).numpy()


def write_all(images: Shards, write: Callable[[int, Tensor], None]) -> None:
    for shard, pixels in images.items():
        write(shard, pixels)


def decode_canvas(
    canvas: Canvas,
    decode: Callable[[Tensor], Tensor],
    *,
    cover: Cover,
    pixels: Cover,
    factor: int,
    channels: int,
    remaining: Sequence[int],
    write: Callable[[int, Tensor], None],
    after_round: Callable[[int], bool],
) -> bool:
    """Decode the remaining shards. Collective.

    Args:
        decode: (1, C, p, p) normalised latents -> (1, c, factor p, factor p) in [-1, 1].
        cover, pixels: the decoder's windows, in latents, and with their weights in pixels.
        channels: of the image.
        write: stores one decoded shard (c, h, w); called by the shard's one writer.
        after_round: windows decoded in the round -> whether to stop here.
    Returns:
        Whether all shards were written.
    """
    ranks, ownership = canvas.ranks, canvas.ownership
    rounds = decode_rounds(remaining, ranks.size)
    for turn, (shards, writers) in enumerate(rounds):
        plan = plan_decode(cover, ownership, shards, writers)
        with ranks.timer("decode"):
            decoded = decode_windows(plan, ranks.rank, canvas.gather(plan), decode)
        with ranks.timer("fuse"):
            images = fuse(ranks, plan, decoded, channels, cover=pixels, scale=factor)
        with ranks.timer("store"):
            ranks.agree(partial(write_all, images, write))
        if after_round(int(plan.costs.sum())) and turn + 1 < len(rounds):
            return False
    return True


def write_pixels(
    canvas: Canvas,
    remaining: Sequence[int],
    write: Callable[[int, Tensor], None],
    after_round: Callable[[int], bool],
) -> bool:
    """Write the remaining shards of a canvas of pixels, each by its owner, one a rank and round. Collective.

    Args and returns are those of ``decode_canvas``.
    """
    mine = [shard for shard in remaining if canvas.ownership.owner[shard] == canvas.ranks.rank]
    rounds = max(canvas.ranks.collect(len(mine)))
    for turn in range(rounds):
        images = {shard: canvas.x[shard].float().cpu() for shard in mine[turn : turn + 1]}
        canvas.ranks.agree(partial(write_all, images, write))
        if after_round(0) and turn + 1 < rounds:
            return False
    return True
