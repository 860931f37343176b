"""The bar that shows how far an export is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

BAR_AFTER = 2.0  # seconds after which a bar is shown
Step = TypeVar("Step")


def with_bar(steps: Iterable[Step], total: int, text: str, shown: bool = True) -> Iterator[Step]:
    """Go through steps, under a bar where standard error is a terminal and they take long.

    Args:
        total: Number of steps.
        text: What is done.
        shown: Whether this process may show one.
    """
    from tqdm import tqdm

    disable = None if shown else True  # None: where standard error is no terminal
    yield from tqdm(steps, text, total, leave=False, disable=disable, delay=BAR_AFTER, dynamic_ncols=True)
