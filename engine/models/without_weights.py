"""Networks without memory for their weights, which are assigned later or compared by shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class NoInitialisation(TorchFunctionMode):
    """Functions of ``torch.nn.init`` leave their tensor as it is.

    On the meta device they have nothing to fill, and they would import torch's compiler: 2 seconds of every start.
    """

    def __torch_function__(
        self, func: Callable, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else given["tensor"]
        return func(*args, **given)


@contextmanager
def without_weights() -> Iterator[None]:
    """Networks that are made here lie on the meta device.

    >>> with without_weights():
    ...     layer = torch.nn.Linear(2, 3)
    >>> layer.weight.is_meta, tuple(layer.weight.shape)
    (True, (3, 2))
    """
    with torch.device("meta"), NoInitialisation():
        yield
