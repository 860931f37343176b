"""How many bytes a computation reads and writes: counted while it runs, from its tensors or its loads and stores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FREE = ("aten.empty", "aten.detach", "aten._unsafe_view")


class _Counter(TorchDispatchMode):
    """Every operation that is no view reads its inputs and writes its outputs, once each."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if not view and not str(func).startswith(FREE):
            self.bytes += sum(_size(t) for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor))
        return out


def _size(tensor: torch.Tensor) -> int:
    """Bytes of a tensor; of an expanded one those that exist."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def torch_bytes(compute: Callable[[], Any]) -> int:
    with _Counter() as counter:
        compute()
    return counter.bytes


@contextmanager
def triton_bytes() -> Iterator[list[int]]:
    """Under TRITON_INTERPRET=1: the bytes that the masks of all loads and stores let through, caches left aside."""
    from triton.runtime.interpreter import interpreter_builder as builder

    count = [0]
    load, store = builder.create_masked_load, builder.create_masked_store

    def counted_load(ptrs, mask, *rest):
        value = load(ptrs, mask, *rest)
        count[0] += int(mask.data.sum()) * value.data.itemsize
        return value

    def counted_store(ptrs, value, mask, *rest):
        count[0] += int(mask.data.sum()) * value.data.itemsize
        return store(ptrs, value, mask, *rest)

    builder.create_masked_load, builder.create_masked_store = counted_load, counted_store
    try:
        yield count
    finally:
        builder.create_masked_load, builder.create_masked_store = load, store
