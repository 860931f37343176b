"""``python -m engine.train image``: the label-conditional network, on the latents of ``MODEL_DIR/vae``."""

from __future__ import annotations

import shutil
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
from engine.training.data import dihedral, find_images, hold_out, read_image, read_mask
from engine.training.diffusion import denoise, fit, spread_evenly, velocity_loss, write_folder
from engine.training.loop import LoopSettings, image_grid
from engine.training.start import start_weights

SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "squaredcos_cap_v2",
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "set_alpha_to_one": True,
    "timestep_shift": 3.0,
    "timestep_spacing": "trailing",
}
UNIFORM_SHARE = 1 / 3  # of the timesteps trained on, where min_snr is 0
Batch = tuple[Tensor, Tensor, Tensor]
PARTS = {
    "unet": ["slidefield", "MaskUNet"],
    "vae": ["slidefield", "PatchAutoencoder"],
}


class LatentWindows:
    """Windows of the encoded images with one of their labels each.

    A window is a function of (seed, position in the run). A share ``balance`` of them hold a position of a label drawn
    evenly, so that rare labels are seen as often as common ones, and a share ``own_label`` of these are of that label;
    the others are of any label that they hold. Every turned image is encoded
    ``shifts`` times, the latents' lattice lying elsewhere by less than one of them: the same nuclei, other latents.
    """

    def __init__(
        self,
        autoencoder: PatchAutoencoder,
        images: list[Path],
        side: int,
        drop: float,
        seed: int,
        device: str,
        balance: float = 0.5,
        own_label: float = 0.5,
        shifts: int = 1,
    ) -> None:
        self.autoencoder, self.images, self.side, self.drop, self.seed = autoencoder, images, side, drop, seed
        self.device, self.balance, self.own_label, self.shifts = device, balance, own_label, shifts
        factor = autoencoder.factor
        for path in images:
            if min(read_image(path).shape[:2]) < side * factor:
                raise ValueError(f"{path} is smaller than a window of {side * factor} px; choose a smaller `window`")
        # Copies: of a view, all of the map would be kept.
        self.masks = [whole_latents(read_mask(path), factor)[::factor, ::factor].copy() for path in images]
        self.num_classes = max(int(mask.max()) for mask in self.masks) + 1
        self.holders = {
            label: [i for i, mask in enumerate(self.masks) if (mask == label).any()]
            for label in range(1, self.num_classes)
        }
        self.holders = {label: holders for label, holders in self.holders.items() if holders}

    @lru_cache(maxsize=8192)  # noqa: B019 - one instance lives as long as the run
    def latents(self, index: int, turn: int, shift: int = 0) -> np.ndarray:
        """float32 (C, H, W) of an image after one of the eight rotations and reflections, moved for ``shift`` > 0."""
        factor = self.autoencoder.factor
        turned = dihedral(whole_latents(read_image(self.images[index]), factor), turn)
        if shift:
            rng = np.random.default_rng((self.seed, 5, index, turn, shift))
            down, right = rng.integers(factor, size=2).tolist()
            turned = np.pad(turned, ((0, down), (0, right), (0, 0)), "reflect")[down:, right:]
        with torch.no_grad():
            return self.autoencoder.encode(to_tensor([turned]).to(self.device))[0].cpu().contiguous().numpy()

    @lru_cache(maxsize=4096)  # noqa: B019
    def places(self, index: int, label: int) -> tuple[np.ndarray, ...]:
        """Rows and columns of the label in an image's map."""
        return np.nonzero(self.masks[index] == label)

    def corner(self, rng: np.random.Generator, index: int, label: int) -> tuple[int, int]:
        """Top-left of a window, near a position of ``label`` if that is not 0."""
        h, w = self.masks[index].shape
        if not label:
            return int(rng.integers(h - self.side + 1)), int(rng.integers(w - self.side + 1))
        rows, columns = self.places(index, label)
        at = int(rng.integers(len(rows)))
        y, x = (int(v[at]) - int(rng.integers(self.side)) for v in (rows, columns))
        return min(max(y, 0), h - self.side), min(max(x, 0), w - self.side)

    def window(self, position: int) -> tuple[np.ndarray, int, np.ndarray]:
        """Latents (C, side, side), a label (0: null) and its 0/1 map (1, side, side)."""
        rng = np.random.default_rng((self.seed, 2, position))
        wanted = int(rng.choice(list(self.holders))) if self.holders and rng.random() < self.balance else 0
        index = int(rng.choice(self.holders[wanted])) if wanted else int(rng.integers(len(self.images)))
        corner = self.corner(rng, index, wanted)
        turn = int(rng.integers(8))
        y, x = turned_corner(corner, self.masks[index].shape, self.side, turn)
        box = (slice(y, y + self.side), slice(x, x + self.side))
        mask = dihedral(self.masks[index], turn)[box]
        present = np.flatnonzero(np.bincount(mask.ravel(), minlength=self.num_classes)[1:]) + 1
        label = 0 if not len(present) or rng.random() < self.drop else int(rng.choice(present))
        if label and wanted and rng.random() < self.own_label:
            label = wanted
        shift = int(rng.integers(self.shifts))
        return self.latents(index, turn, shift)[(slice(None), *box)], label, (mask == label)[None] & (label > 0)


def turned_corner(corner: tuple[int, int], shape: tuple[int, ...], side: int, turn: int) -> tuple[int, int]:
    """Where the top left corner of a window lies after ``dihedral`` of the image around it.

    >>> turned_corner((1, 2), (10, 12), 4, 1), turned_corner((1, 2), (10, 12), 4, 4)
    ((6, 1), (1, 6))
    """
    (y, x), (h, w) = corner, shape
    for _ in range(turn % 4):
        y, x, h, w = w - side - x, y, w, h
    return (y, w - side - x) if turn >= 4 else (y, x)


def whole_latents(image: np.ndarray, factor: int) -> np.ndarray:
    """An image or label map without the rows and columns at its end that fill no whole latent."""
    h, w = (n // factor * factor for n in image.shape[:2])
    return image[:h, :w]


def stacked(windows: list[tuple[np.ndarray, int, np.ndarray]]) -> Batch:
    """Windows as tensors: latents (B, C, h, w), labels (B,) and their maps (B, 1, h, w)."""
    latents, labels, masks = zip(*windows, strict=True)
    return torch.from_numpy(np.stack(latents)), torch.tensor(labels), torch.from_numpy(np.stack(masks)).float()


def timesteps(count: int, total: int, generator: torch.Generator, min_snr: float) -> Tensor:
    """Of a batch: spread evenly in probability, uniform where the loss is weighed by ``min_snr``.

    Otherwise a third of them are uniform; the others logit-normal about the levels at which nuclei and fibres take
    shape, where there is most to learn (Karras et al. 2022, arXiv:2206.00364, section 5).
    """
    spread = spread_evenly(count, generator)
    if not min_snr:
        curved = torch.sigmoid(-0.3 + 0.9 * torch.special.ndtri(spread.double())).float()
        uniform = torch.rand(count, generator=generator) < UNIFORM_SHARE
        spread = torch.where(uniform, spread, curved)
    return (spread * total).long().clamp(max=total - 1)


def denoising_loss(
    network: nn.Module, schedule: Schedule, batch: Batch, generator: torch.Generator, device: str, min_snr: float
) -> Tensor:
    """Mean squared error of the velocity over a batch."""
    x0, label, mask = (part.to(device, non_blocking=True) for part in batch)
    t = timesteps(len(x0), schedule.num_train_timesteps, generator, min_snr)
    return velocity_loss(lambda x, t: network(x, t, label, mask), schedule, x0, t, generator, device, min_snr)


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

    x = denoise(guided, schedule, x, schedule.timesteps(25).tolist())
    with torch.no_grad():
        return image_grid(to_image(autoencoder.decode(x)), 4)


@torch.no_grad()
def judge(
    network: nn.Module, schedule: Schedule, windows: LatentWindows, device: str, min_snr: float, count: int = 64
) -> float:
    """The loss on ``count`` windows, the same at every call: it rises on unseen images where others are memorised."""
    batches = [stacked([windows.window(p) for p in range(first, first + 16)]) for first in range(0, count, 16)]
    losses = []
    for index, batch in enumerate(batches):
        generator = torch.Generator().manual_seed(index)
        losses.append(float(denoising_loss(network, schedule, batch, generator, device, min_snr)))
    return float(np.mean(losses))


def check_names(names: Sequence[str], labels: int) -> None:
    """Refuse names for some of the labels alone.

    Raises:
        ValueError: the label maps hold more labels than there are names.
    """
    if names and len(names) < labels:
        raise ValueError(
            f"`labels` names {len(names)} ({', '.join(names)}) but the label maps hold {labels}, 0 to {labels - 1}; "
            "name them all, or none"
        )


def train(
    data: Path,
    out: Path,
    settings: LoopSettings,
    ranks: Ranks,
    *,
    window: int,
    drop: float,
    balance: float,
    own_label: float,
    shifts: int,
    min_snr: float,
    held: int,
    init: Path | None,
    resume: bool,
    device: str,
    names: Sequence[str],
    pixel_size_um: float,
    **config,
) -> bool:
    """Train the label-conditional U-Net on the latents of ``out/vae``; write ``out/unet``. Collective.

    Args:
        window: side in latents.
        drop: share of the windows trained without their label.
        balance: share of the windows about a label drawn evenly.
        own_label: share of those that are of that label.
        shifts: number of places of the latents' lattice on every turned image.
        min_snr: as in ``velocity_loss``.
        held: number of images kept from the training.
        init: model folder whose image network is started from. Its autoencoder is copied where ``out`` has none.
        config: ``dim`` and ``dim_mults`` of the network.
    Returns:
        Whether the training came to its end.
    """
    every = ranks.agree(lambda: find_images(data))
    kept = ranks.agree(lambda: hold_out(every, held))
    images = [path for path in every if path not in kept]
    if init is not None and not (out / "vae").exists() and (init / "vae").is_dir():
        without_states = shutil.ignore_patterns("*training.*", "*.png")
        ranks.on_root(lambda: shutil.copytree(init / "vae", out / "vae", ignore=without_states))
    autoencoder = ranks.agree(lambda: load_autoencoder(out))
    autoencoder.to(device)

    def windows_of(images: list[Path], shifts: int) -> LatentWindows:
        return LatentWindows(autoencoder, images, window, drop, settings.seed, device, balance, own_label, shifts)

    windows = ranks.agree(lambda: windows_of(images, shifts))
    ranks.agree(lambda: check_names(names, windows.num_classes))
    judged = ranks.agree(lambda: windows_of(kept, 1)) if kept else None
    torch.manual_seed(settings.seed)
    config |= {"num_classes": windows.num_classes, "channels": autoencoder.config["latent_channels"]}
    network = MaskUNet(**config)
    if init is not None:
        ranks.agree(lambda: start_weights(network, network.config, init))
    schedule = Schedule.from_config(SCHEDULER)

    def prepare(positions: list[int]) -> Batch:
        return stacked([windows.window(p) for p in positions])

    def loss(batch: Batch, generator: torch.Generator) -> Tensor:
        return denoising_loss(network, schedule, batch, generator, device, min_snr)

    def save(averaged: nn.Module) -> None:
        if judged:
            seen, unseen = (judge(averaged, schedule, of, device, min_snr) for of in (windows, judged))
            print(f"loss of the average {seen:.4f}, {unseen:.4f} on images held out", flush=True)
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
    return fit(network, out / "unet", settings, ranks, prepare, loss, save, resume=resume, device=device, said=said)
