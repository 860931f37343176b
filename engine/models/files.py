"""The files of a model folder: JSON and safetensors, read without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EMBEDDED = Path(__file__).with_name("embedded")
EMBEDDED_LABELS = Path(__file__).with_name("embedded_labels")
WEIGHTS = "diffusion_pytorch_model.safetensors"
CLASSES = "classes.safetensors"
PICKLES = (".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".bin")
OURS = "SlidefieldModel"
AUTOENCODERS = ("vae", "vqvae")


@dataclass(frozen=True)
class Parts:
    """The JSON of a model folder: where each network lies and what it says of itself, the scheduler and the card."""

    folder: Path
    index: dict[str, Any]
    folders: dict[str, Path]
    configs: dict[str, dict[str, Any]]
    scheduler: dict[str, Any]
    facts: dict[str, Any]

    def weights(self) -> list[Path]:
        """The files whose bytes are the model."""
        table = self.folder / "embedder" / CLASSES
        return [folder / WEIGHTS for folder in self.folders.values()] + [table] * table.exists()


def folder_of(name: str) -> Path:
    """The folder that ``--model`` names.

    Raises:
        ValueError: a file, or not there.
    """
    folder = EMBEDDED if name == "embedded" else Path(name)
    if folder.suffix.lower() in PICKLES or (folder.is_file()):
        raise ValueError(
            f"`model` {folder} is a file"
            + (" (a pickle, which is never opened here)" if folder.suffix.lower() in PICKLES else "")
            + "; pass a model folder with model_index.json and safetensors, such as engine.train writes"
            + " and engine.models.convert makes of a published checkpoint"
        )
    if not folder.is_dir():
        raise ValueError(
            f"`model` {folder} is not there; pass a model folder, or leave `model` out for the embedded one"
        )
    return folder


def read_parts(folder: Path) -> Parts:
    """All JSON of a model folder.

    Raises:
        ValueError: a part is missing, or is no JSON.
    """
    index = read_json(folder / "model_index.json")
    if "unet" not in index:
        parts = ", ".join(name for name in index if not name.startswith("_"))
        raise ValueError(
            f"{folder / 'model_index.json'} names no unet (it names {parts}); only U-Nets are sampled here"
        )
    ours = index.get("_class_name") == OURS
    facts = read_json(folder / "card.json") if ours or (folder / "card.json").exists() else None
    folders = {"unet": folder / "unet"}
    for name in (*AUTOENCODERS, "embedder"):
        if (index.get(name) or [None])[0] is not None or (folder / name).is_dir():
            folders["vae" if name in AUTOENCODERS else name] = folder / name
    configs = {name: read_json(path / "config.json") for name, path in folders.items()}
    scheduler = read_scheduler(folder / "scheduler" / "scheduler_config.json", ours)
    return Parts(
        folder, index, folders, configs, scheduler, diffusers_facts(folder, configs) if facts is None else facts
    )


def read_scheduler(path: Path, ours: bool) -> dict[str, Any]:
    """A scheduler's settings; those that diffusers leaves out are filled in unless the folder is ours.

    Raises:
        ValueError: not there, or without what a schedule is made of.
    """
    scheduler = read_json(path)
    if not ours:
        clips = scheduler.get("_class_name") in ("DDPMScheduler", "DDIMScheduler")
        scheduler = {"prediction_type": "epsilon", "clip_sample": clips, **scheduler}
    for key in ("num_train_timesteps", "prediction_type"):
        if key not in scheduler:
            raise ValueError(f"{path} lacks {key}; the model folder is damaged")
    if not {"beta_schedule", "trained_betas"} & set(scheduler):
        raise ValueError(f"{path} lacks beta_schedule; the model is damaged")
    if scheduler.get("rescale_betas_zero_snr"):
        raise ValueError(f"{path} has rescale_betas_zero_snr, whose first level has no signal: not supported")
    return scheduler


def diffusers_facts(folder: Path, configs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What card.json would say of a folder that diffusers saved.

    Raises:
        ValueError: a network that takes more than latents, timestep and tokens, or whose patch size is not known.
    """
    unet = configs["unet"]
    path = folder / "unet" / "config.json"
    for key in ("class_embed_type", "addition_embed_type", "num_class_embeds", "encoder_hid_dim_type"):
        if unet.get(key) is not None:
            raise ValueError(f"{path}: {key} is {unet[key]!r}; networks that take more than tokens are not supported")
    sides = unet.get("sample_size")
    side = sides[0] if isinstance(sides, list) else sides
    if not side:
        raise ValueError(f"{path} has no sample_size; put a card.json with patch_size and pixel_size_um beside it")
    return {
        "condition": "embedding" if unet.get("_class_name") == "UNet2DConditionModel" else "none",
        "space": "latents" if "vae" in configs else "pixels",
        "patch_size": side,
        "pixel_size_um": 1.0,
        "defaults": {"steps": 50, "guidance": 1.0, "decode_overlap": side // 4},
    }


def read_json(path: Path) -> dict:
    """The object in a JSON file of a model.

    Raises:
        ValueError: it is not there, or not a JSON object.
    """
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: {path.parent} is not (the whole of) a model folder") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}); the model folder is damaged") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object; the model folder is damaged")
    return value


def check_safetensors(path: Path) -> None:
    """Refuse weights that are missing, truncated, or no safetensors, without reading more than their header."""
    if not path.exists():
        pickled = [p.name for p in path.parent.glob("*") if p.suffix in PICKLES]
        hint = f"; {pickled[0]} beside it is a pickle, which is never opened here" if pickled else ""
        raise ValueError(f"{path} is missing{hint}; save the model with safetensors")
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= min(size - 8, 100_000_000):
            raise ValueError(f"{path} is not a safetensors file, or is truncated ({size} bytes); copy it again")
        try:
            header = json.loads(stream.read(length))
            end = max((v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"), default=0)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{path} is not a safetensors file: its header is no JSON; copy it again") from None
    if size != 8 + length + end:
        raise ValueError(
            f"{path} has {size} bytes but its header speaks of {8 + length + end}: truncated; copy it again"
        )
