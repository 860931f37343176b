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

from engine.cover import COVERS, WEIGHTS
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
        labels: a label map file; None and no ``label``: a drawn example.
        label: the whole canvas one label.
        resize_labels: ``nearest``: a label map of another size is resized.
        eta: share of fresh noise a level (ddim).
        guidance: w in null + w (cond - null); 1 is off.
        stride, weights: of the strided cover, in latents.
        shard, chunk: of the image, px.
        decode_overlap: latents that neighbouring windows of the decoder share.
        threads: CPU threads a rank; another number gives other last digits.
    """

    model: str = "embedded"
    size: tuple[int, int] = (1024, 1024)
    labels: str | None = None
    label: int | None = None
    resize_labels: str | None = None
    steps: int | None = None
    solver: str | None = None
    eta: float | None = None
    guidance: float | None = None
    cover: str = "shifted"
    stride: int | None = None
    weights: str = "uniform"
    seed: int = 0
    batch_size: int | None = None
    dtype: str = "float32"
    device: str = "auto"
    shard: int = 2048
    chunk: int = 512
    decode_overlap: int | None = None
    threads: int = 1

    def resolved(self, card: Card) -> SampleJob:
        """The same job with the model's defaults in place, checked against the model.

        Raises:
            ValueError: settings that do not go together or that the model does not have.
        """
        defaults: dict[str, Any] = {
            "steps": 50,
            "solver": "ddim",
            "guidance": 1.0,
            "batch_size": 8,
            "decode_overlap": 16,
        }
        defaults |= card.defaults
        job = replace(self, **{k: v for k, v in defaults.items() if k in FIELDS and getattr(self, k) is None})
        job = replace(job, eta=0.0 if job.eta is None else job.eta)
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
        if job.labels is not None and job.label is not None:
            raise ValueError(f"both --labels {job.labels} and --label {job.label} are given; choose one")
        if job.label is not None and job.label >= len(card.labels):
            names = ", ".join(f"{i} {name}" for i, name in enumerate(card.labels))
            raise ValueError(f"label is {job.label} but the model knows {names}; choose one of these")
        card.schedule.levels(job.steps)  # type: ignore[arg-type]
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
        return {**asdict(self), "size": list(self.size)}

    def identity(self, card: Card, labels_hash: str) -> dict[str, Any]:
        """What two jobs must share for their results to be the same bytes: JSON values."""
        values = self.plain()
        for path in ("model", "labels", "resize_labels"):
            values.pop(path)
        return {**values, "model_hash": card.hash, "labels_hash": labels_hash}


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
    "labels": (text, "FILE", "label map of the canvas: PNG, TIFF, .npy or Zarr (default: a drawn example)"),
    "label": (whole(0), "N", "the whole canvas one label"),
    "resize_labels": (choice("nearest"), "nearest", "resize a label map of another size"),
    "steps": (whole(1), "N", "levels (default: the model's)"),
    "solver": (choice(*SOLVERS), "NAME", f"{', '.join(SOLVERS)} (default: the model's)"),
    "eta": (number(0), "F", "fresh noise a level, 0 to 1, for ddim (default: 0)"),
    "guidance": (number(0), "W", "guidance weight, 1 = off (default: the model's)"),
    "cover": (choice(*COVERS), "NAME", f"{', '.join(COVERS)} (default: shifted)"),
    "stride": (whole(1), "N", "latents between windows of the strided cover (default: half a window)"),
    "weights": (choice(*WEIGHTS), "NAME", f"{', '.join(WEIGHTS)}: of the strided cover's windows (default: uniform)"),
    "seed": (whole(0), "N", "default: 0"),
    "batch_size": (whole(1, 65536), "N", "windows evaluated at once (default: the model's)"),
    "dtype": (choice("float32", "bfloat16", "float16"), "NAME", "of the networks (default: float32)"),
    "device": (choice("auto", "cpu", "cuda"), "NAME", "auto, cpu or cuda (default: auto)"),
    "shard": (whole(8, 65536), "PX", "side of a shard of the image, one writer each (default: 2048)"),
    "chunk": (whole(8, 65536), "PX", "side of a chunk of the image (default: 512)"),
    "decode_overlap": (whole(0, 4096), "N", "latents that the decoder's windows share (default: the model's)"),
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
        for pair in (("labels", "label"), ("label", "labels")):
            if pair[0] in given:  # an option of the one kind overrides the file's of the other
                values.pop(pair[1], None)
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

    values = {k: v for k, v in asdict(job).items() if v is not None}
    return yaml.safe_dump({**values, "size": f"{job.size[0]}x{job.size[1]}"}, sort_keys=False)
