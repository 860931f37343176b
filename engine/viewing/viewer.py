"""What the viewer answers: tiles, legends and facts of the outputs that it shows, each made once and kept a while."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from engine import __version__
from engine.planning.geometry import Box
from engine.reporting.labels import colors_of, legend_of, shares_of
from engine.storage.integrity import DamagedShard
from engine.storage.output import Output
from engine.viewing.cache import Cache
from engine.viewing.pictures import Picture, picture_of_image, picture_of_map
from engine.viewing.pixels import THERE, Kept, Note, Source, filled_in, pixels, stamps
from engine.viewing.watched import Watched, entries_of, layers_of

TILE = 512  # px, side of a tile
COUNTED = 1024  # px, longest side of the level that areas are counted in
CACHE = 2**26  # bytes of pictures that are kept, and of pixels that several are made from
QUALITY = 90  # of JPEG


class NotThere(LookupError):
    """There is nothing at an address."""


class Answer(NamedTuple):
    """What is sent; ``make`` makes it, where the browser has not got it by its tag, and says whether it may be kept."""

    tag: str
    make: Callable[[], tuple[Picture, bool]]


class Viewer:
    """The outputs that are shown. Threads share it; it holds a few tiles for each that renders, and the cache.

    Args:
        paths: Folders of one output, or of two that are shown side by side.
        quality: Of JPEG tiles; None: PNG, without loss.
    Raises:
        ValueError: there is no output and none can be awaited, or the two cannot be shown side by side.
    """

    def __init__(self, paths: Sequence[Path], quality: int | None = QUALITY, cache: int = CACHE) -> None:
        self.watched = [Watched(path) for path in paths]
        self.quality = quality
        self.cache: Cache[Picture] = Cache(cache, lambda picture: len(picture[1]))
        self.kept: Kept = Cache(cache, lambda pair: pair[0].nbytes + pair[1].nbytes)
        self.renders = threading.BoundedSemaphore(max(os.cpu_count() or 1, 2))
        if len({facts["kind"] for facts in self.facts() if "kind" in facts}) > 1:
            raise ValueError("an image and a set of images cannot be shown side by side; show each by itself")

    def facts(self) -> list[dict[str, Any]]:
        """What the page is told of every output: JSON values."""
        return [watched.facts(TILE) for watched in self.watched]

    def tile(self, index: int, layer: str, image: int, level: int, row: int, column: int, lossless: bool) -> Answer:
        """A tile of an output.

        Args:
            layer: "image", or the name of a map.
            image: Number of the image of a set.
            level: Level of the pyramid, 0 at full size.
            lossless: PNG; else JPEG, unless ``quality`` is None.
        Raises:
            NotThere: the output has no such tile.
            Gone: the output was removed.
        """
        watched, output, source = self.source(index, layer, image)
        if level >= len(source.sizes):
            raise NotThere(f"level {level}: there are {len(source.sizes)}")
        y, x = row * TILE, column * TILE
        box = Box(y, x, y + TILE, x + TILE) & Box(0, 0, *source.sizes[level])
        if not box:
            raise NotThere(f"row {row}, column {column}: the image ends before")
        quality = None if lossless or layer != "image" else self.quality
        live = watched.live_picture(output) if layer == "image" else None
        stamp = live.stamp if live else ()
        key = (index, layer, image, level, row, column, quality, output.finished, stamp, *stamps(source, level, box))

        def make(note: Note) -> Picture:
            values, state = pixels(source, level, box, note)
            if live and (small := live.read(image, level, box)) is not None:
                values, state = filled_in(values, state, small)
            if layer == "image":
                return picture_of_image(values, state, box, quality)
            return picture_of_map(values, state, box, colors_of(entries_of(output, layer)))

        return self.answer(watched, key, make)

    def legend(self, index: int, layer: str, image: int) -> Answer:
        """The labels of a map with their colours and areas, counted in a coarse level: JSON.

        Raises:
            NotThere, Gone: as ``tile``.
        """
        if layer == "image":
            raise NotThere("image: maps alone have a legend")
        watched, output, source = self.source(index, layer, image)
        level = next((n for n, size in enumerate(source.sizes) if max(size) <= COUNTED), len(source.sizes) - 1)
        box = Box(0, 0, *source.sizes[level])
        key = (index, layer, image, "legend", output.finished, *stamps(source, level, box))

        def make(note: Note) -> Picture:
            values, state = pixels(source, level, box, note)
            entries = entries_of(output, layer)
            shares = legend_of(shares_of(values[state == THERE], len(entries)), entries)
            nothing = entries[0][0] if entries else "background"  # value 0 is transparent
            labels = [{**asdict(share), "drawn": share.name != nothing} for share in shares]
            counted = "every pixel" if level == 0 else f"one pixel in {4**level:,}"
            part = float((state == THERE).mean())
            content = {"labels": labels, "counted": counted, "part": part}
            return "application/json", json.dumps(content).encode()

        return self.answer(watched, key, make)

    def source(self, index: int, layer: str, image: int) -> tuple[Watched, Output, Source]:
        if index >= len(self.watched):
            raise NotThere(f"output {index}: there are {len(self.watched)}")
        watched = self.watched[index]
        output = watched.output()
        name = layers_of(output).get(layer)
        if name is None:
            raise NotThere(f"{layer}: the output has {', '.join(layers_of(output))}")
        if image >= getattr(output.layout, "count", 1):
            raise NotThere(f"image {image}: the output has none of that number")
        return watched, output, Source(output, name, image, self.kept)

    def answer(self, watched: Watched, key: tuple[Any, ...], make: Callable[[Note], Picture]) -> Answer:
        """An answer that is made under the semaphore, once, and kept in the cache.

        One that shows damage is made whenever it is asked for: nobody sees it while the damage is not listed.
        """

        def kept() -> tuple[Picture, bool]:
            if picture := self.cache.get(key):
                return picture, True
            damaged = []

            def note(shard: DamagedShard) -> None:
                damaged.append(shard)
                watched.note(shard)

            with self.renders:
                if picture := self.cache.get(key):  # another thread made it meanwhile
                    return picture, True
                picture = make(note)
            if not damaged:
                self.cache.put(key, picture)
            return picture, not damaged

        return Answer(hashlib.sha256(repr((__version__, key)).encode()).hexdigest()[:24], kept)
