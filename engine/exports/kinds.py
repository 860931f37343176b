"""The kinds of export there are: the target's name says which is wanted.

A kind is a line of ``KINDS``, and a function from an ``Asked`` to what the target holds, in words.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from engine.distributed.ranks import AgreedError, Ranks
from engine.exports.asked import Asked
from engine.exports.dicom import export_dicom, export_dicom_file
from engine.exports.folder import export_folders
from engine.exports.geojson import export_geojson, export_geojson_folder
from engine.exports.one_picture import export_jpeg, export_png
from engine.exports.slide import export_slide, export_tiff
from engine.exports.tiles import export_tiles


@dataclass(frozen=True)
class ExportKind:
    """One kind of export.

    Args:
        says: What it makes, for messages.
        uses: The options that it has a use for.
        write: Makes it, and says what the target holds. Rank 0 calls it.
        suffixes: Endings of its target's name, in small letters; empty: the target is a folder.
        option: Of a folder: the option that asks for this kind, and its value; the value None: any.
        together: Whether all ranks make it: then ``write`` is collective, and takes the ranks first.
    """

    says: str
    uses: tuple[str, ...]
    write: Callable[..., str]
    suffixes: tuple[str, ...] = ()
    option: tuple[str, str | None] | None = None
    together: bool = False

    def wanted(self, asked: Asked) -> bool:
        """Whether the target's name, or of a folder the options, ask for this kind."""
        if self.suffixes:
            return asked.target.name.lower().endswith(self.suffixes)
        if self.option is None:
            return True
        name, value = self.option
        return name in asked.given and value in (None, getattr(asked, name))


PART = ("region", "level", "image", "labels")
TILES = ("tiles", "overlap", "split", "seed", "split_margin", "most_unknown", "format", "region", "level", "image")
KINDS = (  # the first that is wanted is made
    ExportKind("NAME.ome.tiff, a slide", (*PART, "compression", "quality"), export_slide, (".ome.tiff", ".ome.tif")),
    ExportKind("NAME.tiff, one picture in tiles", (*PART, "compression", "quality"), export_tiff, (".tiff", ".tif")),
    ExportKind("NAME.png, one picture", PART, export_png, (".png",)),
    ExportKind("NAME.jpg, one picture", ("region", "level", "image", "quality"), export_jpeg, (".jpg", ".jpeg")),
    ExportKind("NAME.geojson, polygons of labels or nuclei", (*PART, "tolerance"), export_geojson, (".geojson",)),
    ExportKind("DIR with `tiles`, pairs for training", TILES, export_tiles, option=("tiles", None), together=True),
    ExportKind(
        "DIR with `format` geojson, polygons of a set",
        ("region", "format", "tolerance"),
        export_geojson_folder,
        option=("format", "geojson"),
    ),
    ExportKind("NAME.dcm, one level as DICOM", ("region", "level", "image", "quality"), export_dicom_file, (".dcm",)),
    ExportKind(
        "DIR with `format` dicom, a slide as DICOM",
        ("format", "region", "level", "image", "quality"),
        export_dicom,
        option=("format", "dicom"),
    ),
    ExportKind("DIR, folders of pictures", ("format", "layout"), export_folders),
)


def kind_of(asked: Asked) -> ExportKind:
    """The kind of an export.

    Raises:
        ValueError: there is none of this name, or it has no use for an option.
    """
    kind = next(kind for kind in KINDS if kind.wanted(asked))
    ending = re.search(r"\.[a-z][a-z0-9]*$", asked.target.name.lower())
    if not kind.suffixes and ending and not asked.target.exists():
        raise ValueError(
            f"{asked.target}: nothing is exported as {ending[0]}; TARGET is {listed()}; "
            "a folder of such a name is to be made first"
        )
    for name in asked.given:
        if name not in kind.uses:
            uses = ", ".join(f"`{use}`" for use in kind.uses)
            raise ValueError(
                f"`{name}` is not for {kind.says}, which takes {uses}; leave it out, or choose another TARGET"
            )
    return kind


def listed() -> str:
    """The kinds there are, in one line."""
    return "; ".join(dict.fromkeys(kind.says for kind in KINDS))


def export(ranks: Ranks, asked: Asked) -> str:
    """Export an output; an error leaves what was there before as it was. Collective.

    Returns:
        What the target holds, in words.
    Raises:
        AgreedError: the output is unfinished, damaged or none; the target is there, or of no kind; an option has no
            use.
    """
    kind = ranks.agree(lambda: kind_of(asked))
    try:
        return kind.write(ranks, asked) if kind.together else ranks.on_root(lambda: kind.write(asked))
    except AgreedError:
        ranks.on_root(asked.check_seen)  # then what was read is of two states, which is no damage
        raise
