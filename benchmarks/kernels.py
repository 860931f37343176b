"""``python -m benchmarks.kernels``: how near is every kernel to the speed of a plain copy?

Column ``least MB`` is what a kernel must move, each input read once and each output written once. ``moved / least`` is
what it does move, over that. ``ms`` is the time of one call, the host's part included. ``of copy`` is the least bytes
over that time, as a share of the copy bandwidth that the same run measured on the same device.

Without a GPU the Triton kernels are interpreted, which counts their loads and stores, and are not timed; torch is then
timed on the CPU. Counts are made on a smaller canvas and include lists and lookups. They are larger than on a large
canvas: windows that were pushed inside a small canvas overlap, and rows and columns of weights are loaded again for
every latent, though from a cache.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.moved import torch_bytes, triton_bytes
from benchmarks.report import report
from engine.planning.cover import Lattice, shifted, strided
from kernels.device import has_triton
from kernels.fuse import fuse_torch
from kernels.gather import gather_torch
from kernels.philox import standard_normal
from kernels.step import step_torch
from kernels.values import Field, SeparableWeights, Update, Weights, WinnerMap

PATCH, CHANNELS = 64, 4
FIELD = Field(0, "step", 1)
BEYOND_CACHES = 2**25  # float32 values; a copy of fewer would measure a cache's bandwidth


@dataclass(frozen=True)
class Case:
    """One kernel on given tensors: the bytes it must move, and its two versions."""

    name: str
    least: int
    torch: Callable[[], Any]
    triton: Callable[[], Any]


def cases(side: int, device: str, triton: bool) -> list[Case]:
    """All cases on a canvas of ``side`` x ``side`` latents."""
    return [gather_case(side, device, triton), *fuse_cases(side, device, triton), *step_cases(side, device, triton)]


def places(cover: Lattice) -> tuple[np.ndarray, np.ndarray]:
    """Top-left corners (n, 2) of all windows, and the boxes (n, 4) that their estimates are used in."""
    ids = np.arange(len(cover))
    return cover.corners(ids), cover.core(ids)


def gather_case(side: int, device: str, triton: bool) -> Case:
    if triton:
        from kernels.triton.gather import gather_into
    canvas = torch.randn(CHANNELS, side, side, device=device)
    corners = torch.from_numpy(places(shifted((side, side), PATCH, 0, 0))[0])
    out = torch.empty(len(corners), CHANNELS, PATCH, PATCH, dtype=torch.bfloat16, device=device)
    out = out.contiguous(memory_format=torch.channels_last)
    least = size(canvas, out)
    return Case(
        "gather to bfloat16",
        least,
        lambda: gather_torch(out, canvas, corners),
        lambda: gather_into(out, canvas, corners),
    )


def fuse_cases(side: int, device: str, triton: bool) -> list[Case]:
    disjoint, overlapping = shifted((side, side), PATCH, 0, 0), strided((side, side), PATCH, PATCH // 2, "hann")
    owner = torch.full((side, side), -1, dtype=torch.int32, device=device)
    for n, (y0, x0, y1, x1) in enumerate(places(disjoint)[1].tolist()):
        owner[y0:y1, x0:x1] = n
    winner = WinnerMap(owner)
    pairs = [overlapping.axis_weights(index) for index in range(len(overlapping))]
    rows, columns = (torch.from_numpy(np.stack(side)).to(device) for side in zip(*filter(None, pairs), strict=True))
    return [
        fuse_case("fuse, disjoint", disjoint, None, side, device, triton),
        fuse_case("fuse, winner takes", disjoint, winner, side, device, triton),
        fuse_case("fuse, overlap of half", overlapping, SeparableWeights(rows, columns), side, device, triton),
    ]


def fuse_case(name: str, cover: Lattice, weights: Weights, side: int, device: str, triton: bool) -> Case:
    if triton:
        from kernels.triton.fuse import fuse_into
    corners, used = map(torch.from_numpy, places(cover))
    estimates = torch.randn(len(cover), CHANNELS, PATCH, PATCH, device=device)
    out = torch.empty(CHANNELS, side, side, device=device)
    read = int((used[:, 2:] - used[:, :2]).prod(1).sum()) * CHANNELS * 4
    least = read + size(out) + (size(weights.winner) if isinstance(weights, WinnerMap) else 0)
    return Case(
        name,
        least,
        lambda: fuse_torch(out, estimates, corners, used, weights),
        lambda: fuse_into(out, estimates, corners, used, weights),
    )


def step_cases(side: int, device: str, triton: bool) -> list[Case]:
    x, previous, out = (torch.randn(CHANNELS, side, side, device=device) for _ in range(3))
    estimate = torch.randn(2 * CHANNELS, side, side, device=device)
    one = size(x)

    def case(name: str, least: int, update: Update) -> Case:
        given = estimate if update.log_variance else estimate[:CHANNELS]
        arguments = (out, x, given, previous if update.coefficients[2] else None, update)
        return Case(name, least, lambda: step_torch(*arguments), lambda: step_into(*arguments))

    if triton:
        from kernels.triton.philox import draw_into
        from kernels.triton.step import step_into
    return [
        case("step, ddim", 3 * one, Update((0.9, 0.3, 0.0, 0.0, 0.1), 1.0)),
        case("step, dpmpp2m", 4 * one, Update((0.9, 0.3, -0.1, 0.0, 0.0), 1.0)),
        case("step, ddpm with noise", 3 * one, Update((0.9, 0.3, 0.0, 0.2, 0.0), 1.0, noise=FIELD)),
        case("step, predicted std", 4 * one, Update((0.9, 0.3, 0.0, 0.2, 0.0), 1.0, (-9.0, -4.0), FIELD)),
        Case("noise alone", one, lambda: draw_torch(side, device), lambda: draw_into(out, FIELD)),
    ]


def draw_torch(side: int, device: str) -> torch.Tensor:
    return standard_normal(FIELD.seed, FIELD.purpose, FIELD.level, (0, 0, side, side), CHANNELS, device)


def size(*tensors: torch.Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def seconds(compute: Callable[[], Any], device: str, repeats: int) -> float:
    """Median time of one call; a first call, which compiles on a GPU, is not counted."""

    def once() -> float:
        start = time.perf_counter()
        compute()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    once()
    return sorted(once() for _ in range(repeats))[repeats // 2]


def copy_bandwidth(elements: int, device: str, repeats: int) -> float:
    """Bytes read and written a second by ``Tensor.copy_``."""
    source, target = torch.ones(elements, device=device), torch.empty(elements, device=device)
    return 2 * size(source) / seconds(lambda: target.copy_(source), device, repeats)


def counts(side: int) -> dict[str, float]:
    """Bytes moved over least bytes, for every Triton kernel; the process must have TRITON_INTERPRET=1."""
    ratios = {}
    for case in cases(side, "cpu", triton=True):
        with triton_bytes() as moved:
            case.triton()
        ratios[case.name] = moved[0] / case.least
    return ratios


def counted_apart(side: int) -> dict[str, float]:
    """``counts`` in a process of its own; empty without Triton."""
    if not has_triton():
        return {}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.kernels", "--count-only", "--count-side", str(side)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def measure(side: int, count_side: int, device: str, repeats: int) -> tuple[list[dict[str, Any]], float]:
    """The rows of the table, and the copy bandwidth in bytes a second."""
    bandwidth = copy_bandwidth(max(CHANNELS * side * side, BEYOND_CACHES), device, repeats)
    moved_triton = counted_apart(count_side)
    moved_torch = {c.name: torch_bytes(c.torch) / c.least for c in cases(count_side, "cpu", triton=False)}
    compiled = device == "cuda" and has_triton()
    rows = []
    for case in cases(side, device, compiled):
        versions = [("torch", case.torch, moved_torch)] + (
            [("triton", case.triton, moved_triton)] if has_triton() else []
        )
        for version, compute, moved in versions:
            timed = seconds(compute, device, repeats) if version == "torch" or compiled else None
            rows.append(
                {
                    "kernel": case.name,
                    "version": version,
                    "least MB": case.least / 1e6,
                    "moved / least": moved[case.name],
                    "ms": timed and timed * 1e3,
                    "of copy": timed and case.least / timed / bandwidth,
                }
            )
    return rows, bandwidth


def main(arguments: Sequence[str] | None = None) -> int:
    gpu = torch.cuda.is_available()
    top = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    top.add_argument("--side", type=int, default=8192 if gpu else 512, help="side of the canvas, in latents")
    top.add_argument("--count-side", type=int, default=256, help="side of the canvas on which bytes are counted")
    top.add_argument("--repeats", type=int, default=20 if gpu else 5)
    top.add_argument("--count-only", action="store_true", help=argparse.SUPPRESS)
    top.add_argument("--json", help="write the report here")
    args = top.parse_args(arguments)
    if args.count_only:
        print(json.dumps(counts(args.count_side)))
        return 0
    device = "cuda" if gpu else "cpu"
    rows, bandwidth = measure(args.side, args.count_side, device, args.repeats)
    name = torch.cuda.get_device_name() if gpu else "none: Triton is counted under its interpreter and not timed"
    facts = {"side": args.side, "count_side": args.count_side, "torch": torch.__version__, "gpu": name}
    report("kernels", rows, args.json, **facts, copy_GB_per_s=bandwidth / 1e9)
    print(f"GPU: {name}; copy on the {'GPU' if gpu else 'CPU'}: {bandwidth / 1e9:.1f} GB/s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
