"""What the conversions share: the options, the parts of a model folder before it is written, and its tables."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from engine.diffusion.schedule import betas
from engine.models.card import color


@dataclass(frozen=True)
class Options:
    """What the command line adds to a checkpoint.

    Args:
        config: the system's configuration, where it does not lie beside the checkpoint.
        vae: folder of the autoencoder that DiffInfinite's checkpoints do not carry.
        patch: side of a window, in latents.
        names: of the labels or classes.
        label_count: labels that a label model's maps tell apart.
        class_embeddings, clip: of feature-aligned diffusion, a table (K, 512), or a folder of CLIP that computes it.
    """

    config: Path | None = None
    vae: Path | None = None
    patch: int | None = None
    pixel_size_um: float | None = None
    names: tuple[str, ...] = ()
    label_count: int | None = None
    class_embeddings: Path | None = None
    clip: Path | None = None


@dataclass(frozen=True)
class Part:
    """A network: its settings, and its weights or the folder that they are copied from."""

    config: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    source: Path | None = None


@dataclass(frozen=True)
class Converted:
    """A model folder before it is written.

    Args:
        notes: what was taken for granted, to be said.
        classes: embeddings (K, D) of the classes.
    """

    parts: dict[str, Part]
    scheduler: dict[str, Any]
    card: dict[str, Any]
    notes: tuple[str, ...] = ()
    classes: np.ndarray | None = None


def schedule_of(table: Tensor | None, kind: str, steps: int, start: float, end: float) -> dict[str, Any]:
    """A schedule's settings by name, unless the checkpoint's own table is another one."""
    named = {"num_train_timesteps": steps, "beta_schedule": kind}
    if kind != "squaredcos_cap_v2":
        named |= {"beta_start": start, "beta_end": end}
    if table is None or (
        len(table) == steps and np.allclose(table.numpy(), betas(kind, steps, start, end), rtol=1e-4, atol=1e-7)
    ):
        return named
    return {"num_train_timesteps": len(table), "trained_betas": table.double().tolist()}


def latents_defaults(patch: int, steps: int, eta: float, guidance: float) -> dict[str, Any]:
    job = {"steps": steps, "solver": "ddim", "eta": eta, "guidance": guidance, "batch_size": 8}
    return {**job, "decode_overlap": max(patch // 4, 1)}


def named(options: Options, count: int, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """The labels' names and colours.

    Raises:
        ValueError: names were given, but another number of them.
    """
    if options.names and len(options.names) != count:
        raise ValueError(
            f"--names: {len(options.names)} names ({', '.join(options.names)}) for {count} labels or classes"
        )
    return [{"name": name, "color": list(color(i))} for i, name in enumerate(options.names or names)]


def numbered(word: str, count: int) -> tuple[str, ...]:
    return tuple(f"{word} {index}" for index in range(count))
