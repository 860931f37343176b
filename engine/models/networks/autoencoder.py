"""The embedded autoencoder, made of convolutions alone: a window decodes to the same pixels wherever it lies.

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
    """x + conv(silu(conv(silu(x)))) without normalisation; before training it is the identity."""

    def __init__(self, channels: int, padding: Padding = "zeros") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, padding_mode=padding)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, padding_mode=padding)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


class Upsample(nn.Module):
    """Nearest neighbours, then a convolution; unlike a pixel shuffle, they leave no lattice."""

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
        in_channels: Number of channels of the image.
        latent_channels: Number of channels of the latents.
        channels: Number of features at 1/2, 1/4, ... of the image's size.
        blocks: Number of residual blocks at each of those sizes, in encoder and decoder.
        latent_bound: Bound of the latents, ``bound * tanh(h / bound)``.
        latents_mean: Mean of each channel of the latents, which the trainer measures.
        latents_std: Their std. ``encode`` gives and ``decode`` takes normalised latents, (z - mean) / std.
        padding: Values that convolutions read beyond the edge: ``zeros``, ``replicate`` or ``reflect``. Zeros show a
            convolution where the edge is, and it paints something there that is nowhere else.
        fold: Side of the square of latents that are stored as the channels of one, so that this network works at a
            finer pitch than the diffusion network on its latents.
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
            raise ValueError(f"`latent_channels` {latent_channels} is no multiple of `fold` {fold} squared")
        if padding not in get_args(Padding):
            raise ValueError(f"`padding` is {padding!r}; known: {', '.join(get_args(Padding))}")
        self.config: dict[str, Any] = {
            "in_channels": in_channels,
            "latent_channels": latent_channels,
            "channels": list(channels),
            "blocks": list(blocks),
            "latent_bound": latent_bound,
            "latents_mean": list(latents_mean or [0.0] * latent_channels),
            "latents_std": list(latents_std or [1.0] * latent_channels),
        }
        if padding != "zeros":  # left out where it is as in older folders: config.json and the hash stay
            self.config["padding"] = padding
        if fold != 1:
            self.config["fold"] = fold
        self.fold = fold
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
        return int(2 ** len(self.config["channels"])) * self.fold

    @property
    def margin(self) -> int:
        """Number of latents on each side that a decoded pixel depends on, rounded up."""
        reach, scale = 1.0, 1.0
        for index, count in enumerate(reversed(self.config["blocks"])):
            reach += 2 * count * scale
            scale /= 2
            reach += scale * (1 if index < len(self.config["blocks"]) - 1 else 2)
        return int(reach / self.fold) + 1

    def statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean = torch.tensor(self.config["latents_mean"], dtype=like.dtype, device=like.device)
        std = torch.tensor(self.config["latents_std"], dtype=like.dtype, device=like.device)
        return mean[:, None, None], std[:, None, None]

    def encode(self, image_Bchw: Tensor) -> Tensor:
        """Image in [-1, 1] -> normalised latents (B, C, H, W)."""
        h = self.folded(self.encoder(image_Bchw))
        bound = self.config["latent_bound"]
        mean, std = self.statistics(h)
        return (bound * torch.tanh(h / bound) - mean) / std

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Normalised latents -> image, about [-1, 1] (not clipped)."""
        mean, std = self.statistics(latents_BCHW)
        return self.decoder(self.unfolded(latents_BCHW * std + mean))

    def halve(self, latents_BCHW: Tensor) -> Tensor:
        """Latents for an image of half the size: means of 2 x 2, at the pitch at which the network works.

        All channels must be normalised alike, as in training; H and W must be even.
        """
        return self.folded(F.avg_pool2d(self.unfolded(latents_BCHW), 2))

    def folded(self, fine: Tensor) -> Tensor:
        """Latents at the network's pitch -> latents as they are stored."""
        return F.pixel_unshuffle(fine, self.fold) if self.fold > 1 else fine

    def unfolded(self, stored: Tensor) -> Tensor:
        """Undo ``folded``."""
        return F.pixel_shuffle(stored, self.fold) if self.fold > 1 else stored
