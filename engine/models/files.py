"""The files of a model folder, JSON and safetensors, read and checked without torch."""

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
    """The JSON of a model folder, as it was read.

    Args:
        folder: Folder of the model.
        index: Content of ``model_index.json``: library (or module) and class of each part.
        folders: Folder of each network, by its name here: ``unet``, ``vae``, ``embedder``.
        configs: Content of each network's ``config.json``, by the same names.
        scheduler: Content of ``scheduler_config.json``.
        facts: Content of ``card.json``, or for a folder that diffusers saved, what it would be.
    """

    folder: Path
    index: dict[str, Any]
    folders: dict[str, Path]
    configs: dict[str, dict[str, Any]]
    scheduler: dict[str, Any]
    facts: dict[str, Any]

    def weights(self) -> list[Path]:
        """The files that hold weights: those of each network, and the table of class embeddings where there is one."""
        table = self.folder / "embedder" / CLASSES
        return [folder / WEIGHTS for folder in self.folders.values()] + [table] * table.exists()


def folder_of(name: str) -> Path:
    """The folder that the job's ``model`` names.

    Raises:
        ValueError: it is a file, or is not there.
    """
    folder = EMBEDDED if name == "embedded" else Path(name)
    pickled = folder.suffix.lower() in PICKLES
    if pickled or folder.is_file():
        raise ValueError(
            f"`model` {folder} is a file{' (a pickle, which is never opened here)' if pickled else ''}; pass a model "
            "folder with model_index.json and safetensors, such as engine.train writes and engine.models.convert makes "
            "of a published checkpoint"
        )
    if not folder.is_dir():
        raise ValueError(
            f"`model` {folder} is not there; pass a model folder, or leave `model` out for the embedded one"
        )
    return folder


def read_parts(folder: Path) -> Parts:
    """Read all JSON of a model folder.

    Raises:
        ValueError: a part is missing or is no JSON, or the model is no U-Net.
    """
    index = read_json(folder / "model_index.json")
    if "unet" not in index:
        parts = ", ".join(name for name in index if not name.startswith("_"))
        raise ValueError(
            f"{folder / 'model_index.json'} names no unet (it names {parts}); only U-Nets are sampled here"
        )
    ours = index.get("_class_name") == OURS
    facts = read_json(folder / "card.json") if ours or (folder / "card.json").exists() else None
    folders = network_folders(folder, index)
    configs = {name: read_json(path / "config.json") for name, path in folders.items()}
    scheduler = read_scheduler(folder / "scheduler" / "scheduler_config.json", ours)
    if facts is None:
        facts = diffusers_facts(folder, configs)
    return Parts(folder, index, folders, configs, scheduler, facts)


def network_folders(folder: Path, index: Mapping[str, Any]) -> dict[str, Path]:
    """The folder of each network that the index names or that lies there, by the names of ``Parts.folders``."""
    folders = {"unet": folder / "unet"}
    for name in (*AUTOENCODERS, "embedder"):
        indexed = (index.get(name) or [None])[0] is not None  # a pipeline's optional part is [null, null]
        if indexed or (folder / name).is_dir():
            folders["vae" if name in AUTOENCODERS else name] = folder / name
    return folders


def read_scheduler(path: Path, ours: bool) -> dict[str, Any]:
    """Read a scheduler's settings.

    Args:
        path: Path of ``scheduler_config.json``.
        ours: Whether the folder was written by this engine; else settings that diffusers leaves out are filled in.
    Raises:
        ValueError: the file is missing, lacks a setting that a schedule needs, or has one that is not supported.
    """
    scheduler = read_json(path)
    if not ours:
        clips = scheduler.get("_class_name") in ("DDPMScheduler", "DDIMScheduler")
        scheduler = {"prediction_type": "epsilon", "clip_sample": clips, **scheduler}
    for key in ("num_train_timesteps", "prediction_type"):
        if key not in scheduler:
            raise ValueError(f"{path} lacks {key}; the model folder is damaged")
    if not {"beta_schedule", "trained_betas"} & set(scheduler):
        raise ValueError(f"{path} lacks beta_schedule; the model folder is damaged")
    if scheduler.get("rescale_betas_zero_snr"):
        raise ValueError(f"{path} has rescale_betas_zero_snr, whose first level has no signal: not supported")
    return scheduler


def diffusers_facts(folder: Path, configs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The facts that a card.json would hold, for a folder that diffusers saved without one.

    Raises:
        ValueError: the network takes more than latents, timestep and tokens, or does not say its patch size.
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
    """Read the object in a JSON file of a model folder.

    Raises:
        ValueError: the file is missing, or holds no JSON object.
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
    """Refuse weights that are missing, truncated or no safetensors; read no more than their header.

    Raises:
        ValueError: the file, what is wrong with it, and the way out.
    """
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
