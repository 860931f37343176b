"""``python -m engine.train NETWORK --data DIR --out MODEL_DIR``: train a model folder.

This project's own model: the autoencoder is trained first, then the image network on its latents; the network of label
maps is a model by itself. The others train as their authors do: ``nuclei``, ``diffinfinite-image``,
``diffinfinite-labels``, ``large-image`` with its ``first-stage``, ``feature-aligned`` with its ``expert``.
Each training resumes where it was stopped. Under ``mpiexec -n N`` the ranks share each batch and average gradients;
``--alone`` needs no MPI. ``jobs/train-embedded.sh`` trains this project's three within the minutes it is given.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.command_line import Parser, gives_help
from engine.training.checks import check, check_folder
from engine.training.job_file import with_job
from engine.training.options import DEFAULTS, OWN_OPTIONS, recipe_of, run_options
from engine.training.published.options import COUNTING_EPOCHS, PUBLISHED, PUBLISHED_OPTIONS

if TYPE_CHECKING:
    from engine.distributed.ranks import Ranks


def parser() -> argparse.ArgumentParser:
    top = Parser(prog="python -m engine.train", description=__doc__, allow_abbrev=False)
    commands = top.add_subparsers(dest="network", required=True)
    for name, defaults in (DEFAULTS | PUBLISHED).items():
        sub = commands.add_parser(name, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False)
        run_options(sub, name, by_epochs=name in COUNTING_EPOCHS, compiles=name != "first-stage")
        (OWN_OPTIONS | PUBLISHED_OPTIONS)[name](sub)
        sub.set_defaults(**defaults)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if gives_help(parser, arguments):
        return 0
    if "--alone" in arguments:
        from engine.training.alone import run_alone

        return run_alone(lambda ranks: train(ranks, arguments))
    from engine.distributed.launch import run_main  # numpy, for which --help does not wait

    return run_main(lambda ranks: train(ranks, arguments), goes_on=True)


def train(ranks: Ranks, arguments: list[str]) -> int:
    """Train one network; the exit status. Collective."""
    began = time.monotonic()
    arguments = ranks.on_root(lambda: with_job(arguments))
    args = ranks.agree(lambda: parser().parse_args(arguments))

    import os

    import torch

    from engine.command_line import STOPPED
    from engine.models.files import EMBEDDED, EMBEDDED_LABELS
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
    same += ["clip", "accumulate", "every", "seed", "precision", "keep_every", "compile"]
    deadline = began + 60 * args.stop_after if args.stop_after else 0.0
    kept = {name: getattr(args, name) for name in same if hasattr(args, name)}  # not all have the last two
    kept |= {"readers": args.readers or min(cores, 8)}
    settings = LoopSettings(**kept, betas=tuple(args.betas), deadline=deadline, began=began)
    if args.init == Path("embedded"):
        args.init = EMBEDDED_LABELS if args.network == "labels" else EMBEDDED
    common = {"resume": args.resume == "auto", "device": device, "held": args.hold_out, "init": args.init}
    ranks.agree(lambda: check(args, ranks.size))
    ranks.agree(lambda: check_folder(args))
    ranks.catch_signals("step")
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


if __name__ == "__main__":
    raise SystemExit(main())
