"""A network tells what differs, and nothing where nothing does."""

import numpy as np
import pytest
import torch
from pictures import write_pictures

from engine.distributed.launch import ranks_of
from engine.distributed.ranks import AgreedError
from engine.evaluation.crops import crops_of
from engine.evaluation.sources import source_of
from engine.evaluation.two_sample import accuracy, read_all, split, trials_of, tried, two_sample_measures


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    kinds = {"reference": {}, "soft": {"seed": 2, "soft": True}}
    return {
        name: crops_of(source_of(write_pictures(folder / name, 16, 128, **kind), "the folder"), 64)
        for name, kind in kinds.items()
    }


def test_what_is_blurred_is_told_from_what_is_not_and_the_reference_is_not_told_from_itself(sets):
    threads = torch.get_num_threads()
    soft, control = two_sample_measures(ranks_of(), sets["soft"], sets["reference"], steps=30)
    assert soft.value > 0.8
    assert soft.reference == control.value
    assert abs(control.value - 0.5) < 4 * control.error + 0.02
    assert torch.get_num_threads() == threads


def test_no_image_is_trained_on_and_tried_and_each_is_tried_once():
    groups = np.repeat(np.arange(16), 6)
    pixels = np.zeros((len(groups), 64, 64, 3), np.uint8)
    trials = trials_of((pixels[:40], groups[:40]), (pixels, groups), seed=3)
    for trial in trials:
        for images, trained, held in zip(trial.groups, *split(trial), strict=True):
            assert set(images[trained]) | set(images[held]) == set(images)
            assert not set(images[trained]) & set(images[held])
    for one, other in (trials[:2], trials[2:]):
        for held, rest in zip(split(one)[1], split(other)[1], strict=True):
            assert (held != rest).all()
    for trial in trials[2:]:
        assert not set(trial.groups[0]) & set(trial.groups[1]), "no image is in both classes of the control"
        assert len(np.concatenate(trial.groups)) == len(groups)
    results = tried(trials[0], 1)
    assert [sum(count for _, count in groups) for groups in results] == [held.sum() for held in split(trials[0])[1]]


def test_the_accuracy_counts_both_classes_alike_and_its_error_is_that_of_images():
    results = [[[(9, 10), (7, 10)], [(1, 2)]], [[(8, 10), (8, 10)], [(0, 2)]]]
    value, error = accuracy(results)
    assert value == pytest.approx((32 / 40 + 1 / 4) / 2)
    means = (np.array([0.9, 0.7, 0.8, 0.8]), np.array([0.5, 0.0]))
    assert error == pytest.approx(np.sqrt(sum(m.var(ddof=1) / len(m) for m in means)) / 2)


def test_squares_lie_in_their_crops_and_a_small_set_gives_several_of_each(sets):
    small, large = sets["reference"], crops_of(sets["reference"].source, 128)
    pixels, groups = read_all(ranks_of(), small, 0)
    assert len(pixels) == len(small)
    assert (pixels[5] == small.read(5)).all()
    pixels, groups = read_all(ranks_of(), large, 0)
    assert len(pixels) == 4 * len(large)
    assert (groups == np.repeat(np.arange(16), 4)).all()


def test_too_few_images_and_small_crops_are_refused_in_one_line(sets, tmp_path):
    few = crops_of(source_of(write_pictures(tmp_path / "few", 5, 128), "the folder"), 128)
    with pytest.raises(AgreedError, match=r"few has 5 images, or parts of a large one, .* takes 8: give more, or a sm"):
        two_sample_measures(ranks_of(), sets["soft"], few)
    with pytest.raises(AgreedError, match="`crop` is 32 px; a two-sample test takes 64 or more"):
        two_sample_measures(ranks_of(), crops_of(few.source, 32), sets["reference"])
