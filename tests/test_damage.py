"""Outputs that are damaged: named, mended, or refused in one line; never taken for whole."""

import json

import pytest
from damages import FINISHED, UNFINISHED, WAYS, damage_finished, damage_unfinished
from launching import launch, launch_alone, lines_of, sha, start_and_kill, verify

pytestmark = pytest.mark.runs
SIZE = ("--size", "300x420", "--shard", 128, "--chunk", 64, "--labels", "example", "--preview", "none")
JOB = (*SIZE, "--steps", 4, "--solver", "dpmpp2m", "--checkpoint-every", 0)


@pytest.fixture(scope="module")
def job(tiny_model):
    return ("--model", tiny_model, *JOB)


@pytest.fixture(scope="module")
def whole(job, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out.zarr"
    assert launch(2, *job, "--out", out).returncode == 0
    return out


@pytest.fixture(scope="module")
def killed(job, tmp_path_factory):
    """The output of a run that was killed while it wrote the image: all of the labels and some of the image."""
    out = tmp_path_factory.mktemp("killed") / "out.zarr"
    ledgers = out / "slidefield" / "ledger"
    start_and_kill(lambda: sum('"0"' in line for f in ledgers.glob("*") for line in lines_of(f)) > 1, out, 2, *job)
    return out


@pytest.mark.parametrize(
    ("kind", "way"),
    [
        ("image", "deleted"),
        ("image", "flipped"),
        ("pyramid", "truncated"),
        ("labels", "swapped"),
        ("labels' group", "flipped"),
        ("group", "emptied"),
        ("copy of metadata", "a folder"),
        ("ledger", "truncated"),
    ],
)
def test_a_damaged_finished_output_is_named_and_mended_to_the_same_bytes(job, whole, tmp_path, kind, way):
    damage_finished(whole, tmp_path / "out.zarr", kind, way, 0, 2, job)


@pytest.mark.parametrize(
    ("kind", "way"),
    [
        ("image", "flipped"),
        ("labels", "truncated"),
        ("labels", "swapped"),
        ("group", "flipped"),
        ("ledger of a rank", "a folder"),
        ("mark", "flipped"),
        ("latents", "swapped"),
        ("array of the other slot", "emptied"),
    ],
)
def test_a_damaged_unfinished_output_ends_in_the_same_bytes_or_is_refused(job, whole, killed, tmp_path, kind, way):
    damage_unfinished(whole, killed, tmp_path / "out.zarr", kind, way, 0, 3, job)
