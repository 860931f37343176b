"""Do generated windows show what their label map asks for? A judge that learned labels from the reference tells.

The judge: features of the embedded autoencoder and filters, or of any extractor, and multinomial logistic regression on
them. Four judges learn from windows of the reference that one label all but fills, each without a fourth of the images,
on which it is examined; all four tell the labels of generated windows. The accuracy of these over that of the
examinations says how much of a label is in the picture: 1 is all that such a judge can see.

Windows are read and their features made by all ranks; the regression, of some thousand rows, is rank 0's. Batches are
of the same windows on any number of ranks, and so are the numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from engine.distributed.ranks import Ranks
from engine.evaluation.crops import Crops, share
from engine.evaluation.inception_score import log_softmax
from engine.evaluation.measures import Measure, Table

SIDE = 96  # px of a window
PURE = 0.8  # share of a window that its label covers
MOST_CROPS = 4096  # crops of a set whose label maps are looked at
PER_LABEL = 200  # windows of a label that are learned, and again that are judged, of each set
LEAST = 8  # windows of a label that every judge learns at least, and that are generated; else it is left out
FOLDS = 4  # judges; each does not learn from one image in so many
NULL = (0,)  # labels that ask for nothing in particular, and that no picture shows
BATCH = 32
WEIGHT = 0.1  # of the squares of the regression's weights
STEPS = 500
GROUP = "labels, judged"
Extract = Callable[[np.ndarray, Callable[[int], str]], tuple[np.ndarray, np.ndarray | None]]


@dataclass(frozen=True)
class Windows:
    """Windows of crops that a label all but fills.

    Args:
        at: int64 (n, 3): number of the crop, and row and column of the window's corner in it, px.
        labels: int64 (n,).
        images: int64 (n,): the image that each is of, or the band of a single image.
    """

    at: np.ndarray
    labels: np.ndarray
    images: np.ndarray

    def __len__(self) -> int:
        return len(self.at)

    def where(self, chosen: np.ndarray) -> Windows:
        return Windows(self.at[chosen], self.labels[chosen], self.images[chosen])


def label_judge(
    ranks: Ranks,
    generated: Crops,
    reference: Crops,
    extractor: Extract,
    side: int = SIDE,
    seed: int = 0,
    ignore: Sequence[int] = NULL,
) -> tuple[list[Measure], list[Table]]:
    """Accuracy of judges of labels on the reference held out and on generated windows, their ratio, and confusions.

    Accuracies are means over the labels, each of which counts alike. Collective.

    Args:
        side: Of a window, px; smaller where the crops are.
        ignore: Labels that nothing is learned of.
    Raises:
        ValueError: a set has no label maps, or they have fewer than two labels with windows enough.
    """
    side = min(side, generated.side, reference.side)
    made, known = (windows_of(ranks, crops, side, seed, ignore) for crops in (generated, reference))
    labels = ranks.agree(lambda: judged_labels(made, known, side))
    made, known = (drawn(part, labels, seed) for part in (made, known))
    features = [
        features_of_windows(ranks, crops, part, extractor, side)
        for crops, part in ((reference, known), (generated, made))
    ]
    targets = [np.searchsorted(labels, part.labels) for part in (known, made)]
    confusions = ranks.on_root(lambda: judged(features, targets, folds(known.images)))
    names = [named(reference, generated, int(label)) for label in labels]
    sets = ("the reference, held out", "generated")
    tables = [table_of(confusion, names, of) for confusion, of in zip(confusions, sets, strict=True)]
    return measures_of(confusions, names, side), tables


# ---- windows ----------------------------------------------------------------------------------


def windows_of(ranks: Ranks, crops: Crops, side: int, seed: int, ignore: Sequence[int] = ()) -> Windows:
    """Windows of crops that lie side by side and that one label all but fills. Collective.

    Raises:
        ValueError: the crops have no label maps.
    """
    numbers = np.arange(len(crops))
    if len(crops) > MOST_CROPS:
        numbers = np.sort(np.random.default_rng((seed, 21)).permutation(len(crops))[:MOST_CROPS])
    own = share(len(numbers), ranks.rank, ranks.size)

    def look() -> np.ndarray:
        rows = [row for number in numbers[own.start : own.stop] for row in pure_windows(crops, int(number), side)]
        return np.array(rows, np.int64).reshape(-1, 4)

    rows = np.concatenate(ranks.allgather(ranks.agree(look)))
    rows = rows[~np.isin(rows[:, 3], ignore)]
    return Windows(rows[:, :3], rows[:, 3], groups(crops, rows[:, 0]))


def pure_windows(crops: Crops, number: int, side: int) -> list[tuple[int, int, int, int]]:
    """(crop, row, column, label) of the windows, side by side, that a label all but fills.

    Raises:
        ValueError: the crop has no label map.
    """
    labels = crops.labels(number)
    if labels is None:
        raise ValueError(f"{crops.named(number)} has no label map; labels are judged of images with one each")
    rows, first = [], crops.side % side // 2
    starts = range(first, crops.side - side + 1, side)
    for y in starts:
        for x in starts:
            values, counts = np.unique(labels[y : y + side, x : x + side], return_counts=True)
            if counts.max() >= PURE * side**2:
                rows.append((number, y, x, int(values[counts.argmax()])))
    return rows


def groups(crops: Crops, numbers: np.ndarray) -> np.ndarray:
    """The image of each crop; of a single image one of 16 bands of rows."""
    places = crops.places[numbers]
    if len(crops.source.sizes) > 1:
        return places[:, 0]
    return places[:, 1] * 16 // int(crops.source.sizes[0, 0])


def folds(images: np.ndarray) -> np.ndarray:
    """int64 (n,): which judge each window examines, by its image.

    >>> folds(np.array([0, 1, 1, 7, 9, 12])).tolist()
    [0, 1, 1, 2, 3, 0]
    """
    return np.unique(images, return_inverse=True)[1] % FOLDS


def judged_labels(made: Windows, known: Windows, side: int) -> np.ndarray:
    """The labels of which there are windows enough, generated and for every judge, in order.

    Raises:
        ValueError: there are fewer than two.
    """
    fold = folds(known.images)
    parts = [made.labels, *(known.labels[fold != judge] for judge in range(FOLDS))]
    counted = [np.unique(part, return_counts=True) for part in parts]
    enough = [set(labels[counts >= LEAST].tolist()) for labels, counts in counted]
    labels = sorted(set.intersection(*enough))
    if len(labels) < 2:
        raise ValueError(
            f"the judge of labels takes {LEAST} windows of {side} px of each of two labels, to learn and generated, in "
            f"several images, and there are such of {len(labels)}; give more images, or a larger `crop`"
        )
    return np.array(labels, np.int64)


def drawn(windows: Windows, labels: np.ndarray, seed: int) -> Windows:
    """At most ``PER_LABEL`` windows of each label, drawn at random."""
    rng = np.random.default_rng((seed, 22))
    chosen = [rng.permutation(np.flatnonzero(windows.labels == label))[:PER_LABEL] for label in labels]
    return windows.where(np.sort(np.concatenate(chosen)))


def features_of_windows(ranks: Ranks, crops: Crops, windows: Windows, extractor: Extract, side: int) -> np.ndarray:
    """float32 (n, D) of all windows, on every rank. Collective: batches are dealt to the ranks."""
    batches = range(-(-len(windows) // BATCH))
    own = share(len(batches), ranks.rank, ranks.size)

    def extract() -> list[np.ndarray]:
        parts = []
        for batch in batches[own.start : own.stop]:
            at = windows.at[batch * BATCH : (batch + 1) * BATCH]
            pixels = np.stack([crops.read(int(n))[y : y + side, x : x + side] for n, y, x in at])
            parts.append(extractor(pixels, lambda index, at=at: crops.named(int(at[index, 0])))[0])  # type: ignore[misc]
        return parts

    return np.concatenate([part for of_rank in ranks.allgather(ranks.agree(extract)) for part in of_rank])


# ---- the judge --------------------------------------------------------------------------------


def judged(features: Sequence[np.ndarray], labels: Sequence[np.ndarray], fold: np.ndarray) -> list[np.ndarray]:
    """Confusion matrices float64 (K, K), label by judgement, of the reference and of what was generated. Local.

    Args:
        features, labels: Of the two; labels from 0.
        fold: Which judge did not learn a window of the reference.
    """
    (known, made), count = features, int(labels[0].max()) + 1
    confusions = [np.zeros((count, count)) for _ in features]
    for judge in range(FOLDS):
        held = fold == judge
        mean, spread = known[~held].mean(0, dtype=np.float64), known[~held].std(0, dtype=np.float64) + 1e-6
        weights = regression((known[~held] - mean) / spread, labels[0][~held])
        for confusion, part, own, share_of in (
            (confusions[0], known[held], labels[0][held], 1.0),
            (confusions[1], made, labels[1], 1 / FOLDS),
        ):
            said = (with_one((part - mean) / spread) @ weights).argmax(1)
            np.add.at(confusion, (own, said), share_of)
    return confusions


def regression(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """float64 (D + 1, K): weights of multinomial logistic regression in which all labels count alike.

    By accelerated gradient steps (Nesterov 2004, scheme 2.2.11), of the length that the largest curvature allows.
    """
    x, counts = with_one(features), np.bincount(labels)
    rows = 1 / (counts * len(counts))[labels]
    truth = np.eye(len(counts))[labels]
    decay = np.full((x.shape[1], 1), 2 * WEIGHT)
    decay[-1] = 0  # of the constant
    steepest = 0.5 * np.linalg.eigvalsh((x * rows[:, None]).T @ x)[-1] + 2 * WEIGHT
    keep = (np.sqrt(steepest) - np.sqrt(2 * WEIGHT)) / (np.sqrt(steepest) + np.sqrt(2 * WEIGHT))
    weights = before = np.zeros((x.shape[1], len(counts)))
    for _ in range(STEPS):
        ahead = weights + keep * (weights - before)
        slope = x.T @ (rows[:, None] * (np.exp(log_softmax(x @ ahead)) - truth)) + decay * ahead
        before, weights = weights, ahead - slope / steepest
    return weights


def with_one(features: np.ndarray) -> np.ndarray:
    return np.concatenate([features.astype(np.float64), np.ones((len(features), 1))], 1)


# ---- what is said -----------------------------------------------------------------------------


def accuracy_of(confusion: np.ndarray) -> tuple[float, float]:
    """Mean over the labels of the share that is told rightly, and its standard error.

    >>> accuracy_of(np.array([[9.0, 1.0], [0.0, 4.0]]))[0]
    0.95
    """
    counts = confusion.sum(1)
    right = np.diag(confusion) / counts
    return float(right.mean()), float(np.sqrt((right * (1 - right) / counts).sum()) / len(right))


def measures_of(confusions: Sequence[np.ndarray], names: Sequence[str], side: int) -> list[Measure]:
    (of_reference, its_error), (of_made, error) = map(accuracy_of, confusions)
    says = f"share of windows of {side} px whose label the judge tells, mean over labels; beside it, images held out"
    ratio = of_made / of_reference if of_reference else float("nan")
    spread = float(np.hypot(error, ratio * its_error)) / of_reference if of_reference else None
    measures = [
        Measure(GROUP, "accuracy of the judge", of_made, "higher", of_reference, error, says=says),
        Measure(GROUP, "accuracy over that on the reference", ratio, "one", 1.0, spread, says="1: labels are as plain"),
    ]
    for number, name in enumerate(names):
        own, beside = (float(c[number, number] / c[number].sum()) for c in reversed(confusions))
        measures.append(Measure(GROUP, "told rightly", own, "higher", beside, label=name))
    return measures


def table_of(confusion: np.ndarray, names: Sequence[str], of: str) -> Table:
    """Shares of what windows of a label are taken for."""
    shares = confusion / confusion.sum(1, keepdims=True)
    rows = tuple(tuple(map(float, row)) for row in shares)
    says = "Rows: the label asked for; columns: what the judge says; shares of a row."
    return Table(GROUP, f"labels told by the judge, {of}", tuple(names), tuple(names), rows, says)


def named(reference: Crops, generated: Crops, label: int) -> str:
    names = generated.source.label_names or reference.source.label_names
    return names[label] if label < len(names) else f"label {label}"
