"""``python -m engine.train diffinfinite-labels``: DiffInfinite's network of label maps, as in ``train_masks.py``."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.distributed.ranks import Ranks
from engine.inputs.label_codes import Codes, table_codes
from engine.inputs.resize import nearest_index
from engine.models.card import colored
from engine.models.convert.common import latents_defaults
from engine.models.convert.diffinfinite import LABEL_LATENTS_STD
from engine.models.networks.mask_unet import LabelUNet
from engine.training.data import dihedral, paths_below, read_picture, spread
from engine.training.published.common import Example, Task, autoencoder_settings, read_autoencoder
from engine.training.published.diffinfinite import (
    CHANNELS,
    FACTOR,
    GROUPS,
    SHOWN,
    DiffInfiniteSettings,
    latent_task,
    own_scale,
)
from engine.training.published.labelled_images import recoded

MAPS = (".png", ".tif", ".tiff")


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
    scale = settings.latents_scale or own_scale(autoencoder_settings(vae, out, ranks))
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
        **({"latents_scale": scale} if scale else {"latents_std": stds}),
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
        ranks.agree(lambda: read_autoencoder(out, facts, device)),
        init,
        ranks,
        device,
    )
