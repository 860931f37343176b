"""What the nuclei system computes, once more from its description: distance maps as its networks were trained with."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_nuclei import random_image, random_map, reader, stack_reader, whole

from engine.inputs.nuclei_pieces import find_pieces
from engine.inputs.nuclei_scan import scan_nuclei
from engine.planning.geometry import Box

PUBLISHED = {"border": "published", "least_area": 30, "split": True}


def parts_of(mask):
    """The parts of a mask that touch above, below or beside: lists of (y, x), by flooding."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    parts = []
    while left:
        flood, part = [left.pop()], []
        while flood:
            y, x = flood.pop()
            part.append((y, x))
            for near in ((y, x + 1), (y + 1, x), (y, x - 1), (y - 1, x)):
                if near in left:
                    left.remove(near)
                    flood.append(near)
        parts.append(part)
    return parts


def published_distances(instances, least_area=30, border=True):
    """float32 (2, h, w): as the system's dataset makes them, part by part, with its empty box at the border."""
    maps = np.zeros((2, *instances.shape), np.float32)
    for identity in set(instances.ravel().tolist()) - {0}:
        for part in parts_of(instances == identity):
            y0, x0 = (min(place[axis] for place in part) for axis in (0, 1))
            if len(part) < least_area or (border and min(y0, x0) < 2):
                continue
            centre = [int(sum(p[axis] - o + 2 for p in part) / len(part) + 0.5) for axis, o in ((0, y0), (1, x0))]
            for channel, axis, corner in ((0, 1, x0), (1, 0, y0)):
                values = {
                    place: place[axis] - corner + 3 - centre[axis] for place in part
                }  # from 1, in a box 2 px wider
                for place, value in values.items():
                    end = -min(values.values()) if value < 0 else max(values.values())
                    maps[(channel, *place)] = np.float32(value) / np.float32(end) if value else 0
    return maps


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.integers(1, 60), st.sampled_from([4, 9, 25]))
def test_distance_maps_are_the_published_ones_in_whatever_boxes_the_map_is_read(seed, side, largest):
    instances = random_map(seed, largest=largest)
    nuclei = scan_nuclei(lambda _, box: reader(instances)(box), instances.shape, side=side, **PUBLISHED)
    expected = published_distances(instances)
    np.testing.assert_array_equal(nuclei.maps(reader(instances), whole(instances), ("hv",)), expected)
    window = Box(11, 7, 33, 50)
    np.testing.assert_array_equal(nuclei.maps(reader(instances), window, ("hv",)), expected[:, 11:33, 7:50])
    small = {**PUBLISHED, "least_area": 3, "border": "keep"}
    nuclei = scan_nuclei(lambda _, box: reader(instances)(box), instances.shape, side=side, **small)
    expected = published_distances(instances, 3, border=False)
    np.testing.assert_array_equal(nuclei.maps(reader(instances), whole(instances), ("hv",)), expected)


def test_each_image_of_a_stack_has_the_parts_of_its_own_nuclei():
    stack = np.stack([np.minimum(random_map(seed, 24, 20), 3) for seed in range(4)])
    nuclei = scan_nuclei(stack_reader(stack), stack.shape[1:], len(stack), side=9, **PUBLISHED)
    for index, instances in enumerate(stack):
        maps = nuclei.image(index).maps(reader(instances), whole(instances), ("hv",))
        np.testing.assert_array_equal(maps, published_distances(instances))


def test_nuclei_of_29_px_are_flat_and_those_of_30_are_not():
    instances = np.zeros((20, 30), np.uint8)
    instances[5:10, 5:11] = 1
    instances[5:10, 15:21] = 2
    instances[5, 15] = 0
    maps = scan_nuclei(lambda _, box: reader(instances)(box), instances.shape, **PUBLISHED)
    horizontal = maps.maps(reader(instances), whole(instances), ("hv",))[0]
    assert horizontal[instances == 1].any()
    assert not horizontal[instances == 2].any()


def test_only_distance_maps_take_the_parts_of_a_nucleus_apart():
    instances, image = random_map(3), random_image(3)
    pixels = lambda _, box: reader(image)(box)  # noqa: E731
    read = lambda _, box: reader(instances)(box)  # noqa: E731
    one = scan_nuclei(read, instances.shape, pixels=pixels, border="keep")
    split = scan_nuclei(read, instances.shape, pixels=pixels, **PUBLISHED)
    assert (one.table == split.table).all()
    rest = ("color", "edges", "mask")
    np.testing.assert_array_equal(
        split.maps(reader(instances), whole(instances), rest), one.maps(reader(instances), whole(instances), rest)
    )


def test_parts_that_are_dropped_or_whole_are_background_or_unchanged():
    instances = np.zeros((40, 40), np.uint16)
    instances[0:8, 3:10] = instances[20:28, 3:10] = 5  # cut by the border in one part
    instances[10:18, 20:28] = 6
    nuclei = scan_nuclei(lambda _, box: reader(instances)(box), instances.shape, **{**PUBLISHED, "border": "drop"})
    maps = nuclei.maps(reader(instances), whole(instances), ("hv", "mask"))
    assert not maps[:, instances == 5].any()
    assert maps[2, instances == 6].all()
    assert not len(find_pieces(lambda _, box: reader(instances * (instances == 6))(box), instances.shape).runs)


@pytest.mark.parametrize("side", [3, 2048])
def test_parts_are_joined_across_boxes_by_whatever_way(side):
    spiral = np.ones((15, 15), np.uint8)
    spiral[1:14, 1] = spiral[13, 1:13] = spiral[3:13, 12] = spiral[3, 3:13] = spiral[3:11, 3] = 0
    spiral[7, 7] = spiral[0, 0] = 1
    pieces = find_pieces(lambda _, box: reader(spiral)(box), spiral.shape, side=side)
    assert len(pieces.rows) in (0, len(parts_of(spiral)))
    assert (len(pieces.rows) > 0) == (len(parts_of(spiral)) > 1)
