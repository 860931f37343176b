"""``python -m engine.train diffinfinite-image`` and ``diffinfinite-labels``: DiffInfinite's two networks, as its
``train.py`` and ``train_masks.py`` train them (Aversa et al. 2023, arXiv:2306.13384).
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.diffusion.schedule import Schedule
from engine.distributed.ranks import Ranks
from engine.inputs.resize import nearest_index
from engine.models.card import colored
from engine.models.codec import LatentCodec
from engine.models.convert.common import latents_defaults
from engine.models.convert.diffinfinite import LABEL_LATENTS_STD, LABELS
from engine.models.networks.mask_unet import Block, LabelUNet, MaskUNet, UNet
from engine.training.autoencoder import to_image
from engine.training.data import dihedral, find_images, hold_out, mask_of, paths_below
from engine.training.diffusion import denoise
from engine.training.loop import image_grid
from engine.training.published.common import (
    Example,
    Task,
    Windows,
    autoencoder_of,
    picture_size,
    read_picture,
    start_weights,
)

GROUPS, FACTOR, CHANNELS = 2, 8, 4  # of the networks' normalisation; of Stable Diffusion 2's autoencoder
LEVELS, SHOWN = 25, 4
MakeExample = Callable[[int, np.random.Generator], Example]
MAPS = (".png", ".tif", ".tiff")


@dataclass(frozen=True)
class DiffInfiniteSettings:
    """What is trained, as ``--help`` of the two commands says."""

    window: int
    dim: int
    dim_mults: Sequence[int]
    dropout: float
    drop: float
    pixel_size: float
    hold_out: int
    validation_windows: int
    seed: int


def scheduler() -> dict[str, Any]:
    """As ``engine.models.convert`` writes it of the published checkpoints."""
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": 1000,
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": "epsilon",
        "clip_sample": True,
        "clip_sample_range": 1.0,
        "rederive_noise": False,
        "timestep_spacing": "trailing",
        "set_alpha_to_one": True,
    }


def drop_features(network: nn.Module, share: float) -> None:
    """Set a share of the features after every block of convolutions to 0, while the network is trained."""

    def dropped(block: nn.Module, given: Any, features: Tensor) -> Tensor:
        return F.dropout(features, share, block.training)

    for module in network.modules():
        if isinstance(module, Block) and share:
            module.register_forward_hook(dropped)


def latent_task(
    make: Callable[[], UNet],
    shown: Mapping[str, Tensor],
    facts: Mapping[str, Any],
    learned: MakeExample,
    judged: MakeExample | None,
    said: str,
    settings: DiffInfiniteSettings,
    codec: LatentCodec,
    init: Path | None,
    ranks: Ranks,
    device: str,
) -> Task:
    """The training of either network on the latents of the autoencoder. Collective.

    Args:
        make: Function that makes the network.
        shown: What the pictures are drawn of: the network's inputs, in the order in which it takes them.
        facts: The values of ``card.json``.
        learned, judged: Functions that make the examples that are trained on and judged by.
    """
    torch.manual_seed(settings.seed)
    network = make()
    if init is not None:
        ranks.agree(lambda: start_weights(network, network.config, init))
    drop_features(network, settings.dropout)
    side, schedule = settings.window // FACTOR, Schedule.from_config(scheduler())
    latents, inputs = (CHANNELS, side, side), {name: value.to(device) for name, value in shown.items()}

    def evaluate(network: nn.Module, x: Tensor, t: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        return network(x, t, *(inputs[name] for name in shown))

    def picture(averaged: nn.Module) -> np.ndarray:
        x = torch.randn(len(shown["label"]), *latents, generator=torch.Generator().manual_seed(0)).to(device)
        levels = schedule.timesteps(LEVELS).tolist()
        made = denoise(lambda x, t: evaluate(averaged, x, t, inputs), schedule, x, levels)
        return image_grid(to_image(codec.decode(made)), SHOWN)

    return Task(
        network,
        evaluate,
        scheduler(),
        facts,
        {"unet": ["slidefield", type(network).__name__], "vae": ["diffusers", "AutoencoderKL"]},
        Windows(learned, settings.seed, latents),
        None if judged is None else Windows(judged, settings.seed, latents),
        picture,
        "mse",
        "uniform",
        said,
        settings.validation_windows,
        codec,
    )


# ---- images -------------------------------------------------------------------------------------


class LabelledImages:
    """Images with label maps, and images without, as windows of one label each.

    Half of the windows (``unlabelled``) have label 0 and are of any image; the others have a label drawn evenly, and
    are of an image that holds it, about a pixel of it where the image is larger than the window.

    Args:
        labelled: Images with a label map beside each.
        others: Images without.
        keep: Labels that are kept, numbered from 1 on in this order; all others but 0 are one more. Empty: all.
        side: Side of a window, px.
    """

    def __init__(
        self,
        labelled: Sequence[Path],
        others: Sequence[Path],
        keep: Sequence[int],
        side: int,
        unlabelled: float,
        ranks: Ranks,
    ) -> None:
        self.labelled, self.every, self.keep = list(labelled), [*labelled, *others], list(keep)
        self.side, self.unlabelled = side, unlabelled
        mine = self.labelled[ranks.rank :: ranks.size]
        ranks.agree(lambda: [self.size_of(path) for path in list(others)[ranks.rank :: ranks.size]])
        found = ranks.allgather(ranks.agree(lambda: [np.unique(self.map_of(path)).tolist() for path in mine]))
        held = [found[index % ranks.size][index // ranks.size] for index in range(len(self.labelled))]
        most = max((max(labels) for labels in held), default=0)
        self.count = len(self.keep) + 2 if self.keep else most + 1
        holders = {label: [i for i, labels in enumerate(held) if label in labels] for label in range(1, self.count)}
        self.holders = {label: indices for label, indices in holders.items() if indices}

    def map_of(self, path: Path) -> np.ndarray:
        """int64 (h, w): the label map of an image, with the labels that are kept.

        Raises:
            ValueError: it has another size than the image, or is no map.
        """
        mask = read_picture(mask_of(path))
        size = self.size_of(path)
        if mask.shape != size:
            raise ValueError(
                f"{mask_of(path)} has shape {mask.shape} but {path} is {size[0]} x {size[1]} px; a label map has one "
                "channel, and its image's size"
            )
        labels = mask.astype(np.int64)
        if not self.keep:
            return labels
        table = np.where(np.arange(labels.max() + 1) == 0, 0, len(self.keep) + 1)
        for number, label in enumerate(self.keep, 1):
            if label < len(table):
                table[label] = number
        return table[labels]

    def size_of(self, path: Path) -> tuple[int, int]:
        """Height and width of an image, from its header.

        Raises:
            ValueError: it is no picture, or smaller than a window.
        """
        height, width = picture_size(path)
        if min(height, width) < self.side:
            raise ValueError(
                f"{path} is {height} x {width} px, smaller than a window of {self.side}; choose a smaller `window`"
            )
        return height, width

    def example(self, position: int, rng: np.random.Generator) -> Example:
        """A window of one label: pixels in [-1, 1], its label, and its map at the latents."""
        if not self.holders or rng.random() < self.unlabelled:
            label, path = 0, self.every[int(rng.integers(len(self.every)))]
            picture, labels = read_picture(path, color=True), None
        else:
            label = int(rng.choice(list(self.holders)))
            path = self.labelled[int(rng.choice(self.holders[label]))]
            picture, labels = read_picture(path, color=True), self.map_of(path)
        y, x = self.corner(picture.shape[:2], labels, label, rng)
        box, turn = (slice(y, y + self.side), slice(x, x + self.side)), int(rng.integers(8))
        pixels = np.ascontiguousarray(np.moveaxis(dihedral(picture[box], turn), -1, 0))
        cells = nearest_index(0, self.side // FACTOR, self.side, self.side // FACTOR)
        mask = np.zeros((1, len(cells), len(cells)), np.float32)
        if labels is not None:
            mask[0] = dihedral(labels[box], turn)[np.ix_(cells, cells)] == label
        given = {"label": np.array(label), "mask": mask}
        return Example(pixels / np.float32(127.5) - np.float32(1), given)

    def corner(
        self, shape: tuple[int, ...], labels: np.ndarray | None, label: int, rng: np.random.Generator
    ) -> tuple[int, int]:
        """Top left of a window: anywhere, or about a pixel of its label."""
        if labels is None:
            return int(rng.integers(shape[0] - self.side + 1)), int(rng.integers(shape[1] - self.side + 1))
        places = np.argwhere(labels == label)
        at = places[int(rng.integers(len(places)))] - rng.integers(self.side, size=2)
        return tuple(int(np.clip(v, 0, n - self.side)) for v, n in zip(at, shape, strict=True))  # type: ignore[return-value]


def image_task(
    data: Path,
    unlabelled: Sequence[Path],
    out: Path,
    settings: DiffInfiniteSettings,
    *,
    keep: Sequence[int],
    names: Sequence[str],
    unlabelled_share: float,
    vae: Path | None,
    init: Path | None,
    ranks: Ranks,
    device: str,
) -> Task:
    """The training of the image network. Collective.

    Args:
        unlabelled: Folders of more images, all of label 0.
        vae: Autoencoder that is copied to ``out``; None: it is there.
    Raises:
        ValueError: the data do not fit the settings.
    """
    every = ranks.agree(lambda: find_images(data))
    more = ranks.agree(lambda: [path for folder in unlabelled for path in find_images(folder)])
    held = hold_out(every, settings.hold_out)
    kinds: dict[bool, list[Path]] = {True: [], False: []}
    for path in every:
        if path not in held:
            kinds[mask_of(path).exists()].append(path)
    of = partial(LabelledImages, keep=keep, side=settings.window, unlabelled=unlabelled_share, ranks=ranks)
    images = of(kinds[True], [*kinds[False], *more])
    judged = of([path for path in held if mask_of(path).exists()], []) if held else None
    side, known = settings.window // FACTOR, ranks.agree(lambda: names_of(names, images.count))
    facts = {
        "condition": "label-map",
        "space": "latents",
        "patch_size": side,
        "factor": FACTOR,
        "image_channels": 3,
        "pixel_size_um": settings.pixel_size,
        "labels": colored(known),
        "latents_scale": 50.0,
        "pixel_range": [0.0, 1.0],
        "defaults": latents_defaults(side, steps=250, eta=1.0, guidance=4.0),
    }
    labels = torch.arange(images.count).repeat_interleave(SHOWN)
    mask = (labels > 0).float()[:, None, None, None].expand(-1, 1, side, side)
    without = len(images.every) - len(images.labelled)
    return latent_task(
        lambda: MaskUNet(settings.dim, images.count, settings.dim_mults, CHANNELS, GROUPS),
        {"label": labels, "mask": mask},
        facts,
        images.example,
        None if judged is None else judged.example,
        f"{len(images.labelled)} images of {images.count} labels, {without} without",
        settings,
        autoencoder_of(vae, out, facts, ranks, device),
        init,
        ranks,
        device,
    )


def names_of(names: Sequence[str], count: int) -> list[str]:
    """A name for each label.

    Raises:
        ValueError: some have none.
    """
    if names and len(names) != count:
        raise ValueError(f"`labels` names {len(names)} ({', '.join(names)}) but the images have {count}; name them all")
    published = LABELS.get(count, ("unknown", *(f"label {label}" for label in range(1, count))))
    return list(names or published)


# ---- label maps ---------------------------------------------------------------------------------


class LabelMaps:
    """Label maps as pictures: grey, 2 v / (n - 1) - 1, each with the class of its slide.

    Args:
        classes: Class of each map.
        count: Number n of labels.
        drop: Share without their class (-1).
    """

    def __init__(self, paths: Sequence[Path], classes: Sequence[int], count: int, side: int, drop: float) -> None:
        self.paths, self.classes, self.count, self.side, self.drop = list(paths), list(classes), count, side, drop

    def example(self, position: int, rng: np.random.Generator) -> Example:
        index = int(rng.integers(len(self.paths)))
        labels = self.map_of(index)
        rows, columns = (nearest_index(0, self.side, n, self.side) for n in labels.shape)
        small = dihedral(labels[np.ix_(rows, columns)], int(rng.integers(8)))
        grey = 2 * small.astype(np.float32) / (self.count - 1) - 1
        asked = -1 if rng.random() < self.drop else self.classes[index]
        return Example(np.repeat(grey[None], 3, 0), {"label": np.array(asked)})

    def map_of(self, index: int) -> np.ndarray:
        """int64 (h, w).

        Raises:
            ValueError: it is no map, or holds a label that there is not.
        """
        path = self.paths[index]
        labels = read_picture(path)
        if labels.ndim != 2:
            raise ValueError(f"{path} has shape {labels.shape}; a label map has one channel")
        if int(labels.max()) >= self.count:
            raise ValueError(f"{path} holds the label {int(labels.max())} but `label_count` is {self.count}; name more")
        return labels.astype(np.int64)


def read_classes(path: Path, stems: Sequence[str]) -> tuple[list[int], list[str]]:
    """The class of each map, and the names of the classes, from a CSV of (name, class) with a line of headings.

    A map's name begins with that of its slide; the longest such counts.

    Raises:
        ValueError: a map has no class.
    """
    try:
        rows = [row for row in csv.reader(path.read_text().splitlines()[1:]) if len(row) >= 2]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"`classes` {path} cannot be read ({error})") from None
    said = {row[0].strip(): row[1].strip() for row in rows}
    names = sorted(set(said.values()))
    classes = []
    for stem in stems:
        fitting = [name for name in said if stem.startswith(name)]
        if not fitting:
            raise ValueError(f"`classes` {path} says no class of {stem}; add a line for it")
        classes.append(names.index(said[max(fitting, key=len)]))
    return classes, names


def label_task(
    data: Path,
    classes: Path | None,
    out: Path,
    settings: DiffInfiniteSettings,
    *,
    count: int,
    vae: Path | None,
    init: Path | None,
    ranks: Ranks,
    device: str,
) -> Task:
    """The training of the network of label maps. Collective.

    Args:
        classes: CSV of the class of each slide; None: all are of one.
        count: Number of labels.
        vae: Autoencoder that is copied to ``out``; None: it is there.
    Raises:
        ValueError: the data do not fit the settings.
    """

    def read() -> tuple[list[Path], list[int], list[str]]:
        if count not in LABEL_LATENTS_STD:
            raise ValueError(f"`label_count` is {count}; the scales of their latents are published for 5 and 10 alone")
        paths = paths_below(data, MAPS)
        masks = [path for path in paths if path.stem.endswith("_mask")] or paths
        if not masks:
            raise ValueError(f"no label map ({', '.join(MAPS)}) below {data}")
        if classes is None:
            return masks, [0] * len(masks), ["tissue"]
        return masks, *read_classes(classes, [path.stem for path in masks])

    paths, of_maps, names = ranks.agree(read)
    held = set(range(0, len(paths), len(paths) // settings.hold_out)) if settings.hold_out else set()

    def maps(which: Sequence[int]) -> LabelMaps:
        chosen = LabelMaps(
            [paths[i] for i in which], [of_maps[i] for i in which], count, settings.window, settings.drop
        )
        for index in range(ranks.rank, len(which), ranks.size):
            chosen.map_of(index)
        return chosen

    learned = ranks.agree(lambda: maps([i for i in range(len(paths)) if i not in held]))
    judged = ranks.agree(lambda: maps(sorted(held))) if held else None
    side = settings.window // FACTOR
    facts: Mapping[str, Any] = {
        "condition": "class",
        "role": "labels",
        "label_scale": 4,
        "label_count": count,
        "space": "latents",
        "patch_size": side,
        "factor": FACTOR,
        "image_channels": 3,
        "pixel_size_um": settings.pixel_size,
        "labels": colored(names),
        "latents_std": LABEL_LATENTS_STD[count],
        "defaults": latents_defaults(side, steps=250, eta=1.0, guidance=1.0),
    }
    return latent_task(
        lambda: LabelUNet(settings.dim, len(names), settings.dim_mults, CHANNELS, GROUPS),
        {"label": torch.arange(len(names)).repeat_interleave(SHOWN)},
        facts,
        learned.example,
        None if judged is None else judged.example,
        f"{len(learned.paths)} label maps of {len(names)} classes",
        settings,
        autoencoder_of(vae, out, facts, ranks, device),
        init,
        ranks,
        device,
    )
