"""Model folders in the diffusers layout: ``model_index.json``, ``unet/``, ``vae/``, ``scheduler/``, ``card.json``."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

WEIGHTS = "diffusion_pytorch_model.safetensors"


def save_part(network: nn.Module, folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write a network of our own as ``config.json`` and safetensors, through a temporary and a rename."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().to(dtype).contiguous() for k, v in network.state_dict().items()}
    temporary = folder / (WEIGHTS + ".partial")
    save_file(tensors, temporary)
    config = {"_class_name": type(network).__name__, **network.config}  # type: ignore[dict-item]
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    temporary.rename(folder / WEIGHTS)
