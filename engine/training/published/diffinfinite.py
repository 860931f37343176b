"""What the trainings of DiffInfinite's two networks share: the latents, and the loss of the noise in them (Aversa et
al. 2023, arXiv:2306.13384).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.diffusion.schedule import Schedule
from engine.distributed.ranks import Ranks
from engine.models.codec import LatentCodec
from engine.models.networks.mask_unet import Block, UNet
from engine.training.autoencoder import to_image
from engine.training.diffusion import denoise
from engine.training.loop import image_grid
from engine.training.published.common import Example, Task, Windows
from engine.training.recipe import PREDICTIONS
from engine.training.start import start_weights

STABLE_DIFFUSION = 0.18215  # scaling_factor of its autoencoders, versions 1 and 2
LATENTS_SCALE = 50.0  # what latents of that autoencoder are divided by
GROUPS, FACTOR, CHANNELS = 2, 8, 4  # of the networks' normalisation; of Stable Diffusion 2's autoencoder
LEVELS, SHOWN = 25, 4
MakeExample = Callable[[int, np.random.Generator], Example]


@dataclass(frozen=True)
class DiffInfiniteSettings:
    """What is trained, as ``--help`` of the two commands says."""

    window: int
    dim: int
    dim_mults: Sequence[int]
    dropout: float
    drop: float
    latents_scale: float
    pixel_size: float
    prediction: str
    timesteps: str
    hold_out: int
    validation_windows: int
    seed: int


def scheduler_of(prediction: str = "epsilon") -> dict[str, Any]:
    """As ``engine.models.convert`` writes it of the published checkpoints, where the noise is predicted."""
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": 1000,
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": PREDICTIONS[prediction],
        "clip_sample": True,
        "clip_sample_range": 1.0,
        "rederive_noise": False,
        "timestep_spacing": "trailing",
        "set_alpha_to_one": True,
    }


def own_scale(config: Mapping[str, Any]) -> float:
    """What the latents of an autoencoder are divided by; 0: it is Stable Diffusion's, of which it is published.

    Args:
        config: Of its ``config.json``; what ``engine.train first-stage`` wrote says the latents' standard deviation.
    """
    factor = float(config.get("scaling_factor") or STABLE_DIFFUSION)
    return 0.0 if factor == STABLE_DIFFUSION else 1 / factor


def drop_features(network: nn.Module, share: float) -> None:
    """Set a share of the features after every block of convolutions to 0, while the network is trained."""

    def dropped(block: nn.Module, given: Any, features: Tensor) -> Tensor:
        return F.dropout(features, share, block.training)

    for module in network.modules():
        if isinstance(module, Block) and share:
            module.register_forward_hook(dropped)


def check_codec(codec: LatentCodec) -> None:
    """Refuse an autoencoder of other latents than the networks are made for.

    Raises:
        ValueError: naming what differs.
    """
    config: Any = codec.network.config
    factor, channels = 2 ** (len(config["block_out_channels"]) - 1), config["latent_channels"]
    if (codec.kind, factor, channels) != ("AutoencoderKL", FACTOR, CHANNELS):
        raise ValueError(
            f"`vae` is a {codec.kind} of factor {factor} and {channels} channels; the networks take an AutoencoderKL "
            f"of factor {FACTOR} and {CHANNELS}"
        )


def latent_task(
    make: Callable[[], UNet],
    shown: Mapping[str, Tensor],
    facts: Mapping[str, Any],
    learned: MakeExample,
    judged: MakeExample | None,
    said: str,
    settings: DiffInfiniteSettings,
    codec: LatentCodec,
    init: Path | None,
    ranks: Ranks,
    device: str,
) -> Task:
    """The training of either network on the latents of the autoencoder. Collective.

    Args:
        make: Function that makes the network.
        shown: What the pictures are drawn of: the network's inputs, in the order in which it takes them.
        facts: The values of ``card.json``.
        learned, judged: Functions that make the examples that are trained on and judged by.
    """
    ranks.agree(lambda: check_codec(codec))
    torch.manual_seed(settings.seed)
    network = ranks.agree(make)
    if init is not None:
        ranks.agree(lambda: start_weights(network, network.config, init))
    drop_features(network, settings.dropout)
    side, scheduler = settings.window // FACTOR, scheduler_of(settings.prediction)
    schedule = Schedule.from_config(scheduler)
    latents, inputs = (CHANNELS, side, side), {name: value.to(device) for name, value in shown.items()}

    def evaluate(network: nn.Module, x: Tensor, t: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        return network(x, t, *(inputs[name] for name in shown))

    def picture(averaged: nn.Module) -> np.ndarray:
        x = torch.randn(len(shown["label"]), *latents, generator=torch.Generator().manual_seed(0)).to(device)
        levels = schedule.timesteps(LEVELS).tolist()
        made = denoise(lambda x, t: evaluate(averaged, x, t, inputs), schedule, x, levels)
        return image_grid(to_image(codec.decode(made)), SHOWN)

    return Task(
        network,
        evaluate,
        scheduler,
        facts,
        {"unet": ["slidefield", type(network).__name__], "vae": ["diffusers", "AutoencoderKL"]},
        Windows(learned, settings.seed, latents),
        None if judged is None else Windows(judged, settings.seed, latents),
        picture,
        "mse",
        settings.timesteps,
        said,
        settings.validation_windows,
        codec,
    )
