"""engine.embed: patches of slides and folders through an extractor into a file that engine.sample reads."""

import hashlib
import json
import os
import re
import sys

import extractors
import h5py
import numpy as np
import pytest
import tifffile
import torch
from families import make_model
from launching import ROOT, execute, launch, refused, sha, tree
from PIL import Image

import engine.embed

IMAGE = np.random.default_rng(1).integers(0, 256, (200, 150, 3), np.uint8)
IMAGE[64:128, 64:128] = 255  # nothing but the slide's glass
SIDE = 32
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
WITH = ("--with", "extractors:colors", "--patch", SIDE)


def patches_of(image, side=SIDE, at=(0, 0)):
    """uint8 (h, w, side, side, 3), cut by other means than the engine's."""
    rows, columns = ((length - start) // side for length, start in zip(image.shape, at, strict=False))
    cut = image[at[0] : at[0] + rows * side, at[1] : at[1] + columns * side]
    return cut.reshape(rows, side, columns, side, 3).swapaxes(1, 2)


def expected(patches):
    lead = patches.shape[:-3]
    return extractors.colors(patches.reshape(-1, *patches.shape[-3:])).astype(np.float32).reshape(*lead, -1)


def embedded(out, ranks, *arguments):
    done = launch(ranks, *arguments, "--out", out, module="engine.embed")
    assert done.returncode == 0, done.stdout + done.stderr
    with h5py.File(out) as file:
        return {**{name: file[name][()] for name in file}, "facts": json.loads(file.attrs["slidefield"])}


@pytest.fixture
def slide(tmp_path):
    Image.fromarray(IMAGE).save(tmp_path / "slide.png")
    return tmp_path / "slide.png"


def test_all_patches_of_an_image_on_1_and_3_ranks(slide, tmp_path):
    made = embedded(tmp_path / "one.h5", 1, slide, *WITH, "--batch-size", 4)
    again = embedded(tmp_path / "three.h5", 3, slide, *WITH, "--batch-size", 4)
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "three.h5").read_bytes()
    assert made["embeddings"].shape == (6, 4, 12)
    assert made["embeddings"].dtype == np.float32
    assert (made["embeddings"] == expected(patches_of(IMAGE))).all()
    assert (made["positions"] == SIDE * np.moveaxis(np.indices((6, 4)), 0, -1)).all()
    facts = again["facts"]
    source = (ROOT / "tests" / "extractors.py").read_bytes()
    assert facts["extractor_hash"] == hashlib.sha256(f"extractors.py {len(source)}\n".encode() + source).hexdigest()
    assert (facts["extractor"], facts["grid"], facts["patch_px"]) == ("extractors:colors", [6, 4], SIDE)
    assert facts["source"] == str(slide)


def test_a_part_of_every_kind_of_image(tmp_path):
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", IMAGE.transpose(2, 0, 1))
    tifffile.imwrite(tmp_path / "mapped.tif", IMAGE, photometric="rgb")
    tifffile.imwrite(tmp_path / "tiles.tif", IMAGE, photometric="rgb", tile=(32, 32), compression="zlib")
    wanted = expected(patches_of(IMAGE, at=(41, 7)))[:3, :2]
    for name in ("a.png", "a.npy", "mapped.tif", "tiles.tif"):
        arguments = (tmp_path / name, "--with", "extractors:tensors", "--patch", SIDE, "--grid", "3x2", "--at", "41,7")
        made = embedded(tmp_path / f"{name}.h5", 1, *arguments)
        assert (made["embeddings"] == wanted).all(), name
        assert made["positions"][2, 1].tolist() == [41 + 64, 7 + 32]


def test_a_folder_is_a_list_or_a_grid_in_the_order_of_names_or_of_a_file(tmp_path):
    patches = patches_of(IMAGE)[:2, :3].reshape(6, SIDE, SIDE, 3)
    (tmp_path / "tiles" / "deeper").mkdir(parents=True)
    names = ["b.png", "c.png", "a.png", "d.tif", "deeper/b.png", "deeper/a.png"]
    for patch, name in zip(patches, names, strict=True):
        Image.fromarray(patch).save(tmp_path / "tiles" / name)
    (tmp_path / "list.txt").write_text("\n".join(names))
    np.save(tmp_path / "list.npy", np.array(names))
    by_name = embedded(tmp_path / "0.h5", 2, tmp_path / "tiles", *WITH, "--batch-size", 2)
    assert (by_name["embeddings"] == expected(patches)[[2, 0, 1, 3, 5, 4]]).all()
    assert by_name["names"].astype(str).tolist() == sorted(names)
    for listed in ("list.txt", "list.npy"):
        arguments = (tmp_path / "tiles", *WITH, "--list", tmp_path / listed, "--grid", "2x3")
        made = embedded(tmp_path / f"{listed}.h5", 1, *arguments)
        assert (made["embeddings"] == expected(patches).reshape(2, 3, 12)).all()


def torchscript(folder, **config):
    class Colors(torch.nn.Module):
        def forward(self, x):
            return x.mean(dim=(2, 3))

    folder.mkdir(exist_ok=True)
    torch.jit.trace(Colors(), torch.zeros(1, 3, 8, 8)).save(str(folder / "net.pt"))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_folder_of_torchscript_is_an_extractor(slide, tmp_path):
    plain = torchscript(tmp_path / "plain", mean=[0.1, 0.2, 0.3], std=[1, 2, 4])
    made = embedded(tmp_path / "a.h5", 1, slide, "--with", plain, "--patch", SIDE)
    means = (patches_of(IMAGE).mean((2, 3)) / 255 - [0.1, 0.2, 0.3]) / [1, 2, 4]
    np.testing.assert_allclose(made["embeddings"], means, atol=1e-5)
    timm = torchscript(
        tmp_path / "timm", pretrained_cfg={"mean": [0, 0, 0], "std": [1, 1, 1], "input_size": [3, 16, 16]}
    )
    small = embedded(tmp_path / "b.h5", 1, slide, "--with", timm, "--patch", SIDE)
    np.testing.assert_allclose(small["embeddings"], patches_of(IMAGE).mean((2, 3)) / 255, atol=0.02)
    assert small["facts"]["extractor_hash"] != made["facts"]["extractor_hash"]


@pytest.mark.runs
def test_sample_reads_the_grid_from_the_file(slide, tmp_path):
    pytest.importorskip("diffusers")
    model = make_model("large-image-diffusion", tmp_path / "large")
    features = tmp_path / "features.h5"
    embedded(features, 2, slide, *WITH, "--grid", "3x2")
    np.save(tmp_path / "same.npy", expected(patches_of(IMAGE))[:3, :2])
    own = ("--model", model, "--size", "192x128", "--steps", 2, "--preview", "none")
    shas = set()
    for name, ranks in ((features, 3), (f"{features}:/embeddings", 1), (tmp_path / "same.npy", 1)):
        done = launch(ranks, *own, "--embeddings", name, "--out", tmp_path / f"{len(shas)}.zarr", "--overwrite")
        assert done.returncode == 0, done.stderr
        shas.add(sha(tmp_path / "0.zarr"))
    assert len(shas) == 1
    line = refused(tmp_path, *own[:2], "--size", "128x192", "--embeddings", features, "--out", tmp_path / "no.zarr")
    assert all(words in line for words in ("3 x 2", "2 x 3", "--size 192x128"))


@pytest.mark.parametrize("library", ["tiffslide", "openslide"])
def test_a_slide_at_another_resolution(library, tmp_path, monkeypatch):
    """Only where the library is installed: a pyramid with its pixel size, as scanners write it."""
    pytest.importorskip(library)
    from engine.storage import slides

    monkeypatch.setattr(slides, "LIBRARIES", [pair for pair in slides.LIBRARIES if pair[0] == library])
    smooth = np.asarray(Image.fromarray(IMAGE).resize((600, 800), Image.Resampling.BICUBIC))
    halved = np.asarray(Image.fromarray(smooth).resize((300, 400), Image.Resampling.BOX))
    about = "Aperio Image Library v11\n800x600 [0,0 600x800] (64x64) |AppMag = 40|MPP = 0.25"
    options = {"photometric": "rgb", "tile": (64, 64), "compression": "zlib", "metadata": None}
    with tifffile.TiffWriter(tmp_path / "scan.svs") as file:
        file.write(smooth, description=about, subfiletype=0, **options)
        file.write(halved, description=about, subfiletype=1, **options)
    for asked in (("--magnification", "20"), ("--pixel-size", "0.5")):
        out = tmp_path / f"{asked[0]}.h5"
        arguments = [str(tmp_path / "scan.svs"), *map(str, WITH), "--out", str(out), *asked, "--at", "128,64"]
        assert engine.embed.main(arguments) == 0
        with h5py.File(out) as file:
            made, facts = file["embeddings"][()], json.loads(file.attrs["slidefield"])
        np.testing.assert_allclose(made, expected(patches_of(halved, at=(64, 32))), atol=0.02)
        assert (facts["slide_px_per_patch_px"], facts["pixel_size_um"]) == (2, 0.5)


# ---- what goes wrong ----------------------------------------------------------------------------


def wrong(folder, *arguments, ranks=2):
    """The one line that a command is refused with; nothing is written, and what was there stays."""
    before = {path: path.read_bytes() for path in folder.rglob("*.h5")}, tree(folder)
    done = launch(ranks, *arguments, module="engine.embed")
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert (done.returncode, len(lines)) == (1, 1), done.stderr + done.stdout
    assert lines[0].startswith("error: ")
    assert ({path: path.read_bytes() for path in folder.rglob("*.h5")}, tree(folder)) == before
    return lines[0]


def test_what_is_wrong_is_said_in_one_line_and_nothing_is_written(slide, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "tiles").mkdir()
    Image.fromarray(IMAGE[:SIDE, :SIDE]).save(tmp_path / "tiles" / "a.png")
    Image.fromarray(IMAGE[:40, :SIDE]).save(tmp_path / "tiles" / "b.png")
    (tmp_path / "names.txt").write_text("a.png\nz.png\n")
    np.save(tmp_path / "objects.npy", np.array(["a.png"], object))
    (tmp_path / "scan.svs").write_text("no slide")
    (tmp_path / "no.png").write_text("no picture")
    good = torchscript(tmp_path / "good", mean=[0, 0, 0], std=[1, 1, 1])
    (tmp_path / "no-config").mkdir()
    (tmp_path / "no-config" / "net.pt").write_bytes((good / "net.pt").read_bytes())
    (torchscript(tmp_path / "damaged", mean=[0, 0, 0], std=[1, 1, 1]) / "net.pt").write_text("x")
    torchscript(tmp_path / "flat", mean=[0, 0, 0], std=[1, 0, 1])
    tifffile.imwrite(tmp_path / "packed.tif", IMAGE, compression="zlib", tile=(32, 32), photometric="rgb")
    packed = bytearray((tmp_path / "packed.tif").read_bytes())
    packed[len(packed) // 2 : len(packed) // 2 + 4000] = bytes(4000)
    (tmp_path / "packed.tif").write_bytes(packed)
    os.mkfifo(tmp_path / "pipe")
    out, few = ("--out", tmp_path / "f.h5"), ("--batch-size", 5)
    for arguments, said in (
        ((slide, *WITH, "--with", "extractors:none", *out), ["--with extractors:none", "cannot be imported"]),
        ((slide, *WITH, "--with", "nowhere:colors", *out), ["nowhere", "PYTHONPATH"]),
        ((slide, *WITH, "--with", "extractors:not_one", *out), ["not a function"]),
        ((slide, *WITH, "--with", "extractors", *out), ["module:function"]),
        ((slide, *WITH, "--with", "extractors:one_for_all", *out), ["(12,)", "24 patches", "(24, D)"]),
        ((slide, *WITH, "--with", "extractors:codes", *out), ["int64", "floating-point"]),
        ((slide, *WITH, "--with", "extractors:ever_longer", *out, *few), ["5 numbers", "4 at patch 20"]),
        ((slide, *WITH, "--with", "extractors:not_finite", *out, *few), ["not finite", "row ", "column "]),
        ((slide, *WITH, "--with", "extractors:broken", *out), ["extractors:broken", "row 0, column 0", "Error"]),
        ((slide, *WITH, "--with", tmp_path / "empty", *out), ["empty", "no file of TorchScript"]),
        ((slide, *WITH, "--with", tmp_path / "no-config", *out), ["config.json", '"mean"']),
        ((slide, *WITH, "--with", tmp_path / "damaged", *out), ["net.pt", "no TorchScript"]),
        ((slide, *WITH, "--with", tmp_path / "flat", *out), ["std", "above 0"]),
        ((slide, *WITH, "--grid", "7x4", *out), ["--grid 7x4", "200 x 150", "6 x 4"]),
        ((slide, *WITH, "--at", "190,0", *out), ["no room", "200 x 150"]),
        ((slide, *WITH, "--at", "190", *out), ["--at", "'190'", "512,1024"]),
        ((slide, *WITH, "--grid", "x", *out), ["--grid", "'x'"]),
        ((slide, *WITH, "--pixel-size", 0.5, *out), ["--pixel-size 0.5", "slide.png"]),
        ((slide, *WITH, "--list", tmp_path / "names.txt", *out), ["--list", "folders"]),
        ((tmp_path / "tiles", *WITH, "--at", "0,0", *out), ["--at", "slides"]),
        ((tmp_path / "tiles", *WITH, *out), ["b.png", "40 x 32"]),
        ((tmp_path / "tiles", *WITH, "--grid", "3x1", *out), ["3x1", "2"]),
        ((tmp_path / "tiles", *WITH, "--list", tmp_path / "names.txt", *out), ["z.png"]),
        ((tmp_path / "tiles", *WITH, "--list", tmp_path / "objects.npy", *out), ["objects.npy", "text"]),
        ((tmp_path / "empty", *WITH, *out), ["no pictures"]),
        ((tmp_path / "none", *WITH, *out), ["none is not there"]),
        ((tmp_path / "scan.svs", *WITH, *out), ["scan.svs", "slide"]),
        ((tmp_path / "no.png", *WITH, *out), ["no.png", "cannot be read"]),
        ((slide, *WITH, "--out", tmp_path / "no" / "f.h5"), ["not a folder; make it"]),
        ((slide, *WITH, "--out", tmp_path / "tiles"), ["a folder"]),
        ((slide, *WITH, "--out", tmp_path / "f.dat"), ["f.dat", ".h5 or .hdf5"]),
        ((slide, *WITH, "--with", "extractors:leaves", *out), ["extractors:leaves failed", "SystemExit: 3"]),
        ((slide, *WITH, "--out", tmp_path / "pipe", "--overwrite"), ["pipe", "not a file"]),
        ((tmp_path / "packed.tif", *WITH, *out), ["packed.tif", "damaged"]),
        ((slide, *WITH, *out, "--threads", "99999999999"), ["--threads"]),
        ((slide, *WITH, *out, "--batchsize", 3), ["--batch-size"]),
    ):
        line = wrong(tmp_path, *arguments)
        assert all(words in line for words in said), line


def test_a_file_that_is_there_is_kept_unless_a_new_one_is_complete(slide, tmp_path):
    out = tmp_path / "f.h5"
    first = embedded(out, 1, slide, *WITH)
    assert "--overwrite" in wrong(tmp_path, slide, *WITH, "--out", out)
    late = ("--with", "extractors:ever_longer", "--patch", SIDE, "--batch-size", 5)
    wrong(tmp_path, slide, *late, "--out", out, "--overwrite", ranks=3)
    with h5py.File(tmp_path / "theirs.h5", "w") as file:
        file["feat_20x"] = np.zeros(3)
    assert "no file of engine.embed" in wrong(tmp_path, slide, *WITH, "--out", tmp_path / "theirs.h5", "--overwrite")
    again = embedded(out, 2, slide, *WITH, "--overwrite", "--grid", "2x2")
    assert (again["embeddings"] == first["embeddings"][:2, :2]).all()


def test_a_full_disk_is_said_in_the_systems_words_and_leaves_nothing(slide, tmp_path):
    """A limit on the size of files stands in for a full disk: the same error from the same write."""
    code = (
        "import resource, sys, engine.embed\n"
        "from mpi4py import MPI\n"  # which makes large files of its own as it starts
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))\n"
        "sys.exit(engine.embed.main(sys.argv[1:]))\n"
    )
    before, out = tree(tmp_path), tmp_path / "f.h5"
    done = execute(sys.executable, "-c", code, slide, *WITH, "--out", out)
    assert done.returncode == 1
    assert re.fullmatch(r"error: .*f\.h5: File too large\n", done.stderr), done.stderr
    assert tree(tmp_path) == before


@pytest.mark.parametrize("ranks", [1, 2])
def test_ctrl_c_ends_it_after_a_batch_and_leaves_what_was_there(slide, tmp_path, ranks):
    out = tmp_path / "f.h5"
    embedded(out, 1, slide, *WITH)
    before = out.read_bytes(), tree(tmp_path)
    arguments = ("--with", "extractors:asks_to_stop", "--patch", SIDE, "--batch-size", 3, "--out", out, "--overwrite")
    done = launch(ranks, slide, *arguments, module="engine.embed")
    assert done.returncode == 130
    assert re.search("stopping after this batch.*\n(.*\n)*stopped; .*f.h5 was not written", done.stderr)
    assert (out.read_bytes(), tree(tmp_path)) == before
