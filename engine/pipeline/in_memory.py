"""The loop in memory: for a network, a cover or a solver that is being tried, without files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.diffusion.conditions import Condition
from engine.diffusion.denoiser import Denoiser, Network
from engine.diffusion.schedule import Schedule
from engine.diffusion.solvers import asked_at, steps_of
from engine.distributed.canvas import Canvas
from engine.distributed.launch import ranks_of
from engine.distributed.planner import Planner
from engine.distributed.ranks import Ranks
from engine.job import SampleJob
from engine.options import options_of, read_as, whole
from engine.pipeline.collective_call import Facts, agreed, array_text, call_users, failing_together
from engine.pipeline.sampler import sample
from engine.planning.cover import Cover, cover_of
from engine.planning.ownership import Ownership
from engine.planning.plan import LabelsAndCosts, Plan, Planning, plan_level

OnEstimate = Callable[[int, Tensor], Any]
OF_A_JOB = ("cover", "solver", "steps", "seed", "eta", "stride", "weights", "batch_size")
KINDS = {name: options_of(SampleJob)[name].kind for name in OF_A_JOB} | {"patch": whole(1), "side": whole(1)}


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
    on_level: OnEstimate | None = None,
) -> Tensor:
    """Sample a canvas with a network, on all ranks, and return the whole of it on each. Collective over ``comm``.

    The loop, covers, solvers and noise are those of a job: with a job's settings the latents are a job's.

    Args:
        network: From windows (B, C, p, p), timesteps (B,) and the condition's inputs to what ``schedule`` predicts. It
            is called once before the first level, to check its output.
        schedule: Noise levels and what the network's output means.
        shape: Channels, height and width of the canvas, in latents.
        patch: Side of a window; the canvas has at least as many rows and columns.
        cover: ``shifted``, ``random`` or ``strided``.
        solver: ``ddim`` (with ``eta``), ``ddpm``, ``dpmpp2m``, ``euler`` or ``plms``.
        steps: Number of levels.
        seed: Seed of all noise and of the covers, 0 or more.
        eta: Share of fresh noise in a step of ddim, 0 to 1.
        stride: Distance from one window of the strided cover to the next, in latents; None: half a window.
        weights: Of the strided cover's windows: ``uniform``, ``gaussian`` or ``hann``.
        condition: What windows are asked for, and with which guidance; None: the network is asked for nothing, and
            its ``inputs`` are empty. They are tensors, batch first: of ``LabelMap`` ``label`` (B,), where 0 is the
            null, and ``mask`` (B, 1, p, p), 1 where that label lies; of ``ClassMap`` ``label`` (B,), where -1 is the
            null, or ``embedding`` (B, D); of ``EmbeddingGrid`` ``embedding`` and perhaps ``region`` (B, D); of
            ``SemanticMap`` ``map`` (B, K, p, p).
        batch_size: Windows in a micro-batch.
        side: Side of the shards that the canvas is dealt to the ranks in; changes no value.
        device: Of the canvas; the network is called with tensors there.
        comm: mpi4py communicator; None: all ranks that were started together.
        on_level: Called after every level with its number, from 1 on, and the estimate (C, H, W) of the clean canvas;
            true stops.
    Returns:
        float32 (C, H, W).
    Raises:
        ValueError: an argument out of its range, or not the same on all ranks; or what the network returns is not what
            the schedule takes: it says what came.
        TypeError: an argument of another kind.
        RuntimeError: another call is under way on this communicator.

    >>> schedule = Schedule.from_config({"prediction_type": "sample"})
    >>> latents = sample_latents(lambda x, t, inputs: x * 0 + 0.5, schedule, shape=(1, 20, 30), patch=8, steps=2)
    >>> latents.shape, float(latents.min()), float(latents.max())
    (torch.Size([1, 20, 30]), 0.5, 0.5)

    A label a latent, here 1 on the left and 2 on the right; each is evaluated where it lies:

    >>> from engine import LabelMap
    >>> labels = np.ones((20, 30), np.uint8)
    >>> labels[:, 15:] = 2
    >>> def network(x, t, inputs):
    ...     return x * 0 + inputs["label"][:, None, None, None] * inputs["mask"]
    >>> latents = sample_latents(
    ...     network, schedule, shape=(1, 20, 30), patch=8, steps=2, condition=LabelMap(1.0, labels)
    ... )
    >>> latents[0, 0, :15].unique(), latents[0, 0, 15:].unique()
    (tensor([1.]), tensor([2.]))
    """
    ranks, condition = ranks_of(comm), Condition() if condition is None else condition

    def check() -> tuple[dict[str, Any], Facts]:
        check_kinds(network, schedule, condition, on_level)
        settings = {"cover": cover, "solver": solver, "steps": steps, "seed": seed, "eta": eta, "stride": stride}
        settings |= {"weights": weights, "batch_size": batch_size, "patch": patch, "side": side}
        chosen = read_settings(settings, schedule) | {"shape": read_shape(shape), "device": read_device(device)}
        check_canvas(chosen["shape"], chosen["patch"], condition)
        asked = f"{type(condition).__name__} of guidance {condition.guidance:g}"
        facts = {**chosen, "condition": asked, "on_level": "None" if on_level is None else "a function"}
        return chosen, {name: repr(value) for name, value in facts.items()}

    with ranks.one_call():
        chosen = agreed(ranks, check)
        with failing_together(ranks):
            return sample_in_memory(ranks, network, schedule, condition, on_level, **chosen)


def sample_in_memory(
    ranks: Ranks,
    network: Network,
    schedule: Schedule,
    condition: Condition,
    on_level: OnEstimate | None,
    *,
    shape: tuple[int, int, int],
    patch: int,
    cover: str,
    solver: str,
    steps: int,
    seed: int,
    eta: float,
    stride: int | None,
    weights: str,
    batch_size: int,
    side: int,
    device: str,
) -> Tensor:
    """What ``sample_latents`` does, with arguments that are checked. Collective."""
    channels, height, width = shape
    timesteps = asked_at(solver, schedule.timesteps(steps))
    alpha_bars, betas = schedule.alpha_bars(timesteps), schedule.eta_betas(timesteps)
    table = steps_of(solver, alpha_bars, eta, schedule.rederive_noise, schedule.variance, betas, schedule.final)
    ownership = Ownership((height, width), (side, side), ranks.size)

    def cover_at(level: int) -> Cover:
        distance = stride or max(patch // 2, 1)
        return cover_of(cover, (height, width), patch, seed, level, stride=distance, weights=weights)

    def part(level: int) -> Planning[Plan]:
        windows = cover_at(level)
        return plan_level(ranks.rank, windows, ownership, asks(windows))

    def asks(windows: Any) -> LabelsAndCosts:
        def ask(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            label_bits = condition.label_bits(windows, ids)
            return label_bits, condition.costs(label_bits)

        return ask

    def told(level: int, plan: Plan) -> bool:
        if on_level is None:
            return False
        estimate = whole_of(canvas, canvas.estimate)
        return ranks.any(call_users(ranks, "on_level", lambda: bool(on_level(level, estimate))))

    def denoiser_of(network: Network) -> Denoiser:
        return Denoiser([network], condition, schedule, timesteps, batch_size, device=device)

    trial = denoiser_of(checking(network, schedule.output_channels(channels)))
    call_users(ranks, "network", lambda: evaluate_once(trial, cover_at(0), channels))
    canvas = Canvas(ranks, ownership, channels, seed, device)
    canvas.keeps_estimate = on_level is not None
    canvas.start()
    planner = Planner(ranks, part, len(table))
    with ranks.background(planner.advance):
        sample(canvas, planner, denoiser_of(network), table, on_level=told)
    ranks.flush()
    return whole_of(canvas, canvas.x)


# ---- checks ---------------------------------------------------------------------------------


def check_kinds(network: Any, schedule: Any, condition: Any, on_level: Any) -> None:
    """Refuse what is no network, no schedule, no condition or no callback.

    Raises:
        TypeError: naming the argument.
    """
    for name, value, kind in (("schedule", schedule, Schedule), ("condition", condition, Condition)):
        if not isinstance(value, kind):
            raise TypeError(f"`{name}` is of type {type(value).__name__}: expected an engine.{kind.__name__}")
    for name, function in (("network", network), ("on_level", on_level)):
        if not callable(function) and not (name == "on_level" and function is None):
            raise TypeError(f"`{name}` is of type {type(function).__name__}: expected a function")


def read_settings(settings: Mapping[str, Any], schedule: Schedule) -> dict[str, Any]:
    """Settings after the checks that a job has.

    Raises:
        ValueError: naming the argument.
    """
    chosen: dict[str, Any] = {
        name: None if name == "stride" and value is None else read_as(KINDS[name], value, f"`{name}`")
        for name, value in settings.items()
    }
    cover, stride, patch = chosen["cover"], chosen["stride"], chosen["patch"]
    if stride is not None and cover != "strided":
        raise ValueError(
            f"`stride` is {stride} but the {cover} cover has none; add `cover` strided, or leave `stride` out"
        )
    if stride is not None and stride > patch:
        raise ValueError(
            f"`stride` is {stride} latents but a window has {patch}: it would leave gaps; choose 1 to {patch}"
        )
    schedule.timesteps(chosen["steps"])
    steps_of(chosen["solver"], (0.5,), chosen["eta"], False)
    return chosen


def read_shape(shape: Any) -> tuple[int, int, int]:
    """Channels, height and width.

    Raises:
        ValueError: it is something else.
    """
    lengths = tuple(shape) if isinstance(shape, Iterable) else ()
    if len(lengths) != 3:
        raise ValueError(f"`shape` is {shape!r}: expected channels, height and width")
    channels, height, width = (read_as(whole(1, 2**31), length, "`shape`") for length in lengths)
    return channels, height, width


def read_device(device: Any) -> str:
    """A device that is there, by its name.

    Raises:
        ValueError: it is none.
    """
    try:
        torch.empty(0, device=device)
    except Exception as problem:  # of as many kinds as there are devices
        raise ValueError(f"`device` is {device!r}: expected cpu, or cuda where torch has a GPU") from problem
    return str(device)


def check_canvas(shape: tuple[int, int, int], patch: int, condition: Condition) -> None:
    """Refuse a canvas that is smaller than a window, or of another size than the condition's labels.

    Raises:
        ValueError: naming the argument.
    """
    if min(shape[1:]) < patch:
        raise ValueError(f"`shape` is {shape}, smaller than a window of {patch}; choose at least that")
    if condition.labels is not None and tuple(condition.labels.shape) != shape[1:]:
        raise ValueError(
            f"`condition` has labels of shape {tuple(condition.labels.shape)} but the canvas has {shape[1:]} latents; "
            "give a label for every latent"
        )


def checking(network: Network, channels: int) -> Network:
    """The network, with its output checked.

    Args:
        channels: That the output must have.
    """

    def answer(x: Tensor, t: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        output, expected = network(x, t, inputs), (len(x), channels, *x.shape[2:])
        if not isinstance(output, Tensor):
            raise ValueError(
                f"`network` returned an object of type {type(output).__name__}: expected a tensor {expected}"
            )
        if tuple(output.shape) != expected or not output.is_floating_point():
            raise ValueError(
                f"`network` returned {array_text(output)}: expected {expected} (windows, channels, rows, columns) "
                "of floating-point numbers"
            )
        if not bool(torch.isfinite(output).all()):
            raise ValueError("`network` returned values that are not finite; it was given noise and the first timestep")
        return output

    return answer


def evaluate_once(denoiser: Denoiser, windows: Cover, channels: int) -> None:
    """Evaluate a micro-batch of noise in the place of the first window. Local."""
    condition = denoiser.condition
    x = torch.randn(
        (denoiser.batch_size, channels, windows.patch, windows.patch), generator=torch.Generator().manual_seed(0)
    )
    denoiser.evaluate(condition, [condition.first_request(windows)], x.to(denoiser.device), int(denoiser.timesteps[0]))


def whole_of(canvas: Canvas, shards: dict[int, Tensor]) -> Tensor:
    """float32 (C, H, W): the shards of all ranks, on every rank. Collective."""
    own = {shard: tensor.float().cpu().numpy() for shard, tensor in shards.items()}
    whole = torch.empty(canvas.channels, *canvas.ownership.shape)
    for of_rank in canvas.ranks.allgather(own):
        for shard, values in of_rank.items():
            box = canvas.ownership.shard(shard)
            whole[:, box.y0 : box.y1, box.x0 : box.x1] = torch.from_numpy(values)
    return whole
