"""Which version of a kernel runs: Triton on CUDA tensors where it can be imported, else plain torch."""

from __future__ import annotations

import importlib.util
from functools import cache

import torch


@cache
def has_triton() -> bool:
    """Whether Triton can be imported; tells without importing it.

    CUDA builds of torch bring it; at its first use it compiles a launcher, for which it needs a C compiler.
    """
    return importlib.util.find_spec("triton") is not None


def use_triton(device: torch.device | str) -> bool:
    return torch.device(device).type == "cuda" and has_triton()
