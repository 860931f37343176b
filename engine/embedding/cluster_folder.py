"""The folder of clusters::

clusters.csv    of each patch its name (or row and column), cluster and distance
clusters.png    a row of pictures a cluster, from its mean outwards
0/, 1/, ...     links to the pictures of each cluster and to their maps, laid out as they were
none/           those that belong to none
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from engine.embedding.clusters import NONE, Clusters
from engine.embedding.patches import MAPS, FolderPatches, Patches
from engine.inputs.dataset_folder import MASK_ENDING, PARTS
from engine.storage.files import discard, remove, sync
from engine.storage.picture_folder import SUFFIXES

LIST, SHEET, OUTSIDE = "clusters.csv", "clusters.png", "none"
COLUMNS = ("cluster", "distance")
SHOWN, MOST_ROWS = 10, 100  # pictures a row, rows
SIDE, GAP, LEFT = 96, 4, 72  # px
INK, GROUND = (40, 40, 40), (255, 255, 255)


def check_cluster_folder(folder: Path, overwrite: bool) -> None:
    """Refuse a path that clusters cannot be written to.

    Raises:
        ValueError: there is something already that may not be replaced, or no folder for it.
    """
    if not folder.parent.is_dir():
        raise ValueError(f"`cluster_folders` {folder}: there is no folder {folder.parent}; make it")
    if not folder.exists() and not folder.is_symlink():
        return
    if not overwrite:
        raise ValueError(f"`cluster_folders` {folder} is there already; pass `overwrite`, or choose another")
    other = next(not_ours(folder), None)
    if other is not None:
        raise ValueError(f"`cluster_folders` {folder}: engine.embed did not write {other}; choose another")


def not_ours(folder: Path) -> Iterator[Path]:
    """What a folder holds besides clusters that this program wrote."""
    if folder.is_symlink() or not folder.is_dir() or not (folder / LIST).is_file():
        yield folder
        return
    ours = {folder / LIST, folder / SHEET}
    yield from (path for path in folder.rglob("*") if not path.is_symlink() and path.is_file() and path not in ours)


def write_clusters(folder: Path, patches: Patches | None, clusters: Clusters) -> None:
    """Write a folder of clusters, which appears when it is complete; an error leaves what was there.

    Args:
        patches: What was clustered; None: it is not known, and there is a list of rows alone.
    Raises:
        ValueError: a picture cannot be read, or lies elsewhere than in its folder.
    """
    new = folder.with_name(folder.name + ".partial")
    discard(new)
    try:
        new.mkdir()
        write_list(new / LIST, patches, clusters)
        if patches is not None:
            sheet(patches, clusters).save(new / SHEET)
        if isinstance(patches, FolderPatches):
            link_pictures(new, patches, clusters)
        for path in (*new.glob("clusters.*"), new):  # links are made again as quickly
            sync(path)
        if folder.exists():
            remove(folder)
        new.rename(folder)
    finally:
        discard(new)


def write_list(path: Path, patches: Patches | None, clusters: Clusters) -> None:
    """One line a patch, in the order of the embeddings."""
    named = (
        ("picture",) if isinstance(patches, FolderPatches) else ("number",) if patches is None else ("row", "column")
    )
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow((*named, *COLUMNS))
        for patch, (number, distance) in enumerate(zip(clusters.of_patches, clusters.distances, strict=True)):
            writer.writerow((*key_of(patches, patch), int(number), f"{distance:.4g}"))


def key_of(patches: Patches | None, patch: int) -> Sequence[object]:
    """What a patch is called in the list."""
    if isinstance(patches, FolderPatches):
        return (patches.names[patch],)
    return (patch,) if patches is None else divmod(patch, patches.grid[1])


def name_of(number: int) -> str:
    return OUTSIDE if number == NONE else str(number)


# ---- the contact sheet --------------------------------------------------------------------------


def sheet(patches: Patches, clusters: Clusters) -> Image.Image:
    """A row of pictures for each of the largest clusters, evenly from the nearest to its mean to the farthest."""
    rows = clusters.sizes()[:MOST_ROWS]
    pitch = SIDE + GAP
    image = Image.new("RGB", (LEFT + SHOWN * pitch, len(rows) * pitch + GAP), GROUND)
    for row, (number, size) in enumerate(rows):
        top = GAP + row * pitch
        ImageDraw.Draw(image).text((GAP, top + SIDE // 2 - 12), f"{name_of(number)}\n{size}", INK)
        for column, patch in enumerate(shown(clusters.members(number))):
            picture = Image.fromarray(patches.read(int(patch))).resize((SIDE, SIDE), Image.Resampling.BOX)
            image.paste(picture, (LEFT + column * pitch, top))
    return image


def shown(members: np.ndarray) -> np.ndarray:
    """Some of a cluster's patches, the first and the last among them.

    >>> shown(np.arange(19)).tolist(), shown(np.arange(2)).tolist()
    ([0, 2, 4, 6, 8, 10, 12, 14, 16, 18], [0, 1])
    """
    return members[np.linspace(0, len(members) - 1, min(SHOWN, len(members))).round().astype(int)]


# ---- the links ----------------------------------------------------------------------------------


def link_pictures(folder: Path, patches: FolderPatches, clusters: Clusters) -> None:
    """Link every picture, and what maps it has, into the folder of its cluster.

    What lies in ``SOURCE/images`` goes to ``images`` there, so that each folder is laid out as a dataset is.

    Raises:
        ValueError: a name leads out of the folder that the pictures are in.
    """
    source = patches.path.absolute()
    if source.name == PARTS["appearance"]:
        source = source.parent
    in_folder = lru_cache(stems_in)
    for name, number in zip(patches.names, clusters.of_patches, strict=True):
        picture = patches.path.absolute() / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{name} is not in {patches.path}; clusters are folders of its own pictures")
        for path in (picture, *maps_of(picture, in_folder)):
            link = folder / name_of(int(number)) / path.relative_to(source)
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():  # a list may name a picture twice
                link.symlink_to(path)


def maps_of(picture: Path, in_folder: Callable[[Path], dict[str, Path]]) -> list[Path]:
    """The maps of a picture: of its stem in ``inst_masks`` and ``bin_masks`` beside ``images``, or ``_mask.png``."""
    if picture.parent.name == PARTS["appearance"]:
        by_stem = (in_folder(picture.parent.with_name(part)) for part in MAPS)
        return [paths[picture.stem] for paths in by_stem if picture.stem in paths]
    mask = picture.with_name(picture.stem + MASK_ENDING)
    return [mask] if mask.is_file() else []


def stems_in(folder: Path) -> dict[str, Path]:
    """The pictures of one folder by their stems; none where there is no folder."""
    if not folder.is_dir():
        return {}
    return {path.stem: path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES}
