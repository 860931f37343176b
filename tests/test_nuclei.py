import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.inputs.nuclei import LARGEST_ID, channel_count, edges, published_channels
from engine.inputs.nuclei_scan import scan_nuclei
from engine.planning.geometry import Box


def reader(array):
    """The boxes of an array that ends in (height, width); refuses to read outside it."""

    def read(box):
        assert box.y0 >= 0
        assert box.x0 >= 0
        assert box.y1 <= array.shape[-2]
        assert box.x1 <= array.shape[-1]
        return array[..., box.y0 : box.y1, box.x0 : box.x1]

    return read


def stack_reader(stack):
    """The boxes of each array of a stack."""
    return lambda image, box: reader(stack[image])(box)


def scan(instances, image=None, **settings):
    pixels = None if image is None else lambda _, box: image(box)
    return scan_nuclei(lambda _, box: reader(instances)(box), instances.shape, pixels=pixels, **KEEP | settings)


def scan_stack(stack, images=None, **settings):
    pixels = None if images is None else stack_reader(images)
    return scan_nuclei(stack_reader(stack), stack.shape[1:], len(stack), pixels=pixels, **KEEP | settings)


KEEP = {"border": "keep"}


def rows_of(nuclei):
    """The table's rows of nuclei that are not dropped."""
    return nuclei.table[(nuclei.table["key"] & np.uint64(LARGEST_ID) > 0) & ~nuclei.dropped]


def ids_of(nuclei):
    """Ascending ids; in a stack image by image."""
    return (rows_of(nuclei)["key"] & np.uint64(LARGEST_ID)).tolist()


def boxes_of(nuclei):
    """(y0, x0, y1, x1) of each nucleus, half-open."""
    return np.stack([rows_of(nuclei)[name] for name in ("y0", "x0", "y1", "x1")], 1).tolist()


def centres_of(nuclei):
    """(y, x) of each centre of mass within the box, counted from 0 and rounded half up."""
    rows = rows_of(nuclei)
    means = [rows[f"sum_{axis}"] / rows["area"] - rows[f"{axis}0"] for axis in "yx"]
    return np.floor(np.stack(means, 1) + 0.5).astype(int).tolist()


def mean_colors_of(nuclei):
    return rows_of(nuclei)["color"] / rows_of(nuclei)["area"][:, None]


def whole(instances):
    return Box(0, 0, *instances.shape)


def random_map(seed, height=40, width=50, nuclei=30, largest=9):
    """Overlapping boxes with holes and torn off bits; large ids with gaps; some 1 px thin."""
    draw = np.random.default_rng(seed)
    instances = np.zeros((height, width), np.uint32)
    for identity in draw.choice(LARGEST_ID, nuclei, replace=False) + 1:
        y, x, h, w = draw.integers(-3, height), draw.integers(-3, width), *draw.integers(1, largest, 2)
        part = instances[max(y, 0) : y + h, max(x, 0) : x + w]
        part[draw.random(part.shape) < 0.8] = identity
    instances[0, 0] = 0
    return instances


def random_image(seed, height=40, width=50):
    return np.random.default_rng(seed).integers(0, 256, (3, height, width), dtype=np.uint8)


# ---- by loops, from the definition --------------------------------------------------------------


def looped_distances(instances, identity):
    """{(y, x): (horizontal, vertical)} of one nucleus, pixel by pixel, with its table's row."""
    pixels = [(int(y), int(x)) for y, x in np.argwhere(instances == identity)]
    y0, x0 = min(y for y, _ in pixels), min(x for _, x in pixels)
    y1, x1 = max(y for y, _ in pixels) + 1, max(x for _, x in pixels) + 1
    centre_y = int(sum(y - y0 for y, _ in pixels) / len(pixels) + 0.5)
    centre_x = int(sum(x - x0 for _, x in pixels) / len(pixels) + 0.5)
    along = {(y, x): (x - x0 + 1 - centre_x, y - y0 + 1 - centre_y) for y, x in pixels}
    row = {
        "area": len(pixels),
        "box": [y0, x0, y1, x1],
        "centre": [centre_y, centre_x],
    }
    if y1 - y0 < 2 or x1 - x0 < 2:
        return dict.fromkeys(pixels, (0.0, 0.0)), row
    scaled = {}
    for place, values in along.items():
        both = []
        for axis, value in enumerate(values):
            all_values = [v[axis] for v in along.values()]
            end = -min(all_values) if value < 0 else max(all_values)
            both.append(np.float32(value) / np.float32(end) if value else np.float32(0))
        scaled[place] = tuple(both)
    return scaled, row


def looped_maps(instances, image):
    """float32 (7, h, w): hv, colour, edges, mask."""
    height, width = instances.shape
    maps = np.zeros((7, height, width), np.float32)
    for identity in set(instances.ravel().tolist()):
        inside = instances == identity
        for c in range(3):
            maps[2 + c][inside] = np.float32(int(image[c][inside].sum()) / inside.sum() / 127.5 - 1)
        if identity:
            maps[6][inside] = 1
            for (y, x), values in looped_distances(instances, identity)[0].items():
                maps[:2, y, x] = values
    for y in range(height):
        for x in range(width):
            for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)):
                if 0 <= y + dy < height and 0 <= x + dx < width and instances[y + dy, x + dx] != instances[y, x]:
                    maps[5, y, x] = 1
    return maps


# ---- by hand ------------------------------------------------------------------------------------

SMALL = np.array(
    [
        [0, 0, 0, 0, 0, 0],
        [0, 7, 7, 7, 7, 0],
        [0, 7, 7, 7, 7, 0],
        [0, 7, 0, 0, 0, 0],
        [0, 0, 0, 9, 9, 0],
        [0, 0, 0, 0, 0, 0],
    ]
)


def test_the_table_of_two_nuclei_by_hand():
    nuclei = scan(SMALL, border="refuse")
    assert len(nuclei) == 2
    assert ids_of(nuclei) == [7, 9]
    assert rows_of(nuclei)["area"].tolist() == [9, 2]
    assert boxes_of(nuclei) == [[1, 1, 4, 5], [4, 3, 5, 5]]
    # Of 7: rows 4 x 0, 4 x 1, 1 x 2 = 6 / 9 -> 1; columns 3 x 0, 2 x 1, 2 x 2, 2 x 3 = 12 / 9 -> 1. Of 9: 0.5 -> 1.
    assert centres_of(nuclei) == [[1, 1], [0, 1]]


def test_the_maps_of_two_nuclei_by_hand():
    horizontal, vertical, lines, mask = scan(SMALL).maps(reader(SMALL), whole(SMALL), ("hv", "edges", "mask"))
    third = np.float32(1) / np.float32(3)
    two = np.float32(2) / np.float32(3)
    assert horizontal[1].tolist() == [0, 0, third, two, 1, 0]
    assert horizontal[3].tolist() == [0] * 6
    assert vertical[:, 1].tolist() == [0, 0, 0.5, 1, 0, 0]
    assert (horizontal[4] == 0).all(), "1 px high: nothing to normalise"
    assert (vertical[4] == 0).all()
    assert mask.tolist() == (SMALL > 0).tolist()
    assert lines.astype(int).tolist() == [
        [0, 1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1, 0],
        [0, 1, 1, 1, 1, 1],
        [0, 0, 0, 1, 1, 0],
    ]


def test_two_nuclei_that_touch_have_a_line_between_them_two_pixels_wide():
    assert edges(np.array([[1, 1, 1, 2, 2, 2]])).astype(int).tolist() == [[0, 0, 1, 1, 0, 0]]


def test_colours_given_are_those_of_all_nuclei_and_all_background():
    nuclei = scan(SMALL, colors=((255, 0, 127.5), (0, 255, 51)))
    color = nuclei.maps(reader(SMALL), whole(SMALL), ("color",))
    assert color[:, 1, 1].tolist() == [1, -1, 0]
    np.testing.assert_allclose(color[:, 0, 0], [-1, 1, 51 / 127.5 - 1], rtol=1e-6)


def test_what_a_window_has_outside_the_canvas_is_background_without_edges():
    nuclei = scan(SMALL[1:4, 1:5], colors=((255, 255, 255), (0, 0, 0)))
    padded = nuclei.maps(reader(SMALL[1:4, 1:5]), Box(-2, -1, 6, 9))
    inside = nuclei.maps(reader(SMALL[1:4, 1:5]), Box(0, 0, 3, 4))
    assert (padded[:, 2:5, 1:5] == inside).all()
    padded[:, 2:5, 1:5] = 0
    assert not padded[[0, 1, 5]].any()
    assert (padded[2:5, :2] == -1).all()
    assert (nuclei.maps(reader(SMALL), Box(20, 20, 24, 24))[2:5] == -1).all()


def test_a_canvas_without_any_background_has_maps_too():
    full = np.repeat([[1, 1, 1, 2, 2]], 4, axis=0)
    image = random_image(0, 4, 5)
    maps = scan(full, image=reader(image)).maps(reader(full), whole(full), ("hv", "color", "edges", "mask"))
    np.testing.assert_array_equal(maps, looped_maps(full, image))


# ---- against the loops --------------------------------------------------------------------------


@settings(max_examples=25)
@given(st.integers(0, 10**6))
def test_table_and_maps_are_those_of_loops_over_nuclei_and_pixels(seed):
    instances, image = random_map(seed), random_image(seed)
    nuclei = scan(instances, image=reader(image))
    assert ids_of(nuclei) == sorted(set(instances.ravel().tolist()) - {0})
    rows = [looped_distances(instances, identity)[1] for identity in ids_of(nuclei)]
    assert rows_of(nuclei)["area"].tolist() == [row["area"] for row in rows]
    assert boxes_of(nuclei) == [row["box"] for row in rows]
    assert centres_of(nuclei) == [row["centre"] for row in rows]
    means = [[image[c][instances == identity].mean() for c in range(3)] for identity in ids_of(nuclei)]
    np.testing.assert_allclose(mean_colors_of(nuclei), means, rtol=1e-12)
    maps = nuclei.maps(reader(instances), whole(instances), ("hv", "color", "edges", "mask"))
    assert maps.dtype == np.float32
    np.testing.assert_array_equal(maps, looped_maps(instances, image))
    assert abs(maps[:5]).max() <= 1


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(-5, 45), st.integers(-5, 55), st.integers(1, 30), st.integers(1, 30))
def test_the_maps_of_a_window_are_that_crop_of_the_whole_canvas(seed, y, x, height, width):
    instances, image = random_map(seed), random_image(seed)
    nuclei = scan(instances, image=reader(image))
    around = 40
    all_of_it = nuclei.maps(reader(instances), Box(-around, -around, 40 + around, 50 + around))
    window = Box(y, x, y + height, x + width)
    crop = all_of_it[:, y + around :, x + around :][:, :height, :width]
    np.testing.assert_array_equal(nuclei.maps(reader(instances), window), crop)


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 60), st.sampled_from([np.uint32, np.uint64, np.int64, ">u4"]))
def test_boxes_of_any_side_and_any_whole_numbers_give_the_same_table(seed, side, dtype):
    instances, image = random_map(seed), random_image(seed)
    expected = scan(instances, image=reader(image))
    nuclei = scan(instances.astype(dtype), image=reader(image), side=side)
    assert (nuclei.table == expected.table).all()


def test_a_nucleus_in_two_places_is_one():
    instances = np.zeros((4, 12), int)
    instances[1:3, 1:3] = instances[1:3, 9:11] = 5
    nuclei = scan(instances)
    assert boxes_of(nuclei) == [[1, 1, 3, 11]]
    horizontal = nuclei.maps(reader(instances), whole(instances), ("hv",))[0]
    assert horizontal[1].tolist() == [0, -1, -np.float32(0.75), 0, 0, 0, 0, 0, 0, np.float32(0.8), 1, 0]


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 90))
def test_images_of_a_stack_do_not_mix_even_where_ids_repeat(seed, side):
    stack = np.stack([np.minimum(random_map(seed + i, 12, 20), 3) for i in range(6)])
    stack[2] = 0
    image = np.stack([random_image(seed + i, 12, 20) for i in range(6)])
    nuclei = scan_stack(stack, image, side=side)
    assert len(nuclei) == sum(len(np.unique(ids[ids > 0])) for ids in stack)
    for index, ids in enumerate(stack):
        if index == 2:
            assert len(nuclei.image(2)) == 0
            assert not nuclei.image(2).maps(reader(ids), whole(ids), ("hv", "edges", "mask")).any()
            continue
        alone = scan(ids, image=reader(image[index]))
        assert (nuclei.image(index).table == alone.table).all()
        np.testing.assert_array_equal(
            nuclei.image(index).maps(reader(ids), whole(ids)), alone.maps(reader(ids), whole(ids))
        )


# ---- the border ---------------------------------------------------------------------------------


def bordered():
    instances = np.zeros((10, 12), np.uint16)
    instances[4:7, 4:7] = 3
    return instances


@pytest.mark.parametrize(
    ("box", "where"),
    [
        ((0, 3, 2, 10), "row 0, columns 3 to 9"),
        ((8, 1, 10, 4), "row 9, columns 1 to 3"),
        ((2, 0, 4, 1), "column 0, rows 2 to 3"),
        ((1, 10, 3, 12), "column 11, rows 1 to 2"),
    ],
)
def test_a_nucleus_cut_by_the_border_is_refused_and_named(box, where):
    instances = bordered()
    instances[Box(*box).within(whole(instances))] = 17
    instances[5, 7] = 17  # its box is wider than what lies on the border
    with pytest.raises(ValueError, match=f"nucleus 17 is cut by the border at {where}; `border_nuclei` keep .* drop"):
        scan(instances, border="refuse", side=5)
    stack = np.stack([bordered(), instances])
    with pytest.raises(ValueError, match=f"nucleus 17 of image 1 is cut by the border at {where}; "):
        scan_stack(stack, border="refuse")
    instances[9, 11] = 20
    with pytest.raises(ValueError, match=r" to \d+ \(and 1 more\); "):
        scan(instances, border="refuse")


def test_dropped_nuclei_are_background_in_every_map():
    cut = bordered()
    cut[0:2, 3:10] = 17
    cut[1:3, 10:] = 18
    image = random_image(0, *cut.shape)
    clean = bordered()
    nuclei = scan(cut, image=reader(image), border="drop")
    assert nuclei.table["key"][nuclei.dropped].tolist() == [17, 18]
    assert ids_of(nuclei) == [3]
    assert (nuclei.without_dropped(cut) == clean).all()
    assert nuclei.without_dropped(cut).dtype == cut.dtype
    channels = ("hv", "color", "edges", "mask")
    expected = scan(clean, image=reader(image)).maps(reader(clean), whole(clean), channels)
    np.testing.assert_array_equal(nuclei.maps(reader(cut), whole(cut), channels), expected)
    stack = np.stack([clean, cut])
    both = scan_stack(stack, np.stack([image] * 2), border="drop")
    np.testing.assert_array_equal(both.image(1).maps(reader(cut), whole(cut), channels), expected)


def test_kept_nuclei_are_taken_as_they_are():
    cut = bordered()
    cut[0:2, 3:10] = 17
    assert ids_of(scan(cut, border="keep")) == [3, 17]


# ---- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("instances", "message"),
    [
        (np.ones((4, 4)), "the instance map holds float64; .* such as uint32"),
        (np.ones((4, 4), bool), "holds bool, a mask of all nuclei; number them"),
        (np.full((4, 4), -3), "has id -3; ids are 0 .* renumber"),
        (np.full((4, 4), 2**32), "has id 4294967296; ids are 4294967295 at the most"),
        (np.zeros((4, 5), int), r"nothing but background \(0\) in 4 x 5 px; .* semantic map whole"),
        (np.zeros((2, 4, 5), int), r"has shape \(2, 4, 5\); it needs two dimensions"),
    ],
)
def test_what_is_no_instance_map_is_refused(instances, message):
    with pytest.raises(ValueError, match=message):
        scan_nuclei(lambda image, box: instances, instances.shape)


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(ValueError, match="nothing but background"):
        scan_stack(np.zeros((9, 4, 4), int))
    with pytest.raises(ValueError, match=r"an image of uint8 \(3, 5, 6\) where the map has \(3, 6, 6\)"):
        scan(SMALL, image=lambda box: np.zeros((3, 5, 6), np.uint8))
    with pytest.raises(ValueError, match=r"a part of shape \(5, 5\) where it should have \(6, 6\)"):
        scan_nuclei(lambda image, box: SMALL[:5, :5], (6, 6))
    with pytest.raises(ValueError, match="`border_nuclei` shrink: choose from refuse, keep, drop"):
        scan(SMALL, border="shrink")
    with pytest.raises(ValueError, match="no nucleus that is not cut by the border"):
        scan(SMALL[1:4, 1:5], border="drop")
    with pytest.raises(ValueError, match=r"takes a colour map, and cells\.tif has no colours"):
        scan(SMALL, name="cells.tif").maps(reader(SMALL), whole(SMALL))


def test_a_map_that_changed_since_the_scan_is_refused():
    nuclei = scan(SMALL)
    changed = SMALL.copy()
    changed[4, 3] = 8
    with pytest.raises(ValueError, match="has nucleus 8 at row 4, column 3, which it had not when it was scanned"):
        nuclei.maps(reader(changed), Box(4, 2, 6, 5), ("hv",))


def test_the_number_of_channels_names_the_parts():
    for count in (2, 3, 5, 6):
        assert channel_count(published_channels(count)) == count
    assert published_channels(6) == ("hv", "color", "edges")
    with pytest.raises(ValueError, match=r"takes 4 condition channels, but .* semantic map whole"):
        published_channels(4)
    with pytest.raises(ValueError, match="no condition channel is called 'hue'; choose from hv, color, edges, mask"):
        channel_count(["hv", "hue"])
