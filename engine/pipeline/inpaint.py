"""In-painting: what is known of the image is kept, noised to each level, and the rest is sampled around it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from engine.distributed.canvas import Canvas, Known, Shards
from engine.distributed.exchange import Exchange
from engine.distributed.planner import Planner
from engine.inputs.masks import latents_with_any
from engine.pipeline.level_plans import decode_covers
from engine.pipeline.prepared import Prepared
from engine.planning.cover import Lattice, Taper
from engine.planning.geometry import Box
from engine.planning.ownership import DecodeRounds
from engine.planning.plan import plan_decode

SOFT_PX = 16  # width of the soft edge of the mask, which lies inside it


class Inpainting:
    """The known image and the mask, read box by box."""

    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared
        self.image = prepared.inputs.files["image"].array
        self.mask = prepared.inputs.files["mask"].array

    def known(self, canvas: Canvas, encode: Callable[[Tensor], Tensor] | None) -> Known:
        """What is known of this rank's shards of a canvas. Collective.

        Args:
            encode: From the image (1, c, h, w) in [-1, 1] to normalised latents; None: the canvas holds pixels.
        """
        card, ownership, device = self.prepared.card, canvas.ownership, canvas.device
        owned = ownership.owned(canvas.ranks.rank)
        if encode is None:
            latents = {s: self.model_pixels(ownership.shard(s)) for s in owned}
        else:
            latents = self.encoded(canvas, encode)
        unknown = {s: torch.from_numpy(self.unknown_latents(ownership.shard(s))).to(device) for s in owned}
        return Known(
            {s: known.to(device) for s, known in latents.items()},
            unknown,
            card.schedule.alpha_bars(self.prepared.timesteps),
            card.latents_gain if encode else 1.0,
        )

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

    def unknown_latents(self, shard: Box) -> np.ndarray:
        """bool (h, w): the latents that hold any pixel of the mask; none beyond the image's edge."""
        unknown = np.zeros(shard.shape, bool)
        latents = latents_with_any(self.mask, shard.scaled(self.prepared.card.factor), self.prepared.card.factor)
        unknown[: latents.shape[0], : latents.shape[1]] = latents
        return unknown

    def blend(self, box: Box, image: np.ndarray) -> np.ndarray:
        """A sampled box with the known pixels put back: outside the mask exactly, over its soft edge in part.

        Args:
            image: uint8 (c, h, w), the box as it was sampled.
        """
        known = np.asarray(self.image[:, box.y0 : box.y1, box.x0 : box.x1])
        opacity = self.opacity(box)
        mixed = np.round(known * (1 - opacity) + image * opacity).astype(np.uint8)
        return np.where(opacity == 0, known, np.where(opacity == 1, image, mixed))

    def opacity(self, box: Box) -> np.ndarray:
        """float32 (h, w): the weight of the sampled image, 0 outside the mask, rising to 1 inside it.

        It is a function of position: 2 m - 1, with m the mean of the mask over a square around the pixel.
        """
        around = Box(box.y0 - SOFT_PX, box.x0 - SOFT_PX, box.y1 + SOFT_PX, box.x1 + SOFT_PX)
        mask = edge_repeated(self.mask, around) != 0
        sums = np.pad(mask.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        side = 2 * SOFT_PX + 1
        total = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
        inside = mask[SOFT_PX:-SOFT_PX, SOFT_PX:-SOFT_PX]
        return np.where(inside, np.clip(2 * total / side**2 - 1, 0, 1), 0).astype(np.float32)


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
