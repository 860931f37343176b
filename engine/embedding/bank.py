"""Is an image like those of a reference? Its score is how far its features are from the nearest of a bank.

PatchCore (Roth et al. 2022, arXiv:2106.08265): the bank is a coreset of what normal images have, and an image scores
as the worst of its parts. Here the parts are crops, with one vector of features each, and distances are as they are,
without the paper's weight of the bank's density (eq. 7), which the authors' own code leaves out too.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from engine.embedding.extractors import FeatureExtractor, feature_extractor
from engine.storage.bank_file import BankFile, read_bank
from engine.storage.files import digest

UNLIKE = 0.02  # by which pixel sizes may differ
BLOCK = 2**20  # numbers that are subtracted at once


@dataclass(frozen=True)
class Bank:
    """A bank of features.

    Args:
        features: float32 (K, D).
        extractor: What made them, as ``feature_extractor`` takes it.
        hash: Its hash.
        side: Side of the crops, px.
        held_out: float64 (n,): scores of crops of the reference that are not in it.
        quantile: Share of images like the reference that are accepted.
        grey: Whether crops are made grey before.
        pixel_size_um: Of the crops; None: it is not known.
    """

    features: np.ndarray
    extractor: str
    hash: str
    side: int
    held_out: np.ndarray
    quantile: float
    grey: bool = False
    pixel_size_um: float | None = None

    def digest(self) -> str:
        """The sha256 of all that a score and the threshold depend on."""
        facts = (self.features.shape, self.hash, self.side, self.quantile, self.grey)
        return sha256((repr(facts) + digest(self.features) + digest(self.held_out)).encode()).hexdigest()

    def threshold(self, crops: int) -> float:
        """The greatest score of an image of so many crops that is like the reference.

        An image scores as the worst of its crops. As if these were independent, the share of them that must lie below
        is the root: crops of one image are alike, so that somewhat more images are accepted than ``quantile`` says.
        """
        return float(np.quantile(self.held_out, self.quantile ** (1 / crops)))

    def judge(self, image: np.ndarray, extractor: FeatureExtractor) -> tuple[float, bool]:
        """The worst score of the crops that cover an image, uint8 (c, h, w), and whether it is like the reference."""
        pixels = np.broadcast_to(np.moveaxis(image, 0, -1), (*image.shape[1:], 3))
        if self.grey:
            pixels = in_grey(pixels)
        crops = [
            pixels[y : y + self.side, x : x + self.side]
            for y in starts(image.shape[1], self.side)
            for x in starts(image.shape[2], self.side)
        ]
        features, _ = extractor(np.stack(crops), lambda number: f"crop {number} of an image")
        score = float(distances(features, self.features).max())
        return score, score <= self.threshold(len(crops))


def distances(features: np.ndarray, bank: np.ndarray) -> np.ndarray:
    """float64 (n,): Euclidean distances of features (n, D) to the nearest of a bank (K, D).

    Each is a function of its row and the bank alone, to the last digit.
    """
    nearest, block = np.full(len(features), np.inf), max(BLOCK // bank.shape[1], 1)
    for n, row in enumerate(features.astype(np.float64)):
        for first in range(0, len(bank), block):
            squares = ((bank[first : first + block] - row) ** 2).sum(1)
            nearest[n] = min(nearest[n], float(squares.min()))
    return np.sqrt(nearest)


def starts(length: int, side: int) -> list[int]:
    """Where the crops that cover a line begin; the last lies over the one before it where it would pass the end.

    >>> starts(10, 4), starts(4, 4)
    ([0, 4, 6], [0])
    """
    return [min(start, length - side) for start in range(0, length, side)]


def in_grey(pixels: np.ndarray) -> np.ndarray:
    """uint8 of the same shape: the mean of the channels in each of them."""
    mean = np.rint(pixels.mean(-1, keepdims=True, dtype=np.float32)).astype(np.uint8)
    return np.repeat(mean, pixels.shape[-1], axis=-1)


def open_bank(path: Path, option: str) -> Bank:
    """The bank in a file.

    Args:
        option: What gave the path, for messages.
    Raises:
        ValueError: it is no bank.
    """
    file = read_bank(path, option)
    try:
        facts = dict(file.facts)
        size = facts["pixel_size_um"]
        return Bank(
            file.features,
            str(facts["extractor"]),
            str(facts["hash"]),
            int(facts["crop_px"]),
            file.held_out,
            float(facts["quantile"]),
            bool(facts["grey"]),
            None if size is None else float(size),
        )
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(
            f"{option} {path} does not say what it was made of ({type(error).__name__}: {error}); make it anew with "
            "engine.evaluate REAL --bank"
        ) from None


def extractor_of_bank(bank: Bank, path: Path, option: str, device: str) -> FeatureExtractor:
    """The extractor that a bank was made with.

    Raises:
        ValueError: it is not there, or is another today.
    """
    way = "make the bank anew with engine.evaluate REAL --bank"
    try:
        extractor = feature_extractor(bank.extractor, device, option.strip("`"))
    except ValueError as error:
        raise ValueError(f"{option} {path} was made with features {bank.extractor}: {error}; or {way}") from None
    if extractor.hash != bank.hash:
        raise ValueError(
            f"{option} {path} was made with other features {bank.extractor} (hash {bank.hash[:12]}) than are there now "
            f"({extractor.hash[:12]}); {way}"
        )
    return extractor


def check_images(bank: Bank, path: Path, option: str, size: tuple[int, int], pixel_size_um: float | None) -> None:
    """Refuse images that a bank says nothing about.

    Args:
        size: Height and width, px.
        pixel_size_um: None: it is not known.
    Raises:
        ValueError: they are smaller than its crops, or of another magnification.
    """
    if min(size) < bank.side:
        raise ValueError(
            f"{option} {path} is of crops of {bank.side} px and the images are {size[0]} x {size[1]} px; make one with "
            f"engine.evaluate REAL --bank --crop {min(size)}"
        )
    own = bank.pixel_size_um
    if own and pixel_size_um and abs(own / pixel_size_um - 1) > UNLIKE:
        raise ValueError(
            f"{option} {path} is of pixels of {own:g} um and the images have {pixel_size_um:g} um; make one with "
            f"engine.evaluate REAL --bank --pixel-size {pixel_size_um:g}"
        )


def as_file(bank: Bank, **facts: object) -> BankFile:
    """What ``open_bank`` reads, with more facts."""
    values = {
        "extractor": bank.extractor,
        "hash": bank.hash,
        "crop_px": bank.side,
        "quantile": bank.quantile,
        "grey": bank.grey,
        "pixel_size_um": bank.pixel_size_um,
    }
    return BankFile(bank.features, bank.held_out, {**values, **facts})
