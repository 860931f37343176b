"""Values and helpers that the conversions share: the options, and a model folder before it is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from engine.diffusion.schedule import betas
from engine.models.card import colored

UNSET = ("num_head_channels", "num_heads_upsample")  # whole numbers that -1 leaves to others


@dataclass(frozen=True)
class Options:
    """Facts that the command line adds to a checkpoint; None where it says nothing.

    Args:
        config: File of the system's configuration, where it does not lie beside the checkpoint.
        vae: Folder of the autoencoder, which DiffInfinite's checkpoints do not contain.
        patch: Side of a window, in latents.
        pixel_size_um: Micrometres per pixel.
        names: Names of the labels or classes, from 0.
        label_count: Number of labels in a label model's maps.
        class_embeddings: File of the table (K, 512) of class embeddings, for feature-aligned diffusion.
        clip: Folder of CLIP, which computes that table from the names.
        preset: Published settings that the weights cannot say; None: the system's first.
        settings: Settings that go before those of a preset or of a configuration.
    """

    config: Path | None = None
    vae: Path | None = None
    patch: int | None = None
    pixel_size_um: float | None = None
    names: tuple[str, ...] = ()
    label_count: int | None = None
    class_embeddings: Path | None = None
    clip: Path | None = None
    preset: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """A network of a model folder.

    Args:
        config: Content of its ``config.json``.
        tensors: Weights by name.
        source: Folder that both are copied from instead.
    """

    config: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    source: Path | None = None


@dataclass(frozen=True)
class Converted:
    """A model folder before it is written.

    Args:
        parts: Networks by name.
        scheduler: Content of ``scheduler_config.json``.
        card: Content of ``card.json``.
        notes: Sentences for the user on what was taken for granted.
        classes: Embeddings of the classes, (K, D).
    """

    parts: dict[str, Part]
    scheduler: dict[str, Any]
    card: dict[str, Any]
    notes: tuple[str, ...] = ()
    classes: np.ndarray | None = None


def check_settings(options: Options, preset: Mapping[str, Any], more: tuple[str, ...] = ()) -> None:
    """Refuse settings that the weights say, and values that are none of a setting.

    Args:
        preset: Settings that can be given, with values of their kinds.
        more: Whole numbers that can be given besides.
    Raises:
        ValueError: naming the setting.
    """
    for key, value in options.settings.items():
        if key not in (*preset, *more):
            raise ValueError(f"`set` {key}: not one of what the weights cannot say: {', '.join((*preset, *more))}")
        kind = type(preset.get(key, 1))
        said = {bool: "true or false", int: "a whole number", str: "a word"}[kind]
        if type(value) is not kind:
            raise ValueError(f"`set` {key} is {value}; expected {said}")
        if kind is int and value < 1 and not (key in UNSET and value == -1):
            raise ValueError(f"`set` {key} is {value}; expected 1 or more")


def unsaid(
    options: Options, presets: Mapping[str, Mapping[str, Any]], file: str, more: tuple[str, ...] = ()
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What a checkpoint's weights cannot say, from a preset and the options, and a note of what was taken from where.

    Args:
        presets: Published settings by name, the system's usual ones first.
        file: File of settings that there is none of.
        more: Settings that can be given besides those of a preset.
    Raises:
        ValueError: the preset or a setting is none that there is.
    """
    name = options.preset or next(iter(presets))
    if name not in presets:
        raise ValueError(f"`preset` {name} is none of this system's: {', '.join(presets)}")
    preset = presets[name]
    check_settings(options, preset, more)
    known = {**preset, **options.settings}
    listed = ", ".join(f"{key} {value}" for key, value in known.items())
    note = (
        f"no {file}: sizes are read from the weights; what these cannot say is taken as published (preset {name}"
        f"{' and `set`' if options.settings else ''}): {listed}"
    )
    return known, (note,)


def refuse_preset(options: Options, config: Path) -> None:
    """Refuse a preset where a configuration says it all.

    Raises:
        ValueError: naming both.
    """
    if options.preset is not None:
        raise ValueError(f"both `preset` {options.preset} and {config} say the settings; leave out `preset`")


def schedule_of(table: Tensor | None, kind: str, steps: int, start: float, end: float) -> dict[str, Any]:
    """Settings of a schedule of the named kind, or of the checkpoint's own table of betas where that differs."""
    named = {"num_train_timesteps": steps, "beta_schedule": kind}
    if kind != "squaredcos_cap_v2":
        named |= {"beta_start": start, "beta_end": end}
    if table is None or (
        len(table) == steps and np.allclose(table.numpy(), betas(kind, steps, start, end), rtol=1e-4, atol=1e-7)
    ):
        return named
    return {"num_train_timesteps": len(table), "trained_betas": table.double().tolist()}


def latents_defaults(patch: int, steps: int, eta: float, guidance: float, solver: str = "ddim") -> dict[str, Any]:
    """The card's ``defaults`` for a model of latents."""
    job = {"steps": steps, "solver": solver, "eta": eta, "guidance": guidance, "batch_size": 8}
    return {**job, "decode_overlap": max(patch // 4, 1)}


def named(options: Options, count: int, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """The card's ``labels``: the names of the options, or else ``names``, with their colours.

    Raises:
        ValueError: the options name another number of labels than ``count``.
    """
    if options.names and len(options.names) != count:
        raise ValueError(
            f"`names`: {len(options.names)} names ({', '.join(options.names)}) for {count} labels or classes"
        )
    return colored(options.names or names)


def numbered(word: str, count: int) -> tuple[str, ...]:
    return tuple(f"{word} {index}" for index in range(count))
