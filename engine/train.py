"""``python -m engine.train autoencoder|image|labels --data DIR --out MODEL_DIR``: train a model folder.

First the autoencoder, then the image network on its latents; the network of label maps is a model by itself. Each
resumes where it was stopped. Under ``mpiexec -n N`` every rank takes its part of each batch and gradients are averaged;
``--alone`` needs no MPI. ``jobs/train-embedded.sh`` trains all three within the minutes it is given.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.comm import STOPPED, Ranks, launched_rank, run_main
from engine.job import Parser
from engine.training.recipe import DECODER_ALONE, Recipe

DEFAULTS: dict[str, dict[str, Any]] = {
    "autoencoder": {"steps": 4000, "batch_size": 8, "lr": 1e-3, "warmup": 100, "ema": 0.999},
    "image": {"steps": 20000, "batch_size": 16, "lr": 8e-4, "warmup": 200, "ema": 0.9995, "window": 32},
    "labels": {"steps": 20000, "batch_size": 8, "lr": 1.5e-3, "warmup": 100, "ema": 0.998, "window": 64},
}
SIZES: dict[str, dict[str, Any]] = {
    "image": {"dim": 48, "dim_mults": [1, 2, 4]},
    "labels": {"dim": 16, "dim_mults": [1, 2, 4, 6]},
}
GROUPS = 8  # of the networks' normalisation
LOSSES = {
    "perceptual": "of distances in a fixed random network's features",
    "equivariance": "of half-size latents decoding to the half-size image",
    "kl": "of the latents' divergence from a normal",
    "lattice": "of differences in what recurs with every latent",
    "adversarial": "of a patch discriminator's verdict, by the hinge loss",
    "adversarial_from": "share of the run after which it has a say",
    "latent_noise": "spread of the noise on latents that are decoded",
}
LABELS = "unknown,carcinoma,necrosis,tumour stroma,other"


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
        sub.add_argument("--warmup", type=whole, default=defaults["warmup"], help="steps to reach --lr; then a cosine")
        sub.add_argument("--ema", type=share, default=defaults["ema"], help="decay of the average that is saved")
        sub.add_argument("--every", type=positive(int), default=250, help="steps between checkpoints and pictures")
        sub.add_argument(
            "--stop-after",
            type=float,
            default=0.0,
            metavar="MINUTES",
            help="leave with a checkpoint and status 75; the same command goes on (0: no limit)",
        )
        sub.add_argument(
            "--hold-out",
            type=whole,
            default=8,
            metavar="N",
            help="images with their label maps that are never trained on",
        )
        sub.add_argument(
            "--precision", choices=("float32", "bfloat16"), default="float32", help="of products, by torch's autocast"
        )
        sub.add_argument("--compile", action="store_true", help="the network in inductor's code")
        sub.add_argument("--alone", action="store_true", help="one process, without MPI")
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
            add_autoencoder(sub)
            sub.add_argument("--decoder-alone", action="store_true", help="go on with the decoder, latents unchanged")
            continue
        sizes = SIZES[name]
        sub.add_argument("--dim", type=positive(int), default=sizes["dim"], help="features at full size")
        sub.add_argument(
            "--dim-mults", type=whole_numbers, default=sizes["dim_mults"], help="features further down, over --dim"
        )
        sub.add_argument("--pixel-size", type=positive(float), default=0.5, help="um per pixel of the images")
        if name == "image":
            sub.add_argument("--window", type=positive(int), default=defaults["window"], help="latents")
            sub.add_argument("--drop", type=share, default=0.1, help="share of windows trained without their label")
            sub.add_argument(
                "--shifts", type=positive(int), default=4, help="times every turned image is encoded, moved a little"
            )
            sub.add_argument("--balance", type=share, default=0.5, help="share of windows about a label drawn evenly")
            sub.add_argument(
                "--min-snr",
                type=not_negative,
                default=5.0,
                metavar="GAMMA",
                help="weigh timesteps by min(signal over noise, GAMMA); 0: velocities alike, middle timesteps oftener",
            )
            sub.add_argument("--labels", type=names, default="", help="names of the labels, 0 first, by commas")
        else:
            sub.add_argument("--window", type=positive(int), default=defaults["window"], help="label pixels")
            sub.add_argument("--scale", type=positive(int), default=8, help="image pixels a label pixel")
            sub.add_argument("--drop", type=share, default=0.1, help="share of windows trained without their class")
            sub.add_argument("--labels", type=names, default=LABELS, help="names of all labels, 0 first, by commas")
    return top


def add_autoencoder(sub: argparse.ArgumentParser) -> None:
    """Options of the autoencoder alone; the losses' are fields of its ``Recipe``."""
    sub.add_argument("--crop", type=positive(int), default=128, help="px")
    sub.add_argument("--latent-channels", type=positive(int), default=16)
    sub.add_argument(
        "--channels", type=whole_numbers, default=[32, 96], help="features at 1/2, 1/4, ...: one halving each"
    )
    sub.add_argument("--blocks", type=whole_numbers, default=[1, 4], help="residual blocks at each of those sizes")
    sub.add_argument("--fold", type=positive(int), default=2, help="times so many latents a side are stored as one")
    sub.add_argument(
        "--padding",
        choices=("zeros", "replicate", "reflect"),
        default="replicate",
        help="what is seen beyond an image's edge",
    )
    for field, text in LOSSES.items():
        name, default = "--" + field.replace("_", "-"), getattr(Recipe, field)
        sub.add_argument(name, type=not_negative, default=default, metavar="WEIGHT", help=text)


def positive(kind: type):
    """Numbers above 0, for argparse."""

    def convert(text: str):
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    return convert


def share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share, 0 to 1")
    return value


def whole(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value


def not_negative(text: str) -> float:
    value = float(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value


def names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def whole_numbers(text: str) -> list[int]:
    return [positive(int)(part) for part in text.split(",")]


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"} & set(arguments):
        if launched_rank() == 0:
            parser().parse_args(arguments)
        return 0
    if "--alone" in arguments:
        from engine.training.alone import run_alone

        return run_alone(lambda ranks: train(ranks, arguments))
    return run_main(lambda ranks: train(ranks, arguments))


def train(ranks: Ranks, arguments: list[str]) -> int:
    """Train one network. Collective."""
    began = time.monotonic()
    args = ranks.agree(lambda: parser().parse_args(arguments))

    import os

    import torch

    from engine.models.folder import device_of
    from engine.training import autoencoder, image, labels
    from engine.training.loop import LoopSettings

    torch.set_num_threads(args.threads or max(len(os.sched_getaffinity(0)) // ranks.local_size, 1))
    device = ranks.agree(lambda: device_of(args.device, ranks.local_rank))
    if device != "cpu":
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
    settings = LoopSettings(
        args.steps,
        args.minutes,
        args.batch_size,
        args.lr,
        warmup=args.warmup,
        ema=args.ema,
        every=args.every,
        seed=args.seed,
        deadline=began + 60 * args.stop_after if args.stop_after else 0.0,
        precision=args.precision,
        compile=args.compile,
    )
    ranks.agree(lambda: check(args, ranks.size))
    ranks.catch_signals()
    common = {"resume": args.resume == "auto", "device": device, "held": args.hold_out}
    if args.network != "autoencoder":
        common |= {"window": args.window, "drop": args.drop, "names": args.labels, "pixel_size_um": args.pixel_size}
        common |= {"dim": args.dim, "dim_mults": args.dim_mults}
    if args.network == "autoencoder":
        base = DECODER_ALONE if args.decoder_alone else Recipe()
        asked = {} if args.decoder_alone else {field: getattr(args, field) for field in LOSSES}
        common |= {"crop": args.crop, "decoder_alone": args.decoder_alone, "recipe": replace(base, **asked)}
        common |= {"latent_channels": args.latent_channels, "padding": args.padding, "fold": args.fold}
        finished = autoencoder.train(
            args.data, args.out, settings, ranks, channels=args.channels, blocks=args.blocks, **common
        )
    elif args.network == "image":
        finished = image.train(
            args.data,
            args.out,
            settings,
            ranks,
            balance=args.balance,
            shifts=args.shifts,
            min_snr=args.min_snr,
            **common,
        )
    else:
        finished = labels.train(args.data, args.out, settings, ranks, scale=args.scale, **common)
    return 0 if finished else STOPPED


def check(args: argparse.Namespace, size: int) -> None:
    """Refuse settings that do not go together.

    Raises:
        ValueError: naming them.
    """
    if args.batch_size < size:
        raise ValueError(f"--batch-size {args.batch_size} is less than the {size} ranks; choose {size} or more")
    if args.network == "autoencoder":
        if len(args.channels) != len(args.blocks):
            raise ValueError(
                f"--channels names {len(args.channels)} sizes and --blocks {len(args.blocks)}; name as many"
            )
        if args.latent_channels % args.fold**2:
            raise ValueError(
                f"--latent-channels {args.latent_channels} is no multiple of {args.fold**2}, the square of --fold"
            )
        return
    divisor = 2 ** (len(args.dim_mults) - 1)
    if args.window % divisor:
        raise ValueError(
            f"--window {args.window} cannot be halved as often as --dim-mults says; use multiples of {divisor}"
        )
    if args.dim % GROUPS:
        raise ValueError(f"--dim {args.dim} cannot be normalised in {GROUPS} groups; use multiples of {GROUPS}")
    if args.network == "labels" and not 2 <= len(args.labels) <= 64:
        raise ValueError(f"--labels names {len(args.labels)}; 2 to 64 are supported")


if __name__ == "__main__":
    raise SystemExit(main())
