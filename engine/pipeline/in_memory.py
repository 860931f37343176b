"""The loop in memory: for a network, a cover or a solver that is being tried, without files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.diffusion.conditions import Condition
from engine.diffusion.denoiser import Denoiser, Network
from engine.diffusion.schedule import Schedule
from engine.diffusion.solvers import steps_of
from engine.distributed.canvas import Canvas
from engine.distributed.launch import ranks_of
from engine.distributed.planner import Planner
from engine.pipeline.sampler import sample
from engine.planning.cover import cover_of
from engine.planning.names import COVERS, WEIGHTS
from engine.planning.ownership import Ownership
from engine.planning.plan import LabelsAndCosts, Plan, Planning, plan_level


def sample_latents(
    network: Network,
    schedule: Schedule,
    *,
    shape: tuple[int, int, int],
    patch: int,
    cover: str = "shifted",
    solver: str = "ddim",
    steps: int = 25,
    seed: int = 0,
    eta: float = 0.0,
    stride: int | None = None,
    weights: str = "uniform",
    condition: Condition | None = None,
    batch_size: int = 8,
    side: int = 256,
    device: str = "cpu",
    comm: Any = None,
    on_level: Callable[[int, Tensor], Any] | None = None,
) -> Tensor:
    """Sample a canvas with a network, on all ranks, and return the whole of it on each. Collective over ``comm``.

    The loop, covers, solvers and noise are those of a job: with a job's settings the latents are a job's.

    Args:
        network: From windows (B, C, p, p), timesteps (B,) and the condition's inputs to what ``schedule`` predicts.
        schedule: Noise levels and what the network's output means.
        shape: Channels, height and width of the canvas, in latents.
        patch: Side of a window; the canvas has at least as many rows and columns.
        cover: ``shifted``, ``random`` or ``strided``; stride, weights: of the strided one (default: half a window).
        solver: ``ddim`` (with ``eta``), ``ddpm``, ``dpmpp2m`` or ``euler``.
        steps: Number of levels.
        condition: What windows are asked for; None: the network is asked for nothing.
        batch_size: Windows in a micro-batch.
        side: Side of the shards that the canvas is dealt to the ranks in; changes no value.
        device: Of the canvas; the network is called with tensors there.
        comm: mpi4py communicator; None: all ranks that were started together.
        on_level: Called after every level with its number, from 1 on, and the estimate (C, H, W) of the clean canvas;
            true stops.
    Returns:
        float32 (C, H, W).
    Raises:
        ValueError: an unknown cover or solver, too small a canvas, or steps that the schedule does not have.

    >>> schedule = Schedule.from_config({"prediction_type": "sample"})
    >>> latents = sample_latents(lambda x, t, inputs: x * 0 + 0.5, schedule, shape=(1, 20, 30), patch=8, steps=2)
    >>> latents.shape, float(latents.min()), float(latents.max())
    (torch.Size([1, 20, 30]), 0.5, 0.5)
    """
    channels, height, width = check(shape, patch, cover, weights)
    ranks, condition = ranks_of(comm), condition or Condition()
    timesteps = schedule.timesteps(steps)
    table = steps_of(solver, schedule.alpha_bars(timesteps), eta, schedule.rederive_noise, schedule.variance)
    ownership = Ownership((height, width), (side, side), ranks.size)
    canvas = Canvas(ranks, ownership, channels, seed, device)
    canvas.keeps_estimate = on_level is not None
    canvas.start()

    def part(level: int) -> Planning[Plan]:
        windows = cover_of(
            cover, (height, width), patch, seed, level, stride=stride or max(patch // 2, 1), weights=weights
        )
        return plan_level(ranks.rank, windows, ownership, asks(windows))

    def asks(windows: Any) -> LabelsAndCosts:
        def ask(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            label_bits = condition.label_bits(windows, ids)
            return label_bits, condition.costs(label_bits)

        return ask

    def told(level: int, plan: Plan) -> bool:
        return on_level is not None and ranks.any(bool(on_level(level, whole_of(canvas, canvas.estimate))))

    planner = Planner(ranks, part, steps)
    denoiser = Denoiser([network], condition, schedule, timesteps, batch_size, device=device)
    with ranks.background(planner.advance):
        sample(canvas, planner, denoiser, table, on_level=told)
    ranks.flush()
    return whole_of(canvas, canvas.x)


def check(shape: tuple[int, int, int], patch: int, cover: str, weights: str) -> tuple[int, int, int]:
    """Refuse what cannot be sampled; returns the shape.

    Raises:
        ValueError: naming the argument.
    """
    for name, value, known in (("cover", cover, COVERS), ("weights", weights, WEIGHTS)):
        if value not in known:
            raise ValueError(f"`{name}` is {value!r}; known: {', '.join(known)}")
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"`shape` is {shape}; expected channels, height and width")
    if min(shape[1:]) < patch:
        raise ValueError(f"`shape` is {shape}, smaller than a window of {patch}; choose at least that")
    channels, height, width = shape
    return channels, height, width


def whole_of(canvas: Canvas, shards: dict[int, Tensor]) -> Tensor:
    """float32 (C, H, W): the shards of all ranks, on every rank. Collective."""
    own = {shard: tensor.float().cpu().numpy() for shard, tensor in shards.items()}
    whole = torch.empty(canvas.channels, *canvas.ownership.shape)
    for of_rank in canvas.ranks.allgather(own):
        for shard, values in of_rank.items():
            box = canvas.ownership.shard(shard)
            whole[:, box.y0 : box.y1, box.x0 : box.x1] = torch.from_numpy(values)
    return whole
