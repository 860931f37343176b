"""``python -m benchmarks.training``: the time of a training step over the bare network's, and what many ranks lose.

A step is everything that ``engine.train`` does between two checkpoints: batches decoded ahead, noise, timesteps, loss,
backward pass, sums over the ranks, clipping, optimiser, average of the weights, agreement on the end. Bare is the same
network on a batch of the same shape that lies ready: forward and backward, and in another column with the optimiser.
Nothing in the engine is changed for it: the trainer's ``save`` comes every ``--steps`` steps, and there the bare steps
follow, so that the two take turns in one run, and on several ranks meet the same neighbours. "over bare" is the median
of the turns' ratios, "low" and "high" their quartiles; the first turn does not count, it warms up.

Networks:

- real: a small one of the nuclei system, on as many ranks as there are cores, in float32 and bfloat16 (``gain`` is how
  much faster a step is than a float32 step, each over the same bare float32 step of its own run);
- emulated: an accelerator that occupies no core: forward, backward and optimiser (with clipping and the average of the
  weights) are sleeps of fixed length, and gradients come layer by layer. They are really summed over the ranks, windows
  are really decoded. The batch grows with the ranks, and efficiency is T1 / Tn.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.report import report
from benchmarks.scaling import MEASURED, launcher, sleep_until
from engine.distributed.launch import run_main
from engine.distributed.ranks import Ranks
from engine.training.loop import LoopSettings, Trainer
from engine.training.published.common import Batch, Task, Training
from engine.training.published.nuclei import NucleiSettings, task_of

TARGET, TARGET_AT_16 = 1.05, 0.95
LAYERS = 32  # of the emulated network
FORWARD, BACKWARD = 0.3, 0.6  # shares of the emulated network's time; the rest is the optimiser's
PICTURES, SIDE = 16, 160  # of the data that are made
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """One row.

    Args:
        batch: windows of a rank.
        milliseconds: of an emulated step; 0: the network is real.
        parameters: of the emulated network.
        window: side, px.
        channels: features of the real network at full size.
        steps: of a turn.
    """

    ranks: int
    precision: str
    batch: int
    milliseconds: float
    parameters: int
    window: int
    channels: int
    steps: int
    turns: int

    @property
    def network(self) -> str:
        return "emulated" if self.milliseconds else "real"


def cases_of(args: argparse.Namespace) -> list[Case]:
    """Every row of the table."""
    same: dict[str, Any] = {"batch": args.batch, "parameters": round(args.parameters * 1e6), "window": args.window}
    same |= {"channels": args.channels, "steps": args.steps, "turns": args.turns}
    cases = []
    if "real" in args.networks.split(","):
        each = [(int(n), precision) for n in args.real_ranks.split(",") for precision in args.precisions.split(",")]
        cases += [Case(n, precision, milliseconds=0.0, **same) for n, precision in each]
    if "emulated" in args.networks.split(","):
        same["steps"] = args.emulated_steps
        cases += [Case(int(n), "float32", milliseconds=args.milliseconds, **same) for n in args.ranks.split(",")]
    return cases


# ---- the ranks -------------------------------------------------------------------------------------


class Watched(Trainer):
    """A trainer whose checkpoints end a turn of the loop, and begin one of the bare network."""

    case: Case
    bare: Callable[[int], dict[str, float]]
    turns: list[dict[str, float]]

    def watch(self, case: Case, bare: Callable[[int], dict[str, float]]) -> None:
        self.case, self.bare, self.turns = case, bare, []
        self.begin()

    def begin(self) -> None:
        self.ranks.barrier()
        self.begun = time.perf_counter()

    def save(self) -> None:
        spent = {"loop": time.perf_counter() - self.begun}
        self.ranks.barrier()
        self.turns.append(spent | self.bare(self.case.steps))
        self.begin()

    def clip(self) -> float:
        return 0.0 if self.case.milliseconds else super().clip()


def run_case(ranks: Ranks, case: Case, folder: Path) -> None:
    """Leave in a folder the seconds of every turn. Collective."""
    ranks.on_root(lambda: folder.mkdir())
    task = nuclei_task(folder.parent / "data", case)
    if case.milliseconds:
        network = Emulated(case)
        task = replace(task, network=network, evaluate=lambda network, x, t, inputs: network(x))
    every = 10**9 if case.milliseconds else 1  # the average of the weights is the accelerator's work
    settings = LoopSettings(
        case.steps * case.turns,
        minutes=0.0,
        batch_size=case.batch * ranks.size,
        lr=1e-4,
        warmup=0,
        every=case.steps,
        ema_every=every,
        precision=case.precision,
        readers=2,
    )
    training = Training(task, folder / "model", settings, ranks, "cpu")
    trainer = training.trainer = Watched(task.network, settings, ranks, training.folder)
    if case.milliseconds:
        trainer.optimizer = Sleeping(trainer.parameters, case)  # type: ignore[assignment]
    trainer.watch(case, bare_of(task, trainer, case))
    task.network.train()
    with ThreadPoolExecutor(settings.readers) as readers:
        trainer.run(partial(task.windows.batch, each=readers.map), training.losses, lambda: None)
    turns = ranks.allgather(trainer.turns)
    rows = [{key: max(of[i][key] for of in turns) for key in turns[0][i]} for i in range(1, case.turns)]
    parameters = sum(p.numel() for p in trainer.parameters)
    left = {"turns": rows, "parameters": parameters}
    ranks.on_root(lambda: (folder / MEASURED).write_text(json.dumps(left)))


def nuclei_task(data: Path, case: Case) -> Task:
    """A small training of the nuclei system."""
    settings = NucleiSettings(
        window=case.window,
        map_channels=6,
        image_channels=3,
        model_channels=case.channels,
        channel_mult=(1, 2, 2),
        blocks=1,
        attention=(case.window // 4,),
        head_channels=32,
        noise_schedule="cosine",
        dropout=0.0,
        drop=0.0,
        drop_structure_only=False,
        preserve=False,
        augment=False,
        subsample=1.0,
        hold_out=0,
        loss="mse" if case.milliseconds else "hybrid",
        prediction="epsilon",
        timesteps="uniform",
        pixel_size=0.25,
        validation_windows=1,
        seed=0,
    )
    return task_of(data, settings, None, "cpu")


def bare_of(task: Task, trainer: Watched, case: Case) -> Callable[[int], dict[str, float]]:
    """What measures the bare network: seconds of so many steps, in float32 and as the loop has it."""
    batch = task.windows.batch(range(case.batch))
    t = torch.arange(case.batch) * 100 % 1000
    optimizer = optimizer_of(trainer, case)

    def measured(steps: int) -> dict[str, float]:
        state = [p.detach().clone() for p in trainer.parameters]  # the loop goes on from where it was
        spent = {"float32": passes(task, batch, t, "float32", steps, None)}
        spent["bare"] = spent["float32"]
        if case.precision != "float32":
            spent["bare"] = passes(task, batch, t, case.precision, steps, None)
        spent["with optimiser"] = passes(task, batch, t, case.precision, steps, optimizer)
        with torch.no_grad():
            for parameter, value in zip(trainer.parameters, state, strict=True):
                parameter.copy_(value)
                parameter.grad = None
        return spent

    return measured


def optimizer_of(trainer: Watched, case: Case) -> Any:
    return Sleeping(trainer.parameters, case) if case.milliseconds else torch.optim.AdamW(trainer.parameters, lr=1e-4)


def passes(task: Task, batch: Batch, t: Tensor, precision: str, steps: int, optimizer: Any) -> float:
    """Seconds of so many forward and backward passes of the network alone, and of an optimiser if there is one."""
    half = torch.autocast("cpu", DTYPES[precision], enabled=precision != "float32")
    begun = time.perf_counter()
    for _ in range(steps):
        for parameter in task.network.parameters():
            parameter.grad = None
        with half:
            loss = task.evaluate(task.network, batch.noise, t, batch.inputs).float().square().mean()
        loss.backward()
        if optimizer is not None:
            optimizer.step()
    return time.perf_counter() - begun


# ---- the emulated accelerator ----------------------------------------------------------------------


class Layer(torch.autograd.Function):
    """Passes a number on; its backward pass takes a while and gives the layer's parameters a gradient."""

    @staticmethod
    def forward(context: Any, x: Tensor, parameter: Tensor, clock: Clock) -> Tensor:
        context.clock, context.shape = clock, parameter.shape
        return x.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        context.clock.one_layer()
        return gradient, torch.ones(context.shape), None


class Clock:
    """When the layers of a backward pass end: an accelerator goes on while its host is busy with gradients.

    Args:
        seconds: of a layer.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self.end = seconds, 0.0

    def one_layer(self) -> None:
        self.end = (self.end or time.perf_counter()) + self.seconds
        sleep_until(self.end)


class Emulated(nn.Module):
    """A network that occupies no core and answers zeros after a while, layer after layer."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        each = case.parameters // LAYERS
        self.layers = nn.ParameterList([nn.Parameter(torch.zeros(each)) for _ in range(LAYERS)])
        self.seconds = case.milliseconds / 1e3

    def forward(self, x: Tensor) -> Tensor:
        sleep_until(time.perf_counter() + FORWARD * self.seconds)
        scalar, clock = torch.zeros((), requires_grad=True), Clock(BACKWARD * self.seconds / LAYERS)
        for layer in self.layers:
            scalar = Layer.apply(scalar, layer, clock)
        return torch.cat([x, x], 1) * 0 + scalar


class Sleeping(torch.optim.SGD):
    """An optimiser that takes a while and changes nothing."""

    def __init__(self, parameters: Sequence[nn.Parameter], case: Case) -> None:
        super().__init__(parameters, lr=1e-4)
        self.seconds = case.milliseconds / 1e3 * (1 - FORWARD - BACKWARD)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        sleep_until(time.perf_counter() + self.seconds)


# ---- the data and the table ------------------------------------------------------------------------


def make_data(folder: Path) -> None:
    """Pictures of noise with round nuclei, and their instance maps, as the nuclei system reads them."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE]
    for part in ("images", "inst_masks"):
        (folder / part).mkdir(parents=True)
    for number in range(PICTURES):
        instances = np.zeros((SIDE, SIDE), np.int32)
        for each in range(1, 30):
            cy, cx, radius = rng.integers(SIDE), rng.integers(SIDE), rng.integers(5, 11)
            instances[(y - cy) ** 2 + (x - cx) ** 2 < radius**2] = each
        noise = rng.integers(0, 60, (SIDE, SIDE, 3))
        picture = np.where(instances[..., None] > 0, 80 + noise, 180 + noise).astype(np.uint8)
        Image.fromarray(picture).save(folder / "images" / f"{number}.png")
        Image.fromarray(instances).save(folder / "inst_masks" / f"{number}.tiff")


def worker(ranks: Ranks, task: dict[str, Any]) -> int:
    """Run the cases of a task one after another. Collective."""
    torch.set_num_threads(1)
    for number, values in enumerate(task["cases"]):
        run_case(ranks, Case(**values), Path(task["folder"]) / f"run-{ranks.size}-{number}")
    return 0


def launch(ranks: int, cases: Sequence[Case], args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Run cases on so many ranks, in one set of processes."""
    path = folder / f"task-{ranks}.json"
    path.write_text(json.dumps({"folder": str(folder), "cases": [asdict(case) for case in cases]}))
    line = [*launcher(ranks, args), sys.executable, "-m", "benchmarks.training", "--worker", str(path)]
    hidden = "PMI|PMIX|OMPI|HYDRA|MPI" if args.launcher else "PMI|PMIX|OMPI|HYDRA|MPI|SLURM"
    kept = {k: v for k, v in os.environ.items() if not re.match(hidden, k)}
    subprocess.run(line, env=kept | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, check=True)
    return [json.loads((folder / f"run-{ranks}-{i}" / MEASURED).read_text()) for i in range(len(cases))]


def row_of(case: Case, measured: dict[str, Any]) -> dict[str, Any]:
    """What was measured, without what needs other rows."""
    seconds = {key: np.array([turn[key] for turn in measured["turns"]]) for key in measured["turns"][0]}
    low, middle, high = np.quantile(seconds["loop"] / seconds["bare"], (0.25, 0.5, 0.75))
    return {
        "network": case.network,
        "ranks": case.ranks,
        "precision": case.precision,
        "M parameters": measured["parameters"] / 1e6,
        "step s": float(np.median(seconds["loop"])) / case.steps,
        "images / s": case.batch * case.ranks * case.steps / float(np.median(seconds["loop"])),
        "over bare": float(middle),
        "low": float(low),
        "high": float(high),
        "over bare with optimiser": float(np.median(seconds["loop"] / seconds["with optimiser"])),
        "over bare float32": float(np.median(seconds["loop"] / seconds["float32"])),
    }


def compared(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the table: each beside that of one rank, and of float32."""
    table = []
    for row in rows:
        same = [other for other in rows if other["network"] == row["network"]]
        one = next((o for o in same if o["ranks"] == 1 and o["precision"] == row["precision"]), None)
        whole = next(o for o in same if o["ranks"] == row["ranks"] and o["precision"] == "float32")
        emulated = row["network"] == "emulated"
        efficiency = one["step s"] / row["step s"] if one and emulated else None
        target = (
            TARGET_AT_16 if emulated and row["ranks"] == 16 else TARGET if not emulated and row["ranks"] == 1 else None
        )
        gain = None if emulated else whole["over bare float32"] / row["over bare float32"]
        table.append(row | {"gain": gain, "efficiency": efficiency, "target": target})
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    top = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    top.add_argument("--ranks", default="1,2,4,8,16", help="of the emulated network")
    top.add_argument("--real-ranks", default="1,2", help="of the real one: at most the cores")
    top.add_argument("--precisions", default="float32,bfloat16", help="of the real one; float32 first")
    top.add_argument("--networks", default="real,emulated")
    top.add_argument("--milliseconds", type=float, default=2000.0, help="of an emulated step")
    top.add_argument("--parameters", type=float, default=4.0, help="of the emulated network, millions")
    top.add_argument("--batch", type=int, default=2, help="windows of a rank")
    top.add_argument("--window", type=int, default=32, help="side, px")
    top.add_argument("--channels", type=int, default=32, help="of the real network at full size")
    top.add_argument("--steps", type=int, default=2, help="of a turn, real")
    top.add_argument("--emulated-steps", type=int, default=3, help="of a turn, emulated")
    top.add_argument("--turns", type=int, default=6, help="one to warm up, the others measured")
    top.add_argument("--scratch", type=Path, help="folder for data and models (default: a temporary one)")
    top.add_argument("--launcher", help="what starts the ranks, with {ranks} and {nodes} (default: mpiexec)")
    top.add_argument("--ranks-per-node", type=int, default=1, help="from which {nodes} is counted")
    top.add_argument("--json", help="write the report here")
    top.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = top.parse_args(arguments)
    if args.worker:
        return run_main(lambda ranks: worker(ranks, json.loads(args.worker.read_text())))
    cases, rows = cases_of(args), []
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        make_data(Path(folder) / "data")
        for ranks in sorted({case.ranks for case in cases}):
            chosen = [case for case in cases if case.ranks == ranks]
            left = launch(ranks, chosen, args, Path(folder))
            rows += [row_of(case, measured) for case, measured in zip(chosen, left, strict=True)]
            print(f"{ranks} ranks: measured", file=sys.stderr, flush=True)
    rows.sort(key=lambda row: (row["network"] != "real", row["ranks"]))
    facts = {
        name: getattr(args, name)
        for name in ("milliseconds", "batch", "window", "channels", "steps", "turns", "emulated_steps")
    }
    report("training", compared(rows), args.json, torch=torch.__version__, **facts)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
