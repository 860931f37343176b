"""``python -m engine.models.convert SYSTEM CHECKPOINT --out MODEL_DIR``: a published checkpoint as a model folder.

SYSTEM is diffinfinite-image, diffinfinite-labels, large-image-diffusion, sdm or feature-aligned. The system's own
configuration is read from beside the checkpoint, where the system writes it, unless ``--config`` names another. Two
systems write none: sizes are read from their weights, and what these cannot say is as published (``--preset``,
``--set``).
Checkpoints are opened as tensors and plain values alone.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.command_line import Parser, as_flags, comma_separated, on_one_rank, positive, print_error
from engine.models.files import CLASSES, OURS, WEIGHTS

if TYPE_CHECKING:  # numpy and torch, which --help does not wait for
    from engine.models.card import ModelCard
    from engine.models.convert.common import Converted, Options, Part

SYSTEMS = ("diffinfinite-image", "diffinfinite-labels", "large-image-diffusion", "sdm", "feature-aligned")
DIFFINFINITE = ("diffinfinite-image", "diffinfinite-labels")
SYSTEMS_OF_OPTION = {
    "vae": DIFFINFINITE,
    "names": (*DIFFINFINITE, "feature-aligned"),
    "label_count": ("diffinfinite-labels",),
    "preset": ("large-image-diffusion", "sdm", "feature-aligned"),
    "settings": ("sdm", "feature-aligned"),
    "class_embeddings": ("feature-aligned",),
    "clip": ("feature-aligned",),
}


def parser() -> argparse.ArgumentParser:
    top = Parser(prog="python -m engine.models.convert", description=__doc__, allow_abbrev=False)
    top.add_argument("system", choices=SYSTEMS, metavar="SYSTEM", help=", ".join(SYSTEMS))
    top.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="the file, or the folder that holds it")
    top.add_argument("--out", type=Path, required=True, metavar="MODEL_DIR", help="the model folder to write")
    top.add_argument("--overwrite", action="store_true", help="replace the model folder that is there")
    top.add_argument("--config", type=Path, metavar="FILE", help="the system's own configuration, JSON or YAML")
    top.add_argument(
        "--patch",
        type=positive(int),
        metavar="N",
        help="side of a window, in latents (in pixels, for a model of pixels)",
    )
    top.add_argument("--pixel-size", type=positive(float), metavar="UM", help="micrometres per pixel")
    top.add_argument(
        "--names", type=comma_separated, default=(), metavar="A,B,...", help="names of labels or classes, from 0"
    )
    top.add_argument("--vae", type=Path, metavar="DIR", help="diffinfinite: autoencoder of Stable Diffusion 2")
    top.add_argument(
        "--label-count", type=positive(int), metavar="N", help="diffinfinite-labels: number of labels in its maps"
    )
    top.add_argument(
        "--class-embeddings",
        type=Path,
        metavar="FILE.npy",
        help="feature-aligned: table (classes, 512), else that of the published names by the checkpoint's CLIP",
    )
    top.add_argument(
        "--clip", type=Path, metavar="DIR", help="feature-aligned: CLIP, which computes that table from --names"
    )
    presets = "sdm: monuseg (default), dsb2018, ade20k, celeba; feature-aligned: tiny-sd; "
    presets += "large-image-diffusion: large-image (default), patches (their PLMS)"
    top.add_argument("--preset", metavar="NAME", help=f"published settings that weights cannot say: {presets}")
    top.add_argument(
        "--set",
        dest="settings",
        type=key_values,
        default={},
        metavar="KEY=VALUE,...",
        help="such settings one by one, as num_head_channels=64,noise_schedule=linear",
    )
    return top


def key_values(text: str) -> dict[str, Any]:
    """``KEY=VALUE,...``, values as in YAML.

    >>> key_values("num_head_channels=64, noise_schedule=linear")
    {'num_head_channels': 64, 'noise_schedule': 'linear'}
    """
    import yaml

    pairs = [part.partition("=") for part in text.split(",")]
    if not all(key.strip() and value.strip() for key, _, value in pairs):
        raise argparse.ArgumentTypeError(f"{text!r}: expected KEY=VALUE, several by commas")
    try:
        values = {key.strip(): yaml.safe_load(value.strip()) for key, _, value in pairs}
    except yaml.YAMLError:
        values = {text: None}
    if not all(isinstance(value, str | int | float) for value in values.values()):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number, a word, true or false as each VALUE")
    return values


@on_one_rank
def main(arguments: Sequence[str] | None = None) -> int:
    """Convert a checkpoint as the command line says; return the exit status."""
    try:
        print(as_flags(convert(parser().parse_args(arguments))))
    except (ValueError, OSError) as error:
        print_error(error)
        return 1
    return 0


def convert(args: argparse.Namespace) -> str:
    """Write the model folder; return the lines that describe it.

    Raises:
        ValueError: the checkpoint is another system's, a setting cannot be converted, or the place is taken.
    """
    check_place(args.out, args.overwrite)

    from engine.models.convert.checkpoint import check_system, find_checkpoint, open_checkpoint
    from engine.models.convert.systems import CONVERT, Options

    options = Options(
        config=args.config,
        vae=args.vae,
        patch=args.patch,
        pixel_size_um=args.pixel_size,
        names=args.names,
        label_count=args.label_count,
        class_embeddings=args.class_embeddings,
        clip=args.clip,
        preset=args.preset,
        settings=args.settings,
    )
    check_options(args.system, options)
    path = find_checkpoint(args.checkpoint)
    checkpoint = open_checkpoint(path)
    check_system(checkpoint, args.system, path)
    try:
        converted = CONVERT[args.system](checkpoint, path, options)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f"{path}: its weights or its configuration lack or misstate {error}; name the configuration with `config`"
        ) from error
    check_parts(converted)
    card = write(converted, args.out, args.overwrite)
    return "\n".join([describe(args.out, card), *(f"note: {note}" for note in converted.notes)])


def check_options(system: str, options: Options) -> None:
    """Refuse options that the system does not have, and options that exclude or need each other.

    Raises:
        ValueError: the options, and what to do.
    """
    for name, systems in SYSTEMS_OF_OPTION.items():
        if getattr(options, name) not in (None, (), {}) and system not in systems:
            flag = {"settings": "set"}.get(name, name)
            raise ValueError(f"`{flag}` is an option of {' and '.join(systems)}, not of {system}")
    if options.clip is not None and options.class_embeddings is not None:
        raise ValueError("both `clip` and `class_embeddings` are given; choose one")


def check_place(out: Path, overwrite: bool) -> None:
    """Refuse a place that is taken, unless by a model folder that may be overwritten.

    Raises:
        ValueError: the place, and what to do.
    """
    if not out.absolute().parent.is_dir():
        raise ValueError(f"`out` {out}: {out.absolute().parent} is not there; make it first")
    if not out.exists():
        return
    if not overwrite:
        raise ValueError(f"`out` {out} is there already; choose another place, or pass `overwrite`")
    if not (out / "model_index.json").is_file():
        raise ValueError(f"`out` {out} is no model folder and is not replaced; choose another place")


def check_parts(converted: Converted) -> None:
    """Refuse weights that are not finite or not of the networks that the settings describe, and a patch that does not
    halve.

    Raises:
        ValueError: the first such weight, or the patch.
    """
    from engine.models.card import divisor_of
    from engine.models.folder import check_finite, check_fit

    for name, part in converted.parts.items():
        if part.source is None:
            try:
                check_fit(part.config, part.tensors)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
            for key, tensor in part.tensors.items():
                check_finite(tensor, f"{name}: {key}")
    divisor, patch = divisor_of(converted.parts["unet"].config), converted.card["patch_size"]
    if patch % divisor:
        raise ValueError(
            f"windows of {patch} cannot be halved as the network does; pass `patch`, a multiple of {divisor}"
        )


def write(converted: Converted, out: Path, overwrite: bool) -> ModelCard:
    """Write a model folder beside its place, and move it there when it is whole; return its card."""
    from engine.models.card import read_card
    from engine.models.latent_colors import keep_colors
    from engine.storage.files import write_json

    temporary = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        temporary.mkdir()
        for name, part in converted.parts.items():
            write_part(part, temporary / name)
        (temporary / "scheduler").mkdir()
        write_json(temporary / "scheduler" / "scheduler_config.json", converted.scheduler)
        write_json(temporary / "card.json", converted.card)
        write_json(temporary / "model_index.json", index_of(converted))
        if converted.classes is not None:
            write_classes(converted.classes, temporary / "embedder" / CLASSES)
        read_card(str(temporary))
        keep_colors(temporary)
        card = read_card(str(temporary))
        move(temporary, out, overwrite)
        return card
    except ValueError as error:
        raise ValueError(str(error).replace(str(temporary), str(out))) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_part(part: Part, folder: Path) -> None:
    from engine.models.folder import save_tensors

    if part.source is None:
        save_tensors(part.config, part.tensors, folder)
        return
    folder.mkdir(parents=True)
    for name in ("config.json", WEIGHTS):
        shutil.copyfile(part.source / name, folder / name)


def write_classes(classes: Any, path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"embeddings": classes}, path)


def index_of(converted: Converted) -> dict[str, Any]:
    """The content of ``model_index.json``: library and class of each part."""
    from engine.models.folder import CLASSES as own

    def entry(config: dict[str, Any]) -> list[str]:
        name = config["_class_name"]
        return ["slidefield" if name in own else "diffusers", name]

    parts = {name: entry(part.config) for name, part in converted.parts.items()}
    return {"_class_name": OURS, **parts, "scheduler": ["diffusers", converted.scheduler["_class_name"]]}


def move(temporary: Path, out: Path, overwrite: bool) -> None:
    """Rename a whole folder into its place; a folder that was there is deleted after that."""
    check_place(out, overwrite)
    old = out.with_name(f".{out.name}.{os.getpid()}.old")
    if out.exists():
        out.rename(old)
    temporary.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def describe(out: Path, card: ModelCard) -> str:
    """One line that describes a model folder."""
    unit = "pixels" if card.factor == 1 else f"latents ({card.patch * card.factor} px)"
    line = f"wrote {out}: {card.role} model, condition {card.condition}, windows of {card.patch} x {card.patch} {unit}"
    return line if card.decodes else f"{line}; latents only: pass `vae` DIR for an autoencoder that decodes them"


if __name__ == "__main__":
    raise SystemExit(main())
