import json

import numpy as np
import pytest
import zarr
from zarr import open_array

from engine.pipeline.outputs import shares
from engine.planning.geometry import Window
from engine.storage.create import create
from engine.storage.files import digest, halved, remove
from engine.storage.layout import LabelArray, Layout
from engine.storage.output import Finished, Output, state_of

LABELS = LabelArray("tissue", "uint8", (("unknown", (0, 0, 0)), ("tissue", (255, 0, 0))))


@pytest.fixture
def output(tmp_path):
    create(tmp_path / "o.zarr", Layout((100, 140), 3, 64, 32, LABELS), 0.5, {"identity": {}, "levels": 30})
    return Output(tmp_path / "o.zarr")


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
    create(tmp_path / "o.zarr", Layout(size, 3, shard, shard, LABELS), 0.5, {})
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
    for shard_ in output.ledger():
        assert shard_.sha256 == digest(output.read(shard_.array, shard_.box))


def named(output):
    return sorted((shard.array, shard.box) for shard in output.ledger())


def test_a_torn_last_line_of_any_ranks_ledger_counts_for_nothing(output):
    first, second, lost, other = list(output.layout.boxes())[:4]
    for rank, box in ((0, first), (7, second)):
        Output(output.path, rank).write("0", box, np.zeros((3, *box.shape), np.uint8))
    output.record(Finished("0", lost, "its shard is not there"))
    for rank in (0, 7):
        with (output.private / "ledger" / f"0000{rank}.jsonl").open("a") as ledger:
            ledger.write('{"array": "0", "box": [0, 64')
    assert named(output) == [("0", first), ("0", second), ("0", lost)]
    output.merge_ledger(check=True)
    assert named(output) == [("0", first), ("0", second)]
    assert [path.name for path in output.private.iterdir()] == ["ledger.jsonl"]
    assert output.latest()["0"].tolist() == [0, 0, -1, -1, -1, -1]
    output.record(Finished("0", other, "x"))
    assert named(output) == [("0", first), ("0", second), ("0", other)]


def test_lines_that_name_no_shard_of_the_output_count_for_nothing(output):
    box = output.layout.boxes()[1]
    bad = ["[1]", "{}", "3", '{"array": "9", "box": [0, 0, 64, 64], "sha256": ""}']
    for corners in ([0, 0, 64, 65], [0, 0, 64], [-64, 0, 0, 64], [640, 0, 704, 64], ["a", 0, 64, 64], 5):
        bad.append(json.dumps({"array": "0", "box": corners, "sha256": ""}))
    bad.append(json.dumps({"array": "0", "box": [0, 0, 64, 64], "sha256": "", "round": 999}))
    good = Finished("0", box, "s")
    (output.private / "ledger.jsonl").write_text("\n".join([*bad, good.text() + "\0\x85"]))
    assert list(output.ledger()) == [good]
    assert set(output.latest()) == {"0"}


def test_the_line_of_the_latest_round_counts_whatever_rank_wrote_it(output):
    box = output.layout.boxes()[1]
    (output.private / "ledger.jsonl").write_text(Finished("0", box, "first").text())
    Output(output.path, 3).record(Finished("0", box, "third", 2))
    Output(output.path, 9).record(Finished("0", box, "second", 1))
    assert output.latest()["0"].tolist() == [-1, 2, -1, -1, -1, -1]
    output.merge_ledger()
    assert list(output.ledger()) == [Finished("0", box, "third", 2)]
    output.merge_ledger()  # as after a kill before the ranks' were removed
    assert list(output.ledger()) == [Finished("0", box, "third", 2)]


def test_the_shards_of_a_level_are_shared_out_once_each_and_those_finished_are_left(output):
    finest = ["0", "labels/tissue/0"]
    for level in (0, 1):
        everything = {(name, box) for name in finest for box in output.layout.boxes(level)}
        for ranks in (1, 2, 5, 40):
            found = [shard for rank in range(ranks) for shard in shares(output, finest, level, rank, ranks)]
            assert len(found) == len(everything) == len(set(found))
            assert set(found) == everything
    output.earlier = {"labels/tissue/0": np.array([0, -1, 0, 0, 0, 0], np.int8)}
    left = [box for name, box in shares(output, finest, 0, 0, 1) if name == finest[1]]
    assert left == [output.layout.boxes()[1]]


def test_files_are_counted_without_listing_them():
    vast = Layout((10**9, 10**9), 3, 2048, 512, LABELS)
    assert vast.files() > 2 * len(vast.boxes()) > 4 * 10**11


def test_a_checkpoint_counts_only_once_it_is_committed_and_the_one_before_stays(output):
    data = np.random.default_rng(0).standard_normal((4, 64, 64)).astype(np.float32)
    box = Window(0, 0, 64, 64)
    assert output.checkpoint() is None
    slot = 0
    output.make_slots((4, 64, 64), (64, 64))
    output.write_checkpoint(slot, "x", box, data)
    assert output.checkpoint() is None
    output.commit_checkpoint(slot, 5, False)
    second = 1
    output.write_checkpoint(second, "x", box, data + 1)
    mark = output.checkpoint()
    assert (mark["slot"], mark["level"]) == (slot, 5)
    np.testing.assert_array_equal(output.read_checkpoint(slot, "x", box), data)


def test_a_slot_is_opened_once_and_again_when_it_is_made_anew(output, monkeypatch):
    opened = []
    monkeypatch.setattr(zarr, "open_array", lambda path, **mode: opened.append(path) or open_array(path, **mode))
    boxes = [Window(0, 0, 64, 64), Window(64, 0, 128, 64)]
    for shape in ((4, 128, 64), (8, 128, 64)):
        slot = 0
        output.make_slots(shape, (64, 64))
        data = np.random.default_rng(0).standard_normal((shape[0], 64, 64)).astype(np.float32)
        for box in boxes:
            output.write_checkpoint(slot, "x", box, data)
            np.testing.assert_array_equal(output.read_checkpoint(slot, "x", box), data)
        output.drop_checkpoints()
    assert len(opened) == 2


def test_a_slot_that_a_kill_left_half_made_is_made_anew(output):
    (output.private / "checkpoint" / "0" / "x").mkdir(parents=True)
    slot = 0
    output.make_slots((4, 64, 64), (64, 64))
    output.write_checkpoint(slot, "x", Window(0, 0, 64, 64), np.zeros((4, 64, 64), np.float32))


def test_a_damaged_checkpoint_is_named(output):
    slot = 0
    output.make_slots((4, 64, 64), (64, 64))
    box = Window(0, 0, 64, 64)
    with pytest.raises(ValueError, match="lacks latents"):
        output.read_checkpoint(slot, "x", box)
    output.write_checkpoint(slot, "x", box, np.ones((4, 64, 64), np.float32))
    file = output.private / "checkpoint" / str(slot) / "x" / "c" / "0" / "0" / "0"
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        output.read_checkpoint(slot, "x", box)


@pytest.mark.parametrize(
    "mark", ["", "{}", "[]", '{"slot": 0, "level": 999, "history": false}', '{"slot": 0, "level": "x"}']
)
def test_a_damaged_commit_mark_is_named(output, mark):
    (output.private / "checkpoint.json").write_text(mark)
    with pytest.raises(ValueError, match=r"checkpoint\.json is damaged; start anew with `resume` never"):
        output.checkpoint()


def test_making_and_removing_an_output_touches_nothing_else(tmp_path):
    for name in ("o.zarr.removing", "o.zarr.my.creating"):
        (tmp_path / name).mkdir()
    create(tmp_path / "o.zarr", Layout((64, 64), 3, 64, 32, LABELS), 0.5, {"identity": {}, "levels": 30})
    with pytest.raises(ValueError, match="another run"):
        create(tmp_path / "o.zarr", Layout((64, 64), 3, 64, 32, LABELS), 0.5, {"identity": {}, "levels": 30})
    remove(tmp_path / "o.zarr")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["o.zarr.my.creating", "o.zarr.removing"]


def test_a_folder_of_another_kind_is_no_output(tmp_path):
    assert state_of(tmp_path / "nothing") is None
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "zarr.json").write_text(json.dumps({"attributes": {}}))
    with pytest.raises(ValueError, match="is no output of"):
        state_of(tmp_path / "other")


def test_the_pyramid_goes_down_to_one_shard():
    assert Layout((5000, 300), 3, 2048, 512).sizes() == [(5000, 300), (2500, 150), (1250, 75)]
    assert Layout((2048, 2048), 3, 2048, 512).sizes() == [(2048, 2048)]
