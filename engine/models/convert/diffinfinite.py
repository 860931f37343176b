"""DiffInfinite's checkpoints (Aversa et al. 2023, arXiv:2306.13384): the image model and the label model.

Neither contains its autoencoder, which is that of Stable Diffusion 2. Sizes are read from the weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from engine.models.card import autoencoder_sizes
from engine.models.convert.checkpoint import below, find_config, read_config
from engine.models.convert.common import Converted, Options, Part, latents_defaults, named, numbered, schedule_of
from engine.models.files import WEIGHTS, check_safetensors, read_json

LABELS = {
    5: ("unknown", "carcinoma", "necrosis", "tumour stroma", "other"),
    10: (
        "unknown",
        "alveole",
        "artery",
        "artifact",
        "carcinoma",
        "cartilage",
        "connective tissue",
        "necrosis",
        "tumour stroma",
        "other",
    ),
}
SUBTYPES = ("adenocarcinoma", "squamous cell carcinoma")
# Factor of each channel of the label model's normalised latents before they are decoded, by the number of labels.
LABEL_LATENTS_STD = {5: [40.0, 36.0, 48.0, 32.0], 10: [46.0, 36.0, 55.0, 36.0]}
OBJECTIVES = {"pred_noise": "epsilon", "pred_x0": "sample", "pred_v": "v_prediction"}
BETAS = {"linear": "linear", "cosine": "squaredcos_cap_v2"}


def convert_image(checkpoint: Mapping[str, Any], path: Path, options: Options) -> Converted:
    """Convert the image model: latents, divided by 50, of an autoencoder that gives pixels in [0, 1]."""
    tensors, settings, notes = weights_of(checkpoint, path, options)
    patch = int(settings.get("image_size", 512)) // 8
    unet = {"_class_name": "MaskUNet", **settings["unet"]}
    count = unet["num_classes"]
    card = {
        "condition": "label-map",
        **card_of(options, patch, 0.5),
        "labels": named(options, count, LABELS.get(count, ("unknown", *numbered("label", count)[1:]))),
        "latents_scale": 50.0,
        "pixel_range": [0.0, 1.0],
        "defaults": latents_defaults(options.patch or patch, steps=250, eta=1.0, guidance=4.0),
    }
    parts = {"unet": Part(unet, tensors), **named_autoencoder(options, unet["channels"])}
    return Converted(parts, scheduler(checkpoint, settings), card, notes)


def convert_labels(checkpoint: Mapping[str, Any], path: Path, options: Options) -> Converted:
    """Convert the label model: label maps as pictures, one of whose pixels is four of the image's along a side."""
    tensors, settings, notes = weights_of(checkpoint, path, options)
    unet = {"_class_name": "LabelUNet", **settings["unet"]}
    classes, patch = unet["num_classes"], int(settings.get("mask_size", 128)) // 8
    count = options.label_count or settings.get("num_labels")
    if count is None:
        count, notes = 5, (*notes, "neither `label_count` nor the configuration says how many labels: taken as 5")
    if count not in LABEL_LATENTS_STD:
        raise ValueError(f"label maps of {count} labels: the scales of their latents are published for 5 and 10 alone")
    card = {
        "condition": "class",
        "role": "labels",
        "label_scale": 4,
        "label_count": int(count),
        **card_of(options, patch, 2.0),
        "labels": named(options, classes, SUBTYPES if classes == 2 else numbered("class", classes)),
        "latents_std": LABEL_LATENTS_STD[count],
        "defaults": latents_defaults(options.patch or patch, steps=250, eta=1.0, guidance=1.0),
    }
    parts = {"unet": Part(unet, tensors), **named_autoencoder(options, unet["channels"])}
    return Converted(parts, scheduler(checkpoint, settings), card, notes)


def weights_of(
    checkpoint: Mapping[str, Any], path: Path, options: Options
) -> tuple[dict[str, Tensor], dict[str, Any], tuple[str, ...]]:
    """Averaged weights, settings (those of the network under ``unet``) and notes of one of DiffInfinite's models.

    Raises:
        ValueError: there are no averaged weights, or the configuration contradicts them.
    """
    ema = checkpoint.get("ema")
    tensors = below(ema, "ema_model.model.") if isinstance(ema, Mapping) else {}
    if not tensors:
        raise ValueError(
            f"{path} has no averaged weights (ema: ema_model.model.*), and samples are drawn from these; "
            f"it has {', '.join(checkpoint)}"
        )
    config = find_config(options.config, path, ("config.json", "config.yaml", "config.yml"))
    said, settings = settings_of(config)
    measured = sizes(tensors)
    for key, value in measured.items():
        if said.get(key, value) != value:
            raise ValueError(f"{config}: {key} is {said[key]!r} but the weights of {path} say {value!r}")
    notes: tuple[str, ...] = ()
    if "resnet_block_groups" not in said:
        notes = ("no configuration says resnet_block_groups: taken as 2, as all that they published have it",)
    unet = {**measured, "resnet_block_groups": int(said.get("resnet_block_groups", 2))}
    return tensors, {**settings, "unet": unet}, notes


def settings_of(config: Path | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of the network, and the other settings, from config.json or from their YAML (unet, dm)."""
    said = read_config(config) if config else {}
    unet = dict(said.pop("unet", {}))
    settings = {**said.pop("dm", {}), **said}
    settings.pop("image_size", None)  # may count latents or pixels; their YAML's unet has one that counts pixels
    return unet, {**settings, **{key: unet[key] for key in ("image_size",) if key in unet}}


def sizes(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of the network that its weights imply."""
    dim = tensors["init_conv.weight"].shape[0]
    levels = 1 + max(int(key.split(".")[1]) for key in tensors if key.startswith("downs."))
    blocks = len({key.split(".")[2] for key in tensors if re.match(r"downs\.0\.\d+\.block1\.", key)})
    widths = [tensors[f"downs.{level}.{blocks + 1}.weight"].shape[0] for level in range(levels)]
    return {
        "dim": dim,
        "num_classes": tensors["classes_emb.weight"].shape[0],
        "dim_mults": [width // dim for width in widths],
        "channels": tensors["init_conv.weight"].shape[1],
        "block_per_layer": blocks,
    }


def card_of(options: Options, patch: int, pixel_size_um: float) -> dict[str, Any]:
    """The part of card.json that both models share; their latents are those of Stable Diffusion's autoencoder."""
    return {
        "space": "latents",
        "patch_size": options.patch or patch,
        "factor": 8,
        "image_channels": 3,
        "pixel_size_um": options.pixel_size_um or pixel_size_um,
    }


def scheduler(checkpoint: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The schedule of the checkpoint's betas, by name where they have one."""
    table = checkpoint["ema"].get("ema_model.betas")
    steps = int(settings.get("timesteps", 1000))
    noise = schedule_of(table, BETAS[settings.get("beta_schedule", "cosine")], steps, 0.1 / steps, 20 / steps)
    return {
        "_class_name": "DDIMScheduler",
        **noise,
        "prediction_type": OBJECTIVES[settings.get("objective", "pred_noise")],
        "clip_sample": True,
        "clip_sample_range": 1.0,
        "rederive_noise": False,
        "timestep_spacing": "trailing",
        "set_alpha_to_one": True,
    }


def named_autoencoder(options: Options, channels: int) -> dict[str, Part]:
    """The autoencoder in the options' ``vae``, a folder of diffusers or of a pipeline that contains one.

    Raises:
        ValueError: there is none, or the model was trained on other latents.
    """
    if options.vae is None:
        return {}
    folders = [folder for folder in (options.vae, options.vae / "vae") if (folder / "config.json").is_file()]
    configs = [(folder, read_json(folder / "config.json")) for folder in folders]
    autoencoders = [
        (folder, config) for folder, config in configs if config.get("_class_name") in ("AutoencoderKL", "VQModel")
    ]
    if not autoencoders:
        raise ValueError(f"`vae` {options.vae} holds no diffusers autoencoder (config.json of an AutoencoderKL)")
    folder, config = autoencoders[0]
    check_safetensors(folder / WEIGHTS)
    sizes = autoencoder_sizes(config)
    if (sizes["channels"], sizes["factor"]) != (channels, 8):
        raise ValueError(
            f"`vae` {folder}: its latents have {sizes['channels']} channels and {sizes['factor']} pixels a side, "
            f"but the checkpoint's model was trained on {channels} and 8"
        )
    return {"vae": Part(config, source=folder)}
