"""The loop."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from engine.canvas import Canvas, fuse
from engine.denoiser import Denoiser
from engine.plan import LevelPlan
from engine.schedule import Schedule
from engine.solvers import Step


def sample(
    canvas: Canvas,
    plan_level: Callable[[int], tuple[LevelPlan, np.ndarray]],
    denoise: Denoiser,
    schedule: Schedule,
    timesteps: np.ndarray,
    table: list[Step],
    first: int,
    after: Callable[[int, LevelPlan], bool],
) -> bool:
    """Denoise the canvas from level ``first`` to the end. Collective.

    Args:
        plan_level: from a level to its plan and the labels of its windows.
        timesteps, table: of the levels.
        after: called after every level with the level to come; true asks to stop there.
    Returns:
        Whether the last level was reached.
    """
    rank = canvas.ranks.rank
    estimated_channels = canvas.channels * (2 if schedule.variance == "learned_range" else 1)
    for level in range(first, len(table)):
        with canvas.ranks.timer("plan"):
            plan, present = plan_level(level)
        canvas.hold_known(level, schedule.alpha_bar[timesteps[level]])
        with canvas.ranks.timer("exchange"):
            read = canvas.gather(plan)
        with canvas.ranks.timer("evaluate"):
            estimates = denoise(plan, present, plan.windows_of(rank), read, int(timesteps[level]), level)
        keeps = level + 1 < len(table) and table[level + 1].c != 0
        with canvas.ranks.timer("fuse"):
            denoised = fuse(canvas.ranks, plan, estimates, estimated_channels, device=canvas.device)
            canvas.step(denoised, table[level], level, schedule.clip, keeps)
        if level + 1 == len(table):
            canvas.hold_known(level + 1, 1.0)
        if after(level + 1, plan) and level + 1 < len(table):
            return False
    return True
