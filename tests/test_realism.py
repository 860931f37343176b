"""Measures of pixels against scipy's and numpy's formulas, and whether they see what they are for."""

import numpy as np
import pytest
import scipy.fft
import scipy.ndimage
import scipy.signal
import scipy.stats
from pictures import write_pictures

from engine.distributed.launch import ranks_of
from engine.distributed.ranks import AgreedError
from engine.evaluation.crops import Crops, crops_of
from engine.evaluation.edges import edge_measures
from engine.evaluation.groups import draws_of, groups_of, halved
from engine.evaluation.optical_density import ALL, density_sums, table_of
from engine.evaluation.realism import realism_measures
from engine.evaluation.sliced_wasserstein import (
    BLOCK,
    descriptors,
    directions_of,
    distances,
    enlarged,
    normalised,
    pyramid,
    smoothed,
)
from engine.evaluation.sources import source_of
from engine.evaluation.spectrum import PERIODS, bands, power_of, repeats_at


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A reference, as good a set, a blurred one, and one with a lattice: crops of 48 px."""
    folder = tmp_path_factory.mktemp("pictures")
    kinds = {
        "reference": {},
        "alike": {"seed": 1},
        "soft": {"seed": 1, "soft": True},
        "lattice": {"seed": 1, "pitch": 8},
    }
    return {
        name: crops_of(source_of(write_pictures(folder / name, 12, **kind), "the folder"), 48)
        for name, kind in kinds.items()
    }


def by_name(measures):
    return {(measure.name, measure.label): measure for measure in measures}


@pytest.fixture(scope="module")
def measured(sets):
    return {
        name: by_name(realism_measures(ranks_of(), sets[name], sets["reference"]))
        for name in ("alike", "soft", "lattice")
    }


def noise(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


# ---- against formulas on the same inputs --------------------------------------------------------


def test_power_over_periods_is_that_of_scipys_transform():
    crop = noise((128, 128, 3))
    grey = crop.mean(2) - crop.mean()
    window = scipy.signal.windows.hann(128)
    whole = np.abs(scipy.fft.fft2(grey * np.outer(window, window))) ** 2
    f = scipy.fft.fftfreq(128)
    radius = np.hypot(*np.meshgrid(f, f, indexing="ij"))
    half = slice(0, 65)  # the other half of the frequencies says the same again
    expected = [whole[:, half][(radius[:, half] > 1 / b) & (radius[:, half] <= 1 / a)].mean() for a, b in PERIODS]
    assert bands(power_of(crop)) == pytest.approx(expected)


def test_autocorrelation_is_that_of_the_second_difference_of_the_crop():
    crop = noise((64, 64, 3))
    grey = (crop.mean(2) - crop.mean()) * np.outer(np.hanning(64), np.hanning(64))
    expected = []
    for axis in (0, 1):
        kernel = np.reshape([-1, 0, 0, 0, 2, 0, 0, 0, -1], (9, 1) if axis == 0 else (1, 9))
        sharp = scipy.ndimage.convolve(grey, kernel, mode="wrap")
        line = [(sharp * np.roll(sharp, lag, axis)).sum() for lag in range(32)]
        expected += [(line[k] - (line[k - 4] + line[k + 4]) / 2) / line[0] for k in (16, 24)]
    assert repeats_at(power_of(crop), 8) == pytest.approx(np.mean(expected))
    assert repeats_at(power_of(np.full((64, 64, 3), 255, np.uint8)), 8) == 0


def test_the_pyramid_is_that_of_karras_with_scipys_filter():
    kernel = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1])[..., None] / 256
    image = noise((64, 64, 3)).astype(np.float32)
    assert smoothed(image) == pytest.approx(scipy.ndimage.convolve(image, kernel, mode="mirror"), abs=1e-3)
    wide = np.zeros((128, 128, 3))
    wide[::2, ::2] = image
    assert enlarged(image) == pytest.approx(scipy.ndimage.convolve(wide, kernel * 4, mode="mirror"), abs=1e-3)
    levels = pyramid(noise((64, 64, 3)))
    assert [len(level) for level in levels] == [64, 32, 16]
    back = levels[-1]
    for level in levels[-2::-1]:
        back = level + enlarged(back)
    assert back == pytest.approx(image, abs=1e-3)


def test_sliced_wasserstein_is_scipys_distance_on_every_direction():
    rng = np.random.default_rng(0)
    a, b = ([descriptors(noise((32, 32, 3), seed), 10, rng)[0] for seed in seeds] for seeds in ((1, 2, 3, 4), (5, 6)))
    mean, std = np.concatenate(a).mean((0, 1, 2)), np.concatenate(a).std((0, 1, 2))
    a, b = (normalised(np.concatenate(t), mean, std) for t in (a, b))
    half, other, made = np.arange(40) // 20 == 0, np.arange(40) // 20 == 1, np.ones(20, bool)
    axes = directions_of(a.shape[1], 3)
    assert np.linalg.norm(axes, axis=0) == pytest.approx(1)
    expected = [
        np.mean([scipy.stats.wasserstein_distance(x[:, d], y[:, d]) for d in range(BLOCK)])
        for x, y in (((a @ axes)[half], b @ axes), ((a @ axes)[half], (a @ axes)[other]))
    ]
    assert distances(a, b, [(half, other, made)], 3)[0] == pytest.approx(expected, rel=1e-5)


def test_optical_density_by_label_is_numpys_mean_and_deviation():
    crops = [noise((32, 32, 3), seed) for seed in range(3)]
    labels = [noise((32, 32), seed + 9) % 3 for seed in range(3)]
    table = table_of([row for n in range(3) for row in density_sums(crops[n], labels[n], n)])
    density = -np.log10((np.stack(crops) + 1.0) / 256)
    for label in (0, 1, 2):
        inside = density[np.stack(labels) == label]
        assert table.of(label) == pytest.approx([*inside.mean(0), *inside.std(0)])
    assert table.of(ALL, np.array([0, 2]))[:3] == pytest.approx(density[[0, 2]].mean((0, 1, 2)))
    assert table.of(7) is None
    means = density.mean((1, 2))
    assert table.error(ALL)[:3] == pytest.approx(means.std(0, ddof=1) / 3**0.5)


# ---- halves and groups --------------------------------------------------------------------------


def test_halves_share_no_image_and_samples_have_one_size():
    groups = np.repeat(np.arange(10), 5)
    made = np.arange(100) // 10
    draws = draws_of((groups, made), (np.arange(50), np.arange(100)), 6, 20)
    assert len(draws) == 6
    for draw in draws:
        assert not set(groups[draw.half]) & set(groups[draw.other])
        assert len(draw.half) == len(draw.other) == len(draw.generated) == 20
        assert all((np.diff(part) > 0).all() for part in (draw.half, draw.other, draw.generated))
        assert len(set(made[draw.generated])) == 2, "whole images"
    assert len({tuple(draw.half) for draw in draws}) > 1
    assert not draws_of((np.zeros(50, int), made), (np.arange(50), np.arange(100)), 6, 20)
    for part in halved(np.repeat([1, 2, 3], [1, 1, 8]), np.random.default_rng(1)):
        assert part.any()


def test_crops_of_two_parts_of_a_large_image_never_overlap(tmp_path):
    source = source_of(write_pictures(tmp_path / "large", 1, side=512), "the folder")
    crops = crops_of(source, 40, 300, seed=1)
    groups = groups_of(crops)
    assert len(set(groups) - {-1}) == 16
    boxes = [crops.box(n) for n in range(300)]
    for a in range(300):
        for b in range(a):
            if groups[a] != groups[b] and min(groups[a], groups[b]) >= 0:
                assert not boxes[a] & boxes[b]


# ---- what they see ------------------------------------------------------------------------------


def test_a_set_like_the_reference_is_no_further_than_its_halves(measured):
    alike = measured["alike"]
    for label in ("", "label 1", "label 2"):
        for name in ("power over periods", "optical density", "sliced Wasserstein"):
            measure = alike[f"{name}, over halves", label]
            assert 0.3 < measure.value < 2.5, measure
            assert measure.reference == 1.0
    for channel in "RGB":
        measure = alike[f"optical density {channel} mean", ""]
        assert abs(measure.value - measure.reference) < 5 * measure.error
    bright, dark = (alike["optical density R mean", f"label {n}"].value for n in (1, 2))
    assert dark > bright + 0.2


def test_blur_is_seen_in_power_and_patches(measured):
    soft = measured["soft"]
    assert soft["power, periods 4 to 6 px", ""].value < -1
    assert soft["power over periods, over halves", ""].value > 2
    assert soft["sliced Wasserstein, over halves", ""].value > 2
    assert (
        soft["sliced Wasserstein x 1000, 48 px", ""].value > 2 * soft["sliced Wasserstein x 1000, 48 px", ""].reference
    )


def test_a_lattice_at_the_pitch_is_seen_and_nothing_where_there_is_none(measured):
    alike, lattice = (measured[name]["autocorrelation every 8 px", ""] for name in ("alike", "lattice"))
    assert abs(alike.value - alike.reference) < 5 * alike.error
    assert lattice.value - lattice.reference > 10 * lattice.error


def test_edges_that_are_softer_are_seen_and_even_ones_are_not(tmp_path):
    source = source_of(write_pictures(tmp_path / "even", 6, side=512), "the folder")
    even = crops_of(source, 64)

    class Soft:
        """The same pictures, blurred within 64 px of their edges."""

        sizes, path = source.sizes, source.path

        def read(self, image, box):
            pixels = source.read(image, box).astype(float)
            y, x = (np.arange(a, b) for a, b in ((box.y0, box.y1), (box.x0, box.x1)))
            rim = np.minimum(np.minimum(y, 511 - y)[:, None], np.minimum(x, 511 - x)) < 64
            smooth = scipy.ndimage.uniform_filter(pixels, (3, 3, 0))
            return np.where(rim[..., None], smooth, pixels).astype(np.uint8)

    blurred = Crops(Soft(), even.places, 64)
    measures = by_name(edge_measures(ranks_of(), blurred, even))
    for name in ("sharpness at edges", "sharpness at corners"):
        measure = measures[name, ""]
        assert measure.value < -2
        assert abs(measure.reference) < 0.6
    (edges, corners) = (m.value for m in edge_measures(ranks_of(), even, blurred))
    assert abs(edges) < 0.3
    assert abs(corners) < 0.6


def test_crops_that_cannot_be_measured_are_refused_in_one_line(sets, tmp_path):
    small = crops_of(sets["reference"].source, 24)
    with pytest.raises(AgreedError, match="`crop` is 24 px, too small for spectra; choose 40 or more"):
        realism_measures(ranks_of(), small, small)
    with pytest.raises(AgreedError, match="pass one `crop`"):
        realism_measures(ranks_of(), small, sets["reference"])
    one = crops_of(source_of(write_pictures(tmp_path / "one", 1), "the folder"), 64)
    with pytest.raises(AgreedError, match="cannot be halved: it is one image of few crops"):
        realism_measures(ranks_of(), one, one)
