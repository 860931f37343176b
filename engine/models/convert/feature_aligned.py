"""Feature-aligned diffusion's checkpoints: grey pixels, and one token from the embedding of the class's name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from engine.models.convert.checkpoint import below, need_config, read_config
from engine.models.convert.common import Converted, Options, Part, named, numbered, schedule_of


def convert(checkpoint: Mapping[str, Any], path: Path, options: Options) -> Converted:
    """Convert a checkpoint: grey pixels in [0, 1], and one token from the embedding of the class's name."""
    config = need_config(options.config, path, ("unet_config.json", "config.json", "unet/config.json"))
    said = {k: v for k, v in read_config(config).items() if not k.startswith("_")}
    state = checkpoint.get("model_state_dict", checkpoint)
    tensors, linear = below(state, "model."), below(state, "text_to_cross_dim.")
    if not linear:
        raise ValueError(f"{path} has no text_to_cross_dim, the layer that makes tokens of class embeddings")
    channels = {"in_channels": tensors["conv_in.weight"].shape[1], "out_channels": tensors["conv_out.weight"].shape[0]}
    width, embedded = linear["weight"].shape
    embedder = {"_class_name": "Embedder", "patch_width": embedded, "width": width, "region_width": 0}
    parts = {
        "unet": Part({"_class_name": "UNet2DConditionModel", **said, **channels}, tensors),
        "embedder": Part({**embedder, "normalize": False}, {f"patch_fc.{k}": v for k, v in linear.items()}),
    }
    classes = class_table(options, embedded)
    card = {
        "condition": "class",
        "space": "pixels",
        "patch_size": options.patch or int(said["sample_size"]),
        "pixel_size_um": options.pixel_size_um or 1.16,
        "pixel_range": [0.0, 1.0],
        "has_null": False,
        "defaults": {"steps": 50, "solver": "ddim", "guidance": 1.0, "batch_size": 8},
    }
    if classes is not None:
        card["labels"] = named(options, len(classes), numbered("class", len(classes)))
    return Converted(parts, scheduler(), card, classes=classes)


def scheduler() -> dict[str, Any]:
    return {
        "_class_name": "DDIMScheduler",
        **schedule_of(None, "squaredcos_cap_v2", 1000, 1e-4, 0.02),
        "prediction_type": "epsilon",
        "clip_sample": True,
        "clip_sample_range": 1.0,
        "rederive_noise": False,
        "timestep_spacing": "leading",
    }


def class_table(options: Options, width: int) -> np.ndarray | None:
    """Embeddings (K, width) of the classes, read from a file or computed from their names; None without either.

    Raises:
        ValueError: the embeddings have another width or are not finite.
    """
    if options.clip is not None:
        from engine.models.convert.clip import text_embeddings

        table, source = text_embeddings(options.clip, options.names), f"`clip` {options.clip}"
    elif options.class_embeddings is not None:
        table, source = read_table(options.class_embeddings), f"`class_embeddings` {options.class_embeddings}"
    else:
        return None
    if table.ndim != 2 or table.shape[1] != width or not np.isfinite(table).all():
        raise ValueError(f"{source}: shape {table.shape}; expected finite numbers (classes, {width})")
    return table.astype(np.float32)


def read_table(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"`class_embeddings` {path} cannot be read: {' '.join(str(error).split())}") from None
