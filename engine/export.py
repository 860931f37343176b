"""``python -m engine.export OUT TARGET``: write an output as files for other programs.

The target's name says what is wanted:

    NAME.ome.tiff  a slide: tiles of JPEG, or without loss, and a pyramid, for OpenSlide, QuPath, Bio-Formats, tifffile
    NAME.tiff      one picture in tiles, without loss
    NAME.png       one picture; with --labels the label map, its numbers with the colours as palette
    NAME.jpg       one picture of at most 16384 px a side
    NAME.geojson   label map or nuclei as polygons, for QuPath (docs/exports.md)
    NAME.dcm       one level as a DICOM whole slide image; a folder with --format dicom: one file a level
    DIR            with --tiles PX pairs of tiles for training (docs/exports.md); else a folder of pictures, see below

--region, --level and, of a set, --image say what of the output is in them, --labels that it is the label map. Pixels
are read a few tiles or a strip at a time, whatever the size. docs/viewers.md says which programs open them. Under
mpiexec -n N the ranks share tiles; rank 0 does all else.

A folder holds files as the nuclei system writes them:

    samples/      the images
    labels/       label maps; where nuclei are stored, a mask of them, 0 and 255
    inst_masks/   instance maps of nuclei, TIFF of uint32
    cond/         for sets of nuclei, the condition: .npy, and a strip of its maps, colours and edges side by side
    images/       for sets of nuclei, the reference of each image, if it still lies where it was read
    classes.csv   the class of every image, for a set that stores classes
    settings.csv  for a set whose images have guidance, labels, prompts or styles in turn, those of every image
    export.json   the output that this came from, and its provenance

Files are named by the number of the image, 000000.png, or by its instance map, where those lay in a folder. With
--layout pairs images and label maps lie side by side, as DiffInfinite writes them and engine.train reads them:
sample0000.jpg and sample0000_mask.png, whose values are the numbers of the labels. With --layout classes there is a
folder for each class instead, as the feature-aligned system writes them: CLASS/image_0.png, image_1.png, ...

A set is read one shard at a time. For folders a large image is read one row of tiles at a time for TIFF, and whole for
PNG. The target appears under its name when it is whole; an error, or a signal that ends it,
leaves what was there before and nothing else. The exit status is 0 (exported), 1 (refused) or 130 (ended by a signal).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from engine.command_line import Parser, converted, gives_help
from engine.exports.asked import LAYOUTS, Asked
from engine.messages import one_line
from engine.options import REGION

if TYPE_CHECKING:
    from engine.distributed.ranks import Ranks


def parser() -> Parser:
    top = Parser(
        prog="python -m engine.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    top.add_argument("out", type=Path, help="a finished output of engine.sample")
    top.add_argument("target", type=Path, help="the file or folder to make; its name says what is wanted")
    text = "part of the image, rows and columns in pixels at full size, as engine.view copies it (default: all)"
    top.add_argument("--region", type=partial(converted, REGION.read), metavar="Y0:Y1,X0:X1", help=text)
    text = "level of the pyramid that pixels are taken from; each is half the one before (default: 0, full size)"
    top.add_argument("--level", type=int, metavar="N", help=text)
    top.add_argument("--image", type=int, metavar="N", help="of a set: the number of the image")
    top.add_argument("--labels", action="store_true", help="the label map in place of the image")
    text = "of folders: png, tiff, jpeg (default: png; of pairs jpeg), dicom, geojson; of tiles: png, webdataset"
    top.add_argument("--format", metavar="NAME", help=text)
    top.add_argument(
        "--layout",
        choices=LAYOUTS,
        help="folders of samples, labels, ...; pairs of images and maps in one; a folder a class (default: folders)",
    )
    text = "of polygons: how far an outline may be moved, pixels of the level; 0: that of the pixels (default: 1)"
    top.add_argument("--tolerance", type=float, metavar="PX", help=text)
    text = "of a slide: jpeg, or without loss deflate, zstd or none (default: jpeg; of labels and .tiff deflate)"
    top.add_argument("--compression", metavar="NAME", help=text)
    top.add_argument("--quality", type=int, metavar="Q", help="of JPEG, 1 to 100 (default: 90)")
    add = top.add_argument_group("tiles for training, pairs of image and label map").add_argument
    add("--tiles", type=int, metavar="PX", help="side of a tile, pixels of the level; TARGET is a folder")
    add("--overlap", type=int, metavar="PX", help="of neighbouring tiles (default: 0)")
    text = "of train and val, or of train, val and test: no pixel lies in two (default: all tiles in one folder)"
    add("--split", metavar="SHARE,SHARE[,SHARE]", help=text)
    add("--seed", type=int, metavar="N", help="of the split (default: 0)")
    text = "between tiles of two parts, pixels of the level: train's that are nearer are left out (default: 0)"
    add("--split-margin", type=int, metavar="PX", help=text)
    text = "leave out tiles with more of label 0 than this share (default: none)"
    add("--most-unknown", type=float, metavar="SHARE", help=text)
    top.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Export, as the command line says. Collective over all ranks; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if gives_help(parser, given):
        return 0
    from engine.distributed.launch import run_main  # numpy, for which --help does not wait

    return run_main(lambda ranks: run(ranks, given))


def run(ranks: Ranks, arguments: list[str]) -> int:
    """One export; the exit status. Collective."""
    asked = ranks.agree(lambda: Asked(**vars(parser().parse_args(arguments))))
    from engine.exports.kinds import export  # torch and zarr

    held = export(ranks, asked)
    if ranks.rank == 0:
        say(f"{asked.target} holds {held}")
    return 0


def say(text: str) -> None:
    """Print a line, as far as standard output takes it: the export is made already."""
    known = sys.stdout.encoding or "utf-8"
    with suppress(OSError):
        print(one_line(text).encode(known, "replace").decode(known), flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
