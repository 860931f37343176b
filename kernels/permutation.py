"""Random permutations that are computed where they are asked for: no table of the whole, and the same on every rank."""

from __future__ import annotations

import numpy as np
import torch

from kernels.philox import MASK, philox

ROUNDS = 8


class Permutation:
    """A random permutation of 0 .. count - 1, as a function of its key.

    A Feistel network (Luby & Rackoff 1988, doi:10.1137/0217022) of ``ROUNDS`` rounds over the next power of four, whose
    functions are tables of Philox words; what falls outside is permuted again until it falls inside (Black & Rogaway
    2002, doi:10.1007/3-540-45760-7_9).

    Args:
        count: Number of things, 1 to 2^40.
        key: Two 32-bit words, see ``philox.stream_key``.
        place: Two numbers that tell apart permutations of one key; they may be negative.

    >>> sorted(Permutation(5, (1, 2))(np.arange(5)).tolist())
    [0, 1, 2, 3, 4]
    """

    def __init__(self, count: int, key: tuple[int, int], place: tuple[int, int] = (0, 0)) -> None:
        self.count = count
        self.half = max((int(count - 1).bit_length() + 1) // 2, 1)  # bits of each half of a number
        right = torch.arange(2**self.half, dtype=torch.int64)
        a, b = (torch.full_like(right, v & MASK) for v in place)
        words = [philox(torch.stack([right, a, b, torch.full_like(right, i)]), key) for i in range(ROUNDS // 4)]
        self.tables = (torch.cat(words) >> (32 - self.half)).numpy()  # int64 (rounds, 2^half)

    def __call__(self, numbers: np.ndarray) -> np.ndarray:
        """int64: where the permutation takes each of these numbers, int64 (n,)."""
        taken = self._rounds(numbers)
        while len(outside := np.flatnonzero(taken >= self.count)):
            taken[outside] = self._rounds(taken[outside])
        return taken

    def _rounds(self, numbers: np.ndarray) -> np.ndarray:
        left, right = numbers >> self.half, numbers & (2**self.half - 1)
        for table in self.tables:
            left, right = right, left ^ table[right]
        return left << self.half | right
