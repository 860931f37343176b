import json

import numpy as np
import pytest
import zarr
from zarr import open_array

from engine.geometry import Window
from engine.store import LabelArray, Layout, Output, create, digest, halved, remove, state_of

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
            lines = [output.halve(name, level, box) for name in ("0", "labels/tissue/0")]
            assert all(line["sha256"] == digest(output.read(line["array"], box)) for line in lines)
        np.testing.assert_array_equal(output.array(str(level))[:], image)
        np.testing.assert_array_equal(output.array(f"labels/tissue/{level}")[:], labels)


def test_a_torn_last_line_of_the_ledger_counts_for_nothing(output):
    box = output.layout.boxes()[0]
    output.record([output.write("0", box, np.zeros((3, *box.shape), np.uint8))])
    lost = output.layout.boxes()[1]
    output.record([{"array": "0", "box": [lost.y0, lost.x0, lost.y1, lost.x1], "sha256": "its shard is not there"}])
    with (output.private / "ledger.jsonl").open("a") as ledger:
        ledger.write('{"array": "0", "box": [0, 64')
    assert set(output.ledger()) == {("0", box), ("0", lost)}
    output.mend_ledger()
    assert set(output.ledger()) == {("0", box)}
    output.record([{"array": "0", "box": [64, 0, 100, 64], "sha256": "x"}])
    assert set(output.ledger()) == {("0", box), ("0", Window(64, 0, 100, 64))}


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
    with pytest.raises(ValueError, match=r"checkpoint\.json is damaged; start anew with --resume never"):
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
