"""Reads an expert, the network that classifies tissue: a folder of ``engine.train expert``, or a file of weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from engine.models.convert.checkpoint import below, open_checkpoint
from engine.models.files import WEIGHTS
from engine.models.folder import load_part
from engine.models.networks.resnet import ResNet, settings_of

PART = "expert"  # of the folder that a training writes


def load_expert(path: Path) -> ResNet:
    """An expert in float32 and evaluation mode.

    Args:
        path: Folder of ``engine.train expert``, or the ``expert`` in it; or a state dict of the feature-aligned
            system's own, or of torchvision's names, in a file.
    Raises:
        ValueError: it is none.
    """
    if path.is_file():
        config, tensors = read_weights(path)
        if "classes" not in config:
            raise ValueError(f"{path} has not the expert's head (fc.0, fc.2); it was not trained on tissue")
        network = ResNet(**config)
        take_weights(network, tensors, path)
        return network.eval().requires_grad_(False)
    folder = path if (path / WEIGHTS).is_file() else path / PART
    if not (folder / WEIGHTS).is_file():
        raise ValueError(f"{path} is no expert: pass a folder of engine.train expert, or its authors' file of weights")
    part = load_part(folder)
    if not isinstance(part, ResNet):
        raise ValueError(f"{folder} holds a {type(part).__name__}, not an expert of engine.train expert")
    return part


def read_weights(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings and weights of a ResNet in a file, by torchvision's names.

    Raises:
        ValueError: it holds none.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not there; pass a file of a ResNet's weights")
    state = open_checkpoint(path)
    for key in ("model_state_dict", "state_dict"):
        state = state[key] if isinstance(state.get(key), Mapping) else state
    tensors = below(state, "resnet.") or below(state, "")
    tensors = {key: tensor.float() for key, tensor in tensors.items() if not key.endswith("num_batches_tracked")}
    if "conv_proj.weight" in tensors:
        raise ValueError(f"{path} holds a vision transformer; experts are ResNets here")
    try:
        return settings_of(tensors), tensors
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def take_weights(network: ResNet, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Give a network its weights.

    Raises:
        ValueError: they are those of a network of another shape.
    """
    own = network.state_dict()
    differing = [
        key for key in (*own, *tensors) if key not in own or key not in tensors or own[key].shape != tensors[key].shape
    ]
    if differing:
        raise ValueError(
            f"{source} holds a network of another shape than is trained: {differing[0]} differs; give the same settings"
        )
    network.load_state_dict(dict(tensors))
