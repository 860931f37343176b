"""``python -m engine.train autoencoder``: patches -> latents -> patches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from engine.diffusion.schedule import Schedule
from engine.distributed.ranks import Ranks
from engine.models.files import read_json
from engine.models.folder import load_part, save_part
from engine.models.networks.autoencoder import PatchAutoencoder
from engine.training.data import Patches, find_images
from engine.training.diffusion import denoise
from engine.training.loop import LoopSettings, Trainer, average_gradients, image_grid
from engine.training.losses import (
    PatchDiscriminator,
    gradient_loss,
    hinge,
    lattice_loss,
    multiscale_loss,
    spectrum_loss,
)

HELD_OUT = 4  # images at the end of the sorted list that are never trained on, for the figures shown


@dataclass(frozen=True)
class Recipe:
    """Weights of the losses, and what else a training is made of.

    Args:
        latent_noise: Std of noise on normalised latents, with which the decoder learns to forgive sampling errors.
        renoised: Share of the batches whose latents are noised and then denoised by the image network, where there
            is one: the decoder learns to make a crisp picture of latents as the sampler gives them.
        adversarial_from: Share of the run after which the discriminator counts.
    """

    pixel: float = 1.0
    gradient: float = 1.0
    multiscale: float = 0.5
    spectrum: float = 0.05
    lattice: float = 0.0
    adversarial: float = 0.03
    adversarial_from: float = 0.3
    latent_noise: float = 0.1
    renoised: float = 0.0


DECODER_ALONE = Recipe(
    pixel=0.4,
    gradient=0.4,
    multiscale=1.0,
    spectrum=0.2,
    lattice=0.2,
    adversarial=0.06,
    adversarial_from=0.03,
    renoised=0.7,
)


def to_tensor(patches: list[np.ndarray]) -> Tensor:
    """uint8 (h, w, 3) patches -> float32 (B, 3, h, w) in [-1, 1]."""
    stacked = torch.from_numpy(np.stack([np.ascontiguousarray(p) for p in patches]))
    return stacked.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_image(x: Tensor) -> np.ndarray:
    """(B, 3, h, w) in [-1, 1] -> uint8 (B, h, w, 3)."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def psnr(a: Tensor, b: Tensor) -> float:
    """Decibels, for images in [-1, 1]."""
    return float(-10 * torch.log10(((a.clamp(-1, 1) - b) ** 2).mean() / 4))


class AutoencoderTraining:
    """The losses of one step; owns the discriminator and its optimiser."""

    def __init__(
        self, trainer: Trainer, patches: Patches, ranks: Ranks, lr: float, recipe: Recipe, device: str
    ) -> None:
        self.trainer, self.patches, self.ranks, self.device = trainer, patches, ranks, device
        self.recipe = recipe
        self.renoise: Callable[[Tensor], Tensor] | None = None
        self.discriminator = PatchDiscriminator().to(device)
        self.optimizer = torch.optim.Adam(self.discriminator.parameters(), lr=lr, betas=(0.5, 0.99))
        trainer.extra = {"discriminator": self.discriminator, "discriminator_optimizer": self.optimizer}

    def losses(self, positions: list[int]) -> tuple[Tensor, dict[str, float]]:
        network = self.trainer.network
        assert isinstance(network, PatchAutoencoder)
        x = to_tensor([self.patches.patch(p)[0] for p in positions]).to(self.device)
        x = x.contiguous(memory_format=torch.channels_last)
        w = self.recipe
        z = network.encode(x)
        if self.renoise is not None and float(torch.rand(())) < w.renoised:
            y = network.decode(self.renoise(z))
        else:
            y = network.decode(z + w.latent_noise * torch.randn_like(z))
        pixel = (x - y).abs().mean()
        loss = w.pixel * pixel + w.gradient * gradient_loss(x, y) + w.multiscale * multiscale_loss(x, y)
        loss = loss + w.spectrum * spectrum_loss(x, y)
        if w.lattice:
            loss = loss + w.lattice * lattice_loss(x, y, network.factor)
        shown = {"L1": float(pixel.detach()), "dB": psnr(y.detach(), x), "std": float(z.detach().std())}
        if self.trainer.done > w.adversarial_from:
            ramp = min((self.trainer.done - w.adversarial_from) / 0.1, 1.0)
            adversarial, shown["D"] = self.adversarial(x, y)
            loss = loss + ramp * adversarial
        return loss, shown

    def adversarial(self, x: Tensor, y: Tensor) -> tuple[Tensor, float]:
        """Train the discriminator one step, then judge the reconstruction by it."""
        self.optimizer.zero_grad(set_to_none=True)
        d_loss = hinge(self.discriminator(x)[0], self.discriminator(y.detach())[0])
        d_loss.backward()
        average_gradients(self.discriminator.parameters(), self.ranks)
        self.optimizer.step()
        self.discriminator.requires_grad_(False)
        with torch.no_grad():
            wanted = self.discriminator(x)[1]
        verdict, features = self.discriminator(y)
        self.discriminator.requires_grad_(True)
        matching = sum((a - b).abs().mean() / a.abs().mean() for a, b in zip(wanted, features, strict=True))
        return self.recipe.adversarial * (matching - verdict.mean()), float(d_loss.detach())


def renoiser(out: Path, device: str, steps: int = 4) -> Callable[[Tensor], Tensor]:
    """A function that takes latents some way up the noise and back by the image network, asked for nothing."""
    network = load_part(out / "unet").to(device)
    schedule = Schedule.from_config(read_json(out / "scheduler" / "scheduler_config.json"))

    @torch.no_grad()
    def renoise(z: Tensor) -> Tensor:
        top = float(torch.empty(()).uniform_(0.15, 0.6)) * schedule.timesteps
        levels = np.linspace(top, 0.1 * top, steps).astype(int).tolist()
        alpha_bar = schedule.alpha_bar[levels[0]]
        x = alpha_bar**0.5 * z + (1 - alpha_bar) ** 0.5 * torch.randn_like(z)
        nothing = torch.zeros(len(z), dtype=torch.long, device=z.device)
        return denoise(lambda x, t: network(x, t, nothing, torch.zeros_like(z[:, :1])), schedule, x, levels)

    return renoise


def measure_latents(network: PatchAutoencoder, patches: Patches, device: str, count: int = 64) -> None:
    """Set mean and std of each channel of the latents from ``count`` patches, so that latents are normalised."""
    network.config["latents_mean"] = [0.0] * network.config["latent_channels"]
    network.config["latents_std"] = [1.0] * network.config["latent_channels"]
    with torch.no_grad():
        z = torch.cat([network.encode(to_tensor([patches.patch(p)[0]]).to(device)) for p in range(count)])
    network.config["latents_mean"] = [round(v, 5) for v in z.mean((0, 2, 3)).tolist()]
    network.config["latents_std"] = [round(v, 5) for v in z.std((0, 2, 3)).tolist()]


def load_autoencoder(out: Path) -> PatchAutoencoder:
    """The autoencoder that was trained into a model folder.

    Raises:
        ValueError: there is none yet.
    """
    if not (out / "vae" / "config.json").exists():
        raise ValueError(f"{out / 'vae'} holds no autoencoder; train one first: engine.train autoencoder --out {out}")
    network = load_part(out / "vae")
    assert isinstance(network, PatchAutoencoder)
    return network


def train(
    data: Path,
    out: Path,
    settings: LoopSettings,
    ranks: Ranks,
    *,
    crop: int,
    decoder_alone: bool,
    resume: bool,
    device: str,
    **config,
) -> None:
    """Train an autoencoder on the images of a folder and write it to ``out/vae``. Collective over ``ranks``.

    Args:
        decoder_alone: go on from ``out/vae`` with its encoder as it is, for a sharper picture: the latents stay the
            same, so that an image network trained on them stays right.
    """

    def inputs() -> tuple[Patches, Patches]:
        images = find_images(data)
        held = HELD_OUT if len(images) >= 4 * HELD_OUT else 0
        patches = Patches(tuple(images[: len(images) - held]), crop, settings.seed)
        return patches, Patches(tuple(images[-HELD_OUT:]), crop, settings.seed)

    patches, shown = ranks.agree(inputs)
    torch.manual_seed(settings.seed)
    network = ranks.agree(lambda: load_autoencoder(out)) if decoder_alone else PatchAutoencoder(**config)
    network.requires_grad_(True)
    network.encoder.requires_grad_(not decoder_alone)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    folder = out / "vae"
    folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(network, settings, ranks, folder, "decoder-training" if decoder_alone else "training")
    recipe = DECODER_ALONE if decoder_alone else Recipe()
    training = AutoencoderTraining(trainer, patches, ranks, settings.lr, recipe, device)
    if decoder_alone and (out / "unet" / "config.json").exists():
        training.renoise = ranks.agree(lambda: renoiser(out, device))
    if resume and trainer.resume() and ranks.rank == 0:
        print(f"resumed at step {trainer.step}", flush=True)
    torch.manual_seed(settings.seed + 1 + ranks.rank + trainer.step * ranks.size)  # latent noise only

    def after() -> None:
        if ranks.rank:
            return
        averaged = trainer.ema.network
        assert isinstance(averaged, PatchAutoencoder)
        if not decoder_alone:
            measure_latents(averaged, patches, device)
        x = to_tensor([shown.patch(p)[0] for p in range(HELD_OUT)]).to(device)
        with torch.no_grad():
            y = averaged.decode(averaged.encode(x))
        print(f"step {trainer.step}: {psnr(y, x):.2f} dB on images held out", flush=True)
        grid = image_grid(np.concatenate([to_image(x), to_image(y)]), HELD_OUT)
        Image.fromarray(grid).save(folder / "reconstructions.png")
        save_part(averaged, folder)

    trainer.run(training.losses, after)
