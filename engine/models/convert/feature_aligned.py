"""Feature-aligned diffusion's checkpoints: grey pixels, and one token from the embedding of the class's name.

The training writes weights alone. Sizes are read from them; what they cannot say is that of segmind/tiny-sd, which the
system tunes. The embeddings of the classes are computed by the CLIP that lies in the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from engine.models.convert.checkpoint import below, find_config, read_config
from engine.models.convert.clip_tower import TOKENS_OF_NAMES, class_embeddings, why_no_tower
from engine.models.convert.common import (
    Converted,
    Options,
    Part,
    check_settings,
    named,
    numbered,
    refuse_preset,
    schedule_of,
    unsaid,
)

# The published classes, and the mean brightness of each one's training images, which drawings are held against.
NAMES = tuple(TOKENS_OF_NAMES)
MEANS = [0.3036, 0.4749, 0.3937, 0.2913, 0.5669, 0.4343, 0.8942]
PRESETS: dict[str, dict[str, Any]] = {
    "tiny-sd": {"sample_size": 64, "attention_head_dim": 8, "norm_num_groups": 32},
}


def convert(checkpoint: Mapping[str, Any], path: Path, options: Options) -> Converted:
    """Convert a checkpoint: grey pixels in [0, 1], and one token from the embedding of the class's name."""
    config = find_config(options.config, path, ("unet_config.json", "config.json", "unet/config.json"))
    state = checkpoint.get("model_state_dict", checkpoint)
    tensors, linear = below(state, "model."), below(state, "text_to_cross_dim.")
    if not linear:
        raise ValueError(f"{path} has no text_to_cross_dim, the layer that makes tokens of class embeddings")
    notes: tuple[str, ...] = ()
    if config is None:
        known, notes = unsaid(options, PRESETS, "unet_config.json")
        said = {**sizes(tensors), **known}
        check_groups(said)
    else:
        refuse_preset(options, config)
        check_settings(options, PRESETS["tiny-sd"])
        said = {**{k: v for k, v in read_config(config).items() if not k.startswith("_")}, **options.settings}
    channels = {"in_channels": tensors["conv_in.weight"].shape[1], "out_channels": tensors["conv_out.weight"].shape[0]}
    width, embedded = linear["weight"].shape
    embedder = {"_class_name": "Embedder", "patch_width": embedded, "width": width, "region_width": 0}
    parts = {
        "unet": Part({"_class_name": "UNet2DConditionModel", **said, **channels}, tensors),
        "embedder": Part({**embedder, "normalize": False}, {f"patch_fc.{k}": v for k, v in linear.items()}),
    }
    classes, told = class_table(options, embedded, below(state, "clip_model."))
    card = facts_of(options.patch or int(said["sample_size"]), options.pixel_size_um or 1.16)
    count = len(NAMES) if classes is None else len(classes)
    names = options.names or (NAMES if count == len(NAMES) else numbered("class", count))
    card["labels"] = named(options, count, names)
    if all(name.lower() in NAMES for name in names):
        card["class_means"] = [MEANS[NAMES.index(name.lower())] for name in names]
    return Converted(parts, scheduler(), card, (*notes, *told), classes=classes)


def facts_of(patch: int, pixel_size_um: float) -> dict[str, Any]:
    """The card of such a model, but for its classes."""
    return {
        "condition": "class",
        "space": "pixels",
        "patch_size": patch,
        "pixel_size_um": pixel_size_um,
        "pixel_range": [0.0, 1.0],
        "has_null": False,
        "defaults": {"steps": 1000, "solver": "ddpm", "guidance": 1.0, "batch_size": 8},
    }


def sizes(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """diffusers' settings of the U-Net that its weights imply."""
    levels = 1 + max(int(key.split(".")[1]) for key in tensors if key.startswith("down_blocks."))
    attended = [any(key.startswith(f"down_blocks.{level}.attentions.") for key in tensors) for level in range(levels)]
    tokens = next(tensor for key, tensor in tensors.items() if key.endswith("attn2.to_k.weight"))
    entry = next(tensor for key, tensor in tensors.items() if key.endswith("attentions.0.proj_in.weight"))
    depth = {
        key.split(".")[5] for key in tensors if key.startswith(f"down_blocks.{attended.index(True)}.attentions.0.tr")
    }
    return {
        "block_out_channels": [len(tensors[f"down_blocks.{n}.resnets.0.conv1.bias"]) for n in range(levels)],
        "down_block_types": ["CrossAttnDownBlock2D" if here else "DownBlock2D" for here in attended],
        "mid_block_type": "UNetMidBlock2DCrossAttn" if any(key.startswith("mid_block.") for key in tensors) else None,
        "up_block_types": ["CrossAttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attended)],
        "layers_per_block": len({key.split(".")[3] for key in tensors if key.startswith("down_blocks.0.resnets.")}),
        "cross_attention_dim": tokens.shape[1],
        "transformer_layers_per_block": len(depth),
        "use_linear_projection": entry.ndim == 2,
    }


def check_groups(said: Mapping[str, Any]) -> None:
    """Refuse numbers of groups and of heads that the features are no multiple of: no network has such.

    Raises:
        ValueError: naming the setting.
    """
    for key in ("norm_num_groups", "attention_head_dim"):
        width = undivided(said["block_out_channels"], said[key])
        if width:
            raise ValueError(
                f"{key} is {said[key]} but the network has {width} features, no multiple of it; "
                f"say the training's with `set` {key}=N"
            )


def undivided(widths: Sequence[int], parts: int) -> int:
    """The first number of features that cannot be split into equal parts; 0: there is none."""
    return next((width for width in widths if parts < 1 or width % parts), 0)


def scheduler() -> dict[str, Any]:
    return {
        "_class_name": "DDPMScheduler",
        **schedule_of(None, "squaredcos_cap_v2", 1000, 1e-4, 0.02),
        "prediction_type": "epsilon",
        "variance_type": "fixed_small",
        "clip_sample": True,
        "clip_sample_range": 1.0,
        "rederive_noise": False,
        "timestep_spacing": "leading",
    }


def class_table(options: Options, width: int, clip: Mapping[str, Tensor]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Embeddings (K, width) of the classes, and notes.

    They are read from a file, or computed from the classes' names: by the CLIP of a folder, else by that of the
    checkpoint, which lacks a tokenizer: so those are the published names alone. None: they have to be given later.

    Args:
        clip: Weights of CLIP in the checkpoint.
    Raises:
        ValueError: the embeddings have another width or are not finite.
    """
    notes: tuple[str, ...] = ()
    if options.clip is not None:
        from engine.models.convert.clip import text_embeddings

        table, source = text_embeddings(options.clip, options.names), f"`clip` {options.clip}"
    elif options.class_embeddings is not None:
        table, source = read_table(options.class_embeddings), f"`class_embeddings` {options.class_embeddings}"
    elif why := why_no_tower(clip, options.names):
        if options.names:
            raise ValueError(f"`names`: {why}; pass `class_embeddings` or `clip` too")
        way = "pass `class_embeddings` FILE.npy or `clip` DIR, or the table to each run with --embeddings"
        return None, (f"no embeddings of the classes: {why}; {way}",)
    else:
        names = options.names or NAMES
        table, source = class_embeddings(clip, names), "the checkpoint's CLIP"
        notes = (f"the embeddings of {', '.join(names)} are computed by the checkpoint's own CLIP",)
    if table.ndim != 2 or table.shape[1] != width or not np.isfinite(table).all():
        raise ValueError(f"{source}: shape {table.shape}; expected finite numbers (classes, {width})")
    return table.astype(np.float32), notes


def read_table(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"`class_embeddings` {path} cannot be read: {' '.join(str(error).split())}") from None
