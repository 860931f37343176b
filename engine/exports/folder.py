"""The folder of an export: it appears at once, when it is complete."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from engine.exports.class_folders import check_classes, write_class_folders
from engine.exports.image_set import write_set, write_settings
from engine.exports.pairs import write_pairs
from engine.exports.single_image import write_image
from engine.exports.source import finished_output
from engine.storage.output import Output
from engine.storage.set_layout import SetLayout

FORMATS = {"png": ".png", "tiff": ".tif", "jpeg": ".jpg"}


def export(
    out: Path, folder: Path, kind: str | None = None, *, layout: str = "folders", overwrite: bool = False
) -> list[str]:
    """Export an output to a folder, which appears at once when it is complete.

    Args:
        out: Path of a finished output of engine.sample.
        folder: Folder to be made; it may be there if it is empty.
        kind: "png" or "tiff": the format of samples and labels. An image larger than ``LARGEST_PNG`` and labels of
            more than 8 bits become TIFF anyway. Of pairs also "jpeg". None: PNG, and JPEG of pairs.
        layout: "folders" of samples, labels, ...; "pairs" of images and label maps in one folder; or "classes": the
            images of a set in a folder a class, and nothing else.
        overwrite: Whether to replace an earlier export.
    Returns:
        The names of the files and folders in it.
    Raises:
        ValueError: the output is unfinished, damaged or none, or the folder holds something.
    """
    folder = folder.resolve()
    if kind == "jpeg" and layout != "pairs":
        raise ValueError(
            "`format` jpeg is for pairs of images and label maps; pass `layout` pairs too, or `format` png"
        )
    kind = kind or ("jpeg" if layout == "pairs" else "png")
    output = finished_output(out)
    if layout == "classes":
        check_classes(output)
    check_export_folder(out, folder, overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".exporting", dir=folder.parent))
    try:
        (building / "new").mkdir()
        if layout == "pairs":
            write_pairs(output, building / "new", FORMATS[kind])
        elif layout == "classes" and isinstance(output.layout, SetLayout):
            write_class_folders(output, output.layout, building / "new", FORMATS[kind])
        elif isinstance(output.layout, SetLayout):
            write_set(output, output.layout, building / "new", FORMATS[kind])
        else:
            write_image(output, building / "new", FORMATS[kind])
        write_settings(output, building / "new" / "settings.csv")
        write_facts(output, building / "new")
        written = sorted(path.name for path in (building / "new").iterdir())
        if folder.exists():
            folder.rename(building / "old")
        (building / "new").rename(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return written


def check_export_folder(out: Path, folder: Path, overwrite: bool) -> None:
    """Refuse a folder that holds other files than an export's, or the output itself.

    Raises:
        ValueError: the message names the file.
    """
    if out.resolve().is_relative_to(folder) or folder.is_relative_to(out.resolve()):
        raise ValueError(f"{folder} and {out} lie in one another; choose another DIR")
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


def write_facts(output: Output, folder: Path) -> None:
    """Write ``export.json``: the output's path, every file beside it, and the provenance."""
    provenance = {k: v for k, v in output.provenance.items() if k != "layout"}
    facts = {"source": str(output.path.absolute()), **provenance, "files": sorted([*leaves(folder), "export.json"])}
    (folder / "export.json").write_text(json.dumps(facts, indent=1) + "\n")
