"""SampleJob: everything that changes a byte of the result. RunOptions: how a run goes about it.

Every field declares its option; the command line, job files, Python and docs/options.md read the declaration.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

from engine.diffusion.names import SOLVERS
from engine.messages import did_you_mean, quoted, shortened
from engine.options import (
    FILE,
    FLAG,
    INTERVAL,
    PATH,
    REGION,
    RGB,
    ROWS,
    RULE,
    SECTIONS,
    SIZE,
    Checked,
    choice,
    described,
    names_function,
    number,
    option,
    options_of,
    some_labels,
    some_numbers,
    switched,
    whole,
)
from engine.planning.names import COVERS, LARGEST_LABEL, WEIGHTS

if TYPE_CHECKING:
    from engine.models.card import ModelCard

GROUPS = {
    "image": "what is sampled",
    "condition": "what the model is asked for",
    "sampling": "how it is sampled",
    "output": "what is written, and where",
    "run": "how a run goes about it",
}
image_option = partial(option, group="image")
condition_option = partial(option, group="condition")
sampling_option = partial(option, group="sampling")
output_option = partial(option, group="output")
run_option = partial(option, group="run")
MODELS = "the model's"
LABEL_MAP, CLASS, EMBEDDING, SEMANTIC = (("label-map",), ("class",), ("embedding",), ("semantic",))  # kinds of models


@dataclass(frozen=True, kw_only=True)
class SampleJob(Checked):
    """What is to be sampled: everything that changes a byte of the result.

    Fields that are None take the model's default in ``resolved``.
    """

    model: str = image_option("embedded", PATH, "model folder; 'embedded' is the one in the package", metavar="DIR")
    size: tuple[int, int] = image_option((1024, 1024), SIZE, "height and width in pixels")
    count: int | None = image_option(
        None, whole(1, 10**7), "number of independent images of that size, sampled as one set", unset="one image"
    )
    seed: int = image_option(0, whole(0), "seed of all noise and of the covers")
    image: str | None = image_option(None, FILE, "the known image of in-painting (`mask`) or a variation (`strength`)")
    mask: str | None = image_option(None, FILE, "in-painting: mask whose pixels that are not 0 are sampled anew")
    continue_: str | None = image_option(
        None,
        PATH,
        "finished image that is continued past its edge: `region`, in pixels of it, is painted around what is there",
        metavar="OUT",
        unset="none",
    )
    strength: float | None = image_option(
        None,
        number(0, 1),
        "variation of the known image: the share of the levels, the cleanest ones, that are sampled; 1 keeps the least",
    )
    start: str | None = image_option(
        None,
        choice("noised", "inverted"),
        "what a variation begins from: the known image with noise added, or noise that ddim run backwards makes of it, "
        "unguided, so that sampling without noise leads back to it",
        unset="noised",
    )
    roi: str | None = image_option(
        None, FILE, "region of interest: mask that is not 0 where the image is wanted; the rest stays white"
    )

    labels: str | None = condition_option(
        None,
        FILE,
        "label map: PNG, TIFF, .npy or Zarr; 'example' draws one; or a function of position, module:function",
        models=LABEL_MAP + CLASS,
    )
    label: int | str | tuple[int | str, ...] | None = condition_option(
        None,
        some_labels(LARGEST_LABEL),
        "label or class of the whole canvas; several are those of a set's images in turn",
        models=LABEL_MAP + CLASS,
    )
    labels_scale: str | None = condition_option(
        None,
        choice("spread"),
        "how the labels stand in the file of `labels`: spread over 0 to 255, as DiffInfinite's pictures have them",
        unset="as they are",
        models=LABEL_MAP + CLASS,
        identity=False,
    )
    labels_table: str | None = condition_option(
        None,
        PATH,
        "label of each code in the file of `labels`: lines CODE,LABEL, and *,LABEL for all others",
        metavar="FILE.csv",
        models=LABEL_MAP + CLASS,
    )
    resize_labels: str | None = condition_option(
        None, choice("nearest"), "resize a label map of another size", models=LABEL_MAP + CLASS, identity=False
    )
    label_model: str | None = condition_option(
        None,
        PATH,
        "label model that samples the label map first; 'embedded' is the one in the package",
        metavar="DIR",
        unset="embedded for sets and prompts of the embedded model, else none",
        models=LABEL_MAP,
    )
    prompt: int | str | tuple[int | str, ...] | None = condition_option(
        None,
        some_labels(LARGEST_LABEL),
        "class that the label model is asked for; several are those of a set's label maps in turn",
        metavar="CLASS[,CLASS...]",
        unset="its first",
        models=LABEL_MAP,
        identity=False,
    )
    label_steps: int | None = condition_option(
        None, whole(1), "number of levels of the label map", unset="the label model's", models=LABEL_MAP
    )
    label_guidance: float | None = condition_option(
        None, number(0), "guidance weight of the label map", unset="the label model's", metavar="W", models=LABEL_MAP
    )
    embeddings: str | None = condition_option(
        None,
        FILE,
        "embeddings on a grid (.npy, FILE.h5:/dataset, or a file of engine.embed), or one a class; or a function of "
        "position, module:function",
        models=CLASS + EMBEDDING,
    )
    region_embeddings: str | None = condition_option(
        None, FILE, "embeddings of the second token, on the same grid", unset="zero", models=EMBEDDING
    )
    grid: tuple[int, int] | None = condition_option(
        None, SIZE, "rows and columns of embeddings that are listed one after another", models=EMBEDDING
    )
    rows: int | str | None = condition_option(
        None,
        ROWS,
        "which rows of a longer list of embeddings: the number of the first, or a file of all their numbers, shaped as "
        "the grid",
        unset="all there are",
        models=EMBEDDING,
        identity=False,
    )
    region_rows: int | str | None = condition_option(
        None, ROWS, "the same of `region_embeddings`", unset="all there are", models=EMBEDDING, identity=False
    )
    grid_order: str = condition_option(
        "rows",
        choice("rows", "columns"),
        "how listed embeddings, or row numbers, lie on the grid: row by row or column by column",
        models=EMBEDDING,
        identity=False,
    )
    pitch: int | None = condition_option(
        None,
        whole(1),
        "distance from one embedding to the next, in pixels",
        metavar="PX",
        unset="a window's side",
        models=EMBEDDING,
    )
    interpolation: str | None = condition_option(
        None,
        choice("centre", "corner"),
        "where in its cell an embedding lies",
        unset="corner with the strided cover, else centre",
        models=EMBEDDING,
    )
    map: str | None = condition_option(
        None,
        FILE,
        "semantic map: channels first (.npy or Zarr), or a map of class ids, of which one-hot channels are made",
        models=SEMANTIC,
    )
    map_ids: str | None = condition_option(
        None,
        choice("plain", "ade20k", "coco", "mask"),
        "what ids in a map of classes mean: themselves, or as those datasets have it; in a mask what is not 0 is 1",
        unset="plain",
        models=SEMANTIC,
    )
    instances: str | None = condition_option(
        None,
        FILE,
        "instance map of nuclei, from which the semantic map is made; of a set also a folder of them, or a "
        "dataset's with inst_masks/ and images/; beside a map of class ids it gives the edges",
        models=SEMANTIC,
    )
    border_nuclei: str = condition_option(
        "refuse",
        choice("refuse", "keep", "drop", "published"),
        "what becomes of nuclei that the border cuts; published keeps them, without distance maps where they begin in "
        "the first two rows or columns",
        models=SEMANTIC,
    )
    least_area: int | None = condition_option(
        None,
        whole(0),
        "area below which a nucleus has no distance maps; 0 is none, but nuclei 1 px wide or high have none either",
        metavar="PX",
        unset=MODELS,
        models=SEMANTIC,
    )
    torn_nuclei: str | None = condition_option(
        None,
        choice("split", "keep"),
        "whether the distance maps take parts of one id that do not touch for nuclei of their own",
        unset=MODELS,
        models=SEMANTIC,
    )
    appearance: str | None = condition_option(
        None,
        FILE,
        "reference image of any size, whose pixels in random order are the colours, as published; "
        "of a set also a folder or a stack, one for each instance map",
        models=SEMANTIC,
    )
    appearance_order: str | None = condition_option(
        None,
        choice("shuffled", "preserved"),
        "whether nuclei take pixels of nuclei, and background of background, or both any pixel",
        unset="shuffled",
        models=SEMANTIC,
    )
    appearance_mask: str | None = condition_option(
        None, FILE, "where the reference has nuclei: an instance map or a mask of them, for preserved", models=SEMANTIC
    )
    pairing: str | None = condition_option(
        None,
        choice("own", "shuffled", "matched"),
        "which reference of a stack each instance map is given: its own, any, or one of the 20 whose nuclei are most "
        "alike in number and size",
        unset="own",
        models=SEMANTIC,
    )
    pairing_seed: int | None = condition_option(
        None, whole(0, 2**32 - 1), "seed of the pairing, numpy's; 42 is the published", unset="`seed`", models=SEMANTIC
    )
    colors: str | None = condition_option(
        None, FILE, "mean colours: image of the map's size, of which every nucleus takes its mean", models=SEMANTIC
    )
    nucleus_color: tuple[int, ...] = condition_option(
        (122, 84, 156), RGB, "colour of all nuclei, without `appearance` and `colors`", models=SEMANTIC
    )
    background_color: tuple[int, ...] = condition_option(
        (226, 190, 213), RGB, "colour of the background, without `appearance` and `colors`", models=SEMANTIC
    )
    style: str | None = condition_option(
        None, PATH, "model folders whose networks take the place of the model's", metavar="DIR[,DIR]"
    )
    style_map: str | None = condition_option(
        None, FILE, "map that says which of several styles is where, 0 the first", models=SEMANTIC
    )

    steps: int | None = sampling_option(
        None, whole(1), "number of levels, from noise to image", unset=MODELS, fallback=50
    )
    sections: tuple[int, ...] | None = sampling_option(
        None,
        SECTIONS,
        "number of levels in each of as many equal parts of the model's timesteps, cleanest first, in place of `steps`",
    )
    solver: str | None = sampling_option(
        None, choice(*SOLVERS), "update from one level to the next", unset=MODELS, fallback="ddim"
    )
    eta: float | None = sampling_option(
        None, number(0, 1), "share of fresh noise in a step of ddim", unset="the model's with ddim, else 0"
    )
    guidance: float | tuple[float, ...] | None = sampling_option(
        None,
        some_numbers(0),
        "guidance weight; 1 is off; several are those of a set's images in turn",
        metavar="W[,W...]",
        unset=MODELS,
        fallback=1.0,
    )
    omega: float | tuple[float, ...] | None = sampling_option(
        None, some_numbers(-1), "guidance weight less 1, as some systems publish it; one or several", metavar="W[,W...]"
    )
    guidance_interval: tuple[int, int] | None = sampling_option(
        None, INTERVAL, "first level that is guided, and the first after it that is not", unset="all levels"
    )
    cover: str = sampling_option("shifted", choice(*COVERS), "how the windows of a level cover the canvas")
    stride: int | None = sampling_option(
        None, whole(1), "distance from one window of the strided cover to the next, in latents", unset="half a window"
    )
    weights: str = sampling_option("uniform", choice(*WEIGHTS), "weights of the strided cover's windows")
    decode_overlap: int | None = sampling_option(
        None,
        whole(0, 4096),
        "number of latents that neighbouring windows of the decoder share",
        unset=MODELS,
        fallback=16,
    )
    decode_weights: str = sampling_option(
        "smooth",
        choice("smooth", "gaussian"),
        "weights of the decoder's windows; gaussian decodes the sampler's own windows",
    )
    accept: str | None = sampling_option(
        None,
        RULE,
        "which images of a set are kept, the others being sampled again: the mean brightness of each class "
        "(as 0.62 or 0.6,0.55; 'published' are those of the model's card), a bank of engine.evaluate (bank:FILE.h5), "
        "or a function (module:function)",
        metavar="RULE",
        unset="all",
    )
    accept_rounds: int | None = sampling_option(
        None,
        whole(1),
        "number of rounds after which images are kept that `accept` has refused until then",
        unset="until all are accepted",
    )

    shard: int = output_option(
        2048, whole(8, 65536), "side of a shard of the image, in pixels; each shard has one writer", metavar="PX"
    )
    chunk: int = output_option(
        512, whole(8, 65536), "side of a chunk of the image, in pixels; a shard holds whole chunks", metavar="PX"
    )

    batch_size: int | None = run_option(
        None,
        whole(1, 65536),
        "number of windows that are evaluated at once; changes the last digits",
        unset=MODELS,
        fallback=8,
    )
    dtype: str = run_option("float32", choice("float32", "bfloat16", "float16"), "number format of the networks")
    compile: bool = run_option(False, FLAG, "compile the networks, on a GPU into CUDA graphs; changes the last digits")
    device: str = run_option("auto", choice("auto", "cpu", "cuda"), "where the networks run", identity=False)
    threads: int = run_option(1, whole(1, 1024), "number of CPU threads a rank; changes the last digits")

    def resolved(self, card: ModelCard) -> SampleJob:
        """The same job with the model's defaults in place, checked against the model.

        Raises:
            ValueError: settings that do not go together or that the model does not have.
        """
        check_defaults(card)
        check_condition(self, card)
        check_kind_of_job(self)
        check_guidance(self, card)
        job = with_label_numbers(self, card)
        check_label(job, card)
        job = with_published_means(with_sections(job), card)
        job = with_start(with_stride(with_defaults(without_omega(job), card), card))
        check_levels(job, card)
        check_solver(job)
        check_inversion(job)
        check_shard(job, card)
        return job

    @property
    def known_image(self) -> str | None:
        """What of the image is known before: the file of it, or the output that is continued; None: nothing is."""
        return self.image or self.continue_

    @property
    def paints(self) -> bool:
        """Whether a known image is painted on, where a mask says."""
        return self.mask is not None or self.continue_ is not None

    @property
    def label_numbers(self) -> tuple[int, ...]:
        """The numbers of the labels that ``label`` names; of a job whose names are numbers already."""
        several = self.label if isinstance(self.label, tuple) else (self.label,)
        return tuple(label for label in several if isinstance(label, int))

    @property
    def guidance_weights(self) -> tuple[float, ...]:
        """The guidance weights of the images in turn; one where all have the same."""
        several = self.guidance if isinstance(self.guidance, tuple) else (self.guidance,)
        return tuple(1.0 if weight is None else weight for weight in several)

    @property
    def styles(self) -> tuple[str, ...]:
        """The model folders that ``style`` names."""
        return tuple(name for name in (self.style or "").split(",") if name)

    def in_turn(self) -> list[dict[str, Any]]:
        """What the images of a set take in turn: image i has the settings at i modulo their number, by name.

        Where several settings have several values they are combined, each value of one with each of the others: the
        first of label, prompt and style changes from image to image, guidance the slowest. Empty: all are alike.

        >>> SampleJob(count=4, label=(0, 1), guidance=(1.5, 3)).in_turn()[:3]
        [{'label': 0, 'guidance': 1.5}, {'label': 1, 'guidance': 1.5}, {'label': 0, 'guidance': 3.0}]
        """
        styles = () if self.style_map else self.styles
        values = dict[str, Any](label=self.label, prompt=self.prompt, style=styles, guidance=self.guidance)
        several = {name: each for name, each in values.items() if isinstance(each, tuple) and len(each) > 1}
        if not several or self.count is None:
            return []
        slowest_first = product(*reversed(several.values()))
        return [dict(zip(several, reversed(one), strict=True)) for one in slowest_first]

    @property
    def levels(self) -> int:
        """How many levels of a resolved job are sampled: all its steps, of a variation so many of the cleanest.

        >>> SampleJob(steps=50).levels, SampleJob(steps=100, strength=0.29).levels
        (50, 29)
        """
        assert self.steps is not None
        return self.steps if self.strength is None else int(self.strength * self.steps + 1e-9)  # 0.29 * 100 is 28.99...

    @property
    def inverts(self) -> bool:
        """Whether levels that lead from the known image to noise come before those that are sampled."""
        return self.start == "inverted"

    def plain(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def identity(self, card: ModelCard, hashes: Mapping[str, str]) -> dict[str, Any]:
        """What two jobs must share for their results to be the same bytes: JSON values.

        Args:
            hashes: Hashes of the content of the files that the job names.
        """
        values = {k: v for k, v in self.plain().items() if options_of(SampleJob)[k].identity}
        return {**values, "model_hash": card.hash, **hashes}


@dataclass(frozen=True, kw_only=True)
class RunOptions(Checked):
    """How a run goes about it; none of this changes a byte."""

    out: str = output_option(
        "sample.zarr",
        PATH,
        "the OME-Zarr to write; s3://BUCKET/NAME (or gs://, az://) puts its arrays into an object store",
        metavar="PATH",
    )
    scratch: str | None = output_option(
        None,
        PATH,
        "folder, seen by all ranks, for what an `out` in an object store keeps on the disk: in it a folder of the same "
        "name has the ledger and the checkpoints, and stands for the output wherever a path is asked for",
        metavar="DIR",
    )
    preview: str | None = output_option(
        None,
        PATH,
        "a picture of at most 2048 px a side; 'none' writes none",
        metavar="FILE.png",
        unset="`out` with .png",
    )
    report: bool = output_option(
        False, FLAG, "at the end write a report to look at beside `out`, an HTML page by itself, as engine.report does"
    )
    plane: str | None = output_option(
        None, PATH, "sample a `region` of an unbounded plane, and add it to this OME-Zarr, in place of `out` and `size`"
    )
    region: tuple[int, int, int, int] | None = output_option(
        None,
        REGION,
        "with `plane` or `continue_`: the rows and columns that are wanted, in pixels, which may be negative",
    )
    hold: int = output_option(3, whole(1, 1000), "with `plane`: levels that share windows; more make a region cheaper")
    keep_levels: bool = output_option(
        True, FLAG, "with `plane`: keep every level of what is sampled, so that regions beside it cost less"
    )
    overwrite: bool = output_option(False, FLAG, "replace the output of another job")
    resume: str = run_option("auto", choice("auto", "never"), "go on from the last checkpoint, if there is one")
    verify: bool = run_option(False, FLAG, "of a finished output read every shard, not the sizes of files alone")
    mend: bool = run_option(
        False, FLAG, "sample a damaged output again, all of it if it must be, and write the damaged shards alone"
    )
    checkpoint_every: float = run_option(
        300.0, number(0), "time from one checkpoint to the next; 0 writes one after every level", metavar="SECONDS"
    )
    live: float | None = run_option(
        None,
        switched(number(0), "2"),
        "while sampling leave a small picture of the estimate in the output, for engine.view, at the end of the first "
        "level that ends so long after the one before; 0: of every level",
        metavar="SECONDS",
        unset="no picture",
    )
    json_log: str | None = run_option(None, PATH, "file that one JSON object a level is appended to")
    dry_run: bool = run_option(False, FLAG, "say what the job would take, and stop")
    json: bool = run_option(False, FLAG, "with `dry_run`: one JSON object, level by level")
    measure: bool = run_option(False, FLAG, "with `dry_run`: measure this machine's speed, and say the time")
    ranks: int | None = run_option(
        None, whole(1, 10**6), "number of ranks that `dry_run` plans for", unset="those that run"
    )


SampleJob.__doc__ = described(SampleJob)
RunOptions.__doc__ = described(RunOptions)


def taken_by(condition: str) -> tuple[str, ...]:
    """The options of models of one condition alone.

    >>> taken_by("class")
    ('labels', 'label', 'labels_scale', 'labels_table', 'resize_labels', 'embeddings')
    """
    return tuple(name for name, declared in options_of(SampleJob).items() if condition in declared.models)


def shown(job: SampleJob, name: str) -> str:
    """An option that is given, in a message."""
    return f"`{name}` {options_of(SampleJob)[name].shown(getattr(job, name))}"


# ---- what does not go together --------------------------------------------------------------


def check_condition(job: SampleJob, card: ModelCard) -> None:
    """Refuse what the model cannot be asked for, and what it needs and was not given.

    Raises:
        ValueError: naming the option, the model's kind and what it takes.
    """
    for name, declared in options_of(SampleJob).items():
        value = getattr(job, name)
        if declared.models and card.condition not in declared.models and value != declared.default:
            known = ", ".join(f"`{option}`" for option in taken_by(card.condition)) or "nothing"
            raise ValueError(
                f"{shown(job, name)} is given but the model {card.folder.name} "
                f"is conditioned by {card.condition}: it takes {known}"
            )
    check_embedding_functions(job, card)
    if card.condition == "embedding" and job.embeddings is None:
        raise ValueError("the model asks for embeddings; pass `embeddings` FILE.npy or FILE.h5:/dataset")
    if card.condition == "semantic" and job.map is None and job.instances is None:
        raise ValueError("the model asks for a semantic map; pass either `instances` FILE (nuclei) or `map` FILE")
    if "," in (job.style or "") and card.condition != "semantic":
        raise ValueError(f"`style` {job.style} names several styles; only models of semantic maps mix them: name one")


def check_kind_of_job(job: SampleJob) -> None:
    """Refuse mixtures of one image, a set of images, a known image and a region of interest.

    Raises:
        ValueError: naming the options.
    """
    check_known_image(job)
    if job.count is not None and job.image is not None:
        raise ValueError("`count` is for sets of independent images; leave out `image`")
    if job.count is None:
        check_one_image(job)
    if job.roi is not None and (job.count is not None or job.image is not None):
        raise ValueError(f"`roi` {job.roi} is for one image sampled anew; leave out `count` and `image`")
    if job.accept is not None and job.count is None:
        raise ValueError(f"`accept` {job.accept} chooses among the images of a set; pass `count` N too")
    if job.accept_rounds is not None and job.accept is None:
        raise ValueError(f"`accept_rounds` is {job.accept_rounds} but every image is kept; add `accept` RULE")


def check_known_image(job: SampleJob) -> None:
    """Refuse a known image for nothing or for two things, and what is of use with one alone.

    Raises:
        ValueError: naming the options.
    """
    for name in ("image", "mask", "strength", "start", "count", "roi"):
        if job.continue_ is not None and getattr(job, name) is not None:
            raise ValueError(f"{shown(job, name)} does not go with `continue_` {job.continue_}; leave one out")
    if job.image is None and job.mask is not None:
        raise ValueError("in-painting takes a known image and a mask; pass both `image` and `mask`")
    for name in ("strength", "start"):
        if getattr(job, name) is not None and job.image is None:
            raise ValueError(f"{shown(job, name)} is for variations of a known image; add `image` FILE")
        if getattr(job, name) is not None and job.mask is not None:
            raise ValueError(
                f"{shown(job, name)} is for variations of a whole image, and `mask` {shortened(str(job.mask))} for "
                "in-painting; leave one out"
            )
    if job.image is not None and job.mask is None and job.strength is None:
        raise ValueError(
            f"{shown(job, 'image')} is a known image: pass `mask` FILE too, which says where it is painted anew, or "
            "`strength` S (above 0, to 1) for a variation of all of it"
        )


def check_one_image(job: SampleJob) -> None:
    """Refuse several values of what one image has one of.

    Raises:
        ValueError: naming the option.
    """
    nouns = {"label": "label", "prompt": "class", "guidance": "weight", "omega": "weight"}
    for name, noun in nouns.items():
        if isinstance(getattr(job, name), tuple):
            several = f"{shown(job, name)} is several {noun}{'es' if noun == 'class' else 's'}"
            raise ValueError(f"{several} but one image has one; pass `count` N, or one {noun}")


def check_guidance(job: SampleJob, card: ModelCard) -> None:
    if job.omega is not None and job.guidance is not None:
        raise ValueError(f"both {shown(job, 'guidance')} and {shown(job, 'omega')} are given; choose one")
    for name, off in (("guidance", 1), ("omega", 0)):
        value = getattr(job, name)
        if not card.has_null and value is not None and value != off:
            text = options_of(SampleJob)[name].shown(value)
            raise ValueError(f"`{name}` is {text} but the model was trained without a null; leave `{name}` out")


def check_label(job: SampleJob, card: ModelCard) -> None:
    given = [name for name in ("labels", "label", "label_model") if getattr(job, name) is not None]
    if len(given) > 1:
        raise ValueError(f"both {' and '.join(shown(job, name) for name in given)} are given; choose one")
    for name in ("labels_scale", "labels_table"):
        if getattr(job, name) is not None and (job.labels in (None, "example") or names_function(job.labels)):
            raise ValueError(f"{shown(job, name)} is for a label map in a file; pass `labels` FILE, or leave it out")
    if names_function(job.labels) and job.count is not None:
        raise ValueError(
            f"{shown(job, 'labels')} is a function of position, which the images of a set do not have; pass a label "
            "map FILE, or leave out `count`"
        )
    if job.labels_scale is not None and job.labels_table is not None:
        both = " and ".join(shown(job, name) for name in ("labels_scale", "labels_table"))
        raise ValueError(f"both {both} say what the values of `labels` mean; choose one")
    for name in ("prompt", "label_steps", "label_guidance"):
        if getattr(job, name) is not None and job.label_model is None:
            given = [f"`{way}`" for way in ("labels", "label") if getattr(job, way) is not None]
            if given:
                raise ValueError(
                    f"{shown(job, name)} is for the label model, which samples the label map, but {given[0]} says "
                    f"what the map is; leave out `{name}`, or {given[0]}"
                )
            raise ValueError(f"{shown(job, name)} is for the label model, and none is used; add `label_model` DIR")
    chosen = job.label_numbers
    if chosen and max(chosen) >= len(card.labels) and not (card.condition == "class" and job.embeddings):
        raise ValueError(f"`label` is {max(chosen)} but the model knows {listed(card)}; choose one of these")


def check_embedding_functions(job: SampleJob, card: ModelCard) -> None:
    both = [name for name in ("embeddings", "region_embeddings") if getattr(job, name) is not None]
    by_function = [name for name in both if names_function(getattr(job, name))]
    if not by_function:
        return
    what = f"{shown(job, by_function[0])} is a function of position"
    if card.condition == "class":
        raise ValueError(f"{what}, and the model takes an embedding a class; pass `embeddings` FILE.npy")
    if len(by_function) < len(both):
        raise ValueError(f"{what}, and the other embeddings are a file; pass functions for both, or files")
    for name in ("count", "grid", "rows", "region_rows", "pitch"):
        if getattr(job, name) is not None:
            raise ValueError(f"{what}, and {shown(job, name)} is for embeddings in a file; leave out one of them")


def listed(card: ModelCard) -> str:
    """The labels of a model, by number and name."""
    return ", ".join(f"{i} {name}" for i, name in enumerate(card.labels))


def with_label_numbers(job: SampleJob, card: ModelCard) -> SampleJob:
    """The job with the names in its ``label`` as the model's numbers.

    Raises:
        ValueError: a name that the model does not know.
    """

    def number_of(label: int | str) -> int:
        if isinstance(label, int):
            return label
        if label not in card.labels:
            near = did_you_mean(label, card.labels)
            way = near or "choose one of these"
            raise ValueError(f"`label` {shortened(label)} is none of the model's, which are {listed(card)}; {way}")
        return card.labels.index(label)

    if job.label is None or isinstance(job.label, int):
        return job
    several = job.label if isinstance(job.label, tuple) else (job.label,)
    return replace(job, label=tuple(number_of(label) for label in several))


def check_levels(job: SampleJob, card: ModelCard) -> None:
    assert job.steps is not None  # resolved
    card.schedule.timesteps(job.steps, job.sections)
    if not job.levels:
        raise ValueError(
            f"`strength` is {job.strength:g}, which is no level of {job.steps}: the image would stay as it is; choose "
            f"{math.ceil(1e4 / job.steps) / 1e4:g} or more, or more `steps`"
        )
    if job.guidance_interval and job.guidance_interval[1] > job.levels:
        first, last = job.guidance_interval
        raise ValueError(f"`guidance_interval` is {first}:{last} but there are {job.levels} levels; end it there")


def check_solver(job: SampleJob) -> None:
    from engine.diffusion.solvers import steps_of  # numpy, for which --help does not wait

    steps_of(str(job.solver), (0.5,), float(job.eta or 0), False)


def check_inversion(job: SampleJob) -> None:
    """Refuse fresh noise after an inversion: it would cover what the inverted noise says of the image.

    Raises:
        ValueError: naming the solver or eta.
    """
    if job.inverts and job.solver in ("ddpm", "plms"):
        why = "adds some at every level" if job.solver == "ddpm" else "goes other ways than the inversion came"
        raise ValueError(
            f"`start` inverted is for sampling without fresh noise, and `solver` {job.solver} {why}; use "
            "`solver` ddim, euler or dpmpp2m, or `start` noised"
        )
    if job.inverts and job.eta:
        raise ValueError(
            f"`start` inverted is for sampling without fresh noise, and `eta` is {job.eta:g}; pass `eta` 0, or "
            "`start` noised"
        )


def check_shard(job: SampleJob, card: ModelCard) -> None:
    if job.shard % job.chunk or job.shard % card.factor or job.chunk % card.factor:
        raise ValueError(
            f"`shard` is {job.shard} px and `chunk` {job.chunk} px; a shard must be a multiple of the chunk, "
            f"and both of the model's {card.factor} px per latent"
        )


# ---- what the model fills in ----------------------------------------------------------------


def without_omega(job: SampleJob) -> SampleJob:
    """The job with its guidance as one weight, whichever way it was given."""
    if job.omega is None:
        return job
    several = job.omega if isinstance(job.omega, tuple) else (job.omega,)
    weights = tuple(1 + omega for omega in several)
    return replace(job, guidance=weights, omega=None)


def with_sections(job: SampleJob) -> SampleJob:
    """The job with as many levels as its sections have.

    Raises:
        ValueError: it says another number too.
    """
    if job.sections is None:
        return job
    total = sum(job.sections)
    if job.steps not in (None, total):
        raise ValueError(f"{shown(job, 'sections')} are {total} levels but `steps` is {job.steps}; leave one out")
    return replace(job, steps=total)


def with_published_means(job: SampleJob, card: ModelCard) -> SampleJob:
    """The job with the mean brightness of each class as its rule, where it asks for that of the model's card.

    Raises:
        ValueError: the card has none.
    """
    if job.accept != "published":
        return job
    if not card.class_means:
        raise ValueError(
            f"`accept` published: the card of {card.folder.name} has no class_means; give the mean brightness of each "
            "class, as 0.62 or 0.6,0.55"
        )
    return replace(job, accept=",".join(f"{mean:g}" for mean in card.class_means))


def with_defaults(job: SampleJob, card: ModelCard) -> SampleJob:
    """The job with what it leaves open as the model has it, else as its fields declare."""
    values = {name: declared.fallback for name, declared in options_of(SampleJob).items()}
    if card.condition == "embedding":  # centres of cells, but where the strided cover's windows begin at corners
        values["interpolation"] = "corner" if job.cover == "strided" else "centre"
    values |= card.defaults
    solver = job.solver or values["solver"]
    values["eta"] = card.defaults.get("eta", 0.0) if solver == "ddim" else 0.0  # the model's belongs to ddim
    return replace(job, **{k: v for k, v in values.items() if getattr(job, k) is None})


def check_defaults(card: ModelCard) -> None:
    """Refuse a model whose defaults are no values of options that a job may leave to its model.

    Raises:
        ValueError: naming the file, the option and its value.
    """
    file, options = card.folder / "card.json", options_of(SampleJob)
    left_open = [name for name, declared in options.items() if declared.unset == MODELS or name == "eta"]
    for name, value in card.defaults.items():
        if name not in left_open:
            way = did_you_mean(name, left_open) or f"it may choose {', '.join(left_open)}"
            raise ValueError(f"{file}: of its defaults {quoted(name)} is none that a model chooses; {way}")
        try:
            if isinstance(value, list) or (isinstance(value, str) and "," in value):
                raise ValueError(f"`{name}` is {quoted(value)}: expected one value")
            options[name].read(value)
        except ValueError as problem:
            raise ValueError(f"{file}: of its defaults {problem}") from None


def with_start(job: SampleJob) -> SampleJob:
    """The job with what a variation begins from."""
    return replace(job, start=job.start or "noised") if job.strength is not None else job


def with_stride(job: SampleJob, card: ModelCard) -> SampleJob:
    """The job with the distance of its windows: half a window, where the strided cover is given none.

    Raises:
        ValueError: a stride that leaves gaps, or that the cover has no use for.
    """
    if job.cover != "strided" and job.stride is not None:
        raise ValueError(
            f"`stride` is {job.stride} but the {job.cover} cover has none; add `cover` strided, or leave `stride` out"
        )
    if job.stride is not None and job.stride > card.patch:
        raise ValueError(
            f"`stride` is {job.stride} latents but a window has {card.patch}: it would leave gaps; "
            f"choose 1 to {card.patch}"
        )
    return replace(job, stride=job.stride or card.patch // 2) if job.cover == "strided" else job
