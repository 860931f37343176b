"""From a label model's canvas to labels, cleaned and brought to the size of the image, any box by itself.

DiffInfinite (Aversa et al. 2023, arXiv:2306.13384) decodes its label maps as grey pictures and cleans them: pixels
whose neighbours differ become black, minima over small windows remove thin bridges, and the grey values that are left
are rounded to labels.
"""

from __future__ import annotations

import numpy as np

from engine.diffusion.boxes import ReadBox
from engine.inputs.nuclei import edges
from engine.inputs.resize import nearest_box
from engine.planning.geometry import Box

REACH = 6  # side of the windows whose minimum is taken: a cleaned map is REACH - 1 smaller than its source
NEIGHBOURS = 5  # side of the square that votes on the label at its middle
MARGIN = REACH  # px around a box that either way of cleaning reads at most


def clean_box(
    read: ReadBox, source_shape: tuple[int, int], target_shape: tuple[int, int], box: Box, labels: int, step: int = 1
) -> np.ndarray:
    """One box of DiffInfinite's clean-up of a decoded label map, equal to that crop of the whole. Local.

    Args:
        read: Reader of the decoded map, float (height, width) in [0, 1]; called once, for the box and its margin.
        source_shape: Height and width of the decoded map.
        target_shape: Height and width that the cleaned map is brought to.
        box: Box of the target, not empty and inside it.
        labels: Number of labels.
        step: Distance of the pixels that are wanted, counted from the box's corner.
    Returns:
        uint8 (box.height / step, box.width / step), rounded up, below ``labels``.
    Raises:
        ValueError: the map is smaller than the clean-up's windows.
    """
    if min(source_shape) < REACH:
        raise ValueError(
            f"the decoded label map is {source_shape[0]} x {source_shape[1]}, but the clean-up takes minima over "
            f"{REACH} x {REACH}; sample a larger label map"
        )
    shape = (source_shape[0] - REACH + 1, source_shape[1] - REACH + 1)
    return nearest_box(lambda wanted: _cleaned(read, source_shape, wanted, labels), shape, target_shape, box, step)


def clean_labels(decoded: np.ndarray, target_shape: tuple[int, int], labels: int) -> np.ndarray:
    """DiffInfinite's clean-up of a whole map: float (H, W) in [0, 1] -> uint8 labels of ``target_shape``.

    >>> half = np.repeat([[0.0] * 12 + [1.0] * 12], 24, axis=0)
    >>> clean_labels(half, (19, 19), 2)[0].tolist()
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]
    """

    def read(box: Box) -> np.ndarray:
        return decoded[box.y0 : box.y1, box.x0 : box.x1]

    return clean_box(read, decoded.shape, target_shape, Box(0, 0, *target_shape), labels)  # type: ignore[arg-type]


def cleaned_on_plane(read: ReadBox, box: Box, labels: int) -> np.ndarray:
    """One box of DiffInfinite's clean-up on a plane: at the map's own size, each minimum taken over the middle. Local.

    Args:
        read: Reader of the decoded map, float (height, width) in [0, 1]; called once, for the box and its margin.
        box: Box of the plane, not empty.
        labels: Number of labels.

    >>> cleaned_on_plane(lambda box: np.ones(box.shape), Box(-1, -1, 1, 2), 3).tolist()
    [[2, 2, 2], [2, 2, 2]]
    """
    before = (REACH - 1) // 2
    return _cleaned(read, None, box.moved(-before, -before), labels)


def majority_box(read: ReadBox, shape: tuple[int, int] | None, box: Box, labels: int) -> np.ndarray:
    """One box of a label map after a vote of each label's neighbourhood: specks and holes go. Local.

    Args:
        read: Reader of the map's labels (height, width).
        shape: Height and width of the map; None: it lies on a plane, and has no edges.
        box: Box inside the map.
        labels: Number of labels.
    Returns:
        uint8 (box.height, box.width): the commonest label of the ``NEIGHBOURS`` x ``NEIGHBOURS`` around; of equally
        common ones the smallest.

    >>> speck = np.zeros((5, 5), np.uint8)
    >>> speck[2, 2] = 1
    >>> int(majority_box(lambda w: speck[w.y0:w.y1, w.x0:w.x1], (5, 5), Box(0, 0, 5, 5), 2).sum())
    0
    """
    reach = NEIGHBOURS // 2
    outer = Box(box.y0 - reach, box.x0 - reach, box.y1 + reach, box.x1 + reach)
    held = outer if shape is None else outer & Box(0, 0, *shape)
    ends = [(held.y0 - outer.y0, outer.y1 - held.y1), (held.x0 - outer.x0, outer.x1 - held.x1)]
    around = np.pad(read(held), ends, mode="edge")
    votes = []
    for label in range(labels):
        lines = np.lib.stride_tricks.sliding_window_view(around == label, NEIGHBOURS, 0).sum(-1, dtype=np.int16)
        votes.append(np.lib.stride_tricks.sliding_window_view(lines, NEIGHBOURS, 1).sum(-1))
    return np.stack(votes).argmax(0).astype(np.uint8)


def _cleaned(read: ReadBox, source_shape: tuple[int, int] | None, box: Box, labels: int) -> np.ndarray:
    """A box of the cleaned map before it is brought to size."""
    inner = Box(box.y0, box.x0, box.y1 + REACH - 1, box.x1 + REACH - 1)
    outer = Box(inner.y0 - 1, inner.x0 - 1, inner.y1 + 1, inner.x1 + 1)
    if source_shape is not None:
        outer &= Box(0, 0, *source_shape)
    decoded = np.asarray(read(outer), np.float32)
    grey = (np.clip(decoded, 0, 1) * np.float32(255)).astype(np.uint8)
    grey[edges(grey)] = 0
    grey = grey[inner.within(outer)]
    for axis in (0, 1):
        grey = np.lib.stride_tricks.sliding_window_view(grey, REACH, axis).min(-1)
    return np.rint(grey * ((labels - 1) / 255)).astype(np.uint8)
