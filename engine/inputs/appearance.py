"""The colours of a semantic map of nuclei: the pixels of a reference image in random order.

So the nuclei system trained its networks: colours are a population, and where each one lies says nothing. Which pixel
of the reference a position of an image is given is a function of (seed, image, position), so that windows, ranks and
resumed runs agree. In every block of the image that has the reference's size each of its pixels occurs once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from engine.planning.geometry import Box

if TYPE_CHECKING:
    from kernels.permutation import Permutation

LARGEST_REFERENCE = 2**26  # pixels; a rank holds a reference whole
LEAST_SIDE = 64  # px; a smaller reference is repeated to a block of at least this, or there would be blocks without end
MOST_STEPS = 256  # of the walk to a pixel of the wanted kind; one more, and any pixel of that kind is taken
KEPT = 4  # references that a rank holds at once, with their blocks


@dataclass(frozen=True, eq=False)
class Reference:
    """The pixels of one reference image.

    Args:
        shape: Height and width, px.
        pixels: uint8 (height * width, 3).
        nuclear: bool (height * width,), where it has nuclei; None: nuclei and background take any pixel.
    """

    shape: tuple[int, int]
    pixels: np.ndarray
    nuclear: np.ndarray | None = None

    @property
    def block(self) -> tuple[int, int]:
        """Height and width of the blocks of an image in which every pixel occurs equally often, px."""
        height, width = (n * -(-LEAST_SIDE // n) for n in self.shape)
        return height, width


def reference_of(picture: np.ndarray, mask: np.ndarray | None = None) -> Reference:
    """The reference that a picture is, uint8 (3, h, w), with a mask (h, w) that is not 0 in its nuclei."""
    nuclear = None if mask is None else mask.reshape(-1) != 0
    return Reference(picture.shape[1:], np.ascontiguousarray(picture.reshape(3, -1).T), nuclear)


class Appearance:
    """The colours of every image: of each from its reference.

    Args:
        seed: Seed of the order.
        references: Function from an image to its reference.
    """

    def __init__(self, seed: int, references: Callable[[int], Reference]) -> None:
        self.seed = seed
        self.reference = lru_cache(maxsize=KEPT)(references)
        self.permutation = lru_cache(maxsize=64)(self._permutation)

    def _permutation(self, image: int, count: int, block: tuple[int, int]) -> Permutation:
        from kernels.permutation import Permutation  # torch, for which planning does not wait
        from kernels.philox import stream_key

        return Permutation(count, stream_key(self.seed, "pixels", image, 0), block)

    def colors(self, image: int, window: Box, nuclear: np.ndarray) -> np.ndarray:
        """float32 (3, h, w), -1..1: the colours of a window of an image.

        Args:
            window: Box in px; it may reach beyond the image.
            nuclear: bool (h, w): where the window has nuclei.
        """
        reference, colors = self.reference(image), np.empty((3, *window.shape), np.float32)
        height, width = reference.block
        for y in range(window.y0 // height, -(-window.y1 // height)):
            for x in range(window.x0 // width, -(-window.x1 // width)):
                block = Box(y * height, x * width, (y + 1) * height, (x + 1) * width)
                part = window & block
                permutation = self.permutation(image, height * width, (y, x))
                rows, columns = np.ogrid[
                    part.y0 - block.y0 : part.y1 - block.y0, part.x0 - block.x0 : part.x1 - block.x0
                ]
                index = chosen(reference, permutation, (rows * width + columns).ravel(), nuclear[part.within(window)])
                values = reference.pixels[index].T.reshape(3, *part.shape)
                colors[(slice(None), *part.within(window))] = values / np.float32(127.5) - np.float32(1)
        return colors


def chosen(reference: Reference, permutation: Permutation, places: np.ndarray, nuclear: np.ndarray) -> np.ndarray:
    """int64 (n,): the pixel of the reference that each place of a block is given.

    Where kinds are preserved, the permutation is followed to the first pixel of the wanted kind: over an image whose
    nuclei lie where the reference's do, that is a permutation of each kind's pixels.

    Args:
        places: int64 (n,), number of each place in the block.
        nuclear: bool, as many: whether the place is to have the colour of a nucleus.
    """
    count, taken = len(reference.pixels), permutation(places)
    if reference.nuclear is None:
        return taken % count
    kinds, wanted = reference.nuclear, nuclear.ravel()
    for _ in range(MOST_STEPS):
        wrong = np.flatnonzero(kinds[taken % count] != wanted)
        if not len(wrong):
            return taken % count
        taken[wrong] = permutation(taken[wrong])
    index = taken % count
    for kind in (False, True):
        wrong = np.flatnonzero((kinds[index] != kind) & (wanted == kind))
        of_kind = np.flatnonzero(kinds == kind)
        index[wrong] = of_kind[index[wrong] % len(of_kind)]
    return index


def check_kinds(kinds: Sequence[bool] | np.ndarray, name: str) -> None:
    """Refuse a reference whose mask leaves no pixel of a kind, where kinds are preserved.

    Raises:
        ValueError: naming what there is none of.
    """
    for kind, none in ((True, "no nuclei"), (False, "nothing but nuclei")):
        if not (np.asarray(kinds) == kind).any():
            raise ValueError(f"{name} has {none}, so that `appearance_order` preserved has no pixels to choose from")
