"""A part of an output as DICOM whole slide images, one file a level, through wsidicomizer."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from engine import __version__
from engine.exports.asked import Asked
from engine.exports.cutout import Cutout, cutout_of
from engine.exports.encoders import QUALITY, encoder_of
from engine.exports.folder import check_export_folder, write_facts
from engine.exports.ome_xml import described
from engine.exports.slide import COARSEST, write_slide
from engine.exports.target import check_export_file, whole_target

TILE = 512  # px a side


def export_dicom(asked: Asked) -> str:
    """Write a folder of DICOM files, one a level, and say what it holds."""
    converter = converter_of()
    cutout = cutout_of(asked)
    check = partial(check_export_folder, asked)
    check()
    with whole_target(asked.target, check) as folder:
        written = convert(converter, cutout, folder, asked.quality, levels=cutout.halvings(COARSEST) + 1)
        write_facts(cutout.output, folder)
    height, width = cutout.size()
    return f"{height} x {width} px in {len(written)} level{'s' * (len(written) > 1)}, export.json"


def export_dicom_file(asked: Asked) -> str:
    """Write one DICOM file of one level, and say what it holds."""
    converter = converter_of()
    cutout = cutout_of(asked)
    check = partial(check_export_file, asked)
    check()
    with whole_target(asked.target, check) as path:
        (file,) = convert(converter, cutout, path.with_name("files"), asked.quality, levels=1)
        file.rename(path)
    height, width = cutout.size()
    return f"{height} x {width} px"


def converter_of() -> Any:
    """The module wsidicomizer.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import wsidicomizer
    except ImportError:
        raise ValueError(
            "DICOM is written by wsidicomizer, which is not installed: pip install 'slidefield[dicom]', "
            "or pip install wsidicomizer"
        ) from None
    return wsidicomizer


def convert(converter: Any, cutout: Cutout, folder: Path, quality: int | None, levels: int) -> list[Path]:
    """Write the files of a cutout: a slide without loss first, which is converted and removed.

    Args:
        levels: Number of levels, each half the one before.
    Returns:
        The files, the finest level first.
    """
    from pydicom import Dataset
    from wsidicom.codec import JpegSettings

    slide = folder.with_name(".slide.ome.tiff")
    write_slide(cutout, slide, encoder_of("deflate", cutout.channels == 3, None), levels)
    facts = Dataset()
    facts.PatientName, facts.PatientID = "Synthetic^Slidefield", "synthetic"
    facts.ImageComments = described(cutout)
    facts.Manufacturer, facts.ManufacturerModelName = "Slidefield", cutout.output.path.name[:64]
    facts.SoftwareVersions = __version__
    paths = converter.WsiDicomizer.convert(
        slide,
        folder,
        tile_size=TILE,
        metadata_post_processor=facts,
        uid_generator=uids_of(cutout, quality),
        encoding=JpegSettings(quality or QUALITY),
        preferred_source=converter.SourceIdentifier.TIFFSLIDE,
    )
    slide.unlink()
    files = sorted(map(Path, paths), key=columns_of, reverse=True)
    named = [folder / f"level{level}.dcm" for level in range(len(files))]
    for file, name in zip(files, named, strict=True):
        shutil.move(file, name)
    return named


def columns_of(path: Path) -> int:
    """Width of the level that a DICOM file holds, px."""
    from pydicom import dcmread

    return int(dcmread(path, stop_before_pixels=True).TotalPixelMatrixColumns)


def uids_of(cutout: Cutout, quality: int | None) -> Callable[[], Any]:
    """Unique identifiers that are the same whenever the same is exported.

    The n-th is a hash of what is exported and n (DICOM PS3.5 B.2: 2.25 and a UUID).
    """
    from pydicom.uid import UID

    facts = cutout.output.provenance
    what = [facts.get("identity"), cutout.name, cutout.image, cutout.level, cutout.box, quality, __version__]
    numbers = count()

    def next_uid() -> Any:
        hashed = hashlib.sha256(repr((what, next(numbers))).encode()).digest()
        return UID(f"2.25.{int.from_bytes(hashed[:16])}")

    return next_uid
