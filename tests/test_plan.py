import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.diffusion.conditions import LabelMap
from engine.planning.counts import count_decode, count_level
from engine.planning.cover import random, shifted, strided, windows_of
from engine.planning.decode_cover import decode_cover
from engine.planning.ownership import (
    DecodeRounds,
    Ownership,
    bounding_boxes,
    cut_by_shards,
    partition_by_cost,
    partition_evenly,
)
from engine.planning.plan import (
    EstimatePieces,
    HaloPieces,
    pack_requests,
    plan_decode,
    plan_level,
    run_in_lockstep,
    unpack_requests,
)

sides = st.integers(16, 120)
shards = st.sampled_from([16, 24, 40])
ranks = st.integers(1, 9)


def once(ids):
    """Every window is asked for one evaluation."""
    return np.ones(len(ids), np.uint64), np.ones(len(ids), np.int64)


def plans_of(cover, ownership, ask=once):
    return run_in_lockstep([plan_level(rank, cover, ownership, ask) for rank in range(ownership.size)])


def fused(plan):
    """The (window, shard, box) that a rank fuses."""
    here = plan.estimate_sends[plan.estimate_sends.peer == plan.rank]
    return [
        (int(pieces.window_id[row]), int(pieces.shard[row]), pieces.window(row))
        for pieces in (here, plan.estimate_recvs)
        for row in range(len(pieces))
    ]


@given(sides, sides, shards, ranks)
def test_every_shard_has_one_owner_in_contiguous_equal_runs(h, w, side, size):
    ownership = Ownership((h, w), (side, side), size)
    assert sum(ownership.shard(s).area for s in range(ownership.count)) == h * w
    runs = [list(ownership.owned(rank)) for rank in range(size)]
    assert [shard for run in runs for shard in run] == list(range(ownership.count))
    assert max(map(len, runs)) - min(map(len, runs)) <= 1
    owners = ownership.owner(np.arange(ownership.count))
    assert owners.tolist() == [rank for rank, run in enumerate(runs) for _ in run]


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
    plans = plans_of(cover, ownership)
    assert sorted(i for plan in plans for i in plan.window_ids.tolist()) == list(range(len(cover)))
    area = np.zeros(len(cover), int)
    for plan in plans:
        assert plan.windows == plan.evaluations == len(cover)
        for window_id, shard, box in fused(plan):
            assert shard in plan.shards
            assert box & ownership.shard(shard) == box
            area[window_id] += box.area
    keep = cover.core(np.arange(len(cover)))
    assert area.tolist() == ((keep[:, 2] - keep[:, 0]) * (keep[:, 3] - keep[:, 1])).tolist()
    for plan in plans:  # what a rank owns and is sent holds all its windows, and each lies in its block
        held = np.zeros((h, w), bool)
        for box in [
            *map(ownership.shard, ownership.owned(plan.rank)),
            *map(plan.halo_recvs.window, range(len(plan.halo_recvs))),
        ]:
            held[box.y0 : box.y1, box.x0 : box.x1] = True
        for (y0, x0, y1, x1), block in zip(windows_of(cover, plan.window_ids).tolist(), plan.block, strict=True):
            assert held[y0:y1, x0:x1].all()
            assert (plan.blocks[block, :2] <= (y0, x0)).all()
            assert (plan.blocks[block, 2:] >= (y1, x1)).all()


@settings(deadline=None)
@given(sides, sides, shards, ranks, st.integers(0, 99))
def test_what_one_rank_is_told_to_send_another_expects_in_the_same_order(h, w, side, size, level):
    plans = plans_of(shifted((h, w), 16, 0, level), Ownership((h, w), (side, side), size))
    for one in plans:
        for other in plans:
            given = one.halo_sends[one.halo_sends.peer == other.rank]
            got = other.halo_recvs[other.halo_recvs.peer == one.rank]
            assert given.shard.tolist() == got.shard.tolist()
            assert given.box.tolist() == got.box.tolist()
            own = one is other  # what stays is in no message
            sent = one.estimate_sends[one.estimate_sends.peer == other.rank][: 0 if own else None]
            taken = other.estimate_recvs[other.estimate_recvs.peer == one.rank]
            assert sent.window_id.tolist() == taken.window_id.tolist()
            assert sent.shard.tolist() == taken.shard.tolist()
            assert sent.box.tolist() == taken.box.tolist()


@given(st.integers(0, 5), st.integers(0, 5), st.integers(0, 99))
def test_requests_are_unpacked_as_they_were_packed(halos, estimates, seed):
    draw = np.random.default_rng(seed).integers
    halo = HaloPieces(shard=draw(0, 9, halos), box=draw(0, 99, (halos, 4)), peer=np.full(halos, 3))
    sent = EstimatePieces(
        shard=draw(0, 9, estimates),
        box=draw(0, 99, (estimates, 4)),
        window_id=draw(0, 2**40, estimates),
        peer=np.full(estimates, 3),
    )
    message = pack_requests(halo, sent)
    assert len(message) == 1 + 5 * halos + 6 * estimates
    of_one = unpack_requests({7: message})
    of_two = unpack_requests({7: message, 8: message})
    for packed, one, two in zip((halo, sent), of_one, of_two, strict=True):
        assert one.peer.tolist() == [7] * len(packed)
        assert two.peer.tolist() == [7] * len(packed) + [8] * len(packed)
        for column in set(vars(packed)) - {"peer"}:
            assert getattr(one, column).tolist() == getattr(packed, column).tolist()
            assert getattr(two, column).tolist() == 2 * getattr(packed, column).tolist()


@settings(deadline=None)
@given(ranks, st.integers(0, 50))
def test_windows_that_others_have_a_part_in_are_evaluated_between_those_that_are_one_ranks_own(size, level):
    ownership = Ownership((120, 120), (40, 40), size)
    for plan in plans_of(shifted((120, 120), 16, 0, level), ownership):
        sends = plan.estimate_sends
        crossing = set(np.nonzero(np.isin(plan.window_ids, sends.window_id[sends.peer != plan.rank]))[0].tolist())
        crossing |= {
            slot
            for slot, box in enumerate(windows_of(plan.cover, plan.window_ids))
            if (ownership.owner(cut_by_shards(box[None], ownership).shard) != plan.rank).any()
        }
        alone = len(plan) - len(crossing)
        assert crossing == set(range(alone // 2, alone // 2 + len(crossing)))
        assert {int(plan.block[slot]) for slot in crossing} == set(np.nonzero(plan.needs_halo)[0].tolist())


def test_a_rank_plans_what_it_owns_whatever_the_canvas_and_the_number_of_ranks():
    """A canvas of a million pixels a side on 16384 ranks: a rank's part lists its own windows and no others."""
    asked = []

    def ask(ids):
        asked.append(len(ids))
        return once(ids)

    for side, size in ((1000, 1), (125_000, 16_384)):
        ownership = Ownership((side, side), (256, 256), size)
        next(plan_level(size // 2, shifted((side, side), 64, 0, 3), ownership, ask))
    assert asked[1] <= asked[0] < 400


@given(st.lists(st.integers(1, 6), min_size=1, max_size=200), ranks, st.integers(1, 20))
def test_a_level_is_dealt_to_within_one_window_however_its_line_is_cut(costs, size, cut):
    costs = np.array(costs)
    rank = partition_by_cost(costs, 0, int(costs.sum()), size)
    assert (np.diff(rank) >= 0).all()
    assert rank.max() < size
    done = np.bincount(rank, weights=costs, minlength=size)
    assert done.max() <= costs.sum() / size + costs.max()
    pieces = [
        partition_by_cost(costs[i : i + cut], int(costs[:i].sum()), int(costs.sum()), size)
        for i in range(0, len(costs), cut)
    ]
    assert np.concatenate(pieces).tolist() == rank.tolist()


@given(st.lists(st.floats(0.2, 5), min_size=2, max_size=8))
def test_ranks_of_different_speed_are_dealt_work_in_proportion(speeds):
    run_ends = np.cumsum(speeds) / np.sum(speeds)
    rank = partition_by_cost(np.ones(1000, np.int64), 0, 1000, len(speeds), run_ends)
    done = np.bincount(rank, minlength=len(speeds))
    np.testing.assert_allclose(done, 1000 * np.array(speeds) / np.sum(speeds), atol=1.01)


@settings(deadline=None, max_examples=30)
@given(ranks, st.integers(0, 50))
def test_no_rank_does_more_of_a_level_than_its_share_and_one_window(size, seed):
    labels = np.random.default_rng(seed).integers(0, 5, (6, 8)).astype(np.uint8).repeat(16, 0).repeat(16, 1)
    condition = LabelMap(2.0, labels)
    cover = shifted(labels.shape, 16, seed, seed)

    def ask(ids):
        label_bits = condition.label_bits(cover, ids)
        return label_bits, condition.costs(label_bits)

    plans = plans_of(cover, Ownership(labels.shape, (32, 32), size), ask)
    done = [int(condition.costs(plan.label_bits).sum()) for plan in plans]
    assert sum(done) == plans[0].evaluations
    assert max(done) <= sum(done) / size + 6


@given(st.integers(0, 40), ranks)
def test_rounds_write_every_remaining_shard_once_and_every_rank_knows_who(count, size):
    for remaining in (range(count), np.arange(3, 3 + 2 * count, 2)):
        rounds = DecodeRounds(remaining, size)
        written = []
        for turn in range(len(rounds)):
            for rank in range(size):
                for shard in rounds.shards(rank, turn):
                    written.append(shard)
                    assert rounds.writer(np.array([shard]), turn) == rank
        assert sorted(written) == list(remaining)
        assert len(rounds) == -(-count // size)


@settings(deadline=None)
@given(sides, sides, shards, ranks, st.booleans())
def test_a_decode_round_covers_its_shards_and_all_ranks_decode_alike(h, w, side, size, whole):
    ownership = Ownership((h, w), (side, side), size)
    cover = decode_cover((h, w), 16, 4)
    rounds = DecodeRounds(range(ownership.count) if whole else np.arange(0, ownership.count, 2), size)
    kept = [None] * size
    for turn in range(len(rounds)):
        plans = run_in_lockstep([plan_decode(rank, cover, ownership, rounds, turn, kept[rank]) for rank in range(size)])
        parts = [plan.window_ids.tolist() for plan in plans]
        decoded = [index for part in parts for index in part]
        assert len(decoded) == len(set(decoded))
        before = [set() if ids is None else set(ids.tolist()) for ids in kept]
        new = [len(set(part) - had) for part, had in zip(parts, before, strict=True)]
        assert max(new) == -(-sum(new) // size), "dealt to all alike"
        assert sum(new) == len(set(decoded) - set().union(*before)), "what anybody kept is decoded by nobody"
        kept = [plan.window_ids for plan in plans]
        for plan in plans:
            for shard in plan.shards:
                box = ownership.shard(shard)
                held = np.zeros((h, w), bool)
                for _, where, piece in fused(plan):
                    if where == shard:
                        held[piece.y0 : piece.y1, piece.x0 : piece.x1] = True
                assert held.sum() == held[box.y0 : box.y1, box.x0 : box.x1].sum() == box.area


def test_every_rank_decodes_where_there_is_one_shard():
    ownership = Ownership((256, 256), (256, 256), 4)
    cover, rounds = decode_cover((256, 256), 32, 16), DecodeRounds(range(1), 4)
    plans = run_in_lockstep([plan_decode(rank, cover, ownership, rounds, 0) for rank in range(4)])
    assert sorted(len(plan) for plan in plans) == [6, 6, 6, 7]
    assert [list(plan.shards) for plan in plans] == [[0], [], [], []]


def test_a_bounding_box_holds_all_that_a_reader_reads_of_a_shard():
    ownership = Ownership((64, 64), (32, 32), 2)
    boxes = np.array([[0, 0, 16, 16], [10, 20, 26, 36], [40, 40, 56, 56]])
    cut = cut_by_shards(boxes, ownership)
    readers = np.array([0, 0, 1])[cut.parent]
    groups, around = bounding_boxes(np.stack([readers, cut.shard], 1), cut.box)
    assert [(*group, tuple(box)) for group, box in zip(groups.tolist(), around.tolist(), strict=True)] == [
        (0, 0, (0, 0, 26, 32)),
        (0, 1, (10, 32, 26, 36)),
        (1, 3, (40, 40, 56, 56)),
    ]


def test_a_canvas_of_more_than_two_to_the_24_latents_is_planned_and_every_latent_counted():
    """DiffInfinite's stopping rule, a float32 mean, never comes true there; ours counts in integers."""
    shape = (4100, 4100)
    plans = plans_of(shifted(shape, 64, 0, 3), Ownership(shape, (256, 256), 5))
    assert sum(box.area for plan in plans for _, _, box in fused(plan)) == 4100 * 4100 > 2**24


def test_dealing_is_contiguous_and_even():
    assert [list(partition_evenly(10, 4, rank)) for rank in range(4)] == [[0, 1, 2], [3, 4], [5, 6, 7], [8, 9]]


@given(sides, sides, shards, ranks, st.sampled_from([shifted, random, lambda s, p, *_: strided(s, p, 5, "uniform")]))
def test_the_counts_of_a_level_are_the_sums_of_its_plans(h, w, side, size, cover):
    ownership, windows = Ownership((h, w), (side, side), size), cover((h, w), 16, 1, 2)

    def ask(ids):
        return np.ones(len(ids), np.uint64), ids % 4  # some windows cost nothing

    plans, counts = plans_of(windows, ownership, ask), count_level(windows, ownership, ask)
    assert (counts.windows, int(counts.evaluations.sum())) == (plans[0].windows, plans[0].evaluations)
    assert counts.evaluations.tolist() == [int((plan.window_ids % 4).sum()) for plan in plans]
    assert (counts.halo, counts.estimates) == tuple(map(sum, zip(*(plan.travelling() for plan in plans), strict=True)))


@given(sides, sides, shards, ranks)
def test_the_counts_of_decoding_are_the_sums_of_its_plans(h, w, side, size):
    ownership, cover = Ownership((h, w), (side, side), size), decode_cover((h, w), 16, 4)
    rounds = DecodeRounds(range(ownership.count), size)
    kept = [None] * size
    for turn, counts in enumerate(count_decode(cover, ownership, rounds)):
        plans = run_in_lockstep([plan_decode(rank, cover, ownership, rounds, turn, kept[rank]) for rank in range(size)])
        new = [np.setdiff1d(plan.window_ids, kept[rank] if turn else []) for rank, plan in enumerate(plans)]
        assert counts.evaluations.tolist() == [len(window_ids) for window_ids in new]
        travelling = tuple(map(sum, zip(*(plan.travelling() for plan in plans), strict=True)))
        assert (counts.windows, counts.halo, counts.estimates) == (sum(map(len, plans)), *travelling)
        kept = [plan.window_ids for plan in plans]
