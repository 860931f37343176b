import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.conditions import LabelMap
from engine.cover import decode_cover, random, shifted, strided
from engine.plan import (
    Ownership,
    bounding_pieces,
    cut_by_shards,
    deal,
    deal_by_cost,
    decode_rounds,
    plan_decode,
    plan_level,
)

sides = st.integers(16, 120)
shards = st.sampled_from([16, 24, 40])
ranks = st.integers(1, 9)


@given(sides, sides, shards, ranks)
def test_every_shard_has_one_owner_in_contiguous_equal_runs(h, w, side, size):
    ownership = Ownership((h, w), (side, side), size)
    assert sum(s.area for s in ownership.shards) == h * w
    assert (np.diff(ownership.owner) >= 0).all()
    counts = [len(ownership.owned(rank)) for rank in range(size)]
    assert sum(counts) == len(ownership.shards)
    assert max(counts) - min(counts) <= 1


@settings(deadline=None)
@given(sides, sides, shards, ranks, st.integers(0, 99), st.sampled_from(["shifted", "random", "strided"]))
def test_each_window_is_evaluated_once_and_its_estimate_reaches_every_latent_that_uses_it(
    h, w, side, size, level, kind
):
    cover = {
        "shifted": lambda: shifted((h, w), 16, 0, level),
        "random": lambda: random((h, w), 16, 0, level),
        "strided": lambda: strided((h, w), 16, 6, "hann"),
    }[kind]()
    ownership = Ownership((h, w), (side, side), size)
    plan = plan_level(cover, np.ones(len(cover), np.int64), ownership)
    assert sorted(i for rank in range(size) for i in plan.windows_of(rank)) == list(range(len(cover)))
    area = np.zeros(len(cover), int)
    for row in range(len(plan.writes)):
        item, box = int(plan.writes.item[row]), plan.writes.window(row)
        assert (box & ownership.shards[int(plan.writes.shard[row])]) == box
        assert (box & cover.kept(item)) == box
        area[item] += box.area
    assert area.tolist() == [cover.kept(i).area for i in range(len(cover))]
    for rank in range(size):  # what a rank reads holds all its windows
        held = np.zeros((h, w), bool)
        for row in np.nonzero(plan.reads.item == rank)[0]:
            box = plan.reads.window(row)
            held[box.y0 : box.y1, box.x0 : box.x1] = True
        for index in plan.windows_of(rank):
            window = cover.window(index)
            assert held[window.y0 : window.y1, window.x0 : window.x1].all()


@given(st.lists(st.integers(1, 6), min_size=1, max_size=200), ranks)
def test_a_level_is_dealt_to_within_one_window(costs, size):
    costs = np.array(costs)
    rank = deal_by_cost(costs, size)
    assert (np.diff(rank) >= 0).all()
    assert rank.max() < size
    done = np.bincount(rank, weights=costs, minlength=size)
    assert done.max() <= costs.sum() / size + costs.max()


@settings(deadline=None, max_examples=30)
@given(ranks, st.integers(0, 50))
def test_no_rank_does_more_of_a_whole_run_than_its_share_and_one_micro_batch(size, seed):
    labels = np.random.default_rng(seed).integers(0, 5, (6, 8)).astype(np.uint8).repeat(16, 0).repeat(16, 1)
    condition = LabelMap(2.0, labels)
    ownership = Ownership(labels.shape, (32, 32), size)
    ahead, done = np.zeros(size), np.zeros(size)
    for level in range(40):
        cover = shifted(labels.shape, 16, seed, level)
        plan = plan_level(cover, condition.costs(condition.present(cover)), ownership, ahead)
        done += plan.evaluations_of_ranks()
        ahead = done - done.sum() / size
    assert done.max() <= done.sum() / size + 8


@given(st.integers(0, 40), ranks)
def test_decode_rounds_write_every_remaining_shard_once_with_one_writer(count, size):
    remaining = list(range(3, 3 + count))
    rounds = decode_rounds(remaining, size)
    assert sorted(s for turn, _ in rounds for s in turn) == remaining
    for turn, writers in rounds:
        assert len(turn) == len(writers) == len(set(writers))
    assert len(rounds) == -(-count // size)


@settings(deadline=None)
@given(sides, sides, shards, ranks)
def test_a_decode_round_covers_its_shards_and_shares_the_windows_evenly(h, w, side, size):
    ownership = Ownership((h, w), (side, side), size)
    cover = decode_cover((h, w), 16, 4)
    for turn, writers in decode_rounds(range(len(ownership.shards)), size):
        plan = plan_decode(cover, ownership, turn, writers)
        for shard in turn:
            box = ownership.shards[shard]
            held = np.zeros((h, w), bool)
            for row in np.nonzero(plan.writes.shard == shard)[0]:
                piece = plan.writes.window(row)
                held[piece.y0 : piece.y1, piece.x0 : piece.x1] = True
            assert held.sum() == box.area
        counts = [len(plan.windows_of(rank)) for rank in range(size)]
        assert max(counts) - min(counts) <= 1


def test_bounding_pieces_hold_all_pieces_of_a_reader_in_a_shard():
    ownership = Ownership((64, 64), (32, 32), 2)
    boxes = np.array([[0, 0, 16, 16], [10, 20, 26, 36], [40, 40, 56, 56]])
    cut = cut_by_shards(boxes, ownership)
    found = bounding_pieces(cut, np.array([0, 0, 1])[cut.item])
    assert {
        (int(r), int(s), tuple(b)) for r, s, b in zip(found.item, found.shard, found.box.tolist(), strict=True)
    } == {
        (0, 0, (0, 0, 26, 32)),
        (0, 1, (10, 32, 26, 36)),
        (1, 3, (40, 40, 56, 56)),
    }


def test_a_canvas_of_more_than_two_to_the_24_latents_is_planned_and_every_latent_counted():
    """DiffInfinite's stopping rule, a float32 mean, never comes true there; ours counts in integers."""
    shape = (4100, 4100)
    cover = shifted(shape, 64, 0, 3)
    plan = plan_level(cover, np.ones(len(cover), np.int64), Ownership(shape, (256, 256), 5))
    assert int(plan.writes.areas.sum()) == 4100 * 4100 > 2**24


def test_dealing_is_contiguous_and_even():
    assert deal(10, 4).tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]
