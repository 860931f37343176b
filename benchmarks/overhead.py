"""``python -m benchmarks.overhead``: the time of a level in the engine over the bare network's, one rank.

Engine is everything that a level does: plan, gather, evaluate, guide, fuse, step, noise, progress, votes. Bare is the
prepared network alone, called again with the very micro-batches of that level (as many, the same tensors). Nothing in
the engine is changed for it: ``run`` is given networks that keep what they were called with, and ranks whose vote at
the end of a level also ends the measurement of it; there the bare calls follow. So engine and bare take turns, level
by level, and a ratio compares two things done seconds apart. "over bare" is the median of these ratios, "low" and
"high" their quartiles; the first level does not count, it warms up.

"over own calls" is each level over the seconds inside its own network calls: the machine's noise falls on both sides
of it alike, so that it is steady where the other is not; what the engine does to the network's caches is missing
from it. On a GPU calls return before they end, and it is not given. "own %" is what of a level is neither the network
nor another column: inputs, stacking, guidance.

``--live`` measures what the picture for those who watch costs, with ``live`` 0 in every second level of one run:
"live %" is what the median ratio to bare of levels with it is above that of levels without. The noise of a machine that
others use is larger than that, so it is also counted: "own ms" is the processor time that goes into a picture, of the
thread that samples and of the one that writes, with all that is said of the run meanwhile, and "own %" what of a level
that is.

Networks: the embedded model, and one of DiffInfinite's shape (windows of 64 x 64 x 4), random, of so many GFLOP a
window, counted by ``torch.utils.flop_counter`` (a multiplication and an addition are two).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mpi4py import MPI
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.report import report
from engine.distributed.ranks import Ranks
from engine.job import RunOptions, SampleJob
from engine.models.card import colored
from engine.models.files import EMBEDDED
from engine.models.folder import Model, Network, device_of, load_model, save_part
from engine.models.networks.autoencoder import PatchAutoencoder
from engine.models.networks.mask_unet import MaskUNet
from engine.pipeline.live import Live
from engine.pipeline.prepare import prepare
from engine.pipeline.prepared import Prepared
from engine.pipeline.run import run
from engine.training.diffusion import write_folder
from engine.training.image import PARTS, SCHEDULER

LABELS = ["unknown", "carcinoma", "necrosis", "tumour stroma", "other"]
SIDE = 64  # latents of DiffInfinite's windows
SHOWN = ("plan", "exchange", "fuse", "wait", "other")  # kinds of the timer


class Watched:
    """A network that keeps what it is called with, and the seconds inside."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.calls: list[tuple[Tensor, Tensor, dict[str, Tensor]]] = []
        self.inside = 0.0

    def __call__(self, x: Tensor, t: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        self.calls.append((x, t, inputs))
        begun = time.perf_counter()
        out = self.network(x, t, inputs)
        self.inside += time.perf_counter() - begun
        return out

    def again(self, device: str) -> float:
        """Seconds of the same calls, bare; they are forgotten."""
        with torch.inference_mode():
            begun = now(device)
            for x, t, inputs in self.calls:
                self.network(x, t, inputs)
            seconds = now(device) - begun
        self.calls, self.inside = [], 0.0
        return seconds


class WatchedRanks(Ranks):
    """Ranks that measure a level where its votes are counted, the last thing it does: all that one rank waits for."""

    def __init__(self, comm: MPI.Comm, device: str) -> None:
        super().__init__(comm)
        self.device = device
        self.network: Watched | None = None
        self.levels: list[dict[str, float]] = []
        self.before = self.reading()

    def load(self, prepared: Prepared, device: str) -> list[Model]:
        model = load_model(prepared.card.folder, getattr(torch, prepared.job.dtype), device)
        self.network = Watched(model.network)
        return [replace(model, network=self.network)]

    def reading(self) -> dict[str, float]:
        """The clocks."""
        self.timer.switch(self.timer.kind)
        return {"level": now(self.device), **self.timer.seconds}

    def wait(self, requests: list) -> None:
        super().wait(requests)
        if self.network is not None and self.network.calls:  # none in the rounds of decoding
            spent = {name: seconds - self.before[name] for name, seconds in self.reading().items()}
            spent["inside"], spent["batches"] = self.network.inside, len(self.network.calls)
            spent["bare"] = self.network.again(self.device)
            self.levels.append(spent)
            self.before = self.reading()


def now(device: str) -> float:
    """Seconds, when all that was asked of the device is done."""
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def gflop(dim: int) -> float:
    """Of one evaluation of a window, in DiffInfinite's shape; nothing is computed."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        label, mask = torch.ones(1, dtype=torch.long), torch.ones(1, 1, SIDE, SIDE)
        MaskUNet(dim, len(LABELS))(torch.ones(1, 4, SIDE, SIDE), torch.ones(1), label, mask)
    return counter.get_total_flops() / 1e9


def dim_of(wanted: float) -> int:
    """The width whose evaluation takes about so many GFLOP: they grow as its square."""
    return max(8 * round(32 * (wanted / gflop(256)) ** 0.5), 8)


def random_model(folder: Path, dim: int) -> Path:
    """A model folder of DiffInfinite's shape with random weights, and a small decoder."""
    torch.manual_seed(0)
    save_part(PatchAutoencoder(latent_channels=4, channels=(8, 8, 8), blocks=(1, 1, 1)), folder / "vae")
    save_part(MaskUNet(dim, len(LABELS)), folder / "unet")
    facts = {"patch_size": SIDE, "pixel_size_um": 0.5, "labels": colored(LABELS)}
    write_folder(folder, PARTS, SCHEDULER, {**facts, "defaults": {"solver": "ddim", "guidance": 2.0, "batch_size": 4}})
    return folder


def run_watched(model: Path, job: SampleJob, live: float | None = None) -> tuple[WatchedRanks, Prepared]:
    """A run of a job, level by level, engine and bare in turn."""
    ranks = WatchedRanks(MPI.COMM_SELF, device_of(job.device, 0))
    with tempfile.TemporaryDirectory() as folder:
        options = RunOptions(out=f"{folder}/o.zarr", preview="none", live=live)
        prepared = prepare(replace(job, model=str(model)), options, 1, 1)
        if not run(ranks, prepared, ranks.load) or len(ranks.levels) != len(prepared.timesteps):
            raise SystemExit(f"{len(ranks.levels)} of {len(prepared.timesteps)} levels were seen: one vote a level?")
    return ranks, prepared


class InTurns:
    """Pictures after every second level, and the seconds that they take."""

    def __init__(self) -> None:
        self.asked, self.seconds = 0, 0.0

    @contextmanager
    def watched(self) -> Iterator[None]:
        """While this lasts, all that hands over and writes a picture goes through this."""
        due, show, write = Live.due, Live.show, Live._write

        def every_second(_: Live) -> bool:
            self.asked += 1
            return self.asked % 2 == 1

        def shown(live: Live, *arguments: Any) -> None:
            begun = time.thread_time()
            show(live, *arguments)
            self.seconds += time.thread_time() - begun

        def written(live: Live) -> None:
            begun = time.thread_time()
            write(live)
            self.seconds += time.thread_time() - begun

        Live.due, Live.show, Live._write = every_second, shown, written  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            Live.due, Live.show, Live._write = due, show, write  # type: ignore[method-assign]


def measure_live(name: str, model: Path, job: SampleJob) -> dict[str, Any]:
    """A row for a model: levels with a picture and without, in turn. A picture is made in the level after its own."""
    turns = InTurns()
    with turns.watched():
        ranks, _ = run_watched(model, job, live=0.0)
    level = np.array([one["level"] for one in ranks.levels])
    ratio = level / [one["bare"] for one in ranks.levels]
    with_it, without = ratio[1::2], ratio[2::2]
    pictures = (len(ratio) + 1) // 2
    own = turns.seconds / pictures
    return {
        "network": name,
        "px": f"{job.size[0]} x {job.size[1]}",
        "level s": float(np.median(level)),
        "over bare with": float(np.median(with_it)),
        "without": float(np.median(without)),
        "live %": 100 * float(np.median(with_it) / np.median(without) - 1),
        "low": 100 * float(np.quantile(with_it, 0.25) / np.median(without) - 1),
        "high": 100 * float(np.quantile(with_it, 0.75) / np.median(without) - 1),
        "own ms": 1000 * own,
        "own %": 100 * own / float(np.median(level)),
    }


def measure(name: str, model: Path, job: SampleJob) -> dict[str, Any]:
    """A row for a model: its levels, engine and bare in turn."""
    ranks, prepared = run_watched(model, job)
    spent = {key: np.array([level[key] for level in ranks.levels[1:]]) for key in ranks.levels[0]}
    ratio = spent["level"] / spent["bare"]
    low, middle, high = np.quantile(ratio, (0.25, 0.5, 0.75))
    on_cpu = ranks.device == "cpu"

    def share(seconds: np.ndarray) -> float:
        return 100 * float(seconds.sum() / spent["level"].sum())

    return {
        "network": name,
        "px": f"{job.size[0]} x {job.size[1]}",
        "batch": prepared.job.batch_size,
        "batches a level": float(spent["batches"].mean()),
        "level s": float(np.median(spent["level"])),
        "bare s": float(np.median(spent["bare"])),
        "over bare": float(middle),
        "low": float(low),
        "high": float(high),
        "over own calls": float(np.median(spent["level"] / spent["inside"])) if on_cpu else None,
        "own %": share(spent["evaluate"] - (spent["inside"] if on_cpu else spent["bare"])),
        **{f"{kind} %": share(spent[kind]) for kind in SHOWN},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    top = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=__doc__)
    top.add_argument("--size", type=int, default=1024, help="px of the embedded model's canvas")
    top.add_argument("--large-size", type=int, default=512, help="px of the large network's canvas")
    top.add_argument("--levels", type=int, default=16)
    top.add_argument("--large-levels", type=int, default=6)
    top.add_argument("--gflop", type=float, default=100, help="of the large network, a window")
    top.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    top.add_argument("--batch", type=int, help="windows evaluated at once (default: 8, and 4 of the large network)")
    top.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    top.add_argument("--threads", type=int, default=1)
    top.add_argument("--live", action="store_true", help="measure what --live of engine.sample costs")
    top.add_argument("--json", help="write the report here")
    args = top.parse_args(arguments)
    torch.set_num_threads(args.threads)
    job = SampleJob(labels="example", device=args.device, batch_size=args.batch, dtype=args.dtype, threads=args.threads)
    dim = dim_of(args.gflop)
    row = measure_live if args.live else measure
    with tempfile.TemporaryDirectory() as folder:
        small = replace(job, size=(args.size, args.size), steps=args.levels)
        large = replace(job, size=(args.large_size, args.large_size), steps=args.large_levels)
        rows = [
            row("embedded", EMBEDDED, small),
            row(f"DiffInfinite, {gflop(dim):.4g} GFLOP", random_model(Path(folder), dim), large),
        ]
    facts = {"torch": torch.__version__, "threads": args.threads, "dtype": args.dtype, "dim": dim}
    device = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
    report("overhead-live" if args.live else "overhead", rows, args.json, **facts, device=device)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
