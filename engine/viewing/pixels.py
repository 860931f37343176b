"""The pixels in a box of a level, with what is not there yet and what is damaged told apart.

A level that is not stored (of a set, of an unfinished output, coarser than the pyramid) is made from the one below, in
quarters: no more than a few boxes are in memory, however many pixels they come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np

from engine.planning.geometry import Box
from engine.storage.files import IS_NO_FILE, NO_FILE, Stamp, halved
from engine.storage.integrity import DamagedShard
from engine.storage.output import Output
from engine.storage.remote_shards import Unreachable
from engine.storage.set_layout import SetLayout
from engine.viewing.cache import Cache
from engine.viewing.watched import dtype_of, level_sizes

ABSENT, THERE, DAMAGED = range(3)  # the states of a pixel
MOST_BELOW = 2**25  # pixels that may be read for a level that an unfinished output has not made yet
Kept = Cache[tuple[np.ndarray, np.ndarray]]
Note = Callable[[DamagedShard], object]


@dataclass(frozen=True)
class Source:
    """Where pixels come from.

    Args:
        name: Name of the array at full size.
        image: Number of the image of a set.
        kept: Pixels of levels that are not stored: coarser ones are made from them too.
    """

    output: Output
    name: str
    image: int
    kept: Kept

    @property
    def sizes(self) -> list[tuple[int, int]]:
        return level_sizes(self.output)

    def stored(self, level: int) -> bool:
        return level < len(self.output.layout.sizes())

    def shards(self, level: int, box: Box) -> Iterator[tuple[PurePath, Box]]:
        """The name of every shard that a box needs, and the part of the box that it holds."""
        layout = self.output.layout
        if isinstance(layout, SetLayout):  # a shard holds its images whole
            yield layout.shard_file(self.name, Box(self.image, 0, self.image + 1, 1)), box
            return
        array, side = layout.level(self.name, level), layout.shard
        for y in range(box.y0 // side * side, box.y1, side):
            for x in range(box.x0 // side * side, box.x1, side):
                part = box & Box(y, x, y + side, x + side)
                yield layout.shard_file(array, part), part

    def read(self, level: int, box: Box) -> np.ndarray:
        """The pixels in a box of a level that is stored.

        Raises:
            ValueError: a shard is damaged.
        """
        if isinstance(self.output.layout, SetLayout):
            return self.output.read_part(self.image, box, self.name)
        return self.output.read(self.output.layout.level(self.name, level), box)

    def damage(self, level: int, box: Box, why: str) -> DamagedShard:
        """The shard that a box lies in, as it is named elsewhere."""
        layout = self.output.layout
        if isinstance(layout, SetLayout):
            boxes, place = layout.boxes(), Box(self.image, 0, self.image + 1, 1)
        else:
            boxes, place = layout.boxes(level), box
        return DamagedShard(layout.level(self.name, level), boxes[boxes.index_of(place)], why)


def stamps(source: Source, level: int, box: Box, depth: int | None = None) -> Iterator[Stamp | None]:
    """What changes when the pixels in a box do: the stamps of all files that ``pixels`` would read."""
    depth = levels_below(box) if depth is None else depth
    if isinstance(source.output.layout, SetLayout):
        level = 0
    if not source.stored(level):
        for quarter in quarters(source, level, box):
            yield from stamps(source, level - 1, quarter, depth)
        return
    for shard, part in source.shards(level, box):
        stamp = source.output.shards.stamp(shard)
        yield stamp
        if stamp is None and not source.output.finished and level and depth:
            for quarter in quarters(source, level, part):
                yield from stamps(source, level - 1, quarter, depth - 1)


def pixels(source: Source, level: int, box: Box, note: Note, depth: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The pixels in a box of a level, and the state of each.

    Args:
        note: Called with every shard that is damaged.
        depth: How many levels further down may stand in for what an unfinished output lacks; None: ``levels_below``.
    Returns:
        (c, h, w), or (h, w) of a map; 0 where there are none. uint8 (h, w): ABSENT, THERE, DAMAGED.
    """
    output, depth = source.output, levels_below(box) if depth is None else depth
    lead = (output.layout.channels,) if source.name == output.layout.image else ()
    values = np.zeros((*lead, *box.shape), dtype_of(output, source.name))
    state = np.zeros(box.shape, np.uint8)

    def put(part: Box, depth: int) -> None:
        """Fill a part from the level below."""
        for quarter in quarters(source, level, part):
            below, its_state = kept_pixels(source, level - 1, quarter, note, depth)
            target = Box(quarter.y0 // 2, quarter.x0 // 2, -(-quarter.y1 // 2), -(-quarter.x1 // 2)).within(box)
            values[(..., *target)] = halved(below) if lead else below[::2, ::2]
            state[target] = worst_of_four(its_state)

    if not source.stored(level):
        put(box, depth)
        return values, state
    for shard, part in source.shards(level, box):
        here = part.within(box)
        stamp = output.shards.stamp(shard)
        if stamp == NO_FILE:  # zarr takes it for a shard that was not written: zeros
            note(source.damage(level, part, IS_NO_FILE))
            state[here] = DAMAGED
        elif stamp is not None:
            try:
                values[(..., *here)] = source.read(level, part)
                state[here] = THERE
            except Unreachable:  # which says nothing about the shard
                raise
            except ValueError as error:
                note(source.damage(level, part, f"cannot be read ({error.__cause__ or error})"))
                state[here] = DAMAGED
        elif output.finished and output.layout.complete:
            note(source.damage(level, part, "is missing"))
            state[here] = DAMAGED
        elif level and depth:
            put(part, depth - 1)
    return values, state


def filled_in(values: np.ndarray, state: np.ndarray, live: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels with the live picture where they are absent.

    Args:
        values: uint8 (c, h, w).
        state: Of every pixel.
        live: uint8 (h, w, 4).
    """
    place = (state == ABSENT) & (live[..., 3] > 127)
    values, state = values.copy(), np.where(place, np.uint8(THERE), state)
    colors = live[..., :3].transpose(2, 0, 1)
    shown = colors if len(values) >= 3 else colors[1:2]  # of fewer channels the first is shown; then colours are grey
    values[: len(shown), place] = shown[:, place]
    return values, state


def kept_pixels(source: Source, level: int, box: Box, note: Note, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """``pixels``, which are kept where they are not full size."""
    if not level:
        return pixels(source, level, box, note, depth)
    where = (source.output.path, source.name, source.image, level, box, depth, source.output.finished)
    key = (*where, *stamps(source, level, box, depth))
    made = source.kept.get(key)
    if made is None:
        made = pixels(source, level, box, note, depth)
        if not (made[1] == DAMAGED).any():  # which is noted whenever it is shown
            source.kept.put(key, made)
    return made


def levels_below(box: Box) -> int:
    """How many levels further down a box has no more than ``MOST_BELOW`` pixels.

    >>> levels_below(Box(0, 0, 512, 512)), levels_below(Box(0, 0, 100, 100))
    (3, 5)
    """
    return max((MOST_BELOW // max(box.area, 1)).bit_length() - 1, 0) // 2


def quarters(source: Source, level: int, box: Box) -> Iterator[Box]:
    """The boxes of the level below that make a box of a level: four, or fewer at the image's edge."""
    whole = Box(0, 0, *source.sizes[level - 1])
    half_y, half_x = (-(-n // 2) for n in box.shape)
    for y in (box.y0, box.y0 + half_y):
        for x in (box.x0, box.x0 + half_x):
            quarter = (Box(y, x, y + half_y, x + half_x) & box).scaled(2) & whole
            if quarter:
                yield quarter


def worst_of_four(state: np.ndarray) -> np.ndarray:
    """The states of pixels that are made from 2 x 2: damaged where one is, there where one is.

    >>> worst_of_four(np.array([[0, 1, 1], [0, 0, 2]])).tolist()
    [[1, 2]]
    """
    h, w = state.shape
    padded = np.pad(state, ((0, h % 2), (0, w % 2)), mode="edge")
    return padded.reshape(-(-h // 2), 2, -(-w // 2), 2).max(axis=(1, 3))
