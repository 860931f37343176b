"""What makes features of crops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from engine.embedding.extractor import Extractor, extractor_of


@dataclass(frozen=True)
class FeatureExtractor:
    """Features float32 (n, D), and class logits (n, K) where the network has them, of pixels uint8 (n, p, p, 3)."""

    made_by: Extractor

    @property
    def name(self) -> str:
        return self.made_by.name

    @property
    def hash(self) -> str:
        return self.made_by.hash

    def __call__(self, pixels: np.ndarray, named: Callable[[int], str]) -> tuple[np.ndarray, np.ndarray | None]:
        return self.made_by(pixels, named), None


def feature_extractor(text: str, device: str) -> FeatureExtractor:
    return FeatureExtractor(extractor_of("appearance" if text == "embedded" else text, device))
