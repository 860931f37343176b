"""A small model of every published system, of random weights, converted by the real command; and what to ask it for."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
from test_convert import diffinfinite, feature_aligned, large_image, nuclei, random_weights, small_autoencoder

from engine.models.card import read_card
from engine.models.convert.__main__ import main
from engine.models.networks.mask_unet import LabelUNet, MaskUNet

SIZE = (70, 100)  # px: not square, no multiple of anything, larger than every window but one


def make_model(system: str, folder: Path) -> Path:
    """A model folder of a system; ``folder`` is made."""
    folder.mkdir(parents=True)
    if system == "diffinfinite-image":
        diffinfinite(folder / "model-1.pt", random_weights(MaskUNet(8, 5, (1, 2), 4, 2)), {"unet": {}})
    elif system == "diffinfinite-labels":
        diffinfinite(folder / "model-1.pt", random_weights(LabelUNet(8, 2, (1, 2), 4, 2)), {"unet": {}})
    elif system == "large-image-diffusion":
        large_image(folder, region=7)
    elif system == "sdm":
        nuclei(folder, learn_sigma=True)
    else:
        feature_aligned(folder / "aligned")
    checkpoint = next(p for p in sorted(folder.rglob("*")) if p.suffix in (".pt", ".ckpt"))
    patch = 16 if system == "sdm" else 8 if system.startswith("diffinfinite") else None
    model = convert_small(system, checkpoint, folder, patch)
    card = json.loads((model / "card.json").read_text())
    card["defaults"]["batch_size"] = 2  # a micro-batch is filled up: with 8, few windows would cost as much as 8
    (model / "card.json").write_text(json.dumps(card))
    return model


def convert_small(system: str, checkpoint: Path, folder: Path, patch: int | None) -> Path:
    """The model folder of a checkpoint, with an autoencoder of random weights where it carries none."""
    options: list[object] = ["--patch", patch] if patch else []
    if system.startswith("diffinfinite"):
        small_autoencoder(folder / "vae")
        options += ["--vae", folder / "vae"]
    out = folder / "model"
    assert main([system, str(checkpoint), "--out", str(out), *map(str, options)]) == 0
    return out


def asked(model: Path, folder: Path, size: tuple[int, int] = SIZE) -> tuple:
    """The options that a model needs beside its folder and the size; files are put into ``folder``."""
    rng, card = np.random.default_rng(0), read_card(str(model))
    if card.condition == "label-map":
        blocks = rng.integers(0, len(card.labels), [-(-n // 10) for n in size]).astype(np.uint8)
        np.save(folder / "labels.npy", blocks.repeat(10, 0).repeat(10, 1)[: size[0], : size[1]])
        return ("--labels", folder / "labels.npy")
    if card.condition == "embedding":
        features = folder / "features.h5"
        rows, columns = (-(-n // (card.patch * card.factor)) for n in size)
        with h5py.File(features, "w") as file:
            for name, width in (("feat_20x", card.embedding_width), ("feat_5x", card.region_width)):
                file[name] = rng.standard_normal((rows * columns, width)).astype(np.float32)
        region = ("--region-embeddings", f"{features}:/feat_5x") if card.region_width else ()
        return ("--embeddings", f"{features}:/feat_20x", *region)
    if card.condition == "semantic":
        if card.semantic_channels in (2, 3, 5, 6):
            np.save(folder / "instances.npy", discs(size))
            return ("--instances", folder / "instances.npy")
        np.save(folder / "map.npy", rng.random((card.semantic_channels, *size), np.float32))
        return ("--map", folder / "map.npy")
    np.save(folder / "classes.npy", rng.standard_normal((3, card.embedding_width)).astype(np.float32))
    return ("--embeddings", folder / "classes.npy", "--label", "2")


def discs(size: tuple[int, int], pitch: int = 17, radius: int = 6) -> np.ndarray:
    """An instance map of round nuclei, none cut by the border."""
    instances = np.zeros(size, np.uint32)
    yy, xx = np.ogrid[: size[0], : size[1]]
    for y in range(radius + 2, size[0] - radius - 1, pitch):
        for x in range(radius + 2, size[1] - radius - 1, pitch):
            instances[(yy - y) ** 2 + (xx - x) ** 2 <= radius**2] = instances.max() + 3
    return instances


IMAGES = ("diffinfinite-image", "large-image-diffusion", "sdm", "feature-aligned")
