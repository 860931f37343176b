"""SampleJob: everything that changes a byte of the result. From options or YAML, strict, and back.

The same checks serve both ways in: every message names the option (or the file and key), the value and the way out.
"""

from __future__ import annotations

import argparse
import difflib
import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from engine.cover import COVERS, LARGEST_LABEL, WEIGHTS
from engine.models.card import Card
from engine.solvers import SOLVERS, steps_of

Check = Callable[[Any], Any]


def whole(low: int, high: int = 2**63 - 1) -> Check:
    """Accept whole numbers in [low, high], as numbers or in digits."""

    def check(value: Any) -> int:
        if isinstance(value, str) and re.fullmatch(r"[+-]?\d+", value.strip()):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError("expected a whole number")
        if not low <= value <= high:
            raise ValueError(f"expected {low} or more" if value < low else f"expected {high} or less")
        return value

    return check


def number(low: float, high: float = math.inf) -> Check:
    """Accept finite numbers in [low, high]."""

    def check(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError("expected a number")
        try:
            value = float(value)
        except ValueError:
            raise ValueError("expected a number") from None
        if not math.isfinite(value) or not low <= value <= high:
            raise ValueError(f"expected a number from {low:g}" + (f" to {high:g}" if high < math.inf else " upwards"))
        return value

    return check


def choice(*names: str) -> Check:
    def check(value: Any) -> str:
        if value not in names:
            raise ValueError(f"expected one of {', '.join(names)}")
        return value

    return check


def text(value: Any) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("expected a path or name")
    return value


def some_labels(value: Any) -> int | tuple[int, ...]:
    """One label, or several separated by commas.

    >>> some_labels("3"), some_labels("0,2")
    (3, (0, 2))
    """
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
    try:
        found = tuple(whole(0, LARGEST_LABEL)(part) for part in parts)
    except ValueError as problem:
        raise ValueError(f"{problem}; a label, or several separated by commas") from None
    return found[0] if len(found) == 1 else found


def interval(value: Any) -> tuple[int, int]:
    """``FIRST:LAST`` or [FIRST, LAST]: levels, half-open.

    >>> interval("5:20")
    (5, 20)
    """
    parts = value.split(":") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or len(parts) != 2:
        raise ValueError("expected the first level and the one after the last, such as 5:20")
    first, last = (whole(0)(part) for part in parts)
    if first >= last:
        raise ValueError("expected a first level below the last, such as 5:20")
    return first, last


def rgb(value: Any) -> tuple[int, ...]:
    """``R,G,B`` or [R, G, B], 0 to 255."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or len(parts) != 3:
        raise ValueError("expected red, green and blue, such as 120,80,150")
    return tuple(whole(0, 255)(part) for part in parts)


def flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("expected true or false")
    return value


def size_px(value: Any) -> tuple[int, int]:
    """``HxW`` or [H, W] in pixels.

    >>> size_px("1000x1544")
    (1000, 1544)
    """
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([+-]?\d+)\s*[xX]\s*([+-]?\d+)\s*", value)
        if not match:
            raise ValueError("expected HxW in pixels, such as 1024x1536")
        value = [int(match[1]), int(match[2])]
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError("expected HxW in pixels, such as 1024x1536")
    if not all(isinstance(v, int) and not isinstance(v, bool) for v in value):
        raise ValueError("expected HxW in whole pixels, such as 1024x1536")
    if min(value) < 1 or max(value) > 2**31:
        raise ValueError("expected a height and width of 1 px up to 2147483648 px")
    return value[0], value[1]


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
        image: a known image, and repaint: the mask of what to sample anew in it.
        eta: share of fresh noise a level (ddim).
        guidance: w in null + w (cond - null); 1 is off. omega: w - 1, as some publish it.
        guidance_interval: the first level that is guided and the first after it that is not; None: all are.
        roi: a mask of what is wanted; the rest is not sampled and left white.
        stride, weights: of the strided cover, in latents.
        shard, chunk: of the image, px.
        decode_overlap: latents that neighbouring windows of the decoder share.
        decode_weights: of the decoder's windows: ``smooth``, or ``gaussian`` with the sampler's windows.
        compile: the networks are compiled, which gives other last digits.
        accept: which images of a set are kept, the others being drawn again; see ``engine.accept``.
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
    repaint: str | None = None
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

    def resolved(self, card: Card) -> SampleJob:
        """The same job with the model's defaults in place, checked against the model.

        Raises:
            ValueError: settings that do not go together or that the model does not have.
        """
        check_condition(self, card)
        job = replace(self, guidance=1 + self.omega, omega=None) if self.omega is not None else self
        if self.omega is not None and self.guidance is not None:
            raise ValueError(f"both --guidance {self.guidance:g} and --omega {self.omega:g} are given; choose one")
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
                f"stride is {job.stride} but cover {job.cover} has none; add --cover strided, or leave --stride out"
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
            raise ValueError(f"--guidance-interval is {first}:{last} but there are {job.steps} levels; end it there")
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

    def identity(self, card: Card, hashes: Mapping[str, str]) -> dict[str, Any]:
        """What two jobs must share for their results to be the same bytes: JSON values.

        Args:
            hashes: of what the files hold that the job names.
        """
        values = {k: v for k, v in self.plain().items() if k not in FILES | UNNEEDED}
        return {**values, "model_hash": card.hash, **hashes}


FILES = {"model", "labels", "label_model", "embeddings", "region_embeddings", "map", "instances", "colors", "style"}
FILES |= {"style_map", "image", "repaint", "roi"}
UNNEEDED = {"resize_labels", "prompt", "device"}  # in a hash already, or (the device) guarded by the output itself
CONDITIONS: dict[str, tuple[str, ...]] = {
    "label-map": ("labels", "label", "resize_labels", "label_model", "prompt", "label_steps", "label_guidance"),
    "class": ("labels", "label", "resize_labels", "embeddings"),
    "embedding": ("embeddings", "region_embeddings", "grid", "pitch", "interpolation"),
    "semantic": ("map", "instances", "colors", "style_map"),
    "none": (),
}


def check_condition(job: SampleJob, card: Card) -> None:
    """Refuse what the model cannot be asked for, and what it needs and was not given.

    Raises:
        ValueError: naming the option, the model's kind and what it takes.
    """
    takes = CONDITIONS[card.condition]
    for name in sorted({name for names in CONDITIONS.values() for name in names} - set(takes)):
        if getattr(job, name) is not None:
            known = ", ".join("--" + option.replace("_", "-") for option in takes) or "nothing"
            raise ValueError(
                f"--{name.replace('_', '-')} {getattr(job, name)} is given but the model {card.folder.name} "
                f"is conditioned by {card.condition}: it takes {known}"
            )
    if card.condition == "embedding" and job.embeddings is None:
        raise ValueError("the model asks for embeddings; pass --embeddings FILE.npy or FILE.h5:/dataset")
    if card.condition == "semantic" and (job.map is None) == (job.instances is None):
        raise ValueError("the model asks for a semantic map; pass either --instances FILE (nuclei) or --map FILE")
    if "," in (job.style or "") and card.condition != "semantic":
        raise ValueError(f"--style {job.style} names several styles; only models of semantic maps mix them: name one")
    if (job.image is None) != (job.repaint is None):
        raise ValueError("in-painting takes a known image and a mask; pass both --image and --repaint")
    if job.count is not None and (job.image is not None or job.label_model is not None):
        raise ValueError("--count is for sets of independent images; leave out --image and --label-model")
    if job.roi is not None and (job.count is not None or job.image is not None):
        raise ValueError(f"--roi {job.roi} is for one image sampled anew; leave out --count and --image")
    if job.accept is not None and job.count is None:
        raise ValueError(f"--accept {job.accept} chooses among the images of a set; pass --count N too")
    if not card.has_null and (job.omega or (job.guidance is not None and job.guidance != 1)):
        raise ValueError(f"guidance is {job.guidance} but the model was trained without a null; leave --guidance out")


def check_label(job: SampleJob, card: Card) -> None:
    given = [name for name in ("labels", "label", "label_model") if getattr(job, name) is not None]
    if len(given) > 1:
        options = " and ".join(f"--{name.replace('_', '-')} {getattr(job, name)}" for name in given)
        raise ValueError(f"both {options} are given; choose one")
    for name in ("prompt", "label_steps", "label_guidance"):
        if getattr(job, name) is not None and job.label_model is None:
            option = f"--{name.replace('_', '-')} {getattr(job, name)}"
            raise ValueError(f"{option} is for the label model, and none is used; add --label-model DIR")
    labels = job.label if isinstance(job.label, tuple) else () if job.label is None else (job.label,)
    if len(labels) > 1 and job.count is None:
        raise ValueError(f"label is {','.join(map(str, labels))} but one image has one; pass --count N, or one label")
    known = len(card.labels)
    if labels and max(labels) >= known and not (card.condition == "class" and job.embeddings):
        names = ", ".join(f"{i} {name}" for i, name in enumerate(card.labels))
        raise ValueError(f"label is {max(labels)} but the model knows {names}; choose one of these")


def default_eta(given: SampleJob, card: Card, job: SampleJob) -> float:
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


# name: (check, metavar, help)
JOB_OPTIONS: dict[str, tuple[Check, str, str]] = {
    "model": (text, "DIR", "model folder (default: the embedded model)"),
    "size": (size_px, "HxW", "pixels, any height and width (default: 1024x1024)"),
    "count": (whole(1, 10**7), "N", "so many independent images of that size, as one set (default: one image)"),
    "labels": (text, "FILE", "label map: PNG, TIFF, .npy or Zarr; 'example' draws one"),
    "label": (some_labels, "N", "the whole canvas one label or class; N,M,... those of a set's images in turn"),
    "resize_labels": (choice("nearest"), "nearest", "resize a label map of another size"),
    "label_model": (text, "DIR", "sample the label map first, with this model ('embedded': the one in the package)"),
    "prompt": (text, "CLASS", "what the label model is asked for, by name or number (default: its first)"),
    "label_steps": (whole(1), "N", "levels of the label map (default: the label model's)"),
    "label_guidance": (number(0), "W", "guidance weight of the label map (default: the label model's)"),
    "embeddings": (text, "FILE", "embeddings on a grid (.npy, or FILE.h5:/dataset), or of the classes"),
    "region_embeddings": (text, "FILE", "the second token's, on the same grid (default: zero)"),
    "grid": (size_px, "HxW", "rows and columns of embeddings that are listed one after another"),
    "pitch": (whole(1), "PX", "pixels per embedding (default: the window's side)"),
    "interpolation": (choice("centre", "corner"), "NAME", "where an embedding belongs (default: corner if strided)"),
    "map": (text, "FILE", "semantic map given whole, channels first: .npy or Zarr"),
    "instances": (text, "FILE", "instance map of nuclei that the semantic map is made from"),
    "border_nuclei": (choice("refuse", "keep", "drop"), "NAME", "nuclei that the border cuts (default: refuse)"),
    "colors": (text, "FILE", "image that nuclei and background take their mean colours from"),
    "nucleus_color": (rgb, "R,G,B", "of all nuclei, without --colors (default: 122,84,156)"),
    "background_color": (rgb, "R,G,B", "without --colors (default: 226,190,213)"),
    "style": (text, "DIR[,DIR]", "model folders whose networks take the place of the model's"),
    "style_map": (text, "FILE", "which of several styles is where: 0 the first"),
    "image": (text, "FILE", "in-painting: the known image"),
    "repaint": (text, "FILE", "in-painting: mask of what is to be sampled anew, not 0"),
    "steps": (whole(1), "N", "levels (default: the model's)"),
    "solver": (choice(*SOLVERS), "NAME", f"{', '.join(SOLVERS)} (default: the model's)"),
    "eta": (number(0), "F", "fresh noise a level, 0 to 1, for ddim (default: 0)"),
    "guidance": (number(0), "W", "guidance weight, 1 = off (default: the model's)"),
    "omega": (number(-1), "G", "guidance as published by some: weight 1 + G"),
    "guidance_interval": (interval, "FIRST:LAST", "levels that are guided, half-open, from 0 (default: all)"),
    "roi": (text, "FILE", "mask of the wanted region, not 0; the rest is not sampled and white"),
    "cover": (choice(*COVERS), "NAME", f"{', '.join(COVERS)} (default: shifted)"),
    "stride": (whole(1), "N", "latents between windows of the strided cover (default: half a window)"),
    "weights": (choice(*WEIGHTS), "NAME", f"{', '.join(WEIGHTS)}: of the strided cover's windows (default: uniform)"),
    "seed": (whole(0), "N", "default: 0"),
    "batch_size": (whole(1, 65536), "N", "windows evaluated at once (default: the model's)"),
    "dtype": (choice("float32", "bfloat16", "float16"), "NAME", "of the networks (default: float32)"),
    "compile": (flag, "", "compile the networks, on a GPU into CUDA graphs; changes the last digits (default: no)"),
    "device": (choice("auto", "cpu", "cuda"), "NAME", "auto, cpu or cuda (default: auto)"),
    "shard": (whole(8, 65536), "PX", "side of a shard of the image, one writer each (default: 2048)"),
    "chunk": (whole(8, 65536), "PX", "side of a chunk of the image (default: 512)"),
    "decode_overlap": (whole(0, 4096), "N", "latents that the decoder's windows share (default: the model's)"),
    "decode_weights": (choice("smooth", "gaussian"), "NAME", "gaussian: in the sampler's windows, as published"),
    "accept": (text, "RULE", "draw images of a set again: class means, as 0.62 or 0.6,0.55; or module:function"),
    "threads": (whole(1, 1024), "N", "CPU threads a rank; changes the last digits (default: 1)"),
}
RUN_OPTIONS: dict[str, tuple[Check, str, str]] = {
    "out": (text, "PATH", "the OME-Zarr to write (default: sample.zarr)"),
    "preview": (text, "FILE.png", "a picture of at most 2048 px a side (default: OUT with .png; 'none' for none)"),
    "overwrite": (flag, "", "replace the output of another job"),
    "resume": (choice("auto", "never"), "auto|never", "go on from the last checkpoint (default: auto)"),
    "checkpoint_every": (number(0), "SECONDS", "0: after every level (default: 300)"),
    "json_log": (text, "FILE", "append one JSON object a level to this file"),
    "dry_run": (flag, "", "print the plan as one JSON object and stop"),
    "ranks": (whole(1, 10**6), "N", "with --dry-run: plan for so many ranks"),
}
FIELDS = tuple(field.name for field in fields(SampleJob))


class Parser(argparse.ArgumentParser):
    """Wrong arguments raise, so that one rank can say so for all."""

    def error(self, message: str) -> Any:
        raise ValueError(f"{message}; see {self.prog} --help")


def parser() -> argparse.ArgumentParser:
    top = Parser(
        prog="python -m engine.sample",
        description="Sample an image of any size from a patch diffusion model, on any number of MPI ranks.",
        allow_abbrev=False,
    )
    top.add_argument("--job", metavar="FILE.yaml", help="a whole job; options override it")
    for title, options in (("what to sample", JOB_OPTIONS), ("how to run", RUN_OPTIONS)):
        group = top.add_argument_group(title)
        for name, (check, metavar, text_) in options.items():
            option = "--" + name.replace("_", "-")
            if check is flag:
                group.add_argument(option, action="store_true", default=None, help=text_)
            else:
                group.add_argument(option, metavar=metavar, help=text_)
    return top


def parse(arguments: list[str] | None) -> tuple[SampleJob, RunOptions]:
    """Options -> job and run options; ``--job`` is read first, options override it.

    Raises:
        ValueError: naming the option, or the job file and its key, the value and what was expected.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for i in range(len(arguments) - 1, 0, -1):  # a negative value is a value, not an option
        if re.match(r"-[\d.]", arguments[i]) and re.fullmatch(r"--[a-z-]+", arguments[i - 1]):
            arguments[i - 1 : i + 1] = [f"{arguments[i - 1]}={arguments[i]}"]
    given = {k: v for k, v in vars(parser().parse_args(arguments)).items() if v is not None}
    values: dict[str, Any] = {}
    file = given.pop("job", None)
    if file is not None:
        values = read_job_file(Path(file))
        for kind in (("labels", "label", "label_model"), ("guidance", "omega")):
            if any(name in given for name in kind):  # an option of the one kind overrides the file's of the other
                values = {name: value for name, value in values.items() if name not in kind}
    values |= checked(given, lambda name: "--" + name.replace("_", "-"))
    return (
        SampleJob(**{k: v for k, v in values.items() if k in JOB_OPTIONS}),
        RunOptions(**{k: v for k, v in values.items() if k in RUN_OPTIONS}),
    )


def checked(given: Mapping[str, Any], name_of: Callable[[str], str]) -> dict[str, Any]:
    """Values after their checks.

    Args:
        name_of: how to name a key in a message.
    """
    options = JOB_OPTIONS | RUN_OPTIONS
    values = {}
    for key, value in given.items():
        try:
            values[key] = options[key][0](value)
        except ValueError as problem:
            raise ValueError(f"{name_of(key)} is {value!r}: {problem}") from None
    return values


def read_job_file(path: Path) -> dict[str, Any]:
    """The settings in a YAML job file; paths in it are relative to the working directory.

    Raises:
        ValueError: unreadable, not a mapping, an unknown key, or a value of the wrong kind.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ValueError(f"--job {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--job {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ValueError(f"--job {path}: expected keys and values, such as 'size: 1024x1024'")
    options = JOB_OPTIONS | RUN_OPTIONS
    for key in content:
        if key not in options:
            near = difflib.get_close_matches(str(key), options, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(options)}"
            raise ValueError(f"{path}: unknown key {key!r}; {hint}")
    return checked(content, lambda name: f"{path}: {name}")


def to_yaml(job: SampleJob) -> str:
    """The job as a file that ``--job`` reads."""
    import yaml

    values = {k: v for k, v in job.plain().items() if v is not None}
    return yaml.safe_dump({**values, "size": f"{job.size[0]}x{job.size[1]}"}, sort_keys=False)
