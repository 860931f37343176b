"""The card of a model folder: its facts, read from JSON without torch before any network is loaded."""

from __future__ import annotations

import colorsys
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.diffusion.schedule import Schedule
from engine.models.facts import CARD, CONDITIONS, SCHEDULER, check_config, check_facts
from engine.models.files import Parts, check_safetensors, folder_of, read_parts

__all__ = ["CONDITIONS", "ModelCard", "read_card"]
COLORS = ((160, 160, 160), (214, 39, 40), (255, 187, 20), (44, 120, 200), (60, 170, 90))
# Keys of card.json that change the bytes of a sample; ``digest`` hashes patch_size and latents_gain besides.
HASHED = (
    "condition",
    "space",
    "role",
    "label_scale",
    "label_count",
    "label_weights",
    "latents_scale",
    "latents_std",
    "pixel_range",
    "has_null",
    "guided_channels",
)


@dataclass(frozen=True)
class ModelCard:
    """The facts of a model. A model of pixels has no autoencoder: its latents are the pixels themselves.

    Args:
        folder: Folder of the model.
        hash: sha256 over every setting and weight that changes the bytes of a sample; see ``digest``.
        patch: Side of a window, in latents.
        factor: Pixels per latent, along a side.
        channels: Number of channels of the latents.
        labels: Names of the labels, 0 first; for a model conditioned on a class, names of the classes.
        colors: RGB of each label, for viewers.
        pixel_size_um: Micrometres per pixel.
        schedule: Noise schedule that the network was trained on.
        latents_gain: Factor that sampled latents are multiplied by before they are decoded. Above 1 it restores the
            std of latents that a network of little training samples with too small a one; 1 changes nothing.
        defaults: Values of job fields (steps, solver, guidance, ...) that a job leaves out.
        condition: What the network is conditioned on, one of ``CONDITIONS``.
        image_channels: Number of channels of the pixels.
        role: ``image``, or ``labels`` for a model whose images are label maps.
        label_scale: Image pixels per pixel of the label map, along a side; for a label model.
        label_count: Number of labels in the label maps; for a label model.
        label_weights: A row for each class that a label model is asked for: what the chance of each label is multiplied
            by at every level, so that labels have their areas; empty: nothing is.
        semantic_channels: Number of channels of the semantic map; 0 where the network takes none.
        embedding_width: Length of an embedding (of a patch or a class); 0 where the network takes none.
        region_width: Length of the embedding of a patch's region; 0 where the network takes none.
        pixel_range: Values of black and white on the canvas of a model of pixels; latents decode to (-1, 1).
        decodes: Whether the folder can make pixels: a model of latents may lack its autoencoder.
        has_null: Whether the network was trained to be conditioned on nothing too, which guidance needs.
        class_means: Mean brightness of each class's training images, 0 to 1, for `accept` published; empty: unknown.
        guided_channels: Number of the first channels of the network's output that guidance acts on; None: those of the
            latents, and not those of a learned variance.
        latent_colors: A row for red, green and blue, or one for grey: the factor of each normalised latent in it, and
            what is added, black at -1 and white at 1. It makes pictures of unfinished runs; empty: it is not known.
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
    label_weights: tuple[tuple[float, ...], ...] = ()
    semantic_channels: int = 0
    embedding_width: int = 0
    region_width: int = 0
    pixel_range: tuple[float, float] = (-1.0, 1.0)
    decodes: bool = True
    has_null: bool = True
    class_means: tuple[float, ...] = ()
    guided_channels: int | None = None
    latent_colors: tuple[tuple[float, ...], ...] = ()


def read_card(name: str) -> ModelCard:
    """Read and check a model folder; ``embedded`` is the model in the package.

    A folder that diffusers saved is a model too. A UNet2DModel has the condition ``none``; a UNet2DConditionModel has
    the condition ``embedding``, and its embeddings are the tokens themselves.

    Raises:
        ValueError: the folder is no model, a part of it is missing or truncated, or a pickle was named.
    """
    parts = read_parts(folder_of(name))
    check_parts(parts)
    for path in parts.weights():
        check_safetensors(path)
    facts, configs = parts.facts, parts.configs
    try:
        latents = latents_of(parts)
        labels = facts.get("labels") or [{"name": "image"}]
        card = ModelCard(
            folder=parts.folder.resolve(),
            hash=digest(parts),
            patch=int(facts["patch_size"]),
            factor=latents["factor"],
            channels=latents["channels"],
            labels=tuple(entry["name"] for entry in labels),
            colors=tuple(tuple(entry.get("color") or color(i)) for i, entry in enumerate(labels)),
            pixel_size_um=float(facts["pixel_size_um"]),
            schedule=schedule_of(parts),
            latents_gain=float(facts.get("latents_gain", 1.0)),
            defaults=facts.get("defaults", {}),
            condition=facts.get("condition", "label-map"),
            image_channels=latents["image_channels"],
            role=facts.get("role", "image"),
            label_scale=int(facts.get("label_scale", 1)),
            label_count=int(facts.get("label_count", 0)),
            label_weights=tuple(tuple(map(float, row)) for row in facts.get("label_weights", ())),
            semantic_channels=int(configs["unet"].get("map_channels", 0)),
            embedding_width=embedding_width(configs),
            region_width=int(configs.get("embedder", {}).get("region_width", 0)),
            pixel_range=latents.get("pixel_range", (-1.0, 1.0)),
            decodes=latents["decodes"],
            has_null=bool(facts.get("has_null", facts.get("condition") != "none")),
            class_means=tuple(facts.get("class_means", ())),
            guided_channels=facts.get("guided_channels"),
            latent_colors=tuple(tuple(map(float, row)) for row in facts.get("latent_colors", ())),
        )
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"`model` {parts.folder}: card.json or vae/config.json lacks or misstates {error}") from None
    check_card(card, parts)
    return card


def check_parts(parts: Parts) -> None:
    """Refuse facts and settings that their declarations do not take, before any is used.

    Raises:
        ValueError: naming the file, the key, its value and what was expected.
    """
    check_facts(parts.facts, CARD, parts.folder / "card.json")
    check_facts(parts.scheduler, SCHEDULER, parts.scheduler_path)
    for name, config in parts.configs.items():
        check_config(config, parts.folders[name] / "config.json")


def schedule_of(parts: Parts) -> Schedule:
    """The noise schedule of a model folder.

    Raises:
        ValueError: settings that make none, naming their file.
    """
    try:
        return Schedule.from_config(parts.scheduler)
    except ValueError as problem:
        raise ValueError(f"{parts.scheduler_path}: {problem}") from None


def latents_of(parts: Parts) -> dict[str, Any]:
    """The fields of ``ModelCard`` that describe latents and pixels."""
    unet, vae, facts = parts.configs["unet"], parts.configs.get("vae"), parts.facts
    channels = int(unet["in_channels"] if "in_channels" in unet else unet["channels"])
    if facts.get("space") == "pixels":
        low, high = facts.get("pixel_range", (-1, 1))
        of_pixels = {"factor": 1, "channels": channels, "image_channels": channels}
        return {**of_pixels, "pixel_range": (float(low), float(high)), "decodes": True}
    if vae is None:
        if "factor" not in facts:
            raise ValueError(
                f"{parts.folder / 'vae' / 'config.json'} is missing: {parts.folder} is not the whole model"
            )
        said = {"factor": int(facts["factor"]), "image_channels": int(facts.get("image_channels", 3))}
        return {**said, "channels": channels, "decodes": False}
    sizes = autoencoder_sizes(vae)
    if sizes["channels"] != channels:
        raise ValueError(
            f"{parts.folder}: the network takes {channels} channels but the autoencoder's latents have "
            f"{sizes['channels']}; they do not belong together, or the network is not one for sampling alone"
        )
    return {**sizes, "decodes": True}


def autoencoder_sizes(config: Mapping[str, Any]) -> dict[str, int]:
    """Pixels per latent and channels of latents and pixels, from an autoencoder's ``config.json``.

    >>> autoencoder_sizes({"_class_name": "AutoencoderKL", "block_out_channels": [128, 256, 512, 512]})
    {'factor': 8, 'channels': 4, 'image_channels': 3}
    """
    name = config.get("_class_name")
    pixels = int(config.get("in_channels", 3))
    if name == "PatchAutoencoder":
        factor = 2 ** len(config["channels"]) * int(config.get("fold", 1))
        return {"factor": factor, "channels": int(config["latent_channels"]), "image_channels": pixels}
    blocks = config.get("block_out_channels", (64,))
    channels = int(config.get("latent_channels", 3 if name == "VQModel" else 4))
    if name == "VQModel":
        channels = int(config.get("vq_embed_dim") or channels)
    if name == "AutoencoderTiny":
        blocks = config.get("encoder_block_out_channels", (64,) * 4)
    return {"factor": 2 ** (len(blocks) - 1), "channels": channels, "image_channels": pixels}


def embedding_width(configs: Mapping[str, Mapping[str, Any]]) -> int:
    """Length of the embeddings that the embedder takes, or of the network's tokens where there is no embedder.

    It is 0 where the network takes no tokens.
    """
    if "embedder" in configs:
        return int(configs["embedder"]["patch_width"])
    if configs["unet"].get("_class_name") != "UNet2DConditionModel":
        return 0
    width = configs["unet"].get("cross_attention_dim", 1280)
    return int(width[0] if isinstance(width, list) else width)


def divisor_of(config: Mapping[str, Any]) -> int:
    """The number that the sides of a network's windows must be multiples of, because the network halves them.

    >>> divisor_of({"_class_name": "MaskUNet", "dim_mults": [1, 2, 4]})
    4
    """
    for key in ("dim_mults", "channel_mult", "block_out_channels"):
        if key in config:
            return int(2 ** (len(config[key]) - 1))
    return 1


def check_card(card: ModelCard, parts: Parts) -> None:
    """Refuse facts that contradict each other.

    Raises:
        ValueError: a fact is out of range, or the network does not have the channels that the facts demand.
    """
    path = parts.folder / "card.json"
    divisor = divisor_of(parts.configs["unet"])
    if card.patch % divisor:
        raise ValueError(f"{path}: patch_size is {card.patch}; the network halves it: choose a multiple of {divisor}")
    if card.role == "labels" and card.label_count < 2:
        raise ValueError(f"{path}: label_count is {card.label_count}; the maps of a label model have 2 or more")
    shape = {len(row) for row in card.label_weights} | {card.channels * card.factor}
    if card.label_weights and (len(card.label_weights) != len(card.labels) or shape != {card.label_count}):
        raise ValueError(
            f"{path}: label_weights has {len(card.label_weights)} rows; those of a label model of pixels, a channel a "
            f"label, are one for each of {len(card.labels)} classes, of label_count {card.label_count}; leave it out"
        )
    std = parts.facts.get("latents_std", 1.0)
    if isinstance(std, list) and len(std) != card.channels:
        raise ValueError(f"{path}: latents_std has {len(std)} numbers but the latents have {card.channels} channels")
    if any(len(row) != card.channels + 1 for row in card.latent_colors):
        raise ValueError(
            f"{path}: latent_colors has rows of {', '.join(str(len(row)) for row in card.latent_colors)} numbers, not "
            f"{card.channels + 1}: one a channel of the latents, and what is added; leave it out"
        )
    outputs, variance = parts.configs["unet"].get("out_channels", card.channels), parts.scheduler.get("variance_type")
    if outputs != card.channels * (2 if variance == "learned_range" else 1):
        raise ValueError(
            f"{parts.folder}: the network gives {outputs} channels for {card.channels}, but scheduler_config.json's "
            f"variance_type is {variance}; such a network is not one for sampling alone"
        )


def digest(parts: Parts) -> str:
    """sha256 over every setting and weight that changes the bytes of a sample.

    A part's class counts by its name alone: ``model_index.json`` also says which module it is from, and modules move.
    """
    facts = parts.facts
    classes = {name: entry[-1] for name, entry in parts.index.items() if isinstance(entry, list) and entry}
    total = hashlib.sha256()
    for value in (classes, parts.configs, parts.scheduler, facts.get("patch_size"), facts.get("latents_gain")):
        total.update(json.dumps(value, sort_keys=True).encode())
    if extra := {key: facts[key] for key in HASHED if key in facts}:
        total.update(json.dumps(extra, sort_keys=True).encode())
    for path in parts.weights():
        with path.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


def color(index: int) -> tuple[int, int, int]:
    """RGB of a label whose card names no colour: those of the embedded model, then hues a golden section apart.

    >>> color(1)
    (214, 39, 40)
    """
    if index < len(COLORS):
        return COLORS[index]
    red, green, blue = colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.7, 0.84)
    return round(255 * red), round(255 * green), round(255 * blue)


def colored(names: Sequence[str]) -> list[dict[str, Any]]:
    """The entries of card.json's ``labels``: each name with its colour.

    >>> colored(["unknown"])
    [{'name': 'unknown', 'color': [160, 160, 160]}]
    """
    return [{"name": name, "color": list(color(index))} for index, name in enumerate(names)]
