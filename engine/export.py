"""``python -m engine.export OUT DIR``: write an output as the folders of files that the nuclei system writes.

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

A set is read one shard at a time. A large image is read one row of tiles at a time for TIFF, and whole for PNG. The
exit status is 0 (exported) or 1 (refused).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from engine.command_line import Parser, print_error


def main(arguments: Sequence[str] | None = None) -> int:
    top = Parser(prog="python -m engine.export", description=(__doc__ or "").splitlines()[0])
    top.add_argument("out", type=Path, help="a finished output of engine.sample")
    top.add_argument("dir", type=Path, help="the folder to make")
    top.add_argument(
        "--format", choices=("png", "tiff", "jpeg"), help="format of images and labels (default: png; of pairs jpeg)"
    )
    top.add_argument(
        "--layout",
        choices=("folders", "pairs", "classes"),
        default="folders",
        help="folders of samples, labels, ...; pairs of images and maps in one; a folder a class (default: folders)",
    )
    top.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    try:
        given = top.parse_args(arguments)
        from engine.exports.folder import export  # torch and zarr

        written = export(given.out, given.dir, given.format, layout=given.layout, overwrite=given.overwrite)
    except (ValueError, OSError, MemoryError) as error:
        print_error(error)
        return 1
    print(f"{given.dir} holds {in_words(written)}")
    return 0


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


if __name__ == "__main__":
    raise SystemExit(main())
