"""The nuclei network's checkpoints: a bare state dict, which is all that its training writes.

Sizes are read from the weights; what these cannot say comes from a preset, the published commands of the system, and
from ``settings``. A file of the arguments of the command that trained it goes before both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from engine.models.convert.checkpoint import below, find_config, read_config
from engine.models.convert.common import Converted, Options, Part, check_settings, refuse_preset, schedule_of, unsaid

# Defaults of the system's own command line, for arguments that a file of arguments leaves out.
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
# What the weights cannot say, as the system's published commands have it (its README and scripts).
UNSAID: dict[str, Any] = {
    "image_size": 128,
    "num_head_channels": 32,
    "use_new_attention_order": False,
    "noise_schedule": "cosine",
    "diffusion_steps": 1000,
    "predict_xstart": False,
    "rescale_timesteps": False,
}
PRESETS: dict[str, dict[str, Any]] = {
    "monuseg": UNSAID,
    "dsb2018": UNSAID | {"noise_schedule": "linear"},
    "ade20k": UNSAID | {"noise_schedule": "linear", "num_head_channels": 64, "image_size": 256},
    "celeba": UNSAID | {"noise_schedule": "linear", "num_head_channels": 64, "image_size": 256},
}
GUIDED = 3  # the system guides the first three channels of the output, a grey image's learned variance among them
HEADS = ("num_heads", "num_heads_upsample")
BETAS = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
NUCLEI = {"least_area": 30, "torn_nuclei": "split"}  # how the system made the maps that its networks were trained with


def convert(checkpoint: Mapping[str, Any], path: Path, options: Options) -> Converted:
    """Convert a checkpoint: a network of pixels that is conditioned on a semantic map."""
    config = find_config(options.config, path, ("args.json", "config.json"))
    tensors = below(checkpoint, "")
    notes: tuple[str, ...] = ()
    if config is None:
        known, notes = unsaid(options, PRESETS, "args.json", HEADS)
        said = {**DEFAULTS, **sizes(tensors, int(known["image_size"])), **known}
    else:
        refuse_preset(options, config)
        check_settings(options, UNSAID, HEADS)
        said = {**DEFAULTS, **read_config(config), **options.settings}
    unet = network(tensors, said)
    check_heads(unet, tensors)
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
    return Converted({"unet": Part(unet, tensors)}, scheduler(said, learned), card, notes)


def sizes(tensors: Mapping[str, Tensor], side: int) -> dict[str, Any]:
    """The arguments of the network that its weights imply.

    Each level's last output stage ends in a layer that doubles the size, which tells how many blocks a level has.

    Args:
        side: Side of the training's images, px: the arguments name attention by the size of the features.
    """
    layers = {key.rsplit(".", 1)[0] for key in tensors}
    doubling = [n for n in range(len(stages(layers, "output_blocks"))) if is_resizing(layers, n)]
    levels = len(doubling) + 1
    if side < 1 or side % 2 ** (levels - 1):
        raise ValueError(f"image_size {side} cannot be halved {levels - 1} times, as the network does; `set` another")
    blocks = len(stages(layers, "output_blocks")) // levels - 1
    firsts = [1 + level * (blocks + 1) for level in range(levels)]  # the first input block of each level
    widths = [len(tensors[f"input_blocks.{first}.0.in_layers.2.bias"]) for first in firsts]
    width = tensors["time_embed.0.weight"].shape[1]
    attended = [level for level, first in enumerate(firsts) if f"input_blocks.{first}.1.qkv" in layers]
    time = tensors["input_blocks.1.0.emb_layers.1.weight"].shape[0]
    return {
        "num_res_blocks": blocks,
        "channel_mult": [each / width for each in widths],
        "attention_resolutions": [side // 2**level for level in attended],
        "use_scale_shift_norm": time == 2 * widths[0],
        "resblock_updown": any(f"{doubled(layers, n)}.in_layers.1" in layers for n in doubling),
    }


def stages(layers: set[str], blocks: str) -> set[str]:
    """The numbers of the stages of ``input_blocks`` or ``output_blocks``."""
    return {match[1] for name in layers if (match := re.match(rf"{blocks}\.(\d+)\.", name))}


def doubled(layers: set[str], stage: int) -> str:
    """The last layer of an output stage: after its block, and its attention where there is one."""
    last = 2 if f"output_blocks.{stage}.1.qkv" in layers else 1
    return f"output_blocks.{stage}.{last}"


def is_resizing(layers: set[str], stage: int) -> bool:
    """Whether an output stage ends in a layer that doubles the size: a convolution, or a block."""
    last = doubled(layers, stage)
    return f"{last}.conv" in layers or f"{last}.in_layers.1" in layers


def check_heads(unet: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Refuse a width of heads that the features with attention are no multiple of.

    Raises:
        ValueError: naming both.
    """
    width = unet["num_head_channels"]
    wide = [tensor.shape[1] for key, tensor in tensors.items() if key.endswith(".qkv.weight")]
    if width != -1 and (other := [each for each in wide if width < 1 or each % width]):
        raise ValueError(
            f"num_head_channels is {width} but attention has {other[0]} features, no multiple of it; say the "
            "training's with `set` num_head_channels=N"
        )


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
    steps, kind = int(said["diffusion_steps"]), said["noise_schedule"]
    if kind not in BETAS:
        raise ValueError(f"noise_schedule is {kind}; known: {', '.join(BETAS)}")
    scheduler = {
        "_class_name": "DDPMScheduler",
        **schedule_of(None, BETAS[kind], steps, 0.1 / steps, 20 / steps),
        "prediction_type": "sample" if said["predict_xstart"] else "epsilon",
        "variance_type": "learned_range" if learned else "fixed_large",
        "clip_sample": True,
        "clip_sample_range": 1.0,
        "rederive_noise": True,
        "timestep_spacing": "smallest_stride",
    }
    return {**scheduler, "network_timestep_scale": 1000 / steps} if said["rescale_timesteps"] else scheduler
