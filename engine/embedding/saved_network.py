"""Networks as timm and transformers save them: weights in safetensors beside a ``config.json`` of theirs."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from engine.storage.settings_file import read_json_object

Normalisation = tuple[list[float], list[float], int | None]
WEIGHTS = "model.safetensors"
PACKAGES = {"architecture": "timm", "model_type": "transformers"}  # by what config.json names
CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"


def saved_network(folder: Path, option: str) -> Callable[[Any], Any]:
    """The network in a folder: a function from normalised pictures (B, 3, h, w) to features, or features and logits.

    timm's ``config.json`` names an ``architecture``, transformers' a ``model_type``.

    Raises:
        ValueError: it is of neither, or the package is not installed, or the weights are another network's.
    """
    config = read_json_object(folder / CONFIG, str(folder / CONFIG))
    package = next((PACKAGES[key] for key in PACKAGES if key in config), "")
    if not package:
        raise ValueError(
            f"{folder / CONFIG} names neither an architecture (timm) nor a model_type (transformers); "
            "save the network with one of them, or as TorchScript"
        )
    try:
        library = import_module(package)
    except Exception as error:  # timm brings torchvision, which may not fit torch
        if isinstance(error, ModuleNotFoundError) and error.name == package:
            raise ValueError(
                f"`{option}` {folder} is a network of {package}, which is not installed; pip install {package}, or "
                "save it as TorchScript"
            ) from None
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"`{option}` {folder} is a network of {package}, which cannot be imported ({why})") from None
    try:
        return of_timm(library, folder, config) if package == "timm" else of_transformers(library, folder, config)
    except Exception as error:  # the packages raise errors of many kinds
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{folder} cannot be loaded by {package} ({why}); save the network anew") from None


def of_timm(timm: Any, folder: Path, config: dict[str, Any]) -> Callable[[Any], Any]:
    """The pooled features of a network of timm, with logits where it has classes."""
    from safetensors.torch import load_file

    settings = {"num_classes": config.get("num_classes", 0), **config.get("model_args", {})}
    network = timm.create_model(config["architecture"], pretrained=False, **settings)
    network.load_state_dict(load_file(folder / WEIGHTS))
    network.eval().requires_grad_(False)

    def embed(x: Any) -> Any:
        network.to(x.device)
        last = network.forward_features(x)
        features = network.forward_head(last, pre_logits=True).flatten(1)
        return (features, network.forward_head(last)) if settings["num_classes"] else features

    return embed


def of_transformers(transformers: Any, folder: Path, config: dict[str, Any]) -> Callable[[Any], Any]:
    """The image features of a network of transformers: projected ones of CLIP and its kin, else pooled ones."""
    classifies = any(name.endswith("ForImageClassification") for name in config.get("architectures") or ())
    kind = transformers.AutoModelForImageClassification if classifies else transformers.AutoModel
    network = kind.from_pretrained(str(folder), local_files_only=True, use_safetensors=True)
    network.eval().requires_grad_(False)

    def embed(x: Any) -> Any:
        network.to(x.device)
        if classifies:
            made = network(pixel_values=x, output_hidden_states=True)
            return of_picture(made.hidden_states[-1]), made.logits
        if hasattr(network, "get_image_features"):
            made = network.get_image_features(pixel_values=x)
            return getattr(made, "pooler_output", made)
        made = network(pixel_values=x)
        pooled = getattr(made, "pooler_output", None)
        return pooled.flatten(1) if pooled is not None else of_picture(made.last_hidden_state)

    return embed


def of_picture(states: Any) -> Any:
    """(B, D) of a layer's states: the first token's, or the mean over space."""
    return states[:, 0] if states.ndim == 3 else states.mean((2, 3))


def preprocessing(folder: Path) -> dict[str, Any]:
    """Mean, std and side of the input as transformers' ``preprocessor_config.json`` has them; empty: there is none."""
    if not (folder / PREPROCESSOR).is_file():
        return {}
    config = read_json_object(folder / PREPROCESSOR, str(folder / PREPROCESSOR))
    size = config.get("crop_size") or config.get("size")
    if isinstance(size, dict):
        size = size.get("height", size.get("shortest_edge"))
    return {"mean": config.get("image_mean"), "std": config.get("image_std"), "size": size}
