"""Latents and estimates on their way between ranks: float32, many pieces in one message."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from engine.distributed.ranks import Ranks

LARGEST_MESSAGE = 2**28  # elements: MPI counts are 32-bit integers on many sites


class Outgoing:
    """A message to a rank. It keeps its buffer until the message has left.

    Args:
        pieces: Tensors of one device; they are copied by ``start``.
    """

    def __init__(self, ranks: Ranks, target: int, tag: int, pieces: Sequence[Tensor]) -> None:
        self.ranks, self.target, self.tag, self.pieces = ranks, target, tag, pieces
        self.buffer = torch.empty(0)
        self.packed: Callable[[], bool] = lambda: False
        self.requests: list | None = None

    def start(self) -> None:
        """Pack the pieces, and begin to send them; ``ranks`` advances it. Local."""
        self.buffer, self.packed = pack(self.pieces, self.ranks.gpu_aware)
        self.pieces = ()
        self.ranks.carry(self)

    def advance(self) -> bool:
        """Send the message, if it is packed; whether it has left. Local."""
        if self.requests is None:
            if not self.packed():
                return False
            comm = self.ranks.comm
            self.requests = [comm.Isend(part, dest=self.target, tag=self.tag) for part in parts_of(self.buffer)]
        return bool(self.ranks.mpi.Request.Testall(self.requests))


class Incoming:
    """A message from a rank.

    Args:
        count: Number of float32 values.
        device: Device that they are needed on; they arrive there if the MPI library can, else in host memory.
    """

    def __init__(self, ranks: Ranks, source: int, tag: int, count: int, device: str) -> None:
        self.ranks, self.source, self.tag, self.count, self.device = ranks, source, tag, count, device
        self.buffer = torch.empty(0)
        self.requests: list = []
        self.values: Tensor | None = None

    def start(self) -> None:
        """Begin to receive. Local."""
        self.buffer = allocate_buffer(self.count, self.device, self.ranks.gpu_aware)
        comm = self.ranks.comm
        self.requests = [comm.Irecv(part, source=self.source, tag=self.tag) for part in parts_of(self.buffer)]

    def tensor(self) -> Tensor:
        """float32 (count,) on the device; waits for it."""
        if self.values is None:
            self.ranks.wait(self.requests)
            self.values = self.buffer.to(self.device, non_blocking=True)
        return self.values


def parts_of(buffer: Tensor) -> list[Any]:
    """A buffer as MPI takes it, in messages it can count: host memory as arrays, a GPU's memory as it is."""
    whole = buffer.numpy() if buffer.device.type == "cpu" else buffer
    return [whole[i : i + LARGEST_MESSAGE] for i in range(0, len(buffer), LARGEST_MESSAGE)]


def allocate_buffer(count: int, device: str, gpu_aware: bool) -> Tensor:
    """float32 (count,) for a message: in host memory, page-locked where a GPU copies from it, or on the GPU."""
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu and gpu_aware:
        buffer = torch.empty(count, device=device)
        # MPI writes outside of the stream: what is still to be done with this memory must be done before.
        torch.cuda.current_stream(buffer.device).synchronize()
        return buffer
    return torch.empty(count, pin_memory=on_gpu)


def pack(pieces: Sequence[Tensor], gpu_aware: bool) -> tuple[Tensor, Callable[[], bool]]:
    """The pieces one after another in a buffer, and a function that says whether they are all there.

    A GPU copies them on a stream of its own, beside its other work.
    """
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
    """The stream that copies to and from messages, one a device."""
    return torch.cuda.Stream(device)
