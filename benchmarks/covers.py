"""``python -m benchmarks.covers TILES [-- OPTIONS]``: does one evaluation a latent cost quality?

The three covers, each at two numbers of levels and with several seeds: shifted windows (1.0 a latent), random ones as
DiffInfinite's (2.2) and strided ones as Large-Image-Diffusion's (16, a quarter of a window apart); and ``held-3``, the
shifted windows that three levels share, as those of a plane do (``held-1`` is the shifted cover). All of a seed have
the same noise and the same label map, so that covers are compared in pairs. Every output is judged beside the tiles by
``engine.evaluate``; means over the seeds and their standard errors stand beside evaluations and seconds, and so do the
differences from the first cover. What comes after ``--`` is for ``engine.sample``, such as ``--labels MAP.png``.

With ``--folder`` outputs and evaluations stay there, and the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import report
from engine.command_line import comma_separated
from engine.evaluation.measures import Measure, read_evaluation
from engine.evaluation.names import METRICS
from engine.models.card import read_card
from engine.planning.names import COVERS
from engine.storage.output import provenance_of

HELD = "held-"  # and how many levels share a lattice
WANTED = ("seams", "realism", "fid")  # of the metrics that there are
EVERY = (*COVERS, f"{HELD}3")
SHOWN = r"^seams: windows of the last|over halves$|Frechet|FID"  # measures that are drawn, and are in the table


@dataclass(frozen=True)
class Case:
    """One output."""

    cover: str
    levels: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.cover}-{self.levels}-{self.seed}"


@dataclass(frozen=True)
class Result:
    """What one output took, and how good it is.

    Args:
        facts: Evaluations, windows a latent and seconds.
        measures: Measures by group, name and label.
    """

    facts: Mapping[str, float]
    measures: Mapping[str, Measure]


def cases_of(args: argparse.Namespace) -> Iterator[Case]:
    """All outputs, seed by seed, so that a campaign that is stopped has whole pairs; covers take turns to be first."""
    for seed in range(args.seed, args.seed + args.seeds):
        for levels in args.levels:
            turn = seed % len(args.covers)
            for cover in (*args.covers[turn:], *args.covers[:turn]):
                yield Case(cover, levels, seed)


def result_of(case: Case, args: argparse.Namespace, folder: Path, options: Sequence[str]) -> Result:
    """Sample an output and judge it, or read what an earlier command left."""
    out, log, judged = (folder / f"{case.name}{end}" for end in (".zarr", ".jsonl", ".json"))
    stride = ("--stride", args.stride or read_card(args.model).patch // 4) if case.cover == "strided" else ()
    cover = "shifted" if case.cover.startswith(HELD) else case.cover
    sampling = ("--model", args.model, "--size", args.size, "--cover", cover, *stride, "--steps", case.levels)
    sampling = (*sampling, "--seed", case.seed, "--preview", "none", "--json-log", log, "--out", out, *options)
    held = ("benchmarks.held", case.cover.removeprefix(HELD)) if case.cover.startswith(HELD) else ("engine.sample",)
    start(args.ranks, *held, *sampling)
    if not judged.exists():
        judging = ("--metrics", ",".join(args.metrics), "--few", "--crop", args.crop, "--features", args.features)
        start(args.ranks, "engine.evaluate", out, "--real", args.tiles, *judging, "--json", judged)
    measures = {key_of(measure): measure for measure in read_evaluation(judged).measures}
    return Result({**work_of(log, case, args.model), **seconds_of(out)}, measures)


def start(ranks: int, module: str, *arguments: object) -> None:
    """Run a command to its end, on so many ranks; what it says goes to standard error."""
    beside = Path(sys.executable).with_name("mpiexec")
    launcher = [str(beside) if beside.exists() else "mpiexec", "-n", str(ranks)]
    command = [*launcher, sys.executable, "-m", module, *map(str, arguments)]
    subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=sys.stderr, check=True)


def work_of(log: Path, case: Case, model: str) -> dict[str, float]:
    """Evaluations of all levels, and windows a latent of a level, as the run's log has them."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    levels = {line["level"]: line for line in lines if line.get("stage") == "image" and "level" in line}
    card = read_card(model)
    height, width = provenance_of(log.with_suffix(".zarr"))["job"]["size"]
    latents = (height // card.factor) * (width // card.factor)
    windows = sum(line["windows"] for line in levels.values()) / case.levels
    return {
        "windows a latent": windows * card.patch**2 / latents,
        "evaluations": sum(line["evaluations"] for line in levels.values()),
    }


def seconds_of(out: Path) -> dict[str, float]:
    return {"sampling s": provenance_of(out)["seconds"]["sampling"]}


def key_of(measure: Measure) -> str:
    """A measure by its name.

    >>> key_of(Measure("seams", "shards", 1.0)), key_of(Measure("realism", "hue", 1.0, label="tumour"))
    ('seams: shards', 'realism: hue, tumour')
    """
    return f"{measure.group}: {measure.name}{f', {measure.label}' if measure.label else ''}"


def summary(results: Mapping[Case, Result], covers: Sequence[str]) -> list[dict[str, Any]]:
    """Means over the seeds: a row for each cover and number of levels, with every measure."""
    rows = []
    for levels in sorted({case.levels for case in results}):
        for cover in covers:
            runs = {case.seed: one for case, one in results.items() if (case.cover, case.levels) == (cover, levels)}
            first = {
                case.seed: one for case, one in results.items() if (case.cover, case.levels) == (covers[0], levels)
            }
            facts = {
                name: float(np.mean([run.facts[name] for run in runs.values()]))
                for name in next(iter(runs.values())).facts
            }
            measures = {key: compared(key, runs, first) for key in keys_of(runs.values())}
            rows.append({"cover": cover, "levels": levels, "seeds": len(runs), **facts, "measures": measures})
    return rows


def keys_of(runs: Iterator[Result] | Any) -> list[str]:
    """The measures that all runs have."""
    runs = list(runs)
    return [key for key in runs[0].measures if all(key in run.measures for run in runs)]


def compared(key: str, runs: Mapping[int, Result], first: Mapping[int, Result]) -> dict[str, float | None]:
    """A measure's mean over the seeds and its difference from the first cover's, seed by seed; with standard errors."""
    values = np.array([run.measures[key].value for run in runs.values()])
    pairs = np.array([
        run.measures[key].value - first[seed].measures[key].value
        for seed, run in runs.items()
        if key in first[seed].measures
    ])  # fmt: skip
    reference = next(iter(runs.values())).measures[key].reference
    mean, error = mean_and_error(values)
    difference, error_of_difference = mean_and_error(pairs)
    return {
        "mean": mean,
        "error": error,
        "difference": difference,
        "difference error": error_of_difference,
        "reference": reference,
    }


def mean_and_error(values: np.ndarray) -> tuple[float | None, float | None]:
    """Mean, and its standard error where there are two values or more.

    >>> mean_and_error(np.array([1.0, 3.0])), mean_and_error(np.array([2.0]))
    ((2.0, 1.0), (2.0, None))
    """
    if not len(values):
        return None, None
    error = float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else None
    return float(values.mean()), error


def plot(rows: Sequence[Mapping[str, Any]], shown: Sequence[str], path: str) -> None:
    """Quality against cost as a PNG, a panel for each measure; needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(shown), figsize=(4.6 * len(shown), 4), squeeze=False)
    for axis, key in zip(axes[0], shown, strict=True):
        for cover in dict.fromkeys(row["cover"] for row in rows):
            own = [row for row in rows if row["cover"] == cover]
            values = [row["measures"][key] for row in own]
            axis.errorbar(
                [row["evaluations"] for row in own],
                [value["mean"] for value in values],
                yerr=[value["error"] or 0 for value in values],
                marker="o",
                capsize=3,
                label=cover,
            )
            for row, value in zip(own, values, strict=True):
                axis.annotate(
                    f"{row['levels']}", (row["evaluations"], value["mean"]), (4, 4), textcoords="offset points"
                )
        reference = rows[0]["measures"][key]["reference"]
        if reference is not None:
            axis.axhline(reference, color="grey", linestyle="--", linewidth=1, label="between halves of the tiles")
        axis.set(title=key, xlabel="evaluations of an image", xscale="log")
        axis.grid(alpha=0.3)
        axis.margins(x=0.12, y=0.12)
    axes[0][-1].legend(fontsize=8)
    figure.suptitle("Quality against cost; numbers are levels, bars standard errors")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def table(rows: Sequence[Mapping[str, Any]], shown: Sequence[str]) -> list[dict[str, Any]]:
    """The rows with the measures that are shown, as text."""
    return [
        {**{name: value for name, value in row.items() if name != "measures"}}
        | {key.partition(": ")[2]: with_error(row["measures"][key]) for key in shown}
        for row in rows
    ]


def with_error(value: Mapping[str, float | None]) -> str:
    """A mean with its error, and the difference from the first cover.

    >>> with_error({"mean": 1.5, "error": 0.25, "difference": 0.5, "difference error": None})
    '1.5 +- 0.25 (+0.5)'
    """
    mean, difference = (
        f"{value[name]:{sign}.4g}" + ("" if value[error] is None else f" +- {value[error]:.2g}")
        for name, error, sign in (("mean", "error", ""), ("difference", "difference error", "+"))
    )
    return f"{mean} ({difference})"


def covers(text: str) -> tuple[str, ...]:
    """Names of covers, for argparse.

    >>> covers("shifted,held-5")
    ('shifted', 'held-5')
    """
    names = comma_separated(text)
    unknown = next(
        (name for name in names if name not in COVERS and not re.fullmatch(f"{HELD}[1-9][0-9]*", name)), None
    )
    if unknown is not None:
        raise argparse.ArgumentTypeError(f"{unknown} is no cover; known: {', '.join(COVERS)} and {HELD}N")
    return names


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m benchmarks.covers", usage="%(prog)s TILES [-- OPTIONS]", description=__doc__
    )
    numbers = lambda text: tuple(map(int, comma_separated(text)))  # noqa: E731
    top.add_argument("tiles", type=Path, help="images to compare with: a folder, a slide or an output")
    top.add_argument("--model", default="embedded")
    top.add_argument("--size", default="1024x1024", help="of an image (default: 1024x1024)")
    top.add_argument(
        "--covers", type=covers, default=EVERY, help=f"(default: {','.join(EVERY)}; the first is compared with)"
    )
    top.add_argument("--levels", type=numbers, default=(25, 50), help="(default: 25,50)")
    top.add_argument("--seeds", type=int, default=8, help="number of seeds (default: 8)")
    top.add_argument("--seed", type=int, default=0, help="the first of them")
    top.add_argument("--stride", type=int, help="of the strided cover (default: a quarter of a window)")
    known = tuple(name for name in WANTED if name in METRICS)
    top.add_argument("--metrics", type=comma_separated, default=known, help=f"(default: {','.join(known)})")
    top.add_argument("--features", default="embedded")
    top.add_argument("--crop", type=int, default=128, help="px (default: 128)")
    top.add_argument("--shown", default=SHOWN, help="pattern of the measures that are drawn and in the table")
    top.add_argument("--ranks", type=int, default=2)
    top.add_argument("--folder", type=Path, help="where outputs and evaluations stay (default: a temporary one)")
    top.add_argument("--plot", metavar="FILE.png", help="quality against cost; needs matplotlib")
    top.add_argument("--json", help="write the report here")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    own, options = (given[: given.index("--")], given[given.index("--") + 1 :]) if "--" in given else (given, [])
    args = parser().parse_args(own)
    results: dict[Case, Result] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for case in cases_of(args):
            results[case] = result_of(case, args, folder, options)
            print(f"{case.name}: {dict(results[case].facts)}", file=sys.stderr, flush=True)
    rows = summary(results, args.covers)
    everywhere = [key for key in rows[0]["measures"] if all(key in row["measures"] for row in rows)]
    shown = [key for key in everywhere if re.search(args.shown, key)]
    if args.plot and shown:
        plot(rows, shown, args.plot)
    facts = {"model": str(args.model), "size": args.size, "crop": args.crop, "options": options}
    report("covers", table(rows, shown), args.json, **facts, measured=rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
