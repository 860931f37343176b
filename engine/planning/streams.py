"""Random streams: the integers that every random number of a job is drawn from, made in one place.

Nothing random has a state that is carried along. A number is a function of the job's seed, of what it is for, and of
where in the job it is used; so any rank can draw it, and a resumed run draws it again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ROUND_ABOVE_LEVEL = 20  # bits: a run has fewer than 2^20 levels
ROUND_ABOVE_IMAGE = 32  # bits: a set has fewer than 2^32 images
COVER = int.from_bytes(b"cover", "big")  # keeps the covers' streams apart from whatever else is keyed by the seed


@dataclass(frozen=True)
class Stream:
    """The randomness of one level.

    Args:
        seed: Seed of the job, 64 bits.
        level: Number of the level, 0 the noisiest.
        round_index: Round of rejection sampling, from 0: later rounds sample the same positions with other numbers.
        image: Number of the image whose cover is drawn, where a job has several.

    >>> Stream(seed=7, level=3).noise_level, Stream(seed=7, level=3, round_index=2).noise_level
    (3, 2097155)
    """

    seed: int
    level: int
    round_index: int = 0
    image: int = 0

    @property
    def noise_level(self) -> int:
        """What ``kernels.philox`` is given as the level: the level, with the round in the bits above it."""
        return self.level + (self.round_index << ROUND_ABOVE_LEVEL)

    def cover_generator(self) -> np.random.Generator:
        """The generator that the level's cover is drawn from.

        Keyed by (seed, "cover" and the level), counted from (image, with the round in the bits above it) on.
        """
        key = np.array([self.seed & (2**64 - 1), COVER << 24 | self.level], np.uint64)
        image = self.image + (self.round_index << ROUND_ABOVE_IMAGE)
        return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, image]))
