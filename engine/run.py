"""A run: sample the label map where a label model does, draw the image or images, make the pyramid, sign the result."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.accept import MOST_DRAWINGS, accepting
from engine.canvas import Canvas
from engine.comm import Ranks
from engine.decode import decode_canvas, write_pixels
from engine.denoiser import Denoiser, Network
from engine.geometry import Window
from engine.inputs import condition_of
from engine.keeper import Keeper
from engine.models.folder import Model, check_folder, device_of, load_model
from engine.models.inference import check_compiles
from engine.outputs import Writer, build_pyramids, open_output, record, sign, stored_reader, write_stored
from engine.plan import LevelPlan
from engine.prepare import Prepared
from engine.progress import Progress, clock, log_line
from engine.repaint import Repaint
from engine.sampler import sample
from engine.solvers import steps_of
from engine.store import Drawing, Output

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
    if (
        prepared.label_stage is not None
        and prepared.label_stage.state != "finished"
        and not run(ranks, prepared.label_stage, load)
    ):
        return False
    prepared = write_stored(ranks, prepared, output)
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
    return "cpu" if ranks.any(device == "cpu") else device


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
    """What the drawings of a run share.

    Args:
        models: of the styles.
        spent: seconds of each kind of work.
        rejected: of a set, how many images of each drawing were not accepted.
    """

    ranks: Ranks
    prepared: Prepared
    output: Output
    device: str
    models: Sequence[Model]
    spent: dict[str, float] = field(default_factory=lambda: {"evaluation": 0.0, "decode": 0.0})
    rejected: list[int] = field(default_factory=list)

    def draw_all(self) -> bool:
        """Draw the image or images, and again those of a set that are not accepted; whether it ended. Collective."""
        while True:
            drawing = self.ranks.on_root(self.output.drawing)
            if not self.draw(drawing):
                return False
            if self.prepared.job.accept is None:
                return True
            again = self.judge(drawing)
            self.rejected = [*drawing.rejected, len(again)]
            if not again or drawing.attempt + 1 == MOST_DRAWINGS:
                return True
            following = Drawing(drawing.attempt + 1, again, self.rejected)
            self.ranks.on_root(lambda following=following: self.output.begin_drawing(following))  # type: ignore[misc]

    def draw(self, drawing: Drawing) -> bool:
        """Sample and decode what is drawn this time; whether it came to the end. Collective."""
        prepared, ranks = self.prepared, self.ranks
        canvas = Canvas(
            ranks, prepared.ownership, prepared.card.channels, prepared.job.seed, self.device, drawing.attempt
        )
        keeper = Keeper(ranks, self.output, canvas, prepared.options.checkpoint_every)
        repaint = ranks.agree(lambda: Repaint(prepared)) if prepared.job.image else None
        if repaint:
            repaint.fill(canvas, self.models[0].encode)
        writer = Writer(prepared, self.output, drawing, repaint)
        remaining = ranks.on_root(writer.remaining)
        if not remaining:
            return True
        first = keeper.restore()
        progress = self.begin_progress(first, remaining, drawing)
        ended = self.run_levels(canvas, keeper, progress, first, drawing)
        ended = ended and self.run_decode(canvas, progress, writer, remaining, drawing)
        self.spent = {kind: self.spent[kind] + seconds for kind, seconds in progress.spent.items()}
        progress.end("" if ended else f"stopped; {prepared.options.out} holds a checkpoint: {self.way_on()}")
        return ended

    def run_levels(self, canvas: Canvas, keeper: Keeper, progress: Progress, first: int, drawing: Drawing) -> bool:
        """Sample the levels that are left, with checkpoints; whether it came to the end. Collective."""
        ranks, prepared = self.ranks, self.prepared
        job, schedule, timesteps = prepared.job, prepared.card.schedule, prepared.timesteps
        alpha_bar = [schedule.alpha_bar[t] for t in timesteps]
        table = steps_of(str(job.solver), alpha_bar, float(job.eta or 0), schedule.rederive_noise, schedule.variance)

        def after_level(done: int, plan: LevelPlan) -> bool:
            ranks.agree(canvas.check)
            facts = {"level": done, "t": int(timesteps[done - 1]), "windows": len(plan.cover)}
            facts |= {"drawing": drawing.attempt} if job.accept else {}
            progress.advance("evaluation", plan.evaluations, f"level {done}/{len(table)}", **facts)
            stop = ranks.stopping()
            if stop or done == len(table) or keeper.due():
                keeper.save(done)
            return stop

        planner = prepared.planner(drawing.images, drawing.attempt)
        return first == len(table) or sample(
            canvas, planner, self.denoiser(), schedule, timesteps, table, first, after_level
        )

    def denoiser(self) -> Denoiser:
        prepared, job = self.prepared, self.prepared.job
        condition = condition_of(prepared.inputs, job, prepared.card, prepared.frames, stored_reader(self.output))
        networks = [network_of(model) for model in self.models]
        size, dtype = int(job.batch_size or 1), getattr(torch, job.dtype)
        schedule, guided = prepared.card.schedule, prepared.guided_levels
        return Denoiser(networks, condition, schedule, size, dtype, self.device, guided)

    def run_decode(
        self, canvas: Canvas, progress: Progress, writer: Writer, remaining: list[int], drawing: Drawing
    ) -> bool:
        """Decode the shards that are left, entering each round in the ledger; whether all are done. Collective."""
        card, decode = self.prepared.card, self.models[0].decode

        def after_round(decoded: int) -> bool:
            record(self.ranks, self.output, writer.lines)
            progress.advance("decode", decoded, "decoding")
            return self.ranks.stopping()

        if decode is None:
            return write_pixels(canvas, remaining, writer, after_round)
        empty = [shard for shard in remaining if self.prepared.empty(shard)]
        self.ranks.agree(lambda: writer.leave_white(empty[self.ranks.rank :: self.ranks.size]))
        record(self.ranks, self.output, writer.lines)
        remaining = [shard for shard in remaining if shard not in empty]
        cover, pixels = self.prepared.decode_covers(drawing.images)
        return decode_canvas(
            canvas,
            lambda latents: decode(latents * card.latents_gain),
            cover=cover,
            pixels=pixels,
            factor=card.factor,
            channels=card.image_channels,
            remaining=remaining,
            write=writer,
            after_round=after_round,
        )

    def judge(self, drawing: Drawing) -> list[int]:
        """The images of a drawing that are to be drawn again; each rank looks at its share. Collective."""
        ranks, prepared, output = self.ranks, self.prepared, self.output
        accept = ranks.agree(lambda: accepting(str(prepared.job.accept)))
        chosen = list(range(prepared.frames.images)) if drawing.images is None else drawing.images
        labels, rows = prepared.inputs.labels, prepared.frames.frame[0]

        def refused(index: int) -> bool:
            image = output.read(output.layout.image, Window(index, 0, index + 1, 1))[0]
            return not accept(image, 0 if labels is None else int(labels[index * rows, 0]))

        mine = ranks.agree(lambda: [index for index in chosen[ranks.rank :: ranks.size] if refused(index)])
        again = sorted(index for part in ranks.collect(mine) for index in part)
        self.say(f"drawing {drawing.attempt + 1}: {len(chosen) - len(again)} of {len(chosen)} accepted")
        if ranks.rank == 0 and prepared.options.json_log:
            log_line(prepared.options.json_log, drawing=drawing.attempt, drawn=len(chosen), rejected=len(again))
        return again

    def spent_seconds(self, everything: float) -> dict[str, Any]:
        """Seconds of the run: of its parts, and the mean over the ranks of each kind of work. Collective."""
        self.ranks.timer.switch("other")
        kinds = self.ranks.timer.seconds
        mean = np.array(list(kinds.values())) / self.ranks.size
        self.ranks.sum_(mean)
        split = {kind: round(float(value), 3) for kind, value in zip(kinds, mean, strict=True)}
        parts = {"sampling": self.spent["evaluation"], "decoding": self.spent["decode"], "all": everything}
        return {**{name: round(value, 2) for name, value in parts.items()}, "split": split}

    # ---- what it says -----------------------------------------------------------------------------

    def say(self, text: str) -> None:
        if self.ranks.rank == 0:
            print(text, flush=True)

    def begin_progress(self, first: int, remaining: list[int], drawing: Drawing) -> Progress:
        """Say what is to be done and start to count. Collective."""
        prepared, levels = self.prepared, len(self.prepared.timesteps)
        evaluations = decodes = 0
        if self.ranks.rank == 0:
            plan_of = prepared.planner(drawing.images, drawing.attempt)
            evaluations = plan_of(first)[0].evaluations * (levels - first) if first < levels else 0
            if prepared.card.factor > 1:
                decodes = sum(int(p.costs.sum()) for p in prepared.decode_plans(remaining, drawing.images))
        work = f"about {evaluations} evaluations, {decodes} decodes, {self.ranks.size} ranks on {self.device}"
        self.say(self.headline(drawing) + work + (f", from level {first}" if first else ""))
        least = prepared.card.patch * prepared.card.factor
        if min(prepared.job.size) < least:
            self.say(f"smaller than a window of {least} px: sampled on a padded canvas and cropped")
        return self.ranks.agree(lambda: Progress(self.ranks.rank, evaluations, decodes, prepared.options.json_log))

    def headline(self, drawing: Drawing) -> str:
        """What is drawn, in one line."""
        job, card = self.prepared.job, self.prepared.card
        drawn = job.count if drawing.images is None else len(drawing.images)
        images = "" if job.count is None else f"{drawn} images of "
        again = f"drawing {drawing.attempt + 1} of " if drawing.attempt else ""
        what = "label map of " if card.role == "labels" else ""
        weight = float(job.guidance or 1)
        guided = "" if weight == 1 else f"guidance {weight:g} (1 is off: omega {weight - 1:g}), "
        levels = len(self.prepared.timesteps)
        return f"{again}{images}{what}{job.size[0]} x {job.size[1]} px, {levels} levels, {guided}"

    def way_on(self) -> str:
        """How a stopped run is taken up."""
        without = ", without --resume never," if self.prepared.options.resume == "never" else ""
        return f"the same command{without} goes on from it"
