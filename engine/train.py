"""``python -m engine.train autoencoder|image|labels --data DIR --out MODEL_DIR``: train a model folder.

The autoencoder is trained first, then the image network on its latents; the network of label maps is a model by itself.
Each training resumes where it was stopped. Under ``mpiexec -n N`` the ranks share each batch and average gradients.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.command_line import Parser, comma_separated, positive
from engine.distributed.launch import launched_rank, run_main
from engine.distributed.ranks import Ranks

DEFAULTS: dict[str, dict[str, Any]] = {
    "autoencoder": {"steps": 4000, "batch_size": 8, "lr": 1e-3},
    "image": {"steps": 20000, "batch_size": 16, "lr": 8e-4, "window": 32, "dim": 48, "dim_mults": [1, 2, 4]},
    "labels": {"steps": 20000, "batch_size": 8, "lr": 1.5e-3, "window": 64, "dim": 16, "dim_mults": [1, 2, 4, 6]},
}
GROUPS = 8  # number of groups of the networks' group normalisation
LABELS = "unknown,carcinoma,necrosis,tumour stroma,other"


def parser() -> argparse.ArgumentParser:
    top = Parser(prog="python -m engine.train", description=__doc__, allow_abbrev=False)
    commands = top.add_subparsers(dest="network", required=True)
    add_own_options = {"autoencoder": autoencoder_options, "image": image_options, "labels": labels_options}
    for name, defaults in DEFAULTS.items():
        sub = commands.add_parser(name, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False)
        run_options(sub)
        add_own_options[name](sub)
        sub.set_defaults(**defaults)
    return top


def run_options(sub: argparse.ArgumentParser) -> None:
    """Add the options that every training has."""
    add = sub.add_argument
    add("--data", type=Path, required=True, help="folder of images and *_mask.png label maps")
    add("--out", type=Path, required=True, help="model folder")
    add("--steps", type=positive(int), help="optimiser steps in all")
    add("--minutes", type=float, default=0.0, help="stop earlier after this long (0: no limit)")
    add("--batch-size", type=positive(int), help="patches a step, over all ranks")
    add("--lr", type=positive(float), help="peak learning rate")
    add("--every", type=positive(int), default=250, help="steps between checkpoints and pictures")
    add("--seed", type=int, default=0)
    add("--resume", choices=("auto", "never"), default="auto")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    threads = "CPU threads a rank (0: the cores, shared evenly)"
    add("--threads", type=int, choices=range(1025), metavar="N", default=0, help=threads)


def autoencoder_options(sub: argparse.ArgumentParser) -> None:
    add = sub.add_argument
    add("--crop", type=positive(int), default=128, help="side of a patch, px")
    add("--latent-channels", type=positive(int), default=8)
    add("--decoder-alone", action="store_true", help="train the decoder on; latents stay as they are")


def image_options(sub: argparse.ArgumentParser) -> None:
    diffusion_options(sub)
    add = sub.add_argument
    add("--window", type=positive(int), help="side of a window, latents")
    add("--drop", type=share, default=0.2, help="share of windows trained without their label")
    add("--labels", type=comma_separated, default="", help="names of the labels, 0 first, by commas")


def labels_options(sub: argparse.ArgumentParser) -> None:
    diffusion_options(sub)
    add = sub.add_argument
    add("--window", type=positive(int), help="side of a window, label pixels")
    add("--scale", type=positive(int), default=8, help="image pixels per label pixel, along a side")
    add("--drop", type=share, default=0.1, help="share of windows trained without their class")
    add("--labels", type=comma_separated, default=LABELS, help="names of all labels, 0 first, by commas")


def diffusion_options(sub: argparse.ArgumentParser) -> None:
    """Add the options that both diffusion networks have."""
    add = sub.add_argument
    add("--dim", type=positive(int), help="number of features at full size")
    add("--dim-mults", type=whole_numbers, help="factors of --dim, one for each level from full size down")
    add("--pixel-size", type=positive(float), default=0.5, help="micrometres per pixel of the images")


def share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share, 0 to 1")
    return value


def whole_numbers(text: str) -> list[int]:
    return [positive(int)(part) for part in text.split(",")]


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"} & set(arguments):
        if launched_rank() == 0:
            parser().parse_args(arguments)
        return 0
    return run_main(lambda ranks: train(ranks, arguments))


def train(ranks: Ranks, arguments: list[str]) -> int:
    """Train one network. Collective."""
    args = ranks.agree(lambda: parser().parse_args(arguments))

    import os

    import torch

    from engine.models.folder import device_of
    from engine.training import autoencoder, image, labels
    from engine.training.loop import LoopSettings

    torch.set_num_threads(args.threads or max(len(os.sched_getaffinity(0)) // ranks.local_size, 1))
    device = ranks.agree(lambda: device_of(args.device, ranks.local_rank))
    settings = LoopSettings(args.steps, args.minutes, args.batch_size, args.lr, every=args.every, seed=args.seed)
    common = {"resume": args.resume == "auto", "device": device}
    ranks.agree(lambda: check(args, ranks.size))
    if args.network == "autoencoder":
        channels = {"latent_channels": args.latent_channels}
        autoencoder.train(
            args.data, args.out, settings, ranks, crop=args.crop, decoder_alone=args.decoder_alone, **common, **channels
        )
        return 0
    common |= {"window": args.window, "drop": args.drop, "names": args.labels, "pixel_size_um": args.pixel_size}
    common |= {"dim": args.dim, "dim_mults": args.dim_mults}
    if args.network == "image":
        image.train(args.data, args.out, settings, ranks, **common)
    else:
        labels.train(args.data, args.out, settings, ranks, scale=args.scale, **common)
    return 0


def check(args: argparse.Namespace, size: int) -> None:
    """Refuse settings that do not go together.

    Args:
        args: Options of the command.
        size: Number of ranks.
    Raises:
        ValueError: the settings, and what to choose.
    """
    if args.batch_size < size:
        raise ValueError(f"`batch_size` {args.batch_size} is less than the {size} ranks; choose {size} or more")
    if args.network == "autoencoder":
        return
    divisor = 2 ** (len(args.dim_mults) - 1)
    if args.window % divisor:
        raise ValueError(
            f"`window` {args.window} cannot be halved as often as `dim_mults` says; use multiples of {divisor}"
        )
    if args.dim % GROUPS:
        raise ValueError(f"`dim` {args.dim} cannot be normalised in {GROUPS} groups; use multiples of {GROUPS}")
    if args.network == "labels" and not 2 <= len(args.labels) <= 64:
        raise ValueError(f"`labels` names {len(args.labels)}; 2 to 64 are supported")


if __name__ == "__main__":
    raise SystemExit(main())
