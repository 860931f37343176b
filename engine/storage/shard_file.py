"""Make the file of a shard: its chunks compressed on threads, beside the hash of its pixels.

The files are what zarr would write, in another order of chunks (row by row): compressed chunks, then the index of their
places (Zarr 3, codec ``sharding_indexed``). Zarr itself takes twice the processor time, much of it in one thread.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache

import numpy as np
from numcodecs.checksum32 import CRC32C
from numcodecs.zstd import Zstd

from engine.storage.files import digest
from engine.storage.zarr_setup import PIXEL_CODECS, zarr

ZSTD = Zstd(PIXEL_CODECS[0].level, PIXEL_CODECS[0].checksum)
ABSENT = np.iinfo(np.uint64).max  # the place of a chunk that lies wholly beyond the array's edge: it is not written
THREADS = 4  # that hash and compress, and let go of Python's lock meanwhile


def threads() -> ThreadPoolExecutor:
    """The threads of this process; a process that was forked has none of its parent's."""
    return threads_of(os.getpid())


@cache
def threads_of(process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(THREADS, "shards")


def encode_shard(array: zarr.Array, values: np.ndarray) -> tuple[list[bytes], Future[str]]:
    """Make the content of a shard's file.

    Args:
        array: The array that the shard belongs to.
        values: All that the shard holds of the array; less than the shard at the array's edge.
    Returns:
        The content in parts, one after the other. The sha256 of the values, which a thread takes meanwhile.
    """
    assert array.shards is not None
    pool = threads()
    values = np.ascontiguousarray(values, array.dtype)
    sha256 = pool.submit(digest, values)
    places = list(np.ndindex(*(-(-n // side) for n, side in zip(values.shape, array.chunks, strict=True))))
    coded = list(pool.map(lambda place: ZSTD.encode(chunk_of(values, place, array.chunks)), places))
    counts = [shard // side for shard, side in zip(array.shards, array.chunks, strict=True)]
    index = np.full((*counts, 2), ABSENT, "<u8")
    start = 0
    for place, data in zip(places, coded, strict=True):
        index[place] = start, len(data)
        start += len(data)
    return [*coded, CRC32C(location="end").encode(index)], sha256


def chunk_of(values: np.ndarray, place: Sequence[int], sides: Sequence[int]) -> np.ndarray:
    """A chunk of an array, filled up with zeros beyond the array's edge.

    >>> chunk_of(np.array([[1, 2, 3]]), place=(0, 1), sides=(2, 2)).tolist()
    [[3, 0], [0, 0]]
    """
    part = values[tuple(slice(n * side, (n + 1) * side) for n, side in zip(place, sides, strict=True))]
    if part.shape == tuple(sides):
        return np.ascontiguousarray(part)
    return np.pad(part, [(0, side - n) for n, side in zip(part.shape, sides, strict=True)])
