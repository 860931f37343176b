import json
import subprocess
import sys
import warnings

import numpy as np
import pytest
import zarr
from launching import ROOT, environment
from zarr import open_array

from engine.pipeline.outputs import unfinished_shards
from engine.planning.geometry import Box
from engine.storage.checkpoint import CommitMark, SamplingRound
from engine.storage.create import create
from engine.storage.files import digest, halved, remove
from engine.storage.image_layout import ImageLayout
from engine.storage.layout import LabelArray
from engine.storage.ledger import FinishedShard
from engine.storage.output import Output, layout_of, provenance_at
from engine.storage.set_layout import SetLayout

LABELS = LabelArray("tissue", "uint8", (("unknown", (0, 0, 0)), ("tissue", (255, 0, 0))))


IMAGE = ImageLayout((100, 140), 3, 64, 32, LABELS)
SET = SetLayout((20, 30), 3, 64, 16, LABELS, count=5, group=2)
# What outputs of version 0.1 say of the same two layouts.
COMMON = {"label": {"name": "tissue", "dtype": "uint8", "entries": [["unknown", [0, 0, 0]], ["tissue", [255, 0, 0]]]}}
IMAGE_01 = {"size": [100, 140], "channels": 3, "shard": 64, "chunk": 32, **COMMON, "count": None, "group": 1}
SET_01 = {"size": [20, 30], "channels": 3, "shard": 64, "chunk": 16, **COMMON, "count": 5, "group": 2}


@pytest.fixture
def output(tmp_path):
    create(tmp_path / "o.zarr", IMAGE, 0.5, {"identity": {}, "levels": 30})
    return Output(tmp_path / "o.zarr")


def test_no_reader_stumbles_over_what_is_private(tmp_path):
    create(tmp_path / "slide.zarr", IMAGE, 0.5, {"identity": {}, "levels": 30})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        group = zarr.open_group(tmp_path / "slide.zarr", mode="r")
        names = {name for name, _ in group.members(max_depth=None)}
    assert names >= {"0", "1", f"labels/{LABELS.name}/0", "slidefield"}
    assert group["slidefield"].shape == (0,)
    assert group.attrs["ome"]["multiscales"][0]["name"] == "slide"
    assert group.attrs["omero"] == group.attrs["ome"]["omero"], "where neuroglancer looks for the channels' colours"


def test_means_of_four_are_rounded_half_to_even():
    values = np.arange(4 * 64, dtype=np.uint8).reshape(1, 16, 16)
    rng = np.random.default_rng(0)
    for image in (values, rng.integers(0, 256, (3, 15, 33)).astype(np.uint8)):
        padded = np.pad(image, ((0, 0), (0, image.shape[1] % 2), (0, image.shape[2] % 2)), mode="edge").astype(float)
        c, h, w = padded.shape
        expected = np.round(padded.reshape(c, h // 2, 2, w // 2, 2).mean((2, 4)))
        np.testing.assert_array_equal(halved(image), expected)


def test_a_pyramid_of_means_does_not_drift_brighter():
    image = np.random.default_rng(0).integers(0, 256, (1, 1024, 1024)).astype(np.uint8)
    coarse = image
    for _ in range(5):
        coarse = halved(coarse)
    assert abs(float(coarse.mean()) - float(image.mean())) < 0.15


@pytest.mark.parametrize(("size", "shard"), [((100, 140), 64), ((129, 255), 64), ((61, 40), 9)])
def test_a_pyramid_made_shard_by_shard_is_that_of_the_whole(tmp_path, size, shard):
    create(tmp_path / "o.zarr", ImageLayout(size, 3, shard, shard, LABELS), 0.5, {})
    output, rng = Output(tmp_path / "o.zarr"), np.random.default_rng(0)
    image, labels = rng.integers(0, 256, (3, *size)).astype(np.uint8), rng.integers(0, 2, size).astype(np.uint8)
    output.array("0")[:], output.array("labels/tissue/0")[:] = image, labels
    for level in range(1, len(output.layout.sizes())):
        image, labels = halved(image), labels[::2, ::2]
        for box in output.layout.boxes(level):
            for name in ("0", "labels/tissue/0"):
                output.halve(name, level, box)
        np.testing.assert_array_equal(output.array(str(level))[:], image)
        np.testing.assert_array_equal(output.array(f"labels/tissue/{level}")[:], labels)
    for shard_ in output.ledger:
        assert shard_.sha256 == digest(output.read(shard_.array, shard_.box))


def named(output):
    return sorted((shard.array, shard.box) for shard in output.ledger)


def test_a_torn_last_line_of_any_ranks_ledger_counts_for_nothing(output):
    first, second, lost, other = list(output.layout.boxes())[:4]
    for rank, box in ((0, first), (7, second)):
        Output(output.path, rank).write("0", box, np.zeros((3, *box.shape), np.uint8))
    output.ledger.append(FinishedShard("0", lost, "its shard is not there"))
    for rank in (0, 7):
        with (output.private / "ledger" / f"0000{rank}.jsonl").open("a") as ledger:
            ledger.write('{"array": "0", "box": [0, 64')
    assert named(output) == [("0", first), ("0", second), ("0", lost)]
    output.ledger.merge(check=True)
    assert named(output) == [("0", first), ("0", second)]
    assert {path.name for path in output.private.iterdir()} == {"ledger.jsonl", "metadata.json", "zarr.json"}
    assert output.ledger.latest()["0"].tolist() == [0, 0, -1, -1, -1, -1]
    output.ledger.append(FinishedShard("0", other, "x"))
    assert named(output) == [("0", first), ("0", second), ("0", other)]


def test_lines_that_name_no_shard_of_the_output_count_for_nothing(output):
    box = output.layout.boxes()[1]
    bad = ["[1]", "{}", "3", '{"array": "9", "box": [0, 0, 64, 64], "sha256": ""}']
    for corners in ([0, 0, 64, 65], [0, 0, 64], [-64, 0, 0, 64], [640, 0, 704, 64], ["a", 0, 64, 64], 5):
        bad.append(json.dumps({"array": "0", "box": corners, "sha256": ""}))
    bad.append(json.dumps({"array": "0", "box": [0, 0, 64, 64], "sha256": "", "round": 999}))
    good = FinishedShard("0", box, "s")
    (output.private / "ledger.jsonl").write_text("\n".join([*bad, good.line() + "\0\x85"]))
    assert list(output.ledger) == [good]
    assert set(output.ledger.latest()) == {"0"}


def test_the_line_of_the_latest_round_counts_whatever_rank_wrote_it(output):
    box = output.layout.boxes()[1]
    (output.private / "ledger.jsonl").write_text(FinishedShard("0", box, "first").line())
    Output(output.path, 3).ledger.append(FinishedShard("0", box, "third", 2))
    Output(output.path, 9).ledger.append(FinishedShard("0", box, "second", 1))
    assert output.ledger.latest()["0"].tolist() == [-1, 2, -1, -1, -1, -1]
    output.ledger.merge()
    assert list(output.ledger) == [FinishedShard("0", box, "third", 2)]
    output.ledger.merge()  # as after a kill before the ranks' were removed
    assert list(output.ledger) == [FinishedShard("0", box, "third", 2)]


def test_the_shards_of_a_level_are_shared_out_once_each_and_those_finished_are_left(output):
    finest = ["0", "labels/tissue/0"]
    for level in (0, 1):
        everything = {(name, box) for name in finest for box in output.layout.boxes(level)}
        for ranks in (1, 2, 5, 40):
            dealt = [shard for rank in range(ranks) for shard in unfinished_shards(output, finest, level, rank, ranks)]
            assert len(dealt) == len(everything) == len(set(dealt))
            assert set(dealt) == everything
    output.earlier = {"labels/tissue/0": np.array([0, -1, 0, 0, 0, 0], np.int8)}
    left = [box for name, box in unfinished_shards(output, finest, 0, 0, 1) if name == finest[1]]
    assert left == [output.layout.boxes()[1]]


def test_files_are_counted_without_listing_them():
    vast = ImageLayout((10**9, 10**9), 3, 2048, 512, LABELS)
    assert vast.files() > 2 * len(vast.boxes()) > 4 * 10**11


def test_a_checkpoint_counts_only_once_it_is_committed_and_the_one_before_stays(output):
    data = np.random.default_rng(0).standard_normal((4, 64, 64)).astype(np.float32)
    box = Box(0, 0, 64, 64)
    assert output.checkpoints.mark() is None
    slot = 0
    output.checkpoints.make_slots((4, 64, 64), (64, 64), 1)
    output.checkpoints.write(slot, "x", box, data)
    assert output.checkpoints.mark() is None
    output.checkpoints.commit(CommitMark(slot, 5, 0))
    second = 1
    output.checkpoints.write(second, "x", box, data + 1)
    mark = output.checkpoints.mark()
    assert mark == CommitMark(slot, 5, 0)
    np.testing.assert_array_equal(output.checkpoints.read(slot, "x", box), data)


def test_a_slot_is_opened_once_and_again_when_it_is_made_anew(output, monkeypatch):
    opened = []
    monkeypatch.setattr(zarr, "open_array", lambda path, **mode: opened.append(path) or open_array(path, **mode))
    boxes = [Box(0, 0, 64, 64), Box(64, 0, 128, 64)]
    for shape in ((4, 128, 64), (8, 128, 64)):
        slot = 0
        output.checkpoints.make_slots(shape, (64, 64), 1)
        data = np.random.default_rng(0).standard_normal((shape[0], 64, 64)).astype(np.float32)
        for box in boxes:
            output.checkpoints.write(slot, "x", box, data)
            np.testing.assert_array_equal(output.checkpoints.read(slot, "x", box), data)
        output.checkpoints.drop()
    assert len(opened) == 2


def test_a_slot_that_a_kill_left_half_made_is_made_anew(output):
    (output.private / "checkpoint" / "0" / "x").mkdir(parents=True)
    slot = 0
    output.checkpoints.make_slots((4, 64, 64), (64, 64), 1)
    output.checkpoints.write(slot, "x", Box(0, 0, 64, 64), np.zeros((4, 64, 64), np.float32))


def test_a_damaged_checkpoint_is_named(output):
    slot = 0
    output.checkpoints.make_slots((4, 64, 64), (64, 64), 1)
    box = Box(0, 0, 64, 64)
    with pytest.raises(ValueError, match="lacks latents"):
        output.checkpoints.read(slot, "x", box)
    output.checkpoints.write(slot, "x", box, np.ones((4, 64, 64), np.float32))
    file = output.private / "checkpoint" / str(slot) / "x" / "c" / "0" / "0" / "0"
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        output.checkpoints.read(slot, "x", box)


@pytest.mark.parametrize(
    "mark", ["", "{}", "[]", '{"slot": 0, "level": 999, "history": false}', '{"slot": 0, "level": "x"}']
)
def test_a_damaged_commit_mark_is_named(output, mark):
    (output.private / "checkpoint.json").write_text(mark)
    with pytest.raises(ValueError, match=r"checkpoint\.json is damaged; start anew with `resume` never"):
        output.checkpoints.mark()


def test_making_and_removing_an_output_touches_nothing_else(tmp_path):
    for name in ("o.zarr.removing", "o.zarr.my.creating"):
        (tmp_path / name).mkdir()
    create(tmp_path / "o.zarr", ImageLayout((64, 64), 3, 64, 32, LABELS), 0.5, {"identity": {}, "levels": 30})
    with pytest.raises(ValueError, match="another run"):
        create(tmp_path / "o.zarr", ImageLayout((64, 64), 3, 64, 32, LABELS), 0.5, {"identity": {}, "levels": 30})
    remove(tmp_path / "o.zarr")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["o.zarr.my.creating", "o.zarr.removing"]


def test_a_folder_of_another_kind_is_no_output(tmp_path):
    assert provenance_at(tmp_path / "nothing") is None
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "zarr.json").write_text(json.dumps({"attributes": {}}))
    with pytest.raises(ValueError, match="is no output of"):
        provenance_at(tmp_path / "other")


def test_the_pyramid_goes_down_to_one_shard():
    sizes = [(5000, 300), (2500, 150), (1250, 75), (625, 38), (313, 19)]
    assert ImageLayout((5000, 300), 3, 2048, 512).sizes() == sizes, "down to what a screen shows, whatever the shard"
    assert ImageLayout((5000, 300), 3, 2048, 512, coarsest=2048).sizes() == sizes[:3]
    assert ImageLayout((300, 200), 3, 256, 64).sizes() == [(300, 200), (150, 100)]
    assert ImageLayout((512, 512), 3, 2048, 512).sizes() == [(512, 512)]


@pytest.fixture(params=[IMAGE, SET], ids=["image", "set"])
def whole(request, tmp_path):
    """An output with all its finest shards written, its image and its labels."""
    layout, random = request.param, np.random.default_rng(0)
    create(tmp_path / "o.zarr", layout, 0.5, {})
    output = Output(tmp_path / "o.zarr")
    image, labels = (
        random.integers(0, 2, output.array(n).shape).astype(np.uint8) for n in (layout.image, layout.labels)
    )
    for box in layout.boxes():
        output.write(layout.image, box, image[layout.index(box)])
        output.write(layout.labels, box, labels[layout.index(box)])
    return output, image, labels


def test_a_layout_names_the_files_that_zarr_writes(whole):
    output, image, labels = whole
    layout = output.layout
    for name, values in ((layout.image, image), (layout.labels, labels)):
        np.testing.assert_array_equal(output.array(name)[:], values)
        on_disk = {path for path in (output.path / name / "c").rglob("*") if path.is_file()}
        assert on_disk == {output.shard_file(name, box) for box in layout.boxes()}
        assert len(on_disk) == len(layout.boxes())
    coarse = sum(len(layout.boxes(array.level)) for array in layout.arrays() if array.level)
    lock_checkpoint_and_times = 3
    on_disk = sum(path.is_file() for path in output.path.rglob("*"))
    assert layout.files() == on_disk + coarse + lock_checkpoint_and_times


def test_a_layout_gives_the_pixels_of_an_image_in_order_and_in_boxes(whole):
    output, image, labels = whole
    layout = output.layout
    assert b"".join(image[index].tobytes() for index in layout.in_order()) == image.tobytes()
    assert max(image[index].nbytes for index in layout.in_order()) < image.nbytes / 2
    part = Box(3, 5, 19, 21)
    number, one = (0, labels) if layout == IMAGE else (3, labels[3])
    array = output.array(layout.labels)
    np.testing.assert_array_equal(array[layout.index_in(number, part)], one[3:19, 5:21])
    for box in layout.boxes():
        read = layout.assemble(box, lambda number, part: array[layout.index_in(number, part)])
        np.testing.assert_array_equal(read, labels[layout.index(box)])


def test_the_shards_with_some_images_are_those_whose_boxes_hold_them():
    for images in ([0], [1, 4], [2, 3], []):
        expected = [i for i, box in enumerate(SET.boxes()) if any(box.y0 <= image < box.y1 for image in images)]
        assert SET.shards_with(images).tolist() == expected
    assert IMAGE.shards_with([0]).tolist() == list(range(len(IMAGE.boxes())))


@pytest.mark.parametrize(("layout", "attributes"), [(IMAGE, IMAGE_01), (SET, SET_01)], ids=["image", "set"])
def test_what_an_output_says_of_its_layout_is_read_in_every_version(layout, attributes):
    said = layout.attributes()
    assert layout_of(said) == layout
    for later in ("coarsest", "region"):  # since 0.2: the pyramid of 0.1 ended where a shard held it
        said.pop(later, None)
    assert json.dumps(said) == json.dumps(attributes)
    earlier = layout_of(attributes)
    assert (earlier.size, earlier.sizes()) == (layout.size, layout.sizes())


def test_shards_that_no_line_names_are_lacking(whole):
    output, _, _ = whole
    layout = output.layout
    pyramid = [(array.name, box) for array in layout.arrays() if array.level for box in layout.boxes(array.level)]
    assert list(output.ledger.lacking(output.ledger.latest())) == pyramid
    box = layout.boxes()[1]
    output.shard_file(layout.labels, box).unlink()
    output.ledger.merge(check=True)
    lacking = list(output.ledger.lacking(output.ledger.latest()))
    assert sorted(lacking) == sorted([(layout.labels, box), *pyramid])


def test_a_round_begins_from_noise_and_is_forgotten_when_the_output_is_whole(output):
    assert output.checkpoints.sampling_round() == SamplingRound()
    output.checkpoints.make_slots((4, 64, 64), (64, 64), 1)
    output.checkpoints.commit(CommitMark(1, 5, 1))
    following = SamplingRound(1, [2, 3], [2])
    output.checkpoints.begin_round(following)
    assert Output(output.path).checkpoints.sampling_round() == following
    assert output.checkpoints.mark() is None
    output.tidy()
    assert output.checkpoints.sampling_round() == SamplingRound()
    assert {path.name for path in output.private.iterdir()} == {"metadata.json", "zarr.json"}


def test_zarr_is_configured_whichever_file_of_the_room_is_imported_first():
    for path in (ROOT / "engine" / "storage").glob("*.py"):
        lines = [line for line in path.read_text().splitlines() if line.startswith(("import zarr", "from zarr"))]
        assert bool(lines) == (path.name == "zarr_setup.py"), f"{path} imports zarr itself"
    code = "import sys, importlib; importlib.import_module(sys.argv[1]); import zarr; "
    code += "print(zarr.config.get('threading.max_workers'), zarr.config.get('array.write_empty_chunks'))"
    for module in ("readers", "create"):
        command = [sys.executable, "-c", code, f"engine.storage.{module}"]
        done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
        assert done.stdout == "2 True\n", done.stderr


@pytest.mark.parametrize(
    ("layout", "box"), [(IMAGE, Box(64, 128, 100, 140)), (IMAGE, Box(0, 0, 64, 64)), (SET, Box(4, 0, 5, 1))]
)
def test_a_shard_is_the_file_that_zarr_writes_but_for_the_order_of_its_chunks(tmp_path, layout, box):
    create(tmp_path / "o.zarr", layout, 0.5, {"identity": {}, "levels": 30})
    output, rng = Output(tmp_path / "o.zarr"), np.random.default_rng(0)
    for name in (layout.image, layout.labels):
        file, array, where = output.shard_file(name, box), output.array(name), layout.index(box)
        values = rng.integers(0, 256, array[where].shape).astype(np.uint8)
        output.write(name, box, values)
        ours = file.read_bytes()
        np.testing.assert_array_equal(array[where], values)
        assert digest(values) in {line.sha256 for line in output.ledger}
        file.unlink()
        array[where] = values
        assert len(ours) == len(file.read_bytes())
        tail = 16 * int(np.prod([s // c for s, c in zip(array.shards, array.chunks, strict=True)])) + 4
        absent = [int((np.frombuffer(data[-tail:-4], "<u8") == 2**64 - 1).sum()) for data in (ours, file.read_bytes())]
        assert absent[0] == absent[1]
