import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from launching import ROOT, command, environment
from PIL import Image

import engine
import engine.exports.single_image
from engine.export import main
from engine.exports.asked import Asked
from engine.exports.folder import export_folders
from engine.exports.target import check_export_file, whole_target
from engine.inputs.nuclei_scan import scan_nuclei
from engine.planning.geometry import Box
from engine.storage.create import create
from engine.storage.image_layout import ImageLayout
from engine.storage.layout import LabelArray
from engine.storage.output import Output
from engine.storage.set_layout import SetLayout

TISSUE = LabelArray("tissue", "uint8", (("unknown", (0, 0, 0)), ("tissue", (255, 0, 0))))
NUCLEI = LabelArray("nuclei", "uint32")


def export(out, folder, format=None):
    """The names of what folders of pictures hold."""
    export_folders(Asked(out, folder, format=format))
    return sorted(path.name for path in folder.iterdir())


def draw(*shape):
    return np.random.default_rng(len(shape)).integers(0, 256, shape, dtype=np.uint8)


def nuclei(*shape):
    """Two nuclei in every map but in those of one shard; one id is large, one nucleus is cut by the border."""
    instances = np.zeros(shape, np.uint32)
    instances[..., 3:9, 4:12] = 7
    instances[..., 10:, 2:5] = 4_000_000_000
    if len(shape) == 3:
        instances[2:4] = 0
    return instances


def make(path, layout, image, labels=None, state="finished", **arrays):
    """An output as engine.sample writes it, with further arrays."""
    create(path, layout, 0.5, {"identity": {"seed": 3}, "levels": 4})
    output = Output(path)
    for name, data in ((layout.image, image), (layout.labels, labels)):
        for box in layout.boxes() if data is not None else ():
            output.write(name, box, data[layout.index(box)])
    for name, data in arrays.items():
        zarr.create_array(str(path / name), data=data, chunks=(1, *data.shape[1:]))
    output.annotate(state=state)
    return path


def make_set(path, count=5, channels=3, label=NUCLEI, **extra):
    layout = SetLayout((20, 24), channels, shard=64, chunk=16, label=label, count=count, group=2)
    labels = None if label is None else nuclei(count, 20, 24) if label is NUCLEI else draw(count, 20, 24)
    return make(path, layout, draw(count, channels, 20, 24), labels, **extra)


def make_image(path, size=(100, 150), channels=3, label=TISSUE, shard=64, chunk=32):
    layout = ImageLayout(size, channels, shard, chunk, label)
    labels = None if label is None else nuclei(*size) if label is NUCLEI else draw(*size)
    return make(path, layout, draw(channels, *size), labels)


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def pixels(path):
    return np.asarray(Image.open(path))


# ---- sets ---------------------------------------------------------------------------------------


def test_a_set_of_nuclei_becomes_the_folders_of_the_nuclei_system(tmp_path):
    out, folder = make_set(tmp_path / "set.zarr"), tmp_path / "deep" / "er" / "set"
    assert export(out, folder) == ["cond", "export.json", "inst_masks", "labels", "samples"]
    names = [f"{i:06d}" for i in range(5)]
    expected = [f"{part}/{n}.{end}" for n in names for part, end in (("samples", "png"), ("labels", "png"))]
    expected += [f"{part}/{n}.{end}" for n in names for part, end in (("inst_masks", "tif"), ("cond", "npy"))]
    assert files(folder) == sorted([*expected, *(f"cond/{n}.png" for n in names), "export.json"])
    images, instances = draw(5, 3, 20, 24), nuclei(5, 20, 24)
    for i, name in enumerate(names):
        assert (pixels(folder / f"samples/{name}.png") == images[i].transpose(1, 2, 0)).all()
        assert (pixels(folder / f"labels/{name}.png") == 255 * (instances[i] > 0)).all()
        written = tifffile.imread(folder / f"inst_masks/{name}.tif")
        assert written.dtype == np.uint32
        assert (written == instances[i]).all()
        shown = pixels(folder / f"cond/{name}.png")
        condition = np.load(folder / f"cond/{name}.npy")
        assert shown.shape == (20, 3 * 24, 3)
        assert (shown[:, 48:] == 255 * condition[2, ..., None]).all(), "edges"
        for part, values in ((shown[:, :24], condition[0]), (shown[:, 24:48], condition[1])):
            for value, color in ((-1, [0, 0, 128]), (0, [128, 255, 128]), (1, [128, 0, 0])):
                assert (part[values == value] == color).all(), "as the system colours its maps"
    read = lambda box: instances[0][box.y0 : box.y1, box.x0 : box.x1]  # noqa: E731
    table = scan_nuclei(lambda image, box: read(box), (20, 24), border="keep")
    condition = table.maps(read, Box(0, 0, 20, 24), ("hv", "edges"))
    np.testing.assert_array_equal(np.load(folder / "cond/000000.npy"), condition)
    assert not np.load(folder / "cond/000002.npy").any()
    facts = json.loads((folder / "export.json").read_text())
    assert facts["source"] == str(out)
    assert facts["identity"] == {"seed": 3}
    assert [p.name for p in folder.parent.iterdir()] == ["set"], "nothing is left beside it"


def test_the_class_of_every_image_is_listed(tmp_path):
    label = LabelArray("classes")
    out = make_set(tmp_path / "set.zarr", label=label)
    assert export(out, tmp_path / "set") == ["classes.csv", "export.json", "labels", "samples"]
    first = draw(5, 20, 24)[:, 0, 0]
    lines = (tmp_path / "set/classes.csv").read_text().splitlines()
    assert lines == ["name,class", *(f"{i:06d},{value}" for i, value in enumerate(first))]


def test_images_by_class_are_a_folder_a_class_as_the_feature_aligned_system_writes_them(tmp_path, capsys):
    names = ("tumor", "stroma", "complex/mixed")
    classes = np.array([0, 2, 0, 1, 0], np.uint8)
    label = LabelArray("classes", "uint8", tuple((name, (1, 2, 3)) for name in names))
    layout = SetLayout((20, 24), 1, shard=64, chunk=16, label=label, count=5, group=2)
    images = draw(5, 1, 20, 24)
    make(tmp_path / "o.zarr", layout, images, np.broadcast_to(classes[:, None, None], (5, 20, 24)))
    assert main([str(tmp_path / "o.zarr"), str(tmp_path / "d"), "--layout", "classes"]) == 0
    expected = [("tumor", 0, 0), ("complex_mixed", 0, 1), ("tumor", 1, 2), ("stroma", 0, 3), ("tumor", 2, 4)]
    paths = {f"{folder}/image_{n}.png": index for folder, n, index in expected}
    assert files(tmp_path / "d") == sorted([*paths, "export.json"])
    for path, index in paths.items():
        with Image.open(tmp_path / "d" / path) as picture:
            assert picture.mode == "L"
        assert np.array_equal(pixels(tmp_path / "d" / path), images[index, 0])
    again = [str(tmp_path / "o.zarr"), str(tmp_path / "d")]
    assert main([*again, "--layout", "classes"]) == 1
    assert main([*again, "--layout", "classes", "--overwrite"]) == 0
    (tmp_path / "d" / "mine").mkdir()
    capsys.readouterr()
    assert main([*again, "--overwrite"]) == 1
    assert "holds mine" in capsys.readouterr().err


def test_folders_by_class_of_what_has_no_classes_are_refused(tmp_path, capsys):
    make_set(tmp_path / "set.zarr")
    make_image(tmp_path / "image.zarr")
    for name, said in (("set", "holds nuclei beside its images"), ("image", "holds one image")):
        assert main([str(tmp_path / f"{name}.zarr"), str(tmp_path / "d"), "--layout", "classes"]) == 1
        assert said in capsys.readouterr().err
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("colors", [None, "image.png"])
def test_a_condition_is_what_the_model_was_given_but_for_colours_of_an_image(tmp_path, colors):
    job = {"nucleus_color": [255, 0, 0], "background_color": [0, 0, 255], "colors": colors}
    out = make_set(tmp_path / "set.zarr")
    Output(out).annotate(job=job, condition_channels=["hv", "color", "edges"])
    export(out, tmp_path / "set")
    condition, instances = np.load(tmp_path / "set/cond/000000.npy"), nuclei(5, 20, 24)[0]
    assert condition.shape == (3 if colors else 6, 20, 24)
    if colors is None:
        assert (condition[2] == np.where(instances > 0, 1, -1)).all()
        assert (condition[4] == np.where(instances > 0, -1, 1)).all()


def test_grey_images_and_label_maps_are_grey_files(tmp_path):
    out = make_set(tmp_path / "set.zarr", channels=1, label=TISSUE)
    assert export(out, tmp_path / "png") == ["export.json", "labels", "samples"]
    assert export(out, tmp_path / "tiff", "tiff") == ["export.json", "labels", "samples"]
    for i in range(5):
        for folder, expected in (("samples", draw(5, 1, 20, 24)[i, 0]), ("labels", draw(5, 20, 24)[i])):
            assert (pixels(tmp_path / f"png/{folder}/{i:06d}.png") == expected).all()
            assert (tifffile.imread(tmp_path / f"tiff/{folder}/{i:06d}.tif") == expected).all()


def test_colour_tiff_is_colour(tmp_path):
    export(make_set(tmp_path / "set.zarr"), tmp_path / "set", "tiff")
    with tifffile.TiffFile(tmp_path / "set/samples/000001.tif") as file:
        assert file.pages[0].photometric == tifffile.PHOTOMETRIC.RGB
        assert (file.asarray() == draw(5, 3, 20, 24)[1].transpose(1, 2, 0)).all()
    assert (pixels(tmp_path / "set/samples/000001.tif") == draw(5, 3, 20, 24)[1].transpose(1, 2, 0)).all()


def test_a_set_is_read_one_shard_at_a_time(tmp_path, monkeypatch):
    asked = []
    original = Output.read
    monkeypatch.setattr(Output, "read", lambda self, name, box: asked.append(box) or original(self, name, box))
    export(make_set(tmp_path / "set.zarr", label=None), tmp_path / "set")
    assert [(box.y0, box.y1) for box in asked] == [(0, 2), (2, 4), (4, 5)]


# ---- one image ----------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_a_large_image_is_a_png_with_its_label_map(tmp_path, channels):
    out = make_image(tmp_path / "image.zarr", channels=channels)
    assert export(out, tmp_path / "image") == ["export.json", "labels", "samples"]
    expected = draw(channels, 100, 150)
    expected = expected[0] if channels == 1 else expected.transpose(1, 2, 0)
    assert (pixels(tmp_path / "image/samples/000000.png") == expected).all()
    assert (pixels(tmp_path / "image/labels/000000.png") == draw(100, 150)).all()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("chunk", [32, 8])
def test_a_large_image_is_a_tiff_in_tiles_with_the_size_of_a_pixel(tmp_path, channels, chunk):
    out = make_image(tmp_path / "image.zarr", channels=channels, chunk=chunk)
    export(out, tmp_path / "image", "tiff")
    expected = draw(channels, 100, 150)
    with tifffile.TiffFile(tmp_path / "image/samples/000000.tif") as file:
        page = file.pages[0]
        assert file.is_bigtiff
        assert (page.tilelength, page.tilewidth) == (max(chunk, 16),) * 2
        assert page.get_resolution("MICROMETER") == (2, 2)
        assert (file.asarray() == (expected[0] if channels == 1 else expected.transpose(1, 2, 0))).all()
    assert (tifffile.imread(tmp_path / "image/labels/000000.tif") == draw(100, 150)).all()


def test_what_is_too_large_for_png_is_tiff_and_read_in_rows_of_tiles(tmp_path, monkeypatch):
    monkeypatch.setattr(engine.exports.single_image, "LARGEST_PNG", 149)
    asked = []
    original = Output.read
    monkeypatch.setattr(Output, "read", lambda self, name, box: asked.append(box) or original(self, name, box))
    export(make_image(tmp_path / "image.zarr", label=None), tmp_path / "image")
    assert files(tmp_path / "image") == ["export.json", "samples/000000.tif"]
    assert asked == [Box(y, 0, min(y + 32, 100), 150) for y in (0, 32, 64, 96)]


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_nuclei_of_a_large_image_are_a_mask_and_an_instance_map(tmp_path, kind):
    out = make_image(tmp_path / "image.zarr", label=NUCLEI)
    assert export(out, tmp_path / "image", kind) == ["export.json", "inst_masks", "labels", "samples"]
    instances = tifffile.imread(tmp_path / "image/inst_masks/000000.tif")
    assert instances.dtype == np.uint32
    assert (instances == nuclei(100, 150)).all()
    mask = pixels(tmp_path / f"image/labels/000000.{'png' if kind == 'png' else 'tif'}")
    assert mask.dtype == np.uint8
    assert (mask == 255 * (nuclei(100, 150) > 0)).all()


# ---- refusals -----------------------------------------------------------------------------------


def refused(capsys, *arguments):
    """What the command is refused with: one line."""
    assert main([str(a) for a in arguments]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_the_command_exports_or_says_why_not(tmp_path):
    out = make_set(tmp_path / "set.zarr")
    command = [sys.executable, "-m", "engine.export", str(out), str(tmp_path / "set"), "--format", "tiff"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'set'} holds cond, export.json, inst_masks, labels, samples\n"
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "is not empty; pass --overwrite" in done.stderr
    assert done.stderr.count("\n") == 1


def test_what_is_no_finished_output_is_refused(tmp_path, capsys):
    assert "is not there; give" in refused(capsys, tmp_path / "no.zarr", tmp_path / "x")
    (tmp_path / "other").mkdir()
    assert "is no output of engine.sample" in refused(capsys, tmp_path / "other", tmp_path / "x")
    zarr.create_array(str(tmp_path / "other.zarr"), shape=(4,), dtype="u1")
    assert "is no output of engine.sample" in refused(capsys, tmp_path / "other.zarr", tmp_path / "x")
    out = make_set(tmp_path / "half.zarr", state="unfinished")
    assert "is unfinished; give its command again" in refused(capsys, out, tmp_path / "x")
    out = make_set(tmp_path / "four.zarr", channels=4)
    assert "has 4 channels; PNG and TIFF" in refused(capsys, out, tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("maker", [make_set, make_image])
@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_a_missing_or_damaged_shard_is_not_exported_black(tmp_path, capsys, maker, kind):
    out = maker(tmp_path / "out.zarr")
    output = Output(out)
    shard = output.shard_file(output.layout.image, output.layout.boxes()[-1])
    shard.write_bytes(b"x" * shard.stat().st_size)
    said = refused(capsys, out, tmp_path / "x", "--format", kind)
    assert f"{shard} cannot be read" in said, "and not the first shard of a box of several"
    assert said.count("engine.verify") == 1
    shard.unlink()
    assert "lacks a shard of" in refused(capsys, out, tmp_path / "x", "--format", kind)
    assert [p.name for p in tmp_path.iterdir()] == ["out.zarr"], "nothing half written is left"


def test_a_folder_that_holds_something_is_left_alone(tmp_path, capsys):
    out = make_set(tmp_path / "set.zarr")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    assert "is not empty" in refused(capsys, out, folder)
    said = refused(capsys, out, folder, "--overwrite")
    assert "holds thesis.tex, which no export wrote" in said
    assert files(folder) == ["thesis.tex"]
    export(out, tmp_path / "mine")
    (tmp_path / "mine" / "samples" / "notes.txt").write_text("looked at")
    said = refused(capsys, out, tmp_path / "mine", "--overwrite")
    assert "holds samples/notes.txt, which no export wrote" in said
    shutil.rmtree(tmp_path / "mine")
    (tmp_path / "dataset" / "images").mkdir(parents=True)
    (tmp_path / "dataset" / "images" / "a.png").write_text("a dataset has such folders too")
    assert "holds images/a.png" in refused(capsys, out, tmp_path / "dataset", "--overwrite")
    shutil.rmtree(tmp_path / "dataset")
    assert "is a file" in refused(capsys, out, folder / "thesis.tex")
    assert "lie in one another" in refused(capsys, out, out / "png")
    assert "lie in one another" in refused(capsys, out, tmp_path, "--overwrite")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "set.zarr"]


def test_an_earlier_export_is_replaced_whole_and_only_when_asked(tmp_path, capsys):
    folder = tmp_path / "set"
    folder.mkdir()
    export(make_set(tmp_path / "five.zarr"), folder)
    four = make_set(tmp_path / "four.zarr", count=4, label=None)
    assert "is not empty" in refused(capsys, four, folder)
    assert main([str(four), str(folder), "--overwrite"]) == 0
    assert files(folder) == ["export.json", *(f"samples/{i:06d}.png" for i in range(4))]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["five.zarr", "four.zarr", "set"]
    link = tmp_path / "link"
    link.symlink_to(folder)
    assert main([str(four), str(link), "--overwrite"]) == 0
    assert link.is_symlink()


def test_what_the_target_and_its_options_ask_for_is_one_kind_or_refused(tmp_path, capsys):
    out = make_image(tmp_path / "image.zarr")
    said = refused(capsys, out, tmp_path / "slide.ndpi")
    assert "nothing is exported as .ndpi; TARGET is " in said
    for name in ("slide.h5", "slide.parquet"):
        assert f"nothing is exported as .{name[6:]}; " in refused(capsys, out, tmp_path / name)
    assert "DIR, folders of pictures" in said
    said = refused(capsys, out, tmp_path / "files", "--level", "1")
    assert "--level is not for DIR, folders of pictures, which takes --format, --layout" in said
    for region, why in (("0:9", "it is no region"), ("5:5,0:9", "it is empty"), ("-:5,0:9", "it is no region")):
        said = refused(capsys, out, tmp_path / "files", f"--region={region}")
        assert f"--region: '{region}': {why}" in said
    whole = make(tmp_path / "whole.zarr", ImageLayout((100, 150), 3, 256, 64, coarsest=1024), draw(3, 100, 150))
    said = refused(capsys, whole, tmp_path / "o.png", "--region=-1:5,0:9")
    assert "--region -1:5,0:9 passes the image's edge" in said
    assert "invalid int value: 'x'" in refused(capsys, out, tmp_path / "files", "--level", "x")
    assert "--format 'bmp' is not for folders" in refused(capsys, out, tmp_path / "files", "--format", "bmp")
    assert {p.name for p in tmp_path.iterdir()} == {"image.zarr", "whole.zarr"}
    (tmp_path / "run.final").mkdir()
    assert main([str(out), str(tmp_path / "run.final")]) == 0
    assert (tmp_path / "run.final" / "samples").is_dir()


def test_what_was_put_in_a_target_meanwhile_stays(tmp_path):
    """The check that was made at first is made again before anything is replaced."""
    folder, file = tmp_path / "folder", tmp_path / "a.png"

    def check():
        if (folder / "precious.txt").exists():
            raise ValueError("folder is not empty")

    def late_folder():
        with whole_target(folder, check) as new:
            new.mkdir()
            folder.mkdir()
            (folder / "precious.txt").write_text("mine")

    def late_file():
        with whole_target(file, partial(check_export_file, Asked(tmp_path / "out.zarr", file))) as new:
            new.write_text("late")
            file.write_text("first")  # of another export

    with pytest.raises(ValueError, match="not empty"):
        late_folder()
    assert (folder / "precious.txt").read_text() == "mine"
    with pytest.raises(ValueError, match="pass `overwrite`"):
        late_file()
    assert file.read_text() == "first"
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "a.png"}


def test_an_export_that_fails_between_two_renames_puts_the_earlier_one_back(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "earlier.txt").write_text("kept")
    with pytest.raises(FileNotFoundError), whole_target(folder, lambda: None):
        pass  # nothing was made: what is there has been moved away by then
    assert (folder / "earlier.txt").read_text() == "kept"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.runs
@pytest.mark.parametrize(("ranks", "number"), [(1, signal.SIGTERM), (1, signal.SIGINT), (2, signal.SIGTERM)])
def test_an_export_that_is_ended_by_a_signal_leaves_nothing(tmp_path, ranks, number):
    layout = ImageLayout((1000, 1000), 3, 1024, 1024, coarsest=1024)
    out, target = make(tmp_path / "image.zarr", layout, draw(3, 1000, 1000)), tmp_path / "tiles"
    words = command(ranks, out, target, "--tiles", 8, module="engine.export")[0 if ranks > 1 else 3 :]
    as_in_a_terminal = partial(signal.signal, number, signal.SIG_DFL)  # a test in the background ignores Ctrl-C
    options = {"cwd": ROOT, "env": environment(), "stderr": subprocess.PIPE, "preexec_fn": as_in_a_terminal}
    with subprocess.Popen(words, text=True, **options) as process:
        while not list(tmp_path.glob(".tiles.*.exporting/new/tiles/all/*.png")):
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.01)
        process.send_signal(number)
        said = process.communicate(timeout=60)[1]
    assert process.returncode != 0
    assert said.splitlines()[0] == "interrupted"
    assert len(said.splitlines()) == 1 or ranks > 1, said  # mpiexec says something of its own
    assert [path.name for path in tmp_path.iterdir()] == ["image.zarr"]


def test_targets_that_are_no_files_and_names_as_long_as_there_are(tmp_path):
    (loop := tmp_path / "loop.png").symlink_to(loop)
    os.mkfifo(pipe := tmp_path / "pipe.png")
    (plain := tmp_path / "plain").write_text("")
    for target, expected in ((loop, "leads to itself"), (pipe, "is a pipe"), (plain / "x.png", "is not a folder")):
        with pytest.raises(ValueError, match=expected):
            check_export_file(Asked(tmp_path / "out.zarr", target, overwrite=True))
    longest = tmp_path / ("x" * 251 + ".png")
    with whole_target(longest, lambda: None) as new:
        new.write_text("made")
    assert longest.read_text() == "made"


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ({"overwrite": "no"}, "give True or False"),
        ({"labels": np.array([1, 0])}, "give True or False"),
        ({"layout": "x"}, "known: folders, pairs, classes"),
        ({"region": Box(5, 5, 5, 5)}, "give rows and columns"),
        ({"region": (0, 10, 0, 10)}, "give rows and columns"),
        ({"tolerance": "near"}, "tolerance"),
    ],
    ids=str,
)
def test_options_from_python_are_checked_as_those_of_the_command(option, expected):
    with pytest.raises(ValueError, match=expected):
        Asked(Path("a.zarr"), Path("b"), **option)
    asked = Asked(Path("a.zarr"), Path("b"), tolerance="1.5", level=np.int64(1))
    assert (asked.tolerance, asked.level) == (1.5, 1)


def test_a_box_of_several_shards_names_the_damaged_one(tmp_path):
    output = Output(make_image(tmp_path / "out.zarr"))
    shard = output.shard_file("0", output.layout.boxes()[-1])
    shard.write_bytes(b"x" * shard.stat().st_size)
    with pytest.raises(ValueError, match=f"{shard} cannot be read"):
        output.read("0", Box(10, 10, 90, 140))


def test_a_folder_or_an_empty_file_in_a_shards_place_is_not_read_as_zeros(tmp_path):
    layout = ImageLayout((100, 150), 3, 64, 32, TISSUE)
    out = make(tmp_path / "o.zarr", layout, draw(3, 100, 150), draw(100, 150), state="unfinished")
    folder, empty, absent = (out / "0/c/0/0/0", out / "0/c/0/0/1", out / "0/c/0/1/0")
    for file in (folder, empty, absent):
        file.unlink()
    folder.mkdir()
    empty.touch()
    output, image = Output(out), engine.open(out)
    for file, box in ((folder, Box(0, 0, 9, 9)), (empty, Box(60, 100, 70, 110))):
        why = rf"{file} cannot be read \(it is empty, or no file\); remove it"
        with pytest.raises(ValueError, match=why):
            output.read("0", box)
        with pytest.raises(ValueError, match=why):
            output.read_part(0, box)
        with pytest.raises(engine.Damaged, match=why):
            image[:, box.y0 : box.y1, box.x0 : box.x1]
    assert not image[:, 64:, :64].any(), "what an unfinished output has not got yet"
    assert (image[:, 64:, 64:] == draw(3, 100, 150)[:, 64:, 64:]).all()
