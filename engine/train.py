"""``python -m engine.train autoencoder|image --data DIR --out MODEL_DIR``: train a model folder."""

from __future__ import annotations

import argparse
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m engine.train", description=__doc__)
    commands = top.add_subparsers(dest="network", required=True)
    for name, defaults in {
        "autoencoder": {"steps": 4000, "batch_size": 8, "lr": 1e-3},
        "image": {"steps": 20000, "batch_size": 24, "lr": 5e-4},
    }.items():
        sub = commands.add_parser(name, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        sub.add_argument("--data", type=Path, required=True, help="folder of images and *_mask.png label maps")
        sub.add_argument("--out", type=Path, required=True, help="model folder")
        sub.add_argument("--steps", type=int, default=defaults["steps"])
        sub.add_argument("--minutes", type=float, default=0.0, help="stop earlier after this long (0: no limit)")
        sub.add_argument("--batch-size", type=int, default=defaults["batch_size"], help="over all ranks")
        sub.add_argument("--lr", type=float, default=defaults["lr"])
        sub.add_argument("--every", type=int, default=250, help="steps between checkpoints")
        sub.add_argument("--seed", type=int, default=0)
        sub.add_argument("--resume", choices=("auto", "never"), default="auto")
        sub.add_argument("--threads", type=int, default=0, help="CPU threads a rank (0: torch decides)")
        if name == "autoencoder":
            sub.add_argument("--crop", type=int, default=128, help="px")
            sub.add_argument("--latent-channels", type=int, default=8)
        else:
            sub.add_argument("--window", type=int, default=32, help="latents")
            sub.add_argument("--dim", type=int, default=64, help="features at full size")
            sub.add_argument("--dim-mults", default="1,2,3", help="features further down, over --dim")
            sub.add_argument("--drop", type=float, default=0.2, help="share of windows trained without their label")
            sub.add_argument("--labels", default="", help="names of the labels, 0 first, by commas")
            sub.add_argument("--pixel-size", type=float, default=0.5, help="um per pixel")
    return top


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    import torch

    from engine.comm import world
    from engine.training.loop import LoopSettings

    if args.threads:
        torch.set_num_threads(args.threads)
    settings = LoopSettings(args.steps, args.minutes, args.batch_size, args.lr, every=args.every, seed=args.seed)
    if args.network == "autoencoder":
        from engine.training import autoencoder

        autoencoder.train(
            args.data,
            args.out,
            settings,
            world(),
            crop=args.crop,
            resume=args.resume == "auto",
            latent_channels=args.latent_channels,
        )
    else:
        from engine.training import image

        image.train(
            args.data,
            args.out,
            settings,
            world(),
            window=args.window,
            drop=args.drop,
            resume=args.resume == "auto",
            names=[name.strip() for name in args.labels.split(",") if name.strip()],
            pixel_size_um=args.pixel_size,
            dim=args.dim,
            dim_mults=[int(m) for m in args.dim_mults.split(",")],
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
