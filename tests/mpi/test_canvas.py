import numpy as np
import pytest
import torch

from engine.diffusion.solvers import Step
from engine.distributed.canvas import Canvas
from engine.distributed.exchange import Exchange
from engine.distributed.planner import Planner
from engine.planning.cover import random, shifted, strided, windows_of
from engine.planning.geometry import Box
from engine.planning.ownership import Ownership
from engine.planning.plan import plan_level
from kernels.philox import standard_normal

SHAPE, SIDE, PATCH = (70, 93), 24, 16


def field(canvas):
    """The whole canvas, on every rank: for tests only."""
    whole = torch.full((canvas.channels, *SHAPE), float("nan"))
    for part in canvas.ranks.allgather({s: x.numpy() for s, x in canvas.x.items()}):
        for shard, x in part.items():
            box = canvas.ownership.shard(shard)
            whole[:, box.y0 : box.y1, box.x0 : box.x1] = torch.from_numpy(x)
    return whole


def cover_of(kind, level):
    if kind == "shifted":
        return shifted(SHAPE, PATCH, 5, level)
    return random(SHAPE, PATCH, 5, level) if kind == "random" else strided(SHAPE, PATCH, 11, "gaussian")


@pytest.fixture
def canvas(ranks):
    made = Canvas(ranks, Ownership(SHAPE, (SIDE, SIDE), ranks.size), channels=3, seed=9)
    made.start()
    return made


def test_the_canvas_starts_as_one_field_of_noise(canvas):
    assert torch.equal(field(canvas), standard_normal(9, "initial", 0, (0, 0, *SHAPE), 3))


def once(ids):
    return np.ones(len(ids), np.uint64), np.ones(len(ids), np.int64)


def exchange_of(canvas, cover):
    """What this rank reads and sends in a level, planned over MPI."""
    planner = Planner(canvas.ranks, lambda level: plan_level(canvas.ranks.rank, cover, canvas.ownership, once), 1)
    plan = planner.take(0)
    exchange = Exchange(canvas, plan, 3)
    exchange.start()
    return plan, exchange


@pytest.mark.parametrize("kind", ["shifted", "random", "strided"])
def test_a_gathered_window_is_that_crop_of_the_canvas(canvas, kind):
    whole = field(canvas)
    plan, exchange = exchange_of(canvas, cover_of(kind, 2))
    for start in range(0, len(plan), 5):
        slots = list(range(start, min(start + 5, len(plan))))
        windows = exchange.read(slots, 5, torch.float32)
        for slot, x in zip([*slots, *slots[-1:] * (5 - len(slots))], windows, strict=True):
            w = plan.box(slot)
            assert torch.equal(x, whole[:, w.y0 : w.y1, w.x0 : w.x1])
        for slot in slots:
            exchange.put(slot, windows[slot - start])
    exchange.fuse()  # what others were told to expect is sent, and nothing is left for the next test


@pytest.mark.parametrize("kind", ["shifted", "random", "strided"])
def test_fusing_gathered_windows_gives_the_canvas_back(canvas, ranks, kind):
    plan, exchange = exchange_of(canvas, cover_of(kind, 1))
    for slot in range(len(plan)):
        exchange.put(slot, exchange.read([slot], 1, torch.float32)[0])
    fused = exchange.fuse()
    assert set(fused) == set(canvas.ownership.owned(ranks.rank))
    for shard, x in fused.items():
        torch.testing.assert_close(x, canvas.x[shard], rtol=1e-5, atol=1e-6)
        if kind != "strided":
            assert torch.equal(x, canvas.x[shard])


def test_overlapping_estimates_are_summed_in_one_order_on_any_number_of_ranks(canvas):
    cover = strided(SHAPE, PATCH, 5, "hann")
    plan, exchange = exchange_of(canvas, cover)
    estimates = {i: standard_normal(i, "step", 0, (0, 0, PATCH, PATCH), 3) for i in range(len(cover))}
    for slot, index in enumerate(plan.window_ids.tolist()):
        exchange.read([slot], 1, torch.float32)
        exchange.put(slot, estimates[index])
    fused = exchange.fuse()
    total, weight = torch.zeros(3, *SHAPE), torch.zeros(SHAPE)
    for index, box in enumerate(windows_of(cover, np.arange(len(cover))).tolist()):
        w = Box(*box)
        line = torch.from_numpy(cover.weight(index, w))
        total[:, w.y0 : w.y1, w.x0 : w.x1] += estimates[index] * line
        weight[w.y0 : w.y1, w.x0 : w.x1] += line
    for shard, x in fused.items():
        box = canvas.ownership.shard(shard)
        assert torch.equal(x, (total / weight)[:, box.y0 : box.y1, box.x0 : box.x1])


def test_a_step_adds_one_noise_a_position(canvas):
    before = field(canvas)
    canvas.step({s: torch.zeros_like(x) for s, x in canvas.x.items()}, Step(a=0.5, b=1.0, d=2.0), 4, None)
    expected = before * 0.5 + standard_normal(9, "step", 4, (0, 0, *SHAPE), 3) * 2.0
    torch.testing.assert_close(field(canvas), expected)


def test_nothing_is_sent_before_an_exchange_is_started(canvas, ranks):
    cover = cover_of("shifted", 3)
    plan = Planner(ranks, lambda level: plan_level(ranks.rank, cover, canvas.ownership, once), 1).take(0)
    idle = [Exchange(canvas, plan, 3) for _ in range(3)]
    assert not ranks.unsent
    assert not any(exchange.halo or exchange.arriving for exchange in idle)
    ranks.barrier()
    assert not ranks.comm.Iprobe()
    ranks.barrier()
