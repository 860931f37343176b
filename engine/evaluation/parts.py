"""The parts of an evaluation by name: what each needs, and the measures that it gives."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec

import numpy as np

from engine.evaluation.copying import CELLS, LEAST_IN_CELL, Copying, copying_of, copying_test
from engine.evaluation.downstream import downstream, lacks_downstream
from engine.evaluation.frechet import Statistics, check_rank, frechet_distance, statistics_of
from engine.evaluation.gathered import Features, halves, part_of
from engine.evaluation.groups import groups_of
from engine.evaluation.judge_parts import JUDGE_PARTS
from engine.evaluation.kernel_distance import kernel_distance
from engine.evaluation.manifold import DENSITY_K, RECALL_K, Manifold, manifold_of
from engine.evaluation.measures import Measure, Neighbour
from engine.evaluation.names import METRICS
from engine.evaluation.needs import needs, needs_images, reason, unlike
from engine.evaluation.pixel_parts import PIXEL_PARTS
from engine.evaluation.run import Evaluator, Part, Result

LEAST_OF_KERNEL = 10
SHOWN = 160  # px, longest side of a picture in an evaluation


# -- distances of features --


def lacks_frechet(evaluator: Evaluator) -> str:
    if "reference" not in evaluator.sets:
        return "it takes `real`; pass it"
    for role in ("generated", "reference"):
        given, dimensions = evaluator.sets[role], evaluator.dimensions(role)
        if evaluator.settings.few or given.count is None:
            continue
        if why := reason(partial(check_rank, given.name, given.count, dimensions)):
            return why
    return unlike(evaluator, ("generated", "reference"))


def frechet(evaluator: Evaluator) -> Sequence[Result]:
    """The Frechet distance, beside that of the reference's halves."""
    ranks, few = evaluator.ranks, evaluator.settings.few
    of_sets = [of_role(evaluator, role) for role in ("generated", "reference")]
    value = ranks.on_root(lambda: frechet_distance(of_sets[0], of_sets[1]))
    between = None
    given = evaluator.sets["reference"]
    if given.statistics is None and fewest_of_a_half(evaluator) > (1 if few else of_sets[1].dimensions):
        a, b = (statistics_of(ranks, part) for part in reference_halves(evaluator))
        between = ranks.on_root(lambda: frechet_distance(a, b))
    counts = " against ".join(str(s.count) if s.count else "given statistics" for s in of_sets)
    says = f"{counts} crops; beside it, halves of the reference, whose smaller number makes it larger"
    return [Measure("distances of features", frechet_name(evaluator), value, "lower", between, says=says)]


def of_role(evaluator: Evaluator, role: str) -> Statistics:
    """Mean and covariance of a set. Collective."""
    given = evaluator.sets[role].statistics
    return given or statistics_of(evaluator.ranks, evaluator.features(role))


def frechet_name(evaluator: Evaluator) -> str:
    """What the field calls the distance of such features on such crops."""
    crops = evaluator.sets["generated"].crops
    if crops is None:
        return "Frechet distance"
    cut = bool((crops.source.sizes > crops.span).any())
    kind = {"inception": "FID", "clip": "CLIP FID"}.get(evaluator.extractor.kind, "Frechet distance")
    return f"Crop {kind}" if cut and kind == "FID" else kind


def reference_halves(evaluator: Evaluator) -> tuple[Features, Features]:
    """Two halves of the reference's features, drawn at random; of images no crops of one are in both. Collective."""
    features, ranks = evaluator.features("reference"), evaluator.ranks
    a, b = halves_of_reference(evaluator)
    return part_of(ranks, features, a), part_of(ranks, features, b)


def halves_of_reference(evaluator: Evaluator) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of their crops."""
    crops = evaluator.sets["reference"].crops
    groups = np.arange(evaluator.count("reference")) if crops is None else groups_of(crops)
    return halves(groups, evaluator.settings.cropping.seed)


def fewest_of_a_half(evaluator: Evaluator) -> int:
    """Number of crops in the smaller half of the reference."""
    return min(map(len, halves_of_reference(evaluator)))


def kernel(evaluator: Evaluator) -> Sequence[Result]:
    """KID, beside that of the reference's halves."""
    ranks = evaluator.ranks
    value, spread = kernel_distance(ranks, evaluator.features("generated"), evaluator.features("reference"))
    between, _ = kernel_distance(ranks, *reference_halves(evaluator))
    says = "subsets drawn as torch-fidelity draws them; the error is the spread over the subsets, as the field gives it"
    return [Measure("distances of features", "KID", value, "lower", between, spread, says=says)]


def lacks_kernel(evaluator: Evaluator) -> str:
    return needs("generated", "reference")(evaluator) or too_few(evaluator, LEAST_OF_KERNEL)


def too_few(evaluator: Evaluator, least: int) -> str:
    """That there are fewer crops than so many generated, or in a half of the reference."""
    counts = {"generated": evaluator.count("generated"), "half of the reference": fewest_of_a_half(evaluator)}
    few = next((name for name, count in counts.items() if count < least), None)
    return f"{few} has {counts[few]} crops and it takes {least}; give more images, or a smaller `crop`" if few else ""


# -- precision and recall --


def manifolds(evaluator: Evaluator) -> Sequence[Result]:
    """Improved precision and recall, density and coverage, beside those of the reference's halves."""
    made = manifold_of(evaluator.ranks, evaluator.features("generated"), evaluator.features("reference"))
    own = manifold_of(evaluator.ranks, *reference_halves(evaluator))
    says = {
        "precision": "share of the generated within the reference's 3 nearest neighbours",
        "recall": "share of the reference within the generated's 3 nearest neighbours",
        "density": "in how many of the reference's balls of 5 neighbours a generated crop lies, over 5",
        "coverage": "share of the reference's balls of 5 neighbours that hold a generated crop",
    }
    return [measure_of(name, made, own, text) for name, text in says.items()]


def measure_of(name: str, made: Manifold, own: Manifold, says: str) -> Measure:
    better = "one" if name == "density" else "higher"
    return Measure("fidelity and variety", name, getattr(made, name), better, getattr(own, name), says=says)


def lacks_manifolds(evaluator: Evaluator) -> str:
    return needs("generated", "reference")(evaluator) or too_few(evaluator, max(RECALL_K, DENSITY_K) + 1)


# -- copies --


def copies(evaluator: Evaluator) -> Sequence[Result]:
    """Authenticity, C_T, distances to the nearest training crops, and the crops that are nearest to one."""
    ranks = evaluator.ranks
    made, unseen, train = (evaluator.features(role) for role in ("generated", "reference", "train"))
    copying = copying_of(ranks, made, unseen, train)
    group = "copies of the training set"
    results: list[Result] = [
        Measure(
            group, "authenticity", 100 * copying.authenticity, "higher", 100 * copying.of_reference, unit="%",
            says="share farther from their nearest training crop than that is from its own; beside it, the reference",
        ),
    ]  # fmt: skip
    results += nearness(evaluator, copying, group) + copying_tests(evaluator, group)
    return results + nearest_pictures(evaluator, copying, "train")


def nearness(evaluator: Evaluator, copying: Copying, group: str) -> list[Result]:
    """Distances to the nearest training crops over those of the reference, if it is not of training images itself."""
    if np.isnan(copying.median_ratio) or np.isnan(copying.ratio):
        evaluator.leave_out("distances to the training set", "the reference holds images of it; pass others as `real`")
        return []
    name = "distance to the nearest training crop"
    says = "over that of the reference: below 1, generated crops are nearer to the training set than unseen ones"
    return [
        Measure(group, f"{name}, median", copying.median_ratio, "one", 1.0, says=says),
        Measure(group, f"{name}, 1st percentile", copying.ratio, "one", 1.0, says=f"{says}; copies show here first"),
    ]


def copying_tests(evaluator: Evaluator, group: str) -> list[Result]:
    """C_T, if it can be taken. Collective."""
    ranks = evaluator.ranks
    if not ranks.on_root(lambda: find_spec("sklearn") is not None):
        evaluator.leave_out("C_T", "it takes scikit-learn; pip install scikit-learn")
        return []
    made, unseen, train = (evaluator.features(role) for role in ("generated", "reference", "train"))
    if train.count < CELLS or np.isnan(value := copying_test(ranks, made, unseen, train)):
        evaluator.leave_out("C_T", f"no cell has more than {LEAST_IN_CELL} generated crops; give more")
        return []
    says = "z score, below 0 where generated crops are nearer to the training set than the reference; 0 is good"
    return [Measure(group, "C_T", value, "zero", 0.0, says=says)]


def lacks_copies(evaluator: Evaluator) -> str:
    return needs("generated", "reference", "train")(evaluator)


def nearest_pictures(evaluator: Evaluator, copying: Copying, role: str) -> list[Result]:
    """The crops that are nearest to one of another set, with pictures of both. Collective."""
    sets, count = evaluator.sets, evaluator.settings.pictures
    if sets["generated"].crops is None or sets[role].crops is None:
        return []
    closest = np.argsort(copying.generated, kind="stable")[:count]
    pairs = [(int(made), int(copying.numbers[made])) for made in closest]
    generated, others = evaluator.crops("generated"), evaluator.crops(role)

    def show() -> list[Neighbour]:
        return [
            Neighbour(
                generated.named(made), others.named(other), float(copying.generated[made]),
                png(generated.read(made)), png(others.read(other)),
            )
            for made, other in pairs
        ]  # fmt: skip

    return list(evaluator.ranks.on_root(show))


def png(pixels: np.ndarray) -> str:
    """A picture as PNG in base64, of at most ``SHOWN`` px a side."""
    from PIL import Image

    file, image = io.BytesIO(), Image.fromarray(pixels)
    image.thumbnail((SHOWN, SHOWN))
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")


PARTS = {
    "fid": Part(lacks_frechet, frechet),
    "kid": Part(lacks_kernel, kernel),
    "precision": Part(lacks_manifolds, manifolds),
    "copies": Part(lacks_copies, copies),
    **PIXEL_PARTS,
    **JUDGE_PARTS,
    "downstream": Part(
        lambda e: needs_images("generated", "reference")(e) or lacks_downstream(e), downstream, long=True
    ),
}
assert list(PARTS) == list(METRICS), "names.py lists the metrics in the order of PARTS"
