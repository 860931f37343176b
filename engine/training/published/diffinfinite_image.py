"""``python -m engine.train diffinfinite-image``: DiffInfinite's network of images, as its ``train.py`` trains it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from engine.distributed.ranks import Ranks
from engine.inputs.label_codes import table_codes
from engine.models.card import colored
from engine.models.convert.common import latents_defaults
from engine.models.convert.diffinfinite import LABELS
from engine.models.networks.mask_unet import MaskUNet
from engine.training.data import find_images, hold_out, mask_of
from engine.training.published.common import Task, autoencoder_settings, read_autoencoder
from engine.training.published.diffinfinite import (
    CHANNELS,
    FACTOR,
    GROUPS,
    LATENTS_SCALE,
    SHOWN,
    DiffInfiniteSettings,
    latent_task,
    own_scale,
)
from engine.training.published.labelled_images import (
    LabelledImages,
    check_split,
    drawn_for_test,
    enough_labelled,
    read_list,
    without,
)

MOST_LABELS = 256


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
    config = autoencoder_settings(vae, out, ranks)
    scale = settings.latents_scale or own_scale(config) or LATENTS_SCALE
    facts = {
        "condition": "label-map",
        "space": "latents",
        "patch_size": side,
        "factor": FACTOR,
        "image_channels": 3,
        "pixel_size_um": settings.pixel_size,
        "labels": colored(known),
        "latents_scale": scale,
        "pixel_range": [0.0, 1.0],
        "defaults": latents_defaults(side, steps=250, eta=1.0, guidance=4.0),
    }
    if not images.labelled and ranks.rank == 0:
        print(f"no image of {data} has a label map (NAME_mask.png beside it): all is label 0, unknown", flush=True)
    labels = torch.arange(images.count).repeat_interleave(SHOWN)
    mask = (labels > 0).float()[:, None, None, None].expand(-1, 1, side, side)
    unknown = len(without([*without_map, *more], kept_out))
    return latent_task(
        lambda: MaskUNet(settings.dim, images.count, settings.dim_mults, CHANNELS, GROUPS),
        {"label": labels, "mask": mask},
        facts,
        images.example,
        None if judged is None else judged.example,
        f"{len(images.labelled)} images of {images.count} labels, {unknown} without; {', '.join(known)}; latents over "
        f"{scale:.4g}",
        settings,
        ranks.agree(lambda: read_autoencoder(out, facts, device)),
        init,
        ranks,
        device,
    )


def check_judged(judged: LabelledImages | None) -> None:
    """Refuse to judge by pictures of which none is left.

    Raises:
        ValueError: all that are held out have too little labelled.
    """
    if judged is not None and not judged.unknown:
        raise ValueError(
            "none of the pictures held out has a map of more than `labelled_share`; lower it, or hold out others"
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
