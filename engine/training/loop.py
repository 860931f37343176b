"""The training loop that every network shares: schedule, averaging over ranks, EMA, checkpoints, progress."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TextIO, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from engine.distributed.collectives import PendingSum
from engine.distributed.ranks import Ranks
from engine.storage.files import whole_file
from engine.training.ahead import Ahead, pinned
from engine.training.board import Board
from engine.training.ema import Ema
from engine.training.gradients import GradientAverage
from engine.training.rates import momentum_at, rate_at, rate_by_epoch
from engine.training.recipe import BY_EPOCH

B = TypeVar("B")
T = TypeVar("T")
Losses = Callable[[list[int], B], tuple[Tensor, dict[str, Tensor]]]  # positions, batch -> loss, figures to show
# Settings that a resumed run shares with the one before.
ONE_RUN = (
    "batch_size",
    "lr",
    "warmup",
    "ema",
    "ema_every",
    "seed",
    "schedule",
    "betas",
    "weight_decay",
    "clip",
    "average",
    "gamma",
)
PROGRESS = ("ema_updates", "step", "seconds", "settings")  # of a saved state: what is no tensor

LATEST = 0.02  # share of a step in the running means of figures


@dataclass(frozen=True)
class LoopSettings:
    """How long and how to train.

    Args:
        steps: optimiser steps in all.
        minutes: stop earlier after this many minutes from ``began``, and of earlier runs (0: no limit), of which the
            last are the checkpoint and its pictures; the learning rate then follows whichever of steps and minutes is
            further on.
        batch_size: patches a step, over all ranks.
        lr: peak learning rate; rises linearly over the first ``warmup`` steps, then goes as ``schedule`` says.
        schedule: ``cosine`` falls to 1/50 of the peak, ``linear`` to 0, ``constant`` stays; ``onecycle`` rises over
            30 % of the run from 1/25 of the peak and falls to next to nothing, both as cosines (Smith 2018,
            arXiv:1708.07120), without ``warmup``, and the first beta goes the other way.
            By epochs: ``step`` is multiplied by ``gamma`` after each, ``cosine-by-epoch`` falls to 0 after the last.
        ema: decay of the weight average that is saved.
        average: ``warm`` begins with the decay (1 + n) / (10 + n), ``plain`` has its decay from the first step,
            ``power`` is the network itself for 100 steps, and has the decay 1 - n^(-2/3) after.
        ema_every: steps from one update of the average to the next.
        betas: of AdamW.
        weight_decay: of AdamW; 0 makes it Adam.
        clip: greatest norm of the gradients (0: no limit).
        accumulate: micro-batches that a rank's part of a batch is evaluated in, one after the other.
        epoch_steps: steps of an epoch (0: the training counts none).
        gamma: factor of the schedule ``step``.
        keep_every: steps between checkpoints that are kept as model folders of their own (0: none).
        every: steps between checkpoints and sample grids.
        deadline: leave with a checkpoint when ``time.monotonic()`` comes to this (0: no limit); the same command goes
            on, and the learning rate knows nothing of it.
        began: ``time.monotonic()`` when the command began.
        precision: ``float32``, or ``bfloat16`` or ``float16`` where torch's autocast allows it; ``float16`` with a loss
            scale, which skips steps whose gradients overflow.
        compile: the network, by ``torch.compile``: a minute or two at the start, steps up to twice as fast on a GPU.
        readers: threads that read and prepare examples ahead of the steps.
    """

    steps: int
    minutes: float
    batch_size: int
    lr: float
    warmup: int = 100
    schedule: str = "cosine"
    ema: float = 0.998
    average: str = "warm"
    ema_every: int = 1
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    clip: float = 1.0
    accumulate: int = 1
    epoch_steps: int = 0
    gamma: float = 0.7
    keep_every: int = 0
    every: int = 500
    seed: int = 0
    deadline: float = 0.0
    began: float = field(default_factory=time.monotonic)
    precision: str = "float32"
    compile: bool = False
    readers: int = 1


def average_gradients(parameters: Iterable[nn.Parameter], ranks: Ranks) -> None:
    """Average gradients over the ranks, in one message. Collective."""
    average([p.grad for p in parameters if p.grad is not None], ranks)


def average(tensors: Sequence[Tensor], ranks: Ranks) -> None:
    """Means over the ranks, in place and in one message. Collective."""
    if ranks.size == 1:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors]).cpu().numpy()
    ranks.allreduce_array(flat)
    flat /= ranks.size
    parts = np.split(flat, np.cumsum([tensor.numel() for tensor in tensors])[:-1])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(torch.from_numpy(part).view_as(tensor))


class Trainer:
    """One network, its optimiser and its average, saved together so that a killed run goes on."""

    def __init__(
        self, network: nn.Module, settings: LoopSettings, ranks: Ranks, folder: Path, name: str = "training"
    ) -> None:
        self.network, self.settings, self.ranks, self.folder, self.name = network, settings, ranks, folder, name
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self.device = self.parameters[0].device
        fast = {"fused": True} if self.device.type == "cuda" else {}
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay, **fast
        )
        self.ema = Ema(network, settings.ema, settings.average, settings.ema_every)
        self.gradients = GradientAverage(self.parameters, ranks)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.precision == "float16")
        self.saved = 0  # the step of the last checkpoint
        self.step = 0
        self.seconds = 0.0
        self.warm_from = 0  # the step at which the optimiser knew nothing
        self.extra: dict[str, object] = {}
        self.before = 0.0  # seconds of earlier runs
        self.figures: dict[str, Tensor] = {}  # means of the last 50 steps, about
        self.averaged = 0  # steps that they are of, in all
        self.lines: TextIO | None = None  # the log, on rank 0 while it runs
        self.took = 0.0  # seconds that the last checkpoint and its pictures took, by this rank's clock
        self.ending = 0.0  # the same by rank 0's, which is what the end will take
        self.board: Board | None = None  # of rank 0, while it runs
        self.batches: Ahead | None = None  # while it runs

    @property
    def done(self) -> float:
        """Share of the run that is over, 0 to 1."""
        by_steps = self.step / self.settings.steps
        by_time = (self.seconds + self.ending) / 60 / self.settings.minutes if self.settings.minutes else 0.0
        return min(max(by_steps, by_time), 1.0)

    def learning_rate(self) -> float:
        warm = min((self.step - self.warm_from + 1) / max(self.settings.warmup, 1), 1.0)
        warm = 1.0 if self.settings.schedule == "onecycle" else warm
        if self.settings.schedule in BY_EPOCH:
            epochs, gamma = self.settings.steps / self.settings.epoch_steps, self.settings.gamma
            return self.settings.lr * warm * rate_by_epoch(self.settings.schedule, self.done, epochs, gamma)
        return self.settings.lr * warm * rate_at(self.settings.schedule, self.done)

    def save(self) -> None:
        """Write the state of the run, whole or not at all. Rank 0 writes. Collective where an extra's state is."""
        extra = {key: value.state_dict() for key, value in self.extra.items()}  # type: ignore[attr-defined]
        self.ranks.agree(lambda: self.write(extra) if self.ranks.rank == 0 else None)
        self.saved = self.step

    def write(self, extra: dict[str, Any]) -> None:
        """Write the state of the run. Local.

        Args:
            extra: States of what is saved beside the network.
        """
        path = self.folder / f"{self.name}.pt"
        state = {
            "network": self.network.state_dict(),
            "ema": self.ema.network.state_dict(),
            "ema_updates": self.ema.updates,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "ending": self.ending,
            "figures": {name: float(value) for name, value in self.figures.items()},
            "averaged": self.averaged,
            "extra": extra,
            "settings": asdict(self.settings),
        }
        with whole_file(path) as temporary:
            try:
                torch.save(state, temporary)
            except RuntimeError as error:  # what torch says of a full disk
                line = " ".join(str(error).split())[:120]
                raise OSError(f"{path} cannot be written, is the disk full? ({line})") from None

    def resume(self) -> bool:
        """Take up the last saved state, if there is one."""
        path = self.folder / f"{self.name}.pt"
        if not path.exists():
            return False
        try:
            state = torch.load(path, weights_only=True, map_location="cpu")
        except Exception as error:  # torch and pickle have their own words for each kind of damage
            line = " ".join(str(error).split())[:120]
            raise ValueError(f"{path} is damaged ({line}); remove it, or start anew with `resume` never") from None
        check_resumed(self.settings, self.network, state, path)
        self.network.load_state_dict(state["network"])
        self.ema.network.load_state_dict(state["ema"])
        self.ema.updates = state["ema_updates"]
        self.step, self.seconds = state["step"], state["seconds"]
        self.took = self.ending = state.get("ending", 0.0)
        self.figures = {name: torch.tensor(value) for name, value in state.get("figures", {}).items()}
        self.averaged = state.get("averaged", 0)
        if state["optimizer"] is None:  # of a run that was packed: the optimisers begin again
            self.warm_from = self.step
        else:
            self.optimizer.load_state_dict(state["optimizer"])
        if state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])
        self.saved = self.step
        for key, value in self.extra.items():
            if state["extra"].get(key) is not None:
                value.load_state_dict(state["extra"][key])  # type: ignore[attr-defined]
        return True

    def check_together(self, steps: Sequence[int]) -> None:
        """Refuse to go on from other steps on other ranks.

        Args:
            steps: Step of each rank.
        Raises:
            ValueError: a rank does not see the checkpoint.
        """
        if len(set(steps)) > 1:
            least = min(range(len(steps)), key=lambda rank: steps[rank])
            raise ValueError(
                f"rank {least} is at step {steps[least]}, others at {max(steps)}: not all see the checkpoint in "
                f"{self.folder}; `out` is a folder that all nodes share"
            )

    def log(self) -> TextIO:
        """The log, open to go on after this step; what an ended run wrote of later ones is taken out."""
        path = self.folder / f"{self.name}.jsonl"
        if path.exists():
            lines = [line for line in path.read_text().splitlines() if self.step and logged_step(line) <= self.step]
            with whole_file(path) as temporary:
                temporary.write_text("".join(line + "\n" for line in lines))
        return path.open("a")

    def positions(self, step: int) -> list[list[int]]:
        """This rank's part of a step's batch, in micro-batches: positions in the endless run of patches."""
        first, parts = step * self.settings.batch_size, self.settings.accumulate
        mine = list(range(first, first + self.settings.batch_size))[self.ranks.rank :: self.ranks.size]
        return [part for part in (mine[i::parts] for i in range(parts)) if part]

    def update(self, losses: Losses[B], parts: list[tuple[list[int], B]]) -> dict[str, Tensor]:
        """One step of the optimiser; the figures of its last micro-batch. Collective.

        Args:
            parts: This rank's micro-batches, with their positions.
        Raises:
            ValueError: the gradients are not finite.
        """
        precision = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
        dtype = precision[self.settings.precision]
        half = torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)
        self.optimizer.zero_grad(set_to_none=True)
        figures: dict[str, Tensor] = {}
        for index, (positions, batch) in enumerate(parts):
            with half:
                loss, figures = losses(positions, batch)
            if index == len(parts) - 1:
                self.gradients.begin()
            share = len(positions) / self.settings.batch_size  # gradients are summed, over parts and ranks
            with self.ranks.computing("evaluate"):  # sums go on meanwhile
                self.scaler.scale(loss * share).backward()
        self.gradients.finish()
        self.ask_the_time()
        self.scaler.unscale_(self.optimizer)
        norm = self.clip()
        if not self.scaler.is_enabled() and not math.isfinite(norm):
            self.ranks.agree(self.refuse)  # on every rank: what is summed is the same
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return figures

    def ask_the_time(self) -> None:
        """Begin to tell all ranks how long it has been, whether to leave, and whether the next batch was read.

        Rank 0's clock rules. Collective.
        """
        settings, now = self.settings, time.monotonic()
        over = self.ranks.stop_requested or 0 < settings.deadline <= now
        own = [self.before + now - settings.began, self.took, float(over)] if self.ranks.rank == 0 else [0.0] * 3
        unread = self.batches is not None and self.batches.fails()
        self.clock = PendingSum(self.ranks, [*own, float(unread)])
        self.clock.start()

    def told_the_time(self) -> bool:
        """Whether it is time to leave; waits for what ``ask_the_time`` began.

        Raises:
            AgreedError: a rank cannot read its next batch.
        """
        told = (self.clock.result() if self.ranks.size > 1 else self.clock.own).tolist()
        self.seconds, self.ending, over, unread = told
        if unread and self.batches is not None:
            self.ranks.agree(self.batches.check)
        return over > 0

    def clip(self) -> float:
        """Bring the gradients to the greatest norm; the norm that they had."""
        return float(nn.utils.clip_grad_norm_(self.parameters, self.settings.clip or math.inf))

    def refuse(self) -> None:
        """Say that the training cannot go on.

        Raises:
            ValueError: always.
        """
        kept = f"the checkpoint of step {self.saved} is kept" if self.saved else "there is no checkpoint yet"
        raise ValueError(
            f"the gradients of step {self.step + 1} are not finite; {kept}; choose a smaller `lr`, a longer "
            "`warmup` or another `precision`, or look for values in `data` that are no numbers"
        )

    def run(
        self,
        prepare: Callable[[list[int]], B],
        losses: Losses[B],
        after: Callable[[], None],
    ) -> bool:
        """Train to the end, or until it is time to leave.

        Args:
            prepare: positions of the patches -> the batch; runs ``AHEAD`` steps ahead, in threads.
            losses: the same and the batch -> (loss to minimise, figures to show: one number each, on the device).
            after: called every ``settings.every`` steps and at the end (sample grids, saved models).
        Returns:
            Whether the training came to its end.
        """
        leave, self.before = False, self.seconds
        self.ranks.agree(partial(self.check_together, self.ranks.allgather(self.step)))
        pin = self.device.type == "cuda"
        make = lambda step: [(p, pinned(prepare(p), pin)) for p in self.positions(step)]  # noqa: E731
        self.batches = Ahead(make, self.step, self.settings.readers)
        log = self.lines = self.ranks.agree(lambda: self.log() if self.ranks.rank == 0 else None)
        self.board = Board(self.folder / "tensorboard", self.step) if log else None
        shown = time.monotonic()
        if self.done >= 1.0:  # the run was killed between its last checkpoint and the model, or is given again
            if self.ranks.rank == 0:
                minutes, steps = self.settings.minutes, self.settings.steps
                wanted = f"{minutes:g} minutes" if minutes else f"{steps} steps"
                print(f"trained already: {self.step} steps in {self.seconds / 60:.1f} minutes of {wanted}", flush=True)
            self.ranks.agree(after)
        self.ranks.agree(self.batches.check)
        while self.done < 1.0 and not leave:
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate()
                if self.settings.schedule == "onecycle":
                    group["betas"] = (momentum_at(self.done), self.settings.betas[1])
            new = self.update(losses, self.batches.take())
            self.step += 1
            if self.step % self.settings.ema_every == 0:
                self.ema.update(self.network)
            leave = self.told_the_time()
            self.average_figures(new)
            ends = leave or self.done >= 1.0
            keeps = ends or self.step % self.settings.every == 0
            if log and self.board and (time.monotonic() - shown > 10 or keeps):
                shown = time.monotonic()
                eta = self.seconds / max(self.done, 1e-6) * (1 - self.done)
                numbers = {k: float(v) for k, v in self.figures.items()}
                text = " ".join(f"{k} {v:.4f}" for k, v in numbers.items())
                print(f"step {self.step}/{self.settings.steps}  {text}  ETA {eta / 60:.1f} min", flush=True)
                self.write_down({"seconds": self.seconds, **numbers})
                self.board.figures(self.step, {"lr": self.optimizer.param_groups[0]["lr"]})
            if keeps:
                began = time.monotonic()
                self.save()
                if log:
                    print(f"step {self.step}: saved; now its pictures", flush=True)
                self.ranks.agree(after)  # rank 0 writes, and the disk may be full
                self.took = time.monotonic() - began
        self.batches.end()
        if log and self.board:
            log.close()
            self.board.close()
        self.lines = None
        return self.done >= 1.0

    def average_figures(self, new: dict[str, Tensor]) -> None:
        """Take a step's figures into their running means: of all steps at first, then of the last 50, about."""
        self.averaged += 1
        share = max(LATEST, 1 / self.averaged)
        self.figures = {k: (1 - share) * self.figures.get(k, v) + share * v for k, v in new.items()}

    def write_down(self, numbers: dict[str, float]) -> None:
        """Write figures of this step into the log, and show them on the board. Rank 0 alone has a log."""
        if self.lines is not None and self.board is not None:
            self.lines.write(json.dumps({"step": self.step, **numbers}) + "\n")
            self.lines.flush()
            self.board.figures(self.step, {name: value for name, value in numbers.items() if name != "seconds"})


def logged_step(line: str) -> float:
    """The step of a line of the log; infinite where the line is not whole."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return math.inf


def check_resumed(settings: LoopSettings, network: nn.Module, state: dict[str, Any], path: Path) -> None:
    """Refuse to resume another training.

    Raises:
        ValueError: naming what differs, and the way out.
    """
    way = "give the same settings to resume it, choose another `out`, or start anew with `resume` never"
    for name in ONE_RUN:
        theirs, ours = state["settings"].get(name), getattr(settings, name)
        theirs = tuple(theirs) if isinstance(theirs, list) else theirs
        if theirs is not None and theirs != ours:
            raise ValueError(f"{path.parent} holds a training whose `{name}` is {theirs}, yours is {ours}; {way}")
    own = {name: tensor.shape for name, tensor in network.state_dict().items()}
    if own != {name: tensor.shape for name, tensor in state["network"].items()}:
        raise ValueError(f"{path.parent} holds a training of a network of another shape; {way}")


def image_grid(images: np.ndarray, columns: int) -> np.ndarray:
    """uint8 (n, h, w, 3) -> one (rows h, columns w, 3)."""
    n, h, w, c = images.shape
    rows = -(-n // columns)
    grid = np.full((rows * h, columns * w, c), 255, np.uint8)
    for index, image in enumerate(images):
        y, x = divmod(index, columns)
        grid[y * h : (y + 1) * h, x * w : (x + 1) * w] = image
    return grid
