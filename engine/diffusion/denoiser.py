"""Windows -> evaluations -> micro-batches of one fixed shape -> guidance -> estimates of the clean latents."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from engine.diffusion.conditions import Condition, labels_of
from engine.diffusion.schedule import Schedule
from engine.planning.cover import windows_of
from engine.planning.geometry import Box
from engine.planning.plan import Plan

Network = Callable[[Tensor, Tensor, dict[str, Tensor]], Tensor]  # latents, timesteps, inputs -> output
Request = tuple[int, int]  # (slot of a window in the plan, key)
LEAST_CHANCE = 1e-6  # of a label, before it is weighed


class WindowStore(Protocol):
    """Where windows come from and their estimates go to; they are named by their slots in the plan."""

    def read(self, slots: Sequence[int], batch: int, dtype: torch.dtype) -> Tensor:
        """The latents (batch, C, p, p) of windows, channels last; those beyond the slots repeat the last."""

    def put(self, slot: int, estimate: Tensor) -> None:
        """Take the estimate of the window in a slot."""


def nothing(done: float) -> None:
    """A callback that does nothing."""


class Denoiser:
    """Estimates the clean latents of one rank's windows.

    Every micro-batch has ``batch_size`` entries and is padded: on one kind of device a window's bits depend on the
    shape of its batch, not on its place in it or on what lies beside it.

    Args:
        networks: The model's network; several where the condition has styles.
        condition: What the windows are asked for.
        timesteps: The model's timestep at each level.
        batch_size: Entries of a micro-batch.
        dtype: Type that the networks compute in.
        guided_levels: Levels that are guided; None: all.
        on_batch: Called after every micro-batch with the part of the level's work that is done, up to 1.
        guided_channels: The first channels of the output are guided, so many; None: those of the latents.
        label_weights: Of a model of label maps: a row for each label asked for, of what the chances of its channels'
            labels are multiplied by; empty: nothing is.
    """

    def __init__(
        self,
        networks: Sequence[Network],
        condition: Condition,
        schedule: Schedule,
        timesteps: Sequence[int] | np.ndarray,
        batch_size: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        guided_levels: range | None = None,
        on_batch: Callable[[float], None] = nothing,
        guided_channels: int | None = None,
        label_weights: Sequence[Sequence[float]] = (),
    ) -> None:
        self.networks, self.schedule, self.timesteps = networks, schedule, timesteps
        self.condition, self.guided_levels = condition, guided_levels
        self.batch_size, self.dtype, self.device, self.on_batch = batch_size, dtype, device, on_batch
        self.guided_channels = guided_channels
        self.label_weights = torch.tensor(label_weights, dtype=torch.float32, device=device) if label_weights else None
        self.evaluations = 0  # since the start

    def __call__(self, plan: Plan, windows: WindowStore, level: int) -> None:
        """Put float32 estimates (C, p, p) of this rank's windows, in the plan's order. Local.

        Where the model learned its variance, C more channels follow with the network's prediction of it.

        Args:
            windows: Gives the latents and takes the estimates.
        """
        condition, t = self.condition.at_level(level, self.guided_levels), int(self.timesteps[level])
        from_x, from_output = self.schedule.to_denoised(self.schedule.alpha_bar[t])
        boxes = [Box(*box) for box in windows_of(plan.cover, plan.window_ids).tolist()]
        asked = [condition.of(box) for box in boxes]
        requests = [(slot, key) for slot, one in enumerate(asked) for key in one.requests(int(plan.label_bits[slot]))]
        requests.sort(key=lambda request: condition.network(request[1]))  # a micro-batch is of one network
        last = {slot: index for index, (slot, _) in enumerate(requests)}
        outputs: dict[int, dict[int, Tensor]] = {}  # of windows with keys still to come
        done = 0
        for batch in self.batches(condition, requests):
            slots = [slot for slot, _ in batch]
            x = windows.read(slots, self.batch_size, self.dtype)
            answers = self.evaluate(condition, [(boxes[slot], key) for slot, key in batch], x, t)
            if self.dtype != torch.float32:  # half precision is the network's alone
                x = windows.read(slots, self.batch_size, torch.float32)
            channels = x.shape[1]
            for entry, (slot, key) in enumerate(batch):
                outputs.setdefault(slot, {})[key] = answers[entry]
                if last[slot] == done + entry:
                    bits = int(plan.label_bits[slot])
                    output = combine(
                        asked[slot], boxes[slot], bits, outputs.pop(slot), self.guided_channels or channels
                    )
                    estimate = x[entry] * from_x + output[:channels] * from_output
                    if self.label_weights is not None:
                        estimate = reweighed(estimate, each_latents(self.label_weights, asked[slot], boxes[slot], bits))
                    variance = output[channels:]
                    windows.put(slot, torch.cat([estimate, variance]) if len(variance) else estimate)
            done += len(batch)
            self.on_batch(done / len(requests))
        if torch.device(self.device).type == "cuda":
            torch.cuda.synchronize(self.device)  # the time of the level is known here, and not in whatever waits next

    def evaluate(self, condition: Condition, asked: list[tuple[Box, int]], x: Tensor, t: int) -> Tensor:
        """float32 (B, C, p, p): the network's output for one micro-batch, padding included."""
        padded = asked + [asked[-1]] * (self.batch_size - len(asked))
        given = condition.inputs(padded)
        with torch.inference_mode():
            out = self.networks[condition.network(asked[0][1])](
                x,
                torch.full((self.batch_size,), t, device=self.device),
                {name: self.to_device(value) for name, value in given.items()},
            )
        self.evaluations += len(asked)
        return out.float()

    def to_device(self, value: np.ndarray) -> Tensor:
        """An input of the network on its device, and in its type if it holds no integers."""
        tensor = torch.from_numpy(np.ascontiguousarray(value)).to(self.device)
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    def batches(self, condition: Condition, requests: list[Request]) -> Iterator[list[Request]]:
        """Runs of at most ``batch_size`` requests to one network."""
        for _, run in itertools.groupby(requests, lambda request: condition.network(request[1])):
            of_network = list(run)
            for start in range(0, len(of_network), self.batch_size):
                yield of_network[start : start + self.batch_size]


def combine(condition: Condition, window: Box, label_bits: int, outputs: dict[int, Tensor], channels: int) -> Tensor:
    """Each latent's output under its own label: null + w (cond - null).

    Args:
        label_bits: Labels of the window, as bits.
        outputs: The network's output (C, p, p) for every key.
        channels: Number of channels that are guided; a prediction of the variance lies beyond them.
    """
    labels = list(labels_of(label_bits))
    answers = [guided(condition, label, outputs, channels) for label in labels]
    output = answers[0]
    if len(labels) > 1:
        label_map = torch.from_numpy(np.ascontiguousarray(condition.crop(window))).to(output.device)
        for label, answer in zip(labels[1:], answers[1:], strict=True):
            output = torch.where(label_map == label, answer, output)
    return output


def each_latents(table: Tensor, condition: Condition, window: Box, label_bits: int) -> Tensor:
    """The row of a table (K, L) for the label that each latent of a window is asked for: (L, p, p), or (L, 1, 1)."""
    labels = list(labels_of(label_bits))
    if len(labels) == 1:
        return table[labels[0]][:, None, None]
    label_map = torch.from_numpy(np.ascontiguousarray(condition.crop(window))).to(table.device)
    return table[label_map.long()].permute(2, 0, 1)


def reweighed(estimate: Tensor, weights: Tensor) -> Tensor:
    """A clean label map whose labels' chances are multiplied, and divided by their sum again.

    The network's estimate of a one-hot map is its labels' mean, and so their chances: multiplied by the ratio of two
    prior chances they are those under the other prior (as logits are adjusted by Menon et al. 2021, arXiv:2007.07314).

    Args:
        estimate: (L, p, p): 1 where a label is, -1 where another is.
        weights: (L, p, p) or (L, 1, 1).

    >>> reweighed(torch.tensor([0.5, -0.5])[:, None, None], torch.tensor([1.0, 3.0])[:, None, None]).flatten().tolist()
    [0.0, 0.0]
    """
    chances = ((estimate.clamp(-1, 1) + 1) / 2).clamp(min=LEAST_CHANCE) * weights
    return 2 * chances / chances.sum(0, keepdim=True) - 1


def guided(condition: Condition, label: int, outputs: dict[int, Tensor], channels: int) -> Tensor:
    """The output of a whole window under one label, guided."""
    cond, null = condition.keys(label)
    if cond is None:
        assert null is not None
        return outputs[null]
    if condition.guidance == 1 or null is None:
        return outputs[cond]
    mean = outputs[null][:channels] + (outputs[cond][:channels] - outputs[null][:channels]) * condition.guidance
    return torch.cat([mean, outputs[cond][channels:]])
