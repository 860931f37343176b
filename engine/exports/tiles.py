"""Tiles of an image and its label map as pairs for training: PNG, or shards of WebDataset. The ranks share them.

DIR/train/y001024_x000512.png         a tile; of a set 000003_y..., the number of the image first
DIR/train/y001024_x000512_mask.png    its labels, their colours as palette; of nuclei 16 bits, numbered 1, 2, ...
DIR/train-000000.tar                  or, as WebDataset: KEY.png, KEY.mask.png and KEY.json of ``PER_SHARD`` tiles
DIR/val/..., DIR/test/...             likewise; without a split all tiles lie in DIR/all
DIR/tiles.csv                         a line a tile: name, part, image, place in px of level 0, share of each label
DIR/export.json                       the options, the output and its provenance

The files are the same on any number of ranks.
"""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from engine.distributed.ranks import Ranks
from engine.exports.asked import Asked
from engine.exports.bar import with_bar
from engine.exports.cutout import cutout_of
from engine.exports.folder import check_export_folder, write_facts
from engine.exports.target import resolved, whole_target
from engine.exports.tile_pairs import TilePairs
from engine.exports.tiling import PARTS, Tile, Tiling
from engine.inputs.dataset_folder import MASK_ENDING
from engine.storage.set_layout import SetLayout

Shared = tuple[Tile, list[float]]  # a tile, and the share of each label in it
PER_SHARD = 512  # tiles in a file of WebDataset
FORMATS = ("png", "webdataset")


def export_tiles(ranks: Ranks, asked: Asked) -> str:
    """Export an output as tiles, and say how many. Collective; the same files on any number of ranks.

    Raises:
        AgreedError: an option makes no sense for this output, the folder holds something else, a shard is damaged.
    """
    pairs = ranks.agree(lambda: pairs_of(asked))
    target = ranks.agree(lambda: resolved(asked.target))
    check = partial(check_export_folder, asked)
    ranks.on_root(check)
    tiles = kept_tiles(ranks, pairs, asked.most_unknown)
    near = pairs.tiling.too_near([tile for tile, _ in tiles], asked.split_margin) if asked.split_margin else set()
    tiles = [shared for shared in tiles if shared[0] not in near]
    ranks.agree(lambda: check_parts(pairs, tiles, asked.split_margin))
    with ExitStack() as stack:
        new: Path = ranks.on_root(lambda: stack.enter_context(whole_target(target, check)))
        ranks.on_root(new.mkdir)
        files = files_of(pairs, tiles, asked.format == "webdataset")
        write_files(ranks, pairs, files, new)
        ranks.on_root(lambda: write_index(pairs, asked, tiles, len(near), files, new))
        ranks.on_root(stack.close)
    counts = {part: sum(tile.part == part for tile, _ in tiles) for part in PARTS[len(pairs.tiling.shares)]}
    held = f"{len(tiles)} tiles of {asked.tiles} px: {', '.join(f'{n} in {part}' for part, n in counts.items())}"
    left_out = f"; {len(near)} left out, nearer than {asked.split_margin} px to a tile of another part"
    return held + (left_out if asked.split_margin else "")


def pairs_of(asked: Asked) -> TilePairs:
    """What is cut into tiles.

    Raises:
        ValueError: naming the option that makes no sense.
    """
    if asked.format not in (None, *FORMATS):
        raise ValueError(f"`format` {asked.format} is not for tiles; choose {' or '.join(FORMATS)}")
    assert asked.tiles is not None
    overlap = asked.overlap or 0
    if overlap >= asked.tiles:
        raise ValueError(f"`overlap` is {overlap} and tiles have {asked.tiles} px; choose less")
    if asked.seed is not None and asked.split is None:
        raise ValueError("`seed` is for a split; pass `split` too, such as 0.8,0.2, or leave it out")
    if asked.split_margin is not None and asked.split is None:
        raise ValueError("`split_margin` is for a split; pass `split` too, such as 0.8,0.2, or leave it out")
    alone = asked.image if asked.image is not None else 0
    image = cutout_of(replace(asked, image=alone))
    layout = image.output.layout
    labels = None if layout.labels is None else cutout_of(replace(asked, image=alone, labels=True))
    apart = isinstance(layout, SetLayout) and asked.image is None
    if apart and asked.split_margin is not None:
        raise ValueError("`split_margin` is for one image; of a set every image is in one part: leave it out")
    count = layout.count if isinstance(layout, SetLayout) and apart else 1
    tiling = Tiling(image.size(), count, apart, asked.tiles, overlap, asked.split or (1.0,), asked.seed or 0)
    if not all(tiling.counts):
        raise ValueError(
            f"`tiles` is {asked.tiles} and there are {image.size()[0]} x {image.size()[1]} px; choose less"
        )
    if asked.most_unknown is not None and (labels is None or labels.label is None or labels.label.name == "classes"):
        raise ValueError(f"{asked.out} has no label map with an unknown label; leave out `most_unknown`")
    return TilePairs(image, labels, tiling)


def kept_tiles(ranks: Ranks, pairs: TilePairs, most_unknown: float | None) -> list[Shared]:
    """The tiles that are written, and the share of each label in them. Collective.

    Args:
        most_unknown: Share of label 0 beyond which a tile is left out; None: none is.
    """
    every, shown = list(pairs.tiling.tiles()), ranks.rank == 0
    mine = every[ranks.rank :: ranks.size]
    counted = ranks.agree(lambda: [pairs.shares(tile) for tile in with_bar(mine, len(mine), "labels", shown)])
    of_ranks = ranks.allgather(counted)
    shares = (of_ranks[i % ranks.size][i // ranks.size] for i in range(len(every)))
    tiles = zip(every, shares, strict=True)
    return [(tile, of) for tile, of in tiles if most_unknown is None or of[0] <= most_unknown]


def check_parts(pairs: TilePairs, tiles: Sequence[Shared], margin: int | None) -> None:
    """Refuse a split one part of which has no tile.

    Args:
        margin: Between tiles of two parts, px; None: none was asked for.
    Raises:
        ValueError: naming it.
    """
    having, parts = {tile.part for tile, _ in tiles}, PARTS[len(pairs.tiling.shares)]
    lacking = next((part for part in parts if part not in having), None)
    if lacking is not None and len(parts) == 1:
        raise ValueError("no tile is left; choose a larger `most_unknown`")
    if lacking is not None:
        less = "less `overlap`" if not margin else "less `overlap` or `split_margin`"
        raise ValueError(f"no tile is left for {lacking}; choose smaller `tiles`, {less}, or another `split`")


def files_of(pairs: TilePairs, tiles: Sequence[Shared], webdataset: bool) -> dict[str, list[Shared]]:
    """The files that are written and the tiles in each, in the order of their names; of a pair the image's name."""
    if not webdataset:
        return {f"{tile.part}/{pairs.key(tile)}.png": [(tile, shares)] for tile, shares in tiles}
    files: dict[str, list[Shared]] = {}
    for part in PARTS[len(pairs.tiling.shares)]:
        those = [tile for tile in tiles if tile[0].part == part]
        files |= {f"{part}-{i // PER_SHARD:06d}.tar": those[i : i + PER_SHARD] for i in range(0, len(those), PER_SHARD)}
    return files


def write_files(ranks: Ranks, pairs: TilePairs, files: dict[str, list[Shared]], new: Path) -> None:
    """Write the files of all tiles, each rank its share of them. Collective."""
    mine = list(files.items())[ranks.rank :: ranks.size]

    def write_mine() -> None:
        for name, tiles in with_bar(mine, len(mine), "files", ranks.rank == 0):
            (write_tar if name.endswith(".tar") else write_pair)(pairs, tiles, new / name)

    ranks.on_root(lambda: make_folders(new, files))
    ranks.agree(write_mine)


def make_folders(new: Path, files: Iterable[str]) -> None:
    """Make the folders that files lie in."""
    for folder in {(new / name).parent for name in files}:
        folder.mkdir(exist_ok=True)


def write_pair(pairs: TilePairs, tiles: Sequence[Shared], path: Path) -> None:
    """Write the pair of a tile as files side by side."""
    image, mask = pairs.pictures(tiles[0][0])
    path.write_bytes(image)
    if mask is not None:
        path.with_name(path.stem + MASK_ENDING).write_bytes(mask)


def write_tar(pairs: TilePairs, tiles: Sequence[Shared], path: Path) -> None:
    """Write tiles of one part as a shard of WebDataset: the files of a key follow one another."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for tile, shares in tiles:
            image, mask = pairs.pictures(tile)
            text = json.dumps(facts_of(pairs, tile, shares)).encode()
            for ending, content in (("png", image), ("mask.png", mask), ("json", text)):
                if content is not None:
                    entry = tarfile.TarInfo(f"{pairs.key(tile)}.{ending}")  # no time, no user: the same bytes again
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))


def facts_of(pairs: TilePairs, tile: Tile, shares: Sequence[float]) -> dict[str, Any]:
    """What is said of a tile beside its pixels."""
    y, x = pairs.place(tile)
    facts = {"name": pairs.key(tile), "part": tile.part, "image": pairs.number(tile), "y": y, "x": x}
    return {**facts, "shares": {name: round(of, 6) for name, of in zip(pairs.names, shares, strict=True) if of}}


def write_index(
    pairs: TilePairs, asked: Asked, tiles: Sequence[Shared], near: int, files: Iterable[str], new: Path
) -> None:
    """Write ``tiles.csv``, and ``export.json`` with the options.

    Args:
        near: How many tiles were left out for the margin between parts.
    """
    with (new / "tiles.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["name", "part", "image", "y", "x", *pairs.names])
        for tile, shares in tiles:
            y, x = pairs.place(tile)
            table.writerow([pairs.key(tile), tile.part, pairs.number(tile), y, x, *(f"{of:.6g}" for of in shares)])
    tiling, image = pairs.tiling, pairs.image
    facts: dict[str, Any] = {"side": tiling.side, "overlap": tiling.overlap, "level": image.level}
    facts |= {"pixel_size_um": image.pixel_size_um, "shares": tiling.shares, "seed": tiling.seed}
    facts |= {"split_margin": asked.split_margin or 0, "left_out_near": near}
    facts |= {"most_unknown": asked.most_unknown, "labels": pairs.names}
    names = ["tiles.csv", *files]
    if pairs.map is not None and asked.format != "webdataset":
        names += [name.removesuffix(".png") + MASK_ENDING for name in files]
    write_facts(image.output, new, names, tiles=facts)
