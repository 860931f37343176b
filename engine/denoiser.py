"""Windows -> evaluations -> micro-batches of one fixed shape -> guidance -> estimates of the clean canvas."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from engine.conditions import LabelMap
from engine.plan import LevelPlan
from engine.schedule import Schedule

Request = tuple[int, int]  # (window, label); label 0 is the null


class Denoiser:
    """The estimates of one rank's windows.

    Every micro-batch has ``batch_size`` places and is padded: on one kind of device a window's bits depend on the
    shape of its batch, not on its place in it or on what lies beside it.
    """

    def __init__(
        self,
        network: nn.Module,
        condition: LabelMap,
        schedule: Schedule,
        batch_size: int,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
    ) -> None:
        self.network, self.condition, self.schedule = network, condition, schedule
        self.batch_size, self.dtype, self.device = batch_size, dtype, device
        self.evaluations = 0

    def __call__(
        self, plan: LevelPlan, present: np.ndarray, windows: list[int], read: Callable[[int], Tensor], t: int
    ) -> dict[int, Tensor]:
        """Estimates (C, p, p) in float32 of the given windows at timestep ``t``. Local.

        Args:
            present: the labels of every window of the plan, as bits.
            read: from a window's index to its latents.
        """
        requests = [(w, label) for w in windows for label in self.condition.requests(int(present[w]))]
        inputs: dict[int, Tensor] = {}
        outputs: dict[int, dict[int, Tensor]] = {}
        denoised: dict[int, Tensor] = {}
        last = {window: index for index, (window, _) in enumerate(requests)}
        from_x, from_output = self.schedule.to_denoised(self.schedule.alpha_bar[t])
        done = 0
        for batch in batches(requests, self.batch_size):
            for window, _ in batch:
                if window not in inputs:
                    inputs[window] = read(window).to(self.device)
            for (window, label), out in zip(batch, self.evaluate(plan, batch, inputs, t), strict=False):
                outputs.setdefault(window, {})[label] = out
            for index in range(done, done + len(batch)):
                window = requests[index][0]
                if last[window] == index:
                    out = self.guided(plan, window, outputs.pop(window))
                    denoised[window] = inputs.pop(window) * from_x + out * from_output
            done += len(batch)
        return denoised

    def evaluate(self, plan: LevelPlan, batch: list[Request], inputs: dict[int, Tensor], t: int) -> Tensor:
        """The network's output (B, C, p, p) for one micro-batch, in float32; padding included."""
        padded = batch + [batch[-1]] * (self.batch_size - len(batch))
        labels = torch.tensor([label for _, label in padded])
        maps = [
            self.condition.crop(plan.cover.window(window)) == label
            if label
            else np.zeros((plan.cover.patch,) * 2, bool)
            for window, label in padded
        ]
        with torch.inference_mode():
            x = torch.stack([inputs[window] for window, _ in padded]).to(self.dtype)
            out = self.network(
                x.contiguous(memory_format=torch.channels_last),
                torch.full((self.batch_size,), t, device=self.device),
                labels.to(self.device),
                torch.from_numpy(np.stack(maps)[:, None]).to(self.device, self.dtype),
            )
        self.evaluations += len(batch)
        return out.float()

    def guided(self, plan: LevelPlan, window: int, outputs: dict[int, Tensor]) -> Tensor:
        """Each latent's output under its own label: null + w (cond - null); label 0 is the null itself."""
        labels = torch.from_numpy(np.ascontiguousarray(self.condition.crop(plan.cover.window(window))))
        weight = self.condition.guidance
        out = outputs.get(0)
        for label, cond in outputs.items():
            if label:
                asked = cond if weight == 1 else outputs[0] + (cond - outputs[0]) * weight
                where = (labels == label).to(cond.device)
                out = asked if out is None else torch.where(where, asked, out)
        assert out is not None
        return out


def batches(items: list[Request], size: int) -> Iterator[list[Request]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
