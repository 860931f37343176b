"""Large-Image-Diffusion's checkpoints (Graikos et al. 2024, arXiv:2312.07330): latent diffusion whose tokens come from
embeddings of a patch and its region.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from engine.models.convert.checkpoint import below, need_config, read_config
from engine.models.convert.common import Converted, Options, Part, latents_defaults, schedule_of
from engine.models.convert.latent_diffusion import (
    first_stage_config,
    first_stage_kind,
    first_stage_tensors,
    unet_config,
    unet_tensors,
)

OBJECTIVES = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
# What the notebooks sample with: large images by a loop of their own, patches by latent diffusion's PLMS.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "large-image": {
        "defaults": {"solver": "ddim", "eta": 1.0, "guidance": 4.0},
        "scheduler": {
            "rederive_noise": True,
            "timestep_spacing": "trailing",
            "set_alpha_to_one": True,
            "network_timestep_offset": 1,  # timesteps count from 1 there
            "eta_variance": "one_timestep",
        },
    },
    "patches": {
        "defaults": {"solver": "plms", "eta": 0.0, "guidance": 2.0},
        "scheduler": {"timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False},
    },
}
BETAS = {"linear": "scaled_linear", "cosine": "squaredcos_cap_v2", "sqrt_linear": "linear"}


def convert(checkpoint: Mapping[str, Any], path: Path, options: Options) -> Converted:
    """Convert a checkpoint of a latent-diffusion project whose conditioner embeds a patch and its region."""
    places = ("../configs/*-project.yaml", "configs/*-project.yaml", "../configs/*.yaml", "configs/*.yaml")
    name = options.preset or next(iter(PRESETS))
    if name not in PRESETS:
        raise ValueError(f"`preset` {name} is none of this system's: {', '.join(PRESETS)}")
    preset = PRESETS[name]
    config = need_config(options.config, path, places)
    params = read_config(config)["model"]["params"]
    state = checkpoint.get("state_dict", checkpoint)
    unet, scale = params["unet_config"]["params"], float(state.get("scale_factor", params.get("scale_factor", 1.0)))
    parts = {
        "unet": Part(unet_config(unet), unet_tensors(below(state, "model.diffusion_model."), unet)),
        "vae": first_stage(below(state, "first_stage_model."), params["first_stage_config"], scale, path),
        "embedder": patch_embedder(below(state, "cond_stage_model."), params.get("cond_stage_config", {}), path),
    }
    patch = options.patch or int(unet["image_size"])
    card = {
        "condition": "embedding",
        "space": "latents",
        "patch_size": patch,
        "pixel_size_um": options.pixel_size_um or 0.5,
        "defaults": latents_defaults(patch, steps=50, **preset["defaults"]),
    }
    notes = ("the checkpoint has averaged weights too (model_ema); like their sampler, this takes the others",)
    schedule = scheduler(params, state, config) | preset["scheduler"]
    return Converted(parts, schedule, card, notes if "model_ema.decay" in state else ())


def first_stage(tensors: Mapping[str, Tensor], config: Mapping[str, Any], scale: float, path: Path) -> Part:
    """The autoencoder, with a codebook or of KL; what it was trained with (``loss``) is left out.

    Raises:
        ValueError: it is another kind, or diffusers' network does not have a setting.
    """
    kind, params = first_stage_kind(tensors), config.get("params", {})
    if kind is None:
        raise ValueError(
            f"{path}: its first stage is {config.get('target')}, with no codebook (quantize) and no mean and variance "
            "(quant_conv); only autoencoders of VQ or KL are converted"
        )
    weights = {name: tensor for name, tensor in tensors.items() if not name.startswith("loss.")}
    settings = first_stage_config(kind, params, scale)
    return Part(settings, first_stage_tensors(weights, len(params["ddconfig"]["ch_mult"])))


def patch_embedder(tensors: dict[str, Tensor], config: Mapping[str, Any], path: Path) -> Part:
    """The conditioner: a linear layer for the patch's embedding, and one for the region's where there is one."""
    patch, region = tensors.get("patch_fc.weight"), tensors.get("region_fc.weight")
    if patch is None:
        raise ValueError(f"{path}: its conditioner is {config.get('target')}, not one of patch embeddings (patch_fc)")
    settings = {
        "_class_name": "Embedder",
        "patch_width": patch.shape[1],
        "width": patch.shape[0],
        "region_width": 0 if region is None else region.shape[1],
        "normalize": bool(config.get("params", {}).get("normalize_ssl", False)),
    }
    return Part(settings, tensors)


def scheduler(params: Mapping[str, Any], state: Mapping[str, Any], config: Path) -> dict[str, Any]:
    """The schedule that the network was trained with."""
    kind, steps = BETAS[params.get("beta_schedule", "linear")], int(params.get("timesteps", 1000))
    start, end = float(params.get("linear_start", 1e-4)), float(params.get("linear_end", 2e-2))
    noise = schedule_of(state.get("betas"), kind, steps, start, end)
    if "trained_betas" in noise:
        raise ValueError(
            f"{config}: its timesteps and betas are not those of the checkpoint; name its own with `config`"
        )
    return {
        "_class_name": "DDIMScheduler",
        **noise,
        "prediction_type": OBJECTIVES[params.get("parameterization", "eps")],
        "clip_sample": False,
    }
