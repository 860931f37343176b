"""Networks of a model folder: ``unet/`` and ``vae/`` with ``config.json`` and safetensors, read and written."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.models.autoencoder import PatchAutoencoder
from engine.models.card import WEIGHTS, read_json
from engine.models.diffinfinite import MaskUNet

CLASSES: dict[str, type[nn.Module]] = {"PatchAutoencoder": PatchAutoencoder, "MaskUNet": MaskUNet}


@dataclass(frozen=True)
class Model:
    """A model's networks, ready to run.

    Args:
        network: (x, t, labels, masks) -> output, in the model's prediction type.
        decode: normalised latents (B, C, H, W) -> pixels (B, c, h, w), about [-1, 1].
    """

    network: nn.Module
    decode: Callable[[Tensor], Tensor]


def load_model(folder: Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Model:
    """Load the networks of a model folder for inference."""
    network = load_part(folder / "unet").to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    autoencoder = load_part(folder / "vae").to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def decode(latents: Tensor) -> Tensor:
        return autoencoder.decode(latents.to(device, dtype)).float()  # type: ignore[operator]

    return Model(network, decode)


def load_part(folder: Path) -> nn.Module:
    """A network in float32 and evaluation mode.

    Raises:
        ValueError: an unknown class, a setting it does not take, or weights that do not fit it.
    """
    from safetensors.torch import load_file

    config = read_json(folder / "config.json")
    name = config.pop("_class_name", None)
    if name not in CLASSES:
        raise ValueError(f"{folder / 'config.json'}: _class_name is {name!r}; known: {', '.join(CLASSES)}")
    try:
        network = CLASSES[name](**config)
        network.load_state_dict({k: v.float() for k, v in load_file(folder / WEIGHTS).items()})
    except (TypeError, RuntimeError) as error:
        lines = " ".join(str(error).split())
        raise ValueError(f"{folder}: weights and config.json do not fit each other: {lines[:200]}") from None
    return network.eval().requires_grad_(False)


def save_part(network: nn.Module, folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write a network of our own as ``config.json`` and safetensors, through a temporary and a rename."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().to("cpu", dtype).contiguous() for k, v in network.state_dict().items()}
    temporary = folder / (WEIGHTS + ".partial")
    save_file(tensors, temporary)
    config = {"_class_name": type(network).__name__, **network.config}  # type: ignore[dict-item]
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    temporary.rename(folder / WEIGHTS)


def device_of(name: str, local_rank: int) -> str:
    """The device of a rank: its share of the visible GPUs by local rank, or the CPU.

    Raises:
        ValueError: cuda was asked for and is not there.
    """
    count = torch.cuda.device_count() if name != "cpu" and torch.cuda.is_available() else 0
    if name == "cuda" and not count:
        raise ValueError(
            "--device cuda: torch sees no GPU here; use --device cpu, or check the driver and CUDA_VISIBLE_DEVICES"
        )
    return f"cuda:{local_rank % count}" if count else "cpu"
