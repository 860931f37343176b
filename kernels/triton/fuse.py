"""``kernels.fuse`` in Triton: one program for a tile, which loops over the windows that touch it, in their order."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.tiles import EXACT, tile_shape, tiles
from kernels.values import Lines, Weights, Winner

ELEMENTS = 1024  # channels times latents of one program


def windows_of_tiles(keep: Tensor, shape: tuple[int, int], tile: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Which windows are used in each tile of a field.

    Args:
        keep: int64 (n, 4), positions within the field.
    Returns:
        starts, items: int64; tile t is touched by ``items[starts[t] : starts[t + 1]]``, ascending.
    """
    down, across = tiles(*shape, tile)
    inside = keep.clamp(min=0).minimum(torch.tensor(shape).repeat(2))
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


def fuse_into(out: Tensor, estimates: Tensor, corners: Tensor, keep: Tensor, weights: Weights) -> None:
    """Fill ``out`` (C, h, w); positions are within it."""
    assert estimates.is_contiguous()
    assert out.is_contiguous()
    channels, height, width = out.shape
    block = triton.next_power_of_2(channels)
    tile = tile_shape(height, width, max(ELEMENTS // block, 32))
    down, across = tiles(height, width, tile)
    starts, items = windows_of_tiles(keep, (height, width), tile)
    lines = weights if isinstance(weights, Lines) else None
    winner = weights if isinstance(weights, Winner) else None
    facts = torch.cat([corners, keep, lines.which] if lines else [corners, keep], 1).contiguous()
    with torch.cuda.device_of(out):
        fuse_kernel[(down * across,)](
            out, estimates, *(part.to(out.device, non_blocking=True) for part in (facts, starts, items)),
            lines.rows.contiguous() if lines else None,
            lines.columns.contiguous() if lines else None,
            winner.field.contiguous() if winner else None,
            winner.number.to(out.device, non_blocking=True) if winner else None,
            channels, height, width, across, estimates.shape[-1],
            FACTS=facts.shape[1], LINES=lines is not None, WINNER=winner is not None,
            CHANNELS=block, BY=tile[0], BX=tile[1], **EXACT,
        )  # fmt: skip


@triton.jit
def fuse_kernel(
    out, estimates, facts, starts, items, lines_y, lines_x, field, number, channels, height, width, across, patch,
    FACTS: tl.constexpr, LINES: tl.constexpr, WINNER: tl.constexpr,
    CHANNELS: tl.constexpr, BY: tl.constexpr, BX: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    latent = tl.arange(0, BY * BX)[None, :]
    row = (tile // across).to(tl.int64) * BY + latent // BX
    column = (tile % across).to(tl.int64) * BX + latent % BX
    real = (row < height) & (column < width)
    channel = tl.arange(0, CHANNELS)[:, None]
    total = tl.zeros((CHANNELS, BY * BX), tl.float32)
    weight_sum = tl.zeros((1, BY * BX), tl.float32)
    if WINNER:
        owner = tl.load(field + row * width + column, real, -1)
    for i in range(tl.load(starts + tile), tl.load(starts + tile + 1)):
        n = tl.load(items + i)
        fact = facts + n * FACTS
        y, x = row - tl.load(fact), column - tl.load(fact + 1)
        used = real & (row >= tl.load(fact + 2)) & (column >= tl.load(fact + 3))
        used = used & (row < tl.load(fact + 4)) & (column < tl.load(fact + 5))
        if WINNER:
            used = used & (owner == tl.load(number + n))
        weight = used.to(tl.float32)
        if LINES:
            weight = tl.load(lines_y + tl.load(fact + 6) * patch + y, used, 0.0)
            weight = weight * tl.load(lines_x + tl.load(fact + 7) * patch + x, used, 0.0)
        at = estimates + ((n * channels + channel) * patch + y) * patch + x
        estimate = tl.load(at, used & (channel < channels), 0.0).to(tl.float32)
        total = total + estimate * weight
        weight_sum = weight_sum + weight
    mean = tl.div_rn(total, weight_sum + (weight_sum == 0.0).to(tl.float32))
    tl.store(out + (channel * height + row) * width + column, mean, real & (channel < channels))
