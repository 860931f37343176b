"""``python -m engine.models.convert SYSTEM CHECKPOINT --out MODEL_DIR``: a published checkpoint as a model folder.

SYSTEM is diffinfinite-image, diffinfinite-labels, large-image-diffusion, sdm or feature-aligned. The system's own
configuration is looked for beside the checkpoint, where the system writes it; else ``--config`` names it. Checkpoints
are opened as tensors and plain values alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.command_line import Parser, positive, print_error
from engine.models.files import CLASSES, OURS, WEIGHTS

if TYPE_CHECKING:
    from engine.models.card import ModelCard

SYSTEMS = ("diffinfinite-image", "diffinfinite-labels", "large-image-diffusion", "sdm", "feature-aligned")


def parser() -> argparse.ArgumentParser:
    top = Parser(prog="python -m engine.models.convert", description=__doc__, allow_abbrev=False)
    top.add_argument("system", choices=SYSTEMS, metavar="SYSTEM", help=", ".join(SYSTEMS))
    top.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="the file, or the folder that holds it")
    top.add_argument("--out", type=Path, required=True, metavar="MODEL_DIR", help="the model folder to write")
    top.add_argument("--overwrite", action="store_true", help="replace the model folder that is there")
    top.add_argument("--config", type=Path, metavar="FILE", help="the system's own configuration, JSON or YAML")
    top.add_argument(
        "--patch", type=positive(int), metavar="N", help="side of a window, in latents (pixels without any)"
    )
    top.add_argument("--pixel-size", type=float, metavar="UM", help="micrometres per pixel")
    top.add_argument("--names", default="", metavar="A,B,...", help="names of the labels or classes, from 0")
    top.add_argument("--vae", type=Path, metavar="DIR", help="DiffInfinite: Stable Diffusion 2's autoencoder")
    top.add_argument("--label-count", type=positive(int), metavar="N", help="diffinfinite-labels: labels of its maps")
    top.add_argument("--class-embeddings", type=Path, metavar="FILE.npy", help="feature-aligned: (classes, 512)")
    top.add_argument("--clip", type=Path, metavar="DIR", help="feature-aligned: computes them from --names")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert, as the command line says; returns the exit status."""
    try:
        print(convert(parser().parse_args(arguments)))
    except (ValueError, OSError) as error:
        print_error(error)
        return 1
    return 0


def convert(args: argparse.Namespace) -> str:
    """Write the model folder; returns what to say of it.

    Raises:
        ValueError: another system's checkpoint, a setting that cannot be converted, or a place that is taken.
    """
    check_place(args.out, args.overwrite)

    from engine.models.convert.checkpoint import check_system, find_checkpoint, open_checkpoint
    from engine.models.convert.systems import CONVERT, Options

    path = find_checkpoint(args.checkpoint)
    checkpoint = open_checkpoint(path)
    check_system(checkpoint, args.system, path)
    options = Options(
        config=args.config,
        vae=args.vae,
        patch=args.patch,
        pixel_size_um=args.pixel_size,
        names=tuple(name.strip() for name in args.names.split(",") if name.strip()),
        label_count=args.label_count,
        class_embeddings=args.class_embeddings,
        clip=args.clip,
    )
    check_options(args.system, options)
    try:
        found = CONVERT[args.system](checkpoint, path, options)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f"{path}: its weights or its configuration lack or misstate {error}; name the configuration with --config"
        ) from error
    check_parts(found)
    card = write(found, args.out, args.overwrite)
    return "\n".join([describe(args.out, card), *(f"note: {note}" for note in found.notes)])


def check_options(system: str, options: Any) -> None:
    """Refuse options of another system.

    Raises:
        ValueError: naming them.
    """
    own = {
        "vae": ("diffinfinite-image", "diffinfinite-labels"),
        "label_count": ("diffinfinite-labels",),
        "class_embeddings": ("feature-aligned",),
        "clip": ("feature-aligned",),
    }
    for name, systems in own.items():
        if getattr(options, name) is not None and system not in systems:
            raise ValueError(f"--{name.replace('_', '-')} is an option of {' and '.join(systems)}, not of {system}")
    if options.clip is not None and options.class_embeddings is not None:
        raise ValueError("both --clip and --class-embeddings are given; choose one")


def check_place(out: Path, overwrite: bool) -> None:
    """Refuse to replace what is there, unless it is a model folder and that was asked for.

    Raises:
        ValueError: naming it.
    """
    if not out.absolute().parent.is_dir():
        raise ValueError(f"--out {out}: {out.absolute().parent} is not there; make it first")
    if not out.exists():
        return
    if not overwrite:
        raise ValueError(f"--out {out} is there already; choose another place, or pass --overwrite")
    if not (out / "model_index.json").is_file():
        raise ValueError(f"--out {out} is no model folder and is not replaced; choose another place")


def check_parts(found: Any) -> None:
    """Refuse weights that are not those of the networks that the settings describe.

    Raises:
        ValueError: naming the first that differ.
    """
    from engine.models.card import divisor_of
    from engine.models.folder import check_fit

    for name, part in found.parts.items():
        if part.source is None:
            try:
                check_fit(part.config, part.tensors)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
    divisor, patch = divisor_of(found.parts["unet"].config), found.card["patch_size"]
    if patch % divisor:
        raise ValueError(
            f"windows of {patch} cannot be halved as the network does; pass --patch, a multiple of {divisor}"
        )


def write(found: Any, out: Path, overwrite: bool) -> ModelCard:
    """Write a model folder beside its place, and move it there when it is whole."""
    from engine.models.card import read_card  # numpy, for which --help does not wait

    temporary = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        temporary.mkdir()
        for name, part in found.parts.items():
            write_part(part, temporary / name)
        write_json(temporary / "scheduler" / "scheduler_config.json", found.scheduler)
        write_json(temporary / "card.json", found.card)
        write_json(temporary / "model_index.json", index_of(found))
        if found.classes is not None:
            write_classes(found.classes, temporary / "embedder" / CLASSES)
        card = read_card(str(temporary))
        move(temporary, out, overwrite)
        return card
    except ValueError as error:
        raise ValueError(str(error).replace(str(temporary), str(out))) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_part(part: Any, folder: Path) -> None:
    from engine.models.folder import save_tensors

    if part.source is None:
        save_tensors(part.config, part.tensors, folder)
        return
    folder.mkdir(parents=True)
    for name in ("config.json", WEIGHTS):
        shutil.copyfile(part.source / name, folder / name)


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n")


def write_classes(classes: Any, path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"embeddings": classes}, path)


def index_of(found: Any) -> dict[str, Any]:
    """``model_index.json``: the class of each part, and where it is from."""
    from engine.models.folder import CLASSES as own

    def entry(config: dict[str, Any]) -> list[str]:
        name = config["_class_name"]
        return ["slidefield" if name in own else "diffusers", name]

    parts = {name: entry(part.config) for name, part in found.parts.items()}
    return {"_class_name": OURS, **parts, "scheduler": ["diffusers", found.scheduler["_class_name"]]}


def move(temporary: Path, out: Path, overwrite: bool) -> None:
    """Put a whole folder in its place; what was there goes when that is done."""
    check_place(out, overwrite)
    old = out.with_name(f".{out.name}.{os.getpid()}.old")
    if out.exists():
        out.rename(old)
    temporary.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def describe(out: Path, card: ModelCard) -> str:
    """One line on a model folder."""
    unit = "pixels" if card.factor == 1 else f"latents ({card.patch * card.factor} px)"
    line = f"wrote {out}: {card.role} model, condition {card.condition}, windows of {card.patch} x {card.patch} {unit}"
    return line if card.decodes else f"{line}; latents only: pass --vae DIR for an autoencoder that decodes them"


if __name__ == "__main__":
    raise SystemExit(main())
