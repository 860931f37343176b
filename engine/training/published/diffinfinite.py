"""``python -m engine.train diffinfinite-image`` and ``diffinfinite-labels``: DiffInfinite's two networks, as its
``train.py`` and ``train_masks.py`` train them (Aversa et al. 2023, arXiv:2306.13384).
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from copy import copy
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
from engine.inputs.label_codes import Codes, table_codes
from engine.inputs.resize import nearest_index
from engine.models.card import colored
from engine.models.codec import LatentCodec
from engine.models.convert.common import latents_defaults
from engine.models.convert.diffinfinite import LABEL_LATENTS_STD, LABELS
from engine.models.networks.mask_unet import Block, LabelUNet, MaskUNet, UNet
from engine.training.autoencoder import to_image
from engine.training.data import dihedral, find_images, hold_out, mask_of, paths_below, read_picture, spread
from engine.training.diffusion import denoise
from engine.training.loop import image_grid
from engine.training.published.common import (
    Example,
    Task,
    Windows,
    autoencoder_of,
    picture_size,
    start_weights,
)

LATENTS_SCALE = 50.0  # what latents of that autoencoder are divided by
GROUPS, FACTOR, CHANNELS = 2, 8, 4  # of the networks' normalisation; of Stable Diffusion 2's autoencoder
LEVELS, SHOWN = 25, 4
MOST_LABELS = 256
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
    latents_scale: float
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


def check_codec(codec: LatentCodec) -> None:
    """Refuse an autoencoder of other latents than the networks are made for.

    Raises:
        ValueError: naming what differs.
    """
    config: Any = codec.network.config
    factor, channels = 2 ** (len(config["block_out_channels"]) - 1), config["latent_channels"]
    if (codec.kind, factor, channels) != ("AutoencoderKL", FACTOR, CHANNELS):
        raise ValueError(
            f"`vae` is a {codec.kind} of factor {factor} and {channels} channels; the networks take an AutoencoderKL "
            f"of factor {FACTOR} and {CHANNELS}"
        )


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
    ranks.agree(lambda: check_codec(codec))
    torch.manual_seed(settings.seed)
    network = ranks.agree(make)
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

    Half of the windows (``unlabelled``) have label 0 and are of an image without a map, or of any where all have one;
    the others have a label drawn evenly, and are of an image that holds it, about a pixel of it where the image is
    larger than the window.

    Args:
        labelled: Images with a label map beside each.
        others: Images without.
        keep: Labels that are kept, numbered from 1 on in this order; all others but 0 are one more. Empty: all.
        side: Side of a window, px.
        codes: Which code of a map stands for which label; None: maps hold labels.
        held: Codes that each map holds, where a list says them; None: all maps are read for it.
    """

    def __init__(
        self,
        labelled: Sequence[Path],
        others: Sequence[Path],
        keep: Sequence[int],
        side: int,
        unlabelled: float,
        ranks: Ranks,
        codes: Codes | None = None,
        held: Mapping[Path, Sequence[int]] | None = None,
    ) -> None:
        self.labelled, self.unknown, self.keep = list(labelled), list(others) or list(labelled), list(keep)
        self.side, self.unlabelled, self.codes, self.listed = side, unlabelled, codes, held
        mine = self.labelled[ranks.rank :: ranks.size]
        ranks.agree(lambda: [self.size_of(path) for path in list(others)[ranks.rank :: ranks.size]])
        found = ranks.allgather(ranks.agree(lambda: [self.held_by(path) for path in mine]))
        self.held = [found[index % ranks.size][index // ranks.size] for index in range(len(self.labelled))]
        most = max((max(labels) for labels in self.held), default=0)
        if codes is not None:
            most = max(most, codes.others or 0, *codes.labels.values())
        self.count = len(self.keep) + 2 if self.keep else most + 1
        self.find_holders()
        missing = [label for number, label in enumerate(self.keep, 1) if number not in self.holders]
        if missing and self.labelled:
            raise ValueError(f"`keep` names label {missing[0]}, which no picture of `data` has; leave it out")

    def find_holders(self) -> None:
        """Take note of which pictures hold which label."""
        held = self.held
        holders = {label: [i for i, labels in enumerate(held) if label in labels] for label in range(1, self.count)}
        self.holders = {label: indices for label, indices in holders.items() if indices}

    def held_by(self, path: Path) -> list[int]:
        """The labels of a picture: those of its list, or of its map."""
        if self.listed is None:
            return np.unique(self.map_of(path)).tolist()
        self.size_of(path)
        return np.unique(self.as_labels(np.array(self.listed[path]), f"the list's line of {path.stem}")).tolist()

    def part(self, chosen: Sequence[Path], others: Sequence[Path]) -> LabelledImages:
        """These labelled pictures alone, with others that have no map."""
        part = copy(self)
        at = {path: index for index, path in enumerate(self.labelled)}
        part.held = [self.held[at[path]] for path in chosen]
        part.labelled, part.unknown = list(chosen), list(others) or list(chosen)
        part.find_holders()
        return part

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
        return self.as_labels(mask.astype(np.int64), str(mask_of(path)))

    def as_labels(self, codes: np.ndarray, where: str) -> np.ndarray:
        """Codes as the labels that are kept.

        Raises:
            ValueError: the table does not know one of them.
        """
        labels = recoded(codes, self.codes, where)
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
            label, path = 0, self.unknown[int(rng.integers(len(self.unknown)))]
            picture, labels = read_picture(path, color=True), None
        else:
            label = int(rng.choice(list(self.holders)))
            path = self.labelled[int(rng.choice(self.holders[label]))]
            picture, labels = read_picture(path, color=True), self.map_of(path)
            if not (labels == label).any():
                raise ValueError(f"the list says that {mask_of(path)} holds what is label {label}, but it does not")
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


def recoded(values: np.ndarray, codes: Codes | None, where: str) -> np.ndarray:
    """int64: codes as labels.

    Raises:
        ValueError: one of them has no label.
    """
    if codes is None:
        return values.astype(np.int64)
    labels = codes.label_of(values)
    if (labels < 0).any():
        raise ValueError(f"{where} has the code {int(values[labels < 0][0])}; {codes.name}")
    return labels


@dataclass(frozen=True)
class PictureList:
    """The pictures that a list names.

    Args:
        held: Codes that the map of each holds.
        test: Those that are not trained on; None: the list does not say.
    """

    held: dict[Path, list[int]]
    test: list[Path] | None


def read_list(path: Path, images: Sequence[Path]) -> PictureList:
    """A ``dataset.csv``: a line each of (stem of a picture, codes of its map between blanks, perhaps train or test).

    Raises:
        ValueError: the list names a picture that is not there, or one twice, or a line is no such line.
    """
    at, held, parts = {image.stem: image for image in images}, {}, {}
    try:
        rows = [row for row in csv.reader(path.read_text().splitlines()) if row]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"`list` {path} cannot be read ({error})") from None
    for number, row in enumerate(rows, 1):
        name, codes, part = [cell.strip() for cell in (*row, "", "")[:3]]
        if not codes or not all(code.isascii() and code.isdigit() for code in codes.split()):
            raise ValueError(
                f"`list` {path}, line {number}: {','.join(row)!r}: expected NAME,CODES or NAME,CODES,train"
            )
        if part not in ("", "train", "test"):
            raise ValueError(f"`list` {path}, line {number}: {part!r} is neither train nor test")
        if name not in at or not mask_of(at[name]).exists():
            raise ValueError(
                f"`list` {path}, line {number}: `data` holds no picture {name} with a label map; remove it"
            )
        if at[name] in held:
            raise ValueError(f"`list` {path}, line {number}: {name} stands there twice; remove one")
        held[at[name]], parts[at[name]] = [int(code) for code in codes.split()], part
    if not held:
        raise ValueError(f"`list` {path} names no pictures")
    return PictureList(held, [path for path in held if parts[path] == "test"] if any(parts.values()) else None)


def drawn_for_test(images: LabelledImages, share: float, seed: int) -> list[Path]:
    """A share of the pictures of each label, the rarest label first: none of them is trained on."""
    rng = np.random.default_rng((seed, 90))
    chosen: set[int] = set()
    for label in sorted(images.holders, key=lambda label: len(images.holders[label])):
        holders = images.holders[label]
        wanted = round(share * len(holders)) - len(chosen.intersection(holders))
        left = [index for index in rng.permutation(holders).tolist() if index not in chosen]
        chosen |= set(left[: max(wanted, 0)])
    return [images.labelled[index] for index in sorted(chosen)]


def image_task(
    data: Path,
    unlabelled: Sequence[Path],
    out: Path,
    settings: DiffInfiniteSettings,
    *,
    keep: Sequence[int],
    names: Sequence[str],
    unlabelled_share: float,
    listed: Path | None,
    table: str | None,
    labelled_share: float,
    test_share: float,
    vae: Path | None,
    init: Path | None,
    ranks: Ranks,
    device: str,
) -> Task:
    """The training of the image network. Collective.

    Args:
        unlabelled: Folders of more images, all of label 0.
        listed: List of the pictures with the codes of their maps; None: ``dataset.csv`` of ``data``, or all pictures.
        table: Table of codes and labels; None: maps hold labels.
        labelled_share: Least share of a map that is not 0; pictures of less are left out.
        test_share: Share of the pictures of each label that is held out, where the list does not say which.
        vae: Autoencoder that is copied to ``out``; None: it is there.
    Raises:
        ValueError: the data do not fit the settings.
    """
    every = ranks.agree(lambda: find_images(data))
    more = ranks.agree(lambda: [path for folder in unlabelled for path in find_images(folder)])
    if listed is None and (data / "dataset.csv").is_file():
        listed = data / "dataset.csv"
    known_of = ranks.agree(lambda: read_list(listed, every)) if listed is not None else None
    codes = ranks.agree(lambda: table_codes(table, MOST_LABELS)) if table is not None else None
    labelled = list(known_of.held) if known_of else [path for path in every if mask_of(path).exists()]
    without_map = [] if known_of else [path for path in every if not mask_of(path).exists()]
    whole = LabelledImages(
        ranks.agree(partial(enough_labelled, labelled, labelled_share, ranks)),
        [*without_map, *more],
        keep,
        settings.window,
        unlabelled_share,
        ranks,
        codes,
        known_of.held if known_of else None,
    )
    if known_of and known_of.test is not None:
        held = known_of.test
    elif test_share:
        held = ranks.agree(lambda: drawn_for_test(whole, test_share, settings.seed))
    else:
        held = ranks.agree(lambda: hold_out(whole.labelled or every, settings.hold_out))
    kept_out = set(held)
    images = whole.part(*(without(paths, kept_out) for paths in (whole.labelled, [*without_map, *more])))
    ranks.agree(lambda: check_split(whole, images))
    judged = None
    if held:
        judged = whole.part(
            [path for path in whole.labelled if path in kept_out], [p for p in without_map if p in kept_out]
        )
    ranks.agree(lambda: check_judged(judged))
    side, known = settings.window // FACTOR, ranks.agree(lambda: names_of(names, images.count))
    facts = {
        "condition": "label-map",
        "space": "latents",
        "patch_size": side,
        "factor": FACTOR,
        "image_channels": 3,
        "pixel_size_um": settings.pixel_size,
        "labels": colored(known),
        "latents_scale": settings.latents_scale or LATENTS_SCALE,
        "pixel_range": [0.0, 1.0],
        "defaults": latents_defaults(side, steps=250, eta=1.0, guidance=4.0),
    }
    labels = torch.arange(images.count).repeat_interleave(SHOWN)
    mask = (labels > 0).float()[:, None, None, None].expand(-1, 1, side, side)
    unknown = len(without([*without_map, *more], kept_out))
    return latent_task(
        lambda: MaskUNet(settings.dim, images.count, settings.dim_mults, CHANNELS, GROUPS),
        {"label": labels, "mask": mask},
        facts,
        images.example,
        None if judged is None else judged.example,
        f"{len(images.labelled)} images of {images.count} labels, {unknown} without",
        settings,
        autoencoder_of(vae, out, facts, ranks, device),
        init,
        ranks,
        device,
    )


def without(paths: Sequence[Path], others: set[Path]) -> list[Path]:
    return [path for path in paths if path not in others]


def check_split(every: LabelledImages, learned: LabelledImages) -> None:
    """Refuse a split that leaves nothing of a label to train on.

    Raises:
        ValueError: naming the label.
    """
    empty = [label for label in every.holders if label not in learned.holders]
    if empty:
        count = len(every.holders[empty[0]])
        raise ValueError(f"all pictures of label {empty[0]} ({count}) are held out; hold out fewer, or others")


def check_judged(judged: LabelledImages | None) -> None:
    """Refuse to judge by pictures of which none is left.

    Raises:
        ValueError: all that are held out have too little labelled.
    """
    if judged is not None and not judged.unknown:
        raise ValueError(
            "none of the pictures held out has a map of more than `labelled_share`; lower it, or hold out others"
        )


def enough_labelled(paths: Sequence[Path], share: float, ranks: Ranks) -> list[Path]:
    """The pictures whose maps are labelled enough: more than a share of their pixels is not 0. Collective.

    Raises:
        ValueError: none is.
    """
    if not share:
        return list(paths)

    def mine() -> list[bool]:
        return [bool((read_picture(mask_of(path)) > 0).mean() > share) for path in paths[ranks.rank :: ranks.size]]

    told = ranks.allgather(ranks.agree(mine))
    kept = [path for index, path in enumerate(paths) if told[index % ranks.size][index // ranks.size]]
    if paths and not kept:
        raise ValueError(f"`labelled_share` {share:g} is more than any of the {len(paths)} label maps has; lower it")
    return kept


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
        codes: Which code of a map stands for which label; None: maps hold labels.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        classes: Sequence[int],
        count: int,
        side: int,
        drop: float,
        codes: Codes | None = None,
    ) -> None:
        self.codes = codes
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
        labels = recoded(labels, self.codes, str(path))
        if int(labels.max()) >= self.count:
            raise ValueError(f"{path} holds the label {int(labels.max())} but `label_count` is {self.count}; name more")
        return labels


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
    table: str | None,
    vae: Path | None,
    init: Path | None,
    ranks: Ranks,
    device: str,
) -> Task:
    """The training of the network of label maps. Collective.

    Args:
        classes: CSV of the class of each slide; None: all are of one.
        count: Number of labels.
        table: Table of codes and labels; None: maps hold labels.
        vae: Autoencoder that is copied to ``out``; None: it is there.
    Raises:
        ValueError: the data do not fit the settings.
    """

    def read() -> tuple[list[Path], list[int], list[str]]:
        if count not in LABEL_LATENTS_STD and not settings.latents_scale:
            raise ValueError(
                f"`label_count` is {count}; the scales of their latents are published for 5 and 10 alone; say "
                "`latents_scale` for others"
            )
        paths = paths_below(data, MAPS)
        masks = [path for path in paths if path.stem.endswith("_mask")] or paths
        if not masks:
            raise ValueError(f"no label map ({', '.join(MAPS)}) below {data}")
        if classes is None:
            return masks, [0] * len(masks), ["tissue"]
        return masks, *read_classes(classes, [path.stem for path in masks])

    paths, of_maps, names = ranks.agree(read)
    codes = ranks.agree(lambda: table_codes(table, count)) if table is not None else None
    held = set(ranks.agree(lambda: spread(settings.hold_out, len(paths), data)))

    def maps(which: Sequence[int]) -> LabelMaps:
        chosen = LabelMaps(
            [paths[i] for i in which], [of_maps[i] for i in which], count, settings.window, settings.drop, codes
        )
        for index in range(ranks.rank, len(which), ranks.size):
            chosen.map_of(index)
        return chosen

    learned = ranks.agree(lambda: maps([i for i in range(len(paths)) if i not in held]))
    judged = ranks.agree(lambda: maps(sorted(held))) if held else None
    side = settings.window // FACTOR
    stds = LABEL_LATENTS_STD.get(count)
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
        **({"latents_scale": settings.latents_scale} if settings.latents_scale else {"latents_std": stds}),
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
