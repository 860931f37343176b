"""``python -m engine.train NETWORK --data DIR --out MODEL_DIR``: train a model folder.

This project's own model: the autoencoder is trained first, then the image network on its latents; the network of label
maps is a model by itself. ``nuclei``, ``diffinfinite-image``, ``diffinfinite-labels``, ``expert`` and
``feature-aligned`` train as their authors do.
Each training resumes where it was stopped. Under ``mpiexec -n N`` the ranks share each batch and average gradients;
``--alone`` needs no MPI. ``jobs/train-embedded.sh`` trains all three within the minutes it is given.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.command_line import Parser, comma_separated, gives_help, positive
from engine.messages import quoted
from engine.training.recipe import (
    AVERAGES,
    BY_EPOCH,
    DECODER_ALONE,
    EDGES_ALONE,
    OBJECTIVES,
    SAMPLERS,
    SCHEDULES,
    Recipe,
)

if TYPE_CHECKING:
    from engine.distributed.ranks import Ranks

DEFAULTS: dict[str, dict[str, Any]] = {
    "autoencoder": {"steps": 4000, "batch_size": 8, "lr": 1e-3},
    "image": {"steps": 20000, "batch_size": 16, "lr": 8e-4, "window": 32, "dim": 48, "dim_mults": [1, 2, 4]},
    "labels": {"steps": 20000, "batch_size": 8, "lr": 1.5e-3, "window": 64, "dim": 16, "dim_mults": [1, 2, 4, 6]},
}
# As their authors train: docs/published says where each number stands.
PUBLISHED: dict[str, dict[str, Any]] = {
    "nuclei": {
        "steps": 50000,
        "batch_size": 8,
        "lr": 1e-4,
        "warmup": 0,
        "schedule": "constant",
        "ema": 0.9999,
        "average": "plain",
        "betas": [0.9, 0.999],
        "weight_decay": 0.0,
        "clip": 0.0,
        "every": 5000,
    },
}
DIFFINFINITE: dict[str, Any] = {
    "steps": 250000,
    "batch_size": 32,
    "lr": 1e-4,
    "warmup": 0,
    "schedule": "onecycle",
    "ema": 0.995,
    "average": "power",
    "ema_every": 10,
    "weight_decay": 0.0,
    "every": 25000,
}
PUBLISHED["diffinfinite-image"] = {**DIFFINFINITE, "window": 512, "dim": 256, "dim_mults": [1, 2, 4]}
PUBLISHED["diffinfinite-labels"] = {**DIFFINFINITE, "window": 128, "dim": 64, "dim_mults": [1, 2, 4, 8]}
PUBLISHED["diffinfinite-labels"] |= {"steps": 100000, "every": 20000, "pixel_size": 2.0}
# Networks whose window is halved: the option that says how often, and pixels of a window's smallest part.
HALVED = {
    "nuclei": ("channel_mult", 1),
    "diffinfinite-image": ("dim_mults", 8),
    "diffinfinite-labels": ("dim_mults", 8),
}
# The feature-aligned system's two trainings count epochs.
EPOCHS: dict[str, Any] = {
    "lr": 1e-4,
    "warmup": 0,
    "ema": 0.0,
    "average": "plain",
    "betas": [0.9, 0.999],
    "weight_decay": 0.0,
    "clip": 0.0,
    "every": None,
}
PUBLISHED["expert"] = {**EPOCHS, "epochs": 10, "batch_size": 64, "schedule": "step", "window": 224}
PUBLISHED["feature-aligned"] = {**EPOCHS, "epochs": 20, "batch_size": 4, "schedule": "cosine-by-epoch", "window": 64}
BY_EPOCHS = ("expert", "feature-aligned")
GROUPS = 8  # number of groups of the networks' group normalisation
PUBLISHED["large-image"] = {
    "steps": 100000,
    "batch_size": 100,
    "lr": 1e-4,
    "warmup": 1000,
    "schedule": "constant",
    "ema": 0.0,
    "average": "plain",
    "betas": [0.9, 0.999],
    "clip": 0.0,
    "every": 5000,
}
PUBLISHED["first-stage"] = {
    "steps": 100000,
    "batch_size": 8,
    "lr": 3.6e-5,
    "warmup": 0,
    "schedule": "constant",
    "ema": 0.0,
    "average": "plain",
    "betas": [0.5, 0.9],
    "weight_decay": 0.0,
    "clip": 0.0,
    "every": 5000,
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


def parser() -> argparse.ArgumentParser:
    top = Parser(prog="python -m engine.train", description=__doc__, allow_abbrev=False)
    commands = top.add_subparsers(dest="network", required=True)
    add_own_options = {"autoencoder": autoencoder_options, "image": image_options, "labels": labels_options}
    add_own_options |= {"nuclei": nuclei_options, "diffinfinite-image": image_options_of_diffinfinite}
    add_own_options |= {"diffinfinite-labels": label_options_of_diffinfinite, "large-image": large_image_options}
    add_own_options |= {"first-stage": first_stage_options}
    add_own_options |= {"diffinfinite-labels": label_options_of_diffinfinite}
    add_own_options |= {"expert": expert_options, "feature-aligned": feature_aligned_options}
    for name, defaults in (DEFAULTS | PUBLISHED).items():
        sub = commands.add_parser(name, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False)
        run_options(sub, by_epochs=name in BY_EPOCHS)
        add_own_options[name](sub)
        sub.set_defaults(**defaults)
    return top


def run_options(sub: argparse.ArgumentParser, by_epochs: bool = False) -> None:
    """Add the options that every training has, and those of the ones that count epochs."""
    add = sub.add_argument
    data = "folder with a folder of pictures a class" if by_epochs else "folder of images and *_mask.png label maps"
    add("--data", type=Path, required=True, help=data)
    add("--out", type=Path, required=True, help="model folder")
    add("--steps", type=positive(int), help="optimiser steps in all")
    add("--minutes", type=float, default=0.0, help="end after this long in all, from the command on (0: no limit)")
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
    add("--init", type=Path, metavar="MODEL_DIR", help="model folder whose network the training starts from")
    add("--every", type=positive(int), default=250, help="steps between checkpoints and pictures")
    kept = "steps between model folders that are kept, OUT/checkpoints/step-N (0: none)"
    add("--keep-every", type=whole, default=0, metavar="STEPS", help=kept)
    stop = "leave with a checkpoint and status 75 after this long; the same command goes on (0: no limit)"
    add("--stop-after", type=not_negative, default=0.0, metavar="MINUTES", help=stop)
    if by_epochs:
        epoch_options(sub)
    else:
        held = "images that are never trained on, with their label maps (0: the autoencoder's last four alone)"
        add("--hold-out", type=whole, default=0, metavar="N", help=held)
    precisions = ("float32", "bfloat16", "float16")
    add("--precision", choices=precisions, default="float32", help="of products, by torch's autocast")
    add("--compile", action="store_true", help="run the network by torch.compile")
    readers = "threads that read and prepare examples ahead of the steps (0: a rank's share of the cores, 8 at most)"
    add("--readers", type=whole, default=0, metavar="N", help=readers)
    add("--alone", action="store_true", help="train in one process, without MPI")
    add("--seed", type=int, default=0, help="seed of all that is drawn")
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


def nuclei_options(sub: argparse.ArgumentParser) -> None:
    add = sub.add_argument
    add("--window", type=positive(int), default=128, help="side of a window, px")
    add("--map-channels", type=int, choices=(2, 3, 5, 6), default=6, help="2 hv, 3 with edges, 5 with colours, 6 both")
    add("--image-channels", type=int, choices=(1, 3), default=3, help="grey or RGB")
    add("--model-channels", type=positive(int), default=128, help="features at full size")
    add("--channel-mult", type=numbers, default=[1, 1, 2, 3, 4], help="factors of these, from full size down")
    add("--blocks", type=positive(int), default=2, help="residual blocks at each size")
    add("--attention", type=whole_numbers, default=[32, 16, 8], help="sides of the features that have attention, px")
    add("--head-channels", type=positive(int), default=32, help="features of a head")
    add("--noise-schedule", choices=("cosine", "linear"), default="cosine", help="of 1000 timesteps")
    add("--dropout", type=share, default=0.0, help="share of features that are set to 0")
    add("--drop", type=share, default=0.0, help="share of windows without their map (fine-tuning: 0.2)")
    add("--drop-structure-only", action="store_true", help="these keep their colours")
    add("--preserve", action="store_true", help="pixels of nuclei and background are shuffled each among themselves")
    add("--augment", action="store_true", help="mirrored, and 0.8 to 1 of a picture's smaller side")
    lists = "pictures that are used: lines NAME or NAME,train or NAME,test (default: all, and --hold-out)"
    add("--list", type=Path, metavar="FILE.csv", help=lists)
    add("--subsample", type=share, default=1.0, help="share of the pictures that is trained on")
    add("--loss", choices=OBJECTIVES, default="hybrid", help="error of the noise and variational bound, or one of them")
    add("--timesteps", choices=SAMPLERS, default="uniform", help="how they are drawn")
    add("--pixel-size", type=positive(float), default=0.25, help="micrometres per pixel of the images")
    published_options(sub)


def image_options_of_diffinfinite(sub: argparse.ArgumentParser) -> None:
    diffinfinite_options(sub)
    add = sub.add_argument
    add("--unlabelled", type=folders, default=[], metavar="DIR[,DIR...]", help="more images, all of label 0")
    add("--unlabelled-share", type=share, default=0.5, help="share of windows of label 0, from any image")
    lists = (
        "pictures that are trained on: lines NAME,CODES OF ITS MAP[,train or test] (default: DATA/dataset.csv, or all)"
    )
    add("--list", type=Path, metavar="FILE.csv", help=lists)
    least = "least share of a picture's map that is not label 0; pictures of less are left out"
    add("--labelled-share", type=share, default=0.0, metavar="T", help=least)
    tested = "share of each label's pictures that is held out, where --list does not say which"
    add("--test-share", type=share, default=0.0, metavar="S", help=tested)
    kept = "labels that are kept, numbered 1, 2, ...; all others but 0 are one more (default: all)"
    add("--keep", type=whole_numbers, default=[], metavar="L[,L...]", help=kept)
    add("--labels", type=comma_separated, default="", help="names of the labels, 0 first, by commas")


def label_options_of_diffinfinite(sub: argparse.ArgumentParser) -> None:
    diffinfinite_options(sub)
    add = sub.add_argument
    text = "class of each slide: CSV of (name, class) with a line of headings (default: one class)"
    add("--classes", type=Path, metavar="FILE.csv", help=text)
    add("--label-count", type=positive(int), default=5, metavar="N", help="number of labels of the maps: 5 or 10")
    add("--drop", type=share, default=0.5, help="share of maps without their class")


def diffinfinite_options(sub: argparse.ArgumentParser) -> None:
    """Add the options that both of DiffInfinite's networks have."""
    diffusion_options(sub)
    add = sub.add_argument
    table = "labels of codes: lines CODE,LABEL and *,LABEL, as jobs/labels-40-to-5.csv (default: they are labels)"
    add("--labels-table", metavar="FILE.csv", help=table)
    add("--vae", type=Path, metavar="DIR", help="autoencoder of Stable Diffusion 2, copied to --out at the first run")
    add("--window", type=positive(int), help="side of a window, px of the image (of the map, brought to this size)")
    add("--dropout", type=share, default=0.05, help="share of features that are set to 0")
    published_options(sub)


def large_image_options(sub: argparse.ArgumentParser) -> None:
    add = sub.add_argument
    text = "HDF5 of engine.embed, or with a dataset, FILE.h5:/feat_20x (default: the only one in DATA/ssl_features)"
    add("--embeddings", type=Path, metavar="FILE.h5", help=text)
    text = "as --embeddings, of the region of each patch: the network learns a second token (default: none)"
    add("--region-embeddings", type=Path, metavar="FILE.h5", help=text)
    text = "word in the names of the authors' lists, splits and datasets"
    add("--magnification", default="20x", metavar="WORD", help=text)
    add("--vae", type=Path, metavar="DIR", help="first stage, of a codebook or of KL, copied to --out at the first run")
    add("--window", type=positive(int), default=256, help="side of a window, px")
    add("--model-channels", type=positive(int), default=192, help="features at full size")
    add("--channel-mult", type=whole_numbers, default=[1, 2, 3, 5], help="factors of these, from full size down")
    add("--blocks", type=positive(int), default=2, help="residual blocks at each size")
    text = "sizes that have attention, as factors by which full size is larger"
    add("--attention", type=whole_numbers, default=[8, 4, 2], help=text)
    add("--heads", type=positive(int), default=1, help="heads of the attention")
    add("--token-width", type=positive(int), default=512, help="length of a token")
    add("--drop", type=share, default=0.1, help="share of windows without their embedding, and likewise of the region")
    add("--pixel-size", type=positive(float), default=0.5, help="micrometres per pixel of the images")
    published_options(sub)


def first_stage_options(sub: argparse.ArgumentParser) -> None:
    add = sub.add_argument
    add("--kind", choices=("vq", "kl"), default="vq", help="latents of a codebook, or normal ones")
    add("--crop", type=positive(int), default=256, help="side of a patch, px")
    add("--channels", type=positive(int), default=128, help="features at full size")
    add("--channel-mult", type=whole_numbers, default=[1, 2, 4], help="factors of these, from full size down")
    add("--blocks", type=positive(int), default=2, help="residual blocks at each size")
    add("--attention", type=whole_numbers, default=[], metavar="N[,N...]", help="sides that have attention, px")
    add("--latent-channels", type=positive(int), default=3, help="numbers a latent")
    add("--codes", type=positive(int), default=8192, help="entries of the codebook")
    add("--codebook", type=not_negative, default=1.0, metavar="WEIGHT", help="weight of the distance to the codebook")
    kl = "weight of the divergence from a normal, summed over latents beside a sum over pixels"
    add("--kl", type=not_negative, default=1e-6, metavar="WEIGHT", help=kl)
    text = "weight of distances in a fixed random network's features"
    add("--perceptual", type=not_negative, default=1.0, metavar="WEIGHT", help=text)
    text = "weight of a patch discriminator's verdict, beside the ratio of gradients"
    add("--adversarial", type=not_negative, default=0.75, metavar="WEIGHT", help=text)
    add("--adversarial-from", type=whole, default=0, metavar="STEP", help="step from which the discriminator counts")


def expert_options(sub: argparse.ArgumentParser) -> None:
    add = sub.add_argument
    softmax = "double: cross entropy of the softmax, taken twice, as published; single: of the logits"
    add("--softmax", choices=("double", "single"), default="double", help=softmax)
    weights = "weights of torchvision's ResNet-50 to start from, but for the head"
    add("--weights", type=Path, metavar="FILE", help=weights)
    first = "of --weights, the first convolution: begun anew as published, or summed over the colours"
    add("--first-layer", choices=("new", "sum"), default="new", help=first)
    add("--width", type=positive(int), default=64, help="features at a quarter of the size")
    add("--depths", type=whole_numbers, default=[3, 4, 6, 3], help="blocks at each size")
    add("--hidden", type=positive(int), default=256, help="features between the head's layers")


def feature_aligned_options(sub: argparse.ArgumentParser) -> None:
    add = sub.add_argument
    align = "folder of engine.train expert, or its authors' file, whose features the network is aligned with"
    add("--align", type=Path, metavar="EXPERT", help=align)
    add("--align-weight", type=not_negative, default=1.0, metavar="WEIGHT", help="weight of 1 less the cosine")
    layer = "down_blocks.2.resnets.0.conv_shortcut"
    add("--layer", default=layer, metavar="NAME", help="layer of the network that is aligned")
    add("--expert-sees", choices=("noisy", "clean"), default="noisy", help="the noisy picture, as published, or not")
    norm = "of the expert: by the mean and variance of the batch, as published, or those that it learned"
    add("--expert-norm", choices=("batch", "learned"), default="batch", help=norm)
    add("--last-timestep", action="store_true", help="train the noisiest timestep too, which the published never is")
    best = "which epoch's network is kept: that of the least mean loss, as published, or of the least held-out loss"
    add("--best", choices=("training", "held-out"), default="training", help=best)
    table = "embeddings of the classes, (classes, D) (not given: those of --init, or vectors drawn from the names)"
    add("--class-embeddings", type=Path, metavar="FILE.npy", help=table)
    add("--clip-model", type=Path, metavar="DIR", help="folder of CLIP that embeds the names (needs transformers)")
    add("--features", type=whole_numbers, default=[320, 640, 1280], help="at each size, from full size down")
    add("--blocks", type=positive(int), default=1, help="residual blocks at each size")
    add("--attention", type=whole, default=0, metavar="N", help="sizes with attention, from full size down (0: all)")
    add("--token-width", type=positive(int), default=768, help="features of the token")
    add("--heads", type=positive(int), default=8, help="attention heads, attention_head_dim of diffusers")
    add("--groups", type=positive(int), default=32, help="groups of the network's group normalisation")
    add("--pixel-size", type=positive(float), default=1.16, help="micrometres per pixel, of the window")
    judged = "windows held out by which --best held-out judges"
    add("--validation-windows", type=positive(int), default=64, metavar="N", help=judged)


def published_options(sub: argparse.ArgumentParser) -> None:
    """Add the options that all trainings of published systems have."""
    add = sub.add_argument
    judged = "windows held out by which checkpoints are judged, and the best kept"
    add("--validation-windows", type=positive(int), default=64, metavar="N", help=judged)
    add("--activation-checkpointing", action="store_true", help="compute activations twice rather than keep them")


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
    if len(several) != 2:
        raise argparse.ArgumentTypeError(f"{text}: expected two, such as 0.9,0.999")
    return several


def numbers(text: str) -> list[float]:
    return [int(value) if value.is_integer() else value for value in map(positive(float), text.split(","))]


def whole_numbers(text: str) -> list[int]:
    return [positive(int)(part) for part in text.split(",")]


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if gives_help(parser, arguments):
        return 0
    if "--alone" in arguments:
        from engine.training.alone import run_alone

        return run_alone(lambda ranks: train(ranks, arguments))
    from engine.distributed.launch import run_main  # numpy, for which --help does not wait

    return run_main(lambda ranks: train(ranks, arguments))


def train(ranks: Ranks, arguments: list[str]) -> int:
    """Train one network; the exit status. Collective."""
    began = time.monotonic()
    args = ranks.agree(lambda: parser().parse_args(arguments))

    import os

    import torch

    from engine.command_line import STOPPED
    from engine.models.folder import device_of
    from engine.training import autoencoder, image, labels
    from engine.training.loop import LoopSettings

    said = os.environ.get("OMP_NUM_THREADS", "")
    cores = max(len(os.sched_getaffinity(0)) // ranks.local_size, 1)
    torch.set_num_threads(args.threads or (int(said) if said.isdigit() and int(said) else cores))
    device = ranks.agree(lambda: device_of(args.device, ranks.local_rank))
    if device != "cpu":
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
    same = ["steps", "minutes", "batch_size", "lr", "warmup", "schedule", "ema", "average", "ema_every", "weight_decay"]
    same += ["clip", "accumulate", "every", "keep_every", "seed", "precision", "compile"]
    deadline = began + 60 * args.stop_after if args.stop_after else 0.0
    kept = {name: getattr(args, name) for name in same} | {"readers": args.readers or min(cores, 8)}
    settings = LoopSettings(**kept, betas=tuple(args.betas), deadline=deadline, began=began)
    common = {"resume": args.resume == "auto", "device": device, "held": args.hold_out}
    ranks.agree(lambda: check(args, ranks.size))
    ranks.agree(lambda: check_folder(args.out, args.network))
    ranks.catch_signals()
    if args.network in PUBLISHED:
        from engine.training.published.command import train_published

        return 0 if train_published(args, settings, ranks, device) else STOPPED
    if args.network == "autoencoder":
        common |= {name: getattr(args, name) for name in ("latent_channels", "channels", "blocks", "padding", "fold")}
        common |= {
            "crop": args.crop,
            "decoder_alone": args.decoder_alone or args.edges_alone,
            "recipe": recipe_of(args),
        }
        return 0 if autoencoder.train(args.data, args.out, settings, ranks, **common) else STOPPED
    common |= {"window": args.window, "drop": args.drop, "names": args.labels, "pixel_size_um": args.pixel_size}
    common |= {"dim": args.dim, "dim_mults": args.dim_mults}
    if args.network == "image":
        common |= {name: getattr(args, name) for name in ("balance", "own_label", "shifts", "min_snr")}
        finished = image.train(args.data, args.out, settings, ranks, **common)
    else:
        finished = labels.train(args.data, args.out, settings, ranks, scale=args.scale, **common)
    return 0 if finished else STOPPED


def check_folder(out: Path, network: str) -> None:
    """Refuse a model folder whose networks are of other kinds than are trained here, such as a converted one.

    Args:
        out: The folder to train into; it may be absent.
        network: What is trained: autoencoder, image or labels.
    Raises:
        ValueError: naming the folder's network, and what to do.
    """
    from engine.models.files import read_json

    of_published = {"nuclei": {"unet": "SpadeUNet"}}
    of_published |= {"diffinfinite-image": {"unet": "MaskUNet", "vae": "AutoencoderKL"}}
    of_published |= {"diffinfinite-labels": {"unet": "LabelUNet", "vae": "AutoencoderKL"}}
    of_published |= {"first-stage": {"vae": "VQModel or AutoencoderKL"}}
    of_published |= {"large-image": {"unet": "UNet2DConditionModel", "vae": "VQModel or AutoencoderKL"}}
    of_published |= {"expert": {}, "feature-aligned": {"unet": "UNet2DConditionModel"}}
    own = {"unet": "LabelUNet"} if network == "labels" else {"vae": "PatchAutoencoder", "unet": "MaskUNet"}
    trained = of_published.get(network, own)
    for part in ("vae", "unet"):
        config = out / part / "config.json"
        kind = read_json(config).get("_class_name") if config.exists() else None
        if kind is not None and kind not in trained.get(part, "").split(" or "):
            raise ValueError(
                f"`out` {out}: its {part} is {quoted(kind)}, which engine.train {network} neither trains nor goes on "
                "from (a converted model is sampled as it is); train into another folder"
            )


def recipe_of(args: argparse.Namespace) -> Recipe:
    """The losses that the options of the autoencoder ask for; the decoder alone has its own."""
    if args.decoder_alone or args.edges_alone:
        return DECODER_ALONE if args.decoder_alone else EDGES_ALONE
    fields = (*LOSSES, "adversarial_from", "latent_noise", "cut")
    return replace(Recipe(), **{field: getattr(args, field) for field in fields})


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
    if args.batch_size // size < args.accumulate:  # every rank has as many micro-batches: some losses are collective
        raise ValueError(
            f"`accumulate` {args.accumulate} is more than the {args.batch_size // size} windows of a rank; choose "
            "fewer, or a larger `batch_size`"
        )
    if args.network == "diffinfinite-image" and args.test_share and args.hold_out:
        raise ValueError(f"`test_share` {args.test_share:g} and `hold_out` {args.hold_out}: give one of them")
    if args.network == "expert":
        return
    if args.network == "feature-aligned":
        divisor = 2 ** (len(args.features) - 1)
        if args.window % divisor:
            raise ValueError(
                f"`window` {args.window} cannot be halved as often as `features` says; use multiples of {divisor}"
            )
        return
    if args.network in PUBLISHED:
        name, factor = HALVED.get(args.network, ("", 1))
        divisor = 2 ** (len(getattr(args, name)) - 1) * factor if name else 1
        if name and args.window % divisor:
            raise ValueError(
                f"`window` {args.window} cannot be halved as often as `{name}` says; use multiples of {divisor}"
            )
        return
    if args.init is not None:
        raise ValueError(f"`init` {args.init} is for the trainings of published systems; leave it out")
    if args.network == "autoencoder":
        if len(args.channels) != len(args.blocks):
            raise ValueError(
                f"`channels` names {len(args.channels)} sizes but `blocks` {len(args.blocks)}; name as many"
            )
        if args.latent_channels % args.fold**2:
            raise ValueError(
                f"`latent_channels` {args.latent_channels} is no multiple of {args.fold**2}, the square of `fold`"
            )
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
