import numpy as np
import pytest

from engine.comm import AgreedError


def test_pieces_arrive_whole_and_in_order_between_all_pairs(ranks):
    def piece(source, target, index):
        shape = (index + 1, source + 2, target + 1)
        return np.full(shape, source * 100 + target * 10 + index, np.float32)

    sends = [(target, piece(ranks.rank, target, i)) for target in range(ranks.size) for i in range(3)]
    receives = [(source, piece(source, ranks.rank, i).shape) for i in range(3) for source in range(ranks.size)]
    found = ranks.exchange(sends, receives)
    expected = [piece(source, ranks.rank, i) for i in range(3) for source in range(ranks.size)]
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_nothing_to_exchange_is_no_message(ranks):
    assert ranks.exchange([], []) == []


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
    ranks.sum_(total)
    assert total.tolist() == [ranks.size * i + sum(range(ranks.size)) for i in range(4)]
    assert ranks.any(ranks.rank == ranks.size - 1)
    assert not ranks.any(False)
