"""Weights that a training starts from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from engine.models.convert.checkpoint import open_checkpoint
from engine.models.files import WEIGHTS, read_json


def start_weights(network: nn.Module, config: Mapping[str, Any], folder: Path, part: str = "unet") -> None:
    """Take the weights of a model folder's network.

    Args:
        config: The settings of the network that is trained.
        part: What it is in the folder.
    Raises:
        ValueError: it is none, or a network of another shape.
    """
    path = folder / part
    if not (path / WEIGHTS).is_file():
        raise ValueError(f"`init` {folder} is no model folder: it has no {part}/{WEIGHTS}; name one")
    take_weights(network, open_checkpoint(path / WEIGHTS), folder, config, path / "config.json")


def take_weights(
    network: nn.Module,
    tensors: Mapping[str, Tensor],
    init: Path,
    config: Mapping[str, Any] | None = None,
    known: Path | None = None,
) -> None:
    """Give a network its start weights.

    Args:
        init: Where they are from, for messages.
        config: The settings of the network that is trained.
        known: File of the settings of the network that they are of.
    Raises:
        ValueError: it is a network of another shape.
    """
    own = network.state_dict()
    differing = [key for key in (*own, *tensors) if key not in tensors or key not in own]
    differing += [key for key in own if key in tensors and own[key].shape != tensors[key].shape]
    if differing:
        theirs = read_json(known) if known is not None and known.is_file() else {}
        changed = [f"{key} {theirs[key]}" for key, value in (config or {}).items() if theirs.get(key, value) != value]
        said = f"its settings are {', '.join(changed)}" if changed else f"{differing[0]} differs"
        raise ValueError(f"`init` {init} is a network of another shape than is trained: {said}; give the same settings")
    network.load_state_dict({key: tensor.to(own[key].dtype) for key, tensor in tensors.items()})


def take_embedder(embedder: nn.Module, folder: Path) -> None:
    """Take the weights of a model folder's token layers, where it has some of this shape."""
    file, own = folder / "embedder" / WEIGHTS, embedder.state_dict()
    tensors = open_checkpoint(file) if file.is_file() else {}
    if {key: tensor.shape for key, tensor in tensors.items()} == {key: tensor.shape for key, tensor in own.items()}:
        embedder.load_state_dict({key: tensor.float() for key, tensor in tensors.items()})
