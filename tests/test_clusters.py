"""engine.embed --cluster: styles of pictures as a list, a sheet and folders that engine.train reads."""

import csv
import subprocess
import sys

import h5py
import numpy as np
import pytest
from launching import ROOT, environment, launch, tree
from PIL import Image

from engine.embedding.appearance import appearance, densities
from engine.embedding.clusters import Clustering, find_clusters

SIDE, EACH = 32, 12
STYLES = {"pale": ((235, 200, 220), 4), "dark": ((110, 60, 140), 4), "rough": ((200, 150, 190), 40)}
MORE = '{"source": "/", "patch_px": 8, "grid": [3, 4], "at_px": [0, 0], "slide_px_per_patch_px": 1, "pixel_size_um": 1}'
APPEARANCE = ("--with", "appearance", "--patch", SIDE)


def picture(style, number):
    """uint8 (SIDE, SIDE, 3): one colour with noise, a little other in each picture."""
    (color, noise), rng = STYLES[style], np.random.default_rng((number, *style.encode()))
    pixels = np.array(color) + rng.normal(0, 2, 3) + noise * rng.standard_normal((SIDE, SIDE, 1))
    return pixels.clip(0, 255).astype(np.uint8)


def write_dataset(folder):
    """A dataset as the nuclei system has it, of three styles in turn; the style of each stem."""
    for part in ("images", "inst_masks", "bin_masks"):
        (folder / part).mkdir(parents=True)
    styles = {}
    for number in range(3 * EACH):
        style, stem = list(STYLES)[number % 3], f"p{number:02d}"
        styles[stem] = style
        instances = np.zeros((SIDE, SIDE), np.uint8)
        instances[8:20, 8:20] = 1
        Image.fromarray(picture(style, number)).save(folder / "images" / f"{stem}.png")
        Image.fromarray(instances).save(folder / "inst_masks" / f"{stem}.tif")
        Image.fromarray(instances * 255).save(folder / "bin_masks" / f"{stem}.png")
    return styles


def clustered(ranks, *arguments):
    pytest.importorskip("sklearn")
    done = launch(ranks, *arguments, module="engine.embed")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rows(folder):
    with (folder / "clusters.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def stems(folder):
    return sorted(path.stem for path in folder.iterdir())


@pytest.mark.parametrize("how", ["3", "auto"])
def test_three_styles_are_three_clusters_on_1_and_3_ranks(how, tmp_path):
    styles = write_dataset(tmp_path / "data")
    for ranks in (1, 3):
        out = ("--out", tmp_path / f"{ranks}.h5", "--batch-size", 5)
        said = clustered(ranks, tmp_path / "data", *APPEARANCE, *out, "--cluster", how)
        assert "3 clusters of 12, 12, 12 patches, silhouette" in said
    one, three = tmp_path / "1-clusters", tmp_path / "3-clusters"
    for name in ("clusters.csv", "clusters.png"):
        assert (one / name).read_bytes() == (three / name).read_bytes()
    assert [row["picture"] for row in rows(one)] == [f"images/{stem}.png" for stem in sorted(styles)]
    # the first picture begins the first of three clusters of one size, the second the next
    assert [row["cluster"] for row in rows(one)] == ["0", "1", "2"] * EACH
    assert sorted(path.name for path in one.iterdir()) == ["0", "1", "2", "clusters.csv", "clusters.png"]
    for number, style in enumerate(STYLES):
        own = sorted(stem for stem in styles if styles[stem] == style)
        for part in ("images", "inst_masks", "bin_masks"):
            assert stems(one / str(number) / part) == own
    link = one / "1" / "inst_masks" / "p01.tif"
    assert link.is_symlink()
    assert link.resolve() == (tmp_path / "data" / "inst_masks" / "p01.tif").resolve()
    sheet = np.asarray(Image.open(one / "clusters.png"))
    means = [sheet[row * 100 + 10 : row * 100 + 90, 100:1000].mean((0, 1)) for row in range(3)]
    assert means[0].mean() > means[2].mean() > means[1].mean()  # pale, rough, dark


def test_a_file_of_embeddings_is_clustered_without_its_extractor(tmp_path):
    """Also one of another program; distances are to the clusters' means, and what lies alone belongs to none."""
    rng = np.random.default_rng(0)
    centres = np.repeat([[0.0, 0], [100, 0], [0, 100]], 30, 0)
    values = np.concatenate([centres + rng.normal(0, 1, (90, 2)), [[400, 400]]]).astype(np.float32)
    with h5py.File(tmp_path / "theirs.h5", "w") as file:
        file["feat"] = values
    said = clustered(2, f"{tmp_path / 'theirs.h5'}:/feat", "--cluster", "auto", "--cluster-folders", tmp_path / "auto")
    assert "3 clusters of 30, 30, 30 patches, 1 in none of them" in said
    assert "the list alone" in said
    found = rows(tmp_path / "auto")
    assert [int(row["cluster"]) for row in found] == [0] * 30 + [1] * 30 + [2] * 30 + [-1]
    standard = (values - values.mean(0)) / values.std(0)
    distances = [np.linalg.norm(standard[i] - standard[:30].mean(0)) for i in range(30)]
    np.testing.assert_allclose([float(row["distance"]) for row in found[:30]], distances, rtol=1e-3)
    assert float(found[90]["distance"]) > 0.5
    assert set(tree(tmp_path / "auto")) == {"clusters.csv"}


def test_both_splits_of_a_dataset_and_label_maps_beside_images_go_along(tmp_path):
    data = tmp_path / "data"
    write_dataset(data / "MoNuSegTrainingData")
    write_dataset(data / "MoNuSegTestData")
    clustered(1, data, *APPEARANCE, "--out", tmp_path / "a.h5", "--cluster", 3)
    for split in ("MoNuSegTrainingData", "MoNuSegTestData"):
        assert len(stems(tmp_path / "a-clusters" / "2" / split / "inst_masks")) == EACH
    images = data / "MoNuSegTestData" / "images"
    clustered(1, images, *APPEARANCE, "--out", tmp_path / "b.h5", "--cluster", 3)
    assert len(stems(tmp_path / "b-clusters" / "0" / "inst_masks")) == EACH
    for stem in ("p00", "p01", "p04"):
        (images / f"{stem}_mask.png").write_bytes((images / f"{stem}.png").read_bytes())
    (tmp_path / "flat").mkdir()
    for path in images.glob("*"):
        path.rename(tmp_path / "flat" / path.name)
    clustered(1, tmp_path / "flat", *APPEARANCE, "--out", tmp_path / "c.h5", "--cluster", 3)
    assert {"p01.png", "p01_mask.png", "p04_mask.png"} < {p.name for p in (tmp_path / "c-clusters" / "1").iterdir()}
    with h5py.File(tmp_path / "c.h5") as file:
        assert len(file["names"]) == 3 * EACH


def test_the_patches_of_a_slide_are_listed_by_row_and_column(tmp_path):
    slide = np.concatenate([np.concatenate([picture(s, n) for n in range(4)], 1) for s in ("pale", "dark")], 0)
    Image.fromarray(slide).save(tmp_path / "slide.png")
    clustered(1, tmp_path / "slide.png", *APPEARANCE, "--out", tmp_path / "s.h5", "--cluster", 2)
    found = rows(tmp_path / "s-clusters")
    assert [(row["row"], row["column"], row["cluster"]) for row in found][3:5] == [("0", "3", "0"), ("1", "0", "1")]
    assert set(tree(tmp_path / "s-clusters")) == {"clusters.csv", "clusters.png"}


@pytest.mark.runs
def test_a_cluster_is_trained_on_from_the_network_of_all(tmp_path):
    write_dataset(tmp_path / "data")
    clustered(1, tmp_path / "data", *APPEARANCE, "--out", tmp_path / "f.h5", "--cluster", 3)
    small = ("--window", 16, "--model-channels", 32, "--channel-mult", "1,1", "--blocks", 1, "--attention", 8)
    short = (*small, "--steps", 1, "--batch-size", 2, "--threads", 1)
    for data, out, more in (
        (tmp_path / "data", tmp_path / "all", ()),
        (tmp_path / "f-clusters" / "1", tmp_path / "style", ("--init", tmp_path / "all", "--drop", 0.2)),
    ):
        done = launch(1, "nuclei", "--data", data, "--out", out, *short, *more, module="engine.train")
        assert done.returncode == 0, done.stderr
    assert f"{EACH} images" in done.stdout


def test_appearance_is_of_colour_and_texture():
    flat = np.full((1, 16, 16, 3), 255, np.uint8)
    assert appearance(flat).shape == (1, 27)
    assert np.abs(densities(flat[0])).max() < 1e-6
    from engine.embedding.appearance import STAINS

    for stain, vector in enumerate(STAINS):
        unit = np.array(vector) / np.linalg.norm(vector)
        pixel = np.rint(256 * 10 ** (-0.8 * unit) - 1).astype(np.uint8)
        np.testing.assert_allclose(densities(pixel[None, None])[:, 0, 0], 0.8 * np.eye(3)[stain], atol=0.02)
    fine, coarse = np.indices((16, 16)).sum(0) % 2, np.indices((16, 16)).sum(0) // 4 % 2
    boards = np.stack([np.repeat(255 * board[..., None], 3, -1) for board in (fine, coarse)]).astype(np.uint8)
    numbers = appearance(boards)
    np.testing.assert_allclose(numbers[0, :6], numbers[1, :6], atol=1e-5)  # the same shades
    assert numbers[0, 15] > numbers[1, 15]  # more edges at 1 px
    assert numbers[0, 18] < numbers[1, 18]  # fewer at 2 px
    assert appearance(boards[:, :1, :1]).shape == (2, 15)


def test_k_means_and_hdbscan_are_functions_of_the_embeddings_and_the_seed():
    pytest.importorskip("sklearn")
    values = np.random.default_rng(3).standard_normal((200, 60)).astype(np.float32)
    values[:, :30] += np.repeat([[0], [5]], 100, 0)
    for how in (Clustering(2), Clustering(None), Clustering(7, seed=1)):
        first, again = (find_clusters(values, "values", how, str) for _ in range(2))
        assert (first.of_patches == again.of_patches).all()
        assert (first.distances == again.distances).all()
        sizes = [size for number, size in first.sizes() if number >= 0]
        assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) == 7


def test_umap_where_it_is_installed(tmp_path):
    pytest.importorskip("umap")
    write_dataset(tmp_path / "data")
    options = ("--cluster", "auto", "--reduce", "umap", "--cluster-least", 8)
    said = clustered(1, tmp_path / "data", *APPEARANCE, "--out", tmp_path / "f.h5", *options)
    assert "3 clusters of 12, 12, 12" in said


# ---- what goes wrong ----------------------------------------------------------------------------


def wrong(folder, *arguments, ranks=2):
    """The one line that a command is refused with; all that was there stays as it was, and nothing else is there."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}, tree(folder)
    done = launch(ranks, *arguments, module="engine.embed")
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert (done.returncode, len(lines)) == (1, 1), done.stderr + done.stdout
    assert lines[0].startswith("error: ")
    assert ({path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}, tree(folder)) == before
    return lines[0]


def test_what_is_wrong_is_said_in_one_line_and_nothing_is_lost(tmp_path):
    pytest.importorskip("sklearn")
    data = tmp_path / "data"
    write_dataset(data)
    (tmp_path / "one").mkdir()
    Image.fromarray(picture("pale", 0)).save(tmp_path / "one" / "a.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "theirs" / "deep").mkdir(parents=True)
    (tmp_path / "theirs" / "deep" / "model.txt").write_text("mine")
    (tmp_path / "theirs" / "clusters.csv").write_text("picture,cluster,distance\n")
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["feat"] = rng.standard_normal((20, 4)).astype(np.float32)
        file["same"] = np.ones((20, 4), np.float32)
        file["few"] = np.repeat(rng.standard_normal((2, 4)).astype(np.float32), 10, 0)
        file["bad"] = np.where(np.arange(20)[:, None] == 7, np.nan, file["feat"][()])
        file["codes"] = np.zeros((20, 4), int)
        file["flat"] = np.zeros(20, np.float32)
        file.create_dataset("large", (15_000_000, 384), np.float32, chunks=(1000, 384))
    for name, text in (("lost", '{"source": "/"}'), ("list", "[1]"), ("more", MORE)):
        with h5py.File(tmp_path / f"{name}.h5", "w") as made:
            made["embeddings"] = rng.standard_normal((20, 4)).astype(np.float32)
            made.attrs["slidefield"] = text
            made.attrs["slidefield_dataset"] = "embeddings"
    (tmp_path / "broken.h5").write_text("no HDF5")
    file, out, new = tmp_path / "f.h5", ("--out", tmp_path / "new.h5"), ("--cluster-folders", tmp_path / "new")
    for arguments, said in (
        ((data, *APPEARANCE, *out, "--cluster", 37), ["--cluster 37", "36"]),
        ((data, *APPEARANCE, *out, "--cluster", 1), ["--cluster", "'1'", "2 or more"]),
        ((data, *APPEARANCE, *out, "--cluster", "many"), ["--cluster", "'many'"]),
        (
            (data, *APPEARANCE, *out, "--cluster", "auto", "--cluster-least", 19),
            ["(36)", "19", "--cluster-least"],
        ),
        ((tmp_path / "one", *APPEARANCE, *out, "--cluster", 2), ["--cluster 2", "(1)"]),
        ((tmp_path / "one", *APPEARANCE, *out, "--cluster", "auto"), ["too few patches (1)", "--cluster K"]),
        ((tmp_path / "empty", *APPEARANCE, *out, "--cluster", 2), ["no pictures"]),
        ((data, *APPEARANCE, *out, *new), ["--cluster-folders", "--cluster K"]),
        ((data, *APPEARANCE, *out, "--cluster", 3, "--cluster-least", 3), ["--cluster-least", "auto"]),
        ((data, *APPEARANCE, "--cluster", 3), ["--out"]),
        ((data, *out, "--cluster", 3), ["--with"]),
        (
            (data, *APPEARANCE, *out, "--cluster", 3, "--cluster-folders", tmp_path / "no" / "x"),
            ["no folder", "make it"],
        ),
        ((data, *APPEARANCE, *out, "--cluster", 3, "--cluster-folders", data), ["data", "--overwrite"]),
        (
            (data, *APPEARANCE, *out, "--cluster", 3, "--overwrite", "--cluster-folders", data),
            ["engine.embed did not write", "data"],
        ),
        (
            (f"{file}:/feat", "--cluster", 3, "--overwrite", "--cluster-folders", tmp_path / "theirs"),
            ["engine.embed did not write", "model.txt"],
        ),
        ((file, "--cluster", 3), ["no dataset", "/feat"]),
        ((f"{file}:/none", "--cluster", 3, *new), ["no dataset /none", "/feat"]),
        ((f"{file}:/feat",), ["file of embeddings", "--cluster K"]),
        ((f"{file}:/feat", "--cluster", 3, "--grid", "4x5"), ["--grid", "leave it out"]),
        ((f"{file}:/feat", "--cluster", 3, *APPEARANCE), ["--with", "leave it out"]),
        ((f"{file}:/feat", "--cluster", 21, *new), ["--cluster 21", "20"]),
        ((f"{file}:/same", "--cluster", 2, *new), ["same embedding", "20"]),
        ((f"{file}:/few", "--cluster", 3, *new), ["--cluster 3", "different embeddings (2)"]),
        ((f"{file}:/bad", "--cluster", 3, *new), ["not finite", "row 7"]),
        ((f"{file}:/codes", "--cluster", 3, *new), ["int64", "floating-point"]),
        ((f"{file}:/flat", "--cluster", 3, *new), ["(20,)", "(n, D)"]),
        ((f"{file}:/large", "--cluster", 3, *new), ["23.0 GB", "0.5 GB"]),
        ((f"{file}:/feat", "--cluster", "auto", "--cluster-least", 10, *new), ["no clusters of 10", "--cluster K"]),
        ((tmp_path / "broken.h5", "--cluster", 3, *new), ["broken.h5", "cannot be read"]),
        ((tmp_path / "lost.h5", "--cluster", 3, *new), ["lost.h5 does not say", "patch_px"]),
        ((tmp_path / "list.h5", "--cluster", 3, *new), ["list.h5 does not say"]),
        ((tmp_path / "more.h5", "--cluster", 3, *new), ["more.h5 does not say", "12 patches for 20"]),
        ((tmp_path / "none.h5", "--cluster", 3, *new), ["none.h5 is not there"]),
        ((f"{file}:/feat", "--cluster", 3, *new, "--seed", -1), ["--seed", "0 or more"]),
    ):
        line = wrong(tmp_path, *arguments)
        assert all(words in line for words in said), line


def test_clusters_that_are_there_are_kept_until_new_ones_are_complete(tmp_path):
    write_dataset(tmp_path / "data")
    clustered(1, tmp_path / "data", *APPEARANCE, "--out", tmp_path / "f.h5", "--cluster", 3)
    again = (tmp_path / "f.h5", "--cluster", 2)
    assert "--overwrite" in wrong(tmp_path, *again)
    moved = tmp_path / "data" / "images" / "p07.png"
    content = moved.read_bytes()
    moved.write_bytes(b"")
    assert "p07.png" in wrong(tmp_path, *again[:2], 36, "--overwrite")
    moved.write_bytes(content)
    clustered(2, *again, "--overwrite")
    assert [path.name for path in sorted((tmp_path / "f-clusters").iterdir())][:3] == ["0", "1", "clusters.csv"]
    assert len(list((tmp_path / "data" / "images").iterdir())) == 3 * EACH  # links were removed, not what they lead to


def test_names_that_lead_out_of_their_folder_are_not_linked(tmp_path):
    write_dataset(tmp_path / "data")
    (tmp_path / "names.txt").write_text("\n".join(f"../images/p{n:02d}.png" for n in range(6)))
    source = (tmp_path / "data" / "images", *APPEARANCE, "--list", tmp_path / "names.txt")
    done = launch(1, *source, "--out", tmp_path / "f.h5", "--cluster", 3, module="engine.embed")
    assert done.returncode == 1
    assert "../images/p00.png is not in" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "f.h5", "names.txt"]  # embeddings are kept


def test_without_scikit_learn_it_says_what_to_install(tmp_path):
    write_dataset(tmp_path / "data")
    code = "import sys; sys.modules['sklearn'] = None; import engine.embed; sys.exit(engine.embed.main(sys.argv[1:]))"
    line = [sys.executable, "-c", code, tmp_path / "data", *APPEARANCE, "--out", tmp_path / "f.h5", "--cluster", 3]
    done = subprocess.run(list(map(str, line)), cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 1
    text = "error: --cluster needs scikit-learn, which is not installed: pip install 'slidefield[cluster]'\n"
    assert done.stderr == text
    assert not (tmp_path / "f.h5").exists()
