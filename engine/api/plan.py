"""What a job would take, as a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Plan:
    """What a job would take: printed as a table, read as a mapping of ``facts``.

    Args:
        facts: As ``--dry-run --json`` prints them.
        speed: Evaluations a second of one rank; None: not known.
    """

    facts: Mapping[str, Any]
    speed: float | None = None

    @property
    def evaluations(self) -> int:
        """Evaluations of the network by all ranks together, the label stage's included."""
        stage = self.facts.get("label_map", {})
        return int(self.facts["evaluations"]) + int(stage.get("evaluations", 0))

    @property
    def seconds(self) -> float | None:
        """Seconds of the evaluations, as the busiest rank takes them; None where no speed was given."""
        if self.speed is None:
            return None
        stages = (self.facts, self.facts.get("label_map", {}))
        return sum(stage.get("evaluations_per_rank", {}).get("max", 0) for stage in stages) / self.speed

    def rows(self) -> list[tuple[str, str]]:
        """(what, how much), for people."""
        facts, least = self.facts, "at least " if "evaluations_are" in self.facts else ""
        channels, height, width = facts["latent_shape"]
        per_rank = facts["evaluations_per_rank"]
        rows = [
            ("image", " x ".join(map(str, facts["job"]["size"])) + " px"),
            ("canvas", f"{channels} x {height} x {width} latents, {facts['shards']} shards"),
            ("levels", f"{facts['levels']}"),
            ("ranks", f"{facts['ranks']}"),
            ("evaluations", f"{least}{self.evaluations:,}"),
            ("evaluations a rank", f"{per_rank['min']:,} to {per_rank['max']:,}"),
            ("exchanged", binary(facts["exchange_bytes"])),
            ("memory a rank", binary(facts["memory_bytes_per_rank"])),
            ("files", f"{facts['files']:,}"),
        ]
        return rows if self.seconds is None else [*rows, ("time of the evaluations", f"{self.seconds:,.0f} s")]

    def __repr__(self) -> str:
        rows = self.rows()
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)

    def _repr_html_(self) -> str:
        return (
            "<table>" + "".join(f"<tr><td>{name}</td><td>{value}</td></tr>" for name, value in self.rows()) + "</table>"
        )


def binary(count: int) -> str:
    """Bytes for people.

    >>> binary(3 * 2**20)
    '3.0 MiB'
    """
    size, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.1f} {units[0]}"
