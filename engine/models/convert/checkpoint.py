"""Finds a published checkpoint, opens it without running anything in it, and recognises its system.

A checkpoint is a pickle. It is opened as tensors and plain values alone; anything else in it is refused.
"""

from __future__ import annotations

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from engine.models.files import check_safetensors

SUFFIXES = (".pt", ".ckpt", ".pth", ".bin", ".safetensors")
# A pattern that a key of each system's checkpoint begins with. The first that matches counts: keys of
# diffinfinite-labels match the pattern of diffinfinite-image too.
SIGNS = {
    "diffinfinite-labels": r"(ema/ema_model\.model|model/model)\.null_classes_emb",
    "diffinfinite-image": r"(ema/ema_model\.model|model/model)\.(classes_emb\.|.*fn\.fn\.to_kv\.)",
    "large-image-diffusion": r"(state_dict/)?model\.diffusion_model\.",
    "feature-aligned": r"(model_state_dict/)?(text_to_cross_dim\.|model\.time_embedding\.)",
    "sdm": r"middle_block\.0\.in_norm\.mlp_shared\.",
}
OTHERS = {
    "a guided-diffusion U-Net without a semantic map": r"middle_block\.0\.in_layers\.",
    "a U-Net in diffusers' names (a folder with model_index.json needs no conversion)": r"(down_blocks|conv_in)\.",
    "an autoencoder": r"(first_stage_model\.)?(encoder|decoder)\.",
}


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that a path names: the file itself, or ``last.ckpt`` or the only file of a folder.

    A folder's own files go before those of ``checkpoints`` in it.

    Raises:
        ValueError: there is no checkpoint, or several.
    """
    if path.is_file():
        return path
    if not path.exists():
        raise ValueError(f"{path} is not there; pass a checkpoint file, or the folder that holds it")
    for folder in (path, path / "checkpoints"):
        files = sorted(p for p in folder.glob("*") if p.suffix in SUFFIXES and p.is_file())
        if (folder / "last.ckpt") in files:
            return folder / "last.ckpt"
        if len(files) == 1:
            return files[0]
        if files:
            raise ValueError(f"{folder} holds {len(files)} checkpoints ({files[0].name}, ...); name one of them")
    raise ValueError(f"{path} holds no checkpoint ({', '.join(SUFFIXES)}); name the file")


def open_checkpoint(path: Path) -> dict[str, Any]:
    """Open a checkpoint: its tensors and plain values by key, mapped from the file where its format allows.

    Raises:
        ValueError: the file is truncated, is no checkpoint, or holds anything else.
    """
    import torch

    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        check_safetensors(path)
        return load_file(path)
    zipped = zipfile.is_zipfile(path)
    with path.open("rb") as stream:
        if stream.read(2) == b"PK" and not zipped:
            raise ValueError(f"{path} has {path.stat().st_size} bytes and no end: truncated; copy it again")
    try:
        with warnings.catch_warnings(action="ignore"):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise ValueError(refusal(path, str(error))) from None
    except Exception as error:  # a damaged pickle may raise anything
        line = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{path} is no checkpoint of torch, or is damaged ({line or 'empty'}); copy it again"
        ) from None
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{path} holds a {type(checkpoint).__name__}, not named weights; save a model's state_dict()")
    return checkpoint


def refusal(path: Path, message: str) -> str:
    """One line that says why a pickle was not opened, made from torch's many."""
    asked = re.search(r"safe_globals\(\[([^\]]+)\]\)|GLOBAL ([\w.]+)", message)
    if asked is None:
        unsupported = re.search(r"Unsupported \w+ \w+", message)
        why = unsupported[0].lower() if unsupported else "its instructions are not torch's"
        return (
            f"{path} is no checkpoint of torch, or holds more than tensors and plain values ({why}); it was not opened"
        )
    return (
        f"{path} holds more than tensors and plain values (its pickle asks for {asked[1] or asked[2]}) and was not "
        "opened; where you made or trust it, save its weights alone: torch.save({'state_dict': ...}, file)"
    )


def names_in(checkpoint: Mapping[str, Any]) -> list[str]:
    """The names of all tensors, ``group/name`` for those in a group."""
    names = []
    for key, value in checkpoint.items():
        if isinstance(value, Mapping):
            names += [f"{key}/{name}" for name, inner in value.items() if isinstance(inner, Tensor)]
        elif isinstance(value, Tensor):
            names.append(key)
    return names


def recognise(checkpoint: Mapping[str, Any]) -> str | None:
    """The system that a checkpoint's names are typical of; None: no system that is converted."""
    names = names_in(checkpoint)
    return next((system for system, sign in SIGNS.items() if any(re.match(sign, name) for name in names)), None)


def check_system(checkpoint: Mapping[str, Any], system: str, path: Path) -> None:
    """Refuse a checkpoint of another system.

    Raises:
        ValueError: what it looks like instead.
    """
    looks = recognise(checkpoint)
    if looks == system:
        return
    names = names_in(checkpoint)
    if looks is not None:
        raise ValueError(f"{path} is no {system} checkpoint: it looks like {looks}; pass that as SYSTEM")
    other = next((what for what, sign in OTHERS.items() if any(re.match(sign, name) for name in names)), None)
    begins = f"its names begin with {names[0]}" if names else "it holds no named tensors"
    raise ValueError(
        f"{path} is no {system} checkpoint: "
        + (f"it looks like {other}" if other else f"{begins}; known systems: {', '.join(SIGNS)}")
    )


def below(tensors: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, which is cut off."""
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix) and isinstance(v, Tensor)}


def find_config(given: Path | None, checkpoint: Path, places: Sequence[str]) -> Path | None:
    """The configuration file: ``given``, or the last file of the first pattern that matches any beside the checkpoint.

    Raises:
        ValueError: ``given`` is no file.
    """
    if given is not None:
        if not given.is_file():
            raise ValueError(f"`config` {given} is not there")
        return given
    folder = checkpoint.resolve().parent
    for place in places:
        start, pattern = (folder.parent, place[3:]) if place.startswith("../") else (folder, place)
        if files := sorted(start.glob(pattern)):
            return files[-1]
    return None


def need_config(given: Path | None, checkpoint: Path, places: Sequence[str]) -> Path:
    """The configuration file of a system that cannot be converted without one; see ``find_config``.

    Raises:
        ValueError: there is none.
    """
    path = find_config(given, checkpoint, places)
    if path is None:
        raise ValueError(f"no {' nor '.join(places)} beside {checkpoint}; name the configuration with `config`")
    return path


def read_config(path: Path) -> dict[str, Any]:
    """Read settings in JSON or YAML.

    Raises:
        ValueError: the file cannot be read, or holds no keys and values.
    """
    import yaml

    try:
        text = path.read_text()
        settings = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds no keys and values")
    return settings
