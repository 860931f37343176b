"""The facts in a model folder's JSON, declared as options are: each key with the values that it takes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.diffusion.names import BETA_SCHEDULES, ETA_VARIANCES, PREDICTIONS, SPACINGS, VARIANCES
from engine.messages import quoted
from engine.options import FLAG, RGB, Kind, choice, number, whole

CONDITIONS = ("label-map", "class", "embedding", "semantic", "none")
MOST_LABELS = 64
LARGEST_SIZE = 2**20  # the largest number of features, classes, ... in a network's configuration
MOST_LAYERS = 256  # of one kind, and entries of a list
LONGEST_NAME = 120  # characters


def _name(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or len(value) > LONGEST_NAME or not value.isprintable():
        raise ValueError(f"expected a name of 1 to {LONGEST_NAME} printable characters")
    return value


def _labels(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not 1 <= len(value) <= MOST_LABELS:
        raise ValueError(f"expected a list of labels; 1 to {MOST_LABELS} are supported")
    for index, entry in enumerate(value):
        if not isinstance(entry, dict):
            raise ValueError(f"expected a name and a colour of label {index}")
        try:
            _name(entry.get("name"))
            if entry.get("color") is not None:
                RGB.read(entry["color"])
        except ValueError as problem:
            raise ValueError(f"of label {index}, {problem}") from None
    return value


def _range(value: Any) -> tuple[float, float]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError("expected the values of black and white, such as [-1, 1]")
    low, high = (SIGNED.read(part) for part in value)
    if low >= high:
        raise ValueError("expected the value of black below that of white")
    return low, high


def _std(value: Any) -> float | list[float]:
    return [POSITIVE.read(part) for part in value] if isinstance(value, list) and value else POSITIVE.read(value)


def _means(value: Any) -> list[float]:
    if not isinstance(value, list) or len(value) > MOST_LABELS:
        raise ValueError(f"expected a list of numbers from 0 to 1, one a class, at most {MOST_LABELS}")
    return [SHARE.read(part) for part in value]


def _weights(value: Any) -> list[list[float]]:
    if not isinstance(value, list) or not 1 <= len(value) <= MOST_LABELS or not all(isinstance(v, list) for v in value):
        raise ValueError("expected a list of numbers above 0 for each class")
    return [[POSITIVE.read(part) for part in row] for row in value]


def _defaults(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("expected settings by name")
    return value


def _colors(value: Any) -> list[list[float]]:
    if not isinstance(value, list) or len(value) not in (1, 3) or not all(isinstance(row, list) for row in value):
        raise ValueError("expected one or three lists of numbers")
    return [[SIGNED.read(part) for part in row] for row in value]


def _betas(value: Any) -> list[float] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not 1 <= len(value) <= MOST_TIMESTEPS:
        raise ValueError(f"expected 1 to {MOST_TIMESTEPS} numbers")
    return [BETA.read(part) for part in value]


MOST_TIMESTEPS = 100_000
BETA = number(1e-12, 0.99999)
POSITIVE = number(1e-6, 1e6)
SHARE = number(0, 1)
SIGNED = number(-1e6, 1e6)
SIDE = whole(1, 65536)

CARD = {
    "patch_size": SIDE,
    "pixel_size_um": number(1e-4, 1e4),
    "labels": Kind(_labels, "names and colours", "LABELS"),
    "latents_gain": number(0.01, 100),
    "latents_scale": POSITIVE,
    "latents_std": Kind(_std, "one number, or one a channel", "X"),
    "defaults": Kind(_defaults, "settings by name", "DEFAULTS"),
    "condition": choice(*CONDITIONS),
    "space": choice("latents", "pixels"),
    "role": choice("image", "labels"),
    "label_scale": whole(1, 1024),
    "label_count": whole(0, MOST_LABELS),
    "label_weights": Kind(_weights, "a list of numbers a class", "WEIGHTS"),
    "pixel_range": Kind(_range, "two numbers", "LOW,HIGH"),
    "has_null": FLAG,
    "class_means": Kind(_means, "numbers from 0 to 1", "X,X,..."),
    "factor": whole(1, 1024),
    "image_channels": whole(1, 1024),
    "guided_channels": whole(1, 1024),
    "latent_colors": Kind(_colors, "a list of numbers a colour", "COLORS"),
}
SCHEDULER = {
    "num_train_timesteps": whole(1, MOST_TIMESTEPS),
    "beta_schedule": choice(*BETA_SCHEDULES),
    "beta_start": BETA,
    "beta_end": BETA,
    "trained_betas": Kind(_betas, "numbers", "X,X,..."),
    "prediction_type": choice(*PREDICTIONS),
    "timestep_spacing": choice(*SPACINGS),
    "steps_offset": whole(0, MOST_TIMESTEPS),
    "timestep_shift": number(0.01, 100),
    "variance_type": choice(*VARIANCES, *(f"{name}_log" for name in VARIANCES)),
    "eta_variance": choice(*ETA_VARIANCES),
    "clip_sample": FLAG,
    "clip_sample_range": POSITIVE,
    "rederive_noise": FLAG,
    "network_timestep_offset": whole(-MOST_TIMESTEPS, MOST_TIMESTEPS),
    "network_timestep_scale": POSITIVE,
}
OPTIONAL = ("variance_type", "trained_betas")  # null is as good as none


LISTS = {"dim_mults", "channel_mult", "block_out_channels"}  # keys of configurations that hold a number a level
# Keys of configurations whose numbers count something that there is, or that values are divided by.
SIZES = LISTS | {"dim", "channels", "in_channels", "out_channels", "latent_channels", "num_classes", "map_channels"}
SIZES |= {"resnet_block_groups", "norm_num_groups", "model_channels", "patch_width", "width", "fold", "scaling_factor"}
DEPTHS = {"blocks", "block_per_layer", "layers_per_block", "num_res_blocks"}  # keys whose numbers may be 0


def check_facts(facts: Mapping[str, Any], kinds: Mapping[str, Kind], path: Path) -> None:
    """Refuse facts that their declarations do not take; keys without a declaration are descriptions.

    Raises:
        ValueError: naming the file, the key, its value and what was expected.
    """
    for key, kind in kinds.items():
        value = facts.get(key)
        if key not in facts or (value is None and key in OPTIONAL):
            continue
        try:
            if isinstance(value, str) and not isinstance(kind.read(value), str):
                raise ValueError("expected a number, not text")
            kind.read(value)
        except ValueError as problem:
            raise ValueError(f"{path}: {key} is {quoted(value)}: {problem}") from None


def check_config(config: Mapping[str, Any], path: Path) -> None:
    """Refuse a network's configuration with numbers that no network has: building it might take without end.

    Raises:
        ValueError: naming the file, the key, its value and what was expected.
    """
    for key, value in config.items():
        for one in numbers_of(value):
            if not abs(one) <= LARGEST_SIZE:  # nor is NaN
                raise ValueError(f"{path}: {key} is {quoted(value)}: expected numbers up to {LARGEST_SIZE}")
        if key in LISTS and not isinstance(value, list):
            raise ValueError(f"{path}: {key} is {quoted(value)}: expected a list of numbers")
        layered = "layers" in key or key.endswith(("blocks", "block_per_layer"))
        if isinstance(value, list) and len(value) > MOST_LAYERS and not key.startswith("latents_"):
            raise ValueError(f"{path}: {key} has {len(value)} entries: expected {MOST_LAYERS} at most")
        if layered and any(one > MOST_LAYERS for one in numbers_of(value)):
            raise ValueError(f"{path}: {key} is {quoted(value)}: expected {MOST_LAYERS} layers at most")
        counted = numbers_of(value)
        if key in SIZES and value is not None and (not counted or min(counted) <= 0):
            raise ValueError(f"{path}: {key} is {quoted(value)}: expected a number above 0")
        if key in DEPTHS and value is not None and (not counted or min(counted) < 0):
            raise ValueError(f"{path}: {key} is {quoted(value)}: expected 0 or more")


def numbers_of(value: Any) -> list[float]:
    """The numbers in a value, or in lists in it."""
    if isinstance(value, list):
        return [one for part in value for one in numbers_of(part)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []
