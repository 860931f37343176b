"""Does an expert see the class in a picture that was asked for? The generation accuracy of the feature-aligned system.

Sets of class-conditional models store the class of every image; of a folder with a folder a class, the folder's name is
the class. The judge is an expert of ``engine.train expert``, or any extractor with logits. It chooses among the classes
that were asked for: an expert of eight tissues judges a model of seven by the first seven, as published.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from engine.distributed.ranks import Ranks
from engine.evaluation.crops import Crops, share
from engine.evaluation.inception_score import log_softmax
from engine.evaluation.measures import Measure, Table
from engine.evaluation.sources import FolderSource, OutputSource
from engine.models.expert import PART, load_expert
from engine.models.files import read_json
from engine.training.published.expert import ACCURACY
from engine.training.published.tissue import GREY

SIDE = 224  # px that the expert is shown
BATCH = 16
GROUP = "classes, judged"


@dataclass(frozen=True)
class Judge:
    """What tells classes.

    Args:
        name: For what is said.
        labels: Names of its classes; empty: they are known by number alone.
        logits: Function of crops uint8 (n, p, p, 3) and their names to float (n, K).
    """

    name: str
    labels: tuple[str, ...]
    logits: Callable[[np.ndarray, Callable[[int], str]], np.ndarray]


def class_accuracy(
    ranks: Ranks, generated: Crops, reference: Crops | None, judge: Judge
) -> tuple[list[Measure], list[Table]]:
    """Share of crops whose class a judge tells, its cross entropy and confusion matrix. Collective.

    Args:
        reference: Crops with classes, judged beside; None, or without classes: there are none.
    Raises:
        ValueError: the generated crops have no classes, or the judge does not know one of them.
    """
    asked, names = ranks.agree(lambda: classes_of(generated))
    columns = ranks.agree(lambda: columns_of(names, judge))
    made, loss = judged(ranks, generated, asked, columns, judge)
    beside = None
    if reference is not None and ranks.on_root(lambda: has_classes(reference)):
        known, own_names = ranks.agree(lambda: classes_of(reference))
        own = ranks.agree(lambda: columns_of(own_names, judge))
        in_ours = np.array([columns.index(own[k]) if own[k] in columns else -1 for k in range(len(own))], np.int64)
        of_ours = in_ours[known]
        part = reference.part(np.flatnonzero(of_ours >= 0))
        if len(part):
            beside = judged(ranks, part, of_ours[of_ours >= 0], columns, judge)
    right = np.trace(made) / made.sum()
    error = float(np.sqrt(right * (1 - right) / made.sum()))
    theirs = None if beside is None else float(np.trace(beside[0]) / beside[0].sum())
    says = f"share of crops in which {judge.name} sees the class that was asked for"
    measures = [
        Measure(GROUP, "generation accuracy", float(right), "higher", theirs, error, says=says),
        Measure(GROUP, "cross entropy", loss, "lower", beside and beside[1], unit="nat", says=f"of {judge.name}"),
    ]
    for number, name in enumerate(names):
        if made[number].sum():
            of_class = None if beside is None or not beside[0][number].sum() else share_right(beside[0], number)
            measures.append(Measure(GROUP, "told rightly", share_right(made, number), "higher", of_class, label=name))
    rows = tuple(tuple(map(float, row)) for row in made)
    text = "Rows: the class asked for; columns: what is seen; numbers of crops."
    return measures, [Table(GROUP, f"classes told by {judge.name}", tuple(names), tuple(names), rows, text)]


def share_right(confusion: np.ndarray, number: int) -> float:
    return float(confusion[number, number] / confusion[number].sum())


def judged(
    ranks: Ranks, crops: Crops, asked: np.ndarray, columns: Sequence[int], judge: Judge
) -> tuple[np.ndarray, float]:
    """Confusion matrix float64 (K, K) of the classes asked for, and the mean cross entropy among them. Collective."""
    count = len(columns)
    sums, own = np.zeros(count**2 + 1), share(len(crops), ranks.rank, ranks.size)

    def look() -> None:
        for batch in crops.batches(own, BATCH):
            logits = judge.logits(crops.pixels(batch), lambda index, batch=batch: crops.named(batch[index]))  # type: ignore[misc]
            if logits.shape[1] <= max(columns):
                raise ValueError(f"{judge.name} knows {logits.shape[1]} classes, not {max(columns) + 1}; pass another")
            log_p = log_softmax(logits[:, columns].astype(np.float64))
            label = asked[batch.start : batch.stop]
            sums[-1] -= log_p[np.arange(len(label)), label].sum()
            np.add.at(sums, label * count + log_p.argmax(1), 1)

    ranks.agree(look)
    ranks.allreduce_array(sums)
    return sums[:-1].reshape(count, count), float(sums[-1]) / len(crops)


# ---- classes ----------------------------------------------------------------------------------


def has_classes(crops: Crops) -> bool:
    """Whether crops have a class each."""
    source = crops.source
    if isinstance(source, FolderSource):
        return all("/" in name for name in source.names)
    if not isinstance(source, OutputSource) or source.kind != "set":
        return False
    label = source.output.layout.label
    return label is not None and label.name == "classes"


def classes_of(crops: Crops) -> tuple[np.ndarray, tuple[str, ...]]:
    """int64 (n,): the class of each crop, and the classes' names. Local.

    Raises:
        ValueError: they have none.
    """
    source, images = crops.source, crops.places[:, 0]
    if not has_classes(crops):
        raise ValueError(
            f"{source.path} does not say the class of each image; give a set of a model of classes (engine.sample "
            "`count` N), or a folder with a folder a class"
        )
    if isinstance(source, FolderSource):
        folders = [name.split("/")[0] for name in source.names]
        names = tuple(dict.fromkeys(sorted(folders)))
        return np.array([names.index(folder) for folder in folders], np.int64)[images], names
    numbers = np.unique(images)
    firsts = {int(image): int(np.flatnonzero(images == image)[0]) for image in numbers}
    of_image = {}
    for image, first in firsts.items():
        label = crops.labels(first)
        assert label is not None
        of_image[image] = int(label[0, 0])
    return np.array([of_image[int(image)] for image in images], np.int64), source.label_names


def columns_of(names: Sequence[str], judge: Judge) -> list[int]:
    """The number of each class among the judge's: by name, where it knows names, else the same.

    A name that is the judge's own comes first; else it is that of the one class whose name is in it.

    Raises:
        ValueError: it does not know one, or two of them are one to it.
    """
    if not judge.labels:
        return list(range(len(names)))
    own = [label.lower() for label in judge.labels]
    columns = []
    for name in names:
        near = [k for k, label in enumerate(own) if label == name.lower()]
        near = near or [k for k, label in enumerate(own) if label in name.lower()]
        if len(near) != 1:
            known = f"it knows {', '.join(judge.labels)}"
            why = f"does not know the class {name}; {known}" if not near else f"has several names for {name}; {known}"
            raise ValueError(f"{judge.name} {why}; name folders, or the model's labels, as it does")
        columns += near
    if len(set(columns)) < len(columns):
        twice = [name for name, column in zip(names, columns, strict=True) if columns.count(column) > 1]
        raise ValueError(
            f"{judge.name} has one class for {', '.join(twice)}; give images of classes that it knows apart"
        )
    return columns


# ---- judges -----------------------------------------------------------------------------------


def expert_judge(path: Path, device: str = "cpu", side: int = SIDE) -> Judge:
    """An expert of ``engine.train expert``, or in its authors' file.

    Args:
        side: That pictures are brought to, px.
    Raises:
        ValueError: it is none.
    """
    network = load_expert(path).to(device)
    folder = path if (path / ACCURACY).is_file() else path / PART
    labels = tuple(read_json(folder / ACCURACY).get("labels", ())) if (folder / ACCURACY).is_file() else ()

    def logits(pixels: np.ndarray, named: Callable[[int], str]) -> np.ndarray:
        with torch.inference_mode():
            shown = as_the_expert_sees(pixels, side, network.config["channels"]).to(device)
            return network(shown).float().cpu().numpy()

    return Judge(f"the expert {path}", labels, logits)


def as_the_expert_sees(pixels: np.ndarray, side: int, channels: int) -> torch.Tensor:
    """float32 (n, channels, side, side) in [0, 1]: grey by ITU-R BT.601, as experts are trained, or colours."""
    values = pixels.astype(np.float32) / 255
    if channels == 1:
        same = (pixels == pixels[..., :1]).all((1, 2, 3))
        values = np.where(same[:, None, None], values[..., 0], values @ GREY)[..., None]
    x = torch.from_numpy(np.ascontiguousarray(np.moveaxis(values, -1, 1)))
    return F.interpolate(x, (side, side), mode="bilinear", antialias=True).clamp(0, 1)
