"""Windows -> evaluations -> micro-batches of one fixed shape -> guidance -> estimates of the clean canvas."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from engine.diffusion.conditions import Condition, labels_of
from engine.diffusion.schedule import Schedule
from engine.planning.cover import windows_of
from engine.planning.geometry import Window
from engine.planning.plan import Plan

Network = Callable[[Tensor, Tensor, dict[str, Tensor]], Tensor]  # latents, timesteps, inputs -> output
Request = tuple[int, int]  # (place of a window in the plan, key)


class Windows(Protocol):
    """Where windows come from and their estimates go to; they are named by their slots in the plan."""

    def read(self, slots: Sequence[int], batch: int, dtype: torch.dtype) -> Tensor:
        """Their latents (batch, C, p, p), channels last; slots beyond the last repeat it."""

    def put(self, slot: int, estimate: Tensor) -> None:
        """Take the estimate of one."""


class Denoiser:
    """The estimates of one rank's windows.

    Every micro-batch has ``batch_size`` slots and is padded: on one kind of device a window's bits depend on the
    shape of its batch, not on its place in it or on what lies beside it.

    Args:
        networks: of the model; more than one where there are styles.
        guided_levels: None: all.
    """

    def __init__(
        self,
        networks: Sequence[Network],
        condition: Condition,
        schedule: Schedule,
        batch_size: int,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        guided_levels: range | None = None,
    ) -> None:
        self.networks, self.condition, self.schedule = networks, condition, schedule
        self.batch_size, self.dtype, self.device, self.guided_levels = batch_size, dtype, device, guided_levels
        self.always = condition
        self.evaluations = 0

    def __call__(
        self,
        plan: Plan,
        windows: Windows,
        t: int,
        level: int = 0,
        between: Callable[[int, float], None] = lambda level, done: None,
    ) -> None:
        """Estimates (C, p, p) in float32 of this rank's windows at timestep ``t``, in the plan's order. Local.

        Where the model learned its variance, its word on it follows as C more channels.

        Args:
            windows: gives the latents and takes the estimates.
            between: called after every micro-batch with the level and the part of the work that is done.
        """
        guided = self.guided_levels is None or level in self.guided_levels
        self.condition = self.always if guided else self.always.unguided()
        requests = [(w, key) for w in range(len(plan)) for key in self.condition.requests(int(plan.label_bits[w]))]
        requests.sort(key=lambda request: self.condition.network(request[1]))  # a micro-batch is of one network
        boxes = [Window(*box) for box in windows_of(plan.cover, plan.ids).tolist()]
        outputs: dict[int, dict[int, Tensor]] = {}
        last = {window: index for index, (window, _) in enumerate(requests)}
        from_x, from_output = self.schedule.to_denoised(self.schedule.alpha_bar[t])
        done = 0
        for batch in self.batches(requests):
            x = windows.read([window for window, _ in batch], self.batch_size, self.dtype)
            answers = self.evaluate([(boxes[window], key) for window, key in batch], x, t)
            if self.dtype != torch.float32:
                x = windows.read([window for window, _ in batch], self.batch_size, torch.float32)
            for slot, (window, key) in enumerate(batch):
                outputs.setdefault(window, {})[key] = answers[slot]
                if last[window] == done + slot:
                    channels = x.shape[1]
                    out = combine(
                        self.condition, boxes[window], int(plan.label_bits[window]), outputs.pop(window), channels
                    )
                    estimate = x[slot] * from_x + out[:channels] * from_output
                    whole = torch.cat([estimate, out[channels:]]) if len(out) > channels else estimate
                    windows.put(window, whole)
            done += len(batch)
            between(level, done / len(requests))
        if torch.device(self.device).type == "cuda":
            torch.cuda.synchronize(self.device)  # what the level took is known here, and whose turn it is to wait

    def evaluate(self, asked: list[tuple[Window, int]], x: Tensor, t: int) -> Tensor:
        """The network's output (B, C, p, p) for one micro-batch, in float32; padding included."""
        padded = asked + [asked[-1]] * (self.batch_size - len(asked))
        given = self.condition.inputs(padded)
        with torch.inference_mode():
            out = self.networks[self.condition.network(asked[0][1])](
                x,
                torch.full((self.batch_size,), t, device=self.device),
                {name: self.to_device(value) for name, value in given.items()},
            )
        self.evaluations += len(asked)
        return out.float()

    def to_device(self, value: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(value)).to(self.device)
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    def batches(self, requests: list[Request]) -> Iterator[list[Request]]:
        """Runs of at most ``batch_size`` requests to one network."""
        start = 0
        while start < len(requests):
            network = self.condition.network(requests[start][1])
            stop = start
            while (
                stop < len(requests)
                and stop - start < self.batch_size
                and self.condition.network(requests[stop][1]) == network
            ):
                stop += 1
            yield requests[start:stop]
            start = stop


def combine(condition: Condition, window: Window, label_bits: int, outputs: dict[int, Tensor], channels: int) -> Tensor:
    """Each latent's output under its own label: null + w (cond - null).

    Args:
        present: the labels of the window, as bits.
        outputs: (C, p, p) of every key; of the channels beyond the first ``channels`` there is no guidance.
    """
    found = list(labels_of(label_bits))
    answers = [guided(condition, label, outputs, channels) for label in found]
    out = answers[0]
    if len(found) > 1:
        labels = torch.from_numpy(np.ascontiguousarray(condition.crop(window))).to(out.device)
        for label, answer in zip(found[1:], answers[1:], strict=True):
            out = torch.where(labels == label, answer, out)
    return out


def guided(condition: Condition, label: int, outputs: dict[int, Tensor], channels: int) -> Tensor:
    """The output of a whole window under one label."""
    cond, null = condition.keys(label)
    if cond is None:
        assert null is not None
        return outputs[null]
    if condition.guidance == 1 or null is None:
        return outputs[cond]
    mean = outputs[null][:channels] + (outputs[cond][:channels] - outputs[null][:channels]) * condition.guidance
    return torch.cat([mean, outputs[cond][channels:]])
