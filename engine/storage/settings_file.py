"""Small files of settings, JSON and YAML, that others wrote: read only where they are files, small and shallow."""

from __future__ import annotations

import codecs
import json
import stat
from pathlib import Path
from typing import Any

LARGEST_YAML = 2**16  # bytes; a job has about 1000
LARGEST_JSON = 2**22  # bytes; a model's table of betas has about 50,000
DEEPEST = 16  # lists and mappings within one another


def check_regular(path: Path, what: str, folder: bool = False) -> None:
    """Refuse what is no file: opening a pipe, a socket or a device might wait without end.

    Args:
        what: Name of the file, for messages.
        folder: Whether a folder will do too.
    Raises:
        ValueError: it is not there, or is neither.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise ValueError(f"{what}: {error.strerror}") from None
    if not stat.S_ISREG(mode) and not (folder and stat.S_ISDIR(mode)):
        kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
        kind = kinds.get(stat.S_IFMT(mode), "device")
        raise ValueError(f"{what} is a {kind}, not a file{' or folder' if folder else ''}; save it as a file")


def read_text(path: Path, what: str, largest: int) -> str:
    """The text of a small file.

    Raises:
        ValueError: it is not there, no file, larger than ``largest`` bytes, or not UTF-8.
    """
    check_regular(path, what)
    with path.open("rb") as stream:
        content = stream.read(largest + 1)
    if len(content) > largest:
        raise ValueError(f"{what} is larger than {largest} bytes; such files are small")
    try:
        return content.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{what} is not UTF-8 text ({error.reason} at byte {error.start})") from None


def read_yaml(path: Path, what: str) -> dict[Any, Any]:
    """The mapping in a YAML file, without anchors and aliases: a few of these make more values than memory holds.

    Raises:
        ValueError: no such file, no YAML, or no mapping.
    """
    import yaml

    text = read_text(path, what, LARGEST_YAML)
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise ValueError("it has an anchor or alias, which is not supported: write the value out")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise ValueError(f"it is nested more than {DEEPEST} deep")
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # a date or a number may be none
        raise ValueError(f"{what} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{what}: expected keys and values, such as 'size: 1024x1024'")
    return content


def read_json_object(path: Path, what: str) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: no such file, no JSON, or no object.
    """
    text = read_text(path, what, LARGEST_JSON)
    try:
        value = json.loads(text)
        if depth_of(value) > DEEPEST:
            raise RecursionError
    except RecursionError:
        raise ValueError(f"{what} is nested more than {DEEPEST} deep") from None
    except ValueError as error:
        raise ValueError(f"{what} is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{what} holds no JSON object")
    return value


def depth_of(value: Any) -> int:
    """How deep lists and objects lie within one another.

    >>> depth_of(3), depth_of({"a": [1, []]})
    (0, 3)
    """
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, list | dict)]:
        depth += 1
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return depth
