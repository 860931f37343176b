"""``[mpiexec -n N] python -m benchmarks.held HOLD OPTIONS``: an image whose lattices are held as a plane's are.

Inside an image the windows are those of a plane, and it takes a twentieth of the evaluations. OPTIONS are those of
``engine.sample``; the cover is the shifted one, whose lattice is drawn anew every HOLD levels: 1 changes no byte.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from engine.distributed.launch import run_main
from engine.distributed.ranks import Ranks
from engine.parsing import parse
from engine.pipeline.prepare import prepare
from engine.pipeline.prepared import Prepared
from engine.pipeline.run import run
from engine.planning.plane import lattice_level


@dataclass(frozen=True)
class Held(Prepared):
    """An ordinary image whose lattices are held as a plane's are.

    Args:
        hold: Levels that share a lattice.
    """

    hold: int = 1

    def cover_level(self, level: int) -> int:
        return lattice_level(level, len(self.timesteps), self.hold)

    @property
    def plain_job(self) -> dict[str, Any]:
        return {**super().plain_job, "hold": self.hold}


def sample_held(ranks: Ranks, words: Sequence[object], hold: int) -> None:
    """Sample an image, or go on with it; one that is finished stays. Collective.

    Args:
        words: Options of ``engine.sample``.
    """
    job, options = parse([str(word) for word in words])
    prepared = ranks.on_root(lambda: prepare(job, options, ranks.size, ranks.local_size))
    if prepared.state != "finished":
        run(ranks, Held(**{field.name: getattr(prepared, field.name) for field in fields(Prepared)}, hold=hold))


def main(arguments: Sequence[str] | None = None) -> int:
    hold, *words = sys.argv[1:] if arguments is None else arguments

    def whole(ranks: Ranks) -> int:
        sample_held(ranks, words, int(hold))
        return 0

    return run_main(whole)


if __name__ == "__main__":
    raise SystemExit(main())
