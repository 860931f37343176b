"""What the engine must know of a model folder before it loads a network: read from JSON, without torch."""

from __future__ import annotations

import colorsys
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.schedule import Schedule

EMBEDDED = Path(__file__).with_name("embedded")
EMBEDDED_LABELS = Path(__file__).with_name("embedded_labels")
WEIGHTS = "diffusion_pytorch_model.safetensors"
CLASSES = "classes.safetensors"
PICKLES = (".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".bin")
CONDITIONS = ("label-map", "class", "embedding", "semantic", "none")
OURS = "SlidefieldModel"
AUTOENCODERS = ("vae", "vqvae")
COLORS = ((160, 160, 160), (214, 39, 40), (255, 187, 20), (44, 120, 200), (60, 170, 90))
# Facts of card.json that change the bytes of a sample, besides those hashed from the beginning.
HASHED = (
    "condition",
    "space",
    "role",
    "label_scale",
    "label_count",
    "latents_scale",
    "latents_std",
    "pixel_range",
    "has_null",
)


@dataclass(frozen=True)
class Card:
    """The facts of a model.

    Args:
        folder: where it lies.
        hash: sha256 over its configurations, its weights, and what of the card changes a sample.
        patch: side of a window, in latents (or in pixels, for a model of pixels).
        factor: pixels per latent.
        channels: of the latents.
        labels: names of the labels, 0 first; of the classes, for a model conditioned on a class.
        colors: RGB of each label, for viewers.
        pixel_size_um: micrometres per pixel.
        latents_gain: what sampled latents are multiplied by before they are decoded: makes up for the spread that a
            network of little training takes from them. 1 changes nothing.
        defaults: settings of a job that names none of its own (steps, solver, guidance, ...).
        condition: what the network is told: ``label-map``, ``class``, ``embedding``, ``semantic`` or ``none``.
        image_channels: of the pixels.
        role: ``image``, or ``labels`` for a model whose images are label maps.
        label_scale: of a label model, pixels of the image for one of the label map.
        label_count: of a label model, how many labels its maps tell apart.
        semantic_channels, embedding_width, region_width: of what the network is told; 0 where it is told none.
        pixel_range: what black and white are on the canvas of a model of pixels; that of latents decodes to (-1, 1).
        decodes: whether the folder can make pixels; not where the autoencoder of a model of latents is missing.
        has_null: whether the network was trained for guidance, to be told nothing.
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
    condition: str = "label-map"
    image_channels: int = 3
    role: str = "image"
    label_scale: int = 1
    label_count: int = 0
    semantic_channels: int = 0
    embedding_width: int = 0
    region_width: int = 0
    pixel_range: tuple[float, float] = (-1.0, 1.0)
    decodes: bool = True
    has_null: bool = True


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


def read_card(name: str) -> Card:
    """Read and check a model folder; ``embedded`` is the model in the package.

    A folder that diffusers saved is a model too: its condition is ``none`` for a UNet2DModel, and ``embedding``, the
    tokens themselves, for a UNet2DConditionModel.

    Raises:
        ValueError: not a folder, not a model, a part is missing or truncated, or a pickle was offered.
    """
    parts = read_parts(folder_of(name))
    for path in parts.weights():
        check_safetensors(path)
    facts, configs = parts.facts, parts.configs
    try:
        latents = latents_of(parts)
        labels = facts.get("labels") or [{"name": "image"}]
        card = Card(
            folder=parts.folder.resolve(),
            hash=digest(parts),
            patch=int(facts["patch_size"]),
            factor=latents["factor"],
            channels=latents["channels"],
            labels=tuple(entry["name"] for entry in labels),
            colors=tuple(tuple(entry.get("color") or color(i)) for i, entry in enumerate(labels)),
            pixel_size_um=float(facts["pixel_size_um"]),
            schedule=Schedule.from_config(parts.scheduler),
            latents_gain=float(facts.get("latents_gain", 1.0)),
            defaults=facts.get("defaults", {}),
            condition=facts.get("condition", "label-map"),
            image_channels=latents["image_channels"],
            role=facts.get("role", "image"),
            label_scale=int(facts.get("label_scale", 1)),
            label_count=int(facts.get("label_count", 0)),
            semantic_channels=int(configs["unet"].get("map_channels", 0)),
            embedding_width=embedding_width(configs),
            region_width=int(configs.get("embedder", {}).get("region_width", 0)),
            pixel_range=latents.get("pixel_range", (-1.0, 1.0)),
            decodes=latents["decodes"],
            has_null=bool(facts.get("has_null", facts.get("condition") != "none")),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"--model {parts.folder}: card.json or vae/config.json lacks or misstates {error}") from error
    check_card(card, parts)
    return card


def folder_of(name: str) -> Path:
    """The folder that ``--model`` names.

    Raises:
        ValueError: a file, or not there.
    """
    folder = EMBEDDED if name == "embedded" else Path(name)
    if folder.suffix.lower() in PICKLES or (folder.is_file()):
        raise ValueError(
            f"--model {folder} is a file"
            + (" (a pickle, which is never opened here)" if folder.suffix.lower() in PICKLES else "")
            + "; pass a model folder with model_index.json and safetensors, such as engine.train writes"
            + " and engine.models.convert makes of a published checkpoint"
        )
    if not folder.is_dir():
        raise ValueError(
            f"--model {folder} is not there; pass a model folder, or leave --model out for the embedded one"
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


def latents_of(parts: Parts) -> dict[str, Any]:
    """Channels and pixels per latent, channels of the pixels, and whether they can be made."""
    unet, vae, facts = parts.configs["unet"], parts.configs.get("vae"), parts.facts
    channels = int(unet["in_channels"] if "in_channels" in unet else unet["channels"])
    if facts.get("space") == "pixels":
        low, high = facts.get("pixel_range", (-1, 1))
        sizes = {"factor": 1, "channels": channels, "image_channels": channels}
        return {**sizes, "pixel_range": (float(low), float(high)), "decodes": True}
    if vae is None:
        if "factor" not in facts:
            raise ValueError(
                f"{parts.folder / 'vae' / 'config.json'} is missing: {parts.folder} is not the whole model"
            )
        image_channels = int(facts.get("image_channels", 3))
        return {
            "factor": int(facts["factor"]),
            "channels": channels,
            "image_channels": image_channels,
            "decodes": False,
        }
    found = autoencoder_sizes(vae)
    if found["channels"] != channels:
        raise ValueError(
            f"{parts.folder}: the network takes {channels} channels but the autoencoder's latents have "
            f"{found['channels']}; they do not belong together, or the network is not one for sampling alone"
        )
    return {**found, "decodes": True}


def autoencoder_sizes(config: Mapping[str, Any]) -> dict[str, int]:
    """Pixels per latent, channels of the latents and of the pixels.

    >>> autoencoder_sizes({"_class_name": "AutoencoderKL", "block_out_channels": [128, 256, 512, 512]})
    {'factor': 8, 'channels': 4, 'image_channels': 3}
    """
    name = config.get("_class_name")
    pixels = int(config.get("in_channels", 3))
    if name == "PatchAutoencoder":
        return {
            "factor": 2 ** len(config["channels"]) * int(config.get("fold", 1)),
            "channels": int(config["latent_channels"]),
            "image_channels": pixels,
        }
    blocks = config.get("block_out_channels", (64,))
    channels = int(config.get("latent_channels", 3 if name == "VQModel" else 4))
    if name == "VQModel":
        channels = int(config.get("vq_embed_dim") or channels)
    if name == "AutoencoderTiny":
        blocks = config.get("encoder_block_out_channels", (64,) * 4)
    return {"factor": 2 ** (len(blocks) - 1), "channels": channels, "image_channels": pixels}


def embedding_width(configs: Mapping[str, Mapping[str, Any]]) -> int:
    """Of what the embedder takes; of the tokens themselves where there is none; 0: the network takes neither."""
    if "embedder" in configs:
        return int(configs["embedder"]["patch_width"])
    if configs["unet"].get("_class_name") != "UNet2DConditionModel":
        return 0
    width = configs["unet"].get("cross_attention_dim", 1280)
    return int(width[0] if isinstance(width, list) else width)


def divisor_of(config: Mapping[str, Any]) -> int:
    """What the sides of a network's windows must be multiples of.

    >>> divisor_of({"_class_name": "MaskUNet", "dim_mults": [1, 2, 4]})
    4
    """
    for key in ("dim_mults", "channel_mult", "block_out_channels"):
        if key in config:
            return int(2 ** (len(config[key]) - 1))
    return 1


def check_card(card: Card, parts: Parts) -> None:
    """Refuse facts that contradict each other.

    Raises:
        ValueError: naming them.
    """
    path = parts.folder / "card.json"
    if not 1 <= len(parts.facts.get("labels", card.labels)) <= 64:
        raise ValueError(f"{path} has {len(parts.facts.get('labels', []))} labels; 1 to 64 are supported")
    if card.condition not in CONDITIONS:
        raise ValueError(f"{path}: condition is {card.condition!r}; known: {', '.join(CONDITIONS)}")
    if card.role not in ("image", "labels"):
        raise ValueError(f"{path}: role is {card.role!r}; known: image, labels")
    divisor = divisor_of(parts.configs["unet"])
    if card.patch < 1 or card.patch % divisor:
        raise ValueError(f"{path}: patch_size is {card.patch}; the network halves it: choose a multiple of {divisor}")
    outputs, variance = parts.configs["unet"].get("out_channels", card.channels), parts.scheduler.get("variance_type")
    if outputs != card.channels * (2 if variance == "learned_range" else 1):
        raise ValueError(
            f"{parts.folder}: the network gives {outputs} channels for {card.channels}, but scheduler_config.json's "
            f"variance_type is {variance}; such a network is not one for sampling alone"
        )


def digest(parts: Parts) -> str:
    """sha256 over what of a model changes a sample."""
    facts = parts.facts
    total = hashlib.sha256()
    for value in (parts.index, parts.configs, parts.scheduler, facts.get("patch_size"), facts.get("latents_gain")):
        total.update(json.dumps(value, sort_keys=True).encode())
    if extra := {key: facts[key] for key in HASHED if key in facts}:
        total.update(json.dumps(extra, sort_keys=True).encode())
    for path in parts.weights():
        with path.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


def color(index: int) -> tuple[int, int, int]:
    """RGB of a label that names none: those of the embedded model's, then hues a golden section apart.

    >>> color(1)
    (214, 39, 40)
    """
    if index < len(COLORS):
        return COLORS[index]
    red, green, blue = colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.7, 0.84)
    return round(255 * red), round(255 * green), round(255 * blue)


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
