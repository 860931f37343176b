"""Where the time went: what an output keeps of it, as charts and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from engine.pipeline.progress import LABEL_MAP
from engine.pipeline.run_times import LEVEL
from engine.reporting.charts import bar, color_of, columns
from engine.storage.output import Output
from engine.storage.plane_layout import label_plane
from engine.storage.run_times import MOST_RUNS, kept_times

MOST_COLUMNS = 60  # of a chart; more levels are drawn several in one
MOST_RANKS = 32  # that are drawn; of more the fastest, the slowest and some between


@dataclass(frozen=True)
class KindOfWork:
    """A kind of work.

    Args:
        seconds: Mean over the ranks, of all phases.
        percent: Of all kinds.
    """

    name: str
    color: str
    seconds: float
    percent: float


@dataclass(frozen=True)
class LevelChart:
    """Columns over the phases of a stage.

    Args:
        most: Seconds at the top.
        ticks: Names below the first, middle and last column.
    """

    stage: str
    chart: Markup
    most: float
    ticks: Sequence[str]
    per_column: int


@dataclass(frozen=True)
class RankBar:
    """A rank's bar."""

    name: str
    chart: Markup
    seconds: float
    evaluations: int


@dataclass(frozen=True)
class StageCount:
    """Evaluations of one stage: planned for all ranks, and made by them.

    Args:
        phases: Levels that were timed.
    """

    stage: str
    levels: int
    planned: int
    made: int


@dataclass(frozen=True)
class Times:
    """Where the time of an output went.

    Args:
        ranks: Ranks of the run that finished it.
        runs: Runs that are known, from the first to the one that finished it.
        newest: Whether there may have been more, whose times are kept no more.
        by_rank: Bars of the ranks of the last run; empty: nothing is known by rank.
        complete: Whether every level was timed: a run that was killed leaves no times.
        memory: Most bytes that a rank has held; 0: not known.
    """

    ranks: int
    runs: int
    kinds: Sequence[KindOfWork]
    seconds: float
    by_level: Sequence[LevelChart] = ()
    by_rank: Sequence[RankBar] = ()
    ranks_drawn: str = ""
    counts: Sequence[StageCount] = ()
    complete: bool = True
    memory: int = 0
    newest: bool = False


def times_of(output: Output) -> Times | None:
    """What is known of the times; None: nothing is. Of an output of version 0.1 the means over ranks and levels are.

    Of a plane they are those of its requests, and of those to the plane of its label map.
    """
    own, of_labels = (
        [run for run in kept_times(path) if is_run(run)] for path in (output.path, label_plane(output.path))
    )
    runs = [of_label_map(run) for run in of_labels] + own if own else []
    facts = output.provenance
    if not runs:
        split = facts.get("seconds", {}).get("split")
        if not isinstance(split, Mapping):
            return None
        return Times(int(facts.get("ranks", 1)), 1, kinds_of(list(split), list(split.values())), sum(split.values()))
    names = runs[-1]["kinds"]
    of_kinds = np.sum([np.sum(run["seconds"], axis=0) for run in runs], axis=0)
    by_phase = phases_of(runs)
    counts = counts_of(by_phase)
    image = [count for count in counts if count.stage == "image"]
    last = runs[-1]
    return Times(
        ranks=last["ranks"],
        runs=len(runs),
        kinds=kinds_of(names, of_kinds.tolist()),
        seconds=float(of_kinds.sum()),
        by_level=[chart_of(stage, by_phase, names) for stage in dict.fromkeys(stage for stage, _ in by_phase)],
        by_rank=rank_bars(last),
        ranks_drawn="" if last["ranks"] <= MOST_RANKS else f"{MOST_RANKS} of {last['ranks']:,} ranks, by time waited",
        counts=counts,
        complete=bool(image) and image[0].levels == facts.get("levels"),
        memory=max(int(run.get("memory_bytes", 0)) for run in runs),
        newest=max(len(own), len(of_labels)) == MOST_RUNS,
    )


def is_run(run: Any) -> bool:
    """Whether the times of a run have the parts and shapes that are drawn: other versions may keep others."""
    try:
        phases, kinds = len(run["phases"]), len(run["kinds"])
        shapes = np.shape(run["seconds"]) == (phases, kinds), np.shape(run["seconds_by_rank"]) == (run["ranks"], kinds)
        return all(shapes) and len(run["planned"]) == len(run["evaluations"]) == phases
    except (LookupError, TypeError, ValueError):
        return False


def of_label_map(run: Mapping[str, Any]) -> dict[str, Any]:
    """A run whose image is a label map."""
    return {**run, "phases": [(LABEL_MAP, phase) for _, phase in run["phases"]]}


def kinds_of(names: Sequence[str], seconds: Sequence[float]) -> list[KindOfWork]:
    """Kinds of work, the longest first."""
    total = sum(seconds) or 1.0
    each = [KindOfWork(name, color_of(name), s, 100 * s / total) for name, s in zip(names, seconds, strict=True)]
    return sorted(each, key=lambda kind: -kind.seconds)


Phases = dict[tuple[str, str], tuple[np.ndarray, int, int]]  # (stage, phase) -> seconds by kind, planned, made


def phases_of(runs: Sequence[Mapping[str, Any]]) -> Phases:
    """The phases of all runs: what several had is added up, and levels stand in their order."""
    phases: Phases = {}
    for run in runs:
        each = zip(run["phases"], run["seconds"], run["planned"], run["evaluations"], strict=True)
        for (stage, phase), seconds, planned, made in each:
            before = phases.get((stage, phase), (np.zeros(len(run["kinds"])), 0, 0))
            phases[stage, phase] = (before[0] + seconds, before[1] + planned, before[2] + made)
    return dict(sorted(phases.items(), key=lambda item: order_of(*item[0])))


def order_of(stage: str, phase: str) -> tuple[int, int]:
    """Where a phase stands among others: the label map's first; the start, then the levels, then the rest.

    >>> order_of("image", "level 12") < order_of("image", "decoding")
    True
    """
    place = {"start": 0, "decoding": 10**9, "pyramid": 10**9 + 1}.get(phase)
    return int(stage == "image"), int(phase.split()[-1]) if place is None else place


def counts_of(phases: Phases) -> list[StageCount]:
    """Evaluations stage by stage."""
    counts = []
    for stage in dict.fromkeys(stage for stage, _ in phases):
        levels = [value for (s, phase), value in phases.items() if s == stage and phase.startswith(LEVEL)]
        counts.append(StageCount(stage, len(levels), sum(v[1] for v in levels), sum(v[2] for v in levels)))
    return counts


def chart_of(stage: str, phases: Phases, kinds: Sequence[str]) -> LevelChart:
    """The columns of a stage, several levels in one where there are many."""
    own = [(phase, seconds) for (s, phase), (seconds, _, _) in phases.items() if s == stage]
    each = -(-len(own) // MOST_COLUMNS)
    stacks = [np.mean([seconds for _, seconds in own[n : n + each]], axis=0) for n in range(0, len(own), each)]
    most = max(float(stack.sum()) for stack in stacks)
    order = np.argsort([-sum(stack[k] for stack in stacks) for k in range(len(kinds))], kind="stable")
    sorted_stacks = [[float(stack[k]) for k in order] for stack in stacks]
    title = f"{stage}: seconds of each phase by kind of work, mean over the ranks; the longest is {most:.2f} s"
    ticks = [own[0][0], own[len(own) // 2][0], own[-1][0]] if len(own) > 2 else [phase for phase, _ in own]
    return LevelChart(stage, columns(sorted_stacks, [kinds[k] for k in order], most, title), most, ticks, each)


def rank_bars(run: Mapping[str, Any]) -> list[RankBar]:
    """The bars of the ranks of a run; of many, those that waited least and most and some between."""
    seconds, made, kinds = np.array(run["seconds_by_rank"]), run["evaluations_by_rank"], run["kinds"]
    shown = list(range(len(seconds)))
    if len(shown) > MOST_RANKS:
        waited = np.argsort(seconds[:, kinds.index("wait")], kind="stable")
        shown = waited[np.linspace(0, len(waited) - 1, MOST_RANKS).round().astype(int)].tolist()
    most = float(seconds.sum(1).max())
    order = np.argsort(-seconds.sum(0), kind="stable")
    names = [kinds[k] for k in order]
    return [
        RankBar(
            f"rank {rank}",
            bar(seconds[rank, order].tolist(), names, most, f"rank {rank}: {seconds[rank].sum():.1f} s"),
            float(seconds[rank].sum()),
            int(made[rank]),
        )
        for rank in shown
    ]
