"""What trainings read and show: lists of pictures, tables of labels, threads that read ahead, TensorBoard."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, get_ident

import numpy as np
import pytest
import torch
from launching import launch
from PIL import Image
from test_convert import small_autoencoder

from engine.inputs.label_codes import table_codes
from engine.train import main, parser
from engine.training.ahead import AHEAD, Ahead
from engine.training.alone import Alone
from engine.training.data import find_images
from engine.training.job_file import with_job
from engine.training.loop import LoopSettings, Trainer
from engine.training.published.common import Example, Windows
from engine.training.published.diffinfinite import own_scale
from engine.training.published.labelled_images import (
    LabelledImages,
    check_split,
    drawn_for_test,
    enough_labelled,
    read_list,
)
from engine.training.published.nuclei import read_names


class Together:
    """Lets callers go on when there are so many of them; the later ones at once."""

    def __init__(self, count):
        self.barrier, self.left = Barrier(count), iter(range(count))

    def __call__(self):
        if next(self.left, None) is not None:
            self.barrier.wait(timeout=20)


def test_batches_are_the_same_however_many_threads_read_them():
    readers, wait_for_three = set(), Together(3)

    def example(position, rng):
        readers.add(get_ident())
        wait_for_three()
        return Example(rng.random((3, 4, 4), np.float32), {"map": np.full((1, 4, 4), position, np.float32)})

    with ThreadPoolExecutor(3) as pool:
        threaded = Windows(example, 7, (4, 2, 2)).batch(range(5, 11), each=pool.map)
    alone = Windows(example, 7, (4, 2, 2)).batch(range(5, 11))
    assert len(readers) == 4  # three, and this one
    assert threaded.inputs["map"][:, 0, 0, 0].tolist() == [5, 6, 7, 8, 9, 10]
    assert torch.equal(threaded.seeds, alone.seeds)
    for name in ("x0", "noise", "latent_noise"):
        assert torch.equal(getattr(threaded, name), getattr(alone, name)), name


def test_minutes_count_the_checkpoint_and_pictures_that_end_a_training(tmp_path):
    settings = LoopSettings(1000, 1.0, 4, 1e-3, every=10)
    trainer = Trainer(torch.nn.Linear(2, 1), settings, Alone(), tmp_path)
    trainer.seconds, trainer.took = 45.0, 20.0
    trainer.ask_the_time()
    trainer.told_the_time()
    trainer.seconds = 45.0
    assert trainer.done == 1.0, "the last checkpoint and its pictures will take 20 s"
    trainer.save()
    again = Trainer(torch.nn.Linear(2, 1), settings, Alone(), tmp_path)
    assert again.resume()
    assert again.done == 1.0, "given again, it is trained already"


def test_means_of_figures_go_on_at_a_resume_and_begin_without_a_bias(tmp_path):
    trainer = Trainer(torch.nn.Linear(2, 1), LoopSettings(9, 0.0, 1, 1e-3), Alone(), tmp_path)
    for value in (0.0, 1.0, 2.0):
        trainer.average_figures({"loss": torch.tensor(value)})
    assert float(trainer.figures["loss"]) == pytest.approx(1.0)
    trainer.save()
    again = Trainer(torch.nn.Linear(2, 1), LoopSettings(9, 0.0, 1, 1e-3), Alone(), tmp_path)
    again.resume()
    again.average_figures({"loss": torch.tensor(5.0)})
    assert float(again.figures["loss"]) == pytest.approx(2.0)


def test_a_file_gives_the_options_of_a_training_and_the_command_line_overrides_it(tmp_path):
    (tmp_path / "t.yaml").write_text("data: d\nout: o\nlr: 2e-4\ndim_mults: [1, 2]\ncompile: true\nsteps: 7\n")
    words = with_job(["diffinfinite-image", f"--job={tmp_path / 't.yaml'}", "--steps", "9"])
    args = parser().parse_args(words)
    assert (str(args.data), args.lr, args.dim_mults, args.compile, args.steps) == ("d", 2e-4, [1, 2], True, 9)
    (tmp_path / "t.yaml").write_text("data: {a: 1}\n")
    with pytest.raises(ValueError, match="'data' is no option of a training"):
        with_job(["nuclei", "--job", str(tmp_path / "t.yaml")])


def test_latents_of_an_autoencoder_of_ours_are_divided_by_their_own_deviation():
    assert own_scale({"scaling_factor": 0.18215}) == own_scale({}) == 0, "of Stable Diffusion's, as published"
    assert own_scale({"scaling_factor": 0.5}) == 2


def test_steps_are_made_ahead_by_several_threads_in_order_and_no_more_than_are_kept():
    ahead = Ahead(lambda step: step, 4, threads=8)
    assert [ahead.take() for _ in range(5)] == [4, 5, 6, 7, 8]
    assert ahead.next == 8 + AHEAD, "steps that are asked for"
    ahead.end()


@pytest.fixture(scope="module")
def nuclei_data(tmp_path_factory):
    """Six pictures of 24 px with two nuclei each."""
    folder, rng = tmp_path_factory.mktemp("nuclei"), np.random.default_rng(0)
    for part in ("images", "inst_masks"):
        (folder / part).mkdir()
    for number in range(6):
        instances = np.zeros((24, 24), np.int32)
        instances[2:9, 2:9], instances[12:20, 10:20] = 1, 2
        Image.fromarray(rng.integers(0, 255, (24, 24, 3)).astype(np.uint8)).save(folder / "images" / f"p{number}.png")
        Image.fromarray(instances).save(folder / "inst_masks" / f"p{number}.tiff")
    return folder


SMALL = ("--window", 16, "--model-channels", 32, "--channel-mult", 1, "--blocks", 1, "--attention", 16)


@pytest.mark.runs
def test_figures_and_pictures_are_shown_in_tensorboard_where_it_is_installed(nuclei_data, tmp_path):
    pytest.importorskip(
        "tensorboard", reason="tensorboard is not installed: `pip install tensorboard` shows its figures"
    )
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    small = (*SMALL, "--steps", 2, "--batch-size", 2, "--every", 1, "--validation-windows", 1, "--alone")
    assert main(["nuclei", "--data", str(nuclei_data), "--out", str(tmp_path / "m"), *map(str, small)]) == 0
    events = EventAccumulator(str(tmp_path / "m" / "unet" / "tensorboard")).Reload()
    assert {"loss", "mse", "vb", "lr"} <= set(events.Tags()["scalars"])
    assert [event.value for event in events.Scalars("lr")] == pytest.approx([1e-4])
    assert [event.step for event in events.Images("samples")] == [1, 2]


@pytest.mark.runs
def test_nuclei_are_trained_on_the_pictures_of_a_list(nuclei_data, tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("p1\np4,train\np2,test\n")
    run = ("nuclei", "--data", nuclei_data, *SMALL, "--steps", 1, "--batch-size", 2, "--validation-windows", 1)
    done = launch(2, *run, "--out", tmp_path / "m", "--list", path, module="engine.train")
    assert "2 images, 1 held out" in done.stdout, done.stderr
    for line, said in (("p9", "holds no picture p9"), ("p0,val", "'val' is neither train nor test")):
        path.write_text(f"p1\n{line}\n")
        done = launch(2, *run, "--out", tmp_path / "new", "--list", path, module="engine.train")
        assert done.stderr.startswith(f"error: --list {path}, line 2"), done.stderr
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
    path.write_text("p1,test\n")
    with pytest.raises(ValueError, match="names no pictures to train on"):
        read_names(path, ["p1"], nuclei_data)


# ---- lists and tables ---------------------------------------------------------------------------

IMAGE = ("--dim", 8, "--dim-mults", "1,2", "--window", 64, "--dropout", 0, "--validation-windows", 4)


@pytest.fixture(scope="module")
def coded(tmp_path_factory):
    """Ten pictures whose maps hold the codes 0 and 7 or 23, with ``dataset.csv`` as the authors write it."""
    folder, rng = tmp_path_factory.mktemp("coded"), np.random.default_rng(0)
    (folder / "data").mkdir()
    lines = []
    for number in range(10):
        code, width = (23, 10) if number % 5 == 0 else (7, 40 + number)
        labels = np.zeros((64, 64), np.uint8)
        labels[:, :width] = code
        picture = rng.integers(0, 255, (64, 64, 3)).astype(np.uint8)
        Image.fromarray(picture).save(folder / "data" / f"s{number}.jpg")
        Image.fromarray(labels).save(folder / "data" / f"s{number}_mask.png")
        lines.append(f"s{number},0 {code}")
    (folder / "dataset.csv").write_text("\r\n".join(lines[:8]) + "\r\n")
    (folder / "table.csv").write_text("0,0\n7,1\n*,2\n")
    small_autoencoder(folder / "vae")
    return folder


def images_of(folder, **options):
    paths = [folder / "data" / f"s{number}.jpg" for number in range(10)]
    return LabelledImages(paths, [], keep=[], side=64, unlabelled=0.5, ranks=Alone(), **options)


def test_codes_become_labels_by_a_table_and_a_list_says_what_maps_hold_without_reading_them(coded, monkeypatch):
    codes = table_codes(str(coded / "table.csv"), 256)
    read = images_of(coded, codes=codes)
    assert (read.count, sorted(read.holders), read.holders[2]) == (3, [1, 2], [0, 5])
    paths = find_images(coded / "data")
    listed = read_list(coded / "dataset.csv", paths)
    assert (len(listed.held), listed.test, listed.held[paths[5]]) == (8, None, [0, 23])
    monkeypatch.setattr(LabelledImages, "map_of", None)
    whole = {path: listed.held.get(path, [0, 7]) for path in paths}
    assert images_of(coded, codes=codes, held=whole).holders == read.holders


def test_a_tenth_of_each_labels_pictures_is_held_out_and_never_all_of_one(coded):
    images = images_of(coded, codes=table_codes(str(coded / "table.csv"), 256))
    for seed in range(5):
        held = drawn_for_test(images, 0.5, seed)
        assert held == drawn_for_test(images, 0.5, seed)
        numbers = [images.labelled.index(path) for path in held]
        assert sum(number in (0, 5) for number in numbers) == 1
        assert len(numbers) == 5
    left = images.part([path for path in images.labelled if path not in images.labelled[0:6:5]], [])
    with pytest.raises(ValueError, match=r"all pictures of label 2 \(2\) are held out"):
        check_split(images, left)


def test_pictures_that_are_labelled_too_little_are_left_out(coded):
    paths = find_images(coded / "data")
    assert [path.stem for path in enough_labelled(paths, 0.7, Alone())] == ["s6", "s7", "s8", "s9"]
    assert enough_labelled(paths, 0, Alone()) == paths
    with pytest.raises(ValueError, match=r"`labelled_share` 0\.9 is more than any of the 10"):
        enough_labelled(paths, 0.9, Alone())


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("s0", "expected NAME,CODES"),
        ("s0,a b", "expected NAME,CODES"),
        ("s0,0 7,validation", "'validation' is neither train nor test"),
        ("s77,0 7", "no picture s77"),
        ("s1,0 7", "s1 stands there twice"),
    ],
)
def test_a_list_that_is_none_is_refused_with_its_line(coded, tmp_path, line, said):
    (tmp_path / "list.csv").write_text(f"s1,0 7,train\n{line}\n")
    with pytest.raises(ValueError, match=rf"list\.csv, line 2: .*{said}"):
        read_list(tmp_path / "list.csv", find_images(coded / "data"))


@pytest.mark.runs
def test_diffinfinite_is_trained_by_the_authors_list_and_table(coded, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(coded / "data", data)
    shutil.copy(coded / "dataset.csv", data)  # eight of ten
    run = ("diffinfinite-image", "--data", data, "--vae", coded / "vae", *IMAGE, "--steps", 1, "--batch-size", 2)
    run = (*run, "--labels-table", coded / "table.csv")
    done = launch(2, *run, "--out", tmp_path / "m", "--test-share", 0.5, module="engine.train")
    assert done.returncode == 0, done.stderr
    assert "4 images of 3 labels, 0 without" in done.stdout
    assert "on windows held out" in done.stdout
    (tmp_path / "parts.csv").write_text("s0,0 23,test\ns1,0 7,train\ns5,0 23,train\n")
    done = launch(2, *run, "--out", tmp_path / "p", "--list", tmp_path / "parts.csv", module="engine.train")
    assert "2 images of 3 labels, 0 without" in done.stdout, done.stderr
    (tmp_path / "few.csv").write_text("0,0\n7,1\n")
    for options, said in (
        (("--labels-table", tmp_path / "few.csv"), "list's line of s0 has the code 23; --labels-table"),
        (("--list", tmp_path / "none.csv"), "--list"),
        (("--test-share", 0.5, "--hold-out", 1), "give one of them"),
    ):
        done = launch(2, *run, "--out", tmp_path / "new", *options, module="engine.train")
        assert done.returncode == 1, done.stdout
        assert done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.startswith("error: "), done.stderr
        assert said in done.stderr
