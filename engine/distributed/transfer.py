"""Latents and estimates on their way between ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from engine.distributed.ranks import Ranks

LARGEST_MESSAGE = 2**28  # elements: MPI counts are 32-bit integers on many sites


class SendBuffer:
    """Pieces of float32 on their way to a rank, in one message; it keeps them until they have left."""

    def __init__(self, ranks: Ranks, target: int, tag: int, pieces: Sequence[Tensor]) -> None:
        self.ranks, self.target, self.tag = ranks, target, tag
        self.buffer, self.ready = pack(pieces, ranks.gpu_aware)
        self.requests: list | None = None
        with ranks.lock:
            if not self.moved():
                ranks.unsent.append(self)

    def moved(self) -> bool:
        """Send it, if its pieces are there; whether it has left. Local."""
        if self.requests is None:
            if not self.ready():
                return False
            comm = self.ranks.comm
            self.requests = [comm.Isend(part, dest=self.target, tag=self.tag) for part in parts_of(self.buffer)]
        return bool(self.ranks.mpi.Request.Testall(self.requests))


class ReceiveBuffer:
    """A message that is expected from a rank.

    Args:
        count: float32 values.
        device: where they are needed; they arrive there if the MPI library can, else in host memory.
    """

    def __init__(self, ranks: Ranks, source: int, tag: int, count: int, device: str) -> None:
        self.ranks, self.device = ranks, device
        self.buffer = allocate_buffer(count, device, ranks.gpu_aware)
        self.found: Tensor | None = None
        self.requests = [ranks.comm.Irecv(part, source=source, tag=tag) for part in parts_of(self.buffer)]

    def tensor(self) -> Tensor:
        """float32 (count,) on the device; waits for it."""
        if self.found is None:
            self.ranks.wait(self.requests)
            self.found = self.buffer.to(self.device, non_blocking=True)
        return self.found


def parts_of(buffer: Tensor) -> list[Any]:
    """What MPI is given of a buffer: host memory as arrays, a GPU's as it is."""
    whole = buffer.numpy() if buffer.device.type == "cpu" else buffer
    return [whole[i : i + LARGEST_MESSAGE] for i in range(0, len(buffer), LARGEST_MESSAGE)]


def allocate_buffer(count: int, device: str, gpu_aware: bool) -> Tensor:
    """float32 (count,) for a message: in host memory, page-locked where a GPU copies from it, or on the GPU."""
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu and gpu_aware:
        found = torch.empty(count, device=device)
        torch.cuda.current_stream(found.device).synchronize()  # MPI writes beside what still uses this memory
        return found
    return torch.empty(count, pin_memory=on_gpu)


def pack(pieces: Sequence[Tensor], gpu_aware: bool) -> tuple[Tensor, Callable[[], bool]]:
    """Pieces one after another, and whether they are all there: a GPU copies them beside its other work."""
    device = pieces[0].device
    if device.type != "cuda":
        return torch.cat([piece.reshape(-1) for piece in pieces]), lambda: True
    buffer = allocate_buffer(sum(piece.numel() for piece in pieces), str(device), gpu_aware)
    stream = copy_stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        start = 0
        for piece in pieces:
            buffer[start : start + piece.numel()].copy_(piece.reshape(-1), non_blocking=True)
            piece.record_stream(stream)
            start += piece.numel()
        event = torch.cuda.Event()
        event.record(stream)
    return buffer, event.query


@cache
def copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
