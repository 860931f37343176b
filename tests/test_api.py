"""The Python door: what the command gives, from a notebook."""

import copy
import fcntl
import functools
import gc
import io
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from launching import ROOT, environment, launch, verify
from PIL import Image

import engine

pytestmark = pytest.mark.xdist_group("api")
OPTIONS = {"size": (130, 301), "shard": 128, "chunk": 64, "steps": 3, "seed": 5, "progress": False}
FLAGS = ("--size", "130x301", "--shard", 128, "--chunk", 64, "--steps", 3, "--seed", 5, "--preview", "none")


@pytest.fixture(scope="module")
def pipe(tiny_model):
    return engine.Pipeline.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def labels():
    return np.random.default_rng(0).integers(0, 5, (13, 31)).astype(np.uint8).repeat(10, 0).repeat(10, 1)[:130, :301]


@pytest.fixture(scope="module")
def image(pipe, labels, tmp_path_factory):
    return pipe(labels=labels, out=tmp_path_factory.mktemp("api") / "field.zarr", **OPTIONS)


def test_a_call_gives_the_bytes_of_the_command(image, labels, tiny_model, tmp_path):
    np.save(tmp_path / "labels.npy", labels)
    out = tmp_path / "out.zarr"
    done = launch(1, "--model", tiny_model, *FLAGS, "--labels", tmp_path / "labels.npy", "--out", out)
    assert done.returncode == 0, done.stderr
    assert verify(out)[1].endswith(image.verify())


def test_an_image_is_read_where_it_is_sliced(image, labels):
    whole = image[...]
    assert whole.shape == image.shape == (3, 130, 301)
    assert whole.dtype == image.dtype == np.uint8
    assert (image[:, 10:20, 30:40] == whole[:, 10:20, 30:40]).all()
    assert (np.asarray(image) == whole).all()
    assert (image.labels[...] == labels).all()
    assert image.label_names[1] == "carcinoma"
    assert image.job.seed == image.seed == 5
    assert image.job.steps == 3
    assert image.provenance["levels"] == 3
    assert repr(image) == f"<Image 3 x 130 x 301 uint8, finished, seed 5, {image.path}>"


def test_an_image_is_lazy_in_dask_and_in_micrometres_in_xarray(image):
    pytest.importorskip("xarray")
    assert (image.to_dask()[:, :5].compute() == image[:, :5]).all()
    array = image.to_xarray()
    assert array.dims == ("c", "y", "x")
    assert array.y.values[:2].tolist() == [0.25, 0.75]
    assert (array[0, :3, :4].values == image[0, :3, :4]).all()


def test_a_notebook_shows_a_picture_of_it(image):
    with Image.open(io.BytesIO(image._repr_png_())) as picture:
        assert picture.size == (301, 130)
        assert (np.asarray(picture.convert("RGB")) == image[...].transpose(1, 2, 0)).all()


def test_without_a_place_the_result_lives_as_long_as_the_image(pipe, labels, image):
    made = pipe(labels=labels, **OPTIONS)
    path = made.path
    assert made.verify() == image.verify()
    assert repr(made).endswith("seed 5, in memory>")
    part = made.labels
    assert path.exists()
    del made
    gc.collect()
    assert part.shape == (130, 301)
    del part
    gc.collect()
    assert not path.parent.exists()


def test_a_finished_output_is_opened_not_sampled_again(pipe, labels, image):
    times = {path: path.stat().st_mtime_ns for path in (image.path / "0").rglob("*") if path.is_file()}
    again = pipe(labels=labels, out=image.path, **OPTIONS)
    assert again.verify() == engine.open(image.path).verify() == image.verify()
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_a_run_lets_go_of_its_output(image, tiny_model, labels, tmp_path):
    def locked(out):
        with (out / "slidefield" / "lock").open("w") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    assert not locked(image.path)
    out = tmp_path / "field.zarr"
    seen = []
    with pytest.raises(ZeroDivisionError):
        engine.Pipeline(tiny_model)(
            labels=labels, out=out, on_level=lambda *_: seen.append(locked(out)) or 1 / 0, **OPTIONS
        )
    assert seen == [True], "held while it runs"
    assert not locked(out), "and not after it failed"


def test_a_set_of_images_has_one_more_axis(pipe):
    images = pipe(size=(128, 128), count=3, label=(0, 1, 2), steps=2, progress=False)
    assert images.shape == (3, 3, 128, 128)
    assert images.labels.shape == (3, 128, 128)
    assert len({image.tobytes() for image in images[...]}) == 3
    assert Image.open(io.BytesIO(images._repr_png_())).size[0] >= 128


def test_networks_are_loaded_once_and_threads_left_as_they_were(tiny_model, labels, monkeypatch):
    import engine.pipeline.run as run

    loads, load_model = [], run.load_model
    monkeypatch.setattr(run, "load_model", lambda *given, **named: loads.append(given) or load_model(*given, **named))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        pipe = engine.Pipeline(tiny_model)
        for seed in (0, 1):
            pipe(labels=labels, **{**OPTIONS, "seed": seed, "steps": 1})
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert len(loads) == 1


def test_a_plan_says_what_the_command_says_and_prints_as_a_table(pipe, tiny_model):
    plan = pipe.plan(size=(512, 768), ranks=4, labels="example", steps=3, speed=10.0)
    line = [sys.executable, "-m", "engine.sample", "--model", str(tiny_model), "--size", "512x768", "--steps", "3"]
    line += ["--labels", "example", "--dry-run", "--json", "--ranks", "4"]
    said = subprocess.run(line, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True).stdout
    free = dict.fromkeys(("memory_free", "disk_free"))  # of the machine, from one moment to the next
    assert {**json.loads(json.dumps(plan.facts)), **free} == {**json.loads(said), **free}
    assert plan.seconds == plan.facts["evaluations_per_rank"]["max"] / 10
    table = dict(row.split("  ", 1) for row in repr(plan).splitlines())
    assert table["image"].strip() == "512 x 768 px"
    assert f"{plan.evaluations:,}" in table["evaluations"]
    assert "MiB" in table["memory a rank"]
    staged = replace(plan, facts={**plan.facts, "label_map": plan.facts})
    rows, each = dict(staged.rows()), plan.facts["evaluations_per_rank"]
    assert rows["ranks"] == f"4: {2 * each['min']:,} to {2 * each['max']:,} evaluations each", "of both stages"


def test_every_level_is_told_and_can_show_the_present_estimate(pipe, labels, image):
    told, shown = [], []

    def on_level(level, levels, preview):
        told.append((level, levels))
        shown.append(preview())

    made = pipe(labels=labels, on_level=on_level, **OPTIONS)
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert all(picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3 for picture in shown)
    assert len({picture.tobytes() for picture in shown}) == 3
    assert made.verify() == image.verify(), "looking changes nothing"


def test_a_callback_that_returns_true_stops_and_the_same_call_goes_on(pipe, labels, image, tmp_path):
    out = tmp_path / "field.zarr"
    with pytest.raises(engine.Stopped, match=r"holds a checkpoint; the same call goes on"):
        pipe(labels=labels, out=out, on_level=lambda level, levels, preview: level == 1, **OPTIONS)
    assert engine.open(out).state == "unfinished"
    told = []
    made = pipe(labels=labels, out=out, on_level=lambda level, *_: told.append(level), **OPTIONS)
    assert told[0] > 1
    assert made.verify() == image.verify()


def test_ctrl_c_leaves_a_checkpoint_and_python_its_own_handler(pipe, labels, image, tmp_path):
    out, before = tmp_path / "field.zarr", signal.getsignal(signal.SIGINT)

    def interrupt(level, levels, preview):
        if level == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match=r"holds a checkpoint; the same call goes on"):
        pipe(labels=labels, out=out, on_level=interrupt, **OPTIONS)
    assert signal.getsignal(signal.SIGINT) is before
    assert engine.open(out).state == "unfinished"
    assert pipe(labels=labels, out=out, **OPTIONS).verify() == image.verify()


def test_a_callback_that_fails_ends_the_call_with_its_own_error(pipe, labels):
    def fails(level, levels, preview):
        raise RuntimeError("the screen is made of cheese")

    with pytest.raises(RuntimeError, match="made of cheese"):
        pipe(labels=labels, on_level=fails, **OPTIONS)
    assert pipe(labels=labels, **OPTIONS).state == "finished", "and the next call is as good as the first"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cover": "diagonal"}, "`cover` is 'diagonal': expected one of shifted, random, strided"),
        ({"batch_size": 0}, "`batch_size` is 0: expected 1 or more"),
        ({"size": "100by100"}, "`size` is '100by100': expected HxW"),
        ({"eta": 0.5, "solver": "dpmpp2m"}, "`eta`|eta is 0.5"),
        (
            {"labels": np.zeros((4, 4), np.uint8)},
            r"label map array \(4, 4\) uint8 is 4 x 4 px but the canvas is 130 x 301 px; pass `size` 4x4",
        ),
        ({"labels": np.full((130, 301), 9, np.uint8)}, r"`labels` array \(130, 301\) uint8 has value 9 at row 0"),
        ({"labels": torch.zeros(130, 301, requires_grad=True)}, "`labels` is of type Tensor.*detach"),
        ({"labels": {"a": 1}}, "`labels` is of type dict: expected a file, or an array of numbers"),
        ({"seed": None}, "`seed` is None: expected a whole number"),
        ({"out": 5}, "`out` is 5: expected a path"),
    ],
)
def test_wrong_values_are_value_errors_that_name_the_field(pipe, tmp_path, options, said):
    with pytest.raises(ValueError, match=said):
        pipe(**{"out": tmp_path / "o.zarr", **OPTIONS, **options})
    assert not list(tmp_path.iterdir()), "nothing is left"


def test_keywords_that_mean_nothing_are_type_errors_with_the_way_out(pipe, tmp_path):
    make = functools.partial(engine.Pipeline, pipe.settings["model"])
    for call, options, said in (
        (pipe, {"stpes": 3}, "'stpes' is no option; did you mean 'steps'"),
        (pipe, {"model": "nowhere"}, r"'model' means nothing here; .*make another with engine.Pipeline"),
        (pipe, {"dry_run": True}, r"'dry_run' means nothing here; pipe.plan"),
        (pipe, {"ranks": 2}, r"'ranks' means nothing here; .*`comm`"),
        (pipe, {"on_level": 3}, "`on_level` is 3: expected a function"),
        (pipe.plan, {"measure": True}, r"'measure' means nothing here; pass `speed`"),
        (make, {"out": tmp_path / "o.zarr"}, r"'out' means nothing here; pass it to the call"),
        (make, {"preview": "o.png"}, r"'preview' means nothing here; pass it to the call"),
    ):
        with pytest.raises(TypeError, match=said):
            call(**options)
    for call, options, said in (
        (engine.Pipeline.from_pretrained, {"model": "nowhere"}, "nowhere is not there"),
        (engine.Pipeline, {"model": None}, "`model` is None: expected a path"),
        (engine.Pipeline, {"model": 5}, "`model` is 5: expected a path"),
        (engine.open, {"path": "nowhere.zarr"}, "is not there"),
        (engine.open, {"path": tmp_path}, r"is no output of engine\.sample$"),
        (pipe.plan, {"ranks": 0}, "`ranks` is 0: expected 1 or more"),
        (pipe.plan, {"speed": 0}, "`speed` is 0: expected evaluations a second above 0"),
        (pipe.plan, {"speed": "fast"}, "`speed` is 'fast': expected a number"),
    ):
        with pytest.raises(ValueError, match=said):
            call(**options)
    assert verify(tmp_path) == (1, f"error: {tmp_path} is no output of engine.sample")


def test_values_of_torch_and_numpy_are_taken_by_their_names(pipe):
    made = engine.Pipeline(pipe.settings["model"], dtype=torch.float32, device=torch.device("cpu"))
    assert made.settings["dtype"] == "float32"
    plan = made.plan(size=np.int64(256), steps=np.int32(3), labels=torch.ones(256, 256, dtype=torch.uint8))
    assert plan.facts["job"]["size"] == [256, 256]
    assert plan.facts["job"]["labels"] == "array"


def test_a_missing_package_is_named(image, monkeypatch):
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(ImportError, match="pip install xarray dask"):
        image.to_xarray()
    assert "docs/options.md" in engine.Pipeline.__doc__


def test_damage_is_named_and_never_read_as_zeros(pipe, labels, tmp_path):
    made = pipe(labels=labels, out=tmp_path / "field.zarr", **OPTIONS)
    want = made[...]
    shard = made.path / "0" / "c" / "0" / "0" / "0"
    shard.write_bytes(os.urandom(shard.stat().st_size))
    with pytest.raises(engine.Damaged, match=rf"^{shard} cannot be read .*the same job with `mend` makes it anew$"):
        made[:, 5, ::7]
    assert (made[:, 5, 130:] == want[:, 5, 130:]).all(), "other shards are read as ever"
    shard.unlink()
    with pytest.raises(engine.Damaged, match="array 0 shard rows 0:128 columns 0:128"):
        engine.open(made.path).verify()
    for key in (..., (0, -120), (slice(None), slice(0, 300, 60), [3, 7])):
        with pytest.raises(engine.Damaged, match=f"^{shard} is gone"):
            made[key]
    with pytest.raises(IndexError):
        made[3]
    label_shard = made.path / "labels" / "tissue" / "0" / "c" / "1" / "2"
    label_shard.unlink()
    with pytest.raises(engine.Damaged, match=f"^{label_shard} is gone"):
        made.labels[129, 300]
    again = pipe(labels=labels, out=made.path, mend=True, **OPTIONS)
    assert (again[...] == want).all(), "the way out that the message names"
    again.path.rename(tmp_path / "elsewhere.zarr")
    with pytest.raises(engine.Damaged, match=r"field\.zarr is gone"):
        again[0]


def test_an_unfinished_output_is_not_verified(pipe, labels, tmp_path):
    with pytest.raises(engine.Stopped):
        pipe(labels=labels, out=tmp_path / "field.zarr", on_level=lambda *_: True, **OPTIONS)
    left = engine.open(tmp_path / "field.zarr")
    assert not left[...].any(), "not written yet"
    with pytest.raises(ValueError, match=r"is unfinished; make the same call again"):
        left.verify()


# ---- what outlives a call -----------------------------------------------------------------------


def test_every_view_keeps_a_temporary_store_alive(pipe, labels, image):
    pytest.importorskip("xarray")
    made = [pipe(labels=labels, **OPTIONS)]
    path, want = made[0].path, image[...]
    child = os.fork()
    if not child:  # that lets go of the image
        made.clear()
        gc.collect()
        os._exit(0)
    os.waitpid(child, 0)
    assert (made[0][...] == want).all()
    with pytest.raises(TypeError, match="an image without `out` cannot be pickled"):
        pickle.dumps(made[0])
    views = {
        "dask": made[0].to_dask(),
        "xarray": made[0].to_xarray(),
        "labels": made[0].labels,
        "copy": copy.deepcopy(made[0]),
    }
    made.clear()
    while views:
        name, view = views.popitem()
        gc.collect()
        assert (np.asarray(view) == (labels if name == "labels" else want)).all(), name
        del view
    gc.collect()
    assert not path.parent.exists()


def test_a_change_of_folder_changes_nothing(tiny_model, labels, image, tmp_path, monkeypatch):
    (tmp_path / "model").symlink_to(tiny_model)
    np.save(tmp_path / "labels.npy", labels)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    pipe = engine.Pipeline.from_pretrained("model")
    line = launch(
        1, "--model", tmp_path / "model", *FLAGS, "--labels", tmp_path / "labels.npy", "--out", tmp_path / "c"
    )
    assert line.returncode == 0, line.stderr
    made = pipe(labels="labels.npy", out="field.zarr", on_level=lambda *_: os.chdir(tmp_path / "other"), **OPTIONS)
    assert (made[...] == image[...]).all()
    assert made.verify() == image.verify()
    assert made.path == tmp_path / "field.zarr"
    assert (pickle.loads(pickle.dumps(made.labels))[...] == labels).all()
    assert made.provenance["job"]["labels"] == "labels.npy", "as the command keeps it"
    assert made.provenance["job"]["model"] == "model"
    of_command = pipe(labels=labels, out="../c", **OPTIONS)
    assert of_command.provenance["identity"] == made.provenance["identity"]
    monkeypatch.chdir(tmp_path)
    opened = engine.open("field.zarr")
    monkeypatch.chdir(tmp_path / "other")
    assert (opened.to_dask().compute() == image[...]).all()
    assert not list((tmp_path / "other").iterdir())


def test_what_killed_processes_left_is_swept(pipe, labels, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left = [tmp_path / name for name in ("slidefield-image-dead", ".slidefield-inputs-dead", "slidefield-image-alive")]
    for folder in left:
        folder.mkdir()
        (folder / "rank-0.held").touch()
        os.utime(folder / "rank-0.held", (0, 0))
    with (left[2] / "rank-0.held").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        made = pipe(labels=labels, **OPTIONS)
    assert [folder.exists() for folder in left] == [False, False, True]
    assert made.state == "finished"

    class Torn:
        shape, dtype = (130, 301), np.dtype(np.uint8)

        def __array__(self, *_, **__):
            raise OSError("the disk is made of cheese")

    place = tmp_path / "new" / "folder" / "field.zarr"
    with pytest.raises(ValueError, match=r"`labels` is of type Torn, .*made of cheese"):
        pipe(labels=Torn(), out=place, **OPTIONS)
    assert not place.parent.exists()
    pipe(labels=labels, out=place, **OPTIONS)
    assert {path.name for path in tmp_path.iterdir()} == {"new", left[2].name, made.path.parent.name}
    assert [path.name for path in place.parent.parent.rglob("*slidefield-inputs*")] == []


def test_what_is_kept_of_a_job(image, pipe, tmp_path, labels):
    assert image.job.labels == "array"
    image.provenance["job"]["seed"] = 99
    assert image.job.seed == 5
    assert repr(image.labels) == f"<Array labels/tissue/0 130 x 301 uint8, {image.path}>"
    pictured = pipe(labels=labels, out=image.path, preview=tmp_path / "picture.png", **OPTIONS)
    assert (pickle.loads(pickle.dumps(pictured))[0] == image[0]).all()
    assert Image.open(tmp_path / "picture.png").size[0] >= 301
    loaded = pickle.loads(pickle.dumps(pipe))
    assert loaded.settings == pipe.settings
    assert not loaded._models


def test_one_call_at_a_time(pipe, labels, image):
    said = []

    def on_level(level, levels, preview):
        thread = threading.Thread(target=again)
        thread.start()
        thread.join()
        again()

    def again():
        with pytest.raises(RuntimeError, match="one call at a time per communicator") as refused:
            pipe(labels=labels, **OPTIONS)
        said.append(refused)

    assert pipe(labels=labels, on_level=on_level, **OPTIONS).verify() == image.verify()
    assert len(said) == 6


def test_a_stop_without_a_place_says_that_nothing_is_kept(pipe, labels):
    with pytest.raises(engine.Stopped, match="nothing is kept, for `out` is None"):
        pipe(labels=labels, on_level=lambda *_: True, **OPTIONS)


def test_the_callback_of_the_docs_runs(pipe, labels, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    block = next(
        b for b in re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.S) if "show" in b
    )
    exec(block, {"pipe": lambda size, **given: pipe(labels=labels, **{**OPTIONS, "steps": 5}, **given)})
    assert len(list(tmp_path.glob("*.png"))) == 1


def test_the_door_opens_without_torch():
    code = "import sys, engine; engine.__version__; sys.exit('torch' in sys.modules or 'zarr' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment()).returncode == 0


# ---- the loop in memory -------------------------------------------------------------------------


def gaussian(schedule, mean=0.3, std=0.5):
    """The exact estimate of a canvas of independent normal values, as a network that predicts the clean image."""
    alpha_bar = torch.tensor(schedule.alpha_bar)

    def network(x, t, inputs):
        a = alpha_bar[t].float()[:, None, None, None]
        return mean + a.sqrt() * std**2 / (a * std**2 + 1 - a) * (x - a.sqrt() * mean)

    return network


@pytest.mark.parametrize("cover", ["shifted", "random", "strided"])
def test_the_loop_in_memory_samples_a_known_distribution(cover):
    schedule = engine.Schedule.from_config({"beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"})
    latents = engine.sample_latents(
        gaussian(schedule), schedule, shape=(2, 200, 150), patch=32, cover=cover, solver="ddim", steps=50, seed=3
    )
    assert latents.shape == (2, 200, 150)
    assert abs(float(latents.mean()) - 0.3) < 0.02
    assert abs(float(latents.std()) - 0.5) < 0.03


def test_the_loop_in_memory_refuses_what_cannot_be():
    schedule = engine.Schedule.from_config({"prediction_type": "sample"})
    few = engine.LabelMap(1.0, np.zeros((3, 3), np.uint8))
    for options, said in (
        ({"shape": (2, 16, 100)}, "`shape`"),
        ({"shape": (2, 64)}, r"`shape` is \(2, 64\): expected channels"),
        ({"cover": "diagonal"}, "`cover`"),
        ({"solver": "magic"}, "`solver`"),
        ({"steps": 0}, "`steps` is 0"),
        ({"steps": 10**6}, "choose 1 to 1000"),
        ({"patch": 0}, "`patch` is 0"),
        ({"batch_size": 1.5}, "`batch_size` is 1.5"),
        ({"side": 0}, "`side` is 0"),
        ({"seed": -1}, "`seed` is -1"),
        ({"eta": 2}, "`eta` is 2"),
        ({"device": "gpu"}, "`device` is 'gpu'"),
        ({"cover": "strided", "stride": 33}, "it would leave gaps"),
        ({"stride": 3}, "the shifted cover has none"),
        ({"condition": few}, r"`condition` has labels of shape \(3, 3\)"),
        (
            {"network": lambda x, t, inputs: x[:, :1]},
            r"`network` returned array \(8, 1, 32, 32\) float32: expected \(8, 2",
        ),
        ({"network": lambda x, t, inputs: x.long()}, r"`network` returned .*int64: expected .*floating-point"),
        ({"network": lambda x, t, inputs: x / 0}, "`network` returned values that are not finite"),
        ({"network": lambda x, t, inputs: None}, "`network` returned an object of type NoneType"),
    ):
        given = {"network": gaussian(schedule), "schedule": schedule, "shape": (2, 64, 64), "patch": 32, **options}
        with pytest.raises(ValueError, match=said):
            engine.sample_latents(**given)
    numbers = {"shape": np.array([2, 64, 64]), "patch": np.int64(32), "steps": np.int32(2)}
    assert engine.sample_latents(gaussian(schedule), schedule, **numbers).shape == (2, 64, 64)
