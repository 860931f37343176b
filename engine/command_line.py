"""What all commands share: their parser, what their launcher tells them, and how an error is said."""

from __future__ import annotations

import argparse
import errno
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any

from engine.messages import did_you_mean, one_line, quoted, shortened

STOPPED = 75  # exit status of a run that was asked to stop and left a checkpoint


class Parser(argparse.ArgumentParser):
    """A parser that raises on wrong arguments, so that one rank can say so for all."""

    def error(self, message: str) -> Any:
        raise ValueError(f"{message}; see {self.prog} --help")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """The arguments by name, all of which must be known.

        Raises:
            ValueError: naming the first that is not, and the option that is nearest to it.
        """
        words = list(sys.argv[1:] if args is None else args)
        for i in range(len(words) - 1, 0, -1):  # a negative value is a value, not an option
            if re.match(r"-[\d.]", words[i]) and re.fullmatch(r"--[a-z-]+", words[i - 1]):
                words[i - 1 : i + 1] = [f"{words[i - 1]}={words[i]}"]
        given, unknown = self.parse_known_args(words, namespace)
        if unknown:
            name = unknown[0].partition("=")[0]
            near = did_you_mean(name, self.flags()) if name.startswith("-") else ""
            self.error(f"unrecognized argument {shortened(name)}" + (f"; {near}" if near else ""))
        return given

    def flags(self) -> Iterator[str]:
        """Every option, those of subcommands too."""
        for action in self._actions:
            yield from action.option_strings
            if isinstance(action, argparse._SubParsersAction):
                for sub in action.choices.values():
                    yield from sub.flags()


def positive(kind: type):
    """Numbers above 0, for argparse."""

    def convert(text: str):
        value = kind(text)
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
        return value

    return convert


def converted(read: Callable[[str], Any], text: str) -> Any:
    """A value, for argparse, which prints what its own error says."""
    try:
        return read(text)
    except ValueError as problem:
        raise argparse.ArgumentTypeError(f"{quoted(text)}: {problem}") from None


def launched_rank() -> int:
    """This process's rank as its launcher tells it, without MPI."""
    names = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")
    return next((int(os.environ[n]) for n in names if os.environ.get(n, "").isdigit()), 0)


def on_one_rank(main: Callable[..., int]) -> Callable[..., int]:
    """The ``main`` of a command that ranks do not share: where several are started, the first does it alone."""

    @wraps(main)
    def alone(arguments: Sequence[str] | None = None) -> int:
        return main(arguments) if launched_rank() == 0 else 0

    return alone


def gives_help(parser: Callable[[], argparse.ArgumentParser], arguments: Sequence[str]) -> bool:
    """Whether help is asked for, which rank 0 then prints: before MPI, which help need not wait for."""
    if not {"-h", "--help"} & set(arguments):
        return False
    if launched_rank() == 0:
        try:
            parser().parse_args(arguments)  # also of a subcommand
        except SystemExit:
            pass
        except ValueError:  # something before it is wrong
            parser().print_help()
    return True


def comma_separated(text: str) -> tuple[str, ...]:
    """The names in a text, for argparse.

    >>> comma_separated("tumour stroma, necrosis,")
    ('tumour stroma', 'necrosis')
    """
    return tuple(name.strip() for name in text.split(",") if name.strip())


def imported(text: str, option: str, wanted: str) -> Callable[..., Any]:
    """The function that ``module:function`` names.

    Args:
        option: Name of the option, for messages.
        wanted: What the function takes, for messages.
    Raises:
        ValueError: it cannot be imported, or is no function.
    """
    module, _, name = text.partition(":")
    if not any(Path(folder or ".").resolve() == Path.cwd() for folder in sys.path):
        sys.path.insert(0, str(Path.cwd()))  # where python -m looks, and a console script does not
    try:
        function = getattr(import_module(module), name)
    except (Exception, SystemExit) as error:  # somebody else's code
        why = f"{type(error).__name__}: {error}"
        way = "put the module here or on PYTHONPATH"
        raise ValueError(f"`{option}` {text} cannot be imported ({why}); {way}") from None
    if not callable(function):
        raise ValueError(f"`{option}` {text} is not a function; name {wanted}")
    return function


def describe(error: BaseException) -> str:
    """One line for a user: what the error says, with the file it is about."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        way = "; make room, then give the same command again" if error.errno == errno.ENOSPC else ""
        text = f"{where}{error.strerror}{way}"
    elif isinstance(error, MemoryError):
        text = f"out of memory: {error}" if text else "out of memory"
    return one_line(text)


def print_error(error: BaseException) -> None:
    """Say on standard error what is wrong, in one line, with fields as the flags of the command line."""
    print(f"error: {as_flags(describe(error))}", file=sys.stderr, flush=True)


def flag_of(name: str) -> str:
    """The flag of a field.

    >>> flag_of("label_model")
    '--label-model'
    >>> flag_of("continue_")  # which Python keeps for itself without
    '--continue'
    """
    return "--" + name.rstrip("_").replace("_", "-")


def as_flags(message: str) -> str:
    """A message of the engine, which names fields in backticks, in the words of the command line.

    >>> as_flags("`label_model` maps is not there; pass `labels` FILE")
    '--label-model maps is not there; pass --labels FILE'
    """
    return re.sub(r"`(\w+)`", lambda field: flag_of(field[1]), message)
