"""Do generated pixels look like those of the reference? Densities, spectra, patches: all together, and by label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.distributed.ranks import Ranks
from engine.evaluation.crops import Crops, share
from engine.evaluation.edges import edge_measures
from engine.evaluation.groups import Draw, draws_of, groups_of
from engine.evaluation.measures import Measure
from engine.evaluation.optical_density import ALL
from engine.evaluation.pixel_facts import PixelFacts, facts_of, gathered_level, labels_of
from engine.evaluation.sliced_wasserstein import (
    BLOCK,
    DESCRIPTORS,
    DIRECTIONS,
    PATCHES,
    SMALLEST,
    distances,
    level_sides,
    normalised,
)
from engine.evaluation.spectrum import PERIODS

GROUP = "realism"
DRAWS = 5
MOST = 2000  # crops of a sample
FEWEST = 4  # crops of a sample, for a label to be measured
CHANNELS = "RGB"
FEWEST_PITCHES = 5  # in a crop
HALVES = "Distance to the reference over that between halves of the reference; 1 is no further than they are."


@dataclass(frozen=True)
class Subject:
    """Crops that are compared: all of them, or those that are mostly of one label.

    Args:
        label: Value of the label; ``ALL``.
        name: Its name; empty for all.
        reference, generated: Numbers of their crops.
    """

    label: int
    name: str
    reference: np.ndarray
    generated: np.ndarray
    draws: list[Draw]


def realism_measures(
    ranks: Ranks, generated: Crops, reference: Crops, pitch: int = 8, draws: int = DRAWS, seed: int = 0
) -> list[Measure]:
    """Measures of pixels beside those of the reference. Collective; the same numbers on any number of ranks.

    Densities, spectra and the autocorrelation are of all crops, and each is read once. Distances are means over draws
    of two halves of the reference, which share no image, and of as many crops of what was generated: to one half, and
    between the halves. A rank holds one crop, 1 kB of sums a crop, and at most about 100 MB of patches.

    Args:
        generated, reference: Crops of one side.
        pitch: Pixels a latent, at which the autocorrelation is looked at.
        draws: How often the reference is halved.
    Raises:
        AgreedError: a crop cannot be read, is too small, or the reference cannot be halved.
    """
    ranks.agree(lambda: check(generated, reference, pitch))
    subjects = subjects_of(ranks, generated, reference, draws, seed)
    made, kept = facts_of_both(ranks, generated, reference, subjects, pitch, seed)
    measures = [pitch_measure(made, kept, pitch)] if pitch > 1 else []  # of pixels themselves there is no lattice
    for subject in subjects:
        measures += density_measures(subject, made, kept) + spectrum_measures(subject, made, kept)
    measures += patch_measures(ranks, subjects, made, kept, level_sides(generated.side))
    return measures + edge_measures(ranks, generated, reference)


def check(generated: Crops, reference: Crops, pitch: int) -> None:
    """Refuse crops that cannot be measured.

    Raises:
        ValueError: they are too small, of two sizes, or the reference is one image that cannot be halved.
    """
    if generated.side != reference.side:
        raise ValueError(
            f"crops of {generated.source.path} have {generated.side} px and those of {reference.source.path} "
            f"{reference.side}; pass one `crop`"
        )
    least = max(SMALLEST, FEWEST_PITCHES * pitch)
    if generated.side < least:
        raise ValueError(f"`crop` is {generated.side} px, too small for spectra; choose {least} or more")
    if len(np.unique(groups := groups_of(reference))) - (groups.min() < 0) < 2:
        raise ValueError(
            f"{reference.source.path} cannot be halved: it is one image of few crops; give more, or a smaller `crop`"
        )


def subjects_of(ranks: Ranks, generated: Crops, reference: Crops, draws: int, seed: int) -> list[Subject]:
    """All crops, and those of every label that both sets have enough of. Collective."""
    made, kept = labels_of(ranks, generated), labels_of(ranks, reference)
    of_made, groups = groups_of(generated), groups_of(reference)
    names = generated.source.label_names or reference.source.label_names
    subjects = []
    for label in (ALL, *sorted(set(made[made >= 0]) & set(kept[kept >= 0]))):
        theirs, ours = (np.flatnonzero((label == ALL) | (labels == label)) for labels in (kept, made))
        drawn = draws_of((groups, of_made), (theirs, ours), draws, MOST, seed)
        name = "" if label == ALL else names[label] if label < len(names) else f"label {label}"
        if drawn and (label == ALL or min(len(draw.half) for draw in drawn) >= FEWEST):
            subjects.append(Subject(int(label), name, theirs, ours, drawn))
    return subjects


def facts_of_both(
    ranks: Ranks, generated: Crops, reference: Crops, subjects: Sequence[Subject], pitch: int, seed: int
) -> tuple[PixelFacts, PixelFacts]:
    """What is known of the crops of both sets, with patches of those that the draws use. Collective."""
    ours, theirs = used(subjects)
    each = min(PATCHES, max(DESCRIPTORS // max(len(ours), len(theirs)), 1))
    return (
        facts_of(ranks, generated, pitch, ours, each, lambda n: np.random.default_rng((seed, 1, n))),
        facts_of(ranks, reference, pitch, theirs, each, lambda n: np.random.default_rng((seed, 2, n))),
    )


def used(subjects: Sequence[Subject]) -> tuple[np.ndarray, np.ndarray]:
    """Sorted numbers of the crops of what was generated, and of the reference, that any draw uses."""
    draws = [draw for subject in subjects for draw in subject.draws]
    ours = np.unique(np.concatenate([draw.generated for draw in draws]))
    return ours, np.unique(np.concatenate([part for draw in draws for part in (draw.half, draw.other)]))


# ---- measures -----------------------------------------------------------------------------------


def over_halves(name: str, label: str, pairs: Sequence[tuple[float, float]]) -> list[Measure]:
    """A distance to the reference over that between halves of it.

    Args:
        pairs: Both, for every draw.
    """
    to, between = np.array(pairs).T
    if not between.mean() > 0:
        return []
    error = float(to.std(ddof=1) / len(to) ** 0.5 / between.mean()) if len(to) > 1 else None
    return [Measure(GROUP, name, float(to.mean() / between.mean()), "lower", 1.0, error, label=label, says=HALVES)]


def density_measures(subject: Subject, made: PixelFacts, kept: PixelFacts) -> list[Measure]:
    """Mean and spread of the optical density of each channel, over all pixels of a label."""
    ours, theirs = made.density.of(subject.label), kept.density.of(subject.label)
    if ours is None or theirs is None:
        return []
    names = [f"optical density {channel} {what}" for what in ("mean", "spread") for channel in CHANNELS]
    errors = made.density.error(subject.label)
    measures = [
        Measure(GROUP, name, float(value), "", float(beside), float(error), label=subject.name)
        for name, value, beside, error in zip(names, ours, theirs, errors, strict=True)
    ]
    pairs = []
    for draw in subject.draws:
        half, other = (kept.density.of(subject.label, crops) for crops in (draw.half, draw.other))
        drawn = made.density.of(subject.label, draw.generated)
        if half is not None and other is not None and drawn is not None:
            pairs.append((root_mean_square(drawn - half), root_mean_square(other - half)))
    return measures + (over_halves("optical density, over halves", subject.name, pairs) if pairs else [])


def spectrum_measures(subject: Subject, made: PixelFacts, kept: PixelFacts) -> list[Measure]:
    """Power over periods less that of the reference, in dB."""
    bands = np.isfinite(made.bands).all(0) & np.isfinite(kept.bands).all(0)

    def decibels(facts: PixelFacts, crops: np.ndarray) -> np.ndarray:
        return 10 * np.log10(np.maximum(facts.bands[crops][:, bands].mean(0), 1e-12))

    pairs, halves = [], []
    for draw in subject.draws:
        half = decibels(kept, draw.half)
        between = decibels(kept, draw.other) - half
        halves.append(between**2)
        pairs.append((root_mean_square(decibels(made, draw.generated) - half), root_mean_square(between)))
    ratio = over_halves("power over periods, over halves", subject.name, pairs)
    if subject.label != ALL:
        return ratio
    apart = decibels(made, subject.generated) - decibels(kept, subject.reference)
    says = "Power less that of the reference; beside it how far halves of the reference are apart."
    return [
        Measure(GROUP, f"power, periods {low} to {high} px", float(value), "zero", float(beside), unit="dB", says=says)
        for (low, high), value, beside in zip(np.array(PERIODS)[bands], apart, np.sqrt(np.mean(halves, 0)), strict=True)
    ] + ratio


def pitch_measure(made: PixelFacts, kept: PixelFacts, pitch: int) -> Measure:
    """Whether anything keeps to the latents' pitch."""
    error = float(made.repeats.std(ddof=1) / len(made.repeats) ** 0.5) if len(made.repeats) > 1 else None
    says = (
        "Autocorrelation at multiples of the latents' pitch, less that half a pitch beside: 0 where "
        "nothing keeps to the pitch; above 0 a pattern repeats, below 0 it alternates from latent to latent."
    )
    name = f"autocorrelation every {pitch} px"
    return Measure(GROUP, name, float(made.repeats.mean()), "zero", float(kept.repeats.mean()), error, says=says)


def patch_measures(
    ranks: Ranks, subjects: Sequence[Subject], made: PixelFacts, kept: PixelFacts, sides: Sequence[int]
) -> list[Measure]:
    """Sliced Wasserstein distances times 1000, of each level of the pyramid and their mean. Collective.

    Patches of both sets are in units of the reference's channels, so that contrast and colour count; Karras et al.
    normalise each set by itself.
    """
    of_levels = np.stack([level_distances(ranks, subjects, made, kept, level) for level in range(len(sides))])
    of_levels *= 1000  # (levels, draws of all subjects, 2)
    measures, first = [], 0
    for subject in subjects:
        own = of_levels[:, first : first + len(subject.draws)]
        first += len(subject.draws)
        named = [("sliced Wasserstein x 1000", own.mean(0))]
        if subject.label == ALL:
            named += [(f"sliced Wasserstein x 1000, {side} px", own[level]) for level, side in enumerate(sides)]
        for name, pairs in named:
            error = float(pairs[:, 0].std(ddof=1) / len(pairs) ** 0.5) if len(pairs) > 1 else None
            value, beside = pairs.mean(0).tolist()
            says = "Distance of patches to the reference; beside it the same between halves of the reference."
            measures.append(Measure(GROUP, name, value, "lower", beside, error, label=subject.name, says=says))
        measures += over_halves("sliced Wasserstein, over halves", subject.name, own.mean(0).tolist())
    return measures


def level_distances(
    ranks: Ranks, subjects: Sequence[Subject], made: PixelFacts, kept: PixelFacts, level: int
) -> np.ndarray:
    """float64 (draws of all subjects, 2): of one level, to half of the reference and between its halves. Collective.

    Blocks of directions are dealt to the ranks.
    """
    theirs, ours = gathered_level(ranks, kept, level), gathered_level(ranks, made, level)
    mean, std = theirs.mean((0, 1, 2), np.float64), theirs.std((0, 1, 2), np.float64) + 1e-6
    mean, std = mean.astype(np.float32), std.astype(np.float32)
    made_crops, kept_crops = used(subjects)
    each = len(ours) // len(made_crops)

    def rows_of(crops: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        return np.repeat(np.isin(crops, chosen, assume_unique=True), each)

    masks = [
        (rows_of(kept_crops, draw.half), rows_of(kept_crops, draw.other), rows_of(made_crops, draw.generated))
        for subject in subjects
        for draw in subject.draws
    ]
    a, b = normalised(theirs, mean, std), normalised(ours, mean, std)
    blocks = share(DIRECTIONS // BLOCK, ranks.rank, ranks.size)
    own = [distances(a, b, masks, block) for block in blocks]
    return np.mean([one for part in ranks.allgather(own) for one in part], 0)


def root_mean_square(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))
