"""``python -m benchmarks.scaling``: what is lost when n ranks share a job?

*Strong*: one canvas on ever more ranks, efficiency T1 / (n Tn). *Weak*: a canvas that grows with the ranks, T1 / Tn.
*Ideal* is what whole micro-batches allow. Networks:

- real: the model's own, on as many ranks as there are cores;
- emulated: occupies no core and answers after a fixed time, so that many ranks on few cores show everything but the
  network's arithmetic: planning, exchange, fusion, stores, waiting;
- emulated +-10 %: after a normally distributed time, drawn by rank and call.

A micro-batch of the emulated network is one window, which keeps the arithmetic that is not emulated small. Canvases
are one latent larger than a whole number of windows, less one: every level's cover then has exactly rows x columns
windows, whatever its offset. Seconds are those of all levels but the first, which imports and warms up: from the
first evaluation of the second level on any rank to the end of the last evaluation on any rank, for no rank waits for
all others; of the nodes' clocks, which a cluster keeps together. On a GPU calls return before they end: there they
are from the end of the first level to the end of the last, on rank 0, and there is no split. The split in % is the
mean over the ranks, between a rank's first evaluations of the second and of the last level. *Rest* is everything but
the levels, as it was measured: opening, the last checkpoint, decoding, storing; *job* the efficiency of a whole job,
of that and of ``--job-levels`` levels.
Every figure is the median over ``--repeats`` runs, for the machine is seldom alone.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import plot_efficiency, report
from engine.distributed.launch import run_main
from engine.distributed.ranks import Ranks
from engine.models.card import ModelCard, read_card

TARGETS = {("strong", 8): 0.97, ("strong", 32): 0.92, ("weak", 32): 0.97}  # of the emulated network at 200 ms
KINDS = ("evaluate", "exchange", "fuse", "store", "wait", "plan", "other")
MEASURED = "measured.json"  # what a run leaves for who launched it


@dataclass(frozen=True)
class Case:
    """One row: a canvas of so many rows and columns of windows on so many ranks.

    Args:
        milliseconds: that the emulated network takes for a micro-batch; 0: the model's own network.
        spread: standard deviation of that, as a share of it.
        decode_milliseconds: for a window of the decoder.
    """

    kind: str
    ranks: int
    windows: tuple[int, int]
    batch: int
    milliseconds: float = 0.0
    spread: float = 0.0
    decode_milliseconds: float = 0.0

    @property
    def network(self) -> str:
        if not self.milliseconds:
            return "real"
        return f"emulated +-{self.spread:.0%}".replace("%", " %") if self.spread else "emulated"

    def size(self, card: ModelCard) -> tuple[int, int]:
        """Height and width, px."""
        height, width = (((n - 1) * card.patch + 1) * card.factor for n in self.windows)
        return height, width

    def busiest(self, evaluations: int, ranks: int) -> int:
        """Micro-batches of the rank that has most of them, where evaluations are dealt evenly."""
        return math.ceil(math.ceil(evaluations / ranks) / self.batch)


def grid_of(count: int) -> tuple[int, int]:
    """Rows and columns of so many windows, as near to a square as they go.

    >>> grid_of(32), grid_of(256)
    ((4, 8), (16, 16))
    """
    rows = max(n for n in range(1, int(count**0.5) + 1) if count % n == 0)
    return rows, count // rows


def cases_of(args: argparse.Namespace) -> list[Case]:
    """Every row of the table, by rising ranks."""
    cases = []
    for kind in ("strong", "weak"):
        for name in args.networks.split(","):
            real = name == "real"
            windows = args.real_windows if real else args.windows
            each = args.real_windows_per_rank if real else args.windows_per_rank
            times: dict[str, float] = {}
            if not real:
                times = {"milliseconds": args.milliseconds, "decode_milliseconds": args.decode_milliseconds}
                times["spread"] = args.spread if name == "varying" else 0.0
            for ranks in map(int, (args.real_ranks if real else args.ranks).split(",")):
                count = windows if kind == "strong" else each * ranks
                cases.append(Case(kind, ranks, grid_of(count), args.real_batch if real else 1, **times))
    return sorted(cases, key=lambda case: case.ranks)


# ---- the ranks -------------------------------------------------------------------------------------


def worker(ranks: Ranks, task: dict[str, Any]) -> int:
    """Run the cases of a task one after another. Collective."""
    for number, (values, arguments) in enumerate(zip(task["cases"], task["arguments"], strict=True)):
        folder = Path(task["folder"]) / f"run-{ranks.size}-{number}"
        ranks.on_root(folder.mkdir)
        run_case(ranks, Case(**values), arguments, folder)
    return 0


def run_case(ranks: Ranks, case: Case, arguments: list[str], folder: Path) -> None:
    """Leave in a folder what a case took: when its levels ended, the output's seconds, the split. Collective."""
    from engine.distributed.timing import Timer
    from engine.parsing import parse
    from engine.pipeline.prepare import prepare
    from engine.pipeline.run import run
    from engine.storage.output import Output

    log, out = folder / "log.jsonl", folder / "o.zarr"
    job, options = parse([*arguments, "--json-log", str(log), "--out", str(out)])
    # One local rank: the memory that is planned for is that of ranks with networks of their own.
    prepared = ranks.on_root(lambda: prepare(job, options, ranks.size, 1))
    ranks.timer = Timer()
    watch = Watch(ranks.timer)
    run(ranks, prepared, lambda prepared, device: models(prepared, device, case, ranks.rank, watch))
    splits = [split for split in ranks.allgather(watch.split()) if split]
    spans = [span for span in ranks.allgather(watch.span) if span[1]]
    split = {kind: float(np.mean([s[kind] for s in splits])) for kind in KINDS} if splits else None

    def leave() -> None:
        levels = levels_of(log)
        measured = {
            "span": span_of(spans, levels),
            "levels": levels,
            "seconds": Output(out).provenance["seconds"],
            "split": split,
        }
        (folder / MEASURED).write_text(json.dumps(measured))
        shutil.rmtree(out)

    ranks.on_root(leave)


def span_of(spans: Sequence[tuple[float, float]], levels: Sequence[dict[str, float]]) -> float:
    """Seconds of all levels but the first: of the ranks' evaluations, or on GPUs, which are not watched, of the log.

    Args:
        spans: when a rank's second level began, and its last evaluation ended.
    """
    if not spans:
        return levels[-1]["end"] - levels[0]["end"]
    return max(end for _, end in spans) - min(begin for begin, _ in spans)


class Watch:
    """A rank's timer as it stands at the first evaluation of every level."""

    def __init__(self, timer: Any) -> None:
        self.timer, self.t = timer, -1
        self.marks: list[dict[str, float]] = []
        self.span = (0.0, 0.0)  # when the second level began, and the last evaluation ended; seconds since 1970

    def __call__(self, network: Callable) -> Callable:
        def call(x: Any, t: Any, inputs: Any) -> Any:
            if t.device.type == "cpu" and int(t[0]) != self.t:  # to read it from a GPU would wait for the GPU
                self.t = int(t[0])
                self.timer.switch(self.timer.kind)
                self.marks.append(dict(self.timer.seconds))
                if len(self.marks) == 2:
                    self.span = (time.time(), 0.0)
            out = network(x, t, inputs)
            self.span = (self.span[0], time.time() if self.span[0] else 0.0)
            return out

        return call

    def split(self) -> dict[str, float] | None:
        """Shares of the time between the first evaluations of the second and of the last level."""
        if len(self.marks) < 3:
            return None
        spent = {kind: self.marks[-1][kind] - self.marks[1][kind] for kind in self.marks[0]}
        return {kind: spent[kind] / sum(spent.values()) for kind in KINDS}


def models(prepared: Any, device: str, case: Case, rank: int, watch: Watch) -> list:
    """What the engine is given in place of the networks of the model folders."""
    from engine.pipeline.run import load_models

    loaded = [emulated(prepared.card, case, rank)] if case.milliseconds else load_models(prepared, device)
    return [replace(model, network=watch(model.network)) for model in loaded]


def emulated(card: ModelCard, case: Case, rank: int) -> Any:
    """A model that occupies no core and answers zeros after a while."""
    from engine.models.folder import Model

    draw = np.random.default_rng((0, rank))
    outputs = card.channels * (2 if card.schedule.variance == "learned_range" else 1)

    def network(x: Any, t: Any, inputs: Any) -> Any:
        sleep_until(time.perf_counter() + case.milliseconds / 1e3 * (1 + case.spread * draw.standard_normal()))
        return x.new_zeros(len(x), outputs, *x.shape[2:])

    def decode(latents: Any) -> Any:
        sleep_until(time.perf_counter() + case.decode_milliseconds / 1e3)
        return latents.new_zeros(len(latents), card.image_channels, *(n * card.factor for n in latents.shape[2:]))

    return Model(network, decode)


def sleep_until(deadline: float) -> None:
    time.sleep(max(deadline - time.perf_counter(), 0))


def levels_of(log: Path) -> list[dict[str, float]]:
    """Of every level when it ended, in seconds, and its evaluations."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [{"end": line["seconds"], "evaluations": line["evaluations"]} for line in lines if "evaluations" in line]


# ---- the table -------------------------------------------------------------------------------------


def launch(ranks: int, cases: Sequence[Case], card: ModelCard, args: argparse.Namespace, folder: Path) -> list[dict]:
    """Run cases on so many ranks, in one set of processes: to import torch 32 times on 2 cores takes a minute.

    The first of them is a small one that nobody looks at: what is imported late is not counted.
    """
    cases = [replace(cases[0], windows=(2, 2), milliseconds=1.0, decode_milliseconds=1.0), *cases]
    common = f"--model {args.model} --label 1 --guidance 1 --device {args.device} --seed {args.seed} --preview none"
    common += f" --steps {args.levels} --shard {args.shard} --chunk {args.shard}"
    sizes = ["{}x{}".format(*case.size(card)) for case in cases]
    task = {
        "folder": str(folder),
        "cases": [asdict(case) for case in cases],
        "arguments": [
            [*common.split(), "--size", s, "--batch-size", str(c.batch)] for s, c in zip(sizes, cases, strict=True)
        ],
    }
    path = folder / f"task-{ranks}.json"
    path.write_text(json.dumps(task))
    line = [*launcher(ranks, args), sys.executable, "-m", "benchmarks.scaling", "--worker", str(path)]
    hidden = "PMI|PMIX|OMPI|HYDRA|MPI" if args.launcher else "PMI|PMIX|OMPI|HYDRA|MPI|SLURM"
    kept = {k: v for k, v in os.environ.items() if not re.match(hidden, k)}
    subprocess.run(line, env=kept | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, check=True)
    return [json.loads((folder / f"run-{ranks}-{i}" / MEASURED).read_text()) for i in range(1, len(cases))]


def launcher(ranks: int, args: argparse.Namespace) -> list[str]:
    """The words that start so many ranks, before the command itself."""
    if args.launcher:
        nodes = math.ceil(ranks / args.ranks_per_node)
        return shlex.split(args.launcher.format(ranks=ranks, nodes=nodes))
    beside = Path(sys.executable).with_name("mpiexec")
    return [str(beside) if beside.exists() else "mpiexec", "-n", str(ranks)]


def row_of(case: Case, runs: Sequence[dict[str, Any]], card: ModelCard, levels: int) -> dict[str, Any]:
    """What was measured, without what needs the row of one rank.

    Args:
        levels: of the whole job.
    """
    seconds = [run["span"] for run in runs]
    rest = [run["seconds"]["all"] - run["seconds"]["sampling"] for run in runs]
    measured = [int(level["evaluations"]) for level in runs[0]["levels"][1:]]
    splits = [run["split"] for run in runs if run["split"]]
    return {
        "kind": case.kind,
        "network": case.network,
        "ranks": case.ranks,
        "canvas px": "{} x {}".format(*case.size(card)),
        "levels": len(measured),
        "micro-batches": sum(math.ceil(e / case.batch) for e in measured),
        "seconds": float(np.median(seconds)),
        "busiest": sum(case.busiest(e, case.ranks) for e in measured),
        "rest s": float(np.median(rest)),
        "target": TARGETS.get((case.kind, case.ranks)) if (case.milliseconds, case.spread) == (200, 0) else None,
        "job": float(np.median([r + s * levels / len(measured) for r, s in zip(rest, seconds, strict=True)])),
        **{f"{kind} %": 100 * float(np.median([s[kind] for s in splits])) if splits else None for kind in KINDS},
    }


def with_efficiencies(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the table: each beside the one of fewest ranks of its kind and network."""
    first: dict[tuple[str, str], dict[str, Any]] = {}
    compared = []
    for row in sorted(rows, key=lambda row: (row["kind"], row["network"] != "real", row["network"], row["ranks"])):
        one = first.setdefault((row["kind"], row["network"]), row)
        more = row["ranks"] / one["ranks"] if row["kind"] == "strong" else 1.0
        ratio = {name: one[name] / (more * row[name]) for name in ("seconds", "busiest", "job")}
        compared.append(
            {
                name: row[name]
                for name in ("kind", "network", "ranks", "canvas px", "levels", "micro-batches", "seconds")
            }
            | {"efficiency": ratio["seconds"], "ideal": ratio["busiest"], "target": row["target"]}
            | {"rest s": row["rest s"], "job": ratio["job"]}
            | {f"{kind} %": row[f"{kind} %"] for kind in KINDS}
        )
    return compared


def plot(rows: Sequence[dict[str, Any]], path: str) -> None:
    """Efficiency against ranks, with what whole micro-batches allow and the targets."""

    def draw(axis: Any, chosen: Sequence[Mapping[str, Any]]) -> None:
        for name in dict.fromkeys(row["network"] for row in chosen):
            line = [row for row in chosen if row["network"] == name]
            (drawn,) = axis.plot([r["ranks"] for r in line], [r["efficiency"] for r in line], "o-", label=name)
            ideal = [r["ideal"] for r in line]
            axis.plot([r["ranks"] for r in line], ideal, ":", color=drawn.get_color(), label=f"{name}, ideal")
        aims = [row for row in chosen if row["target"]]
        axis.plot([r["ranks"] for r in aims], [r["target"] for r in aims], "k_", markersize=14, label="target")
        ticks = sorted({row["ranks"] for row in chosen})
        axis.set_xticks(ticks, [str(n) for n in ticks], minor=False)
        axis.minorticks_off()

    plot_efficiency(rows, path, draw)


def main(arguments: Sequence[str] | None = None) -> int:
    top = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    top.add_argument("--ranks", default="1,2,4,8,16,32", help="of the emulated networks")
    top.add_argument("--real-ranks", default="1,2", help="of the real one: at most the cores, or the GPUs")
    top.add_argument("--networks", default="real,emulated,varying")
    top.add_argument("--milliseconds", type=float, default=200.0, help="of an emulated micro-batch")
    top.add_argument("--spread", type=float, default=0.1, help="its standard deviation where it varies, as a share")
    top.add_argument("--decode-milliseconds", type=float, default=50.0, help="of an emulated decoder's window")
    top.add_argument("--windows", type=int, default=256, help="strong, emulated: of the canvas")
    top.add_argument("--windows-per-rank", type=int, default=16, help="weak, emulated")
    top.add_argument("--real-windows", type=int, default=64)
    top.add_argument("--real-windows-per-rank", type=int, default=32)
    top.add_argument("--real-batch", type=int, default=8)
    top.add_argument("--levels", type=int, default=3, help="that are run: one to warm up, the others measured")
    top.add_argument("--job-levels", type=int, default=50, help="of the whole job")
    top.add_argument("--repeats", type=int, default=3)
    top.add_argument("--model", default="embedded")
    top.add_argument("--device", default="cpu")
    top.add_argument("--shard", type=int, default=512, help="px; small, that every rank has some")
    top.add_argument("--seed", type=int, default=0)
    top.add_argument("--scratch", type=Path, help="folder for the outputs (default: a temporary one)")
    top.add_argument("--launcher", help="what starts the ranks, with {ranks} and {nodes} (default: mpiexec)")
    top.add_argument("--ranks-per-node", type=int, default=1, help="from which {nodes} is counted")
    top.add_argument("--plot", metavar="FILE.png", help="efficiency against ranks; needs matplotlib")
    top.add_argument("--json", help="write the report here")
    top.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = top.parse_args(arguments)
    if args.worker:
        return run_main(lambda ranks: worker(ranks, json.loads(args.worker.read_text())))
    card, cases, rows = read_card(args.model), cases_of(args), []
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        for ranks in sorted({case.ranks for case in cases}):
            chosen = [case for case in cases if case.ranks == ranks]
            runs = launch(ranks, chosen * args.repeats, card, args, Path(folder))
            rows += [row_of(case, runs[i :: len(chosen)], card, args.job_levels) for i, case in enumerate(chosen)]
            print(f"{ranks} ranks: measured", file=sys.stderr, flush=True)
    facts = {name: getattr(args, name) for name in ("milliseconds", "spread", "shard", "job_levels", "repeats")}
    table = with_efficiencies(rows)
    batches = {"real": args.real_batch, "emulated": 1}
    report(
        "scaling",
        table,
        args.json,
        patch=card.patch,
        factor=card.factor,
        channels=card.channels,
        batches=batches,
        **facts,
    )
    if args.plot:
        plot(table, args.plot)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
