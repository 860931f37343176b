"""The training loop that every network shares: schedule, averaging over ranks, EMA, checkpoints, progress."""

from __future__ import annotations

import copy
import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from engine.distributed.ranks import Ranks
from engine.storage.files import whole_file

B = TypeVar("B")
T = TypeVar("T")
AHEAD = 3  # batches
ONE_RUN = ("batch_size", "lr", "warmup", "ema", "seed")  # settings that a resumed run shares with the one before
PROGRESS = ("ema_updates", "step", "seconds", "settings")  # of a saved state: what is no tensor


@dataclass(frozen=True)
class LoopSettings:
    """How long and how to train.

    Args:
        steps: optimiser steps in all.
        minutes: stop earlier after this many minutes from ``began``, and of earlier runs (0: no limit); the learning
            rate then follows whichever of steps and minutes is further on.
        batch_size: patches a step, over all ranks.
        lr: peak learning rate; rises linearly over the first ``warmup`` steps, then falls as a cosine.
        ema: decay of the weight average that is saved.
        every: steps between checkpoints and sample grids.
        deadline: leave with a checkpoint when ``time.monotonic()`` comes to this (0: no limit); the same command goes
            on, and the learning rate knows nothing of it.
        began: ``time.monotonic()`` when the command began.
        precision: ``float32``, or ``bfloat16`` where torch's autocast allows it.
        compile: the network, by ``torch.compile``: a minute or two at the start, steps up to twice as fast on a GPU.
    """

    steps: int
    minutes: float
    batch_size: int
    lr: float
    warmup: int = 100
    ema: float = 0.998
    every: int = 500
    seed: int = 0
    deadline: float = 0.0
    began: float = field(default_factory=time.monotonic)
    precision: str = "float32"
    compile: bool = False


def average_gradients(parameters: Iterable[nn.Parameter], ranks: Ranks) -> None:
    """Average gradients over the ranks, in one message. Collective."""
    if ranks.size == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients]).cpu().numpy()
    ranks.allreduce_array(flat)
    flat /= ranks.size
    offset = 0
    for g in gradients:
        g.copy_(torch.from_numpy(flat[offset : offset + g.numel()]).view_as(g))
        offset += g.numel()


class Ema:
    """Exponential moving average of a network's weights, warmed up as (1 + n) / (10 + n)."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    def update(self, network: nn.Module) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        with torch.no_grad():
            torch._foreach_lerp_(list(self.network.parameters()), list(network.parameters()), 1 - decay)


def pinned(batch: B, pin: bool) -> B:
    """A tensor or a tuple of them, in memory from which a GPU takes them while it works, if ``pin``."""
    if not pin:
        return batch
    if isinstance(batch, tuple):
        return type(batch)(pinned(part, pin) for part in batch)
    return batch.pin_memory()  # type: ignore[attr-defined]


class Ahead(Generic[T]):
    """What a function gives for one step after the other, made before it is asked for, in a thread."""

    def __init__(self, make: Callable[[int], T], first: int) -> None:
        self.make, self.next = make, first
        self.pool = ThreadPoolExecutor(1, "batches")
        self.made: deque[Future[T]] = deque()

    def take(self) -> T:
        while len(self.made) < AHEAD:
            self.made.append(self.pool.submit(self.make, self.next))
            self.next += 1
        return self.made.popleft().result()

    def end(self) -> None:
        self.pool.shutdown(cancel_futures=True)


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
            self.parameters, lr=settings.lr, betas=(0.9, 0.99), weight_decay=0.01, **fast
        )
        self.ema = Ema(network, settings.ema)
        self.step = 0
        self.seconds = 0.0
        self.warm_from = 0  # the step at which the optimiser knew nothing
        self.extra: dict[str, object] = {}

    @property
    def done(self) -> float:
        """Share of the run that is over, 0 to 1."""
        by_steps = self.step / self.settings.steps
        by_time = self.seconds / 60 / self.settings.minutes if self.settings.minutes else 0.0
        return min(max(by_steps, by_time), 1.0)

    def learning_rate(self) -> float:
        warm = min((self.step - self.warm_from + 1) / max(self.settings.warmup, 1), 1.0)
        return self.settings.lr * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * self.done)))

    def save(self) -> None:
        """Write the state of the run, whole or not at all. Rank 0 writes."""
        if self.ranks.rank == 0:
            state = {
                "network": self.network.state_dict(),
                "ema": self.ema.network.state_dict(),
                "ema_updates": self.ema.updates,
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "seconds": self.seconds,
                "extra": {key: value.state_dict() for key, value in self.extra.items()},  # type: ignore[attr-defined]
                "settings": asdict(self.settings),
            }
            with whole_file(self.folder / f"{self.name}.pt") as temporary:
                torch.save(state, temporary)

    def resume(self) -> bool:
        """Take up the last saved state, if there is one."""
        path = self.folder / f"{self.name}.pt"
        if not path.exists():
            return False
        state = torch.load(path, weights_only=True, map_location="cpu")
        check_resumed(self.settings, self.network, state, path)
        self.network.load_state_dict(state["network"])
        self.ema.network.load_state_dict(state["ema"])
        self.ema.updates = state["ema_updates"]
        self.step, self.seconds = state["step"], state["seconds"]
        if state["optimizer"] is None:  # of a run that was packed: the optimisers begin again
            self.warm_from = self.step
        else:
            self.optimizer.load_state_dict(state["optimizer"])
        for key, value in self.extra.items():
            if state["extra"].get(key) is not None:
                value.load_state_dict(state["extra"][key])  # type: ignore[attr-defined]
        return True

    def positions(self, step: int) -> list[int]:
        """This rank's part of a step's batch, as positions in the endless run of patches."""
        first = step * self.settings.batch_size
        return list(range(first, first + self.settings.batch_size))[self.ranks.rank :: self.ranks.size]

    def run(
        self,
        prepare: Callable[[list[int]], B],
        losses: Callable[[list[int], B], tuple[Tensor, dict[str, Tensor]]],
        after: Callable[[], None],
    ) -> bool:
        """Train to the end, or until it is time to leave.

        Args:
            prepare: positions of the patches -> the batch; runs ``AHEAD`` steps ahead, in a thread.
            losses: the same and the batch -> (loss to minimise, figures to show: one number each, on the device).
            after: called every ``settings.every`` steps and at the end (sample grids, saved models).
        Returns:
            Whether the training came to its end.
        """
        leave, before, began = False, self.seconds, self.settings.began
        pin = self.device.type == "cuda"
        batches = Ahead(lambda step: pinned(prepare(self.positions(step)), pin), self.step)
        half = torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bfloat16")
        log = (self.folder / f"{self.name}.jsonl").open("a") if self.ranks.rank == 0 else None
        shown = time.monotonic()
        figures: dict[str, Tensor] = {}
        if self.done >= 1.0:  # the run was killed between its last checkpoint and the model, or is given again
            if self.ranks.rank == 0:
                minutes, steps = self.settings.minutes, self.settings.steps
                wanted = f"{minutes:g} minutes" if minutes else f"{steps} steps"
                print(f"trained already: {self.step} steps in {self.seconds / 60:.1f} minutes of {wanted}", flush=True)
            after()
        while self.done < 1.0 and not leave:
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate()
            self.optimizer.zero_grad(set_to_none=True)
            with half:
                loss, new = losses(self.positions(self.step), batches.take())
            loss.backward()
            average_gradients(self.parameters, self.ranks)
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            self.ema.update(self.network)
            self.step += 1
            # All ranks must agree when the time is over: rank 0's clock rules.
            now = time.monotonic()
            over = self.ranks.stop_requested or 0 < self.settings.deadline <= now
            self.seconds, leave = self.ranks.bcast((before + now - began, over))
            figures = {k: 0.98 * figures.get(k, v) + 0.02 * v for k, v in new.items()}
            ends = leave or self.done >= 1.0
            if log and (time.monotonic() - shown > 10 or ends):
                shown = time.monotonic()
                eta = self.seconds / max(self.done, 1e-6) * (1 - self.done)
                numbers = {k: float(v) for k, v in figures.items()}
                text = " ".join(f"{k} {v:.4f}" for k, v in numbers.items())
                print(f"step {self.step}/{self.settings.steps}  {text}  ETA {eta / 60:.1f} min", flush=True)
                log.write(json.dumps({"step": self.step, "seconds": self.seconds, **numbers}) + "\n")
                log.flush()
            if self.step % self.settings.every == 0 or ends:
                self.save()
                if log:
                    print(f"step {self.step}: saved; now its pictures", flush=True)
                after()
        batches.end()
        if log:
            log.close()
        return self.done >= 1.0


def check_resumed(settings: LoopSettings, network: nn.Module, state: dict[str, Any], path: Path) -> None:
    """Refuse to resume another training.

    Raises:
        ValueError: naming what differs, and the way out.
    """
    way = "give the same settings to resume it, choose another `out`, or start anew with `resume` never"
    for name in ONE_RUN:
        theirs, ours = state["settings"].get(name), getattr(settings, name)
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
