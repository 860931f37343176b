"""The files of a model folder, JSON and safetensors, read and checked without torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.messages import quoted
from engine.storage.settings_file import check_regular, read_json_object

EMBEDDED = Path(__file__).with_name("embedded")
EMBEDDED_LABELS = Path(__file__).with_name("embedded_labels")
WEIGHTS = "diffusion_pytorch_model.safetensors"
CLASSES = "classes.safetensors"
PICKLES = (".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".bin")
OURS = "SlidefieldModel"
AUTOENCODERS = ("vae", "vqvae")
# Bytes of a value in safetensors; networks and tables are of floating-point numbers.
FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
LARGEST_HEADER = 100_000_000  # bytes


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

    @property
    def scheduler_path(self) -> Path:
        return self.folder / "scheduler" / "scheduler_config.json"

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
    parts = {
        "expert": "an expert, for `align` of engine.train",
        "vae": "an autoencoder alone, for `vae` of engine.train",
    }
    held = [words for part, words in parts.items() if (folder / part).is_dir()]
    if held and not any((folder / part).exists() for part in ("model_index.json", "unet")):
        raise ValueError(f"`model` {folder} holds {held[0]}; pass a model folder with model_index.json")
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
        parts = ", ".join(name for name in index if not name.startswith("_")) or "nothing"
        raise ValueError(
            f"{folder / 'model_index.json'} names no unet (it names {parts}); only U-Nets are sampled here"
        )
    for name in ("unet", *AUTOENCODERS, "embedder"):
        entry = index.get(name, [None, None])
        if not isinstance(entry, list) or len(entry) != 2:
            raise ValueError(f"{folder / 'model_index.json'}: {name} is {quoted(entry)}: expected [library, class]")
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
    if not {key for key in ("beta_schedule", "trained_betas") if scheduler.get(key) is not None}:
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


def read_json(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file of a model folder.

    Raises:
        ValueError: the file is missing, or holds no JSON object.
    """
    if not path.exists():
        raise ValueError(f"{path} is missing: {path.parent} is not (the whole of) a model folder")
    try:
        return read_json_object(path, str(path))
    except ValueError as problem:
        raise ValueError(f"{problem}; the model folder is damaged") from None


def check_safetensors(path: Path) -> None:
    """Refuse weights that are missing, truncated or no safetensors; read no more than their header.

    Raises:
        ValueError: the file, what is wrong with it, and the way out.
    """
    if not path.exists():
        pickled = [p.name for p in path.parent.glob("*") if p.suffix in PICKLES]
        hint = f"; {pickled[0]} beside it is a pickle, which is never opened here" if pickled else ""
        raise ValueError(f"{path} is missing{hint}; save the model with safetensors")
    check_regular(path, str(path))
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= min(size - 8, LARGEST_HEADER):
            raise ValueError(f"{path} is not a safetensors file, or is truncated ({size} bytes); copy it again")
        text = stream.read(length)
    try:
        header = json.loads(text)
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        ends = [entry["data_offsets"][1] for entry in tensors.values()]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        raise ValueError(f"{path} is not a safetensors file: its header is no JSON; copy it again") from None
    end = max((end for end in ends if isinstance(end, int)), default=0)
    if size != 8 + length + end:
        raise ValueError(
            f"{path} has {size} bytes but its header speaks of {quoted(8 + length + end)}: truncated; copy it again"
        )
    check_tensors(tensors, path)


def check_tensors(tensors: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Refuse tensors that lie over one another, leave bytes between them, or are not of floating-point numbers.

    Args:
        tensors: Type, shape and offsets of each tensor, by name.
    Raises:
        ValueError: naming the file and the tensor.
    """
    position = 0
    spans = {name: span_of(name, entry, path) for name, entry in tensors.items()}
    for name, (begin, end) in sorted(spans.items(), key=lambda item: item[1]):
        if begin != position:
            raise ValueError(
                f"{path} is damaged: {quoted(name)} begins at byte {quoted(begin)}, not where the one before "
                f"ends, at {quoted(position)}; copy it again"
            )
        position = end


def span_of(name: str, entry: Mapping[str, Any], path: Path) -> tuple[int, int]:
    """First byte of a tensor, and the byte after its last.

    Raises:
        ValueError: its type, shape and place do not belong together, or it is not of floating-point numbers.
    """
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape", []), entry.get("data_offsets", [])
    if dtype not in FLOATS:
        raise ValueError(
            f"{path}: {quoted(name)} holds {quoted(dtype)}; weights are floating-point numbers ({', '.join(FLOATS)})"
        )
    whole = [shape, offsets]
    if not all(isinstance(part, list) and all(type(n) is int and n >= 0 for n in part) for part in whole):
        raise ValueError(f"{path} is damaged: {quoted(name)} has the shape {quoted(shape)} at {quoted(offsets)}")
    begin, end = offsets if len(offsets) == 2 else (0, -1)
    takes = FLOATS[dtype] * math.prod(shape)
    if end - begin != takes:
        raise ValueError(
            f"{path} is damaged: {quoted(name)} of shape {quoted(shape)} takes {quoted(takes)} bytes, "
            f"not those of {quoted(offsets)}; copy it again"
        )
    return begin, end
