import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.planning.cover import StackedCover, random, shifted, strided, window_weights, windows_of
from engine.planning.decode_cover import decode_cover, pixel_cover
from engine.planning.geometry import Box
from engine.planning.streams import Stream

sides = st.integers(16, 90)
levels = st.integers(0, 10_000)
seeds = st.integers(0, 2**63 - 1)


def numbered(cover):
    """(number, window, where it is used) of all windows of a cover."""
    ids = np.arange(len(cover))
    for index, window, kept in zip(ids, windows_of(cover, ids).tolist(), cover.core(ids).tolist(), strict=True):
        yield int(index), Box(*window), Box(*kept)


def coverage(cover, shape):
    """How often each latent is covered, and the sum of the weights there; every window is whole and inside."""
    count, total = np.zeros(shape, int), np.zeros(shape)
    for index, window, kept in numbered(cover):
        assert window.shape == (cover.patch, cover.patch)
        assert (window & kept) == kept
        assert min(window.y0, window.x0) >= 0
        assert window.y1 <= shape[0]
        assert window.x1 <= shape[1]
        weight = cover.weight(index, kept)
        box = np.s_[kept.y0 : kept.y1, kept.x0 : kept.x1]
        count[box] += 1 if weight is None else weight > 0
        total[box] += 1 if weight is None else weight
    return count, total


@given(sides, sides, seeds, levels)
def test_a_shifted_lattice_covers_every_latent_once_at_any_size_and_offset(h, w, seed, level):
    cover = shifted((h, w), 16, seed, level)
    assert (coverage(cover, (h, w))[0] == 1).all()
    assert len(cover) <= (-(-h // 16) + 1) * (-(-w // 16) + 1)


@settings(max_examples=30)
@given(sides, sides, seeds, levels)
def test_a_random_cover_gives_every_latent_to_the_first_window_that_covers_it(h, w, seed, level):
    cover = random((h, w), 16, seed, level)
    assert (coverage(cover, (h, w))[0] == 1).all()
    expected = np.full((h, w), -1)
    for index, window, _ in numbered(cover):
        view = expected[window.y0 : window.y1, window.x0 : window.x1]
        assert (view < 0).any(), "a window that covers nothing new"
        view[view < 0] = index
    assert (cover.winner == expected).all()


@given(sides, sides, st.integers(1, 16), st.sampled_from(["uniform", "gaussian", "hann"]))
def test_a_strided_cover_leaves_no_latent_out_at_any_stride(h, w, stride, weights):
    count, total = coverage(strided((h, w), 16, stride, weights), (h, w))
    assert (count >= 1).all()
    assert (total > 0).all()


@given(
    sides, sides, st.integers(1, 16), st.integers(0, 99), st.sampled_from(["shifted", "strided", "random"]), st.data()
)
def test_windows_are_found_by_box_as_by_looking_at_all_of_them(h, w, stride, level, kind, data):
    cover = {
        "shifted": lambda: shifted((h, w), 16, 0, level),
        "strided": lambda: strided((h, w), 16, stride, "uniform"),
        "random": lambda: random((h, w), 16, 0, level),
    }[kind]()
    y0, x0 = data.draw(st.integers(0, h - 1)), data.draw(st.integers(0, w - 1))
    box = Box(y0, x0, data.draw(st.integers(y0 + 1, h)), data.draw(st.integers(x0 + 1, w)))
    used, at_home = [], []
    for index, _, kept in numbered(cover):
        common = kept & box
        weight = cover.weight(index, common) if common else None
        if common and (weight is None or (weight > 0).any()):
            used.append(index)
        y, x = (kept.y0 + kept.y1) // 2, (kept.x0 + kept.x1) // 2
        if box.y0 <= y < box.y1 and box.x0 <= x < box.x1:
            at_home.append(index)
    assert cover.overlapping(box).tolist() == used
    assert cover.owned_by(box).tolist() == at_home


def test_images_of_a_set_have_the_windows_of_their_own_covers_below_one_another():
    covers = [shifted((40, 50), 16, 0, 0, image) for image in range(4)]
    stack = StackedCover(16, 40, covers.__getitem__, np.array([0, 2, 3]))
    ids = stack.overlapping(Box(30, 0, 130, 50))
    assert [int(image) for image in np.unique(ids >> 32)] == [0, 2, 3]
    own = covers[2].overlapping(Box(0, 0, 40, 50))
    assert (ids[ids >> 32 == 2] & (2**32 - 1)).tolist() == own.tolist()
    assert (stack.core(own + (2 << 32)) == covers[2].core(own) + [80, 0, 80, 0]).all()
    assert stack.owned_by(Box(40, 0, 80, 50)).tolist() == []


def test_offsets_differ_between_levels_and_the_axes_are_drawn_apart():
    corners = np.array([shifted((64, 64), 16, 0, level).core(np.array([0]))[0, 2:] for level in range(400)])
    assert len(np.unique(corners, axis=0)) > 150
    assert abs(np.corrcoef(corners.T)[0, 1]) < 0.2
    assert set(corners[:, 0]) == set(range(1, 17))


def test_weights_are_symmetric_about_the_middle():
    for kind in ("uniform", "gaussian", "hann"):
        weights = window_weights(kind, 16)
        assert (weights > 0).all()
        np.testing.assert_array_equal(weights, weights[::-1])


@given(sides, sides, st.integers(0, 12))
def test_decoding_covers_every_pixel_and_neighbours_weights_add_up_to_one_inside_the_overlap(h, w, overlap):
    cover = decode_cover((h, w), 16, overlap)
    pixels = pixel_cover(cover, 2, overlap)
    count, total = coverage(pixels, (2 * h, 2 * w))
    assert (count >= 1).all()
    assert (total > 0).all()


def test_a_large_canvas_needs_one_window_a_patch_area():
    shape = (8192, 8192)
    assert len(shifted(shape, 32, 0, 5)) <= 1.02 * (8192 / 32) ** 2


def test_images_and_rounds_have_covers_of_their_own_as_they_always_had():
    """The offsets of (seed, level, image, round) are written down: another number here is another image."""
    offsets = {
        (image, turn): [axis.offset for axis in (cover.rows, cover.columns)]
        for image in (0, 5)
        for turn in (0, 2)
        for cover in [shifted((999, 999), 64, 2**63 - 1, 49, image, turn)]
    }
    assert offsets == {(0, 0): [23, 6], (0, 2): [37, 27], (5, 0): [41, 57], (5, 2): [8, 42]}
    assert Stream(1, 49, 2).noise_level == 49 + 2 * 2**20
