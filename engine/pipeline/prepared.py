"""A checked job and the facts that follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from engine.diffusion.conditions import Condition
from engine.diffusion.solvers import asked_at
from engine.inputs.condition import condition_of
from engine.inputs.values import Inputs
from engine.job import RunOptions, SampleJob
from engine.models.card import ModelCard
from engine.planning.geometry import Frames
from engine.planning.ownership import Ownership
from engine.planning.plane import Cone, corners_of
from engine.storage.image_layout import ImageLayout, PlacedLayout
from engine.storage.layout import Layout
from engine.storage.plane_layout import RequestLayout
from engine.storage.set_layout import SetLayout


@dataclass(frozen=True)
class Prepared:
    """A checked job and the facts it needs: plain values, sent from rank 0 to all.

    Args:
        cards: Card of the model, or the cards of the networks of its styles; the first gives the geometry.
        rank_count: Number of ranks that the work is planned for.
        inputs: The contents of the job's files.
        identity: The values that another job must share for its bytes to be the same.
        state: State of the output before the run: absent, unfinished (to be resumed), finished, damaged
            (finished, and some of it to be made anew), or replace.
        label_stage: The run that samples the label map, where a label model does; until it is done ``inputs`` has no
            labels.
        given: Fields of the job as its output keeps them, where the run needs them in other words: paths as they were
            given that are absolute in the job, and ``array`` for an array that lies in a file meanwhile.
        store: The URL that the arrays are put to; None: they are files below ``options.out``, as the rest always is.
        cone: What is asked of a plane; None: the job is an image or a set by itself.
        plane: Folder of the plane, where levels are kept; None: none are.
    """

    job: SampleJob
    options: RunOptions
    cards: tuple[ModelCard, ...]
    rank_count: int
    inputs: Inputs
    identity: dict[str, Any]
    state: str
    label_stage: Prepared | None = None
    given: Mapping[str, str] = field(default_factory=dict)
    store: str | None = None
    cone: Cone | None = None
    plane: Path | None = None

    @property
    def card(self) -> ModelCard:
        return self.cards[0]

    @property
    def plain_job(self) -> dict[str, Any]:
        """The job as JSON values, as it was given."""
        return {**self.job.plain(), **self.given}

    @property
    def origin(self) -> tuple[int, int]:
        """Where the image begins beside the one that it continues, (y, x) in px; (0, 0) where it continues none."""
        region = self.options.region
        return (0, 0) if self.job.continue_ is None or region is None else region[:2]

    @cached_property
    def frames(self) -> Frames:
        """The images on the canvas of latents."""
        y, x = self.origin
        corner = (y // self.card.factor, x // self.card.factor) if self.cone is None else self.cone.corner
        return Frames(self.job.size, self.card.factor, self.card.patch, self.job.count, corner)

    @cached_property
    def ownership(self) -> Ownership:
        """Which rank owns which shard of the canvas."""
        return Ownership(self.frames.shape, self.frames.shard_sides(self.job.shard), self.rank_count)

    @cached_property
    def layout(self) -> Layout:
        """The arrays of the output."""
        job = self.job
        channels = 1 if self.card.role == "labels" else self.card.image_channels
        shared = (job.size, channels, job.shard, job.chunk, self.inputs.label_array)
        if self.cone is not None:
            return RequestLayout(*shared, asked=corners_of(self.cone.pixels(self.card.factor)))
        if job.continue_ is not None:
            return PlacedLayout(*shared, origin=self.origin)
        if job.count is None:
            return ImageLayout(*shared, region=job.roi is not None)
        return SetLayout(*shared, count=job.count, group=self.frames.group(job.shard))

    @cached_property
    def wanted(self) -> range | np.ndarray:
        """The shards of the canvas that hold pixels that are wanted, in order: all, unless whole shards are padding.

        Of a request to a plane they are those that its region meets.
        """
        if self.cone is not None:
            region, factor = self.cone.pixels(self.card.factor), self.card.factor
            return np.flatnonzero(
                [bool(self.ownership.shard(n).scaled(factor) & region) for n in range(self.ownership.count)]
            )
        count, (rows, columns) = self.ownership.count, self.layout.boxes().counts
        if count == len(self.layout.boxes()):
            return range(count)
        return (np.arange(rows)[:, None] * self.ownership.columns + np.arange(columns)).ravel()

    @cached_property
    def timesteps(self) -> np.ndarray:
        """The model's timestep of each level, from the noisiest; before them those that invert, from the cleanest."""
        steps = self.card.schedule.timesteps(self.job.steps, self.job.sections)  # type: ignore[arg-type]
        sampled = asked_at(str(self.job.solver), steps[len(steps) - self.job.levels :])
        return np.concatenate([sampled[::-1], sampled]) if self.job.inverts else sampled

    @property
    def inversion(self) -> int:
        """How many levels, the first ones, lead from the known image to noise; they are not guided."""
        return self.job.levels if self.job.inverts else 0

    @property
    def guided_levels(self) -> range:
        """The levels that are guided: ``guidance_interval`` counts from the first timestep that is sampled."""
        first, last = self.job.guidance_interval or (0, self.job.levels)
        again = len(self.timesteps) - self.inversion - self.job.levels  # plms has two levels at the second timestep
        return range(self.inversion + first + again * (first > 1), self.inversion + last + again * (last > 1))

    def cover_level(self, level: int) -> int:
        """The level whose windows a level has: one that inverts has those of the level that leads back."""
        return 2 * self.inversion - 1 - level if level < self.inversion else level

    @cached_property
    def condition(self) -> Condition:
        """What each window is asked for, as far as it takes to plan; to evaluate takes the stored instance map too."""
        return condition_of(self.inputs, self.job, self.card, self.frames)
