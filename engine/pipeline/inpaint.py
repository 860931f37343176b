"""In-painting: what is known of the image is kept, noised to each level, and the rest is sampled around it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from engine.distributed.canvas import Canvas
from engine.distributed.exchange import Exchange
from engine.distributed.planner import Planner
from engine.inputs.masks import latents_with_any
from engine.pipeline.level_plans import decode_covers
from engine.pipeline.prepared import Prepared
from engine.planning.cover import Lattice, Taper
from engine.planning.geometry import Window
from engine.planning.ownership import DecodeRounds
from engine.planning.plan import plan_decode

SOFT_PX = 16  # width of the mask's soft edge, inside the mask


class Inpainting:
    """The known image and the mask, as this rank needs them."""

    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared
        self.known = prepared.inputs.files["image"].array
        self.mask = prepared.inputs.files["mask"].array

    def fill(self, canvas: Canvas, encode: Callable[[Tensor], Tensor] | None) -> None:
        """Give the canvas what is known of it, and the mask of what is not. Collective.

        Args:
            encode: image (1, c, h, w) in [-1, 1] -> normalised latents; None: they are pixels.
        """
        ownership, ranks = canvas.ownership, canvas.ranks
        if encode is None:
            canvas.known = {s: self.image(ownership.shard(s)) for s in ownership.owned(ranks.rank)}
        else:
            self.encode_known(canvas, encode)
        canvas.known_gain = self.prepared.card.latents_gain if encode else 1.0
        canvas.known = {s: known.to(canvas.device) for s, known in canvas.known.items()}
        for shard in ownership.owned(ranks.rank):
            mask = torch.from_numpy(self.unknown_latents(ownership.shard(shard)))
            canvas.unknown[shard] = mask.to(canvas.device)

    def encode_known(self, canvas: Canvas, encode: Callable[[Tensor], Tensor]) -> None:
        """Encode the known image in the decoder's windows, shared by all ranks. Collective."""
        ownership, ranks, factor = canvas.ownership, canvas.ranks, self.prepared.card.factor
        cover, pixels = decode_covers(self.prepared)
        assert isinstance(cover, Lattice)
        assert isinstance(pixels, Lattice)
        weighted = replace(cover, taper=latent_taper(pixels.taper, factor))
        rounds = DecodeRounds(range(ownership.count), ranks.size)  # every shard by its owner
        planner = Planner(ranks, lambda turn, _: plan_decode(ranks.rank, cover, ownership, rounds, turn))
        for turn in range(len(rounds)):
            plan = planner.take(turn)
            exchange = Exchange(canvas, plan, canvas.channels, device="cpu", reads=False, turn=turn)
            with torch.inference_mode():
                for place in range(len(plan)):
                    image = self.image(plan.box(place).scaled(factor))
                    exchange.put(place, encode(image[None])[0].float().cpu())
            canvas.known |= exchange.fuse(weighted)
        planner.end()

    def image(self, box: Window) -> Tensor:
        """The known image in a box, as the model has it; beyond its edge the edge is repeated."""
        part = edge_repeated(self.known, box)
        black, white = self.prepared.card.pixel_range
        return torch.from_numpy(part.astype(np.float32) * ((white - black) / 255) + black)

    def unknown_latents(self, shard: Window) -> np.ndarray:
        """bool (h, w): the latents that hold any pixel of the mask; none beyond the image's edge."""
        found = np.zeros(shard.shape, bool)
        latents = latents_with_any(self.mask, shard.scaled(self.prepared.card.factor), self.prepared.card.factor)
        found[: latents.shape[0], : latents.shape[1]] = latents
        return found

    def blend(self, box: Window, image: np.ndarray) -> np.ndarray:
        """Put the known pixels back outside the mask, exactly, and over its soft edge in part.

        Args:
            image: uint8 (c, h, w), sampled, of the box.
        """
        known = np.asarray(self.known[:, box.y0 : box.y1, box.x0 : box.x1])
        share = self.share(box)
        mixed = np.round(known * (1 - share) + image * share).astype(np.uint8)
        return np.where(share == 0, known, np.where(share == 1, image, mixed))

    def share(self, box: Window) -> np.ndarray:
        """float32 (h, w): how much the sampled image counts: 0 outside the mask, rising to 1 inside it.

        A function of position: the mean of the mask over a square, less a half, doubled.
        """
        around = Window(box.y0 - SOFT_PX, box.x0 - SOFT_PX, box.y1 + SOFT_PX, box.x1 + SOFT_PX)
        mask = edge_repeated(self.mask, around) != 0
        sums = np.pad(mask.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        side = 2 * SOFT_PX + 1
        total = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
        inside = mask[SOFT_PX:-SOFT_PX, SOFT_PX:-SOFT_PX]
        return np.where(inside, np.clip(2 * total / side**2 - 1, 0, 1), 0).astype(np.float32)


def edge_repeated(array: np.ndarray, box: Window) -> np.ndarray:
    """A box of (..., H, W), which may reach beyond it: there the edge is repeated."""
    ends = zip((box.y0, box.x0), (box.y1, box.x1), array.shape[-2:], strict=True)
    rows, columns = (np.clip(np.arange(start, stop), 0, n - 1) for start, stop, n in ends)
    part = np.asarray(array[..., rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    return part[..., rows - rows[0], :][..., columns - columns[0]]


def latent_taper(taper: Taper | None, factor: int) -> Taper:
    """The weights of decoded windows at the middle of each latent."""
    assert taper is not None
    lines = (taper.base, taper.ramp_in, taper.ramp_out)
    base, ramp_in, ramp_out = (None if line is None else line[factor // 2 :: factor] for line in lines)
    assert base is not None
    return Taper(base, ramp_in, ramp_out)
