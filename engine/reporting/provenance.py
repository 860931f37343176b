"""How an output was made, and how it is made again: the command line, the lines of a notebook, hashes and versions."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.command_line import flag_of
from engine.job import SampleJob
from engine.options import FILE, FLAG, ROWS, Option, options_of
from engine.storage.integrity import pixels_sha256
from engine.storage.output import Output

LARGEST_HASHED = 2**28  # bytes of pixels; of a larger image the hash takes longer than a report should
ARRAY = "array"  # what an output keeps of a file that was an array in Python, see Prepared.given


def job_of(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The job: that of a plane has no size, and the plane's own shards; an output keeps those of its last request."""
    job = dict(provenance["job"])
    return (
        job | {"size": None, **{n: provenance["layout"][n] for n in ("shard", "chunk")}}
        if is_plane(provenance)
        else job
    )


def is_plane(provenance: Mapping[str, Any]) -> bool:
    return provenance.get("kind") == "plane"


def given_settings(provenance: Mapping[str, Any]) -> dict[str, tuple[Option, Any]]:
    """The settings that make the job again: those that differ from their defaults, the model's choices spelt out.

    The kind of device is the one that it ran on, because the bytes depend on it.
    """
    job = {**job_of(provenance), "device": provenance.get("device", "auto")}
    settings = {}
    for name, option in options_of(SampleJob).items():
        value = job.get(name)
        value = tuple(value) if isinstance(value, list) else value
        if value is not None and (value != option.default or name in ("model", "size", "seed")):
            settings[name] = (option, f"{name}.npy" if is_array(option, value) else value)
    return settings


def is_array(option: Option, value: Any) -> bool:
    """Whether a file was an array in Python."""
    return value == ARRAY and option.kind in (FILE, ROWS)


def arrays_of(provenance: Mapping[str, Any]) -> list[str]:
    """The options that were arrays in Python: they have to be saved before a command can name them."""
    return [name for name, option in options_of(SampleJob).items() if is_array(option, provenance["job"].get(name))]


def command_of(provenance: Mapping[str, Any], out: str) -> str:
    """The command line that makes an output again, an option a line; the shell takes the lines for one.

    Args:
        out: Name of the output.
    """
    if not is_plane(provenance):
        return " \\\n    ".join(words_of(provenance, out))
    regions = [f"{y0}:{y1},{x0}:{x1}" for y0, x0, y1, x1 in provenance["regions"]]
    words = " \\\n    ".join(words_of(provenance, out, plane=True))
    if len(regions) == 1:
        return f"{words} \\\n    --region={regions[0]}"
    return f"for region in {' '.join(regions)}; do\n{words} \\\n    --region=$region\ndone"


def words_of(provenance: Mapping[str, Any], out: str, plane: bool = False) -> list[str]:
    """The same: the command, then each option with its value; of a plane without the region."""
    ranks = int(provenance.get("ranks", 1))
    words = [(f"mpiexec -n {ranks} " if ranks > 1 else "") + "slidefield sample"]
    for name, (option, value) in given_settings(provenance).items():
        text = option.kind.show(value)
        glue = "=" if text.startswith("-") else " "  # a value is no option
        words.append(flag_of(name) if option.kind is FLAG else f"{flag_of(name)}{glue}{shlex.quote(text)}")
    if plane:
        return [*words, f"--hold {provenance['hold']}", f"--plane {shlex.quote(out)}"]
    return [*words, f"--out {shlex.quote(out)}"]


def notebook_of(provenance: Mapping[str, Any], out: str) -> str:
    """The lines of Python that make an output again, on one rank: the bytes are the same on any number."""
    settings = {name: value for name, (_, value) in given_settings(provenance).items()}
    model, device = settings.pop("model"), settings.pop("device", "auto")
    dtype = settings.pop("dtype", None)
    of_pipe = [repr(model), f"device={device!r}", *([f"dtype={dtype!r}"] if dtype else [])]
    of_call = [f"{name}={value!r}" for name, value in settings.items()]
    pipe = ["pipe = engine.Pipeline.from_pretrained(", *(f"    {argument}," for argument in of_pipe), ")"]
    if is_plane(provenance):
        places = [((y0, y1), (x0, x1)) for y0, x0, y1, x1 in provenance["regions"]]
        of_call = [repr(out), "rows", "columns", f"hold={provenance['hold']}", *of_call]
        call = ["    plane = pipe.plane(", *(f"        {argument}," for argument in of_call), "    )"]
        image = [f"for rows, columns in {places}:", *call]
    else:
        image = ["image = pipe(", *(f"    {argument}," for argument in [*of_call, f"out={out!r}"]), ")"]
    return "\n".join(["import engine", "", *pipe, *image])


def job_rows(provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Every setting of the job that has a value, (flag, value)."""
    options = options_of(SampleJob)
    rows = []
    for name, value in job_of(provenance).items():
        if value is None or value is False:
            continue
        value = tuple(value) if isinstance(value, list) else value
        rows.append((flag_of(name), options[name].kind.show(value) if name in options else str(value)))
    if is_plane(provenance):
        rows.append(("--hold", str(provenance["hold"])))
        rows += [("--region", f"{y0}:{y1},{x0}:{x1}") for y0, x0, y1, x1 in provenance["regions"]]
    return rows


def hash_rows(provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The hashes of what the job was made from, (of what, hash): the model, the label model, every file."""
    rows = [("model", str(provenance["model_hash"]))] if "model_hash" in provenance else []
    stage = provenance.get("label_stage", {})
    rows += [("label model", str(stage["model_hash"]))] if "model_hash" in stage else []
    of_files = {k: v for k, v in provenance["identity"].items() if k.endswith("_hash") and k != "model_hash"}
    return rows + [(name.removesuffix("_hash").replace("_", " "), str(value)) for name, value in of_files.items()]


def pixels_hash(output: Output) -> str | None:
    """The sha256 of the pixels, as engine.verify prints it; None: there are too many to be read for a report."""
    layout = output.layout
    count = layout.size[0] * layout.size[1] * layout.channels * getattr(layout, "count", 1)
    return pixels_sha256(output) if count <= LARGEST_HASHED else None


def how_to_finish(provenance: Mapping[str, Any], out: Path) -> str:
    """The command that goes on with an unfinished output, on one line."""
    return " ".join(words_of(provenance, str(out)))
