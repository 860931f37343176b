import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cover import decode_cover, pixel_cover, random, shifted, strided, window_weights

sides = st.integers(16, 90)
levels = st.integers(0, 10_000)
seeds = st.integers(0, 2**63 - 1)


def coverage(cover, shape):
    """How often each latent is covered, and the sum of the weights there; every window is whole and inside."""
    count, total = np.zeros(shape, int), np.zeros(shape)
    for index in range(len(cover)):
        window, kept = cover.window(index), cover.kept(index)
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
    for index in range(len(cover)):
        window = cover.window(index)
        view = expected[window.y0 : window.y1, window.x0 : window.x1]
        assert (view < 0).any(), "a window that covers nothing new"
        view[view < 0] = index
    assert (cover.winner == expected).all()


@given(sides, sides, st.integers(1, 16), st.sampled_from(["uniform", "gaussian", "hann"]))
def test_a_strided_cover_leaves_no_latent_out_at_any_stride(h, w, stride, weights):
    count, total = coverage(strided((h, w), 16, stride, weights), (h, w))
    assert (count >= 1).all()
    assert (total > 0).all()


def test_offsets_differ_between_levels_and_the_axes_are_drawn_apart():
    corners = np.array([shifted((64, 64), 16, 0, level).keep[0, 2:] for level in range(400)])
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
