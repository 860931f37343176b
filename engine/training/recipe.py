"""What the autoencoder is trained for. Imports no torch: the command line shows it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """Weights of the losses, and what else a training is made of.

    Args:
        latent_noise: on normalised latents: the decoder learns to forgive what the sampler gets wrong.
        renoised: share of the batches whose latents were noised and denoised again by the image network, where there
            is one: the decoder learns to make a crisp picture of what the sampler really gives it.
        perceptual: distance in the features of a fixed random network.
        equivariance: half-size latents are to decode to the half-size image: latents become as smooth as images are,
            and a diffusion network's work is easier (Skorokhodov et al. 2025, arXiv:2502.14831).
        kl: half the mean square of the latents: the divergence of latents of a fixed spread from a standard normal, up
            to a constant (Kingma & Welling 2013, arXiv:1312.6114). The latents are bounded besides.
        adversarial_from: share of the run after which the discriminator has a say.
    """

    pixel: float = 1.0
    gradient: float = 1.0
    multiscale: float = 0.5
    spectrum: float = 0.05
    lattice: float = 0.0
    adversarial: float = 0.03
    adversarial_from: float = 0.5
    latent_noise: float = 0.05
    renoised: float = 0.0
    perceptual: float = 0.1
    equivariance: float = 0.25
    kl: float = 1e-4


DECODER_ALONE = Recipe(
    pixel=0.4,
    gradient=0.4,
    multiscale=1.0,
    spectrum=0.2,
    lattice=0.2,
    adversarial=0.06,
    adversarial_from=0.03,
    latent_noise=0.1,
    renoised=0.7,
    equivariance=0.0,
    kl=0.0,
)
