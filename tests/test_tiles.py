"""Tiles for training: pairs of image and label map, split by place, the same files on any number of ranks."""

import csv
import io
import json
import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from launching import launch
from PIL import Image
from test_export import draw, files, make, make_image, make_set, nuclei, refused
from test_geojson import make_tissue

import engine
from engine.export import main
from engine.exports import tiles as tile_files
from engine.exports.tiling import Tiling
from engine.storage.image_layout import ImageLayout
from engine.storage.layout import LabelArray
from engine.training.alone import Alone
from engine.training.data import find_images, mask_of, read_image, read_mask
from engine.training.published.labelled_images import LabelledImages

NAMES = ["unknown", "stroma", "necrosis"]


def exported(capsys, *arguments):
    assert main([str(a) for a in arguments]) == 0, capsys.readouterr().err
    with (arguments[1] / "tiles.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def pixels(path):
    return np.asarray(Image.open(path))


def content(folder):
    return {name: (folder / name).read_bytes() for name in files(folder)}


# ---- where they lie ------------------------------------------------------------------------------


@st.composite
def tilings(draw):
    side = draw(st.integers(2, 9))
    shares = draw(st.sampled_from([(0.5, 0.5), (0.8, 0.2), (0.6, 0.2, 0.2)]))
    size = (draw(st.integers(1, 90)), draw(st.integers(1, 90)))
    return Tiling(size, 1, False, side, draw(st.integers(0, side - 1)), shares, draw(st.integers(0, 99)))


@given(tilings())
def test_no_pixel_lies_in_two_parts_and_only_tiles_that_would_touch_both_are_left_out(tiling):
    owners = {part: np.zeros(tiling.size, bool) for part in ("train", "val", "test")}
    tiles = list(tiling.tiles())
    assert tiles == list(tiling.tiles())
    for tile in tiles:
        assert 0 <= tile.y <= tiling.size[0] - tiling.side
        assert 0 <= tile.x <= tiling.size[1] - tiling.side
        owners[tile.part][tile.y : tile.y + tiling.side, tile.x : tile.x + tiling.side] = True
    assert sum(owner.astype(int) for owner in owners.values()).max() <= 1
    if not tiling.overlap:
        assert len(tiles) == (tiling.size[0] // tiling.side) * (tiling.size[1] // tiling.side)


def test_a_split_is_in_blocks_has_its_shares_and_changes_with_the_seed_alone():
    one, other = (Tiling((4000, 4000), 1, False, 50, 10, (0.8, 0.1, 0.1), seed) for seed in (0, 1))
    tiles = list(one.tiles())
    assert tiles != list(other.tiles())
    share = {part: np.mean([tile.part == part for tile in tiles]) for part in ("train", "val", "test")}
    assert abs(share["train"] - 0.8) < 0.1
    assert min(share.values()) > 0.04
    assert len(tiles) > 0.85 * one.counts[0] * one.counts[1], "few lie on the lines between parts"


@given(tilings(), st.integers(1, 12))
def test_tiles_of_two_parts_are_a_margin_apart_and_train_gives_way_where_it_must_alone(tiling, margin):
    every, order = list(tiling.tiles()), ["train", "val", "test"]
    near = tiling.too_near(every, margin)
    stay = [tile for tile in every if tile not in near]

    def close(one, other):
        return all(abs(a - b) - tiling.side < margin for a, b in ((one.y, other.y), (one.x, other.x)))

    assert not [(a, b) for a in stay for b in stay if a.part != b.part and close(a, b)]
    for tile in near:
        later = order[order.index(tile.part) + 1 :]
        assert any(other.part in later and close(tile, other) for other in stay), "it had not to go"


# ---- what they hold ------------------------------------------------------------------------------


def test_tiles_are_crops_of_image_and_map_with_the_labels_colours(tmp_path, capsys):
    out, labels = make_tissue(tmp_path / "o.zarr")
    image = draw(3, 100, 150).transpose(1, 2, 0)
    rows = exported(capsys, out, tmp_path / "t", "--tiles", 32, "--overlap", 8)
    assert "t holds 15 tiles of 32 px: 15 in all" in capsys.readouterr().out
    assert [(int(row["y"]), int(row["x"])) for row in rows] == [(y, x) for y in (0, 24, 48) for x in range(0, 97, 24)]
    for row in rows:
        y, x = int(row["y"]), int(row["x"])
        box = (slice(y, y + 32), slice(x, x + 32))
        stem = tmp_path / "t" / row["part"] / row["name"]
        assert (pixels(stem.with_suffix(".png")) == image[box]).all()
        with Image.open(mask_of(stem.with_suffix(".png"))) as mask:
            assert mask.mode == "P"
            assert (np.asarray(mask) == labels[box]).all()
            assert mask.getpalette()[:9] == [9, 9, 9, 1, 2, 3, 250, 0, 7]
        shares = np.bincount(labels[box].ravel(), minlength=3) / 1024
        assert np.allclose([float(row[name]) for name in NAMES], shares, atol=1e-6)
    facts = json.loads((tmp_path / "t" / "export.json").read_text())
    assert facts["files"] == files(tmp_path / "t")
    assert facts["tiles"]["overlap"] == 8
    assert main([str(out), str(tmp_path / "t"), "--tiles", "64", "--overwrite"]) == 0


def test_tiles_of_a_region_at_a_level_and_without_those_that_are_mostly_unknown(tmp_path, capsys):
    out, labels = make_tissue(tmp_path / "o.zarr")
    rows = exported(capsys, out, tmp_path / "t", "--tiles", 16, "--level", 1, "--region", "10:80,20:150")
    assert [(int(row["y"]), int(row["x"])) for row in rows] == [(y, x) for y in (10, 42) for x in (20, 52, 84, 116)]
    for row in rows:
        y, x = int(row["y"]), int(row["x"])
        mask = pixels(tmp_path / "t" / "all" / f"{row['name']}_mask.png")
        assert (mask == labels[y : y + 32 : 2, x : x + 32 : 2]).all()
    every = exported(capsys, out, tmp_path / "every", "--tiles", 16)
    fewer = exported(capsys, out, tmp_path / "fewer", "--tiles", 16, "--most-unknown", 0.3)
    assert fewer == [row for row in every if float(row["unknown"]) <= 0.3]
    assert 0 < len(fewer) < len(every)


def test_an_image_of_a_set_is_in_one_part_whole(tmp_path, capsys):
    out = make_set(tmp_path / "set.zarr", count=9)
    rows = exported(capsys, out, tmp_path / "t", "--tiles", 8, "--split", "0.6,0.4", "--seed", 3)
    assert len(rows) == 9 * 2 * 3
    parts = {row["image"]: {r["part"] for r in rows if r["image"] == row["image"]} for row in rows}
    assert sorted(len(part) for part in parts.values()) == [1] * 9
    assert {part for each in parts.values() for part in each} == {"train", "val"}
    images, ids = draw(9, 3, 20, 24), nuclei(9, 20, 24)
    for row in rows:
        i, y, x = (int(row[name]) for name in ("image", "y", "x"))
        stem = tmp_path / "t" / row["part"] / row["name"]
        assert (pixels(stem.with_suffix(".png")) == images[i, :, y : y + 8, x : x + 8].transpose(1, 2, 0)).all()
        mask, expected = pixels(mask_of(stem.with_suffix(".png"))), ids[i, y : y + 8, x : x + 8]
        assert mask.dtype == np.uint16
        assert ((mask > 0) == (expected > 0)).all()
        assert len(np.unique(mask)) == len(np.unique(expected))
        assert mask.max() <= 2, "instances of a tile are counted from 1"
        assert float(row["nuclei"]) == pytest.approx((expected > 0).mean(), abs=1e-5)
    alone = exported(capsys, out, tmp_path / "one", "--tiles", 8, "--image", 1)
    assert {row["image"] for row in alone} == {"1"}
    assert (pixels(tmp_path / "one/all/y000008_x000016.png") == images[1, :, 8:16, 16:].transpose(1, 2, 0)).all()


def test_a_margin_between_train_and_val_is_kept_and_what_it_costs_is_said(tmp_path, capsys):
    out, _ = make_tissue(tmp_path / "o.zarr")
    options = ("--tiles", 10, "--overlap", 2, "--split", "0.7,0.3", "--level", 1)  # a margin is px of the level too
    every = exported(capsys, out, tmp_path / "every", *options)
    capsys.readouterr()
    rows = exported(capsys, out, tmp_path / "t", *options, "--split-margin", 8)
    said = capsys.readouterr().out
    assert f"; {len(every) - len(rows)} left out, nearer than 8 px to a tile of another part" in said
    assert {row["name"] for row in rows} < {row["name"] for row in every}
    held = {part: np.zeros((50, 75), bool) for part in ("train", "val")}
    grown = np.zeros((50, 75), bool)
    for row in rows:
        y, x = int(row["y"]) // 2, int(row["x"]) // 2
        held[row["part"]][y : y + 10, x : x + 10] = True
        if row["part"] == "val":
            grown[max(y - 8, 0) : y + 18, max(x - 8, 0) : x + 18] = True
    assert held["train"].any()
    assert [row for row in rows if row["part"] == "val"] == [row for row in every if row["part"] == "val"]
    assert not (grown & held["train"]).any()
    facts = json.loads((tmp_path / "t" / "export.json").read_text())["tiles"]
    assert (facts["split_margin"], facts["left_out_near"]) == (8, len(every) - len(rows))


def test_images_without_a_map_and_grey_ones_are_tiles_too(tmp_path, capsys):
    out = make_image(tmp_path / "o.zarr", channels=1, label=None, shard=256)
    rows = exported(capsys, out, tmp_path / "t", "--tiles", 50)
    assert list(rows[0]) == ["name", "part", "image", "y", "x"]
    assert files(tmp_path / "t") == sorted([*(f"all/{row['name']}.png" for row in rows), "export.json", "tiles.csv"])
    assert pixels(tmp_path / "t/all/y000000_x000000.png").shape == (50, 50)


# ---- shards of WebDataset --------------------------------------------------------------------------


def test_shards_hold_what_the_pictures_do_and_are_read_by_webdataset(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tile_files, "PER_SHARD", 7)
    out, _ = make_tissue(tmp_path / "o.zarr")
    options = ("--tiles", 16, "--split", "0.7,0.3")
    rows = exported(capsys, out, tmp_path / "png", *options)
    assert rows == exported(capsys, out, tmp_path / "tar", *options, "--format", "webdataset")
    held = {}
    for shard in sorted((tmp_path / "tar").glob("*.tar")):
        with tarfile.open(shard) as tar:
            assert len(tar.getnames()) <= 21
            for name in tar.getnames():
                held[shard.name.split("-")[0], name] = tar.extractfile(name).read()
    assert len(held) == 3 * len(rows)
    for row in rows:
        stem = tmp_path / "png" / row["part"] / row["name"]
        assert held[row["part"], f"{row['name']}.png"] == stem.with_suffix(".png").read_bytes()
        assert held[row["part"], f"{row['name']}.mask.png"] == mask_of(stem.with_suffix(".png")).read_bytes()
        facts = json.loads(held[row["part"], f"{row['name']}.json"])
        assert (facts["y"], facts["x"]) == (int(row["y"]), int(row["x"]))
        assert sum(facts["shares"].values()) == pytest.approx(1, abs=1e-5)
    webdataset = pytest.importorskip("webdataset")
    count = sum(row["part"] == "train" for row in rows)
    shards = [str(path) for path in sorted((tmp_path / "tar").glob("train-*.tar"))]
    samples = list(webdataset.WebDataset(shards, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [row["name"] for row in rows if row["part"] == "train"]
    assert len(samples) == count
    assert np.asarray(Image.open(io.BytesIO(samples[0]["mask.png"]))).shape == (16, 16)


# ---- on ranks --------------------------------------------------------------------------------------


@pytest.mark.runs
@pytest.mark.parametrize("kind", ["png", "webdataset"])
def test_any_number_of_ranks_writes_the_same_files(tmp_path, kind):
    out, _ = make_tissue(tmp_path / "o.zarr", size=(120, 190))
    options = ("--tiles", 16, "--overlap", 4, "--split", "0.7,0.2,0.1", "--format", kind, "--most-unknown", 0.5)
    options += ("--split-margin", 2)
    for ranks in (1, 3):
        done = launch(ranks, out, tmp_path / str(ranks), *options, module="engine.export")
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("holds") == 1
        assert content(tmp_path / str(ranks)) == content(tmp_path / "1")
    assert len(content(tmp_path / "1")) > 4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "3", "o.zarr"]


@pytest.mark.runs
def test_a_failure_of_one_rank_is_one_line_and_leaves_the_earlier_tiles(tmp_path):
    out, _ = make_tissue(tmp_path / "o.zarr")
    line = (out, tmp_path / "t", "--tiles", 16, "--overwrite")
    assert launch(3, *line, module="engine.export").returncode == 0
    before = content(tmp_path / "t")
    shard = out / "0" / "c" / "0" / "1" / "2"
    shard.write_bytes(shard.read_bytes()[:99])
    done = launch(3, *line, module="engine.export")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert "cannot be read" in done.stderr
    assert content(tmp_path / "t") == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["o.zarr", "t"]
    done = launch(3, out, tmp_path / "l.geojson", module="engine.export")
    assert done.stdout.count("annotations") == 1, done.stderr


def test_python_writes_the_tiles_and_polygons_that_the_command_does(tmp_path, capsys):
    out, _ = make_tissue(tmp_path / "o.zarr")
    exported(capsys, out, tmp_path / "t", "--tiles", 16, "--split", "0.7,0.3")
    image = engine.open(out)
    assert image.export(tmp_path / "p", tiles=16, split=(0.7, 0.3)) == tmp_path / "p"
    assert content(tmp_path / "p") == content(tmp_path / "t")
    image.export(tmp_path / "l.geojson", tolerance=0)
    with pytest.raises(ValueError, match="is there already; pass"):
        image.export(tmp_path / "l.geojson")
    with pytest.raises(ValueError, match=r"`split` is 0\.7: expected"):
        image.export(tmp_path / "q", tiles=16, split=0.7)


def test_options_that_make_no_sense_are_refused(tmp_path, capsys):
    out, _ = make_tissue(tmp_path / "o.zarr")
    target = tmp_path / "t"
    for options, said in (
        (("--tiles", 16, "--overlap", 16), "--overlap is 16 and tiles have 16 px; choose less"),
        (("--tiles", 101), "--tiles is 101 and there are 100 x 150 px; choose less"),
        (("--tiles", 0), "--tiles is 0; give a whole number, 1 to 65536"),
        (("--tiles", 16, "--split", "0.8,0.3"), "--split is '0.8,0.3': expected the shares of train and val"),
        (("--tiles", 16, "--split", "a"), "--split is 'a': expected the shares"),
        (("--tiles", 64, "--split", "0.9,0.1"), "no tile is left for val; choose smaller --tiles"),
        (("--tiles", 16, "--seed", 1), "--seed is for a split; pass --split too"),
        (("--tiles", 16, "--split-margin", 1), "--split-margin is for a split; pass --split too"),
        (("--tiles", 16, "--split", "0.8,0.2", "--split-margin", -1), "--split-margin is -1; give a whole number, 0"),
        (("--tiles", 16, "--split", "0.5,0.5", "--split-margin", 99), "no tile is left for train; choose smaller"),
        (("--tiles", 16, "--most-unknown", 2), "--most-unknown is 2.0: expected a number from 0 to 1"),
        (("--tiles", 16, "--format", "jpeg"), "--format jpeg is not for tiles; choose png or webdataset"),
        (("--overlap", 3), "--overlap is not for DIR, folders of pictures"),
        (("--tiles", 16, "--layout", "pairs"), "--layout is not for DIR with --tiles, pairs for training"),
    ):
        assert said in refused(capsys, out, target, *options)
    bare = make_image(tmp_path / "bare.zarr", label=None, shard=256)
    assert "has no label map with an unknown" in refused(capsys, bare, target, "--tiles", 16, "--most-unknown", 0.5)
    assert "no tile is left; choose a larger --most-unknown" in refused(
        capsys, out, target, "--tiles", 64, "--most-unknown", 0.01
    )
    many = make_set(tmp_path / "set.zarr", count=3)
    line = (many, target, "--tiles", 8, "--split", "0.6,0.4", "--split-margin", 4)
    assert "--split-margin is for one image; of a set every image is in one part" in refused(capsys, *line)
    target.mkdir()
    (target / "mine").touch()
    assert "is not empty" in refused(capsys, out, target, "--tiles", 16)
    assert "holds mine, which no export wrote" in refused(capsys, out, target, "--tiles", 16, "--overwrite")


# ---- trained on ------------------------------------------------------------------------------------


def test_a_training_reads_the_tiles_and_their_maps(tmp_path, capsys):
    layout = ImageLayout((192, 256), 3, 256, 64, LabelArray("tissue", "uint8", tuple((n, (1, 2, 3)) for n in NAMES)))
    labels = np.kron(np.arange(12).reshape(3, 4) % 3, np.ones((64, 64), int)).astype(np.uint8)
    out = make(tmp_path / "o.zarr", layout, draw(3, 192, 256), labels)
    exported(capsys, out, tmp_path / "t", "--tiles", 64, "--split", "0.75,0.25")
    images = find_images(tmp_path / "t" / "train")
    assert len(images) == 9
    for path in images:
        y, x = (int(word[1:]) for word in path.stem.split("_"))
        assert (read_mask(path) == labels[y : y + 64, x : x + 64]).all()
        assert read_image(path).shape == (64, 64, 3)
    scanned = LabelledImages(images, [], keep=[], side=64, unlabelled=0.5, ranks=Alone())
    assert scanned.count == 3
    assert {label: len(held) for label, held in scanned.holders.items()} == {
        label: sum((read_mask(path) == label).any() for path in images) for label in (1, 2)
    }
    assert scanned.map_of(images[0]).shape == (64, 64)
