"""The training loop that every network shares: schedule, averaging over ranks, EMA, checkpoints, progress."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from engine.distributed.ranks import Ranks


@dataclass(frozen=True)
class LoopSettings:
    """How long and how to train.

    Args:
        steps: optimiser steps in all.
        minutes: stop earlier after this many minutes of training (0: no limit); the learning rate then
            follows whichever of steps and minutes is further on.
        batch_size: patches a step, over all ranks.
        lr: peak learning rate; rises linearly over the first ``warmup`` steps, then falls as a cosine.
        ema: decay of the weight average that is saved.
        every: steps between checkpoints and sample grids.
    """

    steps: int
    minutes: float
    batch_size: int
    lr: float
    warmup: int = 100
    ema: float = 0.998
    every: int = 500
    seed: int = 0


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


class Trainer:
    """One network, its optimiser and its average, saved together so that a killed run goes on."""

    def __init__(
        self, network: nn.Module, settings: LoopSettings, ranks: Ranks, folder: Path, name: str = "training"
    ) -> None:
        self.network, self.settings, self.ranks, self.folder, self.name = network, settings, ranks, folder, name
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=settings.lr, betas=(0.9, 0.99), weight_decay=0.01)
        self.ema = Ema(network, settings.ema)
        self.step = 0
        self.seconds = 0.0
        self.extra: dict[str, object] = {}

    @property
    def done(self) -> float:
        """Share of the run that is over, 0 to 1."""
        by_steps = self.step / self.settings.steps
        by_time = self.seconds / 60 / self.settings.minutes if self.settings.minutes else 0.0
        return min(max(by_steps, by_time), 1.0)

    def learning_rate(self) -> float:
        warm = min((self.step + 1) / self.settings.warmup, 1.0)
        return self.settings.lr * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * self.done)))

    def save(self) -> None:
        """Write the state of the run through a temporary file and a rename. Rank 0 writes."""
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
            temporary = self.folder / f"{self.name}.pt.partial"
            torch.save(state, temporary)
            temporary.rename(self.folder / f"{self.name}.pt")

    def resume(self) -> bool:
        """Take up the last saved state, if there is one."""
        path = self.folder / f"{self.name}.pt"
        if not path.exists():
            return False
        state = torch.load(path, weights_only=True, map_location="cpu")
        self.network.load_state_dict(state["network"])
        self.ema.network.load_state_dict(state["ema"])
        self.ema.updates = state["ema_updates"]
        self.optimizer.load_state_dict(state["optimizer"])
        for key, value in self.extra.items():
            value.load_state_dict(state["extra"][key])  # type: ignore[attr-defined]
        self.step, self.seconds = state["step"], state["seconds"]
        return True

    def positions(self) -> list[int]:
        """This rank's part of the step's batch, as positions in the endless run of patches."""
        first = self.step * self.settings.batch_size
        return list(range(first, first + self.settings.batch_size))[self.ranks.rank :: self.ranks.size]

    def run(
        self,
        losses: Callable[[list[int]], tuple[Tensor, dict[str, float]]],
        after: Callable[[], None],
    ) -> None:
        """Train to the end.

        Args:
            losses: positions of the patches -> (loss to minimise, figures to show).
            after: called every ``settings.every`` steps and at the end (sample grids, saved models).
        """
        log = (self.folder / f"{self.name}.jsonl").open("a") if self.ranks.rank == 0 else None
        shown = time.monotonic()
        figures: dict[str, float] = {}
        if self.done >= 1.0:  # the run was killed between its last checkpoint and the model
            after()
        while self.done < 1.0:
            start = time.monotonic()
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate()
            self.optimizer.zero_grad(set_to_none=True)
            loss, new = losses(self.positions())
            loss.backward()
            average_gradients(self.parameters, self.ranks)
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            self.ema.update(self.network)
            self.step += 1
            # All ranks must agree when the time is over: rank 0's clock rules.
            self.seconds = self.ranks.bcast(self.seconds + time.monotonic() - start)
            figures = {k: 0.98 * figures.get(k, v) + 0.02 * v for k, v in new.items()}
            if log and (time.monotonic() - shown > 10 or self.done >= 1.0):
                shown = time.monotonic()
                eta = self.seconds / max(self.done, 1e-6) * (1 - self.done)
                text = " ".join(f"{k} {v:.4f}" for k, v in figures.items())
                print(f"step {self.step}/{self.settings.steps}  {text}  ETA {eta / 60:.1f} min", flush=True)
                log.write(json.dumps({"step": self.step, "seconds": self.seconds, **figures}) + "\n")
                log.flush()
            if self.step % self.settings.every == 0 or self.done >= 1.0:
                self.save()
                after()
        if log:
            log.close()


def image_grid(images: np.ndarray, columns: int) -> np.ndarray:
    """uint8 (n, h, w, 3) -> one (rows h, columns w, 3)."""
    n, h, w, c = images.shape
    rows = -(-n // columns)
    grid = np.full((rows * h, columns * w, c), 255, np.uint8)
    for index, image in enumerate(images):
        y, x = divmod(index, columns)
        grid[y * h : (y + 1) * h, x * w : (x + 1) * w] = image
    return grid
