"""One round of sampling: from noise, or from a checkpoint, to written shards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine.diffusion.conditions import Condition
from engine.diffusion.denoiser import Denoiser, Network, nothing
from engine.diffusion.solvers import Step, inversion, steps_of
from engine.distributed.balance import SpeedBalance
from engine.distributed.canvas import Canvas
from engine.distributed.planner import Planner
from engine.distributed.ranks import Ranks
from engine.inputs.condition import condition_of
from engine.models.folder import Model
from engine.models.latent_colors import SIDE, Colors
from engine.pipeline.checkpointer import CheckpointManager
from engine.pipeline.decode import Decoder, ShardWriter, decode_canvas, write_pixels
from engine.pipeline.inpaint import Inpainting
from engine.pipeline.kept_levels import KeptLevels, depths_of
from engine.pipeline.known_image import KnownImage
from engine.pipeline.level_picture import estimated_picture
from engine.pipeline.level_plans import decode_covers, outside_region, rank_plan
from engine.pipeline.live import Live, colors_of, present_estimate
from engine.pipeline.outputs import ImageWriter, label_array_reader
from engine.pipeline.prepared import Prepared
from engine.pipeline.progress import Progress
from engine.pipeline.run_times import DECODING, LEVEL, START
from engine.pipeline.sampler import sample
from engine.pipeline.status import StatusReduction, never
from engine.pipeline.watch import CallbackFailed, OnLevel
from engine.planning.ownership import DecodeRounds, partition_evenly
from engine.planning.plan import Plan, Planning
from engine.planning.preview_grid import PreviewGrid
from engine.storage.checkpoint import SamplingRound
from engine.storage.files import checksum
from engine.storage.output import Output
from engine.storage.plane_layout import levels_of
from engine.storage.plane_levels import LevelArrays


@dataclass(frozen=True)
class Shared:
    """What the rounds of a run share.

    Args:
        device: Device that this rank computes on.
        models: The model, or one model a style.
        progress: The clock of the job.
        on_level: Called after every level, see ``Watch``.
        live: What is left in the output for those who watch; None: nothing.
    """

    ranks: Ranks
    prepared: Prepared
    output: Output
    device: str
    models: Sequence[Model]
    progress: Progress
    on_level: OnLevel | None
    live: Live | None = None


class Round:
    """One round: all that is sampled, or those images of a set that were not accepted in the round before."""

    def __init__(self, shared: Shared, sampling_round: SamplingRound) -> None:
        ranks, prepared = shared.ranks, shared.prepared
        self.shared, self.ranks, self.prepared, self.progress = shared, ranks, prepared, shared.progress
        self.sampling_round = sampling_round

        # The canvas and its checkpoints.
        shards, seed = prepared.ownership, prepared.job.seed
        corner = prepared.frames.corner
        self.canvas = Canvas(ranks, shards, prepared.card.channels, seed, shared.device, sampling_round.index, corner)
        self.live, self.grid = shared.live, PreviewGrid.of(prepared.frames)
        self.canvas.keeps_estimate = shared.on_level is not None or self.live is not None
        self.steps = steps_of_job(prepared)
        self.kept = None if prepared.plane is None else self.kept_levels(prepared.plane)
        depth, every = max(step.depth for step in self.steps), prepared.options.checkpoint_every
        pending = self.kept.pending if self.kept else lambda: None
        self.checkpoints = CheckpointManager(ranks, shared.output, self.canvas, every, depth, pending)

        # The levels: how the ranks stand in each.
        self.balance = SpeedBalance(ranks)
        self.planner = Planner(ranks, self.level_plan, len(self.steps))
        picture_due = self.live.due if self.live else never
        self.status = StatusReduction(ranks, self.checkpoints, self.check, self.balance, picture_due)
        self.measured = 0.0, 0  # seconds of evaluating, and evaluations, at the end of the level before
        self.evaluations = 0  # of a level, about
        self.denoiser: Denoiser  # made by ``run``

    def run(self) -> bool:
        """Sample and decode what is still to be written; whether it came to the end. Collective."""
        writer = self.make_writer()
        remaining = writer.remaining()
        if not len(remaining):
            return True
        first = self.checkpoints.restore()
        if self.prepared.job.strength is not None and first == 0:
            self.start_from_image()
        with self.ranks.background(self.planner.advance):
            self.begin_progress(first, remaining)
            self.ranks.timer.lap(self.progress.stage, START)
            completed = self.sample_levels(first)
        return completed and self.decode(writer, remaining)

    def kept_levels(self, plane: Path) -> KeptLevels:
        """Have the canvas take what is known from the kept levels of a plane, and leave its own there. Collective."""
        prepared, canvas, private = self.prepared, self.canvas, self.shared.output.private
        assert prepared.cone is not None
        own = LevelArrays(private / "levels", checksum(prepared.identity)) if prepared.options.keep_levels else None
        depths = depths_of(self.steps)
        kept = KeptLevels(self.ranks, levels_of(plane), own, prepared.cone, canvas.ownership, canvas.channels, depths)
        self.ranks.on_root(kept.make)
        canvas.after_step = lambda level: kept.exchange(canvas, level)
        return kept

    def check(self) -> None:
        """Raise what is wrong with this rank's canvas, or with the kept levels of a plane. Local."""
        self.canvas.check()
        self.denoiser.condition.check()
        if self.kept is not None:
            self.kept.check()

    def make_writer(self) -> ImageWriter:
        """Make the writer of the image; in-painting also sets ``canvas.known``. Collective."""
        ranks, prepared, shared = self.ranks, self.prepared, self.shared
        inpainting = ranks.agree(lambda: Inpainting(prepared)) if prepared.job.paints else None
        if inpainting:
            self.canvas.known = inpainting.known(self.canvas, shared.models[0].encode)
        return ranks.agree(lambda: ImageWriter(prepared, shared.output, self.sampling_round, inpainting))

    def start_from_image(self) -> None:
        """Start from the known image: clean where it is inverted, else as noisy as before the first level. Collective.

        It is scaled as the model's samples are, which decoding multiplies by ``latents_gain``.
        """
        prepared, encode = self.prepared, self.shared.models[0].encode
        known_image = self.ranks.agree(lambda: KnownImage(prepared))
        gain = prepared.card.latents_gain if encode else 1.0
        latents = {shard: known / gain for shard, known in known_image.latents(self.canvas, encode).items()}
        (alpha_bar,) = prepared.card.schedule.alpha_bars(prepared.timesteps[:1])
        self.canvas.start_from(latents, 1.0 if prepared.inversion else alpha_bar)

    # ---- sampling ---------------------------------------------------------------------------------

    def level_plan(self, level: int) -> Planning[Plan]:
        """This rank's part of the plan of a level."""
        chosen = self.sampling_round
        return rank_plan(self.prepared, self.ranks.rank, level, self.balance.run_ends, chosen.images, chosen.index)

    def sample_levels(self, first: int) -> bool:
        """Sample the levels from ``first`` on; whether it came to the end. Collective."""
        self.denoiser = self.ranks.agree(self.denoiser_of_job)
        self.measured = self.ranks.timer.seconds["evaluate"], 0
        return sample(self.canvas, self.planner, self.denoiser, self.steps, first, self.on_level)

    def denoiser_of_job(self) -> Denoiser:
        """The model with the job's condition, which reads what is stored beside the image."""
        shared, prepared = self.shared, self.prepared
        stored = label_array_reader(shared.output)
        condition = condition_of(prepared.inputs, prepared.job, prepared.card, prepared.frames, stored)
        return make_denoiser(prepared, shared.models, condition, shared.device, self.on_batch)

    def on_batch(self, done: float) -> None:
        """Go on with messages, and in the middle of the level tell how this rank stands. Local."""
        self.ranks.progress()
        self.progress.within("evaluation", done * self.evaluations)
        if done >= 0.5:
            self.status.start()

    def on_level(self, level: int, plan: Plan) -> bool:
        """Learn how all ranks stand before ``level``, and act on it; whether to stop. Collective."""
        made = self.denoiser.evaluations - self.measured[1]
        self.measure()
        status = self.status.finish()
        if status.checkpoint_written:
            self.checkpoints.commit()
        self.balance.update(status.speeds)
        self.log_level(level, plan, status.memory)
        last = level == len(self.steps)
        stop = self.call_on_level(level) or status.stop
        self.show(level, status.picture_due or stop or last)
        if stop or last:
            self.ranks.agree(self.check)
        if stop or status.checkpoint_due or last:
            self.checkpoints.begin(level)
        if stop:
            self.checkpoints.finish()
        self.ranks.timer.lap(self.progress.stage, f"{LEVEL} {level}", made, plan.evaluations)
        return stop

    def call_on_level(self, level: int) -> bool:
        """Call ``on_level``; whether any rank's callback asks for a stop. Collective.

        Raises:
            CallbackFailed: a callback raised an error, on this rank or another.
        """
        on_level, ranks = self.shared.on_level, self.ranks
        if on_level is None:
            return False
        decode = self.shared.models[0].decode
        problem: Exception | None = None
        try:
            stop = bool(on_level(level, len(self.steps), lambda: estimated_picture(self.canvas, self.prepared, decode)))
        except Exception as error:  # somebody else's code
            stop, problem = True, error
        if ranks.any(problem is not None):
            raise CallbackFailed(problem or RuntimeError("on_level failed on another rank"))
        return ranks.any(stop)

    @cached_property
    def colors(self) -> Colors:
        """The map from latents to colours of the picture for those who watch. Local."""
        side = self.prepared.card.patch if self.prepared.job.compile else min(self.prepared.card.patch, SIDE)
        return colors_of(self.prepared.card, self.shared.models[0].decode, side)

    def show(self, level: int, due: bool) -> None:
        """Hand the estimate to those who watch, where it is time to. Local."""
        if self.live is None:
            return
        if due:
            factor = self.prepared.card.factor
            self.live.show(lambda: present_estimate(self.canvas, self.grid, factor, level, self.colors))
            self.live.count(self.denoiser.evaluations)
        if self.shared.on_level is None:
            self.canvas.estimate = {}  # of full size: the picture has what it takes

    def measure(self) -> None:
        """Tell the balance how fast this rank was in the level. Local."""
        now = self.ranks.timer.seconds["evaluate"], self.denoiser.evaluations
        self.balance.measure(now[0] - self.measured[0], now[1] - self.measured[1])
        self.measured = now

    # ---- decoding ---------------------------------------------------------------------------------

    def decode(self, writer: ImageWriter, remaining: range | np.ndarray) -> bool:
        """Decode and write the remaining shards; whether all are written. Collective."""
        ranks, prepared, card = self.ranks, self.prepared, self.prepared.card
        model_decode = self.shared.models[0].decode
        shard_writer = ShardWriter(ranks, writer if self.live is None else self.shown_too(writer, self.live))
        status = StatusReduction(ranks, self.checkpoints, shard_writer.check)
        made = self.denoiser.evaluations

        def after_round() -> bool:
            how = status.finish()
            if how.checkpoint_written:
                self.checkpoints.commit()
            self.progress.advance("decode", how.amount, "decoding", how.memory)
            if self.live is not None:
                self.live.count(made)
            return how.stop

        if model_decode is None:
            completed = write_pixels(self.canvas, remaining, shard_writer, status.start, after_round)
        else:
            cover, pixels = decode_covers(prepared, self.sampling_round.images)
            decoder = Decoder(
                lambda latents: model_decode(latents * card.latents_gain),
                cover,
                pixels,
                card.factor,
                card.image_channels,
            )
            rounds = DecodeRounds(self.leave_empty(writer, remaining), ranks.size)
            completed = decode_canvas(self.canvas, decoder, rounds, shard_writer, status.start, after_round)
        shard_writer.finish()
        ranks.agree(shard_writer.check)
        self.checkpoints.finish()
        ranks.timer.lap(self.progress.stage, DECODING)
        return completed

    def shown_too(self, writer: ImageWriter, live: Live) -> Callable[[int, Tensor], None]:
        """The writer of shards, which hands each to those who watch, too."""

        def write(shard: int, pixels: Tensor) -> None:
            writer(shard, pixels)
            live.put_shard(self.grid, self.prepared.card, self.prepared.ownership.shard(shard), pixels)

        return write

    def leave_empty(self, writer: ImageWriter, remaining: range | np.ndarray) -> range | np.ndarray:
        """Write the remaining shards that lie outside the region of interest; returns the others. Collective."""
        ranks = self.ranks
        if self.prepared.inputs.roi is None:
            return remaining
        mine = [int(remaining[i]) for i in partition_evenly(len(remaining), ranks.size, ranks.rank)]
        empty = {shard for shard in mine if outside_region(self.prepared, shard)}
        ranks.agree(lambda: writer.leave_white(sorted(empty)))
        others = ranks.allgather([shard for shard in mine if shard not in empty])
        return np.array([shard for part in others for shard in part], np.int64)

    # ---- what it tells ----------------------------------------------------------------------------

    def begin_progress(self, first: int, remaining: range | np.ndarray) -> None:
        """Say what is to be done, and how much of it. Collective."""
        prepared, ranks, progress, levels = self.prepared, self.ranks, self.progress, len(self.prepared.timesteps)
        self.evaluations = self.planner.peek(first).evaluations if first < levels else 0
        evaluations, decodes = self.evaluations * (levels - first), self.decodes(remaining)
        work = f"about {counted(evaluations, 'evaluation')}, {counted(decodes, 'decode')}, "
        work += f"{counted(ranks.size, 'rank')} on {self.shared.device}"
        progress.say(self.headline() + work + (f", from level {first}" if first else ""))
        least = prepared.card.patch * prepared.card.factor
        if min(prepared.job.size) < least:
            progress.say(f"smaller than a window of {least} px: sampled on a padded canvas and cropped")
        done = evaluations / max(levels - first, 1) * first
        progress.expect("evaluation", evaluations, before=done)
        progress.expect("decode", decodes)
        progress.begin(f"level {first + 1}/{levels}" if first < levels else "decoding")

    def decodes(self, remaining: range | np.ndarray) -> int:
        """How many windows all ranks decode, about: those of each rank's first shard, times its shards. Collective."""
        prepared, ranks = self.prepared, self.ranks
        decodes = np.zeros(1, np.int64)
        mine = partition_evenly(len(remaining), ranks.size, ranks.rank)
        if prepared.card.factor > 1 and mine:
            cover, _ = decode_covers(prepared, self.sampling_round.images)
            first_shard = prepared.ownership.shard(int(remaining[mine[0]]))
            decodes += len(mine) * len(cover.overlapping(first_shard))
        ranks.allreduce_array(decodes)
        return int(decodes[0])

    def headline(self) -> str:
        """What is sampled, in one line."""
        job, card, sampling_round = self.prepared.job, self.prepared.card, self.sampling_round
        count = job.count if sampling_round.images is None else len(sampling_round.images)
        again = f"round {sampling_round.index + 1} of " if sampling_round.index else ""
        noun = "label map" if card.role == "labels" else "image"
        what = f"{counted(count, noun)} of " if count is not None else "label map of " if noun == "label map" else ""
        weights = job.guidance_weights
        omegas = ",".join(f"{weight - 1:g}" for weight in weights)
        several = " in turn" if len(weights) > 1 else ""
        guidance = ",".join(f"{weight:g}" for weight in weights)
        guided = "" if weights == (1,) else f"guidance {guidance}{several} (1 is off: omega {omegas}), "
        levels = f"{job.levels} levels" if job.strength is None else f"variation in {job.levels} of {job.steps} levels"
        levels += f" after {job.levels} of inversion" if job.inverts else ""
        return f"{again}{what}{job.size[0]} x {job.size[1]} px, {levels}, {guided}"

    def log_level(self, level: int, plan: Plan, memory: int) -> None:
        """Count and log that a level is done. Local."""
        facts = {"level": level, "t": int(self.prepared.timesteps[level - 1]), "windows": plan.windows}
        facts |= {"round": self.sampling_round.index} if self.prepared.job.accept else {}
        self.evaluations = plan.evaluations
        following = f"level {level + 1}/{len(self.steps)}" if level < len(self.steps) else "decoding"
        self.progress.advance("evaluation", plan.evaluations, following, memory, **facts)


def counted(count: int, noun: str) -> str:
    """A number of things.

    >>> counted(1, "rank"), counted(1200, "evaluation")
    ('1 rank', '1,200 evaluations')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def steps_of_job(prepared: Prepared) -> list[Step]:
    """The solver's step of each level."""
    job, schedule = prepared.job, prepared.card.schedule
    inverting, sampled = np.split(prepared.timesteps, [prepared.inversion])
    alpha_bars, betas = schedule.alpha_bars(sampled), schedule.eta_betas(sampled)
    solver, eta = str(job.solver), float(job.eta or 0)
    steps = steps_of(solver, alpha_bars, eta, schedule.rederive_noise, schedule.variance, betas, schedule.final)
    return [*inversion(schedule.alpha_bars(inverting)), *steps]


def make_denoiser(
    prepared: Prepared,
    models: Sequence[Model],
    condition: Condition,
    device: str,
    on_batch: Callable[[float], None] = nothing,
) -> Denoiser:
    """The model as the loop takes it, with a job's settings."""
    return Denoiser(
        [network_of(model) for model in models],
        condition,
        prepared.card.schedule,
        prepared.timesteps,
        int(prepared.job.batch_size or 1),
        dtype=getattr(torch, prepared.job.dtype),
        device=device,
        guided_levels=prepared.guided_levels,
        on_batch=on_batch,
        guided_channels=prepared.card.guided_channels,
        label_weights=prepared.card.label_weights,
    )


def network_of(model: Model) -> Network:
    """A model's network, with its embedder before it."""

    def answer(x: Tensor, t: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        if "embedding" not in inputs:
            return model.network(x, t, inputs)
        embedding = inputs["embedding"]
        tokens = model.embed(embedding, inputs.get("region")) if model.embed else embedding[:, None]
        return model.network(x, t, {"tokens": tokens.to(x.dtype)})

    return answer
