"""Which version of a kernel runs: Triton on CUDA tensors where it can be imported, else plain torch."""

from __future__ import annotations

import importlib.util
from functools import cache

import torch


@cache
def has_triton() -> bool:
    """Whether Triton can be imported; found without importing it, and without torch.

    CUDA builds of torch bring it; it compiles a launcher at its first use, for which it needs a C compiler.
    """
    return importlib.util.find_spec("triton") is not None


def use_triton(device: torch.device | str) -> bool:
    return torch.device(device).type == "cuda" and has_triton()
