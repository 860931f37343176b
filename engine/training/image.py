"""``python -m engine.train image``: the label-conditional network, on the latents of ``MODEL_DIR/vae``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from engine.diffusion.schedule import Schedule
from engine.distributed.ranks import Ranks
from engine.models.card import colored
from engine.models.networks.autoencoder import PatchAutoencoder
from engine.models.networks.mask_unet import MaskUNet
from engine.training.autoencoder import load_autoencoder, to_image, to_tensor
from engine.training.data import dihedral, find_images, read_image, read_mask
from engine.training.diffusion import denoise, fit, spread_evenly, velocity_loss, write_folder
from engine.training.loop import LoopSettings, image_grid

SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "squaredcos_cap_v2",
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "set_alpha_to_one": True,
    "timestep_spacing": "trailing",
}
UNIFORM_SHARE = 1 / 3  # of the timesteps trained on
PARTS = {
    "unet": ["slidefield", "MaskUNet"],
    "vae": ["slidefield", "PatchAutoencoder"],
}


class LatentWindows:
    """Windows of the encoded images with one of their labels each.

    A window is a function of (seed, position in the run). Half of them are centred on a position of a label
    drawn evenly, so that rare labels are seen as often as common ones.
    """

    def __init__(
        self, autoencoder: PatchAutoencoder, images: list[Path], side: int, drop: float, seed: int, device: str
    ) -> None:
        self.autoencoder, self.images, self.side, self.drop, self.seed = autoencoder, images, side, drop, seed
        self.device = device
        factor = autoencoder.factor
        for path in images:
            if min(read_image(path).shape[:2]) < side * factor:
                raise ValueError(f"{path} is smaller than a window of {side * factor} px; choose a smaller `window`")
        self.masks = [whole_latents(read_mask(path), factor)[::factor, ::factor] for path in images]
        self.num_classes = max(int(mask.max()) for mask in self.masks) + 1
        self.holders = {
            label: [i for i, mask in enumerate(self.masks) if (mask == label).any()]
            for label in range(1, self.num_classes)
        }
        self.holders = {label: holders for label, holders in self.holders.items() if holders}

    @lru_cache(maxsize=4096)  # noqa: B019 - one instance lives as long as the run
    def latents(self, index: int, turn: int) -> np.ndarray:
        """float32 (C, H, W) of an image after one of the eight rotations and reflections."""
        factor = self.autoencoder.factor
        turned = dihedral(whole_latents(read_image(self.images[index]), factor), turn)
        with torch.no_grad():
            return self.autoencoder.encode(to_tensor([turned]).to(self.device))[0].cpu().contiguous().numpy()

    def corner(self, rng: np.random.Generator, index: int, label: int) -> tuple[int, int]:
        """Top-left of a window, near a position of ``label`` if that is not 0."""
        h, w = self.masks[index].shape
        if not label:
            return int(rng.integers(h - self.side + 1)), int(rng.integers(w - self.side + 1))
        rows, columns = np.nonzero(self.masks[index] == label)
        at = int(rng.integers(len(rows)))
        y, x = (int(v[at]) - int(rng.integers(self.side)) for v in (rows, columns))
        return min(max(y, 0), h - self.side), min(max(x, 0), w - self.side)

    def window(self, position: int) -> tuple[np.ndarray, int, np.ndarray]:
        """Latents (C, side, side), a label (0: null) and its 0/1 map (1, side, side)."""
        rng = np.random.default_rng((self.seed, 2, position))
        wanted = int(rng.choice(list(self.holders))) if self.holders and rng.random() < 0.5 else 0
        index = int(rng.choice(self.holders[wanted])) if wanted else int(rng.integers(len(self.images)))
        y, x = self.corner(rng, index, wanted)
        turn = int(rng.integers(8))
        # The window is cut from the turned image: turn a picture of its position to find it there.
        marks = np.zeros(self.masks[index].shape, bool)
        marks[y : y + self.side, x : x + self.side] = True
        rows, columns = np.nonzero(dihedral(marks, turn))
        box = (slice(rows[0], rows[0] + self.side), slice(columns[0], columns[0] + self.side))
        mask = dihedral(self.masks[index], turn)[box]
        present = [int(v) for v in np.unique(mask) if v]
        label = 0 if not present or rng.random() < self.drop else int(rng.choice(present))
        if wanted and label and rng.random() < 0.5:
            label = wanted if wanted in present else label
        return self.latents(index, turn)[(slice(None), *box)], label, (mask == label)[None] & (label > 0)


def whole_latents(image: np.ndarray, factor: int) -> np.ndarray:
    """An image or label map without the rows and columns at its end that fill no whole latent."""
    h, w = (n // factor * factor for n in image.shape[:2])
    return image[:h, :w]


def denoising_loss(
    network: nn.Module, schedule: Schedule, windows: list, generator: torch.Generator, device: str
) -> Tensor:
    """Mean squared error of the velocity, over the batch at timesteps spread evenly in probability.

    A third of them are uniform; the others logit-normal about the levels at which nuclei and fibres take shape, where
    there is most to learn (Karras et al. 2022, arXiv:2206.00364, section 5).
    """
    x0 = torch.from_numpy(np.stack([w[0] for w in windows]))
    label = torch.tensor([w[1] for w in windows]).to(device)
    mask = torch.from_numpy(np.stack([w[2] for w in windows])).float().to(device)
    n, total = len(windows), schedule.timesteps
    spread = spread_evenly(n, generator)
    curved = torch.sigmoid(-0.3 + 0.9 * torch.special.ndtri(spread.double())).float()
    share = torch.where(torch.rand(n, generator=generator) < UNIFORM_SHARE, spread, curved)
    t = (share * total).long().clamp(max=total - 1)
    return velocity_loss(lambda x, t: network(x, t, label, mask), schedule, x0, t, generator, device)


def sample_grid(
    network: nn.Module, autoencoder: PatchAutoencoder, schedule: Schedule, side: int, device: str
) -> np.ndarray:
    """One row a label, guidance 2, 25 DDIM levels: uint8 picture."""
    config: dict = network.config  # type: ignore[assignment]
    labels = torch.arange(config["num_classes"]).repeat_interleave(4)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(len(labels), config["channels"], side, side, generator=generator).to(device)
    mask = (labels > 0).float()[:, None, None, None].expand(-1, 1, side, side).to(device)
    labels = labels.to(device)

    def guided(x: Tensor, t: Tensor) -> Tensor:
        null = network(x, t, torch.zeros_like(labels), torch.zeros_like(mask))
        return null + 2.0 * (network(x, t, labels, mask) - null)

    x = denoise(guided, schedule, x, schedule.levels(25).tolist())
    with torch.no_grad():
        return image_grid(to_image(autoencoder.decode(x)), 4)


def train(
    data: Path,
    out: Path,
    settings: LoopSettings,
    ranks: Ranks,
    *,
    window: int,
    drop: float,
    resume: bool,
    device: str,
    names: Sequence[str],
    pixel_size_um: float,
    **config,
) -> None:
    """Train the label-conditional U-Net on the latents of ``out/vae``; write ``out/unet``. Collective."""
    images = ranks.agree(lambda: find_images(data))
    autoencoder = ranks.agree(lambda: load_autoencoder(out))
    autoencoder.to(device)
    windows = ranks.agree(lambda: LatentWindows(autoencoder, images, window, drop, settings.seed, device))
    torch.manual_seed(settings.seed)
    config |= {"num_classes": windows.num_classes, "channels": autoencoder.config["latent_channels"]}
    network = MaskUNet(**config)
    schedule = Schedule.from_config(SCHEDULER)

    def loss(positions: list[int], generator: torch.Generator) -> Tensor:
        return denoising_loss(network, schedule, [windows.window(p) for p in positions], generator, device)

    def save(averaged: nn.Module) -> None:
        picture = sample_grid(averaged, autoencoder, schedule, window, device)
        Image.fromarray(picture).save(out / "unet" / "samples.png")
        known = [names[i] if i < len(names) else f"label {i}" for i in range(windows.num_classes)]
        facts = {
            "patch_size": window,
            "pixel_size_um": pixel_size_um,
            "labels": colored(known),
            "defaults": {"steps": 25, "solver": "ddim", "guidance": 2.0, "batch_size": 8},
        }
        write_folder(out, PARTS, SCHEDULER, facts)

    said = f"{len(windows.images)} images, {windows.num_classes} labels"
    fit(network, out / "unet", settings, ranks, loss, save, resume=resume, device=device, said=said)
