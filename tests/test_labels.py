"""From a label model's canvas to labels: DiffInfinite's clean-up and the nearest upsampling, whole and in boxes."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from launching import ROOT, launch, refused, sha
from PIL import Image
from tiny import LABELS

from engine.inputs.input_file import integer_file
from engine.inputs.label_cleanup import clean_box, clean_labels, majority_box
from engine.inputs.label_codes import spread_codes
from engine.inputs.maps import MapFile
from engine.inputs.nuclei import edges
from engine.inputs.resize import nearest_box, nearest_index
from engine.models.card import color
from engine.planning.geometry import Box, grid
from engine.storage.readers import read_label_map

GOLDEN = Path(os.environ.get("SLIDEFIELD_GOLDEN", ROOT.parent / "shared" / "golden"))


def blobs(shape: tuple[int, int], seed: int = 0, labels: int = 5) -> np.ndarray:
    """A map of areas, as a label model decodes it: label / (labels - 1)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, labels, (shape[0] // 9 + 1, shape[1] // 9 + 1))
    return np.kron(coarse, np.ones((9, 9)))[: shape[0], : shape[1]].astype(np.float32) / (labels - 1)


class Recorded:
    """Reads boxes of a map and remembers which."""

    def __init__(self, values):
        self.values, self.asked = values, []

    def __call__(self, box):
        self.asked.append(box)
        assert 0 <= box.y0 < box.y1 <= self.values.shape[0]
        assert 0 <= box.x0 < box.x1 <= self.values.shape[1]
        return self.values[box.y0 : box.y1, box.x0 : box.x1]


def test_a_pixel_is_a_boundary_when_a_neighbour_inside_the_map_differs():
    grey = np.array([[1, 1, 1, 2], [1, 1, 1, 2], [1, 1, 3, 2]])
    assert edges(grey).tolist() == [
        [False, False, True, True],
        [False, False, True, True],
        [False, True, True, True],
    ]


def test_the_clean_up_takes_boundaries_and_what_is_within_six_pixels_of_them():
    decoded = np.zeros((20, 20), np.float32)
    decoded[:, 10:] = 1  # columns 9 and 10 are boundary, so minima over columns 5..14 are not 1
    decoded[3, 15] = 0.5  # and so is a speck with the four beside it
    whole = clean_labels(decoded, (15, 15), 2)
    assert not whole[:, :11].any()
    assert whole[5:, 11:].all()
    assert not whole[:5, 11:].any()


def test_grey_values_are_truncated_and_labels_rounded():
    for value, label in ((0.0, 0), (0.123, 0), (0.126, 1), (0.5, 2), (0.874, 3), (1.0, 4), (7.0, 4), (-1.0, 0)):
        assert (clean_labels(np.full((8, 8), value, np.float32), (4, 4), 5) == label).all(), value


@given(st.integers(0, 150).map(lambda n: 2 * n + 1), st.integers(1, 150).map(lambda n: 2 * n))
@settings(max_examples=60, deadline=None)
def test_lines_are_brought_to_size_as_pillow_does(source, target):
    """Odd to even, as cleaned maps are: else a middle can lie on an edge, where Pillow's sum of steps decides."""
    line = Image.fromarray(np.arange(source, dtype=np.int32)[None])
    expected = np.asarray(line.resize((target, 1), Image.Resampling.NEAREST))[0]
    assert nearest_index(0, target, source, target).tolist() == expected.tolist()


@given(st.integers(6, 70), st.integers(6, 70), st.integers(1, 150), st.integers(1, 150), st.data())
@settings(max_examples=60, deadline=None)
def test_any_box_of_the_clean_up_is_that_crop_of_the_whole(h, w, height, width, data):
    decoded = blobs((h, w), seed=h)
    whole = clean_labels(decoded, (height, width), 5)
    y0, x0 = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    box = Box(y0, x0, data.draw(st.integers(y0 + 1, height)), data.draw(st.integers(x0 + 1, width)))
    labels = clean_box(Recorded(decoded), (h, w), (height, width), box, 5)
    assert np.array_equal(labels, whole[box.y0 : box.y1, box.x0 : box.x1])


def test_a_box_reads_what_it_needs_and_no_more():
    read = Recorded(blobs((1000, 1200)))
    for shard in list(grid((8000, 9600), 512))[:40]:
        clean_box(read, (1000, 1200), (8000, 9600), shard, 5)
    assert len(read.asked) == 40
    assert max(max(box.shape) for box in read.asked) <= 512 / 8 + 1 + 5 + 2


def test_a_box_brought_to_size_is_that_crop_of_the_whole():
    values = np.arange(13 * 17).reshape(13, 17)
    whole = nearest_box(Recorded(values), values.shape, (104, 136), Box(0, 0, 104, 136))
    assert np.array_equal(whole, np.kron(values, np.ones((8, 8), int)))
    part = nearest_box(Recorded(values), values.shape, (104, 136), Box(11, 30, 60, 77))
    assert np.array_equal(part, whole[11:60, 30:77])


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 7), st.integers(1, 5))
def test_a_map_enlarged_by_a_whole_number_repeats_its_pixels(h, w, times, step):
    values = np.arange(h * w).reshape(h, w)
    box = Box(times // 2, 0, h * times, w * times)
    enlarged = nearest_box(Recorded(values), values.shape, (h * times, w * times), box, step)
    assert (enlarged == values.repeat(times, 0).repeat(times, 1)[times // 2 :][::step, ::step]).all()


@pytest.mark.parametrize("size", [(22, 26), (21, 30), (8, 4), (11, 13)])
def test_a_label_map_in_a_file_is_resized_by_the_centres_of_pixels_as_pillow_does(tmp_path, size):
    labels = np.arange(11 * 13, dtype=np.uint8).reshape(11, 13)
    np.save(tmp_path / "l.npy", labels)
    expected = np.asarray(Image.fromarray(labels).resize(size[::-1], Image.Resampling.NEAREST))
    resized = MapFile(integer_file(str(tmp_path / "l.npy"), "`labels`"), size)
    assert (resized.read(0, Box(0, 0, *size), 1) == expected).all()
    assert (resized.read(0, Box(3, 1, *size), 2) == expected[3::2, 1::2]).all()


def test_a_map_too_small_to_clean_is_refused():
    with pytest.raises(ValueError, match=r"5 x 64.*larger"):
        clean_labels(np.zeros((5, 64), np.float32), (10, 10), 5)


@pytest.mark.parametrize("folder", sorted(GOLDEN.glob("diffinfinite-mask*")) or [None], ids=str)
def test_diffinfinites_own_clean_up_gives_the_same_labels(folder):
    if folder is None:
        pytest.skip(f"{GOLDEN}/diffinfinite-mask is not here: the outputs of DiffInfinite's own code")
    with np.load(folder / "io.npz") as io:
        decoded, cleaned = io["clean_in"][0], io["clean_out"]
        labels = clean_labels(decoded, cleaned.shape, int(io["clean_labels"]))
    assert (labels == cleaned).all()


@given(st.integers(1, 30), st.integers(1, 30), st.data())
def test_a_vote_in_boxes_equals_the_vote_on_the_whole_map(h, w, data):
    labels = np.random.default_rng(h * 100 + w).integers(0, 4, (h, w)).astype(np.uint8)

    def read(box):
        assert box == box & Box(0, 0, h, w)
        return labels[box.y0 : box.y1, box.x0 : box.x1]

    whole = majority_box(read, (h, w), Box(0, 0, h, w), 4)
    y, x = data.draw(st.integers(0, h - 1)), data.draw(st.integers(0, w - 1))
    box = Box(y, x, data.draw(st.integers(y + 1, h)), data.draw(st.integers(x + 1, w)))
    assert (majority_box(read, (h, w), box, 4) == whole[box.y0 : box.y1, box.x0 : box.x1]).all()
    padded = np.pad(labels, 2, mode="edge")
    votes = np.bincount(padded[y : y + 5, x : x + 5].ravel(), minlength=4)
    assert whole[y, x] == votes.argmax()


# ---- label maps drawn in colours --------------------------------------------------------------------

DRAWN = [(name, color(index)) for index, name in enumerate(LABELS)]
COLORS = np.array([rgb for _, rgb in DRAWN], np.uint8)


def read_back(path: Path, *image: int) -> np.ndarray:
    """The map, or that of an image of a stack, which any box of it is a part of."""
    read = read_label_map(path, "`labels`", DRAWN, stack=bool(image))
    whole = np.asarray(read[(*image, slice(0, 40), slice(0, 50))])
    assert np.array_equal(read[(*image, slice(3, 20), slice(5, 9))], whole[3:20, 5:9])
    assert read.shape[-2:] == whole.shape
    return whole


def test_a_map_drawn_in_the_labels_colours_is_read_back(tmp_path):
    labels = np.random.default_rng(0).integers(0, 5, (40, 50)).astype(np.uint8)
    drawn = COLORS[labels]
    opaque = np.where(labels == 0, 0, 255).astype(np.uint8)  # as viewers of OME-Zarr draw it: label 0 is transparent
    for name, pixels in (("a", drawn), ("b", np.dstack([drawn, opaque]))):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        tifffile.imwrite(tmp_path / f"{name}.tif", pixels, photometric="rgb")
        np.save(tmp_path / f"{name}.npy", pixels)
        for ending in ("png", "tif", "npy"):
            assert np.array_equal(read_back(tmp_path / f"{name}.{ending}"), labels), ending
    np.save(tmp_path / "stack.npy", np.stack([drawn, drawn[::-1]]))
    assert np.array_equal(read_back(tmp_path / "stack.npy", 0), labels)
    assert np.array_equal(read_back(tmp_path / "stack.npy", 1), labels[::-1])


def test_a_palette_is_read_by_its_colours_where_they_are_the_labels_and_else_by_its_values(tmp_path):
    labels = np.random.default_rng(0).integers(0, 5, (40, 50)).astype(np.uint8)
    order = np.array([3, 0, 4, 1, 2], np.uint8)  # the palette holds label order[i] at i
    for palette, expected in ((COLORS[order], order[labels]), (COLORS // 2, labels)):
        image = Image.fromarray(labels, "L").convert("P")
        image.putdata(labels.ravel().tolist())
        image.putpalette(palette.ravel().tolist())
        image.save(tmp_path / "map.png")
        assert np.array_equal(read_back(tmp_path / "map.png"), expected)


def test_a_colour_that_is_no_labels_is_named_with_its_pixel(tmp_path):
    drawn = COLORS[np.ones((40, 50), int)]
    drawn[31, 7] = drawn[31, 8] = (214, 39, 41)
    np.save(tmp_path / "map.npy", drawn)
    with pytest.raises(ValueError, match=r"colour 214,39,41 at row 31, column 7; .* 214,39,40 carcinoma"):
        read_label_map(tmp_path / "map.npy", "`labels`", DRAWN)[20:40, 5:50]


@pytest.mark.parametrize("ending", ["png", "npy"])
def test_an_image_from_a_drawn_map_is_that_from_its_numbers(tmp_path, tiny_model, ending):
    labels = blobs((100, 120)) * 4
    np.save(tmp_path / "numbers.npy", labels.astype(np.uint8))
    drawn = COLORS[labels.astype(int)]
    np.save(tmp_path / "drawn.npy", drawn)
    Image.fromarray(drawn).save(tmp_path / "drawn.png")
    shas = set()
    for name in ("numbers.npy", f"drawn.{ending}"):
        out = tmp_path / f"{name}.zarr"
        small = ("--model", tiny_model, "--size", "100x120", "--steps", "1", "--shard", "64", "--chunk", "64")
        done = launch(2, *small, "--labels", tmp_path / name, "--out", out, "--preview", "none")
        assert done.returncode == 0, done.stderr
        shas.add((sha(out), zarr.open_array(out / "labels" / "tissue" / "0", mode="r")[:].tobytes()))
    assert len(shas) == 1


# ---- other codes than the model's labels -----------------------------------------------------------


def test_an_image_from_a_map_in_other_codes_is_that_from_its_labels(tmp_path, tiny_model):
    """DiffInfinite's pictures have labels spread over 0 to 255, rounded or cut off; its annotations are 40 codes."""
    labels = (blobs((128, 160)) * 4).round().astype(np.uint8)
    spread = labels * (255 / 4)
    Image.fromarray(labels).save(tmp_path / "plain.png")
    Image.fromarray(spread.astype(np.uint8)).save(tmp_path / "cut.png")
    np.save(tmp_path / "rounded.npy", (spread + 0.5).astype(np.uint8))
    codes = np.array([0, 7, 9, 23, 31])[labels]
    codes[labels == 2] = np.where(np.arange((labels == 2).sum()) % 2, 9, 18)
    tifffile.imwrite(tmp_path / "codes.tif", codes.astype(np.uint16))
    (tmp_path / "table.csv").write_bytes(b"\xef\xbb\xbf" + (ROOT / "jobs" / "labels-40-to-5.csv").read_bytes())
    common = ("--model", tiny_model, "--steps", 2, "--preview", "none", "--labels")
    own = {
        "plain": ("plain.png",),
        "cut": ("cut.png", "--labels-scale", "spread"),
        "rounded": ("rounded.npy", "--labels-scale", "spread"),
        "codes": ("codes.tif", "--labels-table", ROOT / "jobs" / "labels-40-to-5.csv"),
        "spreadsheet": ("codes.tif", "--labels-table", tmp_path / "table.csv"),  # which begins with a mark
    }
    shas = set()
    for name, (file, *options) in own.items():
        out = tmp_path / f"{name}.zarr"
        done = launch(2, *common, tmp_path / file, *options, "--size", "128x160", "--out", out)
        assert done.returncode == 0, done.stderr
        shas.add(sha(out))
    assert len(shas) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), ["has value 191", "--labels-scale spread", "--labels-table"]),
        (("--labels-table", "table.csv"), ["has the code 191 at row", "table.csv", "a line *,LABEL"]),
        (("--labels-table", "gone.csv"), ["gone.csv", "No such file"]),
        (("--labels-table", "high.csv"), ["high.csv, line 2: label 5, but the model knows 0 to 4"]),
        (("--labels-table", "twice.csv"), ["twice.csv, line 3: 7 has a label already, 1"]),
        (("--labels-table", "words.csv"), ["words.csv, line 1", "expected CODE,LABEL"]),
        (("--labels-table", "empty.csv"), ["empty.csv names no codes"]),
        (("--labels-table", "table.csv", "--labels-scale", "spread"), ["--labels-scale spread", "choose one"]),
    ],
    ids=str,
)
def test_codes_that_no_table_knows_and_wrong_tables_are_refused(tmp_path, tiny_model, options, said):
    Image.fromarray(np.full((128, 128), 191, np.uint8)).save(tmp_path / "map.png")
    tables = {"table": "0,0\n7,1\n", "high": "0,0\n7,5\n", "twice": "0,0\n7,1\n7,2\n"}
    tables |= {"words": "seven,1\n", "empty": "# nothing\n"}
    for name, text in tables.items():
        (tmp_path / f"{name}.csv").write_text(text)
    options = [tmp_path / option if option.endswith(".csv") else option for option in options]
    own = ("--model", tiny_model, "--size", 128, "--steps", 2, "--out", tmp_path / "o.zarr")
    line = refused(tmp_path, *own, "--labels", tmp_path / "map.png", *options)
    assert all(words in line for words in said), line


def test_a_scale_or_table_without_a_file_is_refused(tmp_path, tiny_model):
    own = ("--model", tiny_model, "--size", 128, "--steps", 2, "--out", tmp_path / "o.zarr")
    for options in (("--labels-scale", "spread"), ("--labels-table", tmp_path / "t.csv", "--labels", "example")):
        assert "pass --labels FILE" in refused(tmp_path, *own, *options)


def test_a_value_between_two_spread_labels_is_refused():
    codes = spread_codes(5)
    assert codes.label_of(np.array([[0, 63, 64, 127, 128, 191, 255]])).tolist() == [[0, 1, 1, 2, 2, 3, 4]]
    assert (codes.label_of(np.array([30, 61, 126, 200])) == -1).all()


def test_a_picture_larger_than_memory_is_refused_before_it_is_unpacked(tmp_path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 2_000_000, 1_000_000, 8, 0, 0, 0, 0)  # 2 TB of black in a kilobyte
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(10**5))), chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    with pytest.raises(ValueError, match=r"bomb.png.*1000000 x 2000000 px take 1,863 GiB.*\.npy or Zarr"):
        read_label_map(tmp_path / "bomb.png", "`labels`", [])
