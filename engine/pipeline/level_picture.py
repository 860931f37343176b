"""A small picture of what a run has so far: the present estimate of the clean image."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from engine.distributed.canvas import Canvas
from engine.pipeline.decode import to_uint8
from engine.pipeline.prepared import Prepared
from engine.planning.geometry import Box

LONGEST_SIDE = 512  # px a side


def estimated_picture(canvas: Canvas, prepared: Prepared, decode: Callable[[Tensor], Tensor] | None) -> np.ndarray:
    """The present estimate, uint8 (h, w, 3), the same on every rank; of a set, its first image. Collective.

    A canvas that would make more than 512 px a side is thinned: every n-th latent is decoded.

    Args:
        canvas: Keeps its estimates (``keeps_estimate``) and is past its first level.
        decode: From normalised latents (1, C, h, w) to pixels (1, c, ...); None: the canvas holds pixels.
    """
    card, frame = prepared.card, Box(0, 0, *prepared.frames.frame)
    step = -(-max(frame.shape) * card.factor // LONGEST_SIDE)
    pieces = []
    for shard, estimate in canvas.estimate.items():
        box = canvas.ownership.shard(shard)
        if common := box & frame:
            rows, columns = (np.arange(-(-low // step) * step, high, step) for low, high in sides(common))
            if len(rows) and len(columns):
                part = estimate[:, rows[0] - box.y0 : common.y1 - box.y0 : step]
                part = part[:, :, columns[0] - box.x0 : common.x1 - box.x0 : step]
                pieces.append((int(rows[0]) // step, int(columns[0]) // step, part.float().cpu().numpy()))
    height, width = (-(-n // step) for n in frame.shape)
    latents = torch.zeros(1, canvas.channels, height, width)
    for y, x, values in (piece for of_rank in canvas.ranks.allgather(pieces) for piece in of_rank):
        latents[0, :, y : y + values.shape[1], x : x + values.shape[2]] = torch.from_numpy(values)
    with torch.inference_mode():
        pixels = latents if decode is None else decode((latents * card.latents_gain).to(canvas.device)).float().cpu()
    image = to_uint8(pixels[0], card.pixel_range).transpose(1, 2, 0)
    image = image[: -(-prepared.job.size[0] // step), : -(-prepared.job.size[1] // step)]
    colors = image[..., :3] if image.shape[2] >= 3 else image[..., :1].repeat(3, axis=2)
    return np.ascontiguousarray(colors)


def sides(box: Box) -> tuple[tuple[int, int], tuple[int, int]]:
    """Where a box begins and ends, along rows and along columns."""
    return (box.y0, box.y1), (box.x0, box.x1)
