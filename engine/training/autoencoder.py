"""``python -m engine.train autoencoder``: patches -> latents -> patches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
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
from engine.training.data import Patches, find_images, hold_out, read_image
from engine.training.diffusion import denoise
from engine.training.loop import LoopSettings, Trainer, average_gradients, image_grid
from engine.training.losses import (
    PatchDiscriminator,
    RandomFeatures,
    gradient_loss,
    halved,
    hinge,
    lattice_loss,
    multiscale_loss,
    spectrum_loss,
)
from engine.training.recipe import Recipe
from engine.training.start import start_weights

SHOWN = 4  # images in the picture of reconstructions; as many are held out where no number is asked for
LARGEST = 1024  # side of the part of an image that is reconstructed for the figures shown, px


def to_tensor(patches: list[np.ndarray]) -> Tensor:
    """uint8 (h, w, 3) patches -> float32 (B, 3, h, w) in [-1, 1]."""
    stacked = torch.from_numpy(np.stack([np.ascontiguousarray(p) for p in patches]))
    return stacked.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_image(x: Tensor) -> np.ndarray:
    """(B, 3, h, w) in [-1, 1] -> uint8 (B, h, w, 3)."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def decibels(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal over noise of all images in [-1, 1] together."""
    return -10 * torch.log10(((a.clamp(-1, 1) - b) ** 2).mean() / 4)


def cut_window(z: Tensor, x: Tensor, factor: int, less: int) -> tuple[Tensor, Tensor]:
    """A random window of latents (B, C, H, W) with its image, ``less`` latents smaller along a side.

    What is decoded then ends sometimes where the encoded image ends, sometimes within it, as windows of a canvas do.
    """
    if not less or min(z.shape[-2:]) < 4 * less:
        return z, x
    top, left = torch.randint(less + 1, (2,)).tolist()
    h, w = (side - less for side in z.shape[-2:])
    of_image = x[..., top * factor : (top + h) * factor, left * factor : (left + w) * factor]
    return z[..., top : top + h, left : left + w], of_image


def within(x: Tensor, less: int) -> Tensor:
    """The middle of images or latents (..., h, w), without ``less`` on every side."""
    return x[..., less:-less, less:-less]


class AutoencoderTraining:
    """The losses of one step; owns the discriminator and its optimiser."""

    def __init__(
        self, trainer: Trainer, patches: Patches, ranks: Ranks, lr: float, recipe: Recipe, device: str
    ) -> None:
        self.trainer, self.patches, self.ranks, self.device = trainer, patches, ranks, device
        self.recipe = recipe
        self.renoise: Callable[[Tensor], Tensor] | None = None
        self.as_it_was: PatchAutoencoder | None = None
        self.discriminator = PatchDiscriminator().to(device)
        self.features = RandomFeatures().to(device)
        assert isinstance(trainer.network, PatchAutoencoder)
        self.factor = trainer.network.factor
        self.optimizer = torch.optim.Adam(self.discriminator.parameters(), lr=lr, betas=(0.5, 0.99))
        trainer.extra = {"discriminator": self.discriminator, "discriminator_optimizer": self.optimizer}

    def prepare(self, positions: list[int]) -> Tensor:
        """The patches (B, 3, h, w), on the CPU."""
        return to_tensor([self.patches.patch(p)[0] for p in positions])

    def losses(self, positions: list[int], x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        network = self.trainer.network
        assert isinstance(network, PatchAutoencoder)
        x = x.to(self.device, non_blocking=True).contiguous(memory_format=torch.channels_last)
        w = self.recipe
        if self.as_it_was is not None:
            return self.edges(network, self.as_it_was, x)
        z, x = cut_window(network.encode(x), x, network.factor, w.cut)
        if self.renoise is not None and float(torch.rand(())) < w.renoised:
            y = network.decode(self.renoise(z)).float()
        else:
            y = network.decode(z + w.latent_noise * torch.randn_like(z)).float()
        loss, shown = self.reconstruction(x, y)
        if w.kl:
            loss = loss + w.kl * z.float().square().mean() / 2
        if w.equivariance:
            small = network.decode(network.halve(z)).float()
            loss = loss + w.equivariance * (small - halved(x)[..., : small.shape[-2], : small.shape[-1]]).abs().mean()
        shown["std"] = z.detach().std()
        if self.trainer.done > w.adversarial_from:
            ramp = min((self.trainer.done - w.adversarial_from) / 0.1, 1.0)
            adversarial, shown["D"] = self.adversarial(x, y)
            loss = loss + ramp * adversarial
        return loss, shown

    def edges(
        self, network: PatchAutoencoder, as_it_was: PatchAutoencoder, x: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """How far decoded windows end from what the decoder, as it was, makes there within larger windows.

        Away from its ends a window is decoded as before: that is where these losses are 0 to begin with.
        """
        less = network.margin
        with torch.no_grad():
            z = network.encode(x)
            goes_on = within(as_it_was.decode(z).float(), less * network.factor)
        return self.reconstruction(goes_on, network.decode(within(z, less)).float())

    def reconstruction(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """How far the reconstructions y are from the images x, and figures to show."""
        w = self.recipe
        pixel = (x - y).abs().mean()
        loss = w.pixel * pixel + w.gradient * gradient_loss(x, y) + w.multiscale * multiscale_loss(x, y)
        loss = loss + w.spectrum * spectrum_loss(x, y)
        if w.perceptual:
            loss = loss + w.perceptual * self.features(x, y)
        if w.lattice:
            loss = loss + w.lattice * lattice_loss(x, y, self.factor)
        return loss, {"L1": pixel.detach(), "dB": decibels(y.detach(), x)}

    def adversarial(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Train the discriminator one step, then judge the reconstruction by it."""
        y = y.clamp(-1, 1)  # as it is seen: or a spike in a corner, which costs little, would be praised without end
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
        return self.recipe.adversarial * (matching - verdict.mean()), d_loss.detach()


def renoiser(out: Path, device: str, steps: int = 4) -> Callable[[Tensor], Tensor]:
    """A function that takes latents some way up the noise and back by the image network, asked for nothing."""
    network = load_part(out / "unet").to(device)
    schedule = Schedule.from_config(read_json(out / "scheduler" / "scheduler_config.json"))

    @torch.no_grad()
    def renoise(z: Tensor) -> Tensor:
        top = float(torch.empty(()).uniform_(0.15, 0.6)) * schedule.num_train_timesteps
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


def as_it_is(network: PatchAutoencoder, crop: int) -> PatchAutoencoder:
    """A copy to train the edges by.

    Raises:
        ValueError: the patches have no middle to compare with.
    """
    least = (2 * network.margin + 1) * network.factor
    if crop < least:
        raise ValueError(f"`crop` is {crop} px; training edges alone takes {least} or more")
    return deepcopy(network).requires_grad_(False)


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
    held: int,
    recipe: Recipe,
    decoder_alone: bool,
    init: Path | None,
    resume: bool,
    device: str,
    **config,
) -> bool:
    """Train an autoencoder on the images of a folder and write it to ``out/vae``. Collective over ``ranks``.

    Args:
        held: number of images kept from the training, for the figures shown; 0: the last four, of 16 or more.
        decoder_alone: go on from ``out/vae`` with its encoder as it is, for a sharper picture: the latents stay the
            same, so that an image network trained on them stays right.
        init: model folder whose autoencoder is started from.
        config: of ``PatchAutoencoder``.
    Returns:
        Whether it came to its end.
    """

    def inputs() -> tuple[Patches, list[Path]]:
        images = find_images(data)
        kept = hold_out(images, held) if held else images[-SHOWN:] if len(images) >= 4 * SHOWN else []
        patches = Patches(tuple(path for path in images if path not in kept), crop, settings.seed)
        return patches, kept or images[-SHOWN:]

    patches, judged = ranks.agree(inputs)
    said = f"{len(judged)} images {'of the training' if judged[0] in patches.images else 'held out'}"
    torch.manual_seed(settings.seed)
    network = ranks.agree(lambda: load_autoencoder(out)) if decoder_alone else PatchAutoencoder(**config)
    if init is not None:
        ranks.agree(lambda: start_weights(network, network.config, init, "vae"))
    network.requires_grad_(True)
    network.encoder.requires_grad_(not decoder_alone)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    folder = out / "vae"
    folder.mkdir(parents=True, exist_ok=True)
    name = "edges-training" if recipe.edges else "decoder-training" if decoder_alone else "training"
    trainer = Trainer(network, settings, ranks, folder, name)
    training = AutoencoderTraining(trainer, patches, ranks, settings.lr, recipe, device)
    if recipe.edges:
        training.as_it_was = ranks.agree(lambda: as_it_is(network, crop))
    elif decoder_alone and (out / "unet" / "config.json").exists():
        training.renoise = ranks.agree(lambda: renoiser(out, device))
    if resume and ranks.agree(trainer.resume) and ranks.rank == 0:
        print(f"resumed at step {trainer.step}", flush=True)
    if settings.compile:
        network.encoder.compile()
        network.decoder.compile()
    torch.manual_seed(settings.seed + 1 + ranks.rank + trainer.step * ranks.size)  # latent noise and cuts only

    def after() -> None:
        if ranks.rank:
            return
        averaged = trainer.ema.network
        assert isinstance(averaged, PatchAutoencoder)
        if not decoder_alone:
            measure_latents(averaged, patches, device)
        quality, picture = judge(averaged.encode, averaged.decode, averaged.factor, judged, device)
        print(f"step {trainer.step}: {quality:.2f} dB on {said}", flush=True)
        Image.fromarray(picture).save(folder / "reconstructions.png")
        save_part(averaged, folder)

    return trainer.run(training.prepare, training.losses, after)


@torch.no_grad()
def judge(
    encode: Callable[[Tensor], Tensor],
    decode: Callable[[Tensor], Tensor],
    factor: int,
    images: Sequence[Path],
    device: str,
) -> tuple[float, np.ndarray]:
    """Reconstruct whole images: the mean of their decibels; and corners of ``SHOWN`` of them above the same rebuilt.

    Args:
        factor: Pixels a latent, along a side.
    """
    decibels_of, above, below = [], [], []
    for path in images:
        image = read_image(path)[-LARGEST:, -LARGEST:]
        h, w = (side // factor * factor for side in image.shape[:2])
        x = to_tensor([image[:h, :w]]).to(device)
        y = decode(encode(x))
        decibels_of.append(float(decibels(y, x)))
        above.append(to_image(x)[:, -256:, -256:])
        below.append(to_image(y)[:, -256:, -256:])
    pictures = [picture for picture in above[:SHOWN] + below[:SHOWN] if picture.shape == above[0].shape]
    return float(np.mean(decibels_of)), image_grid(np.concatenate(pictures), min(SHOWN, len(images)))
