"""Options of the trainings of published systems, and their authors' settings. Imports no torch."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from engine.command_line import comma_separated, positive
from engine.training.options import (
    diffusion_options,
    folders,
    kept_option,
    not_negative,
    numbers,
    share,
    whole,
    whole_numbers,
)
from engine.training.recipe import OBJECTIVES, PREDICTIONS, SAMPLERS

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
        "attention": [32, 16, 8],
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
COUNTING_EPOCHS = ("expert", "feature-aligned")  # trainings that count epochs
PUBLISHED["large-image"] = {
    "attention": [8, 4, 2],
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


def nuclei_options(sub: argparse.ArgumentParser) -> None:
    add = sub.add_argument
    add("--window", type=positive(int), default=128, help="side of a window, px")
    add("--map-channels", type=int, choices=(2, 3, 5, 6), default=6, help="2 hv, 3 with edges, 5 with colours, 6 both")
    add("--image-channels", type=int, choices=(1, 3), default=3, help="grey or RGB")
    add("--model-channels", type=positive(int), default=128, help="features at full size")
    add("--channel-mult", type=numbers, default=[1, 1, 2, 3, 4], help="factors of these, from full size down")
    add("--blocks", type=positive(int), default=2, help="residual blocks at each size")
    add("--attention", type=whole_numbers, help="sides of the features that have attention, px")
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
    text = "what latents are divided by (0: as published of that autoencoder; of ours, 1 over its scaling_factor)"
    add("--latents-scale", type=not_negative, default=0.0, metavar="STD", help=text)
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
    add("--attention", type=whole_numbers, help=text)
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
    kept_option(sub)
    objective_options(sub)
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


def objective_options(sub: argparse.ArgumentParser) -> None:
    """Add what a diffusion network predicts, and at which timesteps."""
    add = sub.add_argument
    predicted = "what the network predicts: the noise, v, or the clean window; the model's sampler is told"
    add("--prediction", choices=tuple(PREDICTIONS), default="epsilon", help=predicted)
    add("--timesteps", choices=SAMPLERS, default="uniform", help="how they are drawn")


def published_options(sub: argparse.ArgumentParser) -> None:
    """Add the options that the trainings of published systems have whose file is a ``Task``."""
    kept_option(sub)
    objective_options(sub)
    add = sub.add_argument
    judged = "windows held out by which checkpoints are judged, and the best kept"
    add("--validation-windows", type=positive(int), default=64, metavar="N", help=judged)
    add("--activation-checkpointing", action="store_true", help="compute activations twice rather than keep them")


PUBLISHED_OPTIONS = {
    "nuclei": nuclei_options,
    "diffinfinite-image": image_options_of_diffinfinite,
    "diffinfinite-labels": label_options_of_diffinfinite,
    "expert": expert_options,
    "feature-aligned": feature_aligned_options,
    "large-image": large_image_options,
    "first-stage": first_stage_options,
}
