"""Noise of a field, drawn by the Triton kernel on CUDA and by torch elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.device import use_triton
from kernels.philox import standard_normal
from kernels.values import Field


def draw(field: Field, channels: int, height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """Noise of the box whose corner the field names: float32 (channels, height, width).

    Triton draws it on CUDA, ``standard_normal`` elsewhere: the same bits.
    """
    if use_triton(device):
        from kernels.triton.philox import draw_into

        out = torch.empty(channels, height, width, device=device)
        draw_into(out, field)
        return out
    box = (field.y0, field.x0, field.y0 + height, field.x0 + width)
    return standard_normal(field.seed, field.purpose, field.level, box, channels, device)
