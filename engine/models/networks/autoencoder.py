"""The embedded autoencoder, made of convolutions alone: a window decodes to the same pixels wherever it lies.

Shape suffixes: B batch, c image channels, C latent channels, h w pixels, H W latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvBlock(nn.Module):
    """x + conv(silu(conv(silu(x)))) without normalisation; before training it is the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


class Upsample(nn.Module):
    """Nearest neighbours, then a convolution; unlike a pixel shuffle, they leave no lattice."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class PatchAutoencoder(nn.Module):
    """A deterministic convolutional autoencoder of factor ``2 ** len(channels)``.

    It has no normalisation over space and no attention: every pixel depends on the latents within
    ``margin`` of it and on nothing else. Windows that overlap by twice the margin therefore decode to
    the same pixels as the whole canvas would.

    Args:
        in_channels: Number of channels of the image.
        latent_channels: Number of channels of the latents.
        channels: Number of features at 1/2, 1/4, ... of the image's size.
        blocks: Number of residual blocks at each of those sizes, in encoder and decoder.
        latent_bound: Bound of the latents, ``bound * tanh(h / bound)``.
        latents_mean: Mean of each channel of the latents, which the trainer measures.
        latents_std: Their std. ``encode`` gives and ``decode`` takes normalised latents, (z - mean) / std.
    """

    def __init__(
        self,
        in_channels: int = 3,
        latent_channels: int = 8,
        channels: Sequence[int] = (32, 64, 128),
        blocks: Sequence[int] = (1, 3, 3),
        latent_bound: float = 3.0,
        latents_mean: Sequence[float] | None = None,
        latents_std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "in_channels": in_channels,
            "latent_channels": latent_channels,
            "channels": list(channels),
            "blocks": list(blocks),
            "latent_bound": latent_bound,
            "latents_mean": list(latents_mean or [0.0] * latent_channels),
            "latents_std": list(latents_std or [1.0] * latent_channels),
        }
        down: list[nn.Module] = []
        width = in_channels
        for out, count in zip(channels, blocks, strict=True):
            down += [nn.Conv2d(width, out, 4, stride=2, padding=1)]
            down += [ConvBlock(out) for _ in range(count)]
            width = out
        down += [nn.Conv2d(width, latent_channels, 3, padding=1)]
        self.encoder = nn.Sequential(*down)

        up: list[nn.Module] = [nn.Conv2d(latent_channels, width, 3, padding=1)]
        for index, (out, count) in enumerate(zip(reversed(channels), reversed(blocks), strict=True)):
            if index > 0:
                up += [Upsample(width, out)]
            up += [ConvBlock(out) for _ in range(count)]
            width = out
        last = max(width * 3 // 4, 8)
        up += [Upsample(width, last), nn.SiLU(), nn.Conv2d(last, in_channels, 3, padding=1)]
        self.decoder = nn.Sequential(*up)

    @property
    def factor(self) -> int:
        """Pixels per latent, along a side."""
        return int(2 ** len(self.config["channels"]))

    @property
    def margin(self) -> int:
        """Number of latents on each side that a decoded pixel depends on, rounded up."""
        reach, scale = 1.0, 1.0
        for index, count in enumerate(reversed(self.config["blocks"])):
            reach += 2 * count * scale
            scale /= 2
            reach += scale * (1 if index < len(self.config["blocks"]) - 1 else 2)
        return int(reach) + 1

    def statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean = torch.tensor(self.config["latents_mean"], dtype=like.dtype, device=like.device)
        std = torch.tensor(self.config["latents_std"], dtype=like.dtype, device=like.device)
        return mean[:, None, None], std[:, None, None]

    def encode(self, image_Bchw: Tensor) -> Tensor:
        """Image in [-1, 1] -> normalised latents (B, C, H, W)."""
        h = self.encoder(image_Bchw)
        bound = self.config["latent_bound"]
        mean, std = self.statistics(h)
        return (bound * torch.tanh(h / bound) - mean) / std

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Normalised latents -> image, about [-1, 1] (not clipped)."""
        mean, std = self.statistics(latents_BCHW)
        return self.decoder(latents_BCHW * std + mean)
