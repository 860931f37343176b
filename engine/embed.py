"""``python -m engine.embed SLIDE_OR_FOLDER --with module:function|DIR --out FILE.h5``: embeddings of patches.

A slide, or any large image (PNG, TIFF, .npy, Zarr), is cut into patches that lie side by side, all of them, white ones
too: the grid needs them. Of a folder each picture is a patch. ``engine.sample --embeddings FILE.h5`` reads the result.

The extractor is a function of patches uint8 (n, p, p, 3) that returns float (n, D), or a folder with one file of
TorchScript and a ``config.json`` of the mean and std of its input. Under ``mpiexec -n N`` the ranks share the patches.
Exit status: 0 written, 1 refused or failed, 130 stopped; only the first leaves a file, or changes one that is there.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.command_line import Parser, gives_help, positive
from engine.messages import quoted
from engine.options import SIZE, whole

if TYPE_CHECKING:
    from engine.distributed.ranks import Ranks
    from engine.embedding.patches import Patches

EVERY = 30.0  # seconds from one line on how far it is to the next
OF_SLIDES, OF_FOLDERS = ("at", "pixel_size", "magnification"), ("list",)


def parser() -> argparse.ArgumentParser:
    top = Parser(
        prog="python -m engine.embed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = top.add_argument
    add("source", type=Path, metavar="SLIDE_OR_FOLDER", help="a slide or a large image, or a folder of patches")
    text = "the extractor: a function, or a folder with TorchScript"
    add("--with", dest="extractor", required=True, metavar="MODULE:FUNCTION|DIR", help=text)
    add("--out", type=Path, required=True, metavar="FILE.h5", help="the file to write")
    text = "rows and columns of patches (default: all that the slide has room for; of a folder a list)"
    add("--grid", type=grid, metavar="HxW", help=text)
    add("--at", type=corner, metavar="Y,X", help="slides: corner of the first patch, px of the slide (default: 0,0)")
    add("--patch", type=positive(int), default=256, metavar="PX", help="side of a patch (default: 256)")
    text = "slides: micrometres per pixel of the patches (default: the slide's)"
    add("--pixel-size", type=positive(float), metavar="UM", help=text)
    text = "slides: magnification of the patches (default: the slide's)"
    add("--magnification", type=positive(float), metavar="X", help=text)
    text = "folders: the patches in order, text with one name a line or .npy (default: all, by name)"
    add("--list", type=Path, metavar="FILE", help=text)
    text = "patches that the extractor is given at once; may change the last digits (default: 64)"
    add("--batch-size", type=positive(int), default=64, metavar="N", help=text)
    text = "where a folder's network runs (default: auto)"
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help=text)
    add(
        "--threads",
        type=int,
        choices=range(1, 1025),
        default=1,
        metavar="N",
        help="number of CPU threads a rank (default: 1)",
    )
    add("--overwrite", action="store_true", help="replace a file of embeddings that is there")
    return top


def grid(text: str) -> tuple[int, int]:
    return converted(SIZE.read, text)


def corner(text: str) -> tuple[int, int]:
    """``Y,X``.

    >>> corner("512,0")
    (512, 0)
    """

    def read(text: str) -> tuple[int, int]:
        y, comma, x = text.partition(",")
        if not comma:
            raise ValueError("expected a row and a column, such as 512,1024")
        return whole(0).read(y), whole(0).read(x)

    return converted(read, text)


def converted(read: Callable[[str], Any], text: str) -> Any:
    """A value, for argparse, which prints what its own error says."""
    try:
        return read(text)
    except ValueError as problem:
        raise argparse.ArgumentTypeError(f"{quoted(text)}: {problem}") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Embed, as the command line says. Collective over all ranks; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if gives_help(parser, arguments):
        return 0
    from engine.distributed.launch import run_main  # numpy, for which --help does not wait

    return run_main(lambda ranks: run(ranks, arguments))


def run(ranks: Ranks, arguments: list[str]) -> int:
    """One file of embeddings; the exit status. Collective."""
    args = ranks.agree(lambda: parser().parse_args(arguments))
    ranks.catch_signals("batch")

    from engine.distributed.launch import INTERRUPTED
    from engine.storage.embedding_file import check_place

    ranks.on_root(lambda: check_place(args.out, args.overwrite))
    patches = ranks.on_root(lambda: patches_of(args))

    import torch

    from engine.embedding.extractor import extractor_of
    from engine.embedding.run import embed
    from engine.models.folder import device_of

    torch.set_num_threads(args.threads)
    device = ranks.agree(lambda: device_of(args.device, ranks.local_rank))
    extractor = ranks.agree(lambda: extractor_of(args.extractor, device))
    finished = embed(ranks, patches, extractor, args.out, args.batch_size, telling(len(patches)))
    if ranks.rank == 0 and finished:
        print(f"{args.out} holds embeddings of {' x '.join(map(str, patches.shape))} patches", flush=True)
    elif ranks.rank == 0:
        print(f"stopped; {args.out} was not written", file=sys.stderr, flush=True)
    return 0 if finished else INTERRUPTED


def patches_of(args: argparse.Namespace) -> Patches:
    """The patches that the options ask for.

    Raises:
        ValueError: there are none such, or an option is for the other kind of source.
    """
    from engine.embedding.patches import folder_patches, slide_patches
    from engine.storage.slides import is_picture

    if not args.source.exists():
        raise ValueError(f"{args.source} is not there; name a slide, an image or a folder of patches")
    slide = is_picture(args.source)
    for name in OF_FOLDERS if slide else OF_SLIDES:
        if getattr(args, name) is not None:
            what, other = ("a slide", "folders of patches") if slide else ("a folder of patches", "slides")
            raise ValueError(f"`{name}` is for {other} but {args.source} is {what}; leave it out")
    if slide:
        at, pixel_size, magnification = args.at or (0, 0), args.pixel_size, args.magnification
        return slide_patches(args.source, args.patch, args.grid, at, pixel_size, magnification)
    return folder_patches(args.source, args.patch, args.grid, args.list)


def telling(count: int) -> Callable[[int], None]:
    """What says now and then how many patches are done."""
    last = time.monotonic()

    def tell(done: int) -> None:
        nonlocal last
        if time.monotonic() - last > EVERY:
            last = time.monotonic()
            print(f"{done} of {count} patches", flush=True)

    return tell


if __name__ == "__main__":
    raise SystemExit(main())
