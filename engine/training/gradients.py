"""Gradients are averaged over the ranks while the backward pass still runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from engine.distributed.collectives import ArraySum
from engine.distributed.ranks import Ranks

BUCKET = 2**20  # gradients that travel in one message, about
SMALLEST = 16  # the least message is so many times smaller


class GradientAverage:
    """Sums gradients over the ranks, in messages that leave as soon as the backward pass has filled them.

    Every rank posts its messages in the same order, whatever the order in which its gradients come. Each rank's loss is
    weighed by its share of the batch before, so that the sum is the whole batch's mean.

    Args:
        parameters: What is trained, in the order of the network; the backward pass comes to the last of them first.
        size: Gradients in a message, about.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], ranks: Ranks, size: int = BUCKET) -> None:
        self.ranks, self.buckets = ranks, buckets_of(list(reversed(parameters)), size)
        self.bucket_of = {parameter: index for index, bucket in enumerate(self.buckets) for parameter in bucket}
        self.left = [len(bucket) for bucket in self.buckets]  # gradients that are still to come
        self.posted: list[ArraySum] = []
        self.listening = False
        if ranks.size > 1:
            for parameter in parameters:
                parameter.register_post_accumulate_grad_hook(self.on_gradient)

    def begin(self) -> None:
        """The backward pass that follows is the step's last: its gradients are summed. Local."""
        self.left, self.posted, self.listening = [len(bucket) for bucket in self.buckets], [], self.ranks.size > 1

    def on_gradient(self, parameter: torch.Tensor) -> None:
        """Take note of a gradient, and post what is full. Local."""
        if not self.listening:
            return
        self.left[self.bucket_of[parameter]] -= 1  # type: ignore[index]
        while len(self.posted) < len(self.buckets) and self.left[len(self.posted)] == 0:
            self.post()
        for message in self.posted:
            message.test()  # MPI goes on only while it is called, also where no thread may call it

    def post(self) -> None:
        """Begin to sum the next bucket. Collective; nobody waits."""
        bucket = self.buckets[len(self.posted)]
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
        flat = torch.cat([part.flatten() for part in parts]).float().cpu().numpy()
        self.posted.append(ArraySum(self.ranks, flat))
        self.posted[-1].start()

    def finish(self) -> None:
        """Wait for the sums, and put them where the gradients were. Collective."""
        if not self.listening:
            return
        self.listening = False
        while len(self.posted) < len(self.buckets):
            self.post()  # with zeros of what took no part in the loss
        for bucket, message in zip(self.buckets, self.posted, strict=True):
            message.wait()
            parts = np.split(message.array, np.cumsum([p.numel() for p in bucket])[:-1])
            for parameter, part in zip(bucket, parts, strict=True):
                parameter.grad = torch.from_numpy(part).view_as(parameter).to(parameter)


def buckets_of(parameters: Sequence[nn.Parameter], size: int) -> list[list[nn.Parameter]]:
    """Runs of parameters of about ``size`` numbers together; the last become smaller, since nothing hides their sums.

    >>> [len(bucket) for bucket in buckets_of([nn.Parameter(torch.zeros(1)) for _ in range(32)], 8)]
    [8, 8, 8, 4, 2, 1, 1]
    """
    buckets: list[list[nn.Parameter]] = [[]]
    left, held, wanted = sum(p.numel() for p in parameters), 0, size
    for parameter in parameters:
        if held >= wanted:
            buckets.append([])
            held, wanted = 0, min(size, max(left // 2, size // SMALLEST))
        buckets[-1].append(parameter)
        held, left = held + parameter.numel(), left - parameter.numel()
    return buckets
