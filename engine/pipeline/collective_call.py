"""A collective call in Python: arguments checked and the same on all ranks, errors that reach every rank."""

from __future__ import annotations

import hashlib
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np

from engine.distributed.ranks import AgreedError, RaisedTogether, Ranks
from engine.messages import shortened
from engine.pipeline.watch import CallbackFailed

T = TypeVar("T")
Facts = Mapping[str, str]  # of each argument, text that tells it from another
HASHED = 2**24  # bytes of an array that is compared by its content; of a larger one type and shape are
SHOWN = 60  # characters of a value, in a message


def agreed(ranks: Ranks, check: Callable[[], tuple[T, Facts]]) -> T:
    """What a check of a call's arguments returns, if it passes on every rank and they are the same there. Collective.

    Args:
        check: Local. It returns what the call goes on with, and the facts that must be the same on every rank.
    Raises:
        TypeError: the check raised one, on any rank; then every rank does.
        ValueError: it raised another error, or the ranks were given different arguments.
    """
    result: T | None = None
    facts: Facts = {}
    problem: Exception | None = None
    try:
        result, facts = check()
    except Exception as error:
        if ranks.size == 1:
            raise
        problem = error
    text = None if problem is None else (isinstance(problem, TypeError), str(problem) or type(problem).__name__)
    whole = hashlib.sha256(repr(sorted(facts.items())).encode()).digest()
    of_ranks = ranks.allgather((text, whole))
    for rank, (error_text, _) in enumerate(of_ranks):
        if error_text is not None:
            kind, message = (TypeError if error_text[0] else ValueError), error_text[1]
            raise kind(message if rank == 0 else f"{message} (rank {rank})") from problem
    if len({digest for _, digest in of_ranks}) > 1:
        raise ValueError(differences(ranks.allgather(facts)))
    return result  # type: ignore[return-value]


def differences(of_ranks: list[Facts]) -> str:
    """Which arguments differ, and how, in one line.

    >>> differences([{"seed": "0", "size": "8"}, {"seed": "1", "size": "8"}])
    'all ranks make the same call, but `seed` is 0 on rank 0 and 1 on rank 1; give every rank the same arguments'
    """
    said = []
    for name in sorted({name for facts in of_ranks for name in facts}):
        values = [facts.get(name, "not given") for facts in of_ranks]
        other = next((rank for rank, value in enumerate(values) if value != values[0]), None)
        if other is not None:
            root, theirs = (shortened(values[rank], SHOWN) for rank in (0, other))
            said.append(f"`{name}` is {root} on rank 0 and {theirs} on rank {other}")
    return f"all ranks make the same call, but {', '.join(said)}; give every rank the same arguments"


def array_fact(array: Any) -> str:
    """Text that tells an array from another: type, shape and, of a small one in memory, a hash of its content."""
    content = ""
    if isinstance(array, np.ndarray) and array.nbytes <= HASHED:
        content = f", sha256 {hashlib.sha256(array.tobytes()).hexdigest()[:16]}"
    return array_text(array) + content


def array_text(array: Any) -> str:
    """An array in a message: its shape and type.

    >>> array_text(np.zeros((2, 3), np.uint8))
    'array (2, 3) uint8'
    """
    return f"array {tuple(array.shape)} {str(array.dtype).removeprefix('torch.')}"


# ---- errors ---------------------------------------------------------------------------------


def call_users(ranks: Ranks, name: str, work: Callable[[], T]) -> T:
    """What somebody else's code returns; where it fails on one rank, all raise. Collective.

    Args:
        name: Of the argument whose code it is.
    Raises:
        CallbackFailed: with its own error where it failed.
    """
    problem: Exception | None = None
    try:
        result = work()
    except Exception as error:
        problem = error
    if ranks.any(problem is not None):
        raise CallbackFailed(problem or RuntimeError(f"`{name}` failed on another rank"))
    return result


@contextmanager
def failing_together(ranks: Ranks) -> Iterator[None]:
    """Errors that all ranks agreed on reach every caller; any other error of one rank of several ends all ranks.

    Without that the others would wait for it without end.
    """
    try:
        yield
    except AgreedError as error:
        ranks.barrier()
        raise ValueError(str(error)) from None
    except CallbackFailed as failed:
        raise failed.error from failed.__cause__
    except (RaisedTogether, KeyboardInterrupt):
        raise
    except BaseException:
        if ranks.size > 1:
            ranks.abort(f"rank {ranks.rank} of {ranks.size} failed, ending all:\n{traceback.format_exc()}")
        raise
