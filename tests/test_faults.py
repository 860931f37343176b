"""Faults of the systems that this project runs the models of (see README), each shown not to be shared."""

import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.diffusion.conditions import Condition
from engine.diffusion.denoiser import Denoiser
from engine.diffusion.schedule import Schedule, betas
from engine.diffusion.solvers import ddim
from engine.distributed.canvas import Canvas
from engine.distributed.exchange import Exchange
from engine.distributed.launch import world
from engine.distributed.planner import Planner
from engine.pipeline.sampler import sample
from engine.planning.cover import random, shifted, strided
from engine.planning.ownership import Ownership
from engine.planning.plan import plan_level, run_in_lockstep
from kernels.philox import standard_normal

SCHEDULE = Schedule(tuple(np.cumprod(1 - betas("squaredcos_cap_v2", 1000)).tolist()), "sample", spacing="trailing")


def asked_once(ids):
    return np.ones(len(ids), np.uint64), np.ones(len(ids), np.int64)


def run(network, shape, patch, levels, cover=shifted, channels=1, side=64):
    """The canvas after a run of the engine's loop on one rank, and the levels that it ran."""
    ownership = Ownership(shape, (side, side), 1)
    canvas = Canvas(world(), ownership, channels, seed=3)
    canvas.start()
    ran = []

    def part(level):
        return plan_level(0, cover(shape, patch, 3, level), ownership, asked_once)

    timesteps = SCHEDULE.timesteps(levels)
    steps = ddim([SCHEDULE.alpha_bar[t] for t in timesteps], 1.0)
    denoise = Denoiser([network], Condition(), SCHEDULE, timesteps, batch_size=4)
    sample(canvas, Planner(canvas.ranks, part, levels), denoise, steps, on_level=lambda level, _: ran.append(level))
    return canvas, ran


def test_the_last_level_runs_and_leaves_no_noise():
    """DiffInfinite stops one level early: its result still holds the noise of the last level."""
    canvas, ran = run(lambda x, t, given: torch.full_like(x, 0.25), (40, 50), 16, 6)
    assert ran == [1, 2, 3, 4, 5, 6]
    assert all(bool((x == 0.25).all()) for x in canvas.x.values())


@pytest.mark.long
def test_a_canvas_of_more_than_2_to_the_24_latents_ends():
    """DiffInfinite waits for a float32 mean to equal an integer, which does not come true on some large canvases."""
    shape = (4100, 4100)
    assert shape[0] * shape[1] > 2**24
    begun = time.process_time()
    _, ran = run(lambda x, t, given: torch.zeros_like(x), shape, 1024, 1, side=2048)
    assert ran == [1]
    ownership = Ownership((5000, 5000), (256, 256), 8)
    for level in range(0, 250, 50):  # the plan alone, at its levels and the size that was seen to hang
        cover = shifted(ownership.shape, 64, 0, level)
        parts = run_in_lockstep([plan_level(rank, cover, ownership, asked_once) for rank in range(8)])
        fused = [
            part.estimate_recvs.areas.sum() + part.estimate_sends[part.estimate_sends.peer == part.rank].areas.sum()
            for part in parts
        ]
        assert sum(fused) == 5000 * 5000
    assert time.process_time() - begun < 300, "a hang; not a measure of speed"


@given(st.sampled_from([shifted, random, lambda s, p, seed, level: strided(s, p, 5, "uniform")]), st.integers(0, 99))
def test_a_position_has_one_noise_at_the_first_level_whatever_window_reads_it(cover, level):
    """DiffInfinite's first level mixes two unrelated noises: windows that overlap do not see the same canvas."""
    shape = (37, 45)
    ownership = Ownership(shape, (16, 16), 1)
    canvas = Canvas(world(), ownership, 2, seed=level)
    canvas.start()
    windows = cover(shape, 12, 1, level)
    (plan,) = run_in_lockstep([plan_level(0, windows, ownership, asked_once)])
    exchange = Exchange(canvas, plan, 2)
    exchange.start()
    field = standard_normal(level, "initial", 0, (0, 0, *shape), 2)
    for slot in range(len(plan)):
        w = plan.box(slot)
        assert torch.equal(exchange.read([slot], 1, torch.float32)[0], field[:, w.y0 : w.y1, w.x0 : w.x1])


def test_offsets_are_seeded_and_the_two_axes_are_not_drawn_alike():
    """Others draw both axes from equally seeded generators: offsets lie on the diagonal only; or do not seed them."""
    offsets = [
        [line.offset for line in (c.rows, c.columns)] for c in (shifted((999, 999), 64, 7, i) for i in range(60))
    ]
    again = [[line.offset for line in (c.rows, c.columns)] for c in (shifted((999, 999), 64, 7, i) for i in range(60))]
    other = [[line.offset for line in (c.rows, c.columns)] for c in (shifted((999, 999), 64, 8, i) for i in range(60))]
    assert offsets == again != other
    assert abs(np.corrcoef(np.array(offsets).T)[0, 1]) < 0.4
    assert len({tuple(pair) for pair in offsets}) > 55


def test_the_stages_of_one_seed_and_the_next_have_nothing_in_common():
    """Additive stage seeds: stage 2 of seed s is stage 1 of seed s + 1."""
    from engine.pipeline.label_stage import stage_seed

    seeds = list(range(200))
    stages = [stage_seed(s) for s in seeds]
    assert len({*seeds, *stages}) == 400
    assert all(0 <= s < 2**63 for s in stages)
