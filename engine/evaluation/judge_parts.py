"""Parts of an evaluation in which networks judge: scores of classes, variety, labels, nuclei, embeddings."""

from __future__ import annotations

from collections.abc import Sequence

from engine.evaluation.class_accuracy import class_accuracy, expert_judge, has_classes
from engine.evaluation.diversity import diversity
from engine.evaluation.embedding_similarity import embedding_similarity
from engine.evaluation.inception_score import inception_score
from engine.evaluation.label_judge import NULL, label_judge
from engine.evaluation.needs import lacks_output, needs_images
from engine.evaluation.nuclei import nuclei
from engine.evaluation.run import Evaluator, Part, Result
from engine.evaluation.sources import OutputSource, Source
from engine.models.folder import device_of

images, both = needs_images("generated"), needs_images("generated", "reference")


def device(evaluator: Evaluator) -> str:
    return device_of(evaluator.settings.device, evaluator.ranks.local_rank)


# -- scores of classes --


def lacks_logits(evaluator: Evaluator) -> str:
    if why := images(evaluator):
        return why
    return "" if evaluator.has_logits() else f"it takes class logits and {evaluator.extractor.name} has none"


def class_scores(evaluator: Evaluator) -> Sequence[Result]:
    made = evaluator.logits("generated")
    given = evaluator.sets.get("reference")
    reference = evaluator.logits("reference") if given is not None and given.crops is not None else None
    assert made is not None
    return inception_score(evaluator.ranks, made, reference)


def lacks_classes(evaluator: Evaluator) -> str:
    if why := images(evaluator):
        return why
    if not evaluator.ranks.on_root(lambda: has_classes(evaluator.crops("generated"))):
        return f"it takes images of known classes and {evaluator.sets['generated'].path} has none"
    return "" if evaluator.settings.expert else "it takes a judge; pass `expert` DIR, of engine.train expert"


def classes(evaluator: Evaluator) -> Sequence[Result]:
    expert, ranks = evaluator.settings.expert, evaluator.ranks
    assert expert is not None
    judge = ranks.agree(lambda: expert_judge(expert, device(evaluator)))
    given = evaluator.sets.get("reference")
    measures, tables = class_accuracy(ranks, evaluator.crops("generated"), given.crops if given else None, judge)
    return [*measures, *tables]


# -- variety --


def variety(evaluator: Evaluator) -> Sequence[Result]:
    given, settings = evaluator.sets.get("reference"), evaluator.settings
    reference = given.crops if given else None
    seed = settings.cropping.seed
    crops = evaluator.crops("generated")
    return diversity(evaluator.ranks, crops, reference, seed=seed, lpips=settings.lpips, device=device(evaluator))


# -- labels, nuclei, embeddings --


def labels(evaluator: Evaluator) -> Sequence[Result]:
    seed, ignored = evaluator.settings.cropping.seed, evaluator.settings.ignored
    ignore = NULL if ignored is None else (*NULL, ignored)
    made, known = evaluator.crops("generated"), evaluator.crops("reference")
    measures, tables = label_judge(evaluator.ranks, made, known, evaluator.extractor, seed=seed, ignore=ignore)
    return [*measures, *tables]


def lacks_labels(evaluator: Evaluator) -> str:
    return both(evaluator) or labelless(evaluator, ("generated", "reference"))


def labelless(evaluator: Evaluator, roles: Sequence[str]) -> str:
    """That the first crop of a set has no label map; empty: it has."""
    for role in roles:
        crops = evaluator.crops(role)
        if evaluator.ranks.on_root(lambda crops=crops: crops.labels(0) is None):  # type: ignore[misc]
            return f"it takes label maps and {crops.source.path} has none"
    return ""


def lacks_nuclei(evaluator: Evaluator) -> str:
    if why := images(evaluator):
        return why
    if not evaluator.ranks.on_root(lambda: has_nuclei(evaluator.crops("generated").source)):
        return f"it takes images with instance maps and {evaluator.sets['generated'].path} has none"
    return ""


def has_nuclei(source: Source) -> bool:
    """Whether images have instance maps: an output made from such, or a folder of images/ and inst_masks/."""
    if isinstance(source, OutputSource):
        label = source.output.layout.label
        return label is not None and label.name == "nuclei"
    return source.kind == "folder" and (source.path / "inst_masks").is_dir()


def nuclei_of_both(evaluator: Evaluator) -> Sequence[Result]:
    given = evaluator.sets.get("reference")
    source = given.crops.source if given and given.crops is not None else None
    reference = source if source is not None and evaluator.ranks.on_root(lambda: has_nuclei(source)) else None
    measures, tables = nuclei(evaluator.ranks, evaluator.crops("generated").source, reference)
    return [*measures, *tables]


def lacks_embeddings(evaluator: Evaluator) -> str:
    if why := lacks_output(evaluator):
        return why
    source = evaluator.crops("generated").source
    assert isinstance(source, OutputSource)
    if not evaluator.ranks.on_root(lambda: source.output.provenance["job"].get("embeddings")):
        return f"it takes images made from embeddings and {source.path} is not"
    return ""


def embeddings(evaluator: Evaluator) -> Sequence[Result]:
    source = evaluator.crops("generated").source
    assert isinstance(source, OutputSource)
    return embedding_similarity(evaluator.ranks, source, evaluator.extractor)


JUDGE_PARTS = {
    "inception-score": Part(lacks_logits, class_scores),
    "classes": Part(lacks_classes, classes),
    "labels": Part(lacks_labels, labels),
    "nuclei": Part(lacks_nuclei, nuclei_of_both),
    "embeddings": Part(lacks_embeddings, embeddings),
    "variety": Part(images, variety, long=True),
}
