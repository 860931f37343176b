"""Latents -> pixels: window by window with overlap weights, shard by shard, in rounds over all ranks."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from engine.distributed.canvas import Canvas, Shards
from engine.distributed.exchange import Exchange
from engine.distributed.planner import Planner
from engine.distributed.ranks import Ranks
from engine.planning.cover import Cover
from engine.planning.ownership import DecodeRounds
from engine.planning.plan import plan_decode


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


class ShardWriter:
    """Writes shards in a thread of its own, while the next are decoded; at most one round waits there.

    Args:
        write: stores one decoded shard (c, h, w).
    """

    def __init__(self, ranks: Ranks, write: Callable[[int, Tensor], None]) -> None:
        self.ranks, self.write = ranks, write
        self.pool = ThreadPoolExecutor(1, "shards")
        self.writing: Future[None] | None = None
        self.problem: BaseException | None = None

    def put(self, images: Shards) -> None:
        """Hand over decoded shards, when those before are written. Local."""
        self.empty()

        def write() -> None:
            for shard, pixels in images.items():
                if not bool(torch.isfinite(pixels).all()):
                    raise ValueError(
                        f"the decoder made values that are not finite in shard {shard}; float16 overflows easily: "
                        "use `dtype` bfloat16 or float32; in float32 its weights are at fault"
                    )
                self.write(shard, pixels)

        self.writing = self.pool.submit(write)

    def empty(self) -> None:
        """Wait until everything is written, or has failed. Local."""
        if self.writing is not None:
            with self.ranks.timer("store"):
                self.ranks.wait_until(self.writing.done)
            self.problem = self.problem or self.writing.exception()
            self.writing = None

    def check(self) -> None:
        """Raise what went wrong in writing. Local."""
        if self.problem is not None:
            raise self.problem


def decode_canvas(
    canvas: Canvas,
    decode: Callable[[Tensor], Tensor],
    *,
    cover: Cover,
    pixels: Cover,
    factor: int,
    channels: int,
    rounds: DecodeRounds,
    shard_writer: ShardWriter,
    before_round: Callable[[int], None],
    after_round: Callable[[], bool],
) -> bool:
    """Decode the remaining shards. Collective.

    Args:
        decode: (1, C, p, p) normalised latents -> (1, c, factor p, factor p) in [-1, 1].
        cover, pixels: the decoder's windows, in latents, and with their weights in pixels.
        channels: of the image.
        shard_writer: takes the decoded shards (c, h, w), each from its one writer.
        before_round: is told how many windows this rank decodes in the round.
        after_round: whether to stop here.
    Returns:
        Whether all shards were decoded.
    """
    ranks, ownership = canvas.ranks, canvas.ownership
    planner = Planner(ranks, lambda turn, _: plan_decode(ranks.rank, cover, ownership, rounds, turn))
    kept: dict[int, Tensor] = {}  # windows of the round before: some are of this one too
    for turn in range(len(rounds)):
        with ranks.timer("plan"):
            plan = planner.take(turn)
        with ranks.timer("exchange"):
            exchange = Exchange(canvas, plan, channels, scale=factor, device="cpu", turn=turn)
        if turn + 1 < len(rounds):
            planner.begin(turn + 1)
        before_round(len(plan))
        with ranks.timer("decode"), ranks.progress_in_background(), torch.inference_mode():
            kept = {index: image for index, image in kept.items() if index in plan.ids}
            for place, index in enumerate(plan.ids.tolist()):
                latents = exchange.read([place], 1, torch.float32).contiguous()  # always: it takes what others sent
                if index not in kept:
                    kept[index] = decode(latents)[0].float().cpu()
                exchange.put(place, kept[index])
                ranks.progress()
        with ranks.timer("fuse"):
            images = exchange.fuse(pixels)
        shard_writer.put(images)
        if after_round() and turn + 1 < len(rounds):
            planner.end()
            return False
    planner.end()
    return True


def write_pixels(
    canvas: Canvas,
    remaining: range | np.ndarray,
    shard_writer: ShardWriter,
    before_round: Callable[[int], None],
    after_round: Callable[[], bool],
) -> bool:
    """Write the remaining shards of a canvas of pixels, each by its owner, one a rank and round. Collective.

    Args and returns are those of ``decode_canvas``.
    """
    mine = np.intersect1d(np.asarray(remaining), np.asarray(canvas.ownership.owned(canvas.ranks.rank))).tolist()
    rounds = max(canvas.ranks.allgather(len(mine)))
    for turn in range(rounds):
        before_round(0)
        shard_writer.put({shard: canvas.x[shard].float().cpu() for shard in mine[turn : turn + 1]})
        if after_round() and turn + 1 < rounds:
            return False
    return True
