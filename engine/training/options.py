"""Options of ``python -m engine.train``: those of every training, and of our own networks. Imports no torch."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.command_line import comma_separated, positive
from engine.training.recipe import AVERAGES, BY_EPOCH, DECODER_ALONE, EDGES_ALONE, SCHEDULES, Recipe

DEFAULTS: dict[str, dict[str, Any]] = {
    "autoencoder": {"steps": 4000, "batch_size": 8, "lr": 1e-3},
    "image": {"steps": 20000, "batch_size": 16, "lr": 8e-4, "window": 32, "dim": 48, "dim_mults": [1, 2, 4]},
    "labels": {"steps": 20000, "batch_size": 8, "lr": 1.5e-3, "window": 64, "dim": 16, "dim_mults": [1, 2, 4, 6]},
}
LOSSES = {
    "perceptual": "weight of distances in a fixed random network's features",
    "equivariance": "weight of half-size latents decoding to the half-size image",
    "kl": "weight of the latents' divergence from a normal",
    "lattice": "weight of differences in what recurs with every latent",
    "adversarial": "weight of a patch discriminator's verdict",
}
LABELS = "unknown,carcinoma,necrosis,tumour stroma,other"
TISSUE = "tumor,stroma,complex,lympho,debris,mucosa,adipose,empty"


DATA = {
    "nuclei": "folder of images/, inst_masks/ and bin_masks/, or one of MoNuSegTrainingData and MoNuSegTestData",
    "diffinfinite-labels": "folder of *_mask.png label maps, also beside images",
    "large-image": "the authors' folder of lists and embeddings, or one of pictures",
    "first-stage": "folder of pictures",
    "expert": "folder with a folder of pictures a class",
    "feature-aligned": "folder with a folder of pictures a class",
}
HELD = {
    "autoencoder": "images that are never trained on (0: its reconstructions of the last four are shown)",
    "large-image": "pictures that are never trained on, where no list says which",
}


def run_options(sub: argparse.ArgumentParser, network: str, by_epochs: bool, compiles: bool) -> None:
    """Add the options that every training has, and those of the ones that count epochs, or run compiled."""
    add = sub.add_argument
    add("--job", type=Path, metavar="FILE.yaml", help="options of the training by name; those given beside it override")
    data = DATA.get(network, "folder of images and *_mask.png label maps, and its folders")
    add("--data", type=Path, required=True, help=data)
    add("--out", type=Path, required=True, help="model folder")
    add("--steps", type=positive(int), help="optimiser steps in all")
    minutes = "end after this long in all, from the command on, at the end of a step (0: no limit)"
    add("--minutes", type=not_negative, default=0.0, help=minutes)
    add("--batch-size", type=positive(int), help="patches a step, over all ranks")
    add("--lr", type=positive(float), help="peak learning rate")
    add("--warmup", type=whole, default=100, help="steps to reach --lr")
    schedules = (*SCHEDULES, *BY_EPOCH) if by_epochs else SCHEDULES
    add("--schedule", choices=schedules, default="cosine", help="how the learning rate goes on from there")
    add("--ema", type=share, default=0.998, help="decay of the weight average that is saved")
    average = "how the average begins: by decays that grow, at once, or as a power of the steps after 100"
    add("--average", choices=AVERAGES, default="warm", help=average)
    add("--ema-every", type=positive(int), default=1, metavar="N", help="steps between updates of the average")
    add("--betas", type=two_shares, default=[0.9, 0.99], metavar="A,B", help="of AdamW")
    add("--weight-decay", type=not_negative, default=0.01, help="of AdamW; 0 is Adam")
    add("--clip", type=not_negative, default=1.0, help="greatest norm of the gradients (0: no limit)")
    micro = "micro-batches that a rank's part of a batch is evaluated in"
    add("--accumulate", type=positive(int), default=1, metavar="N", help=micro)
    add(
        "--init",
        type=Path,
        metavar="MODEL_DIR",
        help="model folder whose network the training starts from; embedded: of this package",
    )
    add("--every", type=positive(int), default=250, help="steps between checkpoints and pictures")
    stop = "leave with a checkpoint and status 75 after this long; the same command goes on (0: no limit)"
    add("--stop-after", type=not_negative, default=0.0, metavar="MINUTES", help=stop)
    if by_epochs:
        epoch_options(sub)
    else:
        held = HELD.get(network, "images, or maps, that are never trained on")
        add("--hold-out", type=whole, default=0, metavar="N", help=held)
    precisions = ("float32", "bfloat16", "float16")
    add("--precision", choices=precisions, default="float32", help="of products, by torch's autocast")
    if compiles:
        add("--compile", action="store_true", help="run the network by torch.compile")
    readers = "threads that read and prepare examples ahead of the steps (0: a rank's share of the cores, 8 at most)"
    add("--readers", type=whole, default=0, metavar="N", help=readers)
    add("--alone", action="store_true", help="train in one process, without MPI")
    add("--seed", type=seed, default=0, help="seed of all that is drawn")
    add("--resume", choices=("auto", "never"), default="auto", help="go on from the last checkpoint, if there is one")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where the network is trained")
    threads = "CPU threads a rank (0: $OMP_NUM_THREADS, or the cores, shared evenly)"
    add("--threads", type=int, choices=range(1025), metavar="N", default=0, help=threads)


def epoch_options(sub: argparse.ArgumentParser) -> None:
    """Add the options of trainings that count epochs."""
    add = sub.add_argument
    epochs = "times that every picture is trained on; --steps and --every, where given, count steps instead"
    add("--epochs", type=positive(int), help=epochs)
    add("--gamma", type=positive(float), default=0.7, help="factor of the learning rate after each epoch, of step")
    add("--hold-out", type=share, default=0.2, metavar="SHARE", help="of each class's pictures, never trained on")
    labels = "names of the classes, 0 first, by commas, each in the name of its folder"
    add("--labels", type=comma_separated, default=TISSUE, help=labels)
    add("--window", type=positive(int), help="side that pictures are brought to, px")


def autoencoder_options(sub: argparse.ArgumentParser) -> None:
    add = sub.add_argument
    add("--crop", type=positive(int), default=128, help="side of a patch, px")
    add("--latent-channels", type=positive(int), default=8)
    add("--channels", type=whole_numbers, default=[32, 64, 128], help="features at 1/2, 1/4, ...: one halving each")
    add("--blocks", type=whole_numbers, default=[1, 3, 3], help="residual blocks at each of those sizes")
    add("--fold", type=positive(int), default=1, help="side of the square of latents that are stored as one")
    padding = "values that convolutions read beyond the edge"
    add("--padding", choices=("zeros", "replicate", "reflect"), default="zeros", help=padding)
    add(
        "--decoder-alone",
        action="store_true",
        help="train the decoder on, by losses of its own; latents stay as they are",
    )
    add(
        "--edges-alone",
        action="store_true",
        help="train the decoder on to end its windows as it goes on there within larger ones, and nothing else",
    )
    for field, text in LOSSES.items():
        add(f"--{field}", type=not_negative, default=getattr(Recipe, field), metavar="WEIGHT", help=text)
    begin = "share of the run after which the discriminator counts"
    add("--adversarial-from", type=share, default=Recipe.adversarial_from, help=begin)
    add("--latent-noise", type=not_negative, default=Recipe.latent_noise, help="std of the noise on decoded latents")
    add("--cut", type=whole, default=Recipe.cut, help="latents by which a decoded window is smaller than its patch")


def image_options(sub: argparse.ArgumentParser) -> None:
    diffusion_options(sub)
    add = sub.add_argument
    add("--window", type=positive(int), help="side of a window, latents")
    add("--drop", type=share, default=0.2, help="share of windows trained without their label")
    add("--balance", type=share, default=0.5, help="share of windows about a label drawn evenly")
    add("--own-label", type=share, default=0.5, help="share of those trained with that label, not any they hold")
    add("--shifts", type=positive(int), default=1, help="times each turned image is encoded, moved a little")
    snr = "bound of the weights min(signal over noise, GAMMA) of timesteps (0: weights alike, middle timesteps oftener)"
    add("--min-snr", type=not_negative, default=0.0, metavar="GAMMA", help=snr)
    add("--labels", type=comma_separated, default="", help="names of the labels, 0 first, by commas")


def labels_options(sub: argparse.ArgumentParser) -> None:
    diffusion_options(sub)
    add = sub.add_argument
    add("--window", type=positive(int), help="side of a window, label pixels")
    add("--scale", type=positive(int), default=8, help="image pixels per label pixel, along a side")
    add("--drop", type=share, default=0.1, help="share of windows trained without their class")
    add("--labels", type=comma_separated, default=LABELS, help="names of all labels, 0 first, by commas")


OWN_OPTIONS = {"autoencoder": autoencoder_options, "image": image_options, "labels": labels_options}


def diffusion_options(sub: argparse.ArgumentParser) -> None:
    """Add the options that both diffusion networks have."""
    add = sub.add_argument
    add("--dim", type=positive(int), help="number of features at full size")
    add("--dim-mults", type=whole_numbers, help="factors of --dim, one for each level from full size down")
    add("--pixel-size", type=positive(float), default=0.5, help="micrometres per pixel of the images")


def kept_option(sub: argparse.ArgumentParser) -> None:
    """Add the option of trainings that keep model folders of some of their checkpoints."""
    kept = "steps between model folders that are kept, OUT/checkpoints/step-N, a multiple of --every (0: none)"
    sub.add_argument("--keep-every", type=whole, default=0, metavar="STEPS", help=kept)


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


def folders(text: str) -> list[Path]:
    return [Path(part) for part in comma_separated(text)]


def two_shares(text: str) -> list[float]:
    several = [share(part) for part in text.split(",")]
    if len(several) != 2 or max(several) == 1:
        raise argparse.ArgumentTypeError(f"{text}: expected two below 1, such as 0.9,0.999")
    return several


def seed(text: str) -> int:
    value = whole(text)
    if value >= 2**62:
        raise argparse.ArgumentTypeError(f"{text} is not below 2**62")
    return value


def numbers(text: str) -> list[float]:
    return [int(value) if value.is_integer() else value for value in map(positive(float), text.split(","))]


def whole_numbers(text: str) -> list[int]:
    return [positive(int)(part) for part in text.split(",")]


def recipe_of(args: argparse.Namespace) -> Recipe:
    """The losses that the options of the autoencoder ask for; the decoder alone has its own."""
    if args.decoder_alone or args.edges_alone:
        return DECODER_ALONE if args.decoder_alone else EDGES_ALONE
    fields = (*LOSSES, "adversarial_from", "latent_noise", "cut")
    return replace(Recipe(), **{field: getattr(args, field) for field in fields})
