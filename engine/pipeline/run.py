"""A run: sample the label map where a label model does, draw the image or images, make the pyramid, sign the result."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.diffusion.denoiser import Denoiser, Network
from engine.diffusion.solvers import needs_previous, steps_of
from engine.distributed.canvas import Canvas
from engine.distributed.planner import Planner
from engine.distributed.ranks import Ranks
from engine.inputs.condition import condition_of
from engine.models.folder import Model, check_folder, device_of, load_model
from engine.models.optimize import check_compiles
from engine.pipeline.accept import MOST_ROUNDS, accepting
from engine.pipeline.checkpointer import CheckpointManager
from engine.pipeline.control import StatusReduction
from engine.pipeline.decode import ShardWriter, decode_canvas, write_pixels
from engine.pipeline.inpaint import Inpainting
from engine.pipeline.level_plans import decode_covers, outside_region, rank_plan
from engine.pipeline.outputs import (
    ImageWriter,
    build_pyramids,
    copy_inputs,
    label_array_reader,
    open_output,
    sign,
    write_label_array,
)
from engine.pipeline.prepared import Prepared
from engine.pipeline.progress import Progress, clock, log_line
from engine.pipeline.sampler import sample
from engine.planning.geometry import Window
from engine.planning.ownership import DecodeRounds, partition_evenly
from engine.planning.plan import Plan
from engine.storage.output import Output, SamplingRound

Load = Callable[[Prepared, str], list[Model]]  # and the device


def run(ranks: Ranks, prepared: Prepared, load: Load | None = None) -> bool:
    """Sample and decode. Collective.

    Args:
        load: makes the networks; None: those of the model folders.
    Returns:
        Whether it came to the end; False: it was asked to stop, and left a checkpoint.
    """
    begun = time.monotonic()
    device = common_device(ranks, prepared.job.device)
    torch.set_num_threads(prepared.job.threads)
    ranks.on_root(lambda: check_models(prepared))
    if prepared.job.compile:
        ranks.agree(lambda: check_compiles(device, ranks.local_size))
    output = open_output(ranks, prepared, device)
    prepared = copy_inputs(ranks, prepared, output)
    if (
        prepared.label_stage is not None
        and prepared.label_stage.state != "finished"
        and not run(ranks, prepared.label_stage, load)
    ):
        return False
    prepared = write_label_array(ranks, prepared, output)
    models = ranks.agree(lambda: (load or load_models)(prepared, device))
    whole = Run(ranks, prepared, output, device, models)
    if not whole.draw_all():
        return False
    with ranks.timer("store"):
        build_pyramids(ranks, output)
    spent = whole.spent_seconds(time.monotonic() - begun)
    ranks.on_root(lambda: sign(output, spent, ranks.size, whole.rejected))
    whole.say(f"finished {prepared.options.out} in {clock(spent['all'])}")
    return True


def check_models(prepared: Prepared) -> None:
    """Refuse weights that do not fit their networks, before an output is made."""
    for card in (*prepared.cards, *(prepared.label_stage.cards if prepared.label_stage else ())):
        check_folder(card.folder)


def load_models(prepared: Prepared, device: str) -> list[Model]:
    """The model, or the models of the styles."""
    job = prepared.job
    return [load_model(card.folder, getattr(torch, job.dtype), device, job.compile) for card in prepared.cards]


def common_device(ranks: Ranks, name: str) -> str:
    """This rank's device; with ``auto`` the GPUs only if every rank has one, for bytes belong to a kind. Collective."""
    device = ranks.agree(lambda: device_of(name, ranks.local_rank))
    if ranks.any(device == "cpu"):
        return "cpu"
    torch.cuda.set_device(device)
    ranks.device = device
    return device


def network_of(model: Model) -> Network:
    """A model's network, with its embedder before it."""

    def answer(x: Tensor, t: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        if "embedding" not in inputs:
            return model.network(x, t, inputs)
        embedding = inputs["embedding"]
        tokens = model.embed(embedding, inputs.get("region")) if model.embed else embedding[:, None]
        return model.network(x, t, {"tokens": tokens.to(x.dtype)})

    return answer


@dataclass
class Run:
    """What the sampling rounds of a run share.

    Args:
        models: of the styles.
        spent: seconds of each kind of work.
        rejected: of a set, how many images of each round were not accepted.
    """

    ranks: Ranks
    prepared: Prepared
    output: Output
    device: str
    models: Sequence[Model]
    spent: dict[str, float] = field(default_factory=lambda: {"evaluation": 0.0, "decode": 0.0})
    rejected: list[int] = field(default_factory=list)
    evaluations: int = 0

    def draw_all(self) -> bool:
        """Draw the image or images, and again those of a set that are not accepted; whether it ended. Collective."""
        while True:
            sampling_round = self.ranks.on_root(self.output.sampling_round)
            if not self.draw(sampling_round):
                return False
            if self.prepared.job.accept is None:
                return True
            again = self.judge(sampling_round)
            self.rejected = [*sampling_round.rejected, len(again)]
            if not again or sampling_round.index + 1 == MOST_ROUNDS:
                return True
            following = SamplingRound(sampling_round.index + 1, again, self.rejected)
            self.ranks.on_root(lambda following=following: self.output.begin_round(following))  # type: ignore[misc]

    def draw(self, sampling_round: SamplingRound) -> bool:
        """Sample and decode what is drawn this time; whether it came to the end. Collective."""
        prepared, ranks = self.prepared, self.ranks
        canvas = Canvas(
            ranks, prepared.ownership, prepared.card.channels, prepared.job.seed, self.device, sampling_round.index
        )
        checkpoints = CheckpointManager(ranks, self.output, canvas, prepared.options.checkpoint_every)
        inpainting = ranks.agree(lambda: Inpainting(prepared)) if prepared.job.image else None
        if inpainting:
            inpainting.fill(canvas, self.models[0].encode)
        writer = ranks.agree(lambda: ImageWriter(prepared, self.output, sampling_round, inpainting))
        remaining = writer.remaining()
        if not len(remaining):
            return True
        first = checkpoints.restore()
        planner = Planner(
            ranks,
            lambda level, shares: rank_plan(
                prepared, ranks.rank, level, shares, sampling_round.images, sampling_round.index
            ),
        )
        progress = self.begin_progress(planner, first, remaining, sampling_round)
        ended = self.run_levels(canvas, checkpoints, planner, progress, first, sampling_round)
        ended = ended and self.run_decode(canvas, checkpoints, progress, writer, remaining, sampling_round)
        self.spent = {kind: self.spent[kind] + seconds for kind, seconds in progress.spent.items()}
        progress.end("" if ended else f"stopped; {prepared.options.out} holds a checkpoint: {self.way_on()}")
        return ended

    def run_levels(
        self,
        canvas: Canvas,
        checkpoints: CheckpointManager,
        planner: Planner,
        progress: Progress,
        first: int,
        sampling_round: SamplingRound,
    ) -> bool:
        """Sample the levels that are left, with checkpoints; whether it came to the end. Collective."""
        ranks, prepared = self.ranks, self.prepared
        denoiser = ranks.agree(self.denoiser)
        job, schedule, timesteps = prepared.job, prepared.card.schedule, prepared.timesteps
        alpha_bar = [schedule.alpha_bar[t] for t in timesteps]
        table = steps_of(str(job.solver), alpha_bar, float(job.eta or 0), schedule.rederive_noise, schedule.variance)
        status = StatusReduction(ranks, checkpoints, planner, canvas.check)
        told = ranks.timer.seconds["evaluate"], 0  # and evaluations

        def between(level: int, done: float) -> None:
            ranks.progress()
            if done >= 0.5:
                status.cast()

        def after_level(done: int, plan: Plan) -> bool:
            nonlocal told
            now = ranks.timer.seconds["evaluate"], denoiser.evaluations
            planner.measured(now[0] - told[0], now[1] - told[1])
            told = now
            stop, due, _ = status.count()
            facts = {"level": done, "t": int(timesteps[done - 1]), "windows": plan.windows}
            facts |= {"round": sampling_round.index} if job.accept else {}
            progress.advance("evaluation", plan.evaluations, f"level {done}/{len(table)}", **facts)
            history = needs_previous(table, done)
            if stop or done == len(table):
                ranks.agree(canvas.check)
            if stop or due or done == len(table):
                checkpoints.begin(done, history)
            if stop:
                checkpoints.finish()
            return stop

        ended = first == len(table) or sample(
            canvas, planner, denoiser, schedule, timesteps, table, first, between, after_level
        )
        planner.end()
        self.evaluations += denoiser.evaluations
        return ended

    def denoiser(self) -> Denoiser:
        prepared, job = self.prepared, self.prepared.job
        condition = condition_of(prepared.inputs, job, prepared.card, prepared.frames, label_array_reader(self.output))
        networks = [network_of(model) for model in self.models]
        size, dtype = int(job.batch_size or 1), getattr(torch, job.dtype)
        schedule, guided = prepared.card.schedule, prepared.guided_levels
        return Denoiser(networks, condition, schedule, size, dtype, self.device, guided)

    def run_decode(
        self,
        canvas: Canvas,
        checkpoints: CheckpointManager,
        progress: Progress,
        writer: ImageWriter,
        remaining: range | np.ndarray,
        sampling_round: SamplingRound,
    ) -> bool:
        """Decode the shards that are left; whether all are done. Collective."""
        ranks, card, decode = self.ranks, self.prepared.card, self.models[0].decode
        shard_writer = ShardWriter(ranks, writer)
        status = StatusReduction(ranks, checkpoints, check=shard_writer.check)

        def after_round() -> bool:
            stop, _, decoded = status.count()
            progress.advance("decode", decoded, "decoding")
            return stop

        if decode is None:
            ended = write_pixels(canvas, remaining, shard_writer, status.cast, after_round)
        else:
            remaining = self.leave_empty(writer, remaining)
            cover, pixels = decode_covers(self.prepared, sampling_round.images)
            ended = decode_canvas(
                canvas,
                lambda latents: decode(latents * card.latents_gain),
                cover=cover,
                pixels=pixels,
                factor=card.factor,
                channels=card.image_channels,
                rounds=DecodeRounds(remaining, ranks.size),
                shard_writer=shard_writer,
                before_round=status.cast,
                after_round=after_round,
            )
        shard_writer.empty()
        ranks.agree(shard_writer.check)
        checkpoints.finish()
        return ended

    def leave_empty(self, writer: ImageWriter, remaining: range | np.ndarray) -> range | np.ndarray:
        """Write the shards outside the region of interest; returns the others. Collective."""
        ranks = self.ranks
        if self.prepared.inputs.roi is None:
            return remaining
        mine = [int(remaining[i]) for i in partition_evenly(len(remaining), ranks.size, ranks.rank)]
        empty = {shard for shard in mine if outside_region(self.prepared, shard)}
        ranks.agree(lambda: writer.leave_white(sorted(empty)))
        others = ranks.allgather([shard for shard in mine if shard not in empty])
        return np.array([shard for part in others for shard in part], np.int64)

    def judge(self, sampling_round: SamplingRound) -> list[int]:
        """The images of a round that are sampled again; each rank looks at its share. Collective."""
        ranks, prepared, output = self.ranks, self.prepared, self.output
        accept = ranks.agree(lambda: accepting(str(prepared.job.accept)))
        chosen = list(range(prepared.frames.images)) if sampling_round.images is None else sampling_round.images
        labels, rows = prepared.inputs.labels, prepared.frames.frame[0]

        def refused(index: int) -> bool:
            image = output.read(output.layout.image, Window(index, 0, index + 1, 1))[0]
            label = 0 if labels is None else int(labels[index * rows : index * rows + 1, :1][0, 0])
            try:
                return not accept(image, label)
            except Exception as error:  # somebody else's code
                raise ValueError(f"`accept` {prepared.job.accept} failed at image {index}: {error!r}") from error

        mine = ranks.agree(lambda: [index for index in chosen[ranks.rank :: ranks.size] if refused(index)])
        again = sorted(index for part in ranks.allgather(mine) for index in part)
        self.say(f"round {sampling_round.index + 1}: {len(chosen) - len(again)} of {len(chosen)} accepted")
        if ranks.rank == 0 and prepared.options.json_log:
            log_line(
                prepared.options.json_log, sampling_round=sampling_round.index, drawn=len(chosen), rejected=len(again)
            )
        return again

    def spent_seconds(self, everything: float) -> dict[str, Any]:
        """Seconds of the run: of its parts, and the mean over the ranks of each kind of work. Collective."""
        self.ranks.timer.switch("other")
        kinds = self.ranks.timer.seconds
        mean = np.array(list(kinds.values())) / self.ranks.size
        self.ranks.allreduce_array(mean)
        split = {kind: round(float(value), 3) for kind, value in zip(kinds, mean, strict=True)}
        parts = {"sampling": self.spent["evaluation"], "decoding": self.spent["decode"], "all": everything}
        return {**{name: round(value, 2) for name, value in parts.items()}, "split": split}

    # ---- what it says -----------------------------------------------------------------------------

    def say(self, text: str) -> None:
        if self.ranks.rank == 0:
            with suppress(OSError):  # nobody listens: no reason to end a run
                print(text, flush=True)

    def begin_progress(
        self, planner: Planner, first: int, remaining: range | np.ndarray, sampling_round: SamplingRound
    ) -> Progress:
        """Say what is to be done and start to count. Collective."""
        prepared, levels, ranks = self.prepared, len(self.prepared.timesteps), self.ranks
        evaluations = planner.peek(first).evaluations * (levels - first) if first < levels else 0
        decodes = np.zeros(1, np.int64)
        mine = partition_evenly(len(remaining), ranks.size, ranks.rank)
        if prepared.card.factor > 1 and mine:
            cover, _ = decode_covers(prepared, sampling_round.images)
            decodes += len(mine) * len(cover.overlapping(prepared.ownership.shard(int(remaining[mine[0]]))))
        ranks.allreduce_array(decodes)
        work = f"about {evaluations} evaluations, {int(decodes[0])} decodes, {ranks.size} ranks on {self.device}"
        self.say(self.headline(sampling_round) + work + (f", from level {first}" if first else ""))
        least = prepared.card.patch * prepared.card.factor
        if min(prepared.job.size) < least:
            self.say(f"smaller than a window of {least} px: sampled on a padded canvas and cropped")
        return ranks.agree(lambda: Progress(ranks.rank, evaluations, int(decodes[0]), prepared.options.json_log))

    def headline(self, sampling_round: SamplingRound) -> str:
        """What is drawn, in one line."""
        job, card = self.prepared.job, self.prepared.card
        drawn = job.count if sampling_round.images is None else len(sampling_round.images)
        images = "" if job.count is None else f"{drawn} images of "
        again = f"round {sampling_round.index + 1} of " if sampling_round.index else ""
        what = "label map of " if card.role == "labels" else ""
        weight = float(job.guidance or 1)
        guided = "" if weight == 1 else f"guidance {weight:g} (1 is off: omega {weight - 1:g}), "
        levels = len(self.prepared.timesteps)
        return f"{again}{images}{what}{job.size[0]} x {job.size[1]} px, {levels} levels, {guided}"

    def way_on(self) -> str:
        """How a stopped run is taken up."""
        without = ", without `resume` never," if self.prepared.options.resume == "never" else ""
        return f"the same command{without} goes on from it"
