"""Losses that the autoencoder is trained by, and names. Imports no torch: the command line shows its values."""

from __future__ import annotations

from dataclasses import dataclass

# Names of what a diffusion network's training is made of; see ``loop.LoopSettings`` and ``objectives``.
SCHEDULES = ("cosine", "constant", "linear", "onecycle")
BY_EPOCH = ("step", "cosine-by-epoch")  # schedules of the trainings that count epochs
AVERAGES = ("warm", "plain", "power")
OBJECTIVES = ("hybrid", "rescaled-hybrid", "kl", "mse")
SAMPLERS = ("uniform", "loss-second-moment")
PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction", "x0": "sample"}  # as a scheduler_config.json names them


@dataclass(frozen=True)
class Recipe:
    """Weights of the losses, and what else a training is made of.

    Args:
        latent_noise: Std of noise on normalised latents, with which the decoder learns to forgive sampling errors.
        renoised: Share of the batches whose latents are noised and then denoised by the image network, where there
            is one: the decoder learns to make a crisp picture of latents as the sampler gives them.
        adversarial_from: Share of the run after which the discriminator counts.
        perceptual: Weight of the distance in the features of a fixed random network.
        equivariance: Weight of the difference between what half-size latents decode to and the half-size image. It
            makes latents as smooth as images are, and the diffusion network's work easier (Skorokhodov et al. 2025,
            arXiv:2502.14831).
        kl: Weight of half the mean square of the latents: for a fixed std their divergence from a standard normal, up
            to a constant (Kingma & Welling 2013, arXiv:1312.6114). The latents are bounded besides.
        cut: Latents a side by which a decoded window is smaller than the encoded patch; see ``cut_window``.
        edges: Nothing but where windows end is trained: see ``AutoencoderTraining.edges``.
    """

    pixel: float = 1.0
    gradient: float = 1.0
    multiscale: float = 0.5
    spectrum: float = 0.05
    lattice: float = 0.0
    adversarial: float = 0.03
    adversarial_from: float = 0.3
    latent_noise: float = 0.1
    renoised: float = 0.0
    perceptual: float = 0.0
    equivariance: float = 0.0
    kl: float = 0.0
    cut: int = 0
    edges: bool = False


DECODER_ALONE = Recipe(
    pixel=0.4,
    gradient=0.4,
    multiscale=1.0,
    spectrum=0.2,
    lattice=0.2,
    adversarial=0.06,
    adversarial_from=0.03,
    renoised=0.7,
)
EDGES_ALONE = Recipe(edges=True)
