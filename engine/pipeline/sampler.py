"""The loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from engine.diffusion.denoiser import Denoiser
from engine.diffusion.solvers import Step
from engine.distributed.canvas import Canvas
from engine.distributed.exchange import Exchange
from engine.distributed.planner import Planner
from engine.planning.plan import Plan

AfterLevel = Callable[[int, Plan], bool | None]


def never_stop(level: int, plan: Plan) -> bool:
    """A callback that never stops the loop."""
    return False


def sample(
    canvas: Canvas,
    planner: Planner,
    denoise: Denoiser,
    steps: Sequence[Step],
    first: int = 0,
    on_level: AfterLevel = never_stop,
) -> bool:
    """Denoise the canvas from level ``first`` to the end. Collective.

    Args:
        steps: The solver's step of each level.
        on_level: Called after every level with the level that comes next and the plan that was followed; true stops.
    Returns:
        Whether the last level was reached.
    """
    schedule = denoise.schedule
    channels = schedule.output_channels(canvas.channels)
    canvas.hold_known(first)
    for level in range(first, len(steps)):
        plan = planner.take(level)
        exchange = Exchange(canvas, plan, channels, turn=level)
        exchange.start()
        planner.begin(level + 1)
        with canvas.ranks.computing("evaluate"):
            denoise(plan, exchange, level)
        canvas.step(exchange.fuse(), steps[level], level, schedule.clip)
        if on_level(level + 1, plan):
            return level + 1 == len(steps)
    return True
