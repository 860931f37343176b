"""Outputs that are damaged: named, mended, or refused in one line; never taken for whole."""

import json
import shutil

import pytest
import zarr
from damages import (
    arrays_of,
    damage_finished,
    damage_unfinished,
    kill_and_resume,
    one_error,
)
from launching import launch, lines_of, refused, sha, start_and_kill, verify
from power import lose_power_and_resume

from engine.storage.files import write_signed

pytestmark = pytest.mark.runs


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


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.long)])
def test_a_run_that_is_killed_ends_in_the_same_bytes(job, whole, tmp_path, seed):
    kill_and_resume(whole, tmp_path, seed, job)


def test_a_disk_that_loses_its_power_holds_what_the_run_counts_on(job, whole, tmp_path):
    lose_power_and_resume(whole, tmp_path, 0, job)


def test_an_output_whose_metadata_and_its_copy_are_lost_is_replaced_by_overwrite_alone(job, whole, tmp_path):
    out = shutil.copytree(whole, tmp_path / "out.zarr")
    (out / "zarr.json").write_text("{")
    (out / "slidefield" / "metadata.json").unlink()
    assert "--overwrite" in refused(tmp_path, *job, "--out", out)
    done = launch(2, *job, "--out", out, "--overwrite")
    assert done.returncode == 0, done.stderr
    assert sha(out) == sha(whole)
    other = tmp_path / "other"
    (other / "slidefield").mkdir(parents=True)  # a name alone is nobody's
    assert "remove it yourself" in refused(tmp_path, *job, "--out", other, "--overwrite")


def test_a_shard_that_is_made_anew_with_other_bytes_is_said_to_be(job, whole, tmp_path):
    out = shutil.copytree(whole, tmp_path / "out.zarr")
    ledger = out / "slidefield" / "ledger.jsonl"
    lines = [json.loads(line) for line in lines_of(ledger)]
    next(line for line in lines if line["array"] == "0")["sha256"] = "of other versions"
    ledger.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = launch(2, *job, "--out", out, "--mend")
    assert done.returncode == 0, done.stderr
    assert "1 shards were made anew with other bytes" in done.stdout
    assert sha(out) == sha(whole)
    assert not (out / "slidefield" / "forgotten.jsonl").exists()


def test_what_others_add_to_metadata_is_no_damage(job, whole, tmp_path):
    out = shutil.copytree(whole, tmp_path / "out.zarr")
    group = zarr.open_group(out)
    group.attrs["mine"] = 1
    group["labels/tissue"].attrs["ome"] = {**group["labels/tissue"].attrs["ome"], "more": [2]}
    assert verify(out)[0] == 0
    assert "finished already" in launch(1, *job, "--out", out).stdout
    assert zarr.open_group(out).attrs["mine"] == 1


EDITS = {
    "job": [],
    "levels": "many",
    "pixel_size_um": {},
    "layout": {"size": [96, 96]},
    "state": None,
    "seconds": -1,
}


@pytest.mark.parametrize("field", EDITS)
def test_metadata_that_somebody_edited_is_refused_in_one_line_by_all_who_read(whole, tmp_path, capsys, field):
    import engine.evaluate
    import engine.export
    import engine.report
    from engine.api.image import open as open_image

    out = tmp_path / "out.zarr"
    shutil.copytree(whole, out)
    content = json.loads((out / "zarr.json").read_text())
    content["attributes"]["slidefield"][field] = EDITS[field]
    (out / "zarr.json").write_text(json.dumps(content))
    for command, *options in (
        (engine.evaluate, "--real", whole),
        (engine.export, tmp_path / "exported"),
        (engine.report, "--html", tmp_path / "report.html"),
    ):
        assert command.main([str(out), *map(str, options)]) == 1
        error = one_line_of(capsys.readouterr().err)
        assert str(out) in error, error
        assert "mend" in error, error
    with pytest.raises(ValueError, match="mend"):
        open_image(out)
    assert {path.name for path in tmp_path.iterdir()} == {"out.zarr"}


def one_line_of(text: str) -> str:
    (line,) = text.splitlines()
    return line


@pytest.mark.parametrize("changed", [{"level": 2}, {"slot": 1}, {"history": False}, {"history": "yes"}])
def test_a_mark_of_another_level_slot_or_history_is_refused(job, killed, tmp_path, changed):
    """Also where its own checksum was made to fit: the digest binds it to what the slot holds."""
    out = shutil.copytree(killed, tmp_path / "out.zarr")
    file = out / "slidefield" / "checkpoint.json"
    mark = json.loads(file.read_text())
    if "slot" in changed:
        changed = {"slot": 1 - mark["slot"]}
    if changed == {"history": False}:  # the last level's checkpoint has none
        changed = {"history": not mark["history"]}
    file.write_text(json.dumps({**mark, **changed}))
    assert "--resume never" in one_error(launch(2, *job, "--out", out))
    values = {name: value for name, value in {**mark, **changed}.items() if name != "checksum"}
    write_signed(file, values)
    assert "--resume never" in one_error(launch(2, *job, "--out", out))


@pytest.mark.long
def test_a_mended_set_whose_images_were_judged_has_the_same_bytes(tiny_model, tmp_path):
    """A lost shard is drawn round by round, as it was at first; so it is where a later round was under way."""
    arguments = ("--model", tiny_model, "--size", "128x128", "--count", 6, "--steps", 3, "--checkpoint-every", 0)
    arguments = (*arguments, "--shard", 256, "--chunk", 128, "--preview", "none", "--accept", "filters:one_in_three")
    whole, out, killed = tmp_path / "whole.zarr", tmp_path / "out.zarr", tmp_path / "killed.zarr"
    assert launch(2, *arguments, "--out", whole).returncode == 0
    rejected = zarr.open_group(whole).attrs["slidefield"]["rejected"]
    assert len(rejected) > 1
    shutil.copytree(whole, out)
    shards = sorted((out / "images" / "c").glob("*/0/0/0"))
    assert len(shards) > 1
    shards[0].write_bytes(b"")
    assert "--mend" in refused(tmp_path, *arguments, "--out", out)
    done = launch(3, *arguments, "--out", out, "--mend")
    assert done.returncode == 0, done.stderr
    assert arrays_of(out) == arrays_of(whole)
    assert zarr.open_group(out).attrs["slidefield"]["rejected"] == rejected
    start_and_kill((killed / "slidefield" / "round.json").exists, killed, 2, *arguments)
    (killed / shards[-1].relative_to(out)).unlink()
    done = launch(1, *arguments, "--out", killed)
    assert done.returncode == 0, done.stderr
    assert arrays_of(killed) == arrays_of(whole)


def test_a_sampled_label_map_is_mended_too_and_sampled_again_only_where_it_is_damaged(tiny_model, tmp_path):
    arguments = ("--model", tiny_model, "--label-model", "embedded", "--label-steps", 2, "--size", "600x520")
    arguments = (*arguments, "--steps", 1, "--shard", 256, "--chunk", 128, "--preview", "none")
    whole, out = tmp_path / "whole.zarr", tmp_path / "out.zarr"
    assert launch(2, *arguments, "--out", whole).returncode == 0
    shutil.copytree(whole, out)
    for lost, again in (("0/c/0/0/1", False), ("labels/tissue/0/c/1/1", True)):
        (out / lost).unlink()
        assert "--mend" in refused(tmp_path, *arguments, "--out", out)
        done = launch(2, *arguments, "--out", out, "--mend")
        assert done.returncode == 0, done.stderr
        assert ("label map of" in done.stdout) == again
        assert arrays_of(out) == arrays_of(whole)
    assert not (out / "slidefield" / "labels.zarr").exists()
