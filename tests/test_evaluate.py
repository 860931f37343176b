"""``engine.evaluate``: measures of features beside the libraries of the field, on any number of ranks; bad input."""

from __future__ import annotations

import json
import os
import shutil
import sys
import types
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from evaluation_sets import moments, pictures
from launching import launch
from PIL import Image

import engine
from engine.distributed.launch import ranks_of
from engine.evaluation.copying import copying_of, copying_test, mann_whitney_z
from engine.evaluation.crops import crops_of, drawn
from engine.evaluation.frechet import Statistics, frechet_distance, statistics_of
from engine.evaluation.gathered import Features, shared
from engine.evaluation.kernel_distance import kernel_distance
from engine.evaluation.manifold import manifold_of
from engine.evaluation.measures import read_evaluation
from engine.evaluation.neighbours import nearest
from engine.evaluation.sources import source_of
from engine.planning.geometry import Box

FUNCTION = "evaluation_sets:moments"


def evaluate(ranks: int, *arguments: object) -> Any:
    return launch(ranks, *arguments, "--features", FUNCTION, module="engine.evaluate")


def sets(*counts: int, dimensions: int = 24) -> list[np.ndarray]:
    """Sets of normal features whose means and spreads differ."""
    rng = np.random.default_rng(3)
    scales = np.linspace(0.2, 2, dimensions)
    return [
        (rng.normal(0.1 * i, 1 + 0.1 * i, (n, dimensions)) * scales).astype(np.float32) for i, n in enumerate(counts)
    ]


def dealt(*arrays: np.ndarray) -> list[Features]:
    return [shared(array, ranks_of()) for array in arrays]


@pytest.fixture(scope="module")
def fidelity() -> Any:
    """torch-fidelity's metrics. It imports torchvision for datasets, of which there is no build for CPUs."""
    if find_spec("torch_fidelity") is None:
        pytest.skip("torch-fidelity is not installed")
    names = ("", ".datasets", ".transforms", ".transforms.functional", ".models")
    added = [f"torchvision{name}" for name in names if f"torchvision{name}" not in sys.modules]
    for name in added:
        sys.modules[name] = types.ModuleType(name)
    for name in ("CIFAR10", "STL10", "CIFAR100"):
        setattr(sys.modules["torchvision.datasets"], name, object)
    try:
        from torch_fidelity import metric_fid, metric_kid
    finally:
        for name in added:
            del sys.modules[name]
    return SimpleNamespace(fid=metric_fid, kid=metric_kid)


def test_the_frechet_distance_is_torch_fidelitys(fidelity: Any) -> None:
    import torch

    a, b = sets(300, 400)
    ours = frechet_distance(*(statistics_of(ranks_of(), features) for features in dealt(a, b)))
    theirs = fidelity.fid.fid_statistics_to_metric(
        *(fidelity.fid.fid_features_to_statistics(torch.tensor(x)) for x in (a, b)), False
    )
    assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=1e-5)


def test_the_frechet_distance_of_equal_sets_is_0_and_of_shifted_ones_the_shift_squared() -> None:
    (a,) = sets(300)
    one, moved = (statistics_of(ranks_of(), features) for features in dealt(a, a + 2))
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(one, moved) == pytest.approx(4 * 24, rel=1e-4)


def test_covariances_of_too_low_a_rank_give_no_complex_number() -> None:
    a, b = (np.random.default_rng(i).normal(size=(5, 24)) for i in range(2))
    one, two = (Statistics(x.mean(0), np.cov(x, rowvar=False)) for x in (a, b))
    assert frechet_distance(one, two) > 0


def test_kid_is_torch_fidelitys(fidelity: Any) -> None:
    import torch

    a, b = sets(300, 400)
    ours = kernel_distance(ranks_of(), *dealt(a, b), subsets=7, size=100)
    theirs = fidelity.kid.kid_features_to_metric(
        torch.tensor(a), torch.tensor(b), kid_subsets=7, kid_subset_size=100, verbose=False, rng_seed=2020
    )
    assert ours[0] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4)
    assert ours[1] == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-3)


def test_precision_recall_density_and_coverage_are_prdcs() -> None:
    prdc = pytest.importorskip("prdc", reason="prdc is not installed")
    real, made = sets(350, 300)
    ours = manifold_of(ranks_of(), *dealt(made, real))
    three, five = (prdc.compute_prdc(real, made, k) for k in (3, 5))
    assert (ours.precision, ours.recall) == (three["precision"], three["recall"])
    assert ours.density == pytest.approx(five["density"])
    assert ours.coverage == five["coverage"]
    assert 0 < min(ours.recall, ours.precision) <= max(ours.recall, ours.precision) < 1, "it says something"


def test_nearest_neighbours_are_scikit_learns() -> None:
    from sklearn.neighbors import NearestNeighbors

    points, queries = sets(2500, 700)  # more than a block of each
    near = nearest(ranks_of(), *dealt(queries, points), 3)
    distances, numbers = NearestNeighbors(n_neighbors=3).fit(points).kneighbors(queries)
    assert np.array_equal(near.numbers, numbers)
    assert np.allclose(near.distances, distances, rtol=1e-5)
    among = nearest(ranks_of(), *dealt(points, points), 1, among_themselves=True)
    distances, numbers = NearestNeighbors(n_neighbors=1).fit(points).kneighbors()
    assert np.array_equal(among.numbers, numbers)


def test_of_points_that_are_the_same_the_distance_is_0() -> None:
    (points,) = sets(50)
    near = nearest(ranks_of(), *dealt(points[:20] + np.float32(1000), points + np.float32(1000)), 1)
    assert not near.distances.any()
    assert np.array_equal(near.numbers[:, 0], np.arange(20))


def test_authenticity_is_as_the_paper_has_it() -> None:
    from sklearn.neighbors import NearestNeighbors

    train, unseen, made = sets(200, 150, 180)
    made[:60] = train[:60] + 0.01  # copies
    ours = copying_of(ranks_of(), *dealt(made, unseen, train))
    knn = NearestNeighbors(n_neighbors=1).fit(train)
    distance, index = knn.kneighbors(made)
    own, _ = knn.kneighbors()
    assert ours.authenticity == (distance[:, 0] > own[index[:, 0], 0]).mean()
    assert ours.ratio < 0.1 < ours.median_ratio
    assert set(ours.numbers[:60]) == set(range(60))


def test_c_t_is_that_of_scikit_learn_and_scipy_and_sees_copies() -> None:
    from scipy.stats import mannwhitneyu
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    rng = np.random.default_rng(0)
    train, unseen, made = (rng.normal(size=(n, 16)).astype(np.float32) * np.arange(1, 17) for n in (600, 300, 350))
    ours = copying_test(ranks_of(), *dealt(made, unseen, train), components=5)
    pca = PCA(5).fit(train)
    t, u, m = (pca.transform(x) for x in (train, unseen, made))
    cells = KMeans(3, n_init=10, random_state=0).fit(t)
    score = 0.0
    for cell in range(3):
        points, of_made, of_unseen = (x[cells.predict(x) == cell] for x in (t, m, u))
        near = [np.linalg.norm(x[:, None] - points, axis=-1).min(1) for x in (of_made, of_unseen)]
        n, k = map(len, near)
        z = (mannwhitneyu(*near).statistic - n * k / 2 + 0.5) / np.sqrt(n * k * (n + k + 1) / 12)
        score += z * k / len(unseen)
    assert ours == pytest.approx(score, rel=1e-6)
    copies = train[:300] + rng.normal(0, 0.1, (300, 16)).astype(np.float32)
    assert copying_test(ranks_of(), *dealt(copies, unseen, train)) < -5 < ours


def test_the_score_of_mann_and_whitney_is_that_of_scipys_u() -> None:
    from scipy.stats import mannwhitneyu

    rng = np.random.default_rng(0)
    a, b = np.round(rng.normal(0, 3, 200)), np.round(rng.normal(1, 3, 150))  # with ties
    z = (mannwhitneyu(a, b).statistic - 200 * 150 / 2 + 0.5) / np.sqrt(200 * 150 * 351 / 12)
    assert mann_whitney_z(a, b) == pytest.approx(z, rel=1e-12)


def test_points_that_lie_on_one_another_count_as_in_prdc() -> None:
    prdc = pytest.importorskip("prdc", reason="prdc is not installed")
    real, made = sets(80, 70, dimensions=4)
    real[:20], made[:15] = 1, 1  # such as background
    ours, theirs = manifold_of(ranks_of(), *dealt(made, real)), prdc.compute_prdc(real, made, 5)
    assert (ours.density, ours.coverage) == (pytest.approx(theirs["density"]), theirs["coverage"])


# -- the command --


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    top = tmp_path_factory.mktemp("sets")
    folders = {name: pictures(top / name, 24, seed=i) for i, name in enumerate(("made", "real", "train"))}
    return folders | {"grey": pictures(top / "grey", 8, grey=True), "top": top}


def test_any_number_of_ranks_says_the_same(folders: dict[str, Path]) -> None:
    said = []
    for ranks in (1, 3):
        file = folders["top"] / f"{ranks}.json"
        arguments = [folders["made"], "--real", folders["real"], "--train", folders["train"], "--json", file]
        done = evaluate(ranks, *arguments)
        assert done.returncode == 0, done.stderr
        said.append(read_evaluation(file))
    one, three = said
    assert {m.name for m in one.measures} >= {"Frechet distance", "KID", "precision", "authenticity"}
    for a, b in zip(one.measures, three.measures, strict=True):
        assert (a.name, a.value) == (b.name, pytest.approx(b.value, rel=1e-6, abs=1e-9))
    assert one.neighbours == three.neighbours
    assert len(one.neighbours) == 8
    assert one.generated["crops"] == 24
    assert one.generated["crop_px"] == 32


def test_features_in_files_say_what_images_say(folders: dict[str, Path], tmp_path: Path) -> None:
    values = {}
    for name in ("made", "real"):
        crops = crops_of(source_of(folders[name], name), 32)
        values[name] = moments(crops.pixels(range(len(crops)))).astype(np.float32)
        np.save(tmp_path / f"{name}.npy", values[name])
    of_images = evaluate(1, folders["made"], "--real", folders["real"], "--metrics", "fid,precision")
    of_files = evaluate(2, tmp_path / "made.npy", "--real", tmp_path / "real.npy", "--metrics", "fid,precision")
    assert of_files.stdout == of_images.stdout
    assert evaluate(3, folders["real"], "--statistics", tmp_path / "real.npz").returncode == 0
    real = values["real"].astype(np.float64)
    with np.load(tmp_path / "real.npz") as file:
        assert np.allclose(file["mu"], real.mean(0), rtol=1e-9)
        assert np.allclose(file["sigma"], np.cov(real, rowvar=False), rtol=1e-9)
    of_statistics = evaluate(1, folders["made"], "--real", tmp_path / "real.npz")
    assert of_statistics.stdout.split()[:6] == of_images.stdout.split()[:6]


def test_large_images_are_cut_and_grids_cover_them(tmp_path: Path) -> None:
    pictures(tmp_path / "a", 2, side=80)
    source = source_of(tmp_path / "a", "generated")
    crops = crops_of(source, 32)
    assert crops.places.tolist() == [[i, y, x] for i in (0, 1) for y in (0, 32) for x in (0, 32)]
    whole = source.read(1, Box(0, 0, 80, 80))
    assert np.array_equal(crops.read(7), whole[32:64, 32:64])
    drawn = crops_of(source, 32, 40, seed=1)
    assert len(np.unique(drawn.places, axis=0)) == 40
    assert (drawn.places[:, 1:] <= 48).all()


WRONG = {
    "there": (["nowhere"], "nowhere is not there"),
    "small": (["made", "--real", "real", "--crop", "64"], "is 32 x 32 px, smaller than a crop of 64 px"),
    "grey": (["grey", "--real", "real"], "pass --grey"),
    "few": (
        ["made", "--real", "real", "--metrics", "fid", "--crops", "5"],
        "takes 7: their covariance has no full rank",
    ),
    "metric": (["made", "--metrics", "fjd"], "fid"),
    "train": (["made", "--real", "real", "--metrics", "copies"], "--metrics copies: it takes --train; pass it"),
    "nothing": (["made"], "nothing can be measured"),
    "size": (["made", "--real", "real", "--pixel-size", "0.5"], "does not say its own"),
    "unused": (["made", "--real", "real", "--metrics", "kid", "--steps", "9"], "--steps changes nothing of kid; add"),
    "unused label": (["made", "--real", "real", "--ignore-label", "0"], "add --metrics downstream, or leave it out"),
    "extractor": (["made", "--real", "real", "--features", "no:such"], "cannot be imported"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said_in_one_line(folders: dict[str, Path], arguments: list[str], message: str) -> None:
    words = [str(folders.get(word, word)) for word in arguments]
    done = launch(2, *words[:1], "--features", FUNCTION, *words[1:], module="engine.evaluate")
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode == 1, done.stderr
    assert len(errors) == 1, done.stderr
    assert message in errors[0]
    assert not done.stdout


def test_a_file_that_is_there_stays(folders: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text("mine")
    done = evaluate(1, folders["made"], "--real", folders["real"], "--json", file)
    assert done.returncode == 1
    assert "is no evaluation; remove it yourself" in done.stderr
    assert file.read_text() == "mine"
    asked = (folders["made"], "--real", folders["real"], "--metrics", "kid", "--json", tmp_path / "b.json")
    assert evaluate(1, *asked).returncode == 0
    kept = (tmp_path / "b.json").read_text()
    assert "pass --overwrite to replace it" in evaluate(1, *asked).stderr
    assert (tmp_path / "b.json").read_text() == kept
    assert evaluate(1, *asked, "--overwrite").returncode == 0


def test_values_that_are_none_and_files_that_are_no_evaluation(folders: dict[str, Path], tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(30, 6)).astype(np.float32)
    values[3, 2] = np.nan
    np.save(tmp_path / "bad.npy", values)
    said = refused(folders["real"], "--real", tmp_path / "bad.npy", "--features", FUNCTION)
    assert "bad.npy holds values that are not finite, in row 3;" in said
    np.save(tmp_path / "none.npy", values[:0])
    said = refused(tmp_path / "none.npy", "--real", folders["real"])
    assert said.endswith("none.npy holds no values (its shape is (0, 6)); pass an array of rows")
    assert said.count("none.npy") == 1
    (tmp_path / "other.json").write_text(json.dumps({"measures": []}))
    with pytest.raises(ValueError, match="is no evaluation"):
        read_evaluation(tmp_path / "other.json")


# -- outputs --


@pytest.fixture(scope="module")
def output(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("output") / "o.zarr"
    options = ("--size", "256x320", "--steps", 1, "--shard", 128, "--chunk", 128, "--preview", "none")
    assert launch(1, "--model", tiny_model, *options, "--out", path).returncode == 0
    return path


def test_python_and_the_command_say_the_same_of_an_output(output: Path, folders: dict[str, Path]) -> None:
    image = engine.open(output)
    options = {"crop": 32, "crops": 20, "features": FUNCTION}
    said = image.evaluate(folders["real"], metrics=("fid", "seams"), **options)
    done = evaluate(2, output, "--real", folders["real"], "--crop", 32, "--crops", 20, "--metrics", "fid,seams")
    assert str(said) == done.stdout.rstrip("\n"), done.stderr
    assert said.generated["kind"] == "image"
    assert said.measures[0].name == "Frechet distance"
    with pytest.raises(TypeError, match="nonsense"):
        image.evaluate(folders["real"], nonsense=1)
    with pytest.raises(ValueError, match="realsim is not known; did you mean"):
        image.evaluate(folders["real"], metrics="fid,realsim", **options)


def test_a_damaged_output_is_said_to_be(output: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    copy = tmp_path / "damaged.zarr"
    shutil.copytree(output, copy)
    next(path for path in sorted((copy / "0" / "c").rglob("*")) if path.is_file()).write_bytes(b"nothing")
    done = evaluate(2, copy, "--real", folders["real"], "--crop", 32)
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "engine.verify" in errors[0]


def test_all_that_can_be_measured_is_and_the_rest_is_left_out(
    output: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    real = pictures(tmp_path / "real", 10, side=64)
    rng = np.random.default_rng(0)
    for index, picture in enumerate(sorted(real.glob("*.png"))):
        labels = (
            np.full((64, 64), 1 + index % 2, np.uint8) if index % 5 else rng.integers(0, 3, (64, 64)).astype(np.uint8)
        )
        Image.fromarray(labels).save(picture.with_name(f"{picture.stem}_mask.png"))
    file = tmp_path / "o.json"
    options = ("--crop", 64, "--metrics", "all", "--steps", 3, "--grey", "--json", file)
    done = evaluate(2, output, "--real", real, "--train", folders["real"], *options)
    assert done.returncode == 1
    assert "smaller than a crop of 64 px" in done.stderr
    done = evaluate(2, output, "--real", real, *options, "--markdown")
    assert done.returncode == 0, done.stderr
    said = read_evaluation(file)
    groups = {m.group for m in said.measures}
    assert groups >= {"distances of features", "seams", "realism", "two-sample test", "variety"}, said.left_out
    assert set(said.left_out) >= {"copies", "classes", "nuclei", "embeddings", "inception-score"}
    assert "| Frechet distance |" in done.stdout
    of = {m.name: m.value for m in said.measures if not m.label}
    assert of["optical density R mean"] == of["optical density G mean"], "in grey all channels are one"


def test_a_label_map_of_another_size_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    some = pictures(tmp_path / "some", 8, side=64)
    Image.fromarray(np.ones((32, 32), np.uint8)).save(some / "0003_mask.png")
    done = evaluate(2, some, "--real", some, "--metrics", "realism", "--crop", 64)
    assert done.returncode == 1
    assert "0003_mask.png has shape (32, 32) but its image is 64 x 64 px" in done.stderr


def widths(pixels: np.ndarray) -> np.ndarray:
    """Features of another number in every second batch."""
    return moments(pixels)[:, : 4 + len(pixels) % 2]


def refused(*arguments: object) -> str:
    """The one line that an evaluation on two ranks is refused with."""
    done = launch(2, *arguments, module="engine.evaluate")
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode == 1, done.stderr
    assert len(errors) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return errors[0]


def test_results_do_not_replace_what_is_no_result(folders: dict[str, Path], tmp_path: Path) -> None:
    sets = (folders["made"], "--real", folders["real"], "--features", FUNCTION, "--overwrite")
    pipe, mine, both = tmp_path / "pipe", tmp_path / "mine.json", tmp_path / "both.json"
    os.mkfifo(pipe)
    mine.write_text('{"a": 1}')
    picture = next(folders["real"].glob("*.png"))
    before = picture.read_bytes()
    assert "pipe" in refused(*sets, "--json", pipe)
    assert "is no evaluation" in refused(*sets, "--json", mine)
    assert "which is evaluated" in refused(*sets, "--json", picture)
    assert "are both" in refused(*sets, "--json", both, "--statistics", both)
    assert mine.read_text() == '{"a": 1}'
    assert picture.read_bytes() == before
    assert not both.exists()
    assert refused(folders["made"], "--real", folders["real"], "--dry-run", "--json", tmp_path / "no" / "x.json")
    planned = (folders["made"], "--features", FUNCTION, "--dry-run", "--statistics", tmp_path / "dry.npz")
    assert launch(1, *planned, module="engine.evaluate").returncode == 0
    assert not (tmp_path / "dry.npz").exists()


def test_statistics_that_are_of_no_set_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 6))
    covariance = np.cov(x, rowvar=False)
    skewed = covariance + np.triu(np.ones((6, 6)), 1)
    for name, sigma, said in (("skewed", skewed, "symmetric"), ("negative", -covariance, "below 0")):
        np.savez(tmp_path / f"{name}.npz", mu=x.mean(0), sigma=sigma)
        assert said in refused(folders["made"], "--real", tmp_path / f"{name}.npz", "--features", FUNCTION)
    whole = (tmp_path / "skewed.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    assert "is no .npz file" in refused(folders["made"], "--real", tmp_path / "cut.npz", "--features", FUNCTION)
    one = pictures(tmp_path / "one", 1)
    assert "two crops" in refused(one, "--features", FUNCTION, "--statistics", tmp_path / "one.npz")


def test_an_extractor_gives_all_crops_as_many_features(folders: dict[str, Path]) -> None:
    options = ("--features", "test_evaluate:widths", "--batch-size", 5, "--metrics", "kid")
    assert "for some crops" in refused(folders["made"], "--real", folders["real"], *options)


def test_every_place_may_be_drawn() -> None:
    every = drawn(np.array([[5, 4], [3, 3]]), 2, 4 * 3 + 2 * 2, 0)
    assert len(np.unique(every, axis=0)) == 16


def test_edited_evaluations_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    made = ("--real", folders["real"], "--metrics", "fid", "--features", FUNCTION, "--json", file)
    assert launch(1, folders["made"], *made, module="engine.evaluate").returncode == 0
    good = json.loads(file.read_text())
    read_evaluation(file)
    for edit in ({"generated": "x"}, {"seconds": None}, {"options": []}, {"more": 1}, {"tables": [1]}):
        file.write_text(json.dumps(good | edit))
        with pytest.raises(ValueError, match="is a damaged evaluation"):
            read_evaluation(file)
    for edit in ({"value": "x"}, {"value": 10**400}, {"group": []}, {"reference": "x"}, {"better": "?"}):
        file.write_text(json.dumps(good | {"measures": [good["measures"][0] | edit]}))
        with pytest.raises(ValueError, match="is a damaged evaluation"):
            read_evaluation(file)


# -- what is to be known before numbers are believed --


def warned(done: Any) -> list[str]:
    assert done.returncode == 0, done.stderr
    return [line.removeprefix("warning: ") for line in done.stderr.splitlines() if line.startswith("warning: ")]


def test_few_crops_and_crops_that_overlap_are_warned_of(folders: dict[str, Path], tmp_path: Path) -> None:
    many, file = pictures(tmp_path / "many", 31), tmp_path / "w.json"
    sets = (many, "--real", folders["real"], "--pixel-size-of", "real=0.5,generated=0.5")
    enough = (many, "--real", many, *sets[3:], "--metrics", "fid")
    assert warned(evaluate(2, *enough)) == [], "5 x 6 features"
    few, of_kernel = warned(evaluate(2, *sets, "--metrics", "fid,kid", "--json", file))
    assert few.startswith("fid: the reference has 24 crops, below 30 (5 a feature)")
    assert of_kernel.startswith("kid: generated has 31 and the reference has 24 crops, below 1,000")
    assert read_evaluation(file).warnings == [few, of_kernel]
    drawn = ("--crop", 16, "--crops", 40, "--metrics", "fid")
    (overlap,) = warned(evaluate(1, *sets, *drawn))
    assert overlap.startswith("--crops 40 hold of generated 0.32 times, of the reference 0.42 times the pixels")
    lacking = warned(evaluate(1, *sets, "--crop", 16, "--crops", 6, "--metrics", "fid", "--few"))
    assert "with less than 7 it has no full rank" in lacking[0]


def test_a_magnification_that_is_not_known_is_said_and_may_be_stated(
    output: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    asked = (output, "--real", folders["real"], "--crop", 32, "--metrics", "fid")
    assumed = warned(evaluate(1, *asked))[0]
    assert f"{folders['real']} says no pixel size, which is taken to be that of {output}" in assumed
    assert assumed.endswith("state it with --pixel-size-of real=UM")
    assert warned(evaluate(2, *asked, "--pixel-size-of", "real=0.5", "--json", tmp_path / "s.json"))[1:] == []
    assert read_evaluation(tmp_path / "s.json").reference["pixel_size_um"] == 0.5
    said = {
        "real=0.25": "has pixels of 0.5 um and",  # of another magnification
        "generated=0.4": "--pixel-size-of states 0.4 um and",
        "train=0.5": "names train, which is no set of images here; name generated, real",
        "other=1": "expected each of generated, real, train once, as real=0.5",
        "real=none": "none",
    }
    for value, message in said.items():
        assert message in refused(*asked, "--features", FUNCTION, "--pixel-size-of", value)
    resampled = (*asked[:3], "--crop", 16, "--metrics", "fid", "--pixel-size", 1, "--pixel-size-of", "real=0.5")
    assert all("says no pixel size" not in line for line in warned(evaluate(1, *resampled)))
    both = warned(evaluate(1, folders["made"], "--real", folders["real"], "--metrics", "fid"))
    assert "taken to be of all sets; state it with --pixel-size-of generated=UM,real=UM" in both[0]
