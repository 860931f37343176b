"""The reference images of a job's nuclei: opened, checked, hashed and paired with the instance maps."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np

from engine.inputs.appearance import KEPT, LARGEST_REFERENCE, Appearance, Reference, check_kinds, reference_of
from engine.inputs.dataset_folder import dataset_of, path_of
from engine.inputs.input_file import InputFile
from engine.inputs.nuclei import LARGEST_ID, Nuclei
from engine.inputs.pairing import paired
from engine.inputs.values import Inputs, Sources
from engine.job import SampleJob, shown
from engine.storage.picture_folder import PictureFolder, is_picture_folder
from engine.storage.readers import checked_integers, read_array

OPTIONS = ("appearance", "appearance_mask", "appearance_order", "pairing", "pairing_seed")


def read_pictures(path: Path, option: str, color: bool) -> np.ndarray | PictureFolder:
    """One picture or a stack of them, or a folder. A picture in memory has its channels first."""
    if is_picture_folder(path):
        return PictureFolder(path, option, color)
    pictures = read_array(path, option, color=color)
    if color and isinstance(pictures, np.ndarray) and pictures.ndim >= 3 and pictures.shape[-1] in (3, 4):
        return np.ascontiguousarray(np.moveaxis(pictures[..., :3], -1, -3))
    return pictures


@dataclass(frozen=True)
class References:
    """The reference images of a job.

    Args:
        pictures: One picture uint8 (3, h, w), or several, in a stack or a folder.
        masks: Where they have nuclei, likewise; None: it does not matter.
    """

    pictures: InputFile
    masks: InputFile | None = None

    def __len__(self) -> int:
        array = self.pictures.array
        return len(array) if isinstance(array, PictureFolder) or array.ndim == 4 else 1

    @property
    def several(self) -> bool:
        """Whether they are a stack or a folder, also of one."""
        return isinstance(self.pictures.array, PictureFolder) or self.pictures.array.ndim == 4

    @property
    def names(self) -> tuple[str, ...]:
        """Their stems, where they lie in a folder."""
        array = self.pictures.array
        return array.names if isinstance(array, PictureFolder) else ()

    def name(self, index: int) -> str:
        """How a message names one of them."""
        which = f"/{self.names[index]}" if self.names else f", image {index}," if self.several else ""
        return f"{self.pictures}{which}"

    def picture(self, index: int) -> np.ndarray:
        """uint8 (3, h, w).

        Raises:
            ValueError: it is no picture, or larger than a rank may hold.
        """
        array = self.pictures.array
        picture = np.asarray(array[index] if self.several else array)
        if picture.ndim == 2:
            picture = np.repeat(picture[None], 3, axis=0)
        elif picture.ndim == 3 and picture.shape[0] != 3 and picture.shape[2] in (3, 4):
            picture = np.moveaxis(picture[..., :3], 2, 0)
        if picture.ndim != 3 or picture.shape[0] != 3 or picture.dtype != np.uint8:
            raise ValueError(
                f"{self.name(index)} has shape {picture.shape} of {picture.dtype}; a reference is an RGB image, uint8"
            )
        if picture[0].size > LARGEST_REFERENCE:
            raise ValueError(
                f"{self.name(index)} has {picture[0].size} pixels; {LARGEST_REFERENCE} are enough, "
                "for its colours are a population: give a crop of it"
            )
        return picture

    def reference(self, index: int) -> Reference:
        """The pixels of one reference, and which are of nuclei.

        Raises:
            ValueError: a mask of another size, or without nuclei or background.
        """
        picture = self.picture(index)
        if self.masks is None:
            return reference_of(picture)
        masks = self.masks.array
        mask = np.asarray(masks[index] if self.several else masks)
        checked_integers(mask, self.masks.path, self.masks.option, stack=False)
        if mask.shape != picture.shape[1:]:
            raise ValueError(
                f"{self.masks} is {mask.shape[0]} x {mask.shape[1]} px but {self.name(index)} "
                f"{picture.shape[1]} x {picture.shape[2]} px; give the mask of that image"
            )
        check_kinds(mask.ravel() != 0, self.name(index))
        return reference_of(picture, mask)


def check_options(job: SampleJob, has_colors: bool) -> None:
    """Refuse options of the colours that do not go together, before any file is read.

    Args:
        has_colors: Whether the model takes colours.
    Raises:
        ValueError: naming them.
    """
    given = [shown(job, name) for name in OPTIONS if getattr(job, name) is not None]
    if given and (job.instances is None or job.map is not None):
        raise ValueError(f"{given[0]} is for maps that are made from nuclei; pass `instances` FILE, and no `map`")
    if given and not has_colors:
        raise ValueError(f"{given[0]} is given but the model takes no colours, only shapes; leave it out")
    if given and path_of(job, "appearance") is None:
        raise ValueError(f"{given[0]} is for a reference image; pass `appearance` FILE too")
    plain = [name for name in ("colors", "nucleus_color", "background_color") if is_given(job, name)]
    if given and plain:
        raise ValueError(f"both {given[0]} and {shown(job, plain[0])} are given; choose one")
    if job.appearance_mask is not None and job.appearance_order != "preserved":
        raise ValueError(
            f"{shown(job, 'appearance_mask')} is for `appearance_order` preserved; add it, or leave this out"
        )
    if job.pairing_seed is not None and job.pairing in (None, "own"):
        raise ValueError(f"{shown(job, 'pairing_seed')} is for `pairing` shuffled or matched; add one, or leave it out")


def is_given(job: SampleJob, name: str) -> bool:
    """Whether an option has another value than its default."""
    return bool(getattr(job, name) != getattr(type(job), name))


def references_of(job: SampleJob) -> References | None:
    """The references that a job names, or that lie in its dataset's folder; None: there are none.

    Raises:
        ValueError: nuclei's colours are to be preserved, and no mask says where the reference has nuclei.
    """
    path = path_of(job, "appearance")
    if path is None or any(is_given(job, name) for name in ("colors", "nucleus_color", "background_color")):
        return None
    pictures = InputFile(path, "`appearance`", partial(read_pictures, color=True))  # type: ignore[arg-type]
    if job.appearance_order != "preserved":
        return References(pictures)
    mask = path_of(job, "appearance_mask")
    if mask is None and job.appearance is None and dataset_of(job) is not None:
        mask = path_of(job, "instances")
    if mask is None:
        raise ValueError(
            "`appearance_order` preserved must know where the reference has nuclei; pass `appearance_mask` FILE, "
            "its own instance map or mask"
        )
    masks = InputFile(mask, "`appearance_mask`", partial(read_pictures, color=False))  # type: ignore[arg-type]
    return References(pictures, masks)


def add_references(inputs: Inputs, job: SampleJob, nuclei: Nuclei, names: tuple[str, ...], stack: bool) -> Inputs:
    """The inputs with the references of a job, each read once, and which of them is whose.

    Args:
        names: Stems of the instance maps, where they lie in a folder.
        stack: Whether there are several instance maps.
    Raises:
        ValueError: references that are no pictures, or not as many as there are maps, or called otherwise.
    """
    references = references_of(job)
    if references is None:
        return inputs
    maps = len(names) or job.count or 1
    check_numbers(references, job, maps, names, stack)
    hashes, largest = hashes_of(references)
    files = {"appearance": references.pictures}
    files |= {"appearance_mask": references.masks} if references.masks is not None else {}
    chosen = (0,) * maps
    if len(references) > 1:
        seed = job.seed if job.pairing_seed is None else job.pairing_seed
        chosen = paired(job.pairing or "own", seed, areas_of(nuclei, maps))
    sources = Sources(names, chosen, references.names, KEPT * largest)
    return inputs.adding(hashes, files, sources=sources)


def hashes_of(references: References) -> tuple[dict[str, str], int]:
    """The hashes of all references, each read and checked, and the bytes of the largest in memory."""
    largest, pixels, masks = 0, hashlib.sha256(), hashlib.sha256()
    for index in range(len(references)):
        reference = references.reference(index)
        pixels.update(str(reference.shape).encode() + reference.pixels.tobytes())
        if reference.nuclear is not None:
            masks.update(reference.nuclear.tobytes())
        largest = max(largest, reference.pixels.nbytes + len(reference.pixels))
    of_masks = {} if references.masks is None else {"appearance_mask_hash": masks.hexdigest()}
    return {"appearance_hash": pixels.hexdigest(), **of_masks}, largest


def check_numbers(references: References, job: SampleJob, maps: int, names: tuple[str, ...], stack: bool) -> None:
    """Refuse references that cannot be one for each map, and pairings that there is nothing to choose for.

    Raises:
        ValueError: naming the numbers, or the first name that has no counterpart.
    """
    count, what = len(references), references.pictures
    if count > 1 and job.count is None:
        raise ValueError(f"{what} holds {count} references but one image takes one; name it, or pass `count` N")
    if count > 1 and count != maps:
        raise ValueError(
            f"{what} holds {count} references but there are {maps} instance maps; give one for all, or one for each"
        )
    if count > 1 and names and references.names and (missing := sorted(set(names) - set(references.names))):
        raise ValueError(
            f"{what} holds no image {missing[0]}, as the instance maps do; files go together by their stems"
        )
    masks = None if references.masks is None else references.masks.array
    if masks is not None and (length := _length(masks)) != (count if references.several else None):
        raise ValueError(f"{references.masks} holds {length or 1} masks for {count} references; give one for each")
    if isinstance(masks, PictureFolder) and references.names and masks.names != references.names:
        missing = sorted(set(references.names) ^ set(masks.names))
        raise ValueError(f"{references.masks} and {what} differ in {missing[0]}; files go together by their stems")
    if job.pairing not in (None, "own") and (count == 1 or not stack):
        raise ValueError(
            f"`pairing` {job.pairing} chooses among the references of a stack of instance maps; "
            f"there {'is one reference' if count == 1 else 'is one map'}: leave it out"
        )


def _length(masks: np.ndarray | PictureFolder) -> int | None:
    """Number of masks in a stack or a folder; None: it is one mask."""
    return len(masks) if isinstance(masks, PictureFolder) or masks.ndim == 3 else None


def areas_of(nuclei: Nuclei, maps: int) -> list[np.ndarray]:
    """Of each map the areas of its nuclei, px."""
    keys = nuclei.table["key"]
    bounds = np.searchsorted(keys, np.arange(maps + 1, dtype=np.uint64) << np.uint64(32))
    rows = (nuclei.table[first:last] for first, last in pairwise(bounds))
    return [of_map["area"][of_map["key"] & np.uint64(LARGEST_ID) > 0] for of_map in rows]


def appearance_of(inputs: Inputs, job: SampleJob) -> Appearance | None:
    """The colours of every image, as every rank reads them; None: they come from elsewhere."""
    if inputs.sources is None or "appearance" not in inputs.files:
        return None
    references = References(inputs.files["appearance"], inputs.files.get("appearance_mask"))
    return appearance_by(references, inputs.sources.chosen, job.seed)


def appearance_by(references: References, chosen: Sequence[int], seed: int) -> Appearance:
    """The colours of every image.

    Args:
        chosen: Of each instance map the number of its reference.
    """
    return Appearance(seed, lambda image: references.reference(chosen[image % len(chosen)]))
