"""What is to be known before the numbers of an evaluation are believed: few crops, crops that overlap, assumptions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from engine.evaluation.crops import Crops
from engine.evaluation.inputs import ARGUMENTS, Given
from engine.evaluation.run import Evaluator

CROPS_PER_FEATURE = 5  # FID's authors ask for 10,000 images of 2,048 features; below, it is too large, and varies
FEWEST = {  # crops of a set, below which a metric varies by the draw
    "kid": 1000,  # a subset of the field's
    "precision": 1000,  # neighbours of fewer lie far apart
    "inception-score": 5000,  # 500 in each of its ten parts
}
OF_WHOLE_IMAGES = {"seams", "areas"}  # which take no crops
CROWDED = 0.25  # pixels of drawn crops over those of their images, at which most crops overlap another: exp(-4 x)


def cautions_of(evaluator: Evaluator, names: Sequence[str]) -> list[str]:
    """A sentence each, none of which stops anything. Collective.

    Args:
        names: Of the metrics that are taken.
    """
    if set(names) <= OF_WHOLE_IMAGES:
        return []
    lines = [*assumed_sizes(evaluator.sets), *overlapping(evaluator)]
    return lines + [line for name in names if (line := too_few(evaluator, name))]


def too_few(evaluator: Evaluator, name: str) -> str:
    """That sets have fewer crops than a metric needs to be stable; empty: they have enough."""
    roles = [role for role in ("generated", "reference") if role in evaluator.sets]
    counts = {role: count for role in roles if (count := evaluator.sets[role].count) is not None}
    if name == "fid" and counts:
        dimensions = evaluator.dimensions("generated")
        least, why = CROPS_PER_FEATURE * dimensions, f"{CROPS_PER_FEATURE} a feature"
        if min(counts.values()) <= dimensions:
            why += f"; with less than {dimensions + 1} it has no full rank"
        effect = "it comes out too large, and is comparable at equal numbers of crops alone"
    else:
        least, why, effect = FEWEST.get(name, 0), "", "it varies by the draw"
    few = [f"{evaluator.sets[role].name} has {count:,}" for role, count in counts.items() if count < least]
    if not few:
        return ""
    return f"{name}: {' and '.join(few)} crops, below {least:,}{f' ({why})' if why else ''}: {effect}"


def overlapping(evaluator: Evaluator) -> Iterator[str]:
    """That crops are drawn so densely that most overlap another."""
    if evaluator.settings.cropping.crops is None:
        return
    shares = {given.name: crowding(given.crops) for given in evaluator.sets.values() if given.crops is not None}
    if crowded := [f"of {name} {share:.2g} times" for name, share in shares.items() if share > CROWDED]:
        yield (
            f"`crops` {evaluator.settings.cropping.crops} hold {', '.join(crowded)} the pixels that there are: they "
            "overlap, are not independent, and distances to neighbours and standard errors come out too small"
        )


def crowding(crops: Crops) -> float:
    """Pixels of all crops over those of all images.

    >>> import numpy as np
    >>> from types import SimpleNamespace as Source
    >>> crowding(Crops(Source(sizes=np.array([[64, 32]])), np.zeros((4, 3), int), 32))
    2.0
    """
    return float(len(crops) * crops.span**2 / crops.source.sizes.prod(1).sum())


def assumed_sizes(sets: dict[str, Given]) -> Iterator[str]:
    """Sets of images that do not say how large a pixel is, which is taken to be that of the others."""
    images = {role: given.crops for role, given in sets.items() if given.crops is not None}
    unknown = [role for role, crops in images.items() if crops.pixel_size_um is None]
    if len(images) < 2 or not unknown:
        return
    known = next((crops for crops in images.values() if crops.pixel_size_um is not None), None)
    assumed = "of all sets" if known is None else f"that of {known.source.path}, {known.pixel_size_um:g} um"
    paths = " and ".join(dict.fromkeys(str(images[role].source.path) for role in unknown))
    stated = ",".join(f"{ARGUMENTS[role]}=UM" for role in unknown)
    verb = "says" if len(unknown) == 1 else "say"
    yield f"{paths} {verb} no pixel size, which is taken to be {assumed}; state it with `pixel_size_of` {stated}"
