"""SampleJob: everything that changes a byte of the result. From options or YAML, strict, and back.

The same checks serve both ways in: every message names the option (or the file and key), the value and the way out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from engine.diffusion.solvers import steps_of
from engine.models.card import ModelCard

Check = Callable[[Any], Any]


@dataclass(frozen=True)
class SampleJob:
    """What is to be sampled. Fields that are None take the model's default in ``resolved``.

    Args:
        model: a model folder, or ``embedded``.
        size: height and width, px.
        count: so many independent images of that size; None: one.
        labels: a label map file, or ``example``: a drawn one.
        label: the whole canvas one label or class; several: of the images of a set in turn.
        resize_labels: ``nearest``: a label map of another size is resized.
        label_model: a model folder that samples the label map first, or ``embedded``.
        prompt: what the label model is asked for: a class by name or number; label_steps, label_guidance: its own.
        embeddings, region_embeddings: on a grid, or (class models) one a class.
        pitch: px per embedding; interpolation: where an embedding belongs: ``centre`` or ``corner`` of its cell.
        map: a semantic map given whole; instances: one of nuclei that it is made from.
        border_nuclei: what becomes of nuclei that the border cuts: ``refuse``, ``keep`` or ``drop``.
        colors: an image that nuclei and background take their mean colours from; else the two colours.
        style: networks of other training in place of the model's, separated by commas; style_map: which is where.
        image: a known image, and mask: what is to be sampled anew in it.
        eta: share of fresh noise a level (ddim).
        guidance: w in null + w (cond - null); 1 is off. omega: w - 1, as some publish it.
        guidance_interval: the first level that is guided and the first after it that is not; None: all are.
        roi: a mask of what is wanted; the rest is not sampled and left white.
        stride, weights: of the strided cover, in latents.
        shard, chunk: of the image, px.
        decode_overlap: latents that neighbouring windows of the decoder share.
        decode_weights: of the decoder's windows: ``smooth``, or ``gaussian`` with the sampler's windows.
        compile: the networks are compiled, which gives other last digits.
        accept: which images of a set are kept, the others being drawn again; see ``engine.pipeline.accept``.
        threads: CPU threads a rank; another number gives other last digits.
    """

    model: str = "embedded"
    size: tuple[int, int] = (1024, 1024)
    count: int | None = None
    labels: str | None = None
    label: int | tuple[int, ...] | None = None
    resize_labels: str | None = None
    label_model: str | None = None
    prompt: str | None = None
    label_steps: int | None = None
    label_guidance: float | None = None
    embeddings: str | None = None
    region_embeddings: str | None = None
    grid: tuple[int, int] | None = None
    pitch: int | None = None
    interpolation: str | None = None
    map: str | None = None
    instances: str | None = None
    border_nuclei: str = "refuse"
    colors: str | None = None
    nucleus_color: tuple[int, ...] = (122, 84, 156)
    background_color: tuple[int, ...] = (226, 190, 213)
    style: str | None = None
    style_map: str | None = None
    image: str | None = None
    mask: str | None = None
    steps: int | None = None
    solver: str | None = None
    eta: float | None = None
    guidance: float | None = None
    omega: float | None = None
    guidance_interval: tuple[int, int] | None = None
    roi: str | None = None
    cover: str = "shifted"
    stride: int | None = None
    weights: str = "uniform"
    seed: int = 0
    batch_size: int | None = None
    dtype: str = "float32"
    compile: bool = False
    device: str = "auto"
    shard: int = 2048
    chunk: int = 512
    decode_overlap: int | None = None
    decode_weights: str = "smooth"
    accept: str | None = None
    threads: int = 1

    def resolved(self, card: ModelCard) -> SampleJob:
        """The same job with the model's defaults in place, checked against the model.

        Raises:
            ValueError: settings that do not go together or that the model does not have.
        """
        check_condition(self, card)
        job = replace(self, guidance=1 + self.omega, omega=None) if self.omega is not None else self
        if self.omega is not None and self.guidance is not None:
            raise ValueError(f"both `guidance` {self.guidance:g} and `omega` {self.omega:g} are given; choose one")
        defaults: dict[str, Any] = {"steps": 50, "solver": "ddim", "guidance": 1.0, "batch_size": 8}
        defaults["decode_overlap"] = 16
        if card.condition == "embedding":
            defaults["interpolation"] = "corner" if self.cover == "strided" else "centre"
        defaults |= card.defaults
        job = replace(job, **{k: v for k, v in defaults.items() if k in FIELDS and getattr(job, k) is None})
        job = replace(job, eta=default_eta(self, card, job))
        if job.cover == "strided":
            job = replace(job, stride=job.stride or card.patch // 2)
        elif job.stride is not None:
            raise ValueError(
                f"stride is {job.stride} but cover {job.cover} has none; add `cover` strided, or leave `stride` out"
            )
        if job.stride and job.stride > card.patch:
            raise ValueError(
                f"stride is {job.stride} latents but a window has {card.patch}: it would leave gaps; "
                f"choose 1 to {card.patch}"
            )
        check_label(job, card)
        card.schedule.levels(job.steps)  # type: ignore[arg-type]
        if job.guidance_interval and job.guidance_interval[1] > int(job.steps or 0):
            first, last = job.guidance_interval
            raise ValueError(f"`guidance_interval` is {first}:{last} but there are {job.steps} levels; end it there")
        steps_of(str(job.solver), (0.5,), float(job.eta or 0), False)
        if job.eta and job.eta > 1:
            raise ValueError(f"eta is {job.eta:g}; choose 0 (no fresh noise) to 1 (ancestral)")
        if job.shard % job.chunk or job.shard % card.factor or job.chunk % card.factor:
            raise ValueError(
                f"shard is {job.shard} px and chunk {job.chunk} px; a shard must be a multiple of the chunk, "
                f"and both of the model's {card.factor} px per latent"
            )
        return job

    def plain(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def identity(self, card: ModelCard, hashes: Mapping[str, str]) -> dict[str, Any]:
        """What two jobs must share for their results to be the same bytes: JSON values.

        Args:
            hashes: of what the files hold that the job names.
        """
        values = {k: v for k, v in self.plain().items() if k not in FILES | UNNEEDED}
        return {**values, "model_hash": card.hash, **hashes}


FILES = {"model", "labels", "label_model", "embeddings", "region_embeddings", "map", "instances", "colors", "style"}
FILES |= {"style_map", "image", "mask", "roi"}
UNNEEDED = {"resize_labels", "prompt", "device"}  # in a hash already, or (the device) guarded by the output itself
CONDITIONS: dict[str, tuple[str, ...]] = {
    "label-map": ("labels", "label", "resize_labels", "label_model", "prompt", "label_steps", "label_guidance"),
    "class": ("labels", "label", "resize_labels", "embeddings"),
    "embedding": ("embeddings", "region_embeddings", "grid", "pitch", "interpolation"),
    "semantic": ("map", "instances", "colors", "style_map"),
    "none": (),
}


def check_condition(job: SampleJob, card: ModelCard) -> None:
    """Refuse what the model cannot be asked for, and what it needs and was not given.

    Raises:
        ValueError: naming the option, the model's kind and what it takes.
    """
    takes = CONDITIONS[card.condition]
    for name in sorted({name for names in CONDITIONS.values() for name in names} - set(takes)):
        if getattr(job, name) is not None:
            known = ", ".join(f"`{option}`" for option in takes) or "nothing"
            raise ValueError(
                f"`{name}` {getattr(job, name)} is given but the model {card.folder.name} "
                f"is conditioned by {card.condition}: it takes {known}"
            )
    if card.condition == "embedding" and job.embeddings is None:
        raise ValueError("the model asks for embeddings; pass `embeddings` FILE.npy or FILE.h5:/dataset")
    if card.condition == "semantic" and (job.map is None) == (job.instances is None):
        raise ValueError("the model asks for a semantic map; pass either `instances` FILE (nuclei) or `map` FILE")
    if "," in (job.style or "") and card.condition != "semantic":
        raise ValueError(f"`style` {job.style} names several styles; only models of semantic maps mix them: name one")
    if (job.image is None) != (job.mask is None):
        raise ValueError("in-painting takes a known image and a mask; pass both `image` and `mask`")
    if job.count is not None and (job.image is not None or job.label_model is not None):
        raise ValueError("`count` is for sets of independent images; leave out `image` and `label_model`")
    if job.roi is not None and (job.count is not None or job.image is not None):
        raise ValueError(f"`roi` {job.roi} is for one image sampled anew; leave out `count` and `image`")
    if job.accept is not None and job.count is None:
        raise ValueError(f"`accept` {job.accept} chooses among the images of a set; pass `count` N too")
    if not card.has_null and (job.omega or (job.guidance is not None and job.guidance != 1)):
        raise ValueError(f"guidance is {job.guidance} but the model was trained without a null; leave `guidance` out")


def check_label(job: SampleJob, card: ModelCard) -> None:
    given = [name for name in ("labels", "label", "label_model") if getattr(job, name) is not None]
    if len(given) > 1:
        options = " and ".join(f"`{name}` {getattr(job, name)}" for name in given)
        raise ValueError(f"both {options} are given; choose one")
    for name in ("prompt", "label_steps", "label_guidance"):
        if getattr(job, name) is not None and job.label_model is None:
            option = f"`{name}` {getattr(job, name)}"
            raise ValueError(f"{option} is for the label model, and none is used; add `label_model` DIR")
    labels = job.label if isinstance(job.label, tuple) else () if job.label is None else (job.label,)
    if len(labels) > 1 and job.count is None:
        raise ValueError(f"label is {','.join(map(str, labels))} but one image has one; pass `count` N, or one label")
    known = len(card.labels)
    if labels and max(labels) >= known and not (card.condition == "class" and job.embeddings):
        names = ", ".join(f"{i} {name}" for i, name in enumerate(card.labels))
        raise ValueError(f"label is {max(labels)} but the model knows {names}; choose one of these")


def default_eta(given: SampleJob, card: ModelCard, job: SampleJob) -> float:
    """The model's eta belongs to its own solver; 0 with another."""
    if given.eta is not None:
        return given.eta
    own = card.defaults.get("eta", 0.0)
    return float(own) if job.solver == "ddim" and isinstance(own, int | float) else 0.0


@dataclass(frozen=True)
class RunOptions:
    """How a run goes about it; none of this changes a byte."""

    out: str = "sample.zarr"
    preview: str | None = None
    overwrite: bool = False
    resume: str = "auto"
    checkpoint_every: float = 300.0
    json_log: str | None = None
    dry_run: bool = False
    ranks: int | None = None


FIELDS = tuple(field.name for field in fields(SampleJob))
