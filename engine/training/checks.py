"""What ``python -m engine.train`` refuses before a training begins. Imports no torch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from engine.messages import quoted
from engine.training.published.options import PUBLISHED

# Networks whose windows are halved: the options of a window's side and of how often, the side of its smallest part.
HALVED = {
    "image": ("window", "dim_mults", 1),
    "labels": ("window", "dim_mults", 1),
    "nuclei": ("window", "channel_mult", 1),
    "diffinfinite-image": ("window", "dim_mults", 8),
    "diffinfinite-labels": ("window", "dim_mults", 8),
    "feature-aligned": ("window", "features", 1),
    "first-stage": ("crop", "channel_mult", 1),
}
ATTENDING = ("nuclei", "large-image", "first-stage")
WRITTEN = {"autoencoder": "vae", "first-stage": "vae", "expert": "expert"}  # part of the folder; of the others unet
GROUPS = 8  # of our image and label networks' group normalisation


def check_folder(args: argparse.Namespace) -> None:
    """Refuse to train into a model folder that another kind of training or a conversion wrote; it may be absent.

    Args:
        args: Options of the command.
    Raises:
        ValueError: naming the folder, and what to do.
    """
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"`out` {args.out} is a file; choose a folder")
    if args.data.is_dir() and args.out.resolve().is_relative_to(args.data.resolve()):
        raise ValueError(
            f"`out` {args.out} lies in `data` {args.data}, so that pictures of the training would be trained on; "
            "choose another folder"
        )
    check_kinds(args.out, args.network)
    if args.network != "autoencoder" or not (args.decoder_alone or args.edges_alone):  # these go on from weights alone
        check_written(args.out, args.network)


def check_written(out: Path, network: str) -> None:
    """Refuse a model folder whose network is there without the state of a training: it would be begun anew, over it.

    Raises:
        ValueError: naming it, and what to do.
    """
    from engine.models.files import WEIGHTS

    part = WRITTEN.get(network, "unet")
    if (out / part / WEIGHTS).exists() and not (out / part / "training.pt").exists():
        way = ", or its decoder on with `decoder_alone`" if network == "autoencoder" else ""
        way = way or ", and start from this one with `init`"
        raise ValueError(
            f"`out` {out} holds a model without the state of a training ({part}/training.pt), such as a converted one; "
            f"train into another folder{way}"
        )


def check_kinds(out: Path, network: str) -> None:
    """Refuse a model folder whose networks are of other kinds than are trained here.

    Args:
        out: The folder to train into; it may be absent.
        network: What is trained, as the command names it.
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


def check_nuclei(args: argparse.Namespace) -> None:
    """Refuse heads that the features of the nuclei network cannot be split into.

    Raises:
        ValueError: naming the setting.
    """
    widths = [round(args.model_channels * factor) for factor in args.channel_mult]
    sides = [args.window // 2**level for level in range(len(widths))]
    widths = [width for width, side in zip(widths, sides, strict=True) if side in args.attention] + widths[-1:]
    if args.model_channels % 32:
        raise ValueError(
            f"`model_channels` {args.model_channels} cannot be normalised in 32 groups; use multiples of 32"
        )
    wrong = [width for width in widths if width % args.head_channels]
    if wrong:
        raise ValueError(
            f"`head_channels` {args.head_channels}: {wrong[0]} features cannot be split so; choose a divisor of all of "
            f"{', '.join(map(str, widths))}"
        )


def check_attention(args: argparse.Namespace) -> None:
    """Refuse attention at sizes that a network does not have; what the published have at other sizes is no attention.

    Raises:
        ValueError: naming the size, and those that there are.
    """
    levels = range(len(args.channel_mult))
    sizes = [2**level for level in levels]
    if args.network != "large-image":  # which counts in factors
        sizes = [(args.window if args.network == "nuclei" else args.crop) // factor for factor in sizes]
    wrong = [size for size in args.attention if size not in sizes]
    if wrong and args.attention != PUBLISHED[args.network].get("attention"):
        raise ValueError(
            f"`attention` {wrong[0]} is no size of this network's features; choose of {', '.join(map(str, sizes))}"
        )


def check_kept_labels(keep: Sequence[int]) -> None:
    """Refuse labels that are named twice.

    Raises:
        ValueError: naming the label.
    """
    twice = [label for label in keep if list(keep).count(label) > 1]
    if twice:
        raise ValueError(f"`keep` names label {twice[0]} twice; name it once")


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
    if args.every is not None:
        check_kept(getattr(args, "keep_every", 0), args.every)
    if args.network == "diffinfinite-image":
        check_kept_labels(args.keep)
    if args.network in ATTENDING:
        check_attention(args)
    if args.network == "diffinfinite-image" and args.test_share and args.hold_out:
        raise ValueError(f"`test_share` {args.test_share:g} and `hold_out` {args.hold_out}: give one of them")
    if args.network in HALVED:
        side, name, least = HALVED[args.network]
        divisor = 2 ** (len(getattr(args, name)) - 1) * least
        if getattr(args, side) % divisor:
            raise ValueError(
                f"`{side}` {getattr(args, side)} cannot be halved as often as `{name}` says; use multiples of {divisor}"
            )
    if args.network == "nuclei":
        check_nuclei(args)
    if args.network == "first-stage" and args.crop < 16:
        raise ValueError(f"`crop` {args.crop} is too small for the discriminator; choose 16 or more")
    if args.network in PUBLISHED:
        return
    if args.network == "autoencoder":
        if args.init is not None and (args.decoder_alone or args.edges_alone):
            raise ValueError(f"`init` {args.init} beside the decoder of `out` alone; leave one of them out")
        if len(args.channels) != len(args.blocks):
            raise ValueError(
                f"`channels` names {len(args.channels)} sizes but `blocks` {len(args.blocks)}; name as many"
            )
        if args.latent_channels % args.fold**2:
            raise ValueError(
                f"`latent_channels` {args.latent_channels} is no multiple of {args.fold**2}, the square of `fold`"
            )
        return
    if args.dim % GROUPS:
        raise ValueError(f"`dim` {args.dim} cannot be normalised in {GROUPS} groups; use multiples of {GROUPS}")
    if args.network == "labels" and not 2 <= len(args.labels) <= 64:
        raise ValueError(f"`labels` names {len(args.labels)}; 2 to 64 are supported")


def check_kept(keep_every: int, every: int) -> None:
    """Refuse to keep model folders of steps that have no checkpoint.

    Raises:
        ValueError: naming both numbers.
    """
    if keep_every % every:
        raise ValueError(
            f"`keep_every` {keep_every} is no multiple of `every` {every}, the steps between checkpoints, which are "
            "what is kept; choose a multiple, or change `every`"
        )
