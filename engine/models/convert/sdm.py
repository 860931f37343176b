"""The nuclei network's checkpoints: a bare state dict, and the arguments of the command that trained it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from engine.models.convert.checkpoint import below, need_config, read_config
from engine.models.convert.common import Converted, Options, Part, schedule_of

# Defaults of the system's own command line, for arguments that args.json leaves out.
DEFAULTS: dict[str, Any] = {
    "num_res_blocks": 2,
    "num_heads": 4,
    "num_heads_upsample": -1,
    "num_head_channels": -1,
    "attention_resolutions": "16,8",
    "channel_mult": "",
    "dropout": 0.0,
    "use_scale_shift_norm": True,
    "resblock_updown": False,
    "use_new_attention_order": False,
    "diffusion_steps": 1000,
    "noise_schedule": "linear",
    "predict_xstart": False,
    "rescale_timesteps": False,
}
MULTIPLES = {512: (0.5, 1, 1, 2, 2, 4, 4), 256: (1, 1, 2, 2, 4, 4), 128: (1, 1, 2, 3, 4), 64: (1, 2, 3, 4)}
GUIDED = 3  # the system guides the first three channels of the output, a grey image's learned variance among them
BETAS = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
NUCLEI = {"least_area": 30, "torn_nuclei": "split"}  # how the system made the maps that its networks were trained with


def convert(checkpoint: Mapping[str, Any], path: Path, options: Options) -> Converted:
    """Convert a checkpoint: a network of pixels that is conditioned on a semantic map."""
    config = need_config(options.config, path, ("args.json", "config.json"))
    said = {**DEFAULTS, **read_config(config)}
    tensors = below(checkpoint, "")
    unet = network(tensors, said)
    patch = options.patch or int(said["image_size"])
    card = {
        "condition": "semantic",
        "space": "pixels",
        "patch_size": patch,
        "pixel_size_um": options.pixel_size_um or 0.25,
        "defaults": {"steps": int(said["diffusion_steps"]), "solver": "ddpm", "guidance": 1.5, "batch_size": 8}
        | NUCLEI,
    }
    learned = unet["out_channels"] != unet["channels"]
    if learned and unet["channels"] < GUIDED:
        card["guided_channels"] = min(GUIDED, unet["out_channels"])
    if learned != bool(said.get("learn_sigma", learned)):
        raise ValueError(
            f"{config}: learn_sigma is {said['learn_sigma']} but the network gives {unet['out_channels']} channels"
        )
    return Converted({"unet": Part(unet, tensors)}, scheduler(said, learned), card)


def network(tensors: Mapping[str, Tensor], said: Mapping[str, Any]) -> dict[str, Any]:
    """The network's settings: channels from the weights, all others from the arguments of its training."""
    side, multiples = int(said["image_size"]), said["channel_mult"]
    if multiples == "" and side not in MULTIPLES:
        raise ValueError(f"args.json: channel_mult is empty and has no default for image_size {side}")
    kept = ("num_res_blocks", "num_heads", "num_head_channels", "num_heads_upsample", "use_scale_shift_norm")
    return {
        "_class_name": "SpadeUNet",
        "map_channels": tensors["middle_block.0.in_norm.mlp_shared.0.weight"].shape[1],
        "channels": tensors["input_blocks.0.0.weight"].shape[1],
        "out_channels": tensors["out.2.weight"].shape[0],
        "model_channels": tensors["time_embed.0.weight"].shape[1],
        "channel_mult": list(MULTIPLES[side]) if multiples == "" else numbers(multiples),
        "attention_factors": [side // int(resolution) for resolution in numbers(said["attention_resolutions"])],
        **{key: said[key] for key in (*kept, "resblock_updown", "use_new_attention_order", "dropout")},
    }


def numbers(said: Any) -> list[Any]:
    """Numbers, given in one text with commas or as a list.

    >>> numbers("1,2,2"), numbers([0.5, 1])
    ([1, 2, 2], [0.5, 1])
    """
    parts = [part.strip() for part in said.split(",")] if isinstance(said, str) else list(said)
    return [int(value) if float(value).is_integer() else float(value) for value in map(float, parts)]


def scheduler(said: Mapping[str, Any], learned: bool) -> dict[str, Any]:
    steps = int(said["diffusion_steps"])
    scheduler = {
        "_class_name": "DDPMScheduler",
        **schedule_of(None, BETAS[said["noise_schedule"]], steps, 0.1 / steps, 20 / steps),
        "prediction_type": "sample" if said["predict_xstart"] else "epsilon",
        "variance_type": "learned_range" if learned else "fixed_large",
        "clip_sample": True,
        "clip_sample_range": 1.0,
        "rederive_noise": True,
        "timestep_spacing": "leading",
    }
    return {**scheduler, "network_timestep_scale": 1000 / steps} if said["rescale_timesteps"] else scheduler
