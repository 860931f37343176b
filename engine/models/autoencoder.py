"""The embedded autoencoder: convolutions only, so that a window decodes to the same pixels wherever it lies.

Shape suffixes: B batch, c image channels, C latent channels, h w pixels, H W latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Padding = Literal["zeros", "replicate", "reflect"]


class ConvBlock(nn.Module):
    """x + conv(silu(conv(silu(x)))), without normalisation; starts as the identity."""

    def __init__(self, channels: int, padding: Padding = "zeros") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, padding_mode=padding)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, padding_mode=padding)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


class Upsample(nn.Module):
    """Nearest neighbours, then a convolution: leaves no lattice, as a pixel shuffle does."""

    def __init__(self, inputs: int, outputs: int, padding: Padding = "zeros") -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode=padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class PatchAutoencoder(nn.Module):
    """A deterministic convolutional autoencoder of factor ``2 ** len(channels) * fold``.

    It has no normalisation over space and no attention: every pixel depends on the latents within
    ``margin`` of it and on nothing else. Windows that overlap by twice the margin therefore decode to
    the same pixels as the whole canvas would.

    Args:
        in_channels: of the image.
        latent_channels: of the latents.
        channels: features at 1/2, 1/4, ... of the image's size.
        blocks: residual blocks at each of those sizes, in encoder and decoder.
        latent_bound: latents are soft-limited to +- this, ``bound * tanh(h / bound)``.
        latents_mean, latents_std: per channel; measured by the trainer. ``encode`` and ``decode`` speak
            normalised latents, (z - mean) / std.
        fold: ``fold`` x ``fold`` latents are stored as the channels of one: the network works at a finer pitch than
            the diffusion network on its latents.
        padding: what convolutions see beyond the edge: ``zeros``, ``replicate`` or ``reflect``. Zeros tell a
            convolution where the edge is, and it paints something there that is nowhere else.
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
        padding: Padding = "zeros",
        fold: int = 1,
    ) -> None:
        super().__init__()
        if latent_channels % fold**2:
            raise ValueError(f"latent_channels {latent_channels} is no multiple of fold {fold} squared")
        if padding not in get_args(Padding):
            raise ValueError(f"padding is {padding!r}; known: {', '.join(get_args(Padding))}")
        self.config: dict[str, Any] = {
            "in_channels": in_channels,
            "latent_channels": latent_channels,
            "channels": list(channels),
            "blocks": list(blocks),
            "latent_bound": latent_bound,
            "latents_mean": list(latents_mean or [0.0] * latent_channels),
            "latents_std": list(latents_std or [1.0] * latent_channels),
            "padding": padding,
            "fold": fold,
        }
        inner = latent_channels // fold**2
        conv = partial(nn.Conv2d, padding=1, padding_mode=padding)
        down: list[nn.Module] = []
        width = in_channels
        for out, count in zip(channels, blocks, strict=True):
            down += [conv(width, out, 4, stride=2)]
            down += [ConvBlock(out, padding) for _ in range(count)]
            width = out
        down += [conv(width, inner, 3)]
        self.encoder = nn.Sequential(*down)

        up: list[nn.Module] = [conv(inner, width, 3)]
        for index, (out, count) in enumerate(zip(reversed(channels), reversed(blocks), strict=True)):
            if index > 0:
                up += [Upsample(width, out, padding)]
            up += [ConvBlock(out, padding) for _ in range(count)]
            width = out
        last = max(width * 3 // 4, 8)
        up += [Upsample(width, last, padding), nn.SiLU(), conv(last, in_channels, 3)]
        self.decoder = nn.Sequential(*up)

    @property
    def factor(self) -> int:
        """Pixels per latent, along a side."""
        return int(2 ** len(self.config["channels"])) * int(self.config["fold"])

    @property
    def margin(self) -> int:
        """Latents on each side that a decoded pixel depends on, rounded up."""
        reach, scale = 1.0, 1.0
        for index, count in enumerate(reversed(self.config["blocks"])):
            reach += 2 * count * scale
            scale /= 2
            reach += scale * (1 if index < len(self.config["blocks"]) - 1 else 2)
        return int(reach / self.config["fold"]) + 1

    def statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean = torch.tensor(self.config["latents_mean"], dtype=like.dtype, device=like.device)
        std = torch.tensor(self.config["latents_std"], dtype=like.dtype, device=like.device)
        return mean[:, None, None], std[:, None, None]

    def encode(self, image_Bchw: Tensor) -> Tensor:
        """Image in [-1, 1] -> normalised latents (B, C, H, W)."""
        h = F.pixel_unshuffle(self.encoder(image_Bchw), self.config["fold"])
        bound = self.config["latent_bound"]
        mean, std = self.statistics(h)
        return (bound * torch.tanh(h / bound) - mean) / std

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Normalised latents -> image, about [-1, 1] (not clipped)."""
        mean, std = self.statistics(latents_BCHW)
        return self.decoder(F.pixel_shuffle(latents_BCHW * std + mean, self.config["fold"]))

    def halve(self, latents_BCHW: Tensor) -> Tensor:
        """Latents for an image of half the size: means of 2 x 2, at the pitch at which the network works.

        Of normalised latents only where all channels are normalised alike, as in training. H and W even.
        """
        fold = self.config["fold"]
        return F.pixel_unshuffle(F.avg_pool2d(F.pixel_shuffle(latents_BCHW, fold), 2), fold)
