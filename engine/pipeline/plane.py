"""Regions of an unbounded plane: what each asks for is sampled on a canvas of its own, and kept for those after it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from engine.distributed.ranks import Ranks
from engine.job import RunOptions, SampleJob
from engine.models.card import read_card
from engine.pipeline.kept_levels import KeptLevels, depths_of
from engine.pipeline.prepare import prepare
from engine.pipeline.prepared import Prepared
from engine.pipeline.run import run
from engine.pipeline.sampling_round import steps_of_job
from engine.planning.geometry import Box
from engine.planning.plane import Request
from engine.storage.files import discard
from engine.storage.output import Output
from engine.storage.plane_levels import KnownWindows


def sample_region(ranks: Ranks, job: SampleJob, options: RunOptions, plane: Path, region: Box, hold: int) -> np.ndarray:
    """Sample a region of a plane. Collective.

    Returns:
        uint8 (c, h, w).
    """
    prepared = ranks.on_root(lambda: prepared_request(ranks, job, options, plane, region, hold))
    out = Path(prepared.options.out)
    if not run(ranks, prepared):
        raise SystemExit(75)
    output = Output(out)
    assert prepared.cutout is not None
    depths = depths_of(steps_of_job(prepared))
    kept = KeptLevels(
        plane / "slidefield",
        output.private / "levels",
        prepared.cutout,
        prepared.ownership,
        prepared.card.channels,
        depths,
    )
    kept.commit(ranks)
    pixels = output.read(output.layout.image, prepared.cutout.pixels(prepared.card.factor))
    ranks.barrier()
    ranks.on_root(lambda: discard(out))
    return pixels


def prepared_request(
    ranks: Ranks, job: SampleJob, options: RunOptions, plane: Path, region: Box, hold: int
) -> Prepared:
    """A request, checked, with what is known. Rank 0 calls this."""
    (plane / "slidefield").mkdir(parents=True, exist_ok=True)
    options = replace(options, out=str(plane / "slidefield" / "request.zarr"), preview="none")
    card = read_card(job.model)
    request = Request(region, hold, (), plane)
    levels = len(prepare(job, replace(options, dry_run=True), ranks.size, ranks.local_size, request).timesteps)
    known = KnownWindows(plane / "slidefield" / "known.json", levels, card.patch).read()
    return prepare(job, options, ranks.size, ranks.local_size, replace(request, known=known))
