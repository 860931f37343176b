"""Of what use is a set: networks trained on it, and a bank that says what is like it, on any number of ranks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from evaluation_sets import labelled_pictures, moments, pictures
from launching import launch, refused, sha, start_and_kill, tree
from PIL import Image

from engine.distributed.launch import ranks_of
from engine.embedding.bank import distances, open_bank, starts
from engine.evaluation.coreset import coreset
from engine.evaluation.crops import crops_of
from engine.evaluation.downstream import held_out
from engine.evaluation.gathered import shared
from engine.evaluation.measures import read_evaluation
from engine.evaluation.segmentation import MULTIPLE, Pool, Segmenter, Training, confusion, overlaps, trained, window_of
from engine.evaluation.sources import source_of
from engine.storage.bank_file import BankFile, read_bank, write_bank

FUNCTION = "evaluation_sets:moments"
QUICK = ("--metrics", "downstream", "--steps", 12, "--features", FUNCTION)


def evaluate(ranks: int, *arguments: object) -> Any:
    return launch(ranks, *arguments, module="engine.evaluate")


def evaluate_refused(folder: Path, *arguments: object) -> str:
    """The one line that an evaluation is refused with, which leaves no file."""
    before = tree(folder)
    done = evaluate(2, *arguments)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert (done.returncode, len(errors), done.stdout) == (1, 1, ""), done.stderr
    assert tree(folder) == before
    return errors[0]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sets of images that show their labels, and one whose label maps say something else."""
    folder = tmp_path_factory.mktemp("sets")
    labelled_pictures(folder / "reference", 8, seed=0)
    labelled_pictures(folder / "good", 8, seed=1)
    labelled_pictures(folder / "wrong", 8, seed=2, wrong=True)
    return folder


@pytest.fixture(scope="module")
def evaluations(sets: Path) -> dict[str, Any]:
    """Measures of the two sets by name and label."""
    made = {}
    for name in ("good", "wrong"):
        file = sets / f"{name}.json"
        done = evaluate(2, sets / name, "--real", sets / "reference", *QUICK, "--json", file)
        assert done.returncode == 0, done.stderr
        made[name] = read_evaluation(file)
    return made


def test_a_set_that_shows_its_labels_is_of_use_and_one_that_does_not_is_of_none(evaluations: dict[str, Any]) -> None:
    good, wrong = ({(m.name, m.label): m for m in evaluations[name].measures} for name in ("good", "wrong"))
    key = ("mean IoU, trained on generated", "")
    assert good[key].reference > 0.9, "12 steps teach it"
    assert good[key].value > 0.9
    assert wrong[key].value < 0.2
    assert wrong[key].reference == good[key].reference, "the same network, seed and steps"
    assert good["mean IoU, trained on both", ""].value > 0.9
    table = evaluations["good"].tables[0]
    assert table.columns == ("reference", "generated", "both")
    assert table.rows == ("mean IoU", "pixel accuracy", "IoU label 0", "IoU label 1", "IoU label 2")
    assert table.values[0][1] == good[key].value


@pytest.mark.parametrize("ranks", [1, 3])
def test_what_is_trained_is_the_same_on_any_number_of_ranks(sets: Path, evaluations: Any, ranks: int) -> None:
    file = sets / f"{ranks}.json"
    done = evaluate(ranks, sets / "good", "--real", sets / "reference", *QUICK, "--json", file)
    assert done.returncode == 0, done.stderr
    assert read_evaluation(file).tables == evaluations["good"].tables


def test_several_seeds_have_a_standard_error(sets: Path, tmp_path: Path) -> None:
    arguments = (sets / "good", "--real", sets / "reference", *QUICK[:3], 3, *QUICK[4:], "--repeats", 2)
    assert evaluate(2, *arguments, "--json", tmp_path / "e.json").returncode == 0
    assert all(measure.error is not None for measure in read_evaluation(tmp_path / "e.json").measures)


def test_no_image_is_both_trained_on_and_tested_on(sets: Path) -> None:
    crops = crops_of(source_of(sets / "reference", "real"), 16)
    learned, test = held_out(crops)
    assert len(learned) + len(test) == len(crops) == 72
    images = [set(part.places[:, 0].tolist()) for part in (learned, test)]
    assert images == [{0, 1, 3, 4, 5, 7}, {2, 6}]


def test_pixels_of_an_ignored_label_neither_train_nor_count(sets: Path) -> None:
    crops = crops_of(source_of(sets / "good", "good"), 48)
    network = trained(ranks_of(), Pool((crops,)), 3, Training(12, 0, ignored=0), "cpu")
    counts = confusion(ranks_of(), network, crops, 3, "cpu", 0)
    assert not counts[0].any()
    assert not counts[:, 0].any()
    assert np.isnan(overlaps(counts)[0])
    assert overlaps(counts)[1:].min() > 0.9
    assert counts.sum() == sum(int((crops.labels(n) != 0).sum()) for n in range(len(crops)))
    taught = trained(ranks_of(), Pool((crops,)), 3, Training(12, 0), "cpu")
    of_zero = [confusion(ranks_of(), one, crops, 3, "cpu")[0, 0] for one in (network, taught)]
    assert of_zero[0] < 0.7 * of_zero[1], "its pixels taught nothing"


def test_windows_and_their_maps_are_turned_alike(sets: Path) -> None:
    pool, how = Pool((crops_of(source_of(sets / "good", "good"), 48),)), Training(1, 0, window=32)
    windows = [window_of(pool, how, position) for position in range(16)]
    assert {pixels.shape for pixels, _ in windows} == {(32, 32, 3)}
    for pixels, labels in windows:
        assert (pixels.reshape(-1, 3).argmax(1) == labels.ravel()).mean() > 0.99, "the brightest channel is the label"


def test_overlaps_are_scikit_learns_of_crops_whose_sides_are_no_multiple(sets: Path) -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    import torch

    crops = crops_of(source_of(sets / "good", "good"), 40)
    assert crops.side % MULTIPLE
    network = trained(ranks_of(), Pool((crops,)), 3, Training(3, 0), "cpu")
    counts = confusion(ranks_of(), network, crops, 3, "cpu")
    assert counts.sum() == len(crops) * 40 * 40
    truth = np.repeat(np.arange(3), counts.sum(1))
    given = np.concatenate([np.repeat(np.arange(3), row) for row in counts])
    expected = metrics.jaccard_score(truth, given, average=None, labels=[0, 1, 2])
    assert overlaps(counts) == pytest.approx(expected)
    assert sum(p.numel() for p in Segmenter(5).parameters()) == 228325
    assert Segmenter(5)(torch.zeros(1, 3, 32, 48)).shape == (1, 5, 32, 48)


def test_sets_that_nothing_can_be_learned_of_are_refused(sets: Path, tmp_path: Path) -> None:
    real = ("--real", sets / "reference")
    pictures(tmp_path / "bare", 4, side=48)
    assert "has none" in evaluate_refused(tmp_path, tmp_path / "bare", *real, *QUICK)
    labelled_pictures(tmp_path / "few", 3)
    assert "give 4 or more" in evaluate_refused(tmp_path, sets / "good", "--real", tmp_path / "few", *QUICK)
    labelled_pictures(tmp_path / "more", 4, labels=4)
    line = evaluate_refused(tmp_path, tmp_path / "more", *real, *QUICK)
    assert "has 4 labels" in line
    assert "reference 3;" in line
    labelled_pictures(tmp_path / "two", 4, labels=2)
    alone = (tmp_path / "two", "--real", tmp_path / "two", *QUICK, "--ignore-label", 0)
    assert "have 2 labels beside 0, which does not count" in evaluate_refused(tmp_path, *alone)
    labelled_pictures(tmp_path / "gap", 4)
    (tmp_path / "gap" / "0002_mask.png").unlink()
    assert "0002.png" in evaluate_refused(tmp_path, tmp_path / "gap", *real, *QUICK)
    labelled_pictures(tmp_path / "instances", 4)
    Image.fromarray(np.full((48, 48), 900, np.uint16)).save(tmp_path / "instances" / "0001_mask.png")
    assert "has label 900" in evaluate_refused(tmp_path, tmp_path / "instances", *real, *QUICK)
    assert "16 px or more" in evaluate_refused(tmp_path, sets / "good", *real, *QUICK, "--crop", 8)


# ---- banks --------------------------------------------------------------------------------------


def test_a_coreset_is_that_of_greedy_k_centre_and_leaves_nothing_far() -> None:
    features = np.random.default_rng(0).normal(size=(300, 12)).astype(np.float32)
    chosen = coreset(ranks_of(), shared(features, ranks_of()), 40, 5)
    expected = [int(chosen[0])]
    while len(expected) < 40:
        apart = ((features[:, None].astype(np.float64) - features[expected]) ** 2).sum(-1).min(1)
        expected.append(int(apart.argmax()))
    assert chosen.tolist() == expected
    radius = distances(features, features[chosen]).max()
    drawn = features[np.random.default_rng(1).choice(300, 40, replace=False)]
    assert radius < 0.9 * distances(features, drawn).max()


def test_distances_to_a_bank_are_those_of_brute_force() -> None:
    rng = np.random.default_rng(0)
    a, bank = rng.normal(size=(20, 6)).astype(np.float32), rng.normal(size=(50, 6)).astype(np.float32)
    expected = np.linalg.norm(a[:, None].astype(np.float64) - bank, axis=-1).min(1)
    assert distances(a, bank) == pytest.approx(expected, rel=1e-12)
    assert starts(100, 32) == [0, 32, 64, 68]


def test_a_bank_is_the_same_on_any_number_of_ranks_and_knows_what_is_not_like_it(tmp_path: Path) -> None:
    pictures(tmp_path / "reference", 40, seed=0)
    banks = []
    for ranks in (1, 2, 3):
        file = tmp_path / f"{ranks}.h5"
        options = ("--features", FUNCTION, "--bank-quantile", 0.9, "--json", tmp_path / f"{ranks}.json")
        done = evaluate(ranks, tmp_path / "reference", "--bank", file, *options)
        assert done.returncode == 0, done.stderr
        banks.append(read_bank(file, "`bank`"))
    assert all((bank.features == banks[0].features).all() for bank in banks)
    assert all((bank.held_out == banks[0].held_out).all() for bank in banks)
    assert all(bank.facts == banks[0].facts for bank in banks)
    assert len(banks[0].features) == 3
    assert len(banks[0].held_out) == 10
    bank = open_bank(tmp_path / "1.h5", "`bank`")
    assert bank.threshold(1) == np.quantile(banks[0].held_out, 0.9)
    assert bank.threshold(4) == np.quantile(banks[0].held_out, 0.9**0.25)
    assert json.loads((tmp_path / "1.json").read_text())["measures"][0]["value"] == bank.threshold(1)
    like, unlike = (
        crops_of(source_of(pictures(tmp_path / name, 10, seed=9, shade=shade), name), 32).pixels(range(10))
        for name, shade in (("like", 150), ("unlike", 90))
    )
    assert (distances(moments(like), bank.features) <= bank.threshold(1)).mean() >= 0.6
    assert (distances(moments(unlike), bank.features) > bank.threshold(1)).all()


SAMPLED = ("--size", "32x32", "--count", 24, "--steps", 2, "--shard", 64, "--chunk", 32, "--preview", "none")


@pytest.fixture(scope="module")
def bank(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank of what the tiny model samples, to which every second image is near."""
    folder = tmp_path_factory.mktemp("bank")
    assert launch(2, "--model", tiny_model, *SAMPLED, "--out", folder / "o.zarr").returncode == 0
    arguments = ("--features", FUNCTION, "--bank", folder / "b.h5", "--bank-quantile", 0.5)
    done = evaluate(2, folder / "o.zarr", *arguments)
    assert done.returncode == 0, done.stderr
    return folder / "b.h5"


def scores_of(out: Path) -> tuple[np.ndarray, list[int], list[float]]:
    """Images (n, h, w, 3), and what the output says of rounds and scores."""
    group = zarr.open_group(out, mode="r")
    facts: Any = group.attrs["slidefield"]
    return np.moveaxis(np.asarray(group["images"]), 1, -1), facts["rejected"], facts["scores"]


def test_images_that_are_not_like_a_bank_are_drawn_again_and_their_scores_stay(
    tiny_model: Path, bank: Path, tmp_path: Path
) -> None:
    job = ("--model", tiny_model, *SAMPLED, "--seed", 7, "--checkpoint-every", 0)
    job = (*job, "--accept", f"bank:{bank}", "--accept-rounds", 4)
    outs = [tmp_path / f"{ranks}.zarr" for ranks in (1, 3)]
    for ranks, out in zip((1, 3), outs, strict=True):
        done = launch(ranks, *job, "--out", out)
        assert done.returncode == 0, done.stderr
    images, rejected, scores = scores_of(outs[0])
    assert len({sha(out) for out in outs}) == 1
    assert scores_of(outs[1])[1:] == (rejected, scores)
    assert 0 < rejected[0] < 24
    rule = open_bank(bank, "`bank`")
    assert scores == [float(distances(moments(image[None]).astype(np.float32), rule.features)[0]) for image in images]
    assert sum(score > rule.threshold(1) for score in scores) == rejected[-1]

    killed = tmp_path / "killed.zarr"
    start_and_kill((killed / "slidefield" / "round.json").exists, killed, 2, *job)
    assert launch(3, *job, "--out", killed).returncode == 0
    assert sha(killed) == sha(outs[0])
    assert scores_of(killed)[1:] == (rejected, scores)


def test_a_larger_image_scores_as_its_worst_part(bank: Path) -> None:
    from engine.embedding.bank import extractor_of_bank

    rule = open_bank(bank, "`accept`")
    extractor = extractor_of_bank(rule, bank, "`accept`", "cpu")
    image = np.random.default_rng(0).integers(0, 256, (3, 50, 64)).astype(np.uint8)
    parts = [image[:, y : y + 32, x : x + 32] for y in (0, 18) for x in (0, 32)]
    assert rule.judge(image, extractor)[0] == max(rule.judge(part, extractor)[0] for part in parts)


def test_banks_that_cannot_be_followed_are_refused(tiny_model: Path, bank: Path, tmp_path: Path) -> None:
    job = ("--model", tiny_model, *SAMPLED[2:], "--out", tmp_path / "o.zarr", "--accept")
    square = ("--size", "32x32")
    assert "is not there" in refused(tmp_path, *job, f"bank:{tmp_path / 'no.h5'}", *square)
    (tmp_path / "text.h5").write_text("no bank")
    assert "is no bank" in refused(tmp_path, *job, f"bank:{tmp_path / 'text.h5'}", *square)
    assert "crops of 32 px" in refused(tmp_path, *job, f"bank:{bank}", "--size", "32x24")
    kept = read_bank(bank, "`bank`")
    for name, changed, said in (
        ("hash.h5", {"hash": "0" * 64}, "other features"),
        ("gone.h5", {"extractor": "no_such_module:f"}, "no_such_module:f"),
        ("size.h5", {"pixel_size_um": 40.0}, "40 um"),
        ("facts.h5", {"crop_px": None}, "does not say"),
    ):
        write_bank(tmp_path / name, BankFile(kept.features, kept.held_out, {**kept.facts, **changed}))
        assert said in refused(tmp_path, *job, f"bank:{tmp_path / name}", *square)


def test_a_run_goes_on_with_the_same_bank_alone_wherever_it_lies(tiny_model: Path, bank: Path, tmp_path: Path) -> None:
    kept = read_bank(bank, "`bank`")
    for name, facts in (("same.h5", kept.facts), ("other.h5", {**kept.facts, "quantile": 0.75})):
        write_bank(tmp_path / name, BankFile(kept.features, kept.held_out, facts))
    job = ("--model", tiny_model, *SAMPLED, "--accept-rounds", 1, "--out", tmp_path / "o.zarr", "--accept")
    assert launch(2, *job, f"bank:{bank}").returncode == 0
    again = launch(2, *job, f"bank:{tmp_path / 'same.h5'}")
    assert again.returncode == 0, again.stderr
    assert "holds another job: its accept" in refused(tmp_path, *job, f"bank:{tmp_path / 'other.h5'}")
    assert open_bank(bank, "").digest() != replace(open_bank(bank, ""), side=31).digest()


def test_banks_that_cannot_be_made_are_refused(tmp_path: Path) -> None:
    some, out = pictures(tmp_path / "some", 24), tmp_path / "b.h5"
    few = pictures(tmp_path / "few", 4)
    function = ("--features", FUNCTION)
    assert "20 crops or more" in evaluate_refused(tmp_path, few, "--bank", out, *function)
    assert "more than the 18 crops" in evaluate_refused(tmp_path, some, "--bank", out, "--bank-size", 19, *function)
    assert "leave out --real" in evaluate_refused(tmp_path, some, "--real", few, "--bank", out)
    assert "end it in .h5" in evaluate_refused(tmp_path, some, "--bank", tmp_path / "b.txt")
    assert "add --bank" in evaluate_refused(tmp_path, some, "--bank-size", 4)
    out.write_text("mine")
    assert "is no bank" in evaluate_refused(tmp_path, some, "--bank", out, *function)
    assert "is no bank" in evaluate_refused(tmp_path, some, "--bank", out, "--overwrite", *function)
