"""Latents -> pixels: window by window, blended where they overlap; in rounds of a shard a rank, decoded by all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.distributed.canvas import Canvas, Shards
from engine.distributed.exchange import Exchange
from engine.distributed.planner import Planner
from engine.distributed.ranks import Ranks
from engine.pipeline.background_task import BackgroundTask
from engine.planning.cover import Cover
from engine.planning.ownership import DecodeRounds
from engine.planning.plan import Plan, Planning, plan_decode


def to_uint8(pixels: Tensor, black_white: tuple[float, float] = (-1.0, 1.0)) -> np.ndarray:
    """Pixels as uint8, clipped and rounded to the nearest.

    Args:
        black_white: The values that become 0 and 255.
    """
    if black_white != (-1.0, 1.0):
        black, white = black_white
        pixels = (pixels - black) * (2 / (white - black)) - 1
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()


def to_label_levels(pixels: Tensor, count: int) -> np.ndarray:
    """A decoded label map as uint8 (1, h, w), with the labels spread evenly over 0 to 255.

    Where there is one channel a label, the largest channel is the label. Else each channel is rounded to the nearest
    label and the label is the mean of these, rounded, as published.

    Args:
        pixels: (c, h, w), about [-1, 1].
        count: Number of labels.
    """
    most = count - 1
    if len(pixels) == count:
        labels = pixels.argmax(0, keepdim=True)
    else:
        labels = (((pixels + 1) / 2).clamp(0, 1) * most).round().mean(0, keepdim=True).round().long()
    return (labels * 255 // most).to(torch.uint8).numpy()


class ShardWriter:
    """Writes shards in a thread of its own, while the next are decoded; at most one round's shards wait there.

    Args:
        write: Stores one decoded shard (c, h, w).
    """

    def __init__(self, ranks: Ranks, write: Callable[[int, Tensor], None]) -> None:
        self.write, self.task = write, BackgroundTask(ranks, "shards")

    def put(self, images: Shards) -> None:
        """Hand over decoded shards, when those before are written. Local."""

        def write() -> None:
            for shard, pixels in images.items():
                if not bool(torch.isfinite(pixels).all()):
                    raise ValueError(
                        f"the decoder made values that are not finite in shard {shard}; float16 overflows easily: "
                        "use `dtype` bfloat16 or float32; in float32 its weights are at fault"
                    )
                self.write(shard, pixels)

        self.task.start(write)

    def finish(self) -> None:
        """Wait until everything is written, or has failed. Local."""
        self.task.wait()

    def check(self) -> None:
        """Raise what went wrong in writing. Local."""
        self.task.check()


@dataclass(frozen=True)
class Decoder:
    """What makes pixels of a canvas's latents.

    Args:
        decode: From (1, C, p, p) normalised latents to (1, c, factor p, factor p) in [-1, 1].
        cover: The decoder's windows, in latents.
        pixels: The same windows in pixels, with their weights.
        factor: Pixels per latent.
        channels: Number of channels c of the image.
    """

    decode: Callable[[Tensor], Tensor]
    cover: Cover
    pixels: Cover
    factor: int
    channels: int


def decode_canvas(
    canvas: Canvas,
    decoder: Decoder,
    rounds: DecodeRounds,
    shard_writer: ShardWriter,
    before_round: Callable[[int], None],
    after_round: Callable[[], bool],
) -> bool:
    """Decode the remaining shards. Collective.

    Args:
        shard_writer: Takes the decoded shards (c, h, w), each from its one writer.
        before_round: Called with the number of windows that this rank decodes in the round.
        after_round: Called after every round; true stops.
    Returns:
        Whether all shards were decoded.
    """
    ranks, ownership, cover = canvas.ranks, canvas.ownership, decoder.cover
    kept: np.ndarray | None = None  # the windows of the round before

    def part(turn: int) -> Planning[Plan]:
        return plan_decode(ranks.rank, cover, ownership, rounds, turn, kept)

    planner = Planner(ranks, part, len(rounds))
    with ranks.background(planner.advance):
        decoded: dict[int, Tensor] = {}  # window_id -> pixels
        for turn in range(len(rounds)):
            plan = planner.take(turn)
            kept = plan.window_ids
            exchange = Exchange(canvas, plan, decoder.channels, scale=decoder.factor, device="cpu", turn=turn)
            exchange.start()
            planner.begin(turn + 1)
            before_round(len(plan))
            with ranks.computing("decode"), torch.inference_mode():
                # Windows at the edge of a shard are in the next round too: who decoded them has kept them.
                decoded = {window_id: image for window_id, image in decoded.items() if window_id in plan.window_ids}
                for slot, window_id in enumerate(plan.window_ids.tolist()):
                    latents = exchange.read([slot], 1, torch.float32).contiguous()  # always: it takes what others sent
                    if window_id not in decoded:
                        decoded[window_id] = decoder.decode(latents)[0].float().cpu()
                    exchange.put(slot, decoded[window_id])
                    ranks.progress()
            shard_writer.put(exchange.fuse(decoder.pixels))
            if after_round():
                return turn + 1 == len(rounds)
    return True


def write_pixels(
    canvas: Canvas,
    remaining: range | np.ndarray,
    shard_writer: ShardWriter,
    before_round: Callable[[int], None],
    after_round: Callable[[], bool],
) -> bool:
    """Write the remaining shards of a canvas of pixels, each by its owner, one a rank and round. Collective.

    Args:
        remaining: The shards that are still to be written.
    Other arguments and the result are those of ``decode_canvas``.
    """
    mine = np.intersect1d(np.asarray(remaining), np.asarray(canvas.ownership.owned(canvas.ranks.rank))).tolist()
    rounds = max(canvas.ranks.allgather(len(mine)))
    for turn in range(rounds):
        before_round(0)
        shard_writer.put({shard: canvas.x[shard].float().cpu() for shard in mine[turn : turn + 1]})
        if after_round():
            return turn + 1 == rounds
    return True
