"""Bad input: one line on rank 0 that names the value and the way out, status not 0, nothing changed on disk."""

import importlib
import subprocess
import sys

import numpy as np
import pytest
from bad_inputs import faults
from launching import ROOT, environment, launch, launch_alone, refused, tree
from PIL import Image


@pytest.fixture
def place(tmp_path, tiny_model):
    """A folder, and the arguments of a job in it that is right."""
    return tmp_path, ("--model", tiny_model, "--size", "128x136", "--steps", "2", "--out", tmp_path / "out.zarr")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (("--size", "0x128"), ["--size", "0x128", "1 px"]),
        (("--size", "-5x128"), ["-5x128"]),
        (("--size", "big"), ["big", "HxW"]),
        (("--steps", "0"), ["--steps", "'0'", "1 or more"]),
        (("--steps", "1001"), ["1001", "1000"]),
        (("--steps", "many"), ["many", "whole number"]),
        (("--eta", "nan"), ["--eta", "nan"]),
        (("--eta", "1.5"), ["1.5"]),
        (("--eta", "0.5", "--solver", "euler"), ["eta", "euler"]),
        (("--solver", "magic"), ["magic", "dpmpp2m"]),
        (("--label", "9"), ["9", "carcinoma"]),
        (("--cover", "strided", "--stride", "99"), ["99", "gaps"]),
        (("--stride", "4"), ["stride", "--cover strided"]),
        (("--shard", "100"), ["100"]),
        (("--seed", "-1"), ["--seed", "-1"]),
        (("--bogus", "1"), ["--bogus", "--help"]),
        (("--stepz", "1"), ["unrecognized argument --stepz; did you mean '--steps'?"]),
        (("--batchsize=8",), ["unrecognized argument --batchsize; did you mean '--batch-size'?"]),
        (("--label", "carcinom"), ["--label carcinom", "0 unknown, 1 carcinoma", "did you mean 'carcinoma'?"]),
        (("--prompt", "1", "--label", "1"), ["--prompt 1", "leave out --prompt, or --label"]),
        (("--label-steps", "3", "--labels", "example"), ["leave out --label-steps, or --labels"]),
        (("--ranks", "4"), ["--ranks 4", "mpiexec -n 4 python -m engine.sample"]),
        (("--prompt", "a\nb\x1b[2J"), ["--prompt a\\nb\\x1b[2J"]),
        (("--seed", "9" * 5000), ["'99999", "expected a whole number"]),
        (("--model", "m" * 300), ["mmm...mmm", "(301 characters) File name too long"]),
        (("--out", "o" * 240), ["longer than 200 bytes"]),
        (("--out", "a/" * 2500), ["at most 4095 bytes"]),
        (("--out", "\udc80.zarr"), ["'\\udc80.zarr'", "UTF-8"]),
        (("--device", "tpu"), ["tpu", "cpu"]),
        (("--checkpoint-every", "-3"), ["--checkpoint-every", "-3"]),
    ],
)
def test_a_wrong_option_is_named_with_its_value_and_the_way_out(place, wrong, said):
    folder, right = place
    line = refused(folder, *right, *wrong)
    for part in said:
        assert part in line


def test_a_device_that_is_not_there_is_refused(place):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    line = refused(place[0], *place[1], "--device", "cuda")
    assert "cuda" in line
    assert "--device cpu" in line


def write_labels(folder, kind):
    good = np.ones((128, 136), np.uint8)
    path = folder / "labels.npy"
    if kind == "size":
        np.save(path, good[:100])
    elif kind == "three dimensions":
        np.save(path, good[None])
    elif kind == "floating":
        np.save(path, good.astype(float))
    elif kind == "value":
        good[40, 50] = 7
        np.save(path, good)
    elif kind == "negative":
        bad = good.astype(np.int16)
        bad[3, 4] = -2
        np.save(path, bad)
    elif kind == "rgb":
        path = folder / "labels.png"
        Image.fromarray(np.dstack([good] * 3)).save(path)
    elif kind == "no image":
        path = folder / "labels.png"
        path.write_text("hello")
    elif kind == "truncated":
        path = folder / "labels.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 5, (128, 136)).astype(np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:500])
    elif kind == "pickled":
        np.save(path, np.array([{}, 1], object), allow_pickle=True)
    return path


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("size", ["100 x 136", "128 x 136", "--resize-labels nearest", "--size 100x136"]),
        ("three dimensions", ["(1, 128, 136)", "two dimensions"]),
        ("floating", ["float64", "whole numbers"]),
        ("value", ["value 7", "row 40, column 50", "4 other"]),
        ("negative", ["value -2", "row 3, column 4"]),
        ("rgb", ["colour 1,1,1 at row 0, column 0", "214,39,40 carcinoma"]),
        ("no image", ["labels.png", "cannot be read"]),
        ("truncated", ["labels.png", "cannot be read"]),
        ("pickled", ["labels.npy", "cannot be read"]),
        ("missing", ["labels.npy", "not there"]),
    ],
)
def test_a_wrong_label_map_is_named_with_what_is_wrong(place, kind, said):
    path = write_labels(place[0], kind)
    line = refused(place[0], *place[1], "--labels", path)
    for part in said:
        assert part in line


def copy_model(model, folder):
    import shutil

    shutil.copytree(model, folder / "model")
    return folder / "model"


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_truncated_weights_are_refused(place, tiny_model, part):
    model = copy_model(tiny_model, place[0])
    weights = model / part / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    line = refused(place[0], *place[1], "--model", model)
    assert str(weights) in line
    assert "truncated" in line


def test_models_that_are_none_are_refused(place, tiny_model):
    folder, right = place
    assert "is not there" in refused(folder, *right, "--model", folder / "nowhere")
    (folder / "empty").mkdir()
    assert "model_index.json is missing" in refused(folder, *right, "--model", folder / "empty")
    pickle = folder / "model.ckpt"
    pickle.write_bytes(b"\x80\x04.")
    assert "a pickle, which is never opened" in refused(folder, *right, "--model", pickle)
    model = copy_model(tiny_model, folder)
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    assert "is a pickle" in refused(folder, *right, "--model", model)
    weights.write_bytes(b"\x80\x04." * 40)
    assert "not a safetensors file" in refused(folder, *right, "--model", model)
    weights.with_suffix(".bin").rename(weights)
    (model / "card.json").write_text("{")
    assert "card.json is not JSON" in refused(folder, *right, "--model", model)


def test_weights_of_another_network_are_refused(place, tiny_model):
    model = copy_model(tiny_model, place[0])
    config = model / "unet" / "config.json"
    config.write_text(config.read_text().replace('"dim": 8', '"dim": 16'))
    assert "do not fit each other" in refused(place[0], *place[1], "--model", model)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stepz: 3\n", ["unknown key 'stepz'", "did you mean 'steps'"]),
        ("steps: three\n", ["steps is 'three'", "whole number"]),
        ("steps: 2.5\n", ["steps is 2.5", "whole number"]),
        ("guidance: [much]\n", ["guidance is ['much']", "a number"]),
        ("size: 12.5\n", ["size is 12.5", "HxW"]),
        ("steps: 1" + "0" * 4000 + "\n", ["steps is a number of 4001 digits", "or less"]),
        ("prompt: 2001-99-99\n", ["not YAML"]),
        ("label: &a [1]\n", ["anchor"]),
        ("steps: " + "[" * 60 + "]" * 60 + "\n", ["nested more than"]),
        ("a: " + "x" * 70000 + "\n", ["larger than 65536 bytes"]),
        ("label: " + str(list(range(500))) + "\n", ["label is [0, 1, 2, 3, 4, 5, ...]", "63 or less"]),
        ("overwrite: yes please\n", ["overwrite is 'yes please'", "true or false"]),
        ("- a\n- b\n", ["keys and values"]),
        ("a: [\n", ["not YAML"]),
    ],
)
def test_a_wrong_job_file_is_named_with_its_path_and_key(place, text, said):
    job = place[0] / "job.yaml"
    job.write_text(text)
    line = refused(place[0], *place[1], "--job", job)
    assert str(job) in line
    for part in said:
        assert part in line


def test_a_job_file_that_is_not_there_is_refused(place):
    assert "nowhere.yaml" in refused(place[0], *place[1], "--job", place[0] / "nowhere.yaml")


def test_what_lies_at_the_output_and_is_not_ours_is_left_alone(place):
    folder, right = place
    (folder / "out.zarr").mkdir()
    (folder / "out.zarr" / "thesis.txt").write_text("years of work")
    for extra in ((), ("--overwrite",)):
        assert "is no output of engine.sample" in refused(folder, *right, *extra)
    assert (folder / "out.zarr" / "thesis.txt").read_text() == "years of work"
    (folder / "file").write_text("x")
    assert "file" in refused(folder, *right, "--out", folder / "file" / "out.zarr")


def test_a_place_that_cannot_be_written_is_refused(place):
    line = refused(place[0], *place[1], "--out", "/proc/slidefield/out.zarr")
    assert "/proc" in line


def test_a_full_disk_is_said_in_one_line_and_earlier_results_stay(place):
    """A limit on the size of files stands in for a full disk: the same error from the same write."""
    folder, right = place
    assert launch(1, *right, "--preview", "none").returncode == 0
    before = tree(folder)
    size = ("--size", "900x900", "--out", str(folder / "second.zarr"), "--checkpoint-every", "0")
    code = (
        "import resource, sys, engine.sample\n"
        "from mpi4py import MPI\n"  # which makes large files of its own as it starts
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40000, 40000))\n"
        "sys.exit(engine.sample.main(sys.argv[1:]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, right), *size],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.count("\n") == 1
    assert "File too large" in done.stderr
    assert {k: v for k, v in tree(folder).items() if not k.startswith("second")} == before


def test_what_cannot_fit_into_memory_is_refused_before_the_run(place):
    line = refused(place[0], *place[1], "--label", "0", "--size", "400x400", "--batch-size", "65536", "--steps", "1")
    assert "GiB on this node (2 ranks)" in line


def test_a_picture_that_is_not_ours_is_not_replaced(place):
    folder, right = place
    Image.new("RGB", (8, 8)).save(folder / "out.png")
    line = refused(folder, *right)
    assert "out.png" in line
    assert "--preview none" in line


def test_folders_that_are_not_there_are_named_before_the_run(place):
    folder, right = place
    assert "nowhere" in refused(folder, *right, "--json-log", folder / "nowhere" / "log.jsonl")
    assert "nowhere" in refused(folder, *right, "--preview", folder / "nowhere" / "p.png")


def test_slurm_tasks_that_were_not_joined_are_refused():
    done = subprocess.run(
        [sys.executable, "-m", "engine.sample"],
        cwd=ROOT,
        env=environment(SLURM_NTASKS="4", SLURM_PROCID="0"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "SLURM_NTASKS is 4" in done.stderr
    assert "--mpi=" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_two_runs_do_not_write_to_one_output(place):
    import fcntl

    folder, right = place
    assert launch(1, *right).returncode == 0
    with (folder / "out.zarr" / "slidefield" / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = launch(2, *right, "--overwrite")
    assert done.returncode == 1
    assert "being written by another run" in done.stderr


def test_help_costs_no_torch_and_is_printed_once():
    done = launch_alone(3, "--help")
    assert done.returncode == 0
    assert done.stdout.count("at most 2048 px a side") == 1


def test_a_slice_of_the_campaign_of_bad_inputs_is_refused_in_one_line_each(tmp_path, tiny_model, monkeypatch):
    """``test_long.py`` has all of it."""
    assert not faults(range(42), tmp_path, tiny_model, monkeypatch)


@pytest.mark.parametrize("command", ["verify", "export", "embed", "train", "models.convert.__main__"])
def test_every_command_refuses_wrong_arguments_in_one_line(command, capsys):
    main = importlib.import_module(f"engine.{command}").main
    for arguments in ([], ["a", "b", "c", "--nonsense", "1"]):
        assert main(arguments) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert "--help" in line
