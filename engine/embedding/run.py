"""Patches to embeddings, over all ranks, into one file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from engine.distributed.ranks import RaisedTogether, Ranks
from engine.embedding.extractor import Extractor
from engine.embedding.patches import Patches
from engine.storage.embedding_file import EmbeddingFile, new_embedding_file


class Stopped(RaisedTogether):
    """A signal asked for the end, after a round: all ranks leave."""


def embed(
    ranks: Ranks,
    patches: Patches,
    extractor: Extractor,
    out: Path,
    batch_size: int,
    progress: Callable[[int], None] = lambda done: None,
) -> bool:
    """Embed patches and write them to a file, which appears when it is complete. Collective.

    Batches are of the same patches on any number of ranks, and so are the bytes. In a round each rank takes one batch,
    so that none holds more than one and rank 0 one of each rank's embeddings.

    Args:
        progress: Called on rank 0 after each round with the number of patches that are done.
    Returns:
        Whether it was brought to its end: a signal stops it after a round, and then nothing is written.
    """
    facts = {**patches.facts(), "extractor": extractor.name, "extractor_hash": extractor.hash}
    try:
        with ExitStack() as stack:

            def begin() -> EmbeddingFile | None:
                if ranks.rank:
                    return None
                return stack.enter_context(new_embedding_file(out, patches.shape, facts, patches.places()))

            file = ranks.agree(begin)
            for batch in rounds_of(len(patches), batch_size, ranks):
                one_round(ranks, file, patches, extractor, batch)
                if file is not None:
                    progress(file.written)
            ranks.agree(stack.pop_all().close)
    except Stopped:
        return False
    return True


def one_round(ranks: Ranks, file: EmbeddingFile | None, patches: Patches, extractor: Extractor, batch: range) -> None:
    """Embed a batch on each rank and write them on rank 0, which has the file. Collective.

    Raises:
        Stopped: a rank was asked to stop.
    """
    values = ranks.agree(lambda: embeddings_of(patches, extractor, batch))
    of_ranks = ranks.gather(values)
    ranks.agree(lambda: append(file, of_ranks))
    if ranks.any(ranks.stop_requested):
        raise Stopped


def rounds_of(count: int, batch_size: int, ranks: Ranks) -> Iterator[range]:
    """This rank's batch of every round, which may be empty in the last."""
    for first in range(0, count, batch_size * ranks.size):
        start = min(first + ranks.rank * batch_size, count)
        yield range(start, min(start + batch_size, count))


def embeddings_of(patches: Patches, extractor: Extractor, batch: range) -> np.ndarray | None:
    """float32 (n, D), or None of an empty batch. Local."""
    if not batch:
        return None
    pixels = np.stack([patches.read(number) for number in batch])
    return extractor(pixels, lambda index: patches.named(batch[index]))


def append(file: EmbeddingFile | None, parts: Sequence[np.ndarray | None]) -> None:
    """Write what the ranks made, on rank 0. Local."""
    for values in parts:
        if file is not None and values is not None:
            file.append(values)
