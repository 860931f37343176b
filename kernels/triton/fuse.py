"""``kernels.fuse`` in Triton: one program fuses one tile and loops over the windows that overlap it, in their order."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.tiles import EXACT, tile_shape, tiles
from kernels.values import SeparableWeights, Weights, WinnerMap

ELEMENTS = 1024  # channels times latents that one program fuses


def windows_of_tiles(used: Tensor, shape: tuple[int, int], tile: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The windows that are used in each tile of a field.

    Args:
        used: Box (y0, x0, y1, x1) of the field that each window is used in, int64 (n, 4).
        shape: Rows and columns of the field.
        tile: Rows and columns of a tile.
    Returns:
        starts, items: int64; windows ``items[starts[t] : starts[t + 1]]``, ascending, are used in tile t.
    """
    down, across = tiles(*shape, tile)
    inside = used.clamp(min=0).minimum(torch.tensor(shape).repeat(2))
    some = torch.nonzero((inside[:, 2:] > inside[:, :2]).all(1))[:, 0]
    sides = torch.tensor(tile)
    first, last = inside[some, :2] // sides, (inside[some, 2:] - 1) // sides
    spans = last - first + 1
    counts = spans.prod(1)
    entry = torch.arange(len(some)).repeat_interleave(counts)
    rank = torch.arange(len(entry)) - (counts.cumsum(0) - counts)[entry]
    row, column = first[entry, 0] + rank // spans[entry, 1], first[entry, 1] + rank % spans[entry, 1]
    touched, order = torch.sort(row * across + column, stable=True)
    return torch.searchsorted(touched, torch.arange(down * across + 1)), some[entry[order]]


def fuse_into(out: Tensor, estimates: Tensor, corners: Tensor, used: Tensor, weights: Weights) -> None:
    """Fill ``out`` (C, h, w), whose corner is (0, 0) of all positions."""
    assert estimates.is_contiguous()
    assert out.is_contiguous()
    channels, height, width = out.shape
    block = triton.next_power_of_2(channels)
    tile = tile_shape(height, width, max(ELEMENTS // block, 32))
    down, across = tiles(height, width, tile)
    starts, items = windows_of_tiles(used, (height, width), tile)
    lines = weights if isinstance(weights, SeparableWeights) else None
    winner_map = weights if isinstance(weights, WinnerMap) else None
    boxes = torch.cat([corners, used], 1)
    with torch.cuda.device_of(out):
        fuse_kernel[(down * across,)](
            out, estimates, *(part.to(out.device, non_blocking=True) for part in (boxes, starts, items)),
            lines.rows.contiguous() if lines else None,
            lines.columns.contiguous() if lines else None,
            winner_map.winner.contiguous() if winner_map else None,
            channels, height, width, across, estimates.shape[-1],
            SEPARABLE=lines is not None, WINNER=winner_map is not None,
            CHANNELS=block, BY=tile[0], BX=tile[1], **EXACT,
        )  # fmt: skip


@triton.jit
def fuse_kernel(
    out, estimates, boxes, starts, items, rows, columns, winner, channels, height, width, across, patch,
    SEPARABLE: tl.constexpr, WINNER: tl.constexpr,
    CHANNELS: tl.constexpr, BY: tl.constexpr, BX: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    latent = tl.arange(0, BY * BX)[None, :]
    row = (tile // across).to(tl.int64) * BY + latent // BX
    column = (tile % across).to(tl.int64) * BX + latent % BX
    inside = (row < height) & (column < width)
    channel = tl.arange(0, CHANNELS)[:, None]
    total = tl.zeros((CHANNELS, BY * BX), tl.float32)
    weight_sum = tl.zeros((1, BY * BX), tl.float32)
    if WINNER:
        owner = tl.load(winner + row * width + column, inside, -1)
    for i in range(tl.load(starts + tile), tl.load(starts + tile + 1)):
        n = tl.load(items + i)
        box = boxes + n * 6  # y0, x0 of the window; y0, x0, y1, x1 of the part that is used
        y, x = row - tl.load(box), column - tl.load(box + 1)
        used = inside & (row >= tl.load(box + 2)) & (column >= tl.load(box + 3))
        used = used & (row < tl.load(box + 4)) & (column < tl.load(box + 5))
        if WINNER:
            used = used & (owner == n)
        weight = used.to(tl.float32)
        if SEPARABLE:
            weight = tl.load(rows + n * patch + y, used, 0.0) * tl.load(columns + n * patch + x, used, 0.0)
        at = estimates + ((n * channels + channel) * patch + y) * patch + x
        estimate = tl.load(at, used & (channel < channels), 0.0).to(tl.float32)
        total = total + estimate * weight
        weight_sum = weight_sum + weight
    mean = tl.div_rn(total, weight_sum + (weight_sum == 0.0).to(tl.float32))
    tl.store(out + (channel * height + row) * width + column, mean, inside & (channel < channels))
