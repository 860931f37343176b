"""The loop."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from engine.diffusion.denoiser import Denoiser
from engine.diffusion.schedule import Schedule
from engine.diffusion.solvers import Step, needs_previous
from engine.distributed.canvas import Canvas
from engine.distributed.exchange import Exchange
from engine.distributed.planner import Planner
from engine.planning.plan import Plan


def sample(
    canvas: Canvas,
    planner: Planner,
    denoise: Denoiser,
    schedule: Schedule,
    timesteps: np.ndarray,
    table: list[Step],
    first: int,
    between: Callable[[int, float], None],
    after: Callable[[int, Plan], bool],
) -> bool:
    """Denoise the canvas from level ``first`` to the end. Collective.

    Args:
        planner: has begun the plan of the first level.
        timesteps, table: of the levels.
        between: called after every micro-batch with the level and the part of its work that is done.
        after: called after every level with the level to come; true asks to stop there.
    Returns:
        Whether the last level was reached.
    """
    timer = canvas.ranks.timer
    estimated_channels = canvas.channels * (2 if schedule.variance == "learned_range" else 1)
    for level in range(first, len(table)):
        canvas.hold_known(level, schedule.alpha_bar[timesteps[level]])
        with timer("plan"):
            plan = planner.take(level)
        with timer("exchange"):
            exchange = Exchange(canvas, plan, estimated_channels, turn=level)
        if level + 1 < len(table):
            planner.begin(level + 1)
        with timer("evaluate"), canvas.ranks.progress_in_background():
            denoise(plan, exchange, int(timesteps[level]), level, between)
        keeps = needs_previous(table, level + 1)
        with timer("fuse"):
            canvas.step(exchange.fuse(), table[level], level, schedule.clip, keeps)
        if level + 1 == len(table):
            canvas.hold_known(level + 1, 1.0)
        if after(level + 1, plan) and level + 1 < len(table):
            return False
    return True
