"""What a label model's canvas becomes: labels, cleaned and brought to the size of the image, any box by itself.

DiffInfinite (Aversa et al. 2023, arXiv:2306.13384) decodes its label maps as grey pictures and cleans them: where
neighbours differ is no label, thin bridges go, and what is left is spread over the labels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from engine.inputs.nuclei import edges
from engine.planning.geometry import Window

REACH = 6  # side of the windows whose minimum is taken: a cleaned map is REACH - 1 smaller than its source
NEIGHBOURS = 5  # side of the square that votes on the label at its middle
Read = Callable[[Window], np.ndarray]  # a box of the source -> its values (height, width)


def source_index(start: int, stop: int, source: int, target: int) -> np.ndarray:
    """Where the pixels [start, stop) of a line of ``target`` are read from one of ``source``: nearest, by middles.

    floor((i + 1/2) source / target) in integers: Pillow's NEAREST, wherever its sum of steps in float64 is exact.

    >>> source_index(0, 5, 2, 5).tolist()
    [0, 0, 1, 1, 1]
    """
    return (2 * np.arange(start, stop, dtype=np.int64) + 1) * source // (2 * target)


def nearest_box(read: Read, source_shape: tuple[int, int], target_shape: tuple[int, int], box: Window) -> np.ndarray:
    """One box of a map brought to another size by nearest neighbours. Local.

    Args:
        read: a box of the source -> its values; called once, for no more than is needed.
        box: of the target, not empty and inside it.
    """
    assert box
    rows = source_index(box.y0, box.y1, source_shape[0], target_shape[0])
    columns = source_index(box.x0, box.x1, source_shape[1], target_shape[1])
    y0, x0 = int(rows[0]), int(columns[0])
    values = read(Window(y0, x0, int(rows[-1]) + 1, int(columns[-1]) + 1))
    return values[np.ix_(rows - y0, columns - x0)]


def clean_box(
    read: Read, source_shape: tuple[int, int], target_shape: tuple[int, int], box: Window, labels: int
) -> np.ndarray:
    """One box of DiffInfinite's clean-up of a decoded label map, equal to that crop of the whole. Local.

    Args:
        read: a box of the decoded map -> float (height, width) in [0, 1]; called once, for the box and its margin.
        source_shape, target_shape: of the decoded map, and of the cleaned one after it was brought to size.
        box: of the target, not empty and inside it.
        labels: how many there are.
    Returns:
        uint8 (box.height, box.width) below ``labels``.
    Raises:
        ValueError: the map is smaller than the clean-up's windows.
    """
    if min(source_shape) < REACH:
        raise ValueError(
            f"the decoded label map is {source_shape[0]} x {source_shape[1]}, but the clean-up takes minima over "
            f"{REACH} x {REACH}; sample a larger label map"
        )
    shape = (source_shape[0] - REACH + 1, source_shape[1] - REACH + 1)
    return nearest_box(lambda wanted: _cleaned(read, source_shape, wanted, labels), shape, target_shape, box)


def clean_labels(decoded: np.ndarray, target_shape: tuple[int, int], labels: int) -> np.ndarray:
    """The whole of DiffInfinite's clean-up: float (H, W) in [0, 1] -> uint8 labels of ``target_shape``.

    >>> half = np.repeat([[0.0] * 12 + [1.0] * 12], 24, axis=0)
    >>> clean_labels(half, (19, 19), 2)[0].tolist()
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]
    """

    def read(box: Window) -> np.ndarray:
        return decoded[box.y0 : box.y1, box.x0 : box.x1]

    return clean_box(read, decoded.shape, target_shape, Window(0, 0, *target_shape), labels)  # type: ignore[arg-type]


def majority_box(read: Read, shape: tuple[int, int], box: Window, labels: int) -> np.ndarray:
    """One box of a label map after a vote of each label's neighbourhood: specks and holes go. Local.

    Args:
        read: a box of the map -> its labels (height, width).
        box: inside the map.
    Returns:
        uint8 (box.height, box.width): the commonest label of the ``NEIGHBOURS`` x ``NEIGHBOURS`` around; of equally
        common ones the smallest.

    >>> speck = np.zeros((5, 5), np.uint8)
    >>> speck[2, 2] = 1
    >>> int(majority_box(lambda w: speck[w.y0:w.y1, w.x0:w.x1], (5, 5), Window(0, 0, 5, 5), 2).sum())
    0
    """
    reach = NEIGHBOURS // 2
    outer = Window(box.y0 - reach, box.x0 - reach, box.y1 + reach, box.x1 + reach)
    held = outer & Window(0, 0, *shape)
    ends = [(held.y0 - outer.y0, outer.y1 - held.y1), (held.x0 - outer.x0, outer.x1 - held.x1)]
    around = np.pad(read(held), ends, mode="edge")
    votes = []
    for label in range(labels):
        lines = np.lib.stride_tricks.sliding_window_view(around == label, NEIGHBOURS, 0).sum(-1, dtype=np.int16)
        votes.append(np.lib.stride_tricks.sliding_window_view(lines, NEIGHBOURS, 1).sum(-1))
    return np.stack(votes).argmax(0).astype(np.uint8)


def _cleaned(read: Read, source_shape: tuple[int, int], box: Window, labels: int) -> np.ndarray:
    """A box of the cleaned map before it is brought to size."""
    inner = Window(box.y0, box.x0, box.y1 + REACH - 1, box.x1 + REACH - 1)
    outer = Window(inner.y0 - 1, inner.x0 - 1, inner.y1 + 1, inner.x1 + 1) & Window(0, 0, *source_shape)
    decoded = np.asarray(read(outer), np.float32)
    grey = (np.clip(decoded, 0, 1) * np.float32(255)).astype(np.uint8)
    grey[edges(grey)] = 0
    grey = grey[inner.within(outer)]
    for axis in (0, 1):
        grey = np.lib.stride_tricks.sliding_window_view(grey, REACH, axis).min(-1)
    return np.rint(grey * ((labels - 1) / 255)).astype(np.uint8)
