"""A run: sample the label map where a label model does, sample the image or images, build pyramids, sign the output."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.distributed.ranks import Ranks
from engine.job import SampleJob
from engine.models.card import ModelCard
from engine.models.folder import Model, check_model_folder, device_of, load_model
from engine.models.optimize import check_compiles
from engine.pipeline.accept import PATIENCE, Accept, Verdict, accepting
from engine.pipeline.live import Live
from engine.pipeline.memory import estimated_latents
from engine.pipeline.mending import examined
from engine.pipeline.outputs import (
    build_pyramids,
    clear_labels_outside_region,
    copy_inputs,
    lacks_labels,
    open_output,
    sign,
    write_label_array,
    write_region,
)
from engine.pipeline.prepared import Prepared
from engine.pipeline.progress import DECODE_COST, IMAGE, LABEL_MAP, Progress
from engine.pipeline.run_times import PYRAMID, gathered_times
from engine.pipeline.sampling_round import Round, Shared
from engine.pipeline.watch import OnLevel, Watch, clock
from engine.planning.geometry import Box
from engine.storage.checkpoint import SamplingRound
from engine.storage.files import file_size
from engine.storage.run_times import keep_times

Load = Callable[[Prepared, str], list[Model]]  # (prepared, device) -> models


def run(ranks: Ranks, prepared: Prepared, load: Load | None = None, watch: Watch | None = None) -> bool:
    """Sample and decode. Collective.

    Args:
        load: Makes the networks; None: they are loaded from the model folders.
        watch: How the run is watched; None: by lines on rank 0.
    Returns:
        True if the run was completed; False if it was asked to stop, and left a checkpoint.
    """
    watch, job, options = watch or Watch(), prepared.job, prepared.options
    ranks.timer.begin_laps()
    begun, device = time.monotonic(), common_device(ranks, job.device)
    ranks.on_root(lambda: check_models(prepared))
    if job.compile:
        ranks.agree(lambda: check_compiles(device, ranks.local_size))
    pixels = job.size[0] * job.size[1] * (job.count or 1)
    progress = ranks.agree(lambda: Progress(ranks.rank, pixels, options.json_log, watch.view))
    with torch_threads(job.threads), progress:
        expect_stages(progress, prepared)
        for note in (*prepared.inputs.notes, *idle_cores(ranks, job, device)):
            progress.say(note)
        if job.compile:
            minutes = "minutes" if device == "cpu" else "a minute or two"
            progress.say(f"torch compiles the network at its first windows, which takes {minutes}")
        completed = run_stage(ranks, prepared, device, load or load_models, progress, watch.on_level)
        progress.write_log(event="finished" if completed else "stopped", memory=progress.memory)
        times = gathered_times(ranks, device, progress.memory)
        if ranks.rank == 0 and prepared.state != "damaged":  # times of a mending are not those of the image
            keep_times(Path(options.out), times)
    took = clock(time.monotonic() - begun)
    way = f"the same command{', without `resume` never,' if options.resume == 'never' else ''} goes on from it"
    stopped = f"stopped; {options.out} holds a checkpoint: {way}"
    progress.say(f"finished {prepared.store or options.out} in {took}" if completed else stopped)
    return completed


def run_stage(
    ranks: Ranks, prepared: Prepared, device: str, load: Load, progress: Progress, on_level: OnLevel | None
) -> bool:
    """Sample and decode an image or a label map; of an image first its label map, where a label model does. Collective.

    Returns:
        Whether it came to its end.
    """
    begun, seconds = time.monotonic(), prepared.options.live
    with closing(open_output(ranks, prepared, device)) as output, ExitStack() as stack:
        live = None
        if seconds is not None:
            live = stack.enter_context(Live(ranks.rank, output.live, seconds, progress, ranks.timer))
        prepared = copy_inputs(ranks, prepared, output)
        stage = prepared.label_stage if lacks_labels(output) else None
        if stage is not None:
            stage = examined(ranks, stage)
        if stage is not None and stage.state != "finished":
            progress.stage = LABEL_MAP
            if not run_stage(ranks, stage, device, load, progress, None):
                return False
            progress.stage = IMAGE
        prepared = write_label_array(ranks, prepared, output)
        write_region(ranks, prepared, output)
        models = ranks.agree(lambda: load(prepared, device))
        rounds = Rounds(Shared(ranks, prepared, output, device, models, progress, on_level, live))
        if not rounds.run():
            return False
        with ranks.timer("store"):
            clear_labels_outside_region(ranks, prepared, output)
            build_pyramids(ranks, output, progress)
        ranks.timer.lap(progress.stage, PYRAMID)
        if live is not None:
            live.end()  # on all ranks, before the first of them signs
        spent = rounds.seconds(time.monotonic() - begun)
        ranks.on_root(lambda: sign(output, spent, ranks.size, rounds.rejected, rounds.scores))
    return True


def expect_stages(progress: Progress, prepared: Prepared) -> None:
    """Tell the clock what a job will take, about: its stages know better when they begin. Local.

    An evaluation is taken to cost as much as there are weights times latents in a window.
    """
    stages = {IMAGE: prepared}
    if prepared.label_stage is not None and prepared.label_stage.state != "finished":
        stages[LABEL_MAP] = prepared.label_stage
    for name, stage in stages.items():
        cost = float(evaluation_cost(stage.card))
        (height, width), patch = stage.ownership.shape, stage.card.patch
        each = 2 if stage.job.guidance not in (None, 1) else 1
        windows = estimated_latents(stage) / patch**2 * len(stage.timesteps)
        progress.expect("evaluation", windows * each, stage=name, cost=cost)
        if stage.card.factor > 1:
            progress.expect("decode", height * width / patch**2, stage=name, cost=cost * DECODE_COST)


def evaluation_cost(card: ModelCard) -> int:
    """Bytes of the network's weights times latents of a window."""
    return sum(file_size(path) for path in (card.folder / "unet").glob("*.safetensors")) * card.patch**2


def idle_cores(ranks: Ranks, job: SampleJob, device: str) -> list[str]:
    """A hint, where one rank is alone on more cores than it uses."""
    cores = len(os.sched_getaffinity(0))
    if ranks.size > 1 or device != "cpu" or cores < 2 * job.threads:
        return []
    used = "1 core" if job.threads == 1 else f"{job.threads} cores"
    return [f"one rank uses {used} of {cores}: mpiexec -n {cores // job.threads} before the command uses them all"]


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Have torch use so many CPU threads, and afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_models(prepared: Prepared) -> None:
    """Refuse weights that do not fit their networks, before an output is made."""
    for card in (*prepared.cards, *(prepared.label_stage.cards if prepared.label_stage else ())):
        check_model_folder(card.folder)


def load_models(prepared: Prepared, device: str) -> list[Model]:
    """The model, or one model a style."""
    job = prepared.job
    return [load_model(card.folder, getattr(torch, job.dtype), device, job.compile) for card in prepared.cards]


def kept_models(kept: dict[Any, list[Model]], prepared: Prepared, device: str) -> list[Model]:
    """``load_models``, of which those that were loaded before are among ``kept``."""
    job = prepared.job
    key = (tuple(card.hash for card in prepared.cards), job.dtype, job.compile, device)
    if key not in kept:
        kept[key] = load_models(prepared, device)
    return kept[key]


def common_device(ranks: Ranks, name: str) -> str:
    """This rank's device. Collective.

    With ``auto`` it is a GPU only if every rank has one: an image's bytes depend on the kind of device.
    """
    device = ranks.agree(lambda: device_of(name, ranks.local_rank))
    if ranks.any(device == "cpu"):
        return "cpu"
    torch.cuda.set_device(device)
    ranks.device = device
    return device


def updated(scores: list[float], latest: Mapping[int, float]) -> list[float]:
    """Scores of all images, with those of the images that were drawn last in their places.

    >>> updated([], {0: 1.0, 1: 2.0}), updated([1.0, 2.0], {1: 0.5})
    ([1.0, 2.0], [1.0, 0.5])
    """
    by_number = {**dict(enumerate(scores)), **latest}
    return [by_number[number] for number in range(len(by_number))]


class Rounds:
    """The rounds of a run: one, or with ``accept`` as many as it takes until every image of the set is accepted."""

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self.rejected: list[int] = []  # images that were not accepted, in each round
        self.scores: list[float] = []  # of each image, where the rule has scores

    def run(self) -> bool:
        """Sample and decode, round after round; whether it came to the end. Collective."""
        ranks, output = self.shared.ranks, self.shared.output
        while True:
            sampling_round = ranks.on_root(output.checkpoints.sampling_round)
            if not Round(self.shared, sampling_round).run():
                return False
            job = self.shared.prepared.job
            if job.accept is None:
                return True
            again, scores = self.judge(sampling_round)
            self.rejected = [*sampling_round.rejected, len(again)]
            self.scores = updated(sampling_round.scores, scores)
            if again and sampling_round.index + 1 == job.accept_rounds:
                kept = f"{len(again)} of {self.shared.prepared.frames.images} images are kept, and were not accepted"
                self.shared.progress.say(f"note: {kept}; `accept_rounds` is {job.accept_rounds}")
                return True
            if not again:
                return True
            self.say_hopeless()
            following = SamplingRound(sampling_round.index + 1, again, self.rejected, self.scores)
            ranks.on_root(lambda following=following: output.checkpoints.begin_round(following))  # type: ignore[misc]

    def say_hopeless(self) -> None:
        """Say, once in so many rounds, that none of them accepted an image."""
        drawn = [self.shared.prepared.frames.images, *self.rejected]  # images of each round, the next one included
        if len(self.rejected) % PATIENCE or drawn[-1 - PATIENCE] != drawn[-1]:
            return
        self.shared.progress.say(
            f"note: {PATIENCE} rounds accepted none of {self.rejected[-1]} images; a run with `accept_rounds` N keeps "
            "those of the last round"
        )

    @cached_property
    def accept(self) -> Accept:
        """The rule, made when it is first followed. Collective."""
        job, device = self.shared.prepared.job, self.shared.device
        return self.shared.ranks.agree(lambda: accepting(str(job.accept), device))

    def judge(self, sampling_round: SamplingRound) -> tuple[list[int], dict[int, float]]:
        """Look at the images of a round, each rank at its share of them. Collective.

        Returns:
            Numbers of the images that are sampled again, and scores by number, where the rule has scores.
        """
        ranks, prepared, output, accept = self.shared.ranks, self.shared.prepared, self.shared.output, self.accept
        sampled = list(range(prepared.frames.images)) if sampling_round.images is None else sampling_round.images
        labels, rows = prepared.inputs.labels, prepared.frames.frame[0]

        def verdict(index: int) -> Verdict:
            image = output.read(output.layout.image, Box(index, 0, index + 1, 1))[0]
            label = 0 if labels is None else int(labels[index * rows : index * rows + 1, :1][0, 0])
            try:
                return accept(image, label)
            except Exception as error:  # somebody else's code
                raise ValueError(f"`accept` {prepared.job.accept} failed at image {index}: {error!r}") from error

        mine = ranks.agree(lambda: {index: verdict(index) for index in sampled[ranks.rank :: ranks.size]})
        verdicts = dict(sorted(item for part in ranks.allgather(mine) for item in part.items()))
        again = [index for index, verdict in verdicts.items() if not verdict.accepted]
        number, progress = sampling_round.index, self.shared.progress
        progress.say(f"round {number + 1}: {len(sampled) - len(again)} of {len(sampled)} accepted")
        progress.write_log(sampling_round=number, drawn=len(sampled), rejected=len(again))
        return again, {index: one.score for index, one in verdicts.items() if one.score is not None}

    def seconds(self, everything: float) -> dict[str, Any]:
        """Seconds of the run: of its parts, and of each kind of work, the mean over the ranks. Collective.

        Args:
            everything: Seconds of the whole run.
        """
        ranks = self.shared.ranks
        ranks.timer.switch("other")
        kinds = ranks.timer.seconds
        mean = np.array(list(kinds.values())) / ranks.size
        ranks.allreduce_array(mean)
        split = {kind: round(float(value), 3) for kind, value in zip(kinds, mean, strict=True)}
        spent = self.shared.progress.spent
        parts = {"sampling": spent("evaluation"), "decoding": spent("decode"), "all": everything}
        return {**{name: round(value, 2) for name, value in parts.items()}, "split": split}
