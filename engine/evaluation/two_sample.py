"""Can a network tell generated crops from those of the reference? The classifier two-sample test.

Source: Lopez-Paz and Oquab 2017, arXiv:1610.06545.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from engine.distributed.ranks import Ranks
from engine.evaluation.crops import Crops, share
from engine.evaluation.groups import groups_of, halved
from engine.evaluation.measures import Measure
from engine.training.data import dihedral

GROUP = "two-sample test"
SIDE = 64  # px of what the network sees
MOST = 2048  # squares of a set
STEPS = 300
BATCH = 32
RATE = 1e-3
FEWEST = 4  # groups of a set: two to train on, two held out


@dataclass(frozen=True)
class Trial:
    """Two classes of crops, told apart: trained on some groups, tried on others.

    Args:
        pixels: For each class uint8 (n, 64, 64, 3).
        groups: For each class int64 (n,): crops of one image have one group, which no class shares.
        seed: Of what is held out, of the network and of its batches.
    """

    pixels: tuple[np.ndarray, np.ndarray]
    groups: tuple[np.ndarray, np.ndarray]
    seed: int


def two_sample_measures(
    ranks: Ranks, generated: Crops, reference: Crops, steps: int = STEPS, seed: int = 0
) -> list[Measure]:
    """How well a small network tells generated from reference, on images that it was not trained on. Collective.

    Two trainings, each on the half of the images that the other holds out, and two of the control: the reference's
    images in two classes by lot, which nothing tells apart. Trainings are dealt to the ranks and each is on one thread,
    so that all numbers of ranks say the same. A rank holds up to 2048 squares of 64 px of each set, 50 MB.

    Args:
        steps: Of each training; 300 take 10 s on a CPU core.
    Raises:
        AgreedError: a crop cannot be read or is too small, or a set has too few images.
    """
    ranks.agree(lambda: check(generated, reference))
    made, kept = read_all(ranks, generated, seed), read_all(ranks, reference, seed)
    trials = trials_of(made, kept, seed)
    mine = [tried(trial, steps) for trial in trials[ranks.rank :: ranks.size]]
    dealt = ranks.allgather(mine)
    results = [dealt[n % ranks.size][n // ranks.size] for n in range(len(trials))]
    (value, error), (control, control_error) = (accuracy(results[first : first + 2]) for first in (0, 2))
    says = "Share of held-out crops that a small network tells right, both sets counted alike; 0.5 is chance."
    of_control = "The same of the reference in two parts by lot, which nothing tells apart."
    return [
        Measure(GROUP, "accuracy", value, "lower", control, error, says=says),
        Measure(GROUP, "accuracy of the control", control, "", 0.5, control_error, says=of_control),
    ]


def check(generated: Crops, reference: Crops) -> None:
    """Refuse sets that no test can be made of.

    Raises:
        ValueError: crops are too small, or there are too few images; the control takes twice as many.
    """
    for crops, least in ((generated, FEWEST), (reference, 2 * FEWEST)):
        path = crops.source.path
        if crops.side < SIDE:
            raise ValueError(f"`crop` is {crops.side} px; a two-sample test takes {SIDE} or more")
        groups = groups_of(crops)
        count = len(np.unique(groups[groups >= 0]))
        if count < least:
            raise ValueError(
                f"{path} has {count} images, or parts of a large one, that do not share crops; a two-sample test takes "
                f"{least}: give more, or a smaller `crop`"
            )


def read_all(ranks: Ranks, crops: Crops, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (n, 64, 64, 3) and int64 (n,): squares at random places in crops, and their groups. Collective.

    Raises:
        AgreedError: a crop cannot be read.
    """
    groups = groups_of(crops)
    rng = np.random.default_rng((seed, len(crops)))
    whole = rng.permutation(np.flatnonzero(groups >= 0))[:MOST]
    chosen = np.sort(np.repeat(whole, min(max(MOST // len(whole), 1), (crops.side // SIDE) ** 2)))
    span = round(SIDE * crops.scale)
    inside = rng.integers(0, crops.span - span + 1, (len(chosen), 2))
    squares = replace(crops, places=crops.places[chosen] + np.insert(inside, 0, 0, axis=1), side=SIDE)
    mine = share(len(squares), ranks.rank, ranks.size)

    def own() -> np.ndarray:
        return squares.pixels(mine) if mine else np.empty((0, SIDE, SIDE, 3), np.uint8)

    return np.concatenate(ranks.allgather(ranks.agree(own))), groups[chosen]


def trials_of(
    generated: tuple[np.ndarray, np.ndarray], reference: tuple[np.ndarray, np.ndarray], seed: int
) -> list[Trial]:
    """Two trials of generated against reference, and two of the reference in two parts: each half is held out once."""
    own, images = reference
    part, rest = halved(images, np.random.default_rng((seed, 0)))
    control = ((own[part], own[rest]), (images[part], images[rest]))
    told_apart = ((generated[0], own), (generated[1], images))
    return [Trial(pixels, groups, 2 * seed + half) for pixels, groups in (told_apart, control) for half in (0, 1)]


def split(trial: Trial) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """For each class bool (n,), twice: the crops to train on, and those held out, which share no group with them."""
    halves = [list(halved(groups, np.random.default_rng((trial.seed // 2, 1)))) for groups in trial.groups]
    trained = trial.seed % 2
    return [pair[trained] for pair in halves], [pair[1 - trained] for pair in halves]


def tried(trial: Trial, steps: int) -> list[list[tuple[int, int]]]:
    """Train on one half of each class's groups, and try on the other. Local.

    Returns:
        For each class and each group held out: crops told right, and crops.
    """
    trained, held = split(trial)
    with one_thread():
        network = train([p[at] for p, at in zip(trial.pixels, trained, strict=True)], steps, trial.seed)
        right = [told(network, p[at]) == label for label, (p, at) in enumerate(zip(trial.pixels, held, strict=True))]
    results = []
    for groups, at, correct in zip(trial.groups, held, right, strict=True):
        names, numbers = np.unique(groups[at], return_inverse=True)
        sums = np.bincount(numbers, correct, len(names)).astype(int).tolist()
        results.append(list(zip(sums, np.bincount(numbers).tolist(), strict=True)))
    return results


def accuracy(results: list[list[list[tuple[int, int]]]]) -> tuple[float, float]:
    """Mean of the two classes' accuracies, and its standard error: the spread over images held out.

    Args:
        results: As ``tried`` returns them, of both halves.
    """
    means, variances = [], []
    for label in (0, 1):
        right, count = np.array([group for half in results for group in half[label]]).T
        mean = right.sum() / count.sum()
        off = right - mean * count
        means.append(mean)
        variances.append(len(off) / max(len(off) - 1, 1) * (off**2).sum() / count.sum() ** 2)
    return float(np.mean(means)), float(np.sqrt(sum(variances)) / 2)


# ---- the network --------------------------------------------------------------------------------


def network_of(seed: int) -> nn.Module:
    """Four convolutions and a mean over the picture: 60 k parameters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for inputs, outputs, stride in ((3, 16, 2), (16, 32, 2), (32, 64, 2), (64, 64, 2)):
            layers += [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.GroupNorm(8, outputs), nn.SiLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2))


def train(pixels: list[np.ndarray], steps: int, seed: int) -> nn.Module:
    """A network that tells classes apart, trained on batches with as many crops of each, turned and mirrored."""
    network, rng = network_of(seed), np.random.default_rng((seed, 2))
    optimiser = torch.optim.AdamW(network.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4 * RATE, total_steps=max(steps, 1))
    labels = torch.arange(2).repeat_interleave(BATCH // 2)
    for _ in range(steps):
        batch = [
            dihedral(crops[n], int(turn))
            for crops in pixels
            for n, turn in zip(rng.integers(len(crops), size=BATCH // 2), rng.integers(8, size=BATCH // 2), strict=True)
        ]
        loss = cross_entropy(network(tensor_of(np.stack(batch))), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return network.eval()


@torch.no_grad()
def told(network: nn.Module, pixels: np.ndarray) -> np.ndarray:
    """int64 (n,): the class that each crop is taken for."""
    parts = [network(tensor_of(pixels[first : first + 256])).argmax(1) for first in range(0, len(pixels), 256)]
    return torch.cat(parts).numpy()


def tensor_of(pixels: np.ndarray) -> Tensor:
    """float32 (n, 3, 64, 64), -1 to 1."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))).float() / 127.5 - 1


@contextmanager
def one_thread() -> Iterator[None]:
    """While this lasts torch computes on one thread, so that sums are made in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
