"""Images with label maps and without, as DiffInfinite's image network is trained on them; its lists and splits."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.distributed.ranks import Ranks
from engine.inputs.label_codes import Codes
from engine.inputs.resize import nearest_index
from engine.training.data import dihedral, mask_of, read_picture
from engine.training.published.common import Example, picture_size
from engine.training.published.diffinfinite import FACTOR


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
        ranks.agree(self.check_kept)

    def check_kept(self) -> None:
        """Refuse to keep a label that no picture has.

        Raises:
            ValueError: naming it.
        """
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
