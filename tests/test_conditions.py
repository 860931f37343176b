import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.diffusion.conditions import ClassMap, EmbeddingGrid, LabelMap, slerp
from engine.inputs.example import example_labels
from engine.planning.cover import random, shifted, strided
from engine.planning.geometry import Box


@settings(deadline=None, max_examples=40)
@given(st.integers(16, 60), st.integers(16, 60), st.integers(0, 99), st.sampled_from(["shifted", "random", "strided"]))
def test_the_labels_of_a_window_are_those_that_occur_where_it_is_used(h, w, seed, kind):
    labels = np.random.default_rng(seed).integers(0, 7, (-(-h // 8), -(-w // 8))).astype(np.uint8)
    labels = labels.repeat(8, 0).repeat(8, 1)[:h, :w]
    cover = {
        "shifted": lambda: shifted((h, w), 16, seed, 0),
        "random": lambda: random((h, w), 16, seed, 0),
        "strided": lambda: strided((h, w), 16, 7, "uniform"),
    }[kind]()
    label_bits = LabelMap(2.0, labels).label_bits(cover, np.arange(len(cover)))
    for index, box in enumerate(cover.core(np.arange(len(cover))).tolist()):
        kept = Box(*box)
        used = labels[kept.y0 : kept.y1, kept.x0 : kept.x1]
        weight = cover.weight(index, kept)
        if weight is not None:
            used = used[weight > 0]
        assert int(label_bits[index]) == sum(1 << int(v) for v in np.unique(used))


@pytest.mark.parametrize(
    ("labels", "guidance", "asked"),
    [
        ([0], 3.0, [0]),
        ([0, 2], 3.0, [0, 2]),
        ([2, 4], 3.0, [0, 2, 4]),
        ([2, 4], 1.0, [2, 4]),
        ([0, 2], 1.0, [0, 2]),
    ],
)
def test_a_window_asks_for_its_labels_and_the_null_once(labels, guidance, asked):
    condition = LabelMap(guidance, np.zeros((1, 1), np.uint8))
    label_bits = sum(1 << k for k in labels)
    assert condition.requests(label_bits) == asked
    assert condition.costs(np.array([label_bits], np.uint64)).tolist() == [len(asked)]


def test_the_example_map_is_a_function_of_position_and_has_every_label():
    whole = example_labels(Box(0, 0, 1024, 1024))
    part = example_labels(Box(300, 500, 420, 700))
    assert (example_labels(Box(0, 0, 1024, 1024), step=8) == whole[::8, ::8]).all()
    assert (part == whole[300:420, 500:700]).all()
    shares = np.bincount(whole.ravel(), minlength=5) / whole.size
    assert len(shares) == 5
    assert shares.min() > 0.005


def test_an_embedding_belongs_to_the_middle_of_its_cell_or_to_its_corner():
    grid = np.random.default_rng(0).standard_normal((3, 4, 6)).astype(np.float32)
    window = Box(10, 21, 26, 37)  # of 16 latents, cells of 16: both ways the same
    ways = {at: EmbeddingGrid(1.0, None, grid, None, 16, at).read(grid, window) for at in ("centre", "corner")}
    assert np.array_equal(ways["centre"], ways["corner"])
    rows = [slerp(grid[y, 1], grid[y, 2], 5 / 16) for y in (0, 1)]
    assert np.allclose(ways["corner"], slerp(rows[0], rows[1], 10 / 16), atol=1e-6)
    finer = {at: EmbeddingGrid(1.0, None, grid, None, 8, at) for at in ("centre", "corner")}
    assert np.array_equal(finer["corner"].read(grid, Box(8, 16, 24, 32)), grid[1, 2])
    assert np.array_equal(finer["centre"].read(grid, Box(4, 12, 20, 28)), grid[1, 2]), "its middle is the cell's"
    assert np.array_equal(finer["centre"].read(grid, Box(-40, -40, -24, -24)), grid[0, 0]), "the edge repeats"
    assert np.array_equal(finer["centre"].read(grid, Box(90, 90, 106, 106)), grid[2, 3])


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_spherical_interpolation_keeps_length_and_turns_evenly(t):
    a, b = np.array([3.0, 0, 0]), np.array([0, 3.0, 0])
    between = slerp(a, b, t)
    assert np.isclose(np.linalg.norm(between), 3)
    assert np.isclose(np.arctan2(between[1], between[0]), t * np.pi / 2)
    assert np.allclose(slerp(a, 2 * a, t), (1 + t) * a), "linear where they point the same way"


def test_the_null_of_a_table_of_classes_is_zero_not_its_last_row():
    table = np.arange(1, 7, dtype=np.float32).reshape(3, 2)
    given = ClassMap(2.0, None, True, table).inputs([(Box(0, 0, 4, 4), key) for key in (0, 1, 3)])["embedding"]
    assert given.tolist() == [[0, 0], [1, 2], [5, 6]]
