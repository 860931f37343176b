"""``kernels.gather`` in Triton: one program copies a block of latents, all channels, to one place of the batch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.tiles import EXACT

LATENTS = 256  # latents that one program copies


def gather_into(out: Tensor, canvas: Tensor, corners: Tensor) -> None:
    """Fill ``out`` (B, C, p, p), of any strides, from windows at ``corners`` (n, 2) of the canvas."""
    assert canvas.is_contiguous()
    batch, channels, patch, _ = out.shape
    blocks = triton.cdiv(patch * patch, LATENTS)
    on_device = corners.to(canvas.device, non_blocking=True)
    with torch.cuda.device_of(canvas):
        gather_kernel[(batch * blocks,)](
            out, canvas, on_device, len(corners), channels, *canvas.shape[1:], *out.stride(),
            PATCH=patch, CHANNELS=triton.next_power_of_2(channels), LATENTS=LATENTS, **EXACT,
        )  # fmt: skip


@triton.jit
def gather_kernel(
    out, canvas, corners, windows, channels, height, width, stride_b, stride_c, stride_y, stride_x,
    PATCH: tl.constexpr, CHANNELS: tl.constexpr, LATENTS: tl.constexpr,
):  # fmt: skip
    blocks: tl.constexpr = (PATCH * PATCH + LATENTS - 1) // LATENTS
    place = tl.program_id(0) // blocks
    window = tl.minimum(place, windows - 1)
    pixel = (tl.program_id(0) % blocks) * LATENTS + tl.arange(0, LATENTS)[None, :]
    channel = tl.arange(0, CHANNELS)[:, None]
    mask = (channel < channels) & (pixel < PATCH * PATCH)
    y, x = pixel // PATCH, pixel % PATCH
    row = tl.minimum(tl.maximum(tl.load(corners + window * 2) + y, 0), height - 1)
    column = tl.minimum(tl.maximum(tl.load(corners + window * 2 + 1) + x, 0), width - 1)
    value = tl.load(canvas + (channel.to(tl.int64) * height + row) * width + column, mask)
    to = out + place.to(tl.int64) * stride_b + channel * stride_c + y * stride_y + x * stride_x
    tl.store(to, cast(value, out.dtype.element_ty), mask)


@triton.jit
def cast(value, dtype: tl.constexpr):
    """Round to nearest even, as torch does; to bfloat16 in integers, because the interpreter's own cast truncates."""
    if dtype == tl.bfloat16:
        bits = value.to(tl.uint32, bitcast=True)
        rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).to(tl.uint16)
        return tl.where(value == value, rounded, 0x7FC0).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return value.to(dtype)
