"""The folder of an export: it appears at once, when it is complete."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from engine.exports.asked import Asked
from engine.exports.class_folders import check_classes, write_class_folders
from engine.exports.image_set import write_set, write_settings
from engine.exports.pairs import write_pairs
from engine.exports.single_image import write_image
from engine.exports.source import finished_output
from engine.exports.target import resolved, whole_target
from engine.messages import quoted
from engine.storage.output import Output
from engine.storage.set_layout import SetLayout
from engine.storage.target_file import check_folder

FORMATS = {"png": ".png", "tiff": ".tif", "jpeg": ".jpg"}


def export_folders(asked: Asked) -> str:
    """Export an output to folders of pictures, and name what they hold.

    An image larger than ``LARGEST_PNG`` and labels of more than 8 bits are TIFF in place of PNG.

    Raises:
        ValueError: the output is unfinished, damaged or none, the folder holds something, the format is for others.
    """
    layout = asked.layout or "folders"
    name = asked.format or ("jpeg" if layout == "pairs" else "png")
    if name not in FORMATS:
        raise ValueError(f"`format` {quoted(name)} is not for folders of pictures; choose {', '.join(FORMATS)}")
    if name == "jpeg" and layout != "pairs":
        raise ValueError(
            "`format` jpeg is for pairs of images and label maps; pass `layout` pairs too, or `format` png"
        )
    folder = resolved(asked.target)
    output = finished_output(asked.out)
    if layout == "classes":
        check_classes(output)
    check = partial(check_export_folder, asked)
    check()
    with whole_target(folder, check) as new:
        new.mkdir()
        write_pictures(output, layout, new, FORMATS[name])
        write_settings(output, new / "settings.csv")
        write_facts(output, new)
        return in_words(sorted(path.name for path in new.iterdir()))


def write_pictures(output: Output, layout: str, folder: Path, ending: str) -> None:
    """Write the pictures of an output, laid out as one of ``LAYOUTS``."""
    if layout == "pairs":
        write_pairs(output, folder, ending)
    elif not isinstance(output.layout, SetLayout):
        write_image(output, folder, ending)
    elif layout == "classes":
        write_class_folders(output, output.layout, folder, ending)
    else:
        write_set(output, output.layout, folder, ending)


def check_export_folder(asked: Asked) -> None:
    """Refuse a folder that holds other files than an export's, or the output itself, and an output that was changed.

    Raises:
        ValueError: the message names the file.
    """
    asked.check_seen()
    out, folder, overwrite = asked.out, resolved(asked.target), asked.overwrite
    if out.resolve().is_relative_to(folder) or folder.is_relative_to(out.resolve()):
        raise ValueError(f"{folder} and {out} lie in one another; choose another DIR")
    check_folder(folder.parent, str(folder), "choose another DIR")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; choose another DIR")
    others = sorted(set(leaves(folder)) - written_before(folder))
    if others and overwrite:
        raise ValueError(
            f"{folder} holds {others[0]}, which no export wrote; remove it yourself, or choose another DIR"
        )
    if any(folder.iterdir()) and not overwrite:
        raise ValueError(f"{folder} is not empty; pass --overwrite to replace an earlier export, or choose another DIR")


def leaves(folder: Path) -> list[str]:
    """Everything below a folder that holds nothing itself: files, links, empty folders."""
    below = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir() or not any(path.iterdir()))
    return [path.relative_to(folder).as_posix() for path in below]


def written_before(folder: Path) -> set[str]:
    """The files of an earlier export, as its ``export.json`` lists them."""
    if not (folder / "export.json").is_file():
        return set()
    try:
        return {str(name) for name in json.loads((folder / "export.json").read_text())["files"]}
    except (ValueError, TypeError, KeyError, RecursionError):
        return set()


def write_facts(output: Output, folder: Path, names: Iterable[str] | None = None, **more: Any) -> None:
    """Write ``export.json``: the output's path, every file beside it, and the provenance.

    Args:
        names: Of the files beside it; None: those that are there.
        more: What else it says.
    """
    provenance = {k: v for k, v in output.provenance.items() if k != "layout"}
    files = sorted([*(leaves(folder) if names is None else names), "export.json"])
    facts = {"source": str(output.path.absolute()), **provenance, **more, "files": files}
    (folder / "export.json").write_text(json.dumps(facts, indent=1) + "\n")


def in_words(names: Sequence[str]) -> str:
    """The names of what was written; of pairs, which may be thousands, the first and their number.

    >>> in_words(["export.json", "sample0000.jpg", "sample0000_mask.png", "sample0001.jpg", "sample0001_mask.png"])
    'export.json, sample0000.jpg, sample0000_mask.png, ... (2 pairs)'
    """
    pairs = sum(name.endswith("_mask.png") for name in names)
    if not pairs:
        return ", ".join(names)
    others = [name for name in names if not name.startswith("sample")]
    first = [name for name in names if name.startswith("sample")][:2]
    return ", ".join([*others, *first, *(["..."] if pairs > 1 else [])]) + f" ({pairs} pair{'s' * (pairs > 1)})"
