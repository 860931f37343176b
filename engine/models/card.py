"""What the engine must know of a model folder before it loads a network: read from JSON, without torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from engine.schedule import Schedule

EMBEDDED = Path(__file__).with_name("embedded")
WEIGHTS = "diffusion_pytorch_model.safetensors"
PICKLES = (".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".bin")


@dataclass(frozen=True)
class Card:
    """The facts of a model.

    Args:
        folder: where it lies.
        hash: sha256 over its configurations, its weights, and the card's patch size and gain.
        patch: side of a window, in latents.
        factor: pixels per latent.
        channels: of the latents.
        labels: names of the labels, 0 first.
        colors: RGB of each label, for viewers.
        pixel_size_um: micrometres per pixel.
        latents_gain: what sampled latents are multiplied by before they are decoded: makes up for the spread that a
            network of little training takes from them. 1 changes nothing.
        defaults: settings of a job that names none of its own (steps, solver, guidance, ...).
    """

    folder: Path
    hash: str
    patch: int
    factor: int
    channels: int
    labels: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    pixel_size_um: float
    schedule: Schedule
    latents_gain: float = 1.0
    defaults: Mapping[str, object] = field(default_factory=dict)


def read_card(name: str) -> Card:
    """Read and check a model folder; ``embedded`` is the model in the package.

    Raises:
        ValueError: not a folder, not a model, a part is missing or truncated, or a pickle was offered.
    """
    folder = EMBEDDED if name == "embedded" else Path(name)
    if folder.suffix.lower() in PICKLES or (folder.is_file()):
        raise ValueError(
            f"--model {folder} is a file"
            + (" (a pickle, which is never opened here)" if folder.suffix.lower() in PICKLES else "")
            + "; pass a model folder with model_index.json and safetensors, such as engine.train writes"
        )
    if not folder.is_dir():
        raise ValueError(
            f"--model {folder} is not there; pass a model folder, or leave --model out for the embedded one"
        )
    index = read_json(folder / "model_index.json")
    card = read_json(folder / "card.json")
    parts = {name: read_json(folder / name / "config.json") for name in ("unet", "vae")}
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    for key in ("num_train_timesteps", "prediction_type"):
        if key not in scheduler:
            raise ValueError(
                f"{folder / 'scheduler' / 'scheduler_config.json'} lacks {key}; the model folder is damaged"
            )
    if not {"beta_schedule", "trained_betas"} & set(scheduler):
        raise ValueError(f"{folder / 'scheduler' / 'scheduler_config.json'} lacks beta_schedule; the model is damaged")
    digest = hashlib.sha256()
    for value in (index, parts, scheduler, card.get("patch_size"), card.get("latents_gain")):
        digest.update(json.dumps(value, sort_keys=True).encode())
    for part in parts:
        check_safetensors(folder / part / WEIGHTS)
        with (folder / part / WEIGHTS).open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    if not 1 <= len(card.get("labels", [])) <= 64:
        raise ValueError(f"{folder / 'card.json'} has {len(card.get('labels', []))} labels; 1 to 64 are supported")
    try:
        return Card(
            folder=folder.resolve(),
            hash=digest.hexdigest(),
            patch=int(card["patch_size"]),
            factor=2 ** len(parts["vae"]["channels"]),
            channels=int(parts["vae"]["latent_channels"]),
            labels=tuple(entry["name"] for entry in card["labels"]),
            colors=tuple(tuple(entry["color"]) for entry in card["labels"]),
            pixel_size_um=float(card["pixel_size_um"]),
            schedule=Schedule.from_config(scheduler),
            latents_gain=float(card.get("latents_gain", 1.0)),
            defaults=card.get("defaults", {}),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"--model {folder}: card.json or vae/config.json lacks or misstates {error}") from error


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
