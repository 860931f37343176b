"""In-painting: what is known of the image is kept, noised to each level, and the rest is sampled around it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from engine.distributed.canvas import Canvas, Known
from engine.inputs.masks import latents_with_any
from engine.pipeline.known_image import KnownImage, edge_repeated
from engine.pipeline.prepared import Prepared
from engine.planning.geometry import Box

SOFT_PX = 16  # width of the soft edge of the mask, which lies inside it


class Inpainting(KnownImage):
    """The known image and the mask, read box by box."""

    def __init__(self, prepared: Prepared) -> None:
        super().__init__(prepared)
        self.mask = prepared.inputs.files["mask"].array

    def known(self, canvas: Canvas, encode: Callable[[Tensor], Tensor] | None) -> Known:
        """What is known of this rank's shards of a canvas. Collective.

        Args:
            encode: From the image (1, c, h, w) in [-1, 1] to normalised latents; None: the canvas holds pixels.
        """
        card, ownership, device = self.prepared.card, canvas.ownership, canvas.device
        latents = self.latents(canvas, encode)
        unknown = {s: torch.from_numpy(self.unknown_latents(ownership.shard(s))).to(device) for s in latents}
        return Known(
            {s: known.to(device) for s, known in latents.items()},
            unknown,
            card.schedule.alpha_bars(self.prepared.timesteps),
            card.latents_gain if encode else 1.0,
        )

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
