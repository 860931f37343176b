"""The known image of an in-painting or a variation, as latents of the canvas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from engine.distributed.canvas import Canvas, Shards
from engine.distributed.exchange import Exchange
from engine.distributed.planner import Planner
from engine.pipeline.level_plans import decode_covers
from engine.pipeline.prepared import Prepared
from engine.planning.cover import Lattice, Taper
from engine.planning.geometry import Box
from engine.planning.ownership import DecodeRounds
from engine.planning.plan import plan_decode


class KnownImage:
    """The known image, read box by box."""

    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared
        self.image = prepared.inputs.files["image"].array

    def latents(self, canvas: Canvas, encode: Callable[[Tensor], Tensor] | None) -> Shards:
        """The normalised latents of the image on this rank's shards. Collective.

        Args:
            encode: From the image (1, c, h, w) in [-1, 1] to normalised latents; None: the canvas holds pixels.
        """
        if encode is not None:
            return self.encoded(canvas, encode)
        ownership = canvas.ownership
        return {s: self.model_pixels(ownership.shard(s)) for s in ownership.owned(canvas.ranks.rank)}

    def encoded(self, canvas: Canvas, encode: Callable[[Tensor], Tensor]) -> Shards:
        """The latents of the known image on this rank's shards, encoded in the decoder's windows. Collective.

        The ranks share the windows as they do when they decode: in each round those around every rank's next shard.
        """
        ownership, ranks, factor = canvas.ownership, canvas.ranks, self.prepared.card.factor
        cover, pixels = decode_covers(self.prepared)
        assert isinstance(cover, Lattice)
        assert isinstance(pixels, Lattice)
        weighted = replace(cover, taper=latent_taper(pixels.taper, factor))
        rounds = DecodeRounds(range(ownership.count), ranks.size)  # every shard by its owner
        planner = Planner(ranks, lambda turn: plan_decode(ranks.rank, cover, ownership, rounds, turn), len(rounds))
        latents: Shards = {}
        for turn in range(len(rounds)):
            plan = planner.take(turn)
            exchange = Exchange(canvas, plan, canvas.channels, device="cpu", reads=False, turn=turn)
            exchange.start()
            with torch.inference_mode():
                for slot in range(len(plan)):
                    image = self.model_pixels(plan.box(slot).scaled(factor))
                    exchange.put(slot, encode(image[None])[0].float().cpu())
            latents |= exchange.fuse(weighted)
        return latents

    def model_pixels(self, box: Box) -> Tensor:
        """float32 (c, h, w): the known image in a box, in the model's range; beyond its edge the edge is repeated."""
        part = edge_repeated(self.image, box)
        black, white = self.prepared.card.pixel_range
        return torch.from_numpy(part.astype(np.float32) * ((white - black) / 255) + black)


def edge_repeated(array: np.ndarray, box: Box) -> np.ndarray:
    """A box of an array (..., H, W); where it reaches beyond the array the edge is repeated."""
    ends = zip((box.y0, box.x0), (box.y1, box.x1), array.shape[-2:], strict=True)
    rows, columns = (np.clip(np.arange(start, stop), 0, n - 1) for start, stop, n in ends)
    part = np.asarray(array[..., rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    return part[..., rows - rows[0], :][..., columns - columns[0]]


def latent_taper(taper: Taper | None, factor: int) -> Taper:
    """The weights of windows in pixels, taken at the middle of each latent."""
    assert taper is not None
    sides = (taper.base, taper.ramp_in, taper.ramp_out)
    base, ramp_in, ramp_out = (None if side is None else side[factor // 2 :: factor] for side in sides)
    assert base is not None
    return Taper(base, ramp_in, ramp_out)
