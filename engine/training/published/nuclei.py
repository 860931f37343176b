"""``python -m engine.train nuclei``: the nuclei system's network of pixels under a semantic map (its repository's
``image_train.py``, after Wang et al. 2022, arXiv:2207.00050).
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from engine.diffusion.schedule import Schedule
from engine.inputs.dataset_folder import PARTS, SPLITS
from engine.inputs.nuclei import published_channels
from engine.inputs.nuclei_scan import scan_nuclei
from engine.models.networks.spade_unet import Attention, ResBlock, SpadeUNet
from engine.planning.geometry import Box
from engine.storage.picture_folder import PictureFolder
from engine.training.data import number_at, spread
from engine.training.diffusion import denoise
from engine.training.loop import image_grid
from engine.training.published.common import Example, Task, Windows, picture_size
from engine.training.recipe import PREDICTIONS
from engine.training.start import start_weights

BETAS = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
LEAST_AREA = 30  # px: smaller nuclei are flat, as in sampling
LEAST_SCALE = 0.8  # of an augmented crop's share of the image's smaller side
STRUCTURE = ("hv", "edges")
SHOWN, LEVELS = 4, 25


@dataclass(frozen=True)
class NucleiSettings:
    """What is trained, as ``python -m engine.train nuclei --help`` says."""

    window: int
    map_channels: int
    image_channels: int
    model_channels: int
    channel_mult: Sequence[float]
    blocks: int
    attention: Sequence[int]
    head_channels: int
    noise_schedule: str
    dropout: float
    drop: float
    drop_structure_only: bool
    preserve: bool
    augment: bool
    subsample: float
    hold_out: int
    loss: str
    prediction: str
    timesteps: str
    pixel_size: float
    validation_windows: int
    seed: int


class NucleiImages:
    """A dataset's pictures with their instance maps, and windows of them.

    Args:
        folder: Its folder, with ``images`` and ``inst_masks``.
        names: Stems of those that are used; None: all.
    Raises:
        ValueError: a folder is missing, or a picture has no map or one of another size, or is smaller than a window.
    """

    def __init__(self, folder: Path, settings: NucleiSettings, names: Sequence[str] | None = None) -> None:
        self.settings = settings
        self.pictures = opened(folder, "appearance", color=settings.image_channels == 3)
        self.maps = opened(folder, "instances")
        masks = folder / PARTS["appearance_mask"]
        if settings.preserve and not masks.is_dir():
            raise ValueError(f"`preserve` needs {masks}, which says where nuclei are; add it, or leave `preserve` out")
        self.masks = opened(folder, "appearance_mask") if settings.preserve else None
        stems = {stem: index for index, stem in enumerate(self.maps.names)}
        missing = [stem for stem in self.pictures.names if stem not in stems]
        if missing:
            raise ValueError(
                f"{self.pictures.path} holds {missing[0]} but {self.maps.path} no map of it "
                f"({len(missing)} such in all); add it, or remove the picture"
            )
        unmasked = [stem for stem in self.pictures.names if self.masks is not None and stem not in self.masks.names]
        if unmasked and self.masks is not None:
            raise ValueError(
                f"{self.pictures.path} holds {unmasked[0]} but {self.masks.path} no mask of it ({len(unmasked)} such "
                "in all); add it, or leave out `preserve`"
            )
        wanted = range(len(self.pictures)) if names is None else [self.pictures.names.index(name) for name in names]
        self.pairs = [(index, stems[self.pictures.names[index]]) for index in wanted]
        for index, map_index in self.pairs:
            self.check(index, map_index)

    def check(self, index: int, map_index: int) -> None:
        """Refuse a picture that is smaller than a window, or whose map has another size. Reads the headers alone."""
        path, of_map = self.pictures.paths[index], self.maps.paths[map_index]
        size, map_size = picture_size(path), picture_size(of_map)
        if size != map_size:
            raise ValueError(
                f"{path} is {size[0]} x {size[1]} px but its map {of_map} is {map_size[0]} x {map_size[1]} px"
            )
        if min(size) < self.settings.window:
            raise ValueError(
                f"{path} is {size[0]} x {size[1]} px, smaller than a window of {self.settings.window}; "
                "choose a smaller `window`"
            )

    def __len__(self) -> int:
        return len(self.pairs)

    def example(self, position: int, rng: np.random.Generator) -> Example:
        """A window at a position of the run: every epoch visits each picture once, in an order of its own."""
        picture, instances, mask = self.window(position, rng)
        semantic = semantic_map(picture, instances, mask, self.settings.map_channels, rng)
        return Example(picture / np.float32(127.5) - np.float32(1), {"map": self.dropped(semantic, rng)})

    def window(self, position: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """uint8 (C, p, p) of a picture, its instances (p, p), and where it has nuclei, if that matters."""
        index, map_index = self.pairs[number_at(position, len(self.pairs), self.settings.seed)]
        picture = np.asarray(self.pictures[index])
        picture = picture[None] if picture.ndim == 2 else np.moveaxis(picture[..., :3], -1, 0)
        if self.settings.image_channels == 3 and len(picture) == 1:
            picture = np.repeat(picture, 3, 0)
        if len(picture) != self.settings.image_channels or picture.dtype != np.uint8:
            raise ValueError(
                f"{self.pictures.paths[index]} has {len(picture)} channels of {picture.dtype}; `image_channels` "
                f"{self.settings.image_channels} takes as many of uint8"
            )
        layers = [picture, np.asarray(self.maps[map_index])[None]]
        if self.masks is not None:
            layers.append(np.asarray(self.masks[self.masks.names.index(self.pictures.names[index])])[None])
        if self.settings.augment:
            layers = [layer[..., ::-1] for layer in layers] if rng.random() < 0.5 else layers
            layers = self.scaled(layers, rng)
        side = self.settings.window
        y, x = (int(rng.integers(n - side + 1)) for n in layers[0].shape[1:])
        cut = [np.ascontiguousarray(layer[:, y : y + side, x : x + side]) for layer in layers]
        return cut[0], cut[1][0], cut[2][0] if self.masks is not None else None

    def scaled(self, layers: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
        """A picture and its maps so large that a window is 0.8 to 1 of their smaller side."""
        side, (height, width) = self.settings.window, layers[0].shape[1:]
        smaller = int(rng.integers(side, math.ceil(side / LEAST_SCALE) + 1))
        scale = smaller / min(height, width)
        size = round(width * scale), round(height * scale)
        ways = [Image.Resampling.BICUBIC] + [Image.Resampling.NEAREST] * (len(layers) - 1)
        return [
            np.stack([resized(channel, size, way) for channel in layer])
            for layer, way in zip(layers, ways, strict=True)
        ]

    def dropped(self, semantic: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The map, or with a share ``drop`` zeros: all of it, or its structure alone."""
        if rng.random() >= self.settings.drop:
            return semantic
        if not self.settings.drop_structure_only:
            return np.zeros_like(semantic)
        kept, start = semantic.copy(), 0
        for part in published_channels(self.settings.map_channels):
            channels = {"hv": 2, "color": 3, "edges": 1}[part]
            if part in STRUCTURE:
                kept[start : start + channels] = 0
            start += channels
        return kept


def opened(folder: Path, part: str, color: bool = False) -> PictureFolder:
    """A folder of a dataset.

    Raises:
        ValueError: it is not there, or holds no pictures.
    """
    if not (folder / PARTS[part]).is_dir():
        raise ValueError(f"`data` {folder} holds no folder {PARTS[part]}; it takes {' and '.join(PARTS.values())}")
    return PictureFolder(folder / PARTS[part], "`data`", color)


def resized(channel: np.ndarray, size: tuple[int, int], way: Image.Resampling) -> np.ndarray:
    """One channel of a picture at another (width, height)."""
    image = Image.fromarray(channel if channel.dtype == np.uint8 else channel.astype(np.int32))
    return np.asarray(image.resize(size, way)).astype(channel.dtype)


def semantic_map(
    picture: np.ndarray, instances: np.ndarray, mask: np.ndarray | None, channels: int, rng: np.random.Generator
) -> np.ndarray:
    """float32 (K, p, p): a window's map, as sampling makes it of an image of that size.

    Args:
        picture: uint8 (C, p, p), whose pixels in random order are the colours.
        mask: Not 0 where the picture has nuclei, whose pixels are then shuffled among themselves; None: it does not
            matter.
    """
    shape: tuple[int, int] = instances.shape  # type: ignore[assignment]
    read = lambda _, box: instances[box.y0 : box.y1, box.x0 : box.x1]  # noqa: E731
    nuclei = scan_nuclei(read, shape, border="published", least_area=LEAST_AREA, split=True, empty=True)
    colors = lambda window, nuclear: shuffled(picture, mask, rng)  # noqa: E731
    return nuclei.maps(partial(read, 0), Box(0, 0, *shape), published_channels(channels), colors)


def shuffled(picture: np.ndarray, mask: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    """float32 (3, h, w), -1..1: the pixels of a picture in random order, or those of each kind."""
    pixels = np.repeat(picture, 3 // len(picture), 0).reshape(3, -1)
    order = np.arange(pixels.shape[1])
    kinds = np.zeros(len(order), bool) if mask is None else mask.reshape(-1) != 0
    for kind in (False, True):
        places = np.flatnonzero(kinds == kind)
        order[places] = rng.permutation(places)
    return pixels[:, order].reshape(3, *picture.shape[1:]) / np.float32(127.5) - np.float32(1)


def read_names(path: Path, names: Sequence[str], data: Path) -> tuple[list[str], list[str]]:
    """The pictures that a list names, and those of them that are not trained on: lines NAME or NAME,train or NAME,test.

    Raises:
        ValueError: a line names no picture, or is none of these, or there is nothing to train on.
    """
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(path.read_text().splitlines()) if row]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"`list` {path} cannot be read ({error})") from None
    chosen: dict[str, list[str]] = {"train": [], "test": []}
    for number, (name, *rest) in enumerate(rows, 1):
        part = rest[0] if rest else "train"
        if name not in names:
            raise ValueError(f"`list` {path}, line {number}: {data} holds no picture {name}; remove it")
        if part not in chosen or len(rest) > 1:
            raise ValueError(f"`list` {path}, line {number}: {','.join(rest)!r} is neither train nor test")
        chosen[part].append(name)
    if not chosen["train"]:
        raise ValueError(f"`list` {path} names no pictures to train on")
    return chosen["train"], chosen["test"]


def datasets(
    data: Path, settings: NucleiSettings, listed: Path | None = None
) -> tuple[NucleiImages, NucleiImages | None]:
    """The images that are trained on, and those that are not.

    ``data`` is a dataset's folder, of which ``hold_out`` pictures are kept; or the folder above, with
    ``MoNuSegTrainingData`` and perhaps ``MoNuSegTestData``, which the training then does not see.

    Args:
        listed: List of the pictures that are used; None: all.
    Raises:
        ValueError: it is neither.
    """
    train, test = (data / name for name in SPLITS)
    judging = replace(settings, augment=False, drop=0.0)
    folder = train if train.is_dir() else data
    every = list(opened(folder, "appearance").names)
    learned, held = read_names(listed, every, folder) if listed is not None else (every, [])
    if train.is_dir() or held:
        if settings.hold_out:
            by = f"{test.name} of `data` {data}" if train.is_dir() else f"`list` {listed}"
            raise ValueError(f"`hold_out` {settings.hold_out}: {by} says what is held out; leave it out")
    else:
        held = [learned[number] for number in spread(settings.hold_out, len(learned), data)]
        learned = [name for name in learned if name not in held]
    images = NucleiImages(folder, settings, subsampled(learned, settings.subsample))
    if train.is_dir():
        return images, NucleiImages(test, judging) if test.is_dir() else None
    return images, NucleiImages(data, judging, held) if held else None


def subsampled(names: Sequence[str], share: float, seed: int = 42) -> list[str]:
    """A share of the names, drawn once for all runs: at least one.

    >>> len(subsampled([str(i) for i in range(10)], 0.3))
    3
    """
    count = max(round(share * len(names)), 1)
    chosen = np.random.default_rng(seed).permutation(len(names))[:count]
    return [names[index] for index in sorted(chosen.tolist())]


def evaluate(network: nn.Module, x: Tensor, t: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    return network(x, t, inputs["map"])


def task_of(data: Path, settings: NucleiSettings, init: Path | None, device: str, listed: Path | None = None) -> Task:
    """The training that the settings ask for.

    Raises:
        ValueError: the data or the start weights do not fit them.
    """
    learned, unlearned = datasets(data, settings, listed)
    torch.manual_seed(settings.seed)
    network = SpadeUNet(
        settings.map_channels,
        settings.image_channels,
        2 * settings.image_channels,
        settings.model_channels,
        settings.channel_mult,
        settings.blocks,
        [settings.window // side for side in settings.attention],
        num_head_channels=settings.head_channels,
        resblock_updown=True,
        dropout=settings.dropout,
    )
    zero_ends(network)
    if init is not None:
        start_weights(network, network.config, init)
    scheduler = scheduler_of(settings.noise_schedule, settings.prediction)

    def picture(averaged: nn.Module) -> np.ndarray:
        return sample_grid(averaged, unlearned or learned, scheduler, device)

    return Task(
        network,
        evaluate,
        scheduler,
        card_of(settings),
        {"unet": ["slidefield", "SpadeUNet"]},
        Windows(learned.example, settings.seed),
        None if unlearned is None else Windows(unlearned.example, settings.seed),
        picture,
        settings.loss,
        settings.timesteps,
        f"{len(learned)} images" + (f", {len(unlearned)} held out" if unlearned else ""),
        settings.validation_windows,
    )


def zero_ends(network: SpadeUNet) -> None:
    """Let every residual block, every attention and the network itself begin as nothing, as guided diffusion does."""
    blocks = [module for module in network.modules() if isinstance(module, ResBlock)]
    attention = [module for module in network.modules() if isinstance(module, Attention)]
    lasts = [*(block.out_layers[-1] for block in blocks), *(each.proj_out for each in attention), network.out[-1]]
    for parameter in chain.from_iterable(layer.parameters() for layer in lasts):
        nn.init.zeros_(parameter)


def scheduler_of(noise_schedule: str, prediction: str = "epsilon") -> dict[str, Any]:
    """As ``engine.models.convert sdm`` writes it of a checkpoint of the system, where the noise is predicted."""
    ends = {"beta_start": 1e-4, "beta_end": 0.02} if noise_schedule == "linear" else {}
    return {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": 1000,
        "beta_schedule": BETAS[noise_schedule],
        **ends,
        "prediction_type": PREDICTIONS[prediction],
        "variance_type": "learned_range",
        "clip_sample": True,
        "clip_sample_range": 1.0,
        "rederive_noise": True,
        "timestep_spacing": "smallest_stride",
    }


def card_of(settings: NucleiSettings) -> dict[str, Any]:
    card: dict[str, Any] = {
        "condition": "semantic",
        "space": "pixels",
        "patch_size": settings.window,
        "pixel_size_um": settings.pixel_size,
        "defaults": {
            "steps": 1000,
            "solver": "ddpm",
            "guidance": 1.5,
            "batch_size": 8,
            "least_area": LEAST_AREA,
            "torn_nuclei": "split",
        },
    }
    return card | ({"guided_channels": 2} if settings.image_channels == 1 else {})


def sample_grid(network: nn.Module, images: NucleiImages, scheduler: dict[str, Any], device: str) -> np.ndarray:
    """A row of pictures, a row of samples under their maps: uint8 (h, w, 3)."""
    batch = Windows(images.example, 1).batch(range(SHOWN), stream=1)
    schedule, semantic = Schedule.from_config(scheduler), batch.inputs["map"].to(device)
    x = batch.noise.to(device)
    channels = x.shape[1]
    levels = schedule.timesteps(LEVELS).tolist()
    made = denoise(lambda x, t: network(x, t, semantic)[:, :channels], schedule, x, levels)
    both = torch.cat([batch.x0, made.cpu()]).clamp(-1, 1).movedim(1, -1).expand(-1, -1, -1, 3)
    return image_grid(((both + 1) * 127.5).round().to(torch.uint8).numpy(), SHOWN)
