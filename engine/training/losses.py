"""Reconstruction losses of the autoencoder, and its patch discriminator."""

from __future__ import annotations

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
