"""``python -m engine.train autoencoder|image --data DIR --out MODEL_DIR``: train a model folder.

First the autoencoder, then the image network on its latents; each resumes where it was stopped. Under
``mpiexec -n N`` every rank takes its part of each batch and gradients are averaged.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from engine.comm import Ranks, launched_rank, run_main
from engine.job import Parser

DEFAULTS = {
    "autoencoder": {"steps": 4000, "batch_size": 8, "lr": 1e-3},
    "image": {"steps": 20000, "batch_size": 16, "lr": 8e-4},
}


def parser() -> argparse.ArgumentParser:
    top = Parser(prog="python -m engine.train", description=__doc__, allow_abbrev=False)
    commands = top.add_subparsers(dest="network", required=True)
    for name, defaults in DEFAULTS.items():
        sub = commands.add_parser(name, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False)
        sub.add_argument("--data", type=Path, required=True, help="folder of images and *_mask.png label maps")
        sub.add_argument("--out", type=Path, required=True, help="model folder")
        sub.add_argument("--steps", type=positive(int), default=defaults["steps"])
        sub.add_argument("--minutes", type=float, default=0.0, help="stop earlier after this long (0: no limit)")
        sub.add_argument("--batch-size", type=positive(int), default=defaults["batch_size"], help="over all ranks")
        sub.add_argument("--lr", type=positive(float), default=defaults["lr"])
        sub.add_argument("--every", type=positive(int), default=250, help="steps between checkpoints and pictures")
        sub.add_argument("--seed", type=int, default=0)
        sub.add_argument("--resume", choices=("auto", "never"), default="auto")
        sub.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
        sub.add_argument(
            "--threads",
            type=int,
            choices=range(1025),
            metavar="N",
            default=0,
            help="CPU threads a rank (0: the cores, shared evenly)",
        )
        if name == "autoencoder":
            sub.add_argument("--crop", type=positive(int), default=128, help="px")
            sub.add_argument("--latent-channels", type=positive(int), default=8)
            sub.add_argument("--decoder-alone", action="store_true", help="go on with the decoder, latents unchanged")
        else:
            sub.add_argument("--window", type=positive(int), default=32, help="latents")
            sub.add_argument("--dim", type=positive(int), default=48, help="features at full size")
            sub.add_argument(
                "--dim-mults", type=whole_numbers, default=[1, 2, 4], help="features further down, over --dim"
            )
            sub.add_argument("--drop", type=float, default=0.2, help="share of windows trained without their label")
            sub.add_argument("--labels", default="", help="names of the labels, 0 first, by commas")
            sub.add_argument("--pixel-size", type=float, default=0.5, help="um per pixel")
    return top


def positive(kind: type):
    """Numbers above 0, for argparse."""

    def convert(text: str):
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    return convert


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
    from engine.training import autoencoder, image
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
    else:
        image.train(
            args.data,
            args.out,
            settings,
            ranks,
            window=args.window,
            drop=args.drop,
            names=[name.strip() for name in args.labels.split(",") if name.strip()],
            pixel_size_um=args.pixel_size,
            dim=args.dim,
            dim_mults=args.dim_mults,
            **common,
        )
    return 0


def check(args: argparse.Namespace, size: int) -> None:
    """Refuse settings that do not go together.

    Raises:
        ValueError: naming them.
    """
    if args.batch_size < size:
        raise ValueError(f"--batch-size {args.batch_size} is less than the {size} ranks; choose {size} or more")
    if args.network == "image":
        divisor = 2 ** (len(args.dim_mults) - 1)
        if args.window % divisor:
            raise ValueError(
                f"--window {args.window} cannot be halved as often as --dim-mults says; use multiples of {divisor}"
            )


if __name__ == "__main__":
    raise SystemExit(main())
