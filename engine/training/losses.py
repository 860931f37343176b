"""Reconstruction losses of the autoencoder, and its patch discriminator."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


def gradient_loss(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference of the finite differences along both axes."""
    rows = ((a[..., 1:, :] - a[..., :-1, :]) - (b[..., 1:, :] - b[..., :-1, :])).abs().mean()
    columns = ((a[..., 1:] - a[..., :-1]) - (b[..., 1:] - b[..., :-1])).abs().mean()
    return rows + columns


def multiscale_loss(a: Tensor, b: Tensor, scales: int = 3) -> Tensor:
    """Sum of mean absolute differences after 2, 4, ... fold averaging."""
    difference, total = a - b, a.new_zeros(())
    for _ in range(scales):
        difference = F.avg_pool2d(difference, 2)
        total = total + difference.abs().mean()
    return total


def spectrum_loss(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference of the log amplitudes: asks for power, not for phase."""
    fa = torch.fft.rfft2(a, norm="ortho").abs()
    fb = torch.fft.rfft2(b, norm="ortho").abs()
    return (torch.log(fa + 0.02) - torch.log(fb + 0.02)).abs().mean()


def lattice_loss(a: Tensor, b: Tensor, period: int) -> Tensor:
    """How differently two images' finite differences depend on the position modulo ``period``, along both axes.

    A decoder that works upwards from latents leaves a faint lattice of their size; real images have none.
    """
    total = a.new_zeros(())
    for axis in (-2, -1):
        profiles = []
        for image in (a, b):
            steps = image.diff(dim=axis).abs().mean(tuple(i for i in range(4) if i != axis % 4))
            whole = steps[: len(steps) // period * period].view(-1, period).mean(0)
            profiles.append(whole / whole.mean())
        total = total + (profiles[0] - profiles[1]).abs().mean()
    return total


def halved(x: Tensor) -> Tensor:
    """Averages of 2 x 2; the last row and column of odd sides are left out."""
    return F.avg_pool2d(x, 2)


class RandomFeatures(nn.Module):
    """Distance of images in the features of a fixed random network, at 1, 1/2 and 1/4 of their size.

    In LPIPS's manner (Zhang et al. 2018, arXiv:1801.03924): features of unit length, squared differences averaged
    over places; random filters see edges and texture too (Ulyanov et al. 2018, arXiv:1711.10925), and need no weights
    of anybody's. The filters have zero mean, so that colour alone is not seen.
    """

    def __init__(self, widths: Sequence[int] = (24, 32, 48), seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.layers = nn.ModuleList()
        for inputs, outputs in pairwise((3, *widths)):
            conv = nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode="replicate", bias=False)
            weight = torch.randn(conv.weight.shape, generator=generator)
            conv.weight.data = (weight - weight.mean((1, 2, 3), keepdim=True)) / (9 * inputs) ** 0.5
            self.layers.append(conv)
        self.requires_grad_(False)

    def features(self, x: Tensor) -> list[Tensor]:
        normalised = []
        for index, layer in enumerate(self.layers):
            x = F.leaky_relu(layer(halved(x) if index else x), 0.2).float()
            normalised.append(x * (x.square().sum(1, keepdim=True) + 0.01).rsqrt())
        return normalised

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.features(a)
        pairs = zip(wanted, self.features(b), strict=True)
        return torch.stack([(x - y).square().sum(1).mean() for x, y in pairs]).sum()


class PatchDiscriminator(nn.Module):
    """Judges patches of about 22 px (Isola et al. 2017, arXiv:1611.07004), spectrally normalised."""

    def __init__(self, width: int = 32, channels: int = 3) -> None:
        super().__init__()
        sizes = [(channels, width, 2), (width, 2 * width, 2), (2 * width, 3 * width, 1)]
        self.layers = nn.ModuleList(
            spectral_norm(nn.Conv2d(i, o, 4 if s == 2 else 3, stride=s, padding=1)) for i, o, s in sizes
        )
        self.verdict = spectral_norm(nn.Conv2d(3 * width, 1, 3, padding=1))

    def forward(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The verdict a patch, and the features on the way (for feature matching)."""
        features = []
        x = image
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        return self.verdict(x), features


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
