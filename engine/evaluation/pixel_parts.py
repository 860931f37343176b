"""Parts of an evaluation that look at pixels: seams, realism, statistics of arrays, the two-sample test."""

from __future__ import annotations

from collections.abc import Sequence

from engine.evaluation.arrays import array_measures
from engine.evaluation.needs import lacks_output, needs_images
from engine.evaluation.realism import realism_measures
from engine.evaluation.run import Evaluator, Part, Result
from engine.evaluation.seams import frames_of, seam_measures
from engine.evaluation.sources import OutputSource
from engine.evaluation.two_sample import two_sample_measures

PITCH = 8  # px a latent where it is not known: of the embedded model, and of Stable Diffusion's autoencoder


def seams(evaluator: Evaluator) -> Sequence[Result]:
    return seam_measures(evaluator.ranks, evaluator.sets["generated"].path)


def realism(evaluator: Evaluator) -> Sequence[Result]:
    generated, reference = evaluator.crops("generated"), evaluator.crops("reference")
    pitch = evaluator.ranks.on_root(lambda: pitch_of(evaluator))
    seed = evaluator.settings.cropping.seed
    return realism_measures(evaluator.ranks, generated, reference, pitch, seed=seed)


def pitch_of(evaluator: Evaluator) -> int:
    """Pixels a latent, of the crops."""
    crops = evaluator.crops("generated")
    if not isinstance(crops.source, OutputSource):
        return PITCH
    return max(round(frames_of(crops.source.output).factor / crops.scale), 1)


def areas(evaluator: Evaluator) -> Sequence[Result]:
    path = evaluator.sets["generated"].path
    measures, tables = array_measures(evaluator.ranks, path, evaluator.settings.scheduler)
    return [*measures, *tables]


def two_sample(evaluator: Evaluator) -> Sequence[Result]:
    settings = evaluator.settings
    options = {} if settings.steps is None else {"steps": settings.steps}
    generated, reference = evaluator.crops("generated"), evaluator.crops("reference")
    return two_sample_measures(evaluator.ranks, generated, reference, seed=settings.cropping.seed, **options)


PIXEL_PARTS = {
    "realism": Part(needs_images("generated", "reference"), realism),
    "seams": Part(lacks_output, seams),
    "areas": Part(lacks_output, areas),
    "two-sample": Part(needs_images("generated", "reference"), two_sample, long=True),
}
