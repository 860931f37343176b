import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.conditions import LabelMap, example_labels
from engine.cover import random, shifted, strided
from engine.geometry import Window


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
    present = LabelMap(2.0, labels).present(cover)
    for index in range(len(cover)):
        kept = cover.kept(index)
        used = labels[kept.y0 : kept.y1, kept.x0 : kept.x1]
        weight = cover.weight(index, kept)
        if weight is not None:
            used = used[weight > 0]
        assert int(present[index]) == sum(1 << int(v) for v in np.unique(used))


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
    present = sum(1 << k for k in labels)
    assert condition.requests(present) == asked
    assert condition.costs(np.array([present], np.uint64)).tolist() == [len(asked)]


def test_the_example_map_is_a_function_of_position_and_has_every_label():
    whole = example_labels(Window(0, 0, 1024, 1024))
    part = example_labels(Window(300, 500, 420, 700))
    assert (example_labels(Window(0, 0, 1024, 1024), step=8) == whole[::8, ::8]).all()
    assert (part == whole[300:420, 500:700]).all()
    shares = np.bincount(whole.ravel(), minlength=5) / whole.size
    assert len(shares) == 5
    assert shares.min() > 0.005
