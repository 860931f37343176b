"""``python -m engine.train labels``: the class-conditional network of label maps, one channel a label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from engine.diffusion.schedule import Schedule, betas
from engine.distributed.ranks import Ranks
from engine.models.card import color, colored
from engine.models.networks.mask_unet import LabelUNet
from engine.training.data import IMAGE_SUFFIXES, dihedral, hold_out, mask_of, paths_below, read_picture
from engine.training.diffusion import denoise, fit, spread_evenly, velocity_loss, write_folder
from engine.training.loop import LoopSettings, image_grid
from engine.training.start import start_weights

MAP_SUFFIXES = (".png", ".tif", ".tiff")
TIMESTEPS = 1000
SHIFT = 0.25  # factor of signal over noise: large areas of a label show through more noise than texture does
RICH = 1 / 8  # a window's class is its commonest label besides 0, if that covers this share of it
BEND = 3.0  # std, in label pixels, of a window's random bending: without it few maps are learned by heart


def shifted_cosine(shift: float = SHIFT, timesteps: int = TIMESTEPS) -> list[float]:
    """Betas of the cosine schedule with signal over noise times ``shift`` (Hoogeboom et al. 2023, arXiv:2301.11093)."""
    signal = np.cumprod(1 - betas("squaredcos_cap_v2", timesteps)) * shift**2
    alpha_bar = signal / (signal + 1 - signal / shift**2)
    return [float(f"{b:.9g}") for b in 1 - alpha_bar / np.concatenate([[1.0], alpha_bar[:-1]])]


SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "num_train_timesteps": TIMESTEPS,
    "prediction_type": "v_prediction",
    "set_alpha_to_one": True,
    "timestep_spacing": "trailing",
    "trained_betas": shifted_cosine(),
}


def find_maps(folder: Path) -> list[Path]:
    """All PNG and TIFF images of one channel below a folder, sorted.

    Raises:
        ValueError: there is none.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; `data` is a folder of label maps (PNG or TIFF, one channel)")
    paths = []
    for path in paths_below(folder, MAP_SUFFIXES):
        with Image.open(path) as image:
            if len(image.getbands()) == 1:
                paths.append(path)
    if not paths:
        raise ValueError(f"no label map (PNG or TIFF of one channel) below {folder}")
    return paths


def read_map(path: Path, count: int) -> np.ndarray:
    """uint8 (h, w) labels below ``count``, from a map of labels or of ``label / (count - 1) * 255``, however rounded.

    Raises:
        ValueError: the map is neither.
    """
    values = read_picture(path).astype(np.int64)
    if values.max() < count:
        return values.astype(np.uint8)
    apart = 255 / (count - 1)
    labels = np.rint(values / apart)
    stray = values[(np.abs(values - labels * apart) >= 1) | (labels >= count)]
    if len(stray):
        raise ValueError(
            f"{path} holds {stray[0]}: neither a label below {count} nor one spread over 0 to 255; "
            "name all its labels with `labels`"
        )
    return labels.astype(np.uint8)


def window_classes(labels: np.ndarray, side: int, count: int) -> np.ndarray:
    """The class of the window at every corner: its commonest label besides 0, or 0 where that is rare.

    Returns:
        int64 (H - side + 1, W - side + 1).
    """
    areas = []
    for label in range(1, count):
        total = np.pad((labels == label).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        areas.append(total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side])
    most = np.argmax(areas, 0) + 1
    return np.where(np.max(areas, 0) >= RICH * side**2, most, 0)


@dataclass(frozen=True)
class LabelWindows:
    """Windows of label maps with the class each is of. A window is a function of (seed, position in the run).

    Class 0 is any window; class k > 0 a window whose commonest label besides 0 is k. Classes are drawn evenly; among
    the maps of a class one is drawn by the root of how many windows it has room for, so that large maps do not crowd
    out small ones.

    Args:
        maps: uint8 label maps in image pixels.
        count: labels.
        side: of a window, in label pixels.
        scale: image pixels a label pixel.
    """

    maps: list[np.ndarray]
    count: int
    side: int
    scale: int
    seed: int

    @cached_property
    def corners(self) -> list[list[np.ndarray]]:
        """For every class and map, the flat indices of the corners of its windows."""
        half = self.scale // 2
        of_maps = [window_classes(m[half :: self.scale, half :: self.scale], self.side, self.count) for m in self.maps]
        every = [[np.arange(classes.size) for classes in of_maps]]
        return every + [[np.flatnonzero(classes == k) for classes in of_maps] for k in range(1, self.count)]

    @cached_property
    def chances(self) -> list[np.ndarray]:
        """For every class, the chance of each map; all zero where no map has a window of the class."""
        rooms = [m.size / (self.side * self.scale) ** 2 for m in self.maps]
        chances = []
        for of_class in self.corners:
            shares = [len(c) / len(e) for c, e in zip(of_class, self.corners[0], strict=True)]
            weights = np.sqrt(np.multiply(shares, rooms))
            chances.append(weights / max(weights.sum(), 1e-12))
        return chances

    @cached_property
    def classes(self) -> list[int]:
        """The classes that some map has a window of."""
        return [k for k, chances in enumerate(self.chances) if chances.sum() > 0]

    def window(self, position: int) -> tuple[np.ndarray, int]:
        """uint8 labels (side, side) and their class."""
        rng = np.random.default_rng((self.seed, 4, position))
        asked = int(rng.choice(self.classes))
        index = int(rng.choice(len(self.maps), p=self.chances[asked]))
        labels = self.maps[index]
        width = -(-(labels.shape[1] - self.scale // 2) // self.scale) - self.side + 1
        corner = divmod(int(rng.choice(self.corners[asked][index])), width)
        rows, columns = (
            np.clip(np.rint(places), 0, n - 1).astype(np.int64)
            for places, n in zip(self.places(corner, rng), labels.shape, strict=True)
        )
        return dihedral(labels[rows, columns], int(rng.integers(8))), asked

    def places(self, corner: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        """float64 (2, side, side): where in the map a window's label pixels are read, gently bent and jittered."""
        knots = np.linspace(0, self.side - 1, 4)
        pixels = np.arange(self.side)
        hats = np.maximum(1 - np.abs(pixels[:, None] - knots) / knots[1], 0)
        bend = hats @ (rng.standard_normal((2, 4, 4)) * BEND) @ hats.T
        straight = np.stack(np.meshgrid(pixels + corner[0], pixels + corner[1], indexing="ij"))
        jitter = rng.uniform(0, 1, (2, 1, 1)) - 0.5
        return (straight + bend + jitter + 0.5) * self.scale - 0.5


def one_hot(labels: np.ndarray, count: int) -> Tensor:
    """Labels (B, h, w) -> float32 (B, count, h, w): +1 in the channel of the label, -1 in the others.

    >>> one_hot(np.array([[[1, 0]]]), 2).tolist()
    [[[[-1.0, 1.0]], [[1.0, -1.0]]]]
    """
    channels = np.arange(count)[:, None, None]
    return torch.from_numpy(np.where(labels[:, None] == channels, 1.0, -1.0).astype(np.float32))


def read_windows(data: Path, count: int, side: int, scale: int, seed: int, held: int = 0) -> LabelWindows:
    """The windows of the label maps below a folder, but for those of ``held`` images.

    Raises:
        ValueError: there are none, one is no label map, or is smaller than a window.
    """
    paths = find_maps(data)
    images = [path for path in paths_below(data, IMAGE_SUFFIXES) if mask_of(path).exists()]
    kept = [mask_of(path) for path in hold_out(images, held)]
    paths = [path for path in paths if path not in kept]
    maps = [read_map(path, count) for path in paths]
    for path, labels in zip(paths, maps, strict=True):
        if min(labels.shape) < side * scale:
            raise ValueError(
                f"{path} is {labels.shape[0]} x {labels.shape[1]} px, smaller than a window of {side * scale}: "
                f"`window` is {side} label pixels of `scale` {scale} px; choose a smaller `window`"
            )
    return LabelWindows(maps, count, side, scale, seed)


def sample_grid(network: nn.Module, schedule: Schedule, side: int, device: str, steps: int = 20) -> np.ndarray:
    """One row a class, without guidance: uint8 picture."""
    config: dict = network.config  # type: ignore[assignment]
    classes = torch.arange(config["num_classes"], device=device).repeat_interleave(4)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(len(classes), config["channels"], side, side, generator=generator).to(device)
    x = denoise(lambda x, t: network(x, t, classes), schedule, x, schedule.timesteps(steps).tolist())
    palette = np.array([color(label) for label in range(config["channels"])], np.uint8)
    return image_grid(np.pad(palette[x.argmax(1).cpu().numpy()], ((0, 0), (1, 1), (1, 1), (0, 0))), 4)


def train(
    data: Path,
    out: Path,
    settings: LoopSettings,
    ranks: Ranks,
    *,
    window: int,
    scale: int,
    drop: float,
    names: Sequence[str],
    pixel_size_um: float,
    held: int,
    init: Path | None,
    resume: bool,
    device: str,
    **config,
) -> bool:
    """Train the network of label maps and write the model folder ``out``. Collective over ``ranks``.

    Args:
        window: side in label pixels.
        scale: image pixels a label pixel.
        drop: share of the windows trained without their class.
        names: of the labels, 0 first.
        pixel_size_um: of the images that the maps are of.
        held: number of the images whose label maps are kept from the training, as from that of the other networks.
        init: model folder whose network is started from.
        config: ``dim`` and ``dim_mults`` of the network.
    Returns:
        Whether the training came to its end.
    """
    count = len(names)
    windows = ranks.agree(lambda: read_windows(data, count, window, scale, settings.seed, held))
    torch.manual_seed(settings.seed)
    network = LabelUNet(num_classes=count, channels=count, attention_from=1, **config)
    if init is not None:
        ranks.agree(lambda: start_weights(network, network.config, init))
    schedule = Schedule.from_config(SCHEDULER)

    def prepare(positions: list[int]) -> tuple[Tensor, Tensor]:
        labels, classes = zip(*(windows.window(p) for p in positions), strict=True)
        return one_hot(np.stack(labels), count), torch.tensor(classes)

    def loss(batch: tuple[Tensor, Tensor], generator: torch.Generator) -> Tensor:
        x0, classes = batch
        dropped = torch.rand(len(classes), generator=generator) < drop
        asked = torch.where(dropped, -1, classes).to(device, non_blocking=True)
        t = (spread_evenly(len(classes), generator) * TIMESTEPS).long().clamp(max=TIMESTEPS - 1)
        return velocity_loss(lambda x, t: network(x, t, asked), schedule, x0, t, generator, device)

    def save(averaged: nn.Module) -> None:
        Image.fromarray(sample_grid(averaged, schedule, window, device)).save(out / "unet" / "samples.png")
        facts = {
            "role": "labels",
            "condition": "class",
            "space": "pixels",
            "patch_size": window,
            "label_scale": scale,
            "label_count": count,
            "labels": colored(["tissue", *names[1:]]),
            "pixel_size_um": pixel_size_um * scale,
            "defaults": {"steps": 25, "solver": "ddpm", "guidance": 1.0, "batch_size": 3},
        }
        write_folder(out, {"unet": ["slidefield", "LabelUNet"]}, SCHEDULER, facts)

    said = f"{len(windows.maps)} label maps, windows of {len(windows.classes)} classes"
    return fit(network, out / "unet", settings, ranks, prepare, loss, save, resume=resume, device=device, said=said)
