import numpy as np
import pytest
import torch

from engine.distributed.balance import SpeedBalance
from engine.distributed.collectives import PendingSum, PlanTask
from engine.distributed.planner import Planner
from engine.distributed.ranks import AgreedError
from engine.distributed.transfer import Incoming, Outgoing
from engine.planning.plan import PrefixSumRequest, SparseExchangeRequest, run_in_lockstep
from engine.training.gradients import GradientAverage


def test_pieces_arrive_whole_and_in_order_between_all_pairs(ranks):
    def piece(source, target, index):
        return torch.full((index + 1, source + 2, target + 1), float(source * 100 + target * 10 + index))

    others = [rank for rank in range(ranks.size) if rank != ranks.rank]
    expected = {s: torch.cat([piece(s, ranks.rank, i).ravel() for i in range(3)]) for s in others}
    receiving = {source: Incoming(ranks, source, 7, len(expected[source]), "cpu") for source in others}
    for message in receiving.values():
        message.start()
    for target in others:
        Outgoing(ranks, target, 7, [piece(ranks.rank, target, i) for i in range(3)]).start()
    for source in others:
        assert torch.equal(receiving[source].tensor(), expected[source])
    ranks.wait_until(lambda: not ranks.unsent)


def asks(rank, size):
    """A plan that asks everything: to write to every third rank after its own, twice, and for a sum."""
    before, total = yield PrefixSumRequest((rank + 1, 1))
    heard = []
    for turn in range(2):
        targets = range((rank + turn) % 3, size, 3)
        heard.append((yield SparseExchangeRequest({to: np.array([rank, to, turn]) for to in targets})))
    return before.tolist(), total.tolist(), heard


def test_what_plans_ask_is_answered_as_in_one_process(ranks):
    expected = run_in_lockstep([asks(rank, ranks.size) for rank in range(ranks.size)])[ranks.rank]
    answers = PlanTask(ranks, asks(ranks.rank, ranks.size)).take()
    assert answers[:2] == expected[:2]
    for mine, theirs in zip(answers[2], expected[2], strict=True):
        assert {s: m.tolist() for s, m in mine.items()} == {s: m.tolist() for s, m in theirs.items()}


def test_sums_are_made_while_other_things_go_on(ranks):
    sums = [PendingSum(ranks, [float(ranks.rank), 1.0, turn]) for turn in range(3)]
    for one in sums:
        one.start()
    for turn, one in enumerate(sums):
        assert one.result().tolist() == [sum_of_ranks(ranks), ranks.size, turn * ranks.size]


def sum_of_ranks(ranks):
    return sum(range(ranks.size))


def test_ranks_of_one_speed_are_dealt_equal_work_and_slow_ones_less(ranks):
    balance = SpeedBalance(ranks)
    for slow, expected in ((1.0, None), (3.0, 1 / (1 + 3 * (ranks.size - 1)))):
        balance.seconds_per_evaluation = 0.0
        balance.measure(slow if ranks.rank == 0 else 1.0, 1)
        sums = PendingSum(ranks, balance.terms())
        sums.start()
        balance.update(sums.result().tolist())
        if expected is None or ranks.size == 1:
            assert balance.run_ends is None
        else:
            assert balance.run_ends[0] == pytest.approx(expected)
            assert balance.run_ends[-1] == pytest.approx(1)


def test_a_plan_that_was_begun_is_finished_where_the_background_ends(ranks):
    planner = Planner(ranks, lambda level: asks(ranks.rank, ranks.size), 2)
    with ranks.background(planner.advance):
        planner.begin(1)
        planner.begin(2)  # beyond the last level
    assert planner.ahead[0] == 1
    assert planner.ahead[1].done
    assert ranks.in_background is None


def test_nothing_is_replaced_in_the_background_unnoticed(ranks):
    first, second = (Planner(ranks, lambda level: asks(ranks.rank, ranks.size), 1) for _ in range(2))
    with ranks.background(first.advance):
        first.begin(0)
        with pytest.raises(RuntimeError, match="background already"), ranks.background(second.advance):
            pass
        assert ranks.in_background == first.advance
        first.take(0)


def test_after_an_error_of_all_ranks_a_plan_that_was_begun_is_brought_to_its_end(ranks):
    def fails():
        raise ValueError("the reason")

    planner = Planner(ranks, lambda level: asks(ranks.rank, ranks.size), 1)

    def begin_and_fail():
        with ranks.background(planner.advance):
            planner.begin(0)
            ranks.agree(fails)

    with pytest.raises(AgreedError, match="the reason"):
        begin_and_fail()
    assert planner.ahead[1].done


def test_an_error_on_the_last_rank_is_everybodys(ranks):
    def work():
        if ranks.rank == ranks.size - 1:
            raise ValueError("the reason")
        return 1

    with pytest.raises(AgreedError, match="the reason"):
        ranks.agree(work)
    assert ranks.agree(lambda: ranks.rank) == ranks.rank


def test_what_the_root_finds_or_raises_is_shared(ranks):
    assert ranks.on_root(lambda: {"a": ranks.rank}) == {"a": 0}

    def fails():
        raise OSError(28, "No space left on device", "out.zarr")

    with pytest.raises(AgreedError, match=r"out\.zarr: No space left on device"):
        ranks.on_root(fails)


def test_sums_and_flags_are_over_all_ranks(ranks):
    total = np.arange(4.0) + ranks.rank
    ranks.allreduce_array(total)
    assert total.tolist() == [ranks.size * i + sum(range(ranks.size)) for i in range(4)]
    assert ranks.any(ranks.rank == ranks.size - 1)
    assert not ranks.any(False)


@pytest.mark.parametrize("size", [1, 7, 10**6])
def test_gradients_are_summed_whatever_the_order_in_which_they_come(ranks, size):
    """A network of which every rank uses another part; what none of them uses counts as zero."""
    torch.manual_seed(0)
    layers = torch.nn.ModuleList([torch.nn.Linear(3, 3) for _ in range(5)])
    average = GradientAverage(list(layers.parameters()), ranks, size)
    expected = [torch.zeros_like(p) for p in layers.parameters()]
    for rank in range(ranks.size):
        x = torch.full((2, 3), float(rank + 1))
        own = torch.nn.ModuleList(layers[i] for i in range(4) if i != rank)
        for parameter in layers.parameters():
            parameter.grad = None
        loss = sum(layer(x).square().sum() for layer in own)
        for total, gradient in zip(
            expected, torch.autograd.grad(loss, list(layers.parameters()), allow_unused=True), strict=True
        ):
            total += 0 if gradient is None else gradient
    for _ in range(2):
        layers.zero_grad(set_to_none=True)
        x = torch.full((2, 3), float(ranks.rank + 1))
        mine = [layers[i] for i in range(4) if i != ranks.rank]
        if ranks.rank % 2:
            mine.reverse()
        loss = sum(layer(x).square().sum() for layer in mine)
        average.begin()
        loss.backward()
        average.finish()
        if ranks.size > 1:
            for parameter, total in zip(layers.parameters(), expected, strict=True):
                torch.testing.assert_close(parameter.grad, total)
