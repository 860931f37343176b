"""``python -m engine.embed SLIDE_OR_FOLDER --with EXTRACTOR --out FILE.h5 [--cluster K]``: embeddings of patches.

A slide, or any large image (PNG, TIFF, .npy, Zarr), is cut into patches that lie side by side, all of them, white ones
too: the grid needs them. Of a folder each picture is a patch. ``engine.sample --embeddings FILE.h5`` reads the result.
``--cluster K`` sorts the patches by their embeddings, also those of a file that is there (``engine.embed FILE.h5
--cluster K``): a list, a sheet of pictures, and a folder a cluster, for ``engine.train nuclei --data DIR/0``.

The extractor is ``appearance`` (colours of stains and texture, nothing to install), a function of patches uint8
(n, p, p, 3) that returns float (n, D), or a folder with one file of TorchScript and a ``config.json`` of the mean and
std of its input, or with a network as timm or transformers saved it (``model.safetensors``, ``config.json``). Under
``mpiexec -n N`` the ranks share the patches.
Exit status: 0 written, 1 refused or failed, 130 stopped; only the first leaves a file, or changes one that is there.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.command_line import Parser, converted, gives_help, positive
from engine.options import SIZE, whole

if TYPE_CHECKING:
    from engine.distributed.ranks import Ranks
    from engine.embedding.clusters import Clustering, Clusters
    from engine.embedding.patches import Patches

EVERY = 30.0  # seconds from one line on how far it is to the next
OF_EMBEDDING = ("extractor", "out", "grid", "at", "pixel_size", "magnification", "list")  # none of a file's
OF_CLUSTERS = ("cluster_folders", "cluster_least", "components")
OF_SLIDES, OF_FOLDERS = ("at", "pixel_size", "magnification"), ("list",)


def parser() -> argparse.ArgumentParser:
    top = Parser(
        prog="python -m engine.embed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = top.add_argument
    text = "a slide or a large image, or a folder of patches; to cluster also FILE.h5, or FILE.h5:/dataset"
    add("source", type=Path, metavar="SOURCE", help=text)
    text = "the extractor: appearance, a function, or a folder with TorchScript"
    add("--with", dest="extractor", metavar="appearance|MODULE:FUNCTION|DIR", help=text)
    add("--out", type=Path, metavar="FILE.h5", help="the file to write")
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
    add("--overwrite", action="store_true", help="replace a file of embeddings, or folders of clusters, that are there")
    cluster_options(top)
    return top


def cluster_options(top: argparse.ArgumentParser) -> None:
    add = top.add_argument_group("clusters of styles").add_argument
    text = "sort the patches into K clusters by k-means, or into as many as HDBSCAN finds"
    add("--cluster", type=number_of_clusters, metavar="K|auto", help=text)
    text = "where the list, the sheet and the folders go (default: beside FILE.h5, FILE-clusters)"
    add("--cluster-folders", type=Path, metavar="DIR", help=text)
    text = "auto: patches of the smallest cluster (default: a 20th of them, 5 to 50)"
    add("--cluster-least", type=two_or_more, metavar="N", help=text)
    text = "how embeddings become a few numbers; umap is that of umap-learn (default: pca)"
    add("--reduce", choices=("pca", "umap"), default="pca", help=text)
    add("--components", type=positive(int), metavar="N", help="how many (default: 50 or fewer, auto: 5)")
    add("--seed", type=whole_number, default=42, metavar="N", help="seed of k-means and UMAP (default: 42)")


def number_of_clusters(text: str) -> int | str:
    """``auto``, or 2 or more.

    >>> number_of_clusters("auto"), number_of_clusters("3")
    ('auto', 3)
    """
    return text if text == "auto" else two_or_more(text)


def two_or_more(text: str) -> int:
    return converted(whole(2).read, text)


def whole_number(text: str) -> int:
    return converted(whole(0, 2**32 - 1).read, text)


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Embed, as the command line says. Collective over all ranks; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if gives_help(parser, arguments):
        return 0
    from engine.distributed.launch import run_main  # numpy, for which --help does not wait

    return run_main(lambda ranks: run(ranks, arguments))


def run(ranks: Ranks, arguments: list[str]) -> int:
    """One file of embeddings, its clusters, or both; the exit status. Collective."""
    args = ranks.agree(lambda: parser().parse_args(arguments))
    ranks.agree(lambda: check_options(args))
    ranks.catch_signals("batch")
    if not of_file(args):
        status = embed_patches(ranks, args)
        if status or args.cluster is None:
            return status
    said = ranks.on_root(lambda: cluster(args))
    if ranks.rank == 0:
        print(said, flush=True)
    return 0


def of_file(args: argparse.Namespace) -> bool:
    """Whether the source is a file of embeddings."""
    from engine.storage.readers import HDF5, split_dataset

    return split_dataset(args.source)[0].suffix in HDF5


def check_options(args: argparse.Namespace) -> None:
    """Refuse options that do not go together.

    Raises:
        ValueError: naming them.
    """
    flags = {"extractor": "with"}
    if of_file(args):
        if args.cluster is None:
            raise ValueError(f"{args.source} is a file of embeddings; pass `cluster` K, or name a slide or a folder")
        given = next((name for name in OF_EMBEDDING if getattr(args, name) is not None), None)
        if given is not None:
            raise ValueError(
                f"`{flags.get(given, given)}` is for slides and folders but {args.source} is a file of embeddings; "
                "leave it out"
            )
    elif args.extractor is None or args.out is None:
        missing = "with" if args.extractor is None else "out"
        raise ValueError(f"`{missing}` is not given; embeddings take `with` EXTRACTOR and `out` FILE.h5")
    given = next((name for name in OF_CLUSTERS if getattr(args, name) is not None), None)
    if args.cluster is None and given is not None:
        raise ValueError(f"`{given}` is given but not `cluster`; pass `cluster` K, or auto")
    if args.cluster_least is not None and args.cluster != "auto":
        raise ValueError(f"`cluster_least` is for `cluster` auto, not {args.cluster}; leave it out")


def embed_patches(ranks: Ranks, args: argparse.Namespace) -> int:
    """One file of embeddings; the exit status. Collective."""
    from engine.distributed.launch import INTERRUPTED
    from engine.storage.embedding_file import check_place

    ranks.on_root(lambda: check_place(args.out, args.overwrite))
    patches = ranks.on_root(lambda: patches_of(args))
    if args.cluster is not None:
        ranks.on_root(lambda: check_clusters(args, len(patches)))

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


def check_clusters(args: argparse.Namespace, count: int | None) -> None:
    """Refuse clusters that cannot be found or written.

    Args:
        count: Number of patches; None: it is not known yet.
    """
    from engine.embedding.cluster_folder import check_cluster_folder
    from engine.embedding.clusters import check_clustering

    check_cluster_folder(cluster_folder(args), args.overwrite)
    check_clustering(clustering(args), count)


def clustering(args: argparse.Namespace) -> Clustering:
    from engine.embedding.clusters import Clustering

    count = None if args.cluster == "auto" else args.cluster
    return Clustering(count, args.reduce, args.components, args.cluster_least, args.seed, args.threads)


def cluster_folder(args: argparse.Namespace) -> Path:
    """Where the clusters go."""
    from engine.storage.readers import split_dataset

    file = args.out or split_dataset(args.source)[0]
    return args.cluster_folders or file.with_name(f"{file.stem}-clusters")


def cluster(args: argparse.Namespace) -> str:
    """Find clusters and write their folder; what is said of them. Local.

    Raises:
        ValueError: the embeddings or the options do not allow it.
    """
    from engine.embedding.cluster_folder import write_clusters
    from engine.embedding.clusters import find_clusters
    from engine.embedding.patches import patches_of_file
    from engine.storage.embedding_file import read_origin
    from engine.storage.readers import read_rows, split_dataset

    check_clusters(args, None)
    source, folder = args.out or args.source, cluster_folder(args)
    embeddings = read_rows(source, "the embeddings")
    count, file = math.prod(embeddings.shape[:-1]), split_dataset(source)[0]
    facts, names = read_origin(file, count)
    patches = patches_of_file(facts, names, count, file) if facts else None
    clusters = find_clusters(
        embeddings, f"the embeddings {source}", clustering(args), patches.named if patches else "row {}".format
    )
    write_clusters(folder, patches, clusters)
    return in_words(clusters, folder, patches is not None)


def in_words(clusters: Clusters, folder: Path, known: bool) -> str:
    """What is said of clusters.

    Args:
        known: Whether the patches are known, and there.
    """
    sizes = dict(clusters.sizes())
    outside = sizes.pop(-1, 0)
    of_all = f"{len(sizes)} clusters of {', '.join(map(str, sizes.values()))} patches"
    outside_too = f", {outside} in none of them" if outside else ""
    apart = "" if math.isnan(clusters.silhouette) else f", silhouette {clusters.silhouette:.2f}"
    alone = "" if known else "; the pictures are not known or not there, and it holds the list alone"
    return f"{of_all}{outside_too}{apart}: {folder}{alone}"


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
