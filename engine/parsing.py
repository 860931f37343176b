"""Flags and YAML -> SampleJob and RunOptions, strict, and back.

``python -m engine.parsing > docs/options.md`` writes the options down.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engine.command_line import Parser, as_flags, flag_of
from engine.job import GROUPS, RunOptions, SampleJob
from engine.messages import did_you_mean, quoted
from engine.options import FLAG, Option, options_of

JOB_OPTIONS, RUN_OPTIONS = options_of(SampleJob), options_of(RunOptions)
OPTIONS: Mapping[str, Option] = JOB_OPTIONS | RUN_OPTIONS
EITHER = (("labels", "label", "label_model"), ("guidance", "omega"))  # ways to say one thing


def in_group(group: str) -> Iterator[Option]:
    """The options under one heading: first those of a run, then those of a job."""
    return (option for option in (RUN_OPTIONS | JOB_OPTIONS).values() if option.group == group)


def parser() -> argparse.ArgumentParser:
    """The command line of ``engine.sample``, every option under its heading with its default."""
    top = Parser(
        prog="python -m engine.sample",
        usage="%(prog)s [--job FILE.yaml] [options]",
        description="Sample an image of any size from a patch diffusion model, on any number of MPI ranks.",
        epilog="Exit status: 0 finished, 75 stopped with a checkpoint, 1 refused or failed.",
        allow_abbrev=False,
    )
    top.add_argument("--version", action="store_true", help="print the version and stop")
    top.add_argument("--job", metavar="FILE.yaml", help="a whole job; options override it")
    for group, title in GROUPS.items():
        headed = top.add_argument_group(group, title)
        for option in in_group(group):
            help_ = f"{as_flags(option.help)} (default: {as_flags(option.default_text)})".replace("%", "%%")
            if option.kind is FLAG:
                action = argparse.BooleanOptionalAction if option.default else "store_true"
                headed.add_argument(flag_of(option.name), dest=option.name, action=action, default=None, help=help_)
            elif (alone := option.kind.alone) is not None:
                headed.add_argument(
                    flag_of(option.name), dest=option.name, metavar=option.metavar, nargs="?", const=alone, help=help_
                )
            else:
                headed.add_argument(flag_of(option.name), dest=option.name, metavar=option.metavar, help=help_)
    return top


def parse(arguments: list[str] | None) -> tuple[SampleJob, RunOptions]:
    """Options -> job and run options; ``--job`` is read first, options override it.

    Raises:
        ValueError: naming the option, or the job file and its key, the value and what was expected.
    """
    given = given_options(list(sys.argv[1:] if arguments is None else arguments))
    file = given.pop("job", None)
    values = read_job_file(Path(file)) if file is not None else {}
    for ways in EITHER:
        if any(name in given for name in ways):  # an option of the one way overrides the file's of another
            values = {name: value for name, value in values.items() if name not in ways}
    return split_job_and_options(values | given)


def split_job_and_options(values: Mapping[str, Any]) -> tuple[SampleJob, RunOptions]:
    """Values by field -> job and run options, which check them."""
    return (
        SampleJob(**{k: v for k, v in values.items() if k in JOB_OPTIONS}),
        RunOptions(**{k: v for k, v in values.items() if k in RUN_OPTIONS}),
    )


def given_options(arguments: list[str]) -> dict[str, Any]:
    """What the command line says, as strings, by field.

    Raises:
        ValueError: an option that is none, or one without its value.
    """
    named = vars(parser().parse_args(arguments))
    return {name: value for name, value in named.items() if value is not None and name != "version"}


def read_job_file(path: Path) -> dict[str, Any]:
    """The settings in a YAML job file, checked; paths in it are relative to the working directory.

    Raises:
        ValueError: unreadable, not a mapping, an unknown key, or a value of the wrong kind.
    """
    from engine.storage.settings_file import read_yaml  # yaml

    content = read_yaml(path, f"`job` {path}")
    for key in content:
        if key not in OPTIONS:
            raise ValueError(f"{path}: unknown key {quoted(key)}; {nearest(str(key))}")
    return {key: OPTIONS[key].read(value, f"{path}: {key}") for key, value in content.items()}


def nearest(name: str) -> str:
    """The way out for a name that is no option."""
    return did_you_mean(name, OPTIONS) or f"known: {', '.join(OPTIONS)}"


def to_yaml(job: SampleJob) -> str:
    """The job as a file that ``--job`` reads."""
    import yaml

    values = {k: v for k, v in job.plain().items() if v is not None}
    return yaml.safe_dump({**values, "size": JOB_OPTIONS["size"].kind.show(job.size)}, sort_keys=False)


# ---- documentation --------------------------------------------------------------------------

HEAD = """\
# Options

Every option of `python -m engine.sample` is a flag of the command line, a key of a job file (`--job FILE.yaml`) and a
field of `SampleJob` or `RunOptions` in Python: `--batch-size 4`, `batch_size: 4`, `batch_size=4`. All three are checked
alike. A job file is read first; flags override it. Options of the command line that take no value (`--compile`) are
true or false elsewhere.

`python -m engine.parsing > docs/options.md` writes this page from the fields in `engine/job.py`.
"""


def options_markdown() -> str:
    """docs/options.md: a table of every group."""
    return "\n".join([HEAD, *(part for group, title in GROUPS.items() for part in group_markdown(group, title))])


def group_markdown(group: str, title: str) -> Iterator[str]:
    """The lines of one group; options for some models alone say for which."""
    models = any(option.models for option in in_group(group))
    columns = ["option", "meaning", "values", "default"] + ["models"] * models
    yield f"## {group.capitalize()}: {title}\n"
    yield f"| {' | '.join(columns)} |"
    yield "|" + "---|" * len(columns)
    for option in in_group(group):
        cells = [f"`{flag_of(option.name)}`", option.help, option.kind.takes, option.default_text]
        cells += [", ".join(option.models) or "all"] * models
        yield f"| {' | '.join(in_cell(cell) for cell in cells)} |"
    yield ""


def in_cell(text: str) -> str:
    """Text in a table's cell: fields as flags, and no mark that ends the cell."""
    return re.sub(r"`(\w+)`", lambda field: f"`{flag_of(field[1])}`", text).replace("|", "\\|")


if __name__ == "__main__":
    print(options_markdown(), end="")
