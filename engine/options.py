"""Flags and YAML -> SampleJob and RunOptions, strict, and back."""

from __future__ import annotations

import argparse
import difflib
import math
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from engine.command_line import Parser
from engine.diffusion.solvers import SOLVERS
from engine.job import Check, RunOptions, SampleJob
from engine.planning.cover import COVERS, LARGEST_LABEL, WEIGHTS


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
    "mask": (text, "FILE", "in-painting: mask of what is to be sampled anew, not 0"),
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
