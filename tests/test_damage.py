"""Outputs that are damaged: named, mended, or refused in one line; never taken for whole."""

import json
import random
import shutil
import time

import pytest
import zarr
from damages import arrays_of, damage_finished, damage_unfinished, one_error
from launching import Running, launch, launch_alone, lines_of, refused, sha, start_and_kill, verify
from power import disk

from engine.storage.files import write_signed

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


def lose_power_and_resume(place, job, whole, seed):
    """A run whose disk loses its power at a moment drawn from the seed is gone on with to the same bytes."""
    drawn = random.Random(f"power {seed}")
    with disk(place) as made:
        out, log = made.folder / "out.zarr", place / "log.jsonl"
        run = Running(2, *job, "--out", out, "--json-log", log)
        moment = drawn.choice(["made", "level", "checkpoint", "decoding"])
        written = {
            "made": lambda: out.exists(),
            "level": lambda: len(lines_of(log)) >= 1,
            "checkpoint": lambda: (out / "slidefield" / "checkpoint.json").exists(),
            "decoding": lambda: any('"0"' in line for f in out.glob("slidefield/ledger/*") for line in lines_of(f)),
        }[moment]
        run.wait_until(written)
        time.sleep(drawn.random() * {"made": 0.1, "level": 0.3, "checkpoint": 0.5, "decoding": 0.2}[moment])
        made.lose_power()
        run.kill()
        made.start_again()
        state = verify(out)
        done = launch_alone(3, *job, "--out", out)
        text = f"{moment} {seed}: after it {state}: {done.returncode}: {done.stdout}{done.stderr}"
        assert done.returncode == 0, text
        assert sha(out) == sha(whole), text
        return moment, state


def test_a_disk_that_loses_its_power_holds_what_the_run_counts_on(job, whole, tmp_path):
    lose_power_and_resume(tmp_path, job, whole, 0)


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


def test_what_others_add_to_metadata_is_no_damage(job, whole, tmp_path):
    out = shutil.copytree(whole, tmp_path / "out.zarr")
    group = zarr.open_group(out)
    group.attrs["mine"] = 1
    group["labels/tissue"].attrs["ome"] = {**group["labels/tissue"].attrs["ome"], "more": [2]}
    assert verify(out)[0] == 0
    assert "finished already" in launch(1, *job, "--out", out).stdout
    assert zarr.open_group(out).attrs["mine"] == 1


@pytest.mark.parametrize("changed", [{"level": 2}, {"slot": 1}, {"history": False}, {"history": "yes"}])
def test_a_mark_of_another_level_slot_or_history_is_refused(job, killed, tmp_path, changed):
    """Also where its own checksum was made to fit: the digest binds it to what the slot holds."""
    out = shutil.copytree(killed, tmp_path / "out.zarr")
    file = out / "slidefield" / "checkpoint.json"
    mark = json.loads(file.read_text())
    if "slot" in changed:
        changed = {"slot": 1 - mark["slot"]}
    file.write_text(json.dumps({**mark, **changed}))
    assert "--resume never" in one_error(launch(2, *job, "--out", out))
    values = {name: value for name, value in {**mark, **changed}.items() if name != "checksum"}
    write_signed(file, values)
    assert "--resume never" in one_error(launch(2, *job, "--out", out))


def test_a_mended_set_whose_images_were_judged_has_the_same_bytes(tiny_model, tmp_path):
    """A lost shard is drawn round by round, as it was at first; so it is where a later round was under way."""
    arguments = ("--model", tiny_model, "--size", "128x128", "--count", 6, "--steps", 3, "--checkpoint-every", 0)
    arguments = (*arguments, "--shard", 256, "--chunk", 128, "--preview", "none", "--accept", "filters:one_in_three")
    whole, out, killed = tmp_path / "whole.zarr", tmp_path / "out.zarr", tmp_path / "killed.zarr"
    assert launch(2, *arguments, "--out", whole).returncode == 0
    rejected = zarr.open_group(whole).attrs["slidefield"]["rejected"]
    assert len(rejected) > 1
    shutil.copytree(whole, out)
    shards = sorted((out / "images" / "c").rglob("0/0/0"))
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
