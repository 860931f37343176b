import pytest

from engine.job import SampleJob
from engine.models.card import read_card
from engine.options import JOB_OPTIONS, RUN_OPTIONS, parse, size_px, to_yaml


def test_a_job_goes_to_yaml_and_back(tmp_path):
    job = SampleJob(size=(1000, 1544), steps=30, eta=0.5, cover="strided", stride=12, seed=2**62, label=2)
    (tmp_path / "job.yaml").write_text(to_yaml(job))
    assert parse(["--job", str(tmp_path / "job.yaml")])[0] == job


def test_options_override_the_job_file(tmp_path):
    (tmp_path / "job.yaml").write_text("steps: 30\nlabels: map.png\nout: a.zarr\nsize: [64, 80]\n")
    job, options = parse(["--job", str(tmp_path / "job.yaml"), "--steps", "7", "--label", "1"])
    assert (job.steps, job.label, job.labels, job.size) == (7, 1, None, (64, 80))
    assert options.out == "a.zarr"


def test_every_option_has_a_field_and_every_field_an_option():
    import dataclasses

    from engine.job import RunOptions

    assert {f.name for f in dataclasses.fields(SampleJob)} == set(JOB_OPTIONS)
    assert {f.name for f in dataclasses.fields(RunOptions)} == set(RUN_OPTIONS)


@pytest.mark.parametrize("value", ["10", "x10", "1x2x3", "1.5x2", [1], [1, 2.0], None, True, "0x5"])
def test_sizes_that_are_none_are_refused(value):
    with pytest.raises(ValueError, match="expected"):
        size_px(value)


def test_the_models_defaults_fill_what_a_job_leaves_open(tiny_model):
    card = read_card(str(tiny_model))
    job = SampleJob(steps=3).resolved(card)
    assert job.steps == 3
    assert job.guidance == card.defaults["guidance"]
    assert None not in (job.solver, job.eta, job.batch_size, job.decode_overlap)


def test_what_changes_no_byte_is_not_part_of_a_jobs_identity(tiny_model):
    card = read_card(str(tiny_model))
    job = SampleJob().resolved(card)
    assert "model" not in job.identity(card, {"labels_hash": "x"})
    assert job.identity(card, {"labels_hash": "x"}) != job.identity(card, {"labels_hash": "y"})
    assert job.identity(card, {"labels_hash": "x"}) != SampleJob(seed=1).resolved(card).identity(
        card, {"labels_hash": "x"}
    )
