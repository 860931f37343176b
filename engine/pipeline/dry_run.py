"""The plan of a run, before any of it is made: how many windows, evaluations and bytes, how long, and does it fit."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.messages import binary
from engine.pipeline.level_plans import decode_counts, labels_and_costs, level_cover
from engine.pipeline.memory import ITEM, available_memory, memory_bytes
from engine.pipeline.output_checks import least_disk_bytes, what_is_there
from engine.pipeline.prepared import Prepared
from engine.pipeline.watch import clock
from engine.planning.counts import LevelCounts, count_level


@dataclass(frozen=True)
class Plan:
    """What a job would take: printed as a table, read as a mapping of ``facts``.

    Args:
        facts: As ``--dry-run --json`` prints them.
        speed: Evaluations a second of one rank; None: as measured, if it was.
    """

    facts: Mapping[str, Any]
    speed: float | None = None

    @property
    def stages(self) -> list[Mapping[str, Any]]:
        """The facts of each stage: the label map's, where it is sampled first, and the image's."""
        return [*([self.facts["label_map"]] if "label_map" in self.facts else []), self.facts]

    @property
    def evaluations(self) -> int:
        """Evaluations of the network by all ranks together, the label stage's included."""
        return sum(int(stage["evaluations"]) for stage in self.stages)

    @property
    def seconds(self) -> float | None:
        """Seconds of the evaluations and, where it was measured, of decoding, as the busiest rank takes them."""
        if self.speed is None and not all("measured" in stage for stage in self.stages):
            return None
        return sum(self.seconds_of(stage) for stage in self.stages)

    def seconds_of(self, stage: Mapping[str, Any]) -> float:
        """Seconds of one stage."""
        measured = stage.get("measured", {})
        seconds = stage["evaluations_per_rank"]["max"] / (self.speed or measured["evaluations_per_second"])
        return seconds + stage["decodes_per_rank"] * measured.get("decode_seconds", 0.0)

    def rows(self) -> list[tuple[str, str]]:
        """(what, how much), for people."""
        facts, least = self.facts, "at least " if "evaluations_are" in self.facts else ""
        channels, height, width = facts["latent_shape"]
        job, each = facts["job"], [stage["evaluations_per_rank"] for stage in self.stages]
        fewest, most = (sum(int(stage[name]) for stage in each) for name in ("min", "max"))
        count = "" if job["count"] is None else f"{job['count']:,} images of "
        size, what = (job["size"], "image") if "plane" not in facts else (facts["plane"]["size"], "region")
        rows = [
            (what, count + " x ".join(map(str, size)) + " px"),
            (
                "canvas",
                f"{channels} x {height} x {width} latents, {facts['levels']} levels, {facts['shards']:,} shards",
            ),
            ("evaluations", f"{least}{self.evaluations:,}"),
            ("ranks", f"{facts['ranks']:,}: {least}{fewest:,} to {most:,} evaluations each"),
            ("exchanged", binary(facts["exchange_bytes"])),
            ("memory a rank", fits(facts["memory_bytes_per_rank"], facts["memory_free"])),
            ("disk", "at least " + fits(facts["disk_bytes_at_least"], facts["disk_free"])),
            ("files", f"{facts['files']:,}"),
        ]
        if "store" in facts:
            rows.append(("arrays", f"{facts['store']}; the rest: {facts['scratch']}"))
        if self.seconds is None:
            return [*rows, ("time", "not known; --measure measures this machine's speed")]
        return [*rows, ("time", f"{least}{clock(self.seconds)} ({self.speed_text()})")]

    def speed_text(self) -> str:
        """The speed that the time was reckoned with."""
        if self.speed is not None:
            return f"at {self.speed:g} evaluations/s a rank"
        measured = self.facts["measured"]
        return f"measured here: {measured['evaluations_per_second']:.3g} evaluations/s on {measured['device']}"

    def __repr__(self) -> str:
        rows = self.rows()
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)

    def _repr_html_(self) -> str:
        return (
            "<table>" + "".join(f"<tr><td>{name}</td><td>{value}</td></tr>" for name, value in self.rows()) + "</table>"
        )


def fits(need: int, have: int) -> str:
    """Bytes needed beside bytes there are; 0 where that is unknown.

    >>> fits(2**20, 2**30), fits(2**30, 2**20)
    ('1.0 MiB of 1.0 GiB free here', '1.0 GiB, but 1.0 MiB are free here')
    """
    if not have:
        return binary(need)
    if need > have:
        return f"{binary(need)}, but {binary(have)} are free here"
    return f"{binary(need)} of {binary(have)} free here"


def plan_facts(prepared: Prepared) -> dict[str, Any]:
    """The plan as JSON values.

    Where the label map is still to be sampled, evaluations are the least that there can be: one a window.
    """
    card, levels = prepared.card, [counts_of(prepared, level) for level in range(len(prepared.timesteps))]
    per_rank = np.sum([level.evaluations for level in levels], axis=0)
    facts: dict[str, Any] = {
        "latent_shape": [card.channels, *prepared.ownership.shape],
        "levels": len(prepared.timesteps),
        "shards": len(prepared.wanted),
        "files": prepared.layout.files(),
        "ranks": prepared.rank_count,
        "job": prepared.plain_job,
        "windows_per_level": [level.windows for level in levels],
        "evaluations_per_level": [int(level.evaluations.sum()) for level in levels],
        "evaluations": int(per_rank.sum()),
        "evaluations_per_rank": {"min": int(per_rank.min()), "max": int(per_rank.max())},
        "decodes_per_rank": 0,
        "exchange_bytes": sum(level_bytes(prepared, level) for level in levels),
        "memory_bytes_per_rank": memory_bytes(prepared),
        "memory_free": available_memory(),
        "disk_bytes_at_least": least_disk_bytes(prepared),
        "disk_free": free_disk(Path(prepared.options.out)),
        **({"store": prepared.store, "scratch": prepared.options.out} if prepared.store else {}),
    }
    if card.factor > 1:
        rounds = decode_counts(prepared)
        facts["exchange_bytes"] += sum(decode_bytes(prepared, one) for one in rounds)
        facts["decodes_per_rank"] = sum(int(one.evaluations.max()) for one in rounds)
    if prepared.label_stage is not None:
        facts = {"label_map": plan_facts(prepared.label_stage), **facts, "evaluations_are": "at least"}
    return facts


def counts_of(prepared: Prepared, level: int) -> LevelCounts:
    """What a level takes, over all ranks."""
    cover = level_cover(prepared, level)
    return count_level(cover, prepared.ownership, labels_and_costs(prepared, level, cover))


def free_disk(path: Path) -> int:
    """Bytes free where a file would be written; 0 where that is unknown."""
    try:
        return shutil.disk_usage(what_is_there(path)).free
    except OSError:
        return 0


def level_bytes(prepared: Prepared, level: LevelCounts) -> int:
    """Bytes that ranks are sent in a level: latents before the evaluations, estimates after them."""
    card = prepared.card
    return ITEM * (level.halo * card.channels + level.estimates * card.schedule.output_channels(card.channels))


def decode_bytes(prepared: Prepared, counts: LevelCounts) -> int:
    """Bytes that ranks are sent in a round of decoding: latents before, decoded pixels after."""
    card = prepared.card
    return ITEM * (counts.halo * card.channels + counts.estimates * card.factor**2 * card.image_channels)
