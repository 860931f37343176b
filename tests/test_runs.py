"""Real runs of the front door under mpiexec: the same bytes on any number of ranks, and nothing lost."""

import json
import os
import shutil
import signal
import sys
import time

import numpy as np
import pytest
import zarr
from launching import (
    Running,
    execute,
    launch,
    launch_alone,
    lines_of,
    mpiexec,
    ranks_below,
    sha,
    start_and_kill,
    verify,
)

from engine.storage.output import Output

pytestmark = pytest.mark.runs
LONG = pytest.mark.long
SIZE = ("--size", "504x776", "--shard", "256", "--chunk", "64", "--preview", "none")


@pytest.mark.parametrize(
    "options",
    [
        ("--cover", "shifted", "--eta", "0.7"),
        ("--cover", "random", "--solver", "ddpm"),
        ("--cover", "strided", "--stride", "13", "--weights", "gaussian", "--solver", "dpmpp2m"),
    ],
    ids=["shifted", "random", "strided"],
)
def test_the_image_is_the_same_on_1_2_3_and_4_ranks(tiny_model, tmp_path, options):
    shas = set()
    for ranks in (1, 2, 3, 4):
        out = tmp_path / f"{ranks}.zarr"
        done = launch(ranks, "--model", tiny_model, *SIZE, "--steps", 3, *options, "--out", out)
        assert done.returncode == 0, done.stdout + done.stderr
        shas.add(sha(out))
    assert len(shas) == 1


@pytest.mark.smoke
def test_ranks_that_share_the_windows_of_one_shard_decode_the_same_bytes(tiny_model, tmp_path):
    shas = set()
    for ranks, shard in ((1, 256), (1, 1024), (2, 1024), (4, 1024), (4, 512)):
        out = tmp_path / f"{ranks}-{shard}.zarr"
        options = ("--size", "504x776", "--shard", shard, "--chunk", 64, "--steps", 1, "--preview", "none")
        done = launch(ranks, "--model", tiny_model, *options, "--out", out)
        assert done.returncode == 0, done.stdout + done.stderr
        shas.add(sha(out))
    assert len(shas) == 1


def test_another_seed_gives_another_image_and_the_chunking_does_not_change_it(tiny_model, tmp_path):
    shas = []
    for seed, shard, chunk in ((0, 256, 64), (0, 128, 128), (1, 256, 64)):
        out = tmp_path / f"{seed}-{shard}.zarr"
        options = ("--size", "200x300", "--steps", 2, "--seed", seed, "--shard", shard, "--chunk", chunk)
        assert launch(1, "--model", tiny_model, *options, "--preview", "none", "--out", out).returncode == 0
        shas.append(sha(out))
    assert shas[0] == shas[1] != shas[2]


@pytest.mark.smoke
def test_a_pool_of_ranks_does_what_a_start_of_its_own_does(tiny_model, tmp_path):
    """Most tests ask ranks that were started once, and have run other jobs before, to sample; see launching.py."""
    arguments = ("--model", tiny_model, *SIZE, "--steps", 2, "--out")
    alone = launch_alone(2, *arguments, tmp_path / "a.zarr")
    for out in (tmp_path / "b.zarr", tmp_path / "c.zarr"):
        pooled = launch(2, *arguments, out)
        assert pooled.returncode == alone.returncode == 0, pooled.stderr + alone.stderr
        assert pooled.stdout.count("finished") == alone.stdout.count("finished") == 1
        assert sha(out) == sha(tmp_path / "a.zarr")
    wrong, failing = ("--model", tmp_path / "nowhere"), ("--size", "4x4", "--seed", "x")
    for options in (wrong, failing):
        alone, pooled = launch_alone(2, *options), launch(2, *options)
        assert (pooled.returncode, pooled.stdout) == (alone.returncode, alone.stdout)
        assert pooled.stderr == alone.stderr
        assert alone.returncode == 1


KILLED = ("--steps", 12, "--solver", "plms", "--checkpoint-every", 0)


@pytest.fixture(scope="module")
def whole_run(tiny_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out.zarr"
    done = launch(2, "--model", tiny_model, *SIZE, *KILLED, "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    return sha(out)


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param("in a level", marks=LONG),
        "in a checkpoint",
        pytest.param("later", marks=LONG),
        pytest.param("in decoding", marks=LONG),
    ],
)
def test_a_killed_run_resumes_to_the_same_bytes_on_another_number_of_ranks(tiny_model, tmp_path, whole_run, moment):
    out, log = tmp_path / "out.zarr", tmp_path / "log.jsonl"
    arguments = ("--model", tiny_model, *SIZE, *KILLED)
    ledgers = out / "slidefield" / "ledger"
    reached = {
        "in a level": lambda: len(lines_of(log)) >= 2,
        "in a checkpoint": lambda: any((out / "slidefield" / "checkpoint" / "1" / "x").glob("c/*/*/*")),
        "later": lambda: len(lines_of(log)) >= 9,
        "in decoding": lambda: any('"0"' in line for file in ledgers.glob("*.jsonl") for line in lines_of(file)),
    }[moment]
    assert "unfinished at level" in start_and_kill(reached, out, 2, *arguments, log=log)
    resumed = launch(3, *arguments, "--out", out)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    if moment == "later":
        assert "from level" in resumed.stdout
    assert sha(out) == whole_run
    assert not list(out.rglob("*.partial"))


@pytest.mark.parametrize("version", ["own", pytest.param("older", marks=LONG)])
def test_what_a_ledger_calls_finished_is_not_written_again(tiny_model, tmp_path, whole_run, version):
    """The ranks' ledgers of a killed run, one of them torn; or the one ledger of an output that is older than those."""
    out = tmp_path / "out.zarr"
    private, arguments = out / "slidefield", ("--model", tiny_model, *SIZE, *KILLED)
    in_decoding = lambda: any('"0"' in line for f in private.glob("ledger/*") for line in lines_of(f))  # noqa: E731
    start_and_kill(in_decoding, out, 2, *arguments)
    lines = [line for file in sorted(private.glob("ledger*/*.jsonl")) for line in lines_of(file)]
    output = Output(out)
    finished = {output.shard_file(shard.array, shard.box) for shard in output.ledger}
    assert 8 < len(finished) < 20, "all of the labels and some of the image"
    if version == "older":
        shutil.rmtree(private / "ledger")
        (private / "ledger.jsonl").write_text("\n".join(lines) + '\n{"array": "0", "box": [0, ')
    else:
        with (private / "ledger" / "00001.jsonl").open("a") as ledger:
            ledger.write('{"array": "0", "box": [0, ')
    lost = min(path for path in finished if path.is_relative_to(out / "0"))
    lost.unlink()  # and one that is lost is made anew
    times = {path: path.stat().st_mtime_ns for path in finished - {lost}}
    resumed = launch(3, *arguments, "--out", out)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert sha(out) == whole_run
    assert {path.name for path in private.iterdir()} == {
        "ledger.jsonl",
        "lock",
        "metadata.json",
        "times.json",
        "zarr.json",
    }


@pytest.mark.parametrize("name", ["USR1", pytest.param("TERM", marks=LONG), pytest.param("INT", marks=LONG)])
def test_a_signal_to_one_rank_leaves_a_checkpoint_and_status_75(tiny_model, tmp_path, whole_run, name):
    out, log = tmp_path / "out.zarr", tmp_path / "log.jsonl"
    arguments = ("--model", tiny_model, *SIZE, *KILLED[:-1], 3600, "--out", out)
    run = Running(2, *arguments, "--json-log", log)
    assert run.wait_until(lambda: len(lines_of(log)) >= 2)
    os.kill(ranks_below(run.process.pid)[-1], getattr(signal, f"SIG{name}"))
    status, text = run.end()
    assert status == 75, text
    assert "the same command goes on" in text
    assert verify(out)[0] == 75
    assert launch(1, *arguments).returncode == 0
    assert sha(out) == whole_run


def test_a_rank_that_is_killed_ends_all_within_seconds(tiny_model, tmp_path):
    log, begun = tmp_path / "log.jsonl", time.monotonic()
    run = Running(3, "--model", tiny_model, *SIZE, "--steps", 1000, "--json-log", log, "--out", tmp_path / "out.zarr")
    assert run.wait_until(lambda: len(lines_of(log)) >= 1)
    os.kill(ranks_below(run.process.pid)[-1], signal.SIGKILL)
    before, killed = len(lines_of(log)), time.monotonic()
    status, text = run.end()
    assert status != 0, text
    assert time.monotonic() - killed < max(15, killed - begun), "on a busy machine, no longer than it took to start"
    assert len(lines_of(log)) <= before + 2, "no level is ended without the rank that is gone"


def test_a_rank_that_fails_or_exits_ends_all_with_its_message(tmp_path):
    for how, said in (
        ("raise RuntimeError('the disk is made of cheese')", "made of cheese"),
        ("raise SystemExit(3)", "SystemExit: 3"),
    ):
        script = tmp_path / "fails.py"
        script.write_text(
            "from engine.distributed.launch import run_main\n"
            "def main(ranks):\n"
            "    if ranks.rank == 1:\n"
            f"        {how}\n"
            "    ranks.barrier()\n"
            "    return 0\n"
            "raise SystemExit(run_main(main))\n"
        )
        done = execute(mpiexec(), "-n", 3, sys.executable, script)  # to wait for rank 1 would be for ever
        assert done.returncode != 0
        assert said in done.stderr
        assert "rank 1 of 3" in done.stderr


def test_waiting_ranks_do_not_burn_a_core(tmp_path):
    script = tmp_path / "waits.py"
    script.write_text(
        "import time\n"
        "from engine.distributed.launch import run_main\n"
        "def main(ranks):\n"
        "    ranks.barrier()\n"
        "    before = time.process_time()\n"
        "    if ranks.rank == 0:\n"
        "        time.sleep(3)\n"
        "    ranks.barrier()\n"
        "    used = ranks.allgather(time.process_time() - before)\n"
        "    if ranks.rank == 0:\n"
        "        print(*used, flush=True)\n"  # in one line by one rank: lines of two may run into one another
        "    return 0\n"
        "raise SystemExit(run_main(main))\n"
    )
    done = execute(mpiexec(), "-n", 2, sys.executable, script)
    used = [float(seconds) for seconds in done.stdout.split()]
    assert len(used) == 2
    assert max(used) < 1.0  # a spinning wait uses all 3 s


def test_the_same_job_again_says_so_and_another_is_refused(tiny_model, tmp_path):
    out = tmp_path / "out.zarr"
    arguments = ("--model", tiny_model, "--size", "128x136", "--steps", 2, "--preview", "none", "--out", out)
    assert launch(1, *arguments).returncode == 0
    first = sha(out)
    again = launch(2, *arguments)
    assert again.returncode == 0
    assert "finished already" in again.stdout
    other = launch(2, *arguments, "--seed", 5)
    assert other.returncode == 1
    assert "seed" in other.stderr
    assert "--overwrite" in other.stderr
    assert sha(out) == first
    replaced = launch(1, *arguments, "--seed", 5, "--overwrite")
    assert replaced.returncode == 0
    assert sha(out) != first


def test_verify_names_the_shard_that_was_damaged_or_lost(tiny_model, tmp_path):
    out = tmp_path / "out.zarr"
    options = ("--size", "300x300", "--steps", 2, "--shard", 128, "--chunk", 64, "--preview", "none")
    assert launch(1, "--model", tiny_model, *options, "--out", out).returncode == 0
    shard = out / "0" / "c" / "0" / "1" / "2"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    status, text = verify(out)
    assert status == 1
    assert "array 0 shard rows 128:256 columns 256:300" in text
    shard.unlink()
    status, text = verify(out)
    assert status == 1
    assert "array 0 shard rows 128:256 columns 256:300" in text
    shard.write_bytes(whole)
    assert verify(out)[0] == 0


def test_the_dry_run_counts_what_the_run_does(tiny_model, tmp_path):
    log = tmp_path / "log.jsonl"
    arguments = ("--model", tiny_model, *SIZE, "--steps", 3, "--out", tmp_path / "out.zarr")
    planned = json.loads(launch(2, *arguments, "--dry-run", "--json").stdout)
    assert not (tmp_path / "out.zarr").exists()
    assert launch(2, *arguments, "--json-log", log).returncode == 0
    levels = [record for record in map(json.loads, lines_of(log)) if "level" in record]
    assert [r["evaluations"] for r in levels] == planned["evaluations_per_level"]
    assert [r["windows"] for r in levels] == planned["windows_per_level"]
    assert planned["evaluations"] == sum(planned["evaluations_per_level"])
    assert planned["latent_shape"] == [4, 63, 97]
    assert planned["levels"] == 3
    h, w = -(-63 // 16), -(-97 // 16)
    assert max(planned["windows_per_level"]) <= (h + 1) * (w + 1)
    share = planned["evaluations_per_rank"]
    assert share["max"] <= planned["evaluations"] / 2 + 8
    files = sum(1 for p in (tmp_path / "out.zarr").rglob("*") if p.is_file())
    assert planned["files"] >= files
    assert planned["shards"] == 2 * 4


def test_the_output_is_a_valid_ome_zarr_with_labels_pyramids_and_provenance(tiny_model, tmp_path):
    yaozarrs = pytest.importorskip("yaozarrs")
    out = tmp_path / "out.zarr"
    options = ("--size", "500x700", "--steps", 2, "--shard", 256, "--chunk", 128, "--preview", tmp_path / "p.png")
    assert launch(2, "--model", tiny_model, *options, "--out", out).returncode == 0
    yaozarrs.validate_zarr_store(str(out))
    yaozarrs.validate_zarr_store(str(out / "labels" / "tissue"))
    group = zarr.open_group(out, mode="r")
    assert group["0"].shape == (3, 500, 700)
    assert group["2"].shape == (3, 125, 175)
    assert group["labels/tissue/0"].shape == (500, 700)
    scales = [d["coordinateTransformations"][0]["scale"] for d in group.attrs["ome"]["multiscales"][0]["datasets"]]
    assert scales == [[1.0, 0.5, 0.5], [1.0, 1.0, 1.0], [1.0, 2.0, 2.0]]
    facts = group.attrs["slidefield"]
    assert facts["job"]["size"] == [500, 700]
    assert {"seed", "model_hash", "versions", "seconds"} <= set(facts)
    fine = group["0"][...].astype(float)
    coarse = fine.reshape(3, 250, 2, 350, 2).mean((2, 4))
    assert np.abs(coarse - group["1"][...]).max() <= 0.5
    from PIL import Image

    assert np.asarray(Image.open(tmp_path / "p.png")).shape[1:] == (1400, 3), "the image and its label map"


def test_a_canvas_smaller_than_a_window_is_padded_and_cropped(tiny_model, tmp_path):
    out = tmp_path / "out.zarr"
    done = launch(2, "--model", tiny_model, "--size", "7x301", "--steps", 2, "--preview", "none", "--out", out)
    assert done.returncode == 0, done.stderr
    assert zarr.open_group(out, mode="r")["0"].shape == (3, 7, 301)
    assert "smaller than a window of 128 px" in done.stdout
    assert sha(out)


def test_labels_come_from_every_format_to_the_same_bytes(tiny_model, tmp_path):
    import tifffile
    from PIL import Image

    labels = np.random.default_rng(0).integers(0, 5, (20, 30)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
    Image.fromarray(labels).save(tmp_path / "l.png")
    tifffile.imwrite(tmp_path / "l.tif", labels)
    np.save(tmp_path / "l.npy", labels.astype(np.int32))
    zarr.create_array(str(tmp_path / "l.zarr"), data=labels.astype(np.uint16))
    shas = set()
    for name in ("l.png", "l.tif", "l.npy", "l.zarr"):
        out = tmp_path / f"out-{name}.zarr"
        options = ("--size", "160x240", "--steps", 2, "--preview", "none", "--labels", tmp_path / name)
        done = launch(1, "--model", tiny_model, *options, "--out", out)
        assert done.returncode == 0, done.stderr
        assert (zarr.open_group(out, mode="r")["labels/tissue/0"][...] == labels).all()
        shas.add(sha(out))
    assert len(shas) == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_gives_nearly_the_same_image(tiny_model, tmp_path, dtype):
    images = []
    for name in ("float32", dtype):
        out = tmp_path / f"{name}.zarr"
        options = ("--size", "130x140", "--steps", 3, "--dtype", name, "--preview", "none", "--out", out)
        done = launch(1, "--model", tiny_model, *options)
        assert done.returncode == 0, done.stderr
        images.append(zarr.open_group(out, mode="r")["0"][...].astype(float))
    difference = np.abs(images[0] - images[1]).mean()
    assert 0 < difference < 4


def test_resume_never_starts_anew(tiny_model, tmp_path):
    out, log = tmp_path / "out.zarr", tmp_path / "log.jsonl"
    arguments = ("--model", tiny_model, *SIZE, "--steps", 6, "--checkpoint-every", 0)
    start_and_kill(lambda: len(lines_of(log)) >= 3, out, 2, *arguments, log=log)
    shutil.rmtree(out / "labels" / "tissue" / "0" / "c", ignore_errors=True)
    done = launch(2, *arguments, "--out", out, "--resume", "never")
    assert done.returncode == 0, done.stderr
    assert "from level" not in done.stdout
    assert verify(out)[0] == 0


def test_a_shard_that_is_lost_while_it_runs_is_not_signed_away(tiny_model, tmp_path):
    """Signed as finished, it would read as zeros; given the same command again, the run makes it anew."""
    out, options = tmp_path / "o.zarr", ("--size", "300x420", "--shard", 128, "--chunk", 64, "--labels", "example")
    arguments = ("--model", tiny_model, *options, "--steps", 2, "--preview", "none")
    assert launch(1, *arguments, "--out", tmp_path / "whole.zarr").returncode == 0
    lost = out / "0" / "c" / "0" / "0" / "0"
    for _ in range(10):  # on a busy machine the run may be signed before the shard is lost: then another is started
        run = Running(2, *arguments, "--out", out)
        assert run.wait_until(lost.exists)
        lost.unlink()
        status, text = run.end()
        if status:
            break
        shutil.rmtree(out)
    assert status == 1, text
    assert str(lost) in text
    assert "same command again" in text
    assert launch(1, *arguments, "--out", out).returncode == 0
    assert sha(out) == sha(tmp_path / "whole.zarr")


def test_a_decoder_that_makes_no_numbers_is_named(tiny_model, tmp_path):
    import safetensors.numpy

    model = shutil.copytree(tiny_model, tmp_path / "model")
    weights = next((model / "vae").glob("*.safetensors"))
    tensors = safetensors.numpy.load_file(weights)
    safetensors.numpy.save_file({k: v * np.float32(1e30) if "decoder" in k else v for k, v in tensors.items()}, weights)
    done = launch_alone(
        2, "--model", model, "--size", "128x128", "--label", 1, "--steps", 2, "--out", tmp_path / "o.zarr"
    )
    assert done.returncode == 1
    assert "decoder made values that are not finite" in done.stderr
    assert "Traceback" not in done.stderr
