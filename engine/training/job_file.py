"""Options of a training in a YAML file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.messages import quoted

FLAG = "--job"


def with_job(arguments: Sequence[str]) -> list[str]:
    """The words of a command line, in which those of the file that ``--job`` names stand before the others.

    Args:
        arguments: The network, and its options.
    Raises:
        ValueError: the file is none, or a value is no option's.
    """
    words = [word for given in arguments for word in (given.split("=", 1) if given.startswith(f"{FLAG}=") else [given])]
    if FLAG not in words[:-1]:
        return list(arguments)
    at = words.index(FLAG)
    before, path, after = words[:at], Path(words[at + 1]), words[at + 2 :]
    from engine.storage.settings_file import read_yaml  # yaml

    content = read_yaml(path, f"`job` {path}")
    said = [word for key, value in content.items() for word in words_of(str(key), value, path)]
    return [*before[:1], *said, *before[1:], *after]


def words_of(key: str, value: Any, path: Path) -> list[str]:
    """The words of one option.

    >>> words_of("batch_size", 8, Path("t.yaml")), words_of("dim_mults", [1, 2], Path("t.yaml"))
    (['--batch-size', '8'], ['--dim-mults', '1,2'])
    >>> words_of("compile", True, Path("t.yaml")), words_of("compile", False, Path("t.yaml"))
    (['--compile'], [])

    Raises:
        ValueError: it is none.
    """
    flag = f"--{key.replace('_', '-')}"
    if value is True:
        return [flag]
    if value is False or value is None:
        return []
    if isinstance(value, dict) or flag == FLAG:
        raise ValueError(f"`job` {path}: {quoted(key)} is no option of a training; see --help")
    values = value if isinstance(value, list) else [value]
    return [flag, ",".join(str(each) for each in values)]
