"""Latent-diffusion checkpoints (Rombach et al. 2022, arXiv:2112.10752) as diffusers' UNet2DConditionModel and
VQModel or AutoencoderKL.

Only names and settings change: no weight does. A setting that diffusers' networks do not have is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

Settings = Mapping[str, Any]
RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
# Settings that diffusers' U-Net does not have, each with the value at which that makes no difference.
UNET_PLAIN = {
    "resblock_updown": False,
    "conv_resample": True,
    "dims": 2,
    "num_classes": None,
    "n_embed": None,
    "disable_self_attentions": None,
    "num_attention_blocks": None,
    "disable_middle_self_attn": False,
}
FIRST_STAGE_PLAIN = {
    "resamp_with_conv": True,
    "give_pre_end": False,
    "tanh_out": False,
    "attn_type": "vanilla",
}
FIRST_STAGE_NAMES = (
    (r"\bnin_shortcut\b", "conv_shortcut"),
    (r"\bmid\.block_1\b", "mid_block.resnets.0"),
    (r"\bmid\.block_2\b", "mid_block.resnets.1"),
    (r"\bmid\.attn_1\b", "mid_block.attentions.0"),
    (r"\bnorm_out\b", "conv_norm_out"),
    (r"\b(down|up)\.(\d+)\.block\.", r"\1_blocks.\2.resnets."),
    (r"\b(down|up)\.(\d+)\.attn\.", r"\1_blocks.\2.attentions."),
    (r"\b(down|up)\.(\d+)\.(down|up)sample\.", r"\1_blocks.\2.\3samplers.0."),
)
FIRST_STAGE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def refuse_unlike(settings: Settings, plain: Settings, what: str) -> None:
    """Refuse settings that diffusers' network does not have.

    Args:
        settings: Settings of the checkpoint.
        plain: Settings that diffusers' network does not have, each with the value at which that makes no difference.
        what: Name of the settings, for the error.
    Raises:
        ValueError: a setting has another value.
    """
    for key, value in plain.items():
        if settings.get(key, value) not in (value, None):
            raise ValueError(f"{what}: {key} is {settings.get(key)!r}; only {value!r} can be converted")


def unet_config(settings: Settings) -> dict[str, Any]:
    """diffusers' settings of the U-Net, from those of ``unet_config.params``.

    Raises:
        ValueError: diffusers' network does not have a setting.
    """
    if not settings.get("use_spatial_transformer"):
        raise ValueError("unet_config: use_spatial_transformer is not set; only U-Nets that read tokens are converted")
    refuse_unlike(settings, UNET_PLAIN, "unet_config")
    widths = [settings["model_channels"] * mult for mult in settings["channel_mult"]]
    if widths[0] != settings["model_channels"]:
        raise ValueError(
            f"unet_config: channel_mult begins with {settings['channel_mult'][0]}; only 1 can be converted"
        )
    context = settings["context_dim"]
    attended = [2**level in settings["attention_resolutions"] for level in range(len(widths))]
    down = ["CrossAttnDownBlock2D" if here else "DownBlock2D" for here in attended]
    up = ["CrossAttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attended)]
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": settings["image_size"],
        "in_channels": settings["in_channels"],
        "out_channels": settings["out_channels"],
        "block_out_channels": widths,
        "layers_per_block": settings["num_res_blocks"],
        "down_block_types": down,
        "up_block_types": up,
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "attention_head_dim": heads(settings, widths),  # diffusers' name for the number of heads
        "cross_attention_dim": context[0] if isinstance(context, list) else context,
        "transformer_layers_per_block": settings.get("transformer_depth", 1),
        "use_linear_projection": bool(settings.get("use_linear_in_transformer", False)),
        "resnet_time_scale_shift": "scale_shift" if settings.get("use_scale_shift_norm") else "default",
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "norm_num_groups": 32,
        "norm_eps": 1e-5,
        "act_fn": "silu",
    }


def heads(settings: Settings, widths: list[int]) -> list[int]:
    """Attention heads of each level: ``num_head_channels`` goes before ``num_heads``.

    >>> heads({"num_heads": 8, "num_head_channels": 32}, [64, 128])
    [2, 4]
    """
    width = settings.get("num_head_channels", -1)
    count = settings.get("num_heads", -1)
    if width == -1 and count == -1:
        raise ValueError("unet_config: neither num_heads nor num_head_channels is set")
    return [count if width == -1 else max(n // width, 1) for n in widths]


def unet_tensors(tensors: Mapping[str, Tensor], settings: Settings) -> dict[str, Tensor]:
    """The U-Net's weights under diffusers' names.

    Raises:
        ValueError: a weight has no place in diffusers' network.
    """
    layers = settings["num_res_blocks"]
    blocks = unet_blocks(layers if isinstance(layers, list) else [layers] * len(settings["channel_mult"]))
    return {renamed(key, blocks): tensor for key, tensor in tensors.items()}


def unet_blocks(layers: list[int]) -> dict[str, str]:
    """diffusers' name of each block, by its name in the checkpoint.

    Args:
        layers: Number of residual blocks of each level.
    """
    names = {
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "input_blocks.0.0": "conv_in",
        "middle_block.0": "mid_block.resnets.0",
        "middle_block.1": "mid_block.attentions.0",
        "middle_block.2": "mid_block.resnets.1",
        "out.0": "conv_norm_out",
        "out.2": "conv_out",
    }
    index = 1
    for level, count in enumerate(layers):
        for layer in range(count):
            names[f"input_blocks.{index}.0"] = f"down_blocks.{level}.resnets.{layer}"
            names[f"input_blocks.{index}.1"] = f"down_blocks.{level}.attentions.{layer}"
            index += 1
        names[f"input_blocks.{index}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
        index += 1
    index = 0
    for level, count in enumerate(reversed(layers)):
        for layer in range(count + 1):
            names[f"output_blocks.{index}.0"] = f"up_blocks.{level}.resnets.{layer}"
            names[f"output_blocks.{index}.1"] = f"up_blocks.{level}.attentions.{layer}"
            for place in (1, 2):  # after the attention, if there is any
                names[f"output_blocks.{index}.{place}.conv"] = f"up_blocks.{level}.upsamplers.0.conv"
            index += 1
    return names


def renamed(key: str, blocks: Mapping[str, str]) -> str:
    """diffusers' name of a weight, from the longest block name that it begins with.

    >>> renamed("out.2.bias", unet_blocks([1, 1]))
    'conv_out.bias'
    >>> renamed("input_blocks.1.0.in_layers.2.weight", unet_blocks([1, 1]))
    'down_blocks.0.resnets.0.conv1.weight'
    """
    parts = key.split(".")
    for length in range(len(parts) - 1, 0, -1):
        if (block := blocks.get(".".join(parts[:length]))) is not None:
            rest = ".".join(parts[length:])
            for theirs, name in RESNET.items() if ".resnets." in block else ():
                if rest.startswith(theirs + "."):
                    rest = name + rest[len(theirs) :]
            return f"{block}.{rest}"
    raise ValueError(f"the U-Net's weight {key} has no place in diffusers' UNet2DConditionModel")


def first_stage_kind(tensors: Mapping[str, Tensor]) -> str | None:
    """diffusers' class of an autoencoder, told by its weights; None: it is neither of the two.

    One with a codebook is a VQModel. One that gives two values for each that it decodes, mean and log-variance, is an
    AutoencoderKL.
    """
    if "quantize.embedding.weight" in tensors:
        return "VQModel"
    moments, latents = tensors.get("quant_conv.weight"), tensors.get("post_quant_conv.weight")
    if moments is None or latents is None or moments.shape[0] != 2 * latents.shape[1]:
        return None
    return "AutoencoderKL"


def first_stage_config(kind: str, params: Settings, scale: float) -> dict[str, Any]:
    """diffusers' settings of the autoencoder.

    Args:
        kind: Its class, ``VQModel`` or ``AutoencoderKL``.
        params: Content of ``first_stage_config.params``.
        scale: Factor of the latents that the U-Net works on.
    Raises:
        ValueError: diffusers' network does not have a setting.
    """
    settings, is_kl = params["ddconfig"], kind == "AutoencoderKL"
    refuse_unlike(settings, {"double_z": is_kl, **FIRST_STAGE_PLAIN}, "first_stage_config")
    if is_kl and params["embed_dim"] != settings["z_channels"]:
        raise ValueError(
            f"first_stage_config: embed_dim is {params['embed_dim']} and z_channels {settings['z_channels']}; only "
            "a KL autoencoder in which they are equal can be converted"
        )
    if settings["ch_mult"][0] != 1:
        raise ValueError(f"first_stage_config: ch_mult begins with {settings['ch_mult'][0]}; only 1 can be converted")
    levels = len(settings["ch_mult"])
    attended = [settings["resolution"] // 2**level in settings["attn_resolutions"] for level in range(levels)]
    down = ["AttnDownEncoderBlock2D" if here else "DownEncoderBlock2D" for here in attended]
    up = ["AttnUpDecoderBlock2D" if here else "UpDecoderBlock2D" for here in reversed(attended)]
    codebook = {} if is_kl else {"vq_embed_dim": params["embed_dim"], "num_vq_embeddings": params["n_embed"]}
    return {
        "_class_name": kind,
        "in_channels": settings["in_channels"],
        "out_channels": settings["out_ch"],
        "block_out_channels": [settings["ch"] * mult for mult in settings["ch_mult"]],
        "layers_per_block": settings["num_res_blocks"],
        "down_block_types": down,
        "up_block_types": up,
        "latent_channels": settings["z_channels"],
        **codebook,
        "sample_size": settings["resolution"],
        "scaling_factor": scale,
        "norm_num_groups": 32,
        "act_fn": "silu",
    }


def first_stage_tensors(tensors: Mapping[str, Tensor], levels: int) -> dict[str, Tensor]:
    """The autoencoder's weights under diffusers' names; attention's 1 x 1 convolutions become matrices."""
    renamed = {}
    for key, tensor in tensors.items():
        name = key
        for pattern, replacement in FIRST_STAGE_NAMES:
            name = re.sub(pattern, replacement, name)
        name = re.sub(r"\bup_blocks\.(\d+)", lambda match: f"up_blocks.{levels - 1 - int(match[1])}", name)
        if (match := re.fullmatch(r"(.*\.attentions\.\d+\.)(\w+)(\.\w+)", name)) is not None:
            name = match[1] + FIRST_STAGE_ATTENTION[match[2]] + match[3]
            tensor = tensor.flatten(1) if tensor.ndim == 4 else tensor
        renamed[name] = tensor
    return renamed
