"""``slidefield COMMAND ...``, or ``python -m engine COMMAND ...``: the commands under one name."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from engine import __version__
from engine.command_line import launched_rank
from engine.messages import did_you_mean, shortened

COMMANDS = {
    "sample": ("engine.sample", "sample an image, or a set of images; also under mpiexec"),
    "train": ("engine.train", "train a model; also under mpiexec"),
    "verify": ("engine.verify", "read every shard of an output and print the sha256 of its pixels"),
    "evaluate": ("engine.evaluate", "measure an output beside other images; also under mpiexec"),
    "view": ("engine.view", "look at an output in the browser, or at two side by side"),
    "serve": ("engine.serve", "pan over a plane in the browser; what is missing is sampled; also under mpiexec"),
    "trim": ("engine.trim", "drop the levels that a plane keeps"),
    "report": ("engine.report", "write a page to look at: pictures, measures, times, how to make it again"),
    "export": ("engine.export", "write an output as PNG or TIFF files"),
    "embed": ("engine.embed", "make embeddings of a slide or a folder of patches; also under mpiexec"),
    "convert": ("engine.models.convert.__main__", "turn a published checkpoint into a model folder"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command with its arguments; returns its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in COMMANDS:
        return int(import_module(COMMANDS[given[0]][0]).main(given[1:]))
    asked = not given or given[0] in ("-h", "--help")
    if launched_rank() == 0:
        if given and given[0] == "--version":
            print(f"slidefield {__version__}")
        elif asked:
            print(usage())
        else:
            near = did_you_mean(given[0], COMMANDS)
            known = f"known: {', '.join(COMMANDS)}"
            print(f"error: {shortened(given[0])} is no command; {near or known}", file=sys.stderr)
    return 0 if asked or given[0] == "--version" else 1


def usage() -> str:
    """The commands, one a line."""
    lines = [f"  slidefield {name:<8} {says}" for name, (_, says) in COMMANDS.items()]
    also = "Each has --help, and is python -m engine.NAME too (convert: python -m engine.models.convert)."
    return "\n".join([f"slidefield {__version__}", "", *lines, "", also])


if __name__ == "__main__":
    raise SystemExit(main())
