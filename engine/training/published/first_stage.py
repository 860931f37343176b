"""``python -m engine.train first-stage``: the autoencoders of latent diffusion, of a codebook or of KL, as its
``autoencoder.py`` trains them (Esser et al. 2021, arXiv:2012.09841; Rombach et al. 2022, arXiv:2112.10752).

Their perceptual loss needs VGG's weights; here a fixed random network stands in (``losses.RandomFeatures``), and their
discriminator of 70 px with batch normalisation is ours of 22 px with spectral normalisation.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from engine.distributed.ranks import Ranks
from engine.models.codec import LatentCodec
from engine.models.convert.latent_diffusion import first_stage_config
from engine.models.folder import diffusers_class, save_part
from engine.training.autoencoder import decibels, judge, to_tensor
from engine.training.curve import HELD, draw_curve
from engine.training.data import Patches, find_images, hold_out
from engine.training.loop import LoopSettings, Trainer, average, average_gradients
from engine.training.losses import PatchDiscriminator, RandomFeatures, hinge
from engine.training.published.epochs import Facts
from engine.training.start import start_weights

KINDS = {"vq": "VQModel", "kl": "AutoencoderKL"}
MOST, LEAST = 1e4, 1e-4  # of the discriminator's weight; of the norm that it is divided by
SHARED = ("kind", "crop", "hold_out", "perceptual", "adversarial", "adversarial_from", "codebook", "kl", "codes")
MEASURED = 64  # patches whose latents' standard deviation is measured, of a KL autoencoder


class Patch(NamedTuple):
    """Patches together.

    Args:
        x: float32 (B, 3, h, w) in [-1, 1].
        noise: (B, C, H, W), of the latents of a KL autoencoder.
    """

    x: Tensor
    noise: Tensor


class FirstStage:
    """The losses of one step; owns the discriminator and its optimiser.

    Args:
        args: Options of the command.
    """

    def __init__(self, trainer: Trainer, patches: Patches, ranks: Ranks, args: Namespace, device: str) -> None:
        self.trainer, self.patches, self.ranks, self.args, self.device = trainer, patches, ranks, args, device
        self.network: Any = trainer.network
        self.features = RandomFeatures().to(device)
        self.discriminator = PatchDiscriminator().to(device)
        self.optimizer = torch.optim.Adam(self.discriminator.parameters(), lr=args.lr, betas=tuple(args.betas))
        trainer.extra = {"discriminator": self.discriminator, "discriminator_optimizer": self.optimizer}
        factor = 2 ** (len(args.channel_mult) - 1)
        self.latents = (args.latent_channels, args.crop // factor, args.crop // factor)

    def prepare(self, positions: Sequence[int]) -> Patch:
        """The patches of positions in the endless run, and the noise of their latents."""
        drawn = (np.random.default_rng((self.args.seed, 2, position)) for position in positions)
        noise = np.stack([rng.standard_normal(self.latents, np.float32) for rng in drawn])
        return Patch(to_tensor([self.patches.patch(p)[0] for p in positions]), torch.from_numpy(noise))

    def losses(self, positions: Sequence[int], batch: Patch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a micro-batch, and its figures. Collective once the discriminator counts."""
        x, noise = (part.to(self.device, non_blocking=True) for part in batch)
        y, of_latents, shown = self.rebuilt(x, noise)
        pixels = (x - y).abs().mean() + self.args.perceptual * self.features(x, y)
        loss = pixels + of_latents
        shown |= {"L1": (x - y.detach()).abs().mean(), "dB": decibels(y.detach(), x)}
        if self.trainer.step >= self.args.adversarial_from:
            share = len(positions) * self.ranks.size / self.args.batch_size  # of this rank's in the mean of all
            shown["D"] = self.teach(x, y.detach(), share)
            self.discriminator.requires_grad_(False)
            verdict = -self.discriminator(y)[0].mean()
            self.discriminator.requires_grad_(True)
            loss = loss + self.args.adversarial * self.weight(pixels, verdict, share) * verdict
        return loss, shown

    def rebuilt(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Reconstructions of x, the loss of their latents, and figures."""
        if self.args.kind == "vq":
            z = self.network.encode(x).latents
            codes, loss, (_, _, chosen) = self.network.quantize(z)
            y = self.network.decode(codes, force_not_quantize=True).sample.float()
            return y, self.args.codebook * loss, {"codes": torch.tensor(float(chosen.unique().numel()))}
        of_image = self.network.encode(x).latent_dist
        z = of_image.mean + of_image.std * noise
        y = self.network.decode(z).sample.float()
        divergence = of_image.kl().mean() / x[0].numel()  # their sum over all latents, beside a sum over all pixels
        return y, self.args.kl * divergence, {"kl": divergence.detach()}

    def teach(self, x: Tensor, y: Tensor, share: float) -> Tensor:
        """Train the discriminator one step. Collective."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = 0.5 * hinge(self.discriminator(x)[0], self.discriminator(y)[0])
        (loss * share).backward()
        average_gradients(self.discriminator.parameters(), self.ranks)
        self.optimizer.step()
        return loss.detach()

    def weight(self, pixels: Tensor, verdict: Tensor, share: float) -> Tensor:
        """How much the verdict counts: the ratio of the two gradients' norms at the last layer. Collective."""
        last = self.network.decoder.conv_out.weight
        of_pixels, of_verdict = (
            torch.autograd.grad(loss * share, last, retain_graph=True)[0].clone() for loss in (pixels, verdict)
        )
        average([of_pixels, of_verdict], self.ranks)
        return (of_pixels.norm() / (of_verdict.norm() + LEAST)).clamp(0, MOST)


def train(args: Namespace, settings: LoopSettings, ranks: Ranks, device: str) -> bool:
    """Train an autoencoder and write it to ``out/vae``; whether it came to its end. Collective.

    Args:
        args: Options of the command.
    """
    patches, judged = ranks.agree(lambda: images_of(args))
    torch.manual_seed(args.seed)
    network = ranks.agree(lambda: network_of(args))
    if args.init is not None:
        ranks.agree(lambda: start_weights(network, network.config, args.init, "vae"))  # type: ignore[arg-type]
    network.to(device)
    folder = args.out / "vae"
    ranks.agree(lambda: folder.mkdir(parents=True, exist_ok=True))
    trainer = Trainer(network, settings, ranks, folder)
    training = FirstStage(trainer, patches, ranks, args, device)
    trainer.extra["facts"] = Facts({name: getattr(args, name) for name in SHARED})
    if args.resume == "auto" and ranks.agree(trainer.resume) and ranks.rank == 0:
        print(f"resumed at step {trainer.step}", flush=True)
    if ranks.rank == 0:
        count = sum(p.numel() for p in network.parameters()) / 1e6
        print(f"{count:.2f} M parameters, {len(patches.images)} images, {len(judged)} held out", flush=True)
    return trainer.run(training.prepare, training.losses, partial(after, training, judged or patches.images[:4]))


def after(training: FirstStage, judged: Sequence[Path]) -> None:
    """Write the autoencoder, and its reconstructions of images. Rank 0 writes."""
    if training.ranks.rank:
        return
    trainer, folder = training.trainer, training.trainer.folder
    averaged: Any = trainer.ema.network
    if training.args.kind == "kl":
        averaged.register_to_config(scaling_factor=1 / spread(averaged, training))
    codec = LatentCodec(averaged, {"_class_name": KINDS[training.args.kind], **averaged.config}, {})
    factor = 2 ** (len(training.args.channel_mult) - 1)
    quality, picture = judge(codec.encode, codec.decode, factor, judged, training.device)
    print(f"step {trainer.step}: {quality:.2f} dB on {len(judged)} images", flush=True)
    trainer.write_down({"dB" + HELD: quality})
    Image.fromarray(picture).save(folder / "reconstructions.png")
    draw_curve(folder / "training.jsonl", folder / "loss.png")
    save_part(averaged, folder)


@torch.no_grad()
def spread(network: Any, training: FirstStage) -> float:
    """Standard deviation of the latents, by which they are divided for a diffusion network."""
    latents = []
    for first in range(0, MEASURED, 8):
        batch = training.prepare(range(first, first + 8))
        of_image = network.encode(batch.x.to(training.device)).latent_dist
        latents.append(of_image.mean + of_image.std * batch.noise.to(training.device))
    return float(torch.cat(latents).std())


def images_of(args: Namespace) -> tuple[Patches, list[Path]]:
    """Patches of the images that are trained on, and the images that are held out.

    Raises:
        ValueError: there are none, or smaller ones than a patch.
    """
    images = find_images(args.data)
    held = hold_out(images, args.hold_out)
    return Patches(tuple(path for path in images if path not in held), args.crop, args.seed), held


def network_of(args: Namespace) -> nn.Module:
    """diffusers' autoencoder with random weights.

    Raises:
        ValueError: diffusers has no such network, or is not installed.
    """
    settings = {
        "ch": args.channels,
        "ch_mult": list(args.channel_mult),
        "num_res_blocks": args.blocks,
        "attn_resolutions": list(args.attention),
        "in_channels": 3,
        "out_ch": 3,
        "z_channels": args.latent_channels,
        "resolution": args.crop,
        "double_z": args.kind == "kl",
    }
    params = {"embed_dim": args.latent_channels, "n_embed": args.codes, "ddconfig": settings}
    config = first_stage_config(KINDS[args.kind], params, 1.0)
    try:
        network = diffusers_class(KINDS[args.kind])(**{k: v for k, v in config.items() if k[0] != "_"})
    except Exception as error:  # diffusers' network says in its own ways what it cannot be
        raise ValueError(f"there is no such autoencoder: {' '.join(str(error).split())}") from None
    return network.train().requires_grad_(True)
