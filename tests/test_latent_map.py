"""A label map read by box is the map that was read whole, and no rank holds more of it than a few blocks."""

import json
import pickle
import subprocess
import sys
import tracemalloc
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import zarr
from launching import ROOT, environment, launch, mpiexec, sha
from PIL import Image

from engine.diffusion.latent_map import KEPT, SIDE, LatentMap
from engine.inputs.input_file import integer_file
from engine.inputs.labels import example_of_image, uniform_labels
from engine.inputs.maps import MapFile
from engine.inputs.masks import roi_map
from engine.job import RunOptions, SampleJob
from engine.pipeline.prepare import prepare
from engine.planning.geometry import Box, Frames, grid

FRAMES = {
    "large": Frames((4500, 3003), 8, 16),
    "smaller than a window": Frames((50, 437), 8, 16),
    "a set": Frames((130, 150), 8, 16, 40),
    "a set of padded images": Frames((45, 77), 8, 16, 23),
    "pixels": Frames((300, 290), 1, 64),
}


def read_whole(read, frames):
    """The label of every latent as one rank read them once: nearest, an image padded with the labels of its edge."""
    (height, width), factor = frames.size, frames.factor
    labels = np.empty(frames.shape, np.uint8)
    for image in range(frames.images):
        in_file = isinstance(getattr(read, "__self__", None), MapFile)
        of_image = np.asarray(read(image, Box(0, 0, height, width), 1 if in_file else factor))
        of_image = of_image[::factor, ::factor] if in_file else of_image
        short = [(0, n - m) for n, m in zip(frames.frame, of_image.shape, strict=True)]
        rows = image * frames.frame[0]
        labels[rows : rows + frames.frame[0]] = np.pad(of_image, short, mode="edge")
    return labels


def sources(frames, folder):
    rng = np.random.default_rng(0)
    shape = frames.size if frames.count is None else (frames.count, *frames.size)
    labels = rng.integers(0, 5, shape).astype(np.uint8)
    np.save(folder / "l.npy", labels.astype(np.int16))
    zarr.create_array(str(folder / "l.zarr"), data=labels, chunks=(100,) * labels.ndim)
    files = ["l.npy", "l.zarr"]
    if frames.count is None:
        Image.fromarray(labels).save(folder / "l.png")
        small = labels[: frames.size[0] // 3 + 1, : frames.size[1] // 2]
        np.save(folder / "resized.npy", small)
        files += ["l.png", "resized.npy"]
    for name in files:
        file = integer_file(folder / name, "`labels`", frames.count is not None)
        yield MapFile(file, frames.size, 5, tuple("abcde")).read
    yield partial(uniform_labels, (1, 3, 0))
    yield partial(example_of_image, frames.size[0], (0, 0))


@pytest.mark.parametrize("kind", FRAMES)
def test_a_map_read_by_box_is_the_map_read_whole(tmp_path, kind):
    frames, rng = FRAMES[kind], np.random.default_rng(1)
    height, width = frames.shape
    for read in sources(frames, tmp_path):
        expected = read_whole(read, frames)
        labels = pickle.loads(pickle.dumps(LatentMap(frames, read)))
        assert (labels[:, :] == expected).all()
        for _ in range(20):
            (y0, y1), (x0, x1) = (np.sort(rng.integers(0, n + 1, 2)) for n in (height, width))
            assert (labels[y0:y1, x0:x1] == expected[y0:y1, x0:x1]).all()
        assert labels[height - 1 :, :1].dtype == np.uint8


@pytest.mark.parametrize("size", [(4500, 3003), (50, 437), (128, 100)])
def test_a_region_read_by_box_holds_the_latents_with_any_wanted_pixel(tmp_path, size):
    frames = Frames(size, 8, 16)
    mask = (np.random.default_rng(0).random(size) < 0.01).astype(np.uint8) * 255
    np.save(tmp_path / "roi.npy", mask)
    padded = np.pad(mask, [(0, n * 8 - m) for n, m in zip(frames.shape, size, strict=True)])
    expected = padded.reshape(frames.shape[0], 8, frames.shape[1], 8).any((1, 3))
    roi = roi_map(integer_file(tmp_path / "roi.npy", "`roi`"), frames)
    assert (roi[:, :] == expected).all()
    assert (roi[5:16, 9:30] == expected[5:16, 9:30]).all()


def test_a_rank_holds_a_few_blocks_of_a_map_however_large(tmp_path):
    side = 40_000
    np.lib.format.open_memmap(tmp_path / "l.npy", mode="w+", dtype=np.uint8, shape=(side, side)).flush()  # all holes
    frames = Frames((side, side), 1, 64)
    labels = LatentMap(frames, MapFile(integer_file(tmp_path / "l.npy", "`labels`"), frames.size, 5).read)
    assert len(pickle.dumps(labels)) < 1000
    tracemalloc.start()
    for y in range(0, side, SIDE):  # more blocks than are kept
        for x in range(0, 3 * SIDE, SIDE):
            labels[y : y + 64, x : x + 64]
    held, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 3 * side / SIDE > KEPT
    assert held < 1.1 * labels.nbytes + 2**20
    assert most < labels.nbytes + 8 * 2**20
    assert len(pickle.dumps(labels)) < 1000, "what was read is not sent"


def test_a_value_that_the_model_does_not_know_is_named_where_it_lies(tmp_path):
    labels = np.zeros((3, 40, 50), np.int64)
    labels[2, 33, 7] = -1
    np.save(tmp_path / "l.npy", labels)
    file = MapFile(integer_file(tmp_path / "l.npy", "`labels`", stack=True), (80, 100), 2, ("a", "b"))
    file.read(1, Box(0, 0, 80, 100), 1)
    with pytest.raises(ValueError, match=r"l\.npy, map 2, has value -1 at row 33, column 7; the model knows 0 a, 1 b"):
        file.read(2, Box(60, 10, 80, 100), 1)


def test_a_grid_takes_no_room_and_knows_the_place_of_every_box():
    huge = grid((10**9, 10**9 - 7), 2048)
    assert len(huge) == 488282 * 488282
    last = huge[len(huge) - 1]
    assert last == huge[-1] == Box(488281 * 2048, 488281 * 2048, 10**9, 10**9 - 7)
    assert huge.index_of(huge[123_456_789_012]) == 123_456_789_012
    with pytest.raises(IndexError):
        huge[len(huge)]
    assert [w.shape for w in grid((3, 5), (2, 4))] == [(2, 4), (2, 1), (1, 4), (1, 1)]


@pytest.mark.runs
@pytest.mark.parametrize("option", ["--roi", "--mask"])
def test_what_can_only_be_read_whole_gives_the_same_bytes_and_its_copy_does_not_stay(tiny_model, tmp_path, option):
    size = (130, 301)
    mask, known = np.zeros(size, np.uint8), np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    mask[20:90, 100:200] = 1
    shas = set()
    for kind in ("npy", "png", "zarr"):
        names = {name: tmp_path / f"{name}.{kind}" for name in ("mask", "known")}
        for path, data in ((names["mask"], mask), (names["known"], known)):  # a Zarr of channels last
            if kind == "npy":
                np.save(path, data)
            elif kind == "png":
                Image.fromarray(data).save(path)
            else:
                zarr.create_array(str(path), data=data)
        arguments = ("--model", tiny_model, "--size", "130x301", "--shard", 128, "--chunk", 64, "--steps", 2)
        arguments = (*arguments, "--preview", "none", option, names["mask"], "--labels", "example")
        arguments += ("--image", names["known"]) if option == "--mask" else ()
        out = tmp_path / f"{kind}.zarr.out"
        done = launch(2, *arguments, "--out", out)
        assert done.returncode == 0, done.stderr
        shas.add(sha(out))
        assert {path.name for path in (out / "slidefield").iterdir()} == {
            "ledger.jsonl",
            "lock",
            "metadata.json",
            "times.json",
            "zarr.json",
        }
    assert len(shas) == 1


@pytest.mark.runs
@pytest.mark.parametrize(
    "options", [pytest.param(("--roi",), marks=pytest.mark.long), ("--mask", "--image")], ids=["roi", "mask"]
)
def test_files_that_can_only_be_read_whole_are_not_needed_after_the_start(tiny_model, tmp_path, options):
    """What the windows are asked for is read from what is stored beside the image, all else from copies."""
    rng = np.random.default_rng(0)
    mask = np.zeros((130, 310), np.uint8)
    mask[20:90, 100:200] = 1
    drawn = {"--roi": mask, "--mask": mask, "--image": rng.integers(0, 256, (130, 310, 3)).astype(np.uint8)}
    drawn["--labels"] = rng.integers(0, 5, (13, 31)).astype(np.uint8).repeat(10, 0).repeat(10, 1)
    arguments = ["--model", tiny_model, "--size", "130x310", "--steps", 2]
    arguments += ["--preview", "none", "--shard", 128, "--chunk", 64]
    for option in (*options, "--labels"):
        path = tmp_path / f"{option[2:]}.png"
        Image.fromarray(drawn[option]).save(path)
        arguments += [option, path]
    assert launch(1, *arguments, "--out", tmp_path / "whole.zarr").returncode == 0
    script = tmp_path / "run.py"
    script.write_text(
        "import pathlib, sys, engine.pipeline.run, engine.sample\n"
        "write = engine.pipeline.run.write_label_array\n"
        "def then_remove(ranks, *rest):\n"
        "    prepared = write(ranks, *rest)\n"
        "    ranks.on_root(lambda: [path.unlink() for path in pathlib.Path(sys.argv[1]).glob('*.png')])\n"
        "    return prepared\n"
        "engine.pipeline.run.write_label_array = then_remove\n"
        "sys.exit(engine.sample.main(sys.argv[2:]))\n"
    )
    line = [mpiexec(), "-n", 2, sys.executable, script, tmp_path, *arguments, "--out", tmp_path / "o.zarr"]
    done = subprocess.run(list(map(str, line)), cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.glob("*.png"))
    assert sha(tmp_path / "o.zarr") == sha(tmp_path / "whole.zarr")


def test_a_job_with_a_huge_label_map_is_sent_as_a_few_bytes(tiny_model, tmp_path):
    np.save(tmp_path / "l.npy", np.zeros((1000, 1544), np.uint8))
    Image.fromarray(np.zeros((1000, 1544), np.uint8)).save(tmp_path / "l.png")
    sizes = []
    for name in ("l.npy", "l.png"):
        job = SampleJob(model=str(tiny_model), size=(1000, 1544), labels=str(tmp_path / name))
        prepared = prepare(job, RunOptions(out=str(tmp_path / "o.zarr"), preview="none"), 2, 2)
        sizes.append(len(pickle.dumps(prepared)))
        assert "array" not in vars(prepared.inputs.labels.read.__self__.file), "the file was closed"
    assert max(sizes) < 20_000, json.dumps(sizes)
    assert Path(prepared.inputs.labels.read.__self__.file.path).name == "l.png"


COUNTING = """
import sys
import engine.sample, engine.storage.readers
from mpi4py import MPI

opened, open_array = [], engine.storage.readers._open_array

def counted(path, *how):
    opened.append(path.name)
    return open_array(path, *how)

engine.storage.readers._open_array = counted
status = engine.sample.main(sys.argv[1:])
for names in MPI.COMM_WORLD.gather(opened) or ():
    print("opened", *sorted(names))
sys.exit(status)
"""


def test_what_can_only_be_read_whole_is_read_once_and_by_rank_0_alone(tiny_model, tmp_path):
    mask = np.zeros((130, 310), np.uint8)
    mask[20:90, 100:200] = 1
    for name, data in (("mask", mask), ("known", np.dstack([mask] * 3))):
        Image.fromarray(data).save(tmp_path / f"{name}.png")
    (tmp_path / "run.py").write_text(COUNTING)
    arguments = ["--model", tiny_model, "--size", "130x310", "--steps", 2, "--preview", "none", "--shard", 128]
    arguments += ["--chunk", 64, "--image", tmp_path / "known.png", "--mask", tmp_path / "mask.png"]
    line = [mpiexec(), "-n", 2, sys.executable, tmp_path / "run.py", *arguments, "--out", tmp_path / "o.zarr"]
    done = subprocess.run(list(map(str, line)), cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("opened")]
    assert [[name for name in of_rank if name.endswith(".png")] for of_rank in names] == [["known.png", "mask.png"], []]
    assert all({"image", "mask"} <= set(of_rank) for of_rank in names), "then the copies are read"
