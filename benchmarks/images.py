"""``python -m benchmarks.images``: images a second of DiffInfinite's published shape, on one device.

An image is one window of 64 x 64 x 4 latents (512 px), taken through ``--levels`` levels with guidance: two
evaluations a level. The network has the published one's shape, 256 channels, and random weights, and is prepared as the
engine prepares it; noise, fusion and the decoder are not in it (``benchmarks.overhead`` has the engine's part). Rows:
float32 (on a GPU as torch multiplies by default: convolutions by TF32 where "tf32" is true) and bfloat16; with
``--compile`` each compiled, on a GPU into CUDA graphs. "difference" is the relative distance from the first row's
output.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.report import report
from engine.models.folder import memory_order, place
from engine.models.networks.mask_unet import MaskUNet
from engine.models.optimize import compiled, prepare_for_inference

CHANNELS, CLASSES = 4, 6


def inputs(batch: int, side: int) -> tuple[Tensor, ...]:
    """Windows, timesteps, labels and masks."""
    make = torch.Generator().manual_seed(0)
    mask = (torch.rand(batch, 1, side, side, generator=make) > 0.5).float()
    x = torch.randn(batch, CHANNELS, side, side, generator=make)
    return x, torch.full((batch,), 500), torch.ones(batch, dtype=torch.long), mask


def gflop(network: nn.Module, given: Sequence[Tensor]) -> float:
    """Of one call, as the network was trained; nothing is computed."""
    with FlopCounterMode(display=False) as counter:
        deepcopy(network).to("meta")(*(tensor.to("meta") for tensor in given))
    return counter.get_total_flops() / 1e9


def seconds_of(call: Callable[[], Tensor], device: str, rounds: int) -> np.ndarray:
    """Of every round; the two before, in which libraries choose and compile, are not counted."""
    taken = []
    for _ in range(rounds + 2):
        begun = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - begun)
    return np.array(taken[2:])


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for every dtype, and for each compiled."""
    torch.manual_seed(0)
    trained = MaskUNet(args.dim, CLASSES).eval().requires_grad_(False)
    given = inputs(args.batch, args.side)
    work, rows, expected = gflop(trained, given), [], None
    for dtype in args.dtypes:
        for fast in (False, True) if args.compile else (False,):
            evaluate = evaluation(trained, given, getattr(torch, dtype), args.device, fast)
            begun = time.perf_counter()
            output = evaluate().float().cpu()
            first = time.perf_counter() - begun
            expected = output if expected is None else expected
            seconds = float(np.median(seconds_of(evaluate, args.device, args.rounds)))
            rows.append(
                {
                    "dtype": dtype,
                    "compiled": fast,
                    "batch": args.batch,
                    "ms": seconds * 1e3,
                    "first, s": first,
                    "images / s": args.batch / (2 * args.levels * seconds),
                    "TFLOP / s": work / seconds / 1e3,
                    "difference": float((output - expected).norm() / expected.norm()),
                }
            )
    return rows


def evaluation(
    trained: nn.Module, given: Sequence[Tensor], dtype: torch.dtype, device: str, fast: bool
) -> Callable[[], Tensor]:
    """One call of the network, prepared and placed as the engine does it."""
    network = place(prepare_for_inference(deepcopy(trained), device), dtype, device)
    x, t, label, mask = (tensor.to(device) for tensor in given)
    x = x.to(dtype).contiguous(memory_format=memory_order(network, device))
    return partial(compiled(partial(network), device) if fast else network, x, t, label, mask)


def main(arguments: Sequence[str] | None = None) -> int:
    top = argparse.ArgumentParser(prog="python -m benchmarks.images", description=__doc__)
    top.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    top.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=("float32", "bfloat16", "float16"))
    top.add_argument("--compile", action="store_true", help="also compiled")
    top.add_argument("--levels", type=int, default=25, help="of an image")
    top.add_argument("--dim", type=int, default=256, help="channels at full size")
    top.add_argument("--side", type=int, default=64, help="latents of a window's side")
    top.add_argument("--batch", type=int, default=64)
    top.add_argument("--rounds", type=int, default=10)
    top.add_argument("--json", help="write the report here")
    args = top.parse_args(arguments)
    with torch.inference_mode():
        rows = measure(args)
    on_gpu = args.device == "cuda"
    name = torch.cuda.get_device_name() if on_gpu else "cpu"
    facts = {name: getattr(args, name) for name in ("levels", "dim", "side", "rounds")}
    tf32 = on_gpu and torch.backends.cudnn.allow_tf32
    report("images", rows, args.json, torch=torch.__version__, device=name, tf32=tf32, **facts)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
