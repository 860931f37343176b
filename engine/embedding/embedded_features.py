"""The features that need no download: of our own autoencoder, and of a bank of random filters. They are no Inception.

Distances in them say how far two sets of tissue are apart in colour, texture and cells; they are not the field's FID,
and stand beside no published number. The autoencoder was trained on DiffInfinite's tiles, and outputs of the embedded
model come out of its own decoder, so it may be blind to what both share; the filters know nothing of either.

Shape suffixes: B batch, C channels, h w pixels, F features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.models.files import EMBEDDED
from engine.models.folder import load_part
from engine.models.networks.autoencoder import ConvBlock, PatchAutoencoder

SEED = 2026  # of the filters
SCALES = 4  # 1, 1/2, 1/4 and 1/8 of the size
FILTERS, SIDE = 12, 7  # number of filters of each scale, and their height and width, px
FAINT = 1e-2  # response below which a filter says nothing: about one grey value of 255
SMALLEST = 32  # px: crops below it have no pixel at the coarsest scale


class EmbeddedFeatures(nn.Module):
    """Pictures to features: of the encoder's layers, its latents, and the filters.

    Args:
        encoder: An autoencoder's.
    """

    def __init__(self, autoencoder: PatchAutoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.first, self.second = (nn.Buffer(torch.from_numpy(bank)) for bank in filter_bank(SEED))

    def forward(self, pixels_B3hw: Tensor) -> Tensor:
        """(B, F) of pixels 0 to 255.

        Raises:
            ValueError: they are smaller than the coarsest scale's filters.
        """
        side = min(pixels_B3hw.shape[-2:])
        if side < SMALLEST:
            raise ValueError(f"crops of {side} px are too small for the embedded features; give {SMALLEST} px or more")
        x = pixels_B3hw.float() / 127.5 - 1
        return torch.cat([*pooled(self.layers(x)), *self.textures(x)], 1)

    def layers(self, x_B3hw: Tensor) -> list[Tensor]:
        """What the encoder has at each size, finest first, and the normalised latents."""
        layers: list[Tensor] = []
        x = x_B3hw
        modules = list(self.autoencoder.encoder)
        for module, after in pairwise(modules):
            x = module(x)
            if isinstance(module, ConvBlock) and not isinstance(after, ConvBlock):
                layers.append(F.silu(x))
        bound = self.autoencoder.config["latent_bound"]
        mean, std = self.autoencoder.statistics(x)
        latents = self.autoencoder.folded(bound * torch.tanh(modules[-1](x) / bound))
        return [*layers, (latents - mean) / std]

    def textures(self, x_B3hw: Tensor) -> Iterator[Tensor]:
        """The logarithms of the filters' mean strengths at each scale, and of filters of those strengths."""
        for scale in range(SCALES):
            strength = F.conv2d(x_B3hw, self.first[scale], padding=SIDE // 2).abs()
            yield (strength.mean((2, 3)) + FAINT).log()
            again = F.conv2d(F.avg_pool2d(strength, 2), self.second[scale], padding=1, groups=FILTERS).abs()
            yield (again.mean((2, 3)) + FAINT).log()
            x_B3hw = F.avg_pool2d(x_B3hw, 2)


def pooled(layers_BChw: Sequence[Tensor]) -> Iterator[Tensor]:
    """(B, C) each: spreads over space at 1/2 and at the coarsest size, spread and mean of the latents.

    The finest layer's are logarithms: a blur halves its small responses where it hardly changes large ones.
    """
    spreads = [layer.std((2, 3), correction=0) for layer in (layers_BChw[0], *layers_BChw[-2:])]
    yield (spreads[0] + FAINT).log()
    yield from spreads[1:]
    yield layers_BChw[-1].mean((2, 3))


def filter_bank(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random filters without a mean and of length 1: (scales, filters, 3, side, side) of pictures, and (scales,
    filters, 1, 3, 3) of the strength of one filter each.

    Random filters, a rectifier and a pool tell textures apart nearly as well as trained ones do (Jarrett et al. 2009,
    doi:10.1109/ICCV.2009.5459469); the second layer is that of a scattering transform (Bruna and Mallat 2013,
    arXiv:1203.1513).
    """
    rng = np.random.default_rng(seed)
    banks = []
    for shape in ((SCALES, FILTERS, 3, SIDE, SIDE), (SCALES, FILTERS, 1, 3, 3)):
        bank = rng.standard_normal(shape)
        bank -= bank.mean((-3, -2, -1), keepdims=True)
        banks.append((bank / np.sqrt((bank**2).sum((-3, -2, -1), keepdims=True))).astype(np.float32))
    return banks[0], banks[1]


@lru_cache(maxsize=1)
def embedded_network(device: str) -> EmbeddedFeatures:
    """The features of the autoencoder in the package."""
    autoencoder = load_part(EMBEDDED / "vae")
    assert isinstance(autoencoder, PatchAutoencoder)
    return EmbeddedFeatures(autoencoder).float().to(device).eval().requires_grad_(False)
