"""Is what was generated of use? A segmentation network trained on it, tested on images of the reference.

Beside it stands the same network, with the same seed and as many steps, trained on the other images of the reference,
and one trained on both. The figures say what generated pairs of image and label map are worth to whoever lacks others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.distributed.ranks import Ranks
from engine.evaluation.crops import Crops, share
from engine.evaluation.measures import Measure, Table
from engine.evaluation.run import Evaluator
from engine.evaluation.segmentation import (
    MOST_LABELS,
    MULTIPLE,
    Pool,
    Training,
    confusion,
    labels_of,
    overlaps,
    trained,
)
from engine.models.folder import device_of
from engine.training.data import spread

GROUP = "usefulness"
STEPS = 200  # of each training
QUARTER = 4  # one in so many images of the reference is held out


def lacks_downstream(evaluator: Evaluator) -> str:
    """Why nothing can be trained or tested on these sets; empty: it can."""
    for role in ("generated", "reference"):
        crops, path = evaluator.crops(role), evaluator.sets[role].path
        if crops.side < MULTIPLE:
            return f"it takes crops of {MULTIPLE} px or more and those of {path} have {crops.side}"
        if crops.labels(0) is None:
            return f"it takes label maps and {path} has none; give images with NAME_mask.png beside each, or an output"
    images = len(np.unique(evaluator.crops("reference").places[:, 0]))
    if images < QUARTER:
        return (
            f"a quarter of the images of `real` is held out, and {evaluator.sets['reference'].path} has {images}; give "
            f"{QUARTER} or more"
        )
    return ""


@dataclass(frozen=True)
class Scores:
    """What networks of several seeds, trained on one set, do on the test images.

    Args:
        counts: int64 (seeds, K, K), as ``confusion`` returns them.
    """

    counts: np.ndarray

    def rows(self) -> np.ndarray:
        """float64 (seeds, 2 + K): mean intersection over union, share of pixels, and the former of each label."""
        each = np.stack([overlaps(counts) for counts in self.counts])
        right = np.trace(self.counts, axis1=1, axis2=2) / self.counts.sum((1, 2))
        return np.concatenate([np.nanmean(each, 1)[:, None], right[:, None], each], 1)

    def mean(self) -> np.ndarray:
        return self.rows().mean(0)

    def error(self) -> np.ndarray | None:
        """Standard error of the mean over the seeds; None: there is one."""
        seeds = len(self.counts)
        return self.rows().std(0, ddof=1) / seeds**0.5 if seeds > 1 else None


def downstream(evaluator: Evaluator) -> Sequence[Measure | Table]:
    """Train three networks a seed, and test them. Collective; the same numbers on any number of ranks.

    Raises:
        AgreedError: the label maps are of different labels, or some image has none.
    """
    ranks, settings = evaluator.ranks, evaluator.settings
    generated, reference = evaluator.crops("generated"), evaluator.crops("reference")
    names = label_names(ranks, generated, reference)
    ranks.agree(lambda: check_several(names, settings.ignored))
    learned, test = ranks.agree(lambda: held_out(reference))
    pools = {
        "reference": Pool((learned,)),
        "generated": Pool((generated,)),
        "both": Pool((learned, generated)),
    }
    device = ranks.agree(lambda: device_of(settings.device, ranks.local_rank))
    steps, ignored, scores = settings.steps or STEPS, -1 if settings.ignored is None else settings.ignored, {}
    for name, pool in pools.items():
        counts = []
        for seed in range(settings.cropping.seed, settings.cropping.seed + settings.repeats):
            how = Training(steps, seed, ignored)
            evaluator.tell(f"trained on {name}: {len(pool)} crops, {steps} steps, seed {seed}")
            network = trained(ranks, pool, len(names), how, device)
            counts.append(confusion(ranks, network, test, len(names), device, ignored))
        scores[name] = Scores(np.stack(counts))
    says = (
        f"a U-Net after {steps} steps of {how.batch} windows, trained on {len(learned)} crops of the reference, on "
        f"{len(generated)} generated ones or on both, tested on {len(test)} of the reference's other images; "
        f"{settings.repeats} seed{'s' if settings.repeats > 1 else ''}"
        + (f"; {names[ignored]} does not count" if ignored in range(len(names)) else "")
    )
    return results(scores, names, says)


def results(scores: dict[str, Scores], names: Sequence[str], says: str) -> list[Measure | Table]:
    """Measures of what was trained on generated crops beside the reference, and the table of all."""
    kinds = [("mean IoU", ""), ("pixel accuracy", ""), *(("IoU", name) for name in names)]
    means = {name: score.mean() for name, score in scores.items()}
    measures = []
    for name, title in (("generated", "trained on generated"), ("both", "trained on both")):
        error = scores[name].error()
        for row, (kind, label) in enumerate(kinds[: None if name == "generated" else 2]):
            if np.isnan(means[name][row]):
                continue  # the test images have no such label
            beside, spread_of = float(means["reference"][row]), None if error is None else float(error[row])
            value = float(means[name][row])
            measures.append(
                Measure(GROUP, f"{kind}, {title}", value, "higher", beside, spread_of, label=label, says=says)
            )
    rows = tuple(f"{kind} {label}".strip() for kind, label in kinds)
    values = tuple(tuple(float(means[name][row]) for name in means) for row in range(len(rows)))
    return [*measures, Table(GROUP, "segmentation by what it was trained on", rows, tuple(means), values, says)]


def held_out(crops: Crops) -> tuple[Crops, Crops]:
    """Crops to train on, and those of a quarter of the images, evenly spread, to test on: no image has both."""
    images, of_crop = np.unique(crops.places[:, 0], return_inverse=True)
    kept = np.isin(of_crop, spread(len(images) // QUARTER, len(images), crops.source.path))
    return crops.part(np.flatnonzero(~kept)), crops.part(np.flatnonzero(kept))


def label_names(ranks: Ranks, generated: Crops, reference: Crops) -> tuple[str, ...]:
    """Names of the labels of both sets, 0 first. Collective.

    A set whose labels have no names has as many as its largest says.

    Raises:
        AgreedError: one has more of them than the other.
    """
    counts = [number_of_labels(ranks, crops) for crops in (generated, reference)]
    named = generated.source.label_names or reference.source.label_names

    def names() -> tuple[str, ...]:
        if counts[0] != counts[1]:
            a, b = generated.source.path, reference.source.path
            raise ValueError(
                f"{a} has {counts[0]} labels and {b} {counts[1]}; give sets whose label maps have the same labels"
            )
        return tuple(named) if len(named) == counts[0] else tuple(f"label {n}" for n in range(counts[0]))

    return ranks.agree(names)


def check_several(names: Sequence[str], ignored: int | None) -> None:
    """Refuse sets with nothing to tell apart.

    Raises:
        ValueError: there is one label, beside that which is ignored.
    """
    if len(names) - (ignored in range(len(names))) < 2:
        beside = "" if ignored is None else f" beside {ignored}, which does not count"
        raise ValueError(f"the label maps have {len(names)} labels{beside}; two or more can be told apart")


def number_of_labels(ranks: Ranks, crops: Crops) -> int:
    """Number of labels of a set; each rank looks at its share of the crops. Collective."""

    def own() -> np.ndarray:
        seen = np.zeros(MOST_LABELS, np.int64)
        for number in share(len(crops), ranks.rank, ranks.size):
            seen[np.unique(labels_of(crops, number))] += 1
        return seen

    seen = ranks.agree(own)
    ranks.allreduce_array(seen)
    return max(len(crops.source.label_names), int(np.flatnonzero(seen)[-1]) + 1)
