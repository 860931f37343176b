"""A run: sample the levels, decode the shards, make the pyramid, sign the result."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import engine
from engine.canvas import Canvas, Shards
from engine.comm import Ranks
from engine.decode import decode_canvas
from engine.denoiser import Denoiser
from engine.geometry import Window
from engine.models.folder import device_of, load_model
from engine.plan import LevelPlan, image_box
from engine.prepare import IMAGE_CHANNELS, Prepared, label_source
from engine.progress import Progress, clock
from engine.sampler import sample
from engine.solvers import steps_of
from engine.store import LABELS, ZARR_VERSION, Output, create, lock, reads_in_boxes, remove


def run(ranks: Ranks, prepared: Prepared) -> bool:
    """Sample and decode. Collective.

    Returns:
        Whether it came to the end; False: it was asked to stop, and left a checkpoint.
    """
    job, card, options = prepared.job, prepared.card, prepared.options
    begun = time.monotonic()
    device = common_device(ranks, job.device)
    dtype = getattr(torch, job.dtype)
    torch.set_num_threads(job.threads)
    model = ranks.agree(lambda: load_model(card.folder, dtype, device))
    output = open_output(ranks, prepared, device)

    canvas = Canvas(ranks, prepared.ownership, card.channels, job.seed, device)
    keeper = Keeper(ranks, output, canvas, options.checkpoint_every)
    first = keeper.restore()
    boxes = {s: image_box(prepared.ownership.shards[s], card.factor, job.size) for s in prepared.wanted}
    done = finished_shards(ranks, output)
    remaining = [s for s in prepared.wanted if ("0", boxes[s]) not in done]
    progress = begin_progress(ranks, prepared, first, remaining, device)

    denoise = Denoiser(model.network, prepared.condition, card.schedule, int(job.batch_size or 1), dtype, device)
    if not run_levels(prepared, canvas, denoise, keeper, progress, first):
        progress.end(f"stopped; {options.out} holds a checkpoint: {way_on(prepared)}")
        return False
    if not run_decode(prepared, canvas, model.decode, output, progress, boxes, remaining):
        progress.end(f"stopped while decoding; {options.out} holds a checkpoint: {way_on(prepared)}")
        return False
    build_pyramids(ranks, output)
    seconds = {"sampling": round(progress.spent["evaluation"], 2), "decoding": round(progress.spent["decode"], 2)}
    seconds["all"] = round(time.monotonic() - begun, 2)
    ranks.on_root(lambda: sign(output, seconds, ranks.size))
    progress.end(f"finished {options.out} in {clock(seconds['all'])}")
    return True


def way_on(prepared: Prepared) -> str:
    """How a stopped run is taken up."""
    without = ", without --resume never," if prepared.options.resume == "never" else ""
    return f"the same command{without} goes on from it"


def common_device(ranks: Ranks, name: str) -> str:
    """This rank's device; with ``auto`` the GPUs only if every rank has one, for bytes belong to a kind. Collective."""
    device = ranks.agree(lambda: device_of(name, ranks.local_rank))
    return "cpu" if ranks.any(device == "cpu") else device


def begin_progress(ranks: Ranks, prepared: Prepared, first: int, remaining: list[int], device: str) -> Progress:
    """Say what is to be done and start to count. Collective."""
    job, levels = prepared.job, len(prepared.timesteps)
    evaluations = decodes = 0
    if ranks.rank == 0:
        evaluations = prepared.planner()(first)[0].evaluations * (levels - first) if first < levels else 0
        decodes = sum(int(plan.costs.sum()) for plan in prepared.decode_plans(remaining))
        print(
            f"{job.size[0]} x {job.size[1]} px, {levels} levels, about {evaluations} evaluations, "
            f"{decodes} decodes, {ranks.size} ranks on {device}" + (f", from level {first}" if first else ""),
            flush=True,
        )
        least = prepared.card.patch * prepared.card.factor
        if min(job.size) < least:
            print(f"smaller than a window of {least} px: sampled on a padded canvas and cropped", flush=True)
    return ranks.agree(lambda: Progress(ranks.rank, evaluations, decodes, prepared.options.json_log))


def run_levels(
    prepared: Prepared, canvas: Canvas, denoise: Denoiser, keeper: Keeper, progress: Progress, first: int
) -> bool:
    """Sample the levels that are left, with checkpoints; whether it came to the end. Collective."""
    ranks, job, schedule, timesteps = canvas.ranks, prepared.job, prepared.card.schedule, prepared.timesteps
    alpha_bar = [schedule.alpha_bar[t] for t in timesteps]
    table = steps_of(str(job.solver), alpha_bar, float(job.eta or 0), schedule.rederive_noise)

    def after_level(done: int, plan: LevelPlan) -> bool:
        ranks.agree(canvas.check)
        facts = {"level": done, "t": int(timesteps[done - 1]), "windows": len(plan.cover)}
        progress.advance("evaluation", plan.evaluations, f"level {done}/{len(table)}", **facts)
        stop = ranks.stopping()
        if stop or done == len(table) or keeper.due():
            keeper.save(done)
        return stop

    return first == len(table) or sample(
        canvas, prepared.planner(), denoise, schedule, timesteps, table, first, after_level
    )


def run_decode(
    prepared: Prepared,
    canvas: Canvas,
    decode: Callable[[Tensor], Tensor],
    output: Output,
    progress: Progress,
    boxes: dict[int, Window],
    remaining: list[int],
) -> bool:
    """Decode the shards that are left, entering each round in the ledger; whether all are done. Collective."""
    card, ranks = prepared.card, canvas.ranks
    lines: list[dict[str, Any]] = []

    def write(shard: int, image: np.ndarray) -> None:
        box = boxes[shard]
        origin = prepared.ownership.shards[shard].scaled(card.factor)
        lines.append(output.write("0", box, image[(slice(None), *box.within(origin))]))

    def after_round(decoded: int) -> bool:
        record(ranks, output, lines)
        progress.advance("decode", decoded, "decoding")
        return ranks.stopping()

    return decode_canvas(
        canvas,
        lambda latents: decode(latents * card.latents_gain),
        patch=card.patch,
        factor=card.factor,
        overlap=int(prepared.job.decode_overlap or 0),
        channels=IMAGE_CHANNELS,
        remaining=remaining,
        write=write,
        after_round=after_round,
    )


def open_output(ranks: Ranks, prepared: Prepared, device: str) -> Output:
    """Create the output, or take up what is there; write the label map. Collective."""
    path = Path(prepared.options.out).resolve()

    def make() -> Output:
        if prepared.state == "replace":
            with lock(path):
                remove(path)
        if prepared.state != "unfinished":
            card = prepared.card
            named = list(zip(card.labels, card.colors, strict=True))
            create(path, prepared.layout, card.pixel_size_um, named, provenance(prepared, device))
        output = Output(path)
        output.held = lock(path)
        kind = output.provenance["device"]
        if kind != device.split(":")[0]:
            raise ValueError(
                f"{path} was begun on {kind} and this run is on {device}, whose last digits differ; "
                f"go on with --device {kind}, or start anew with --resume never"
            )
        output.sweep()
        output.mend_ledger()
        return output

    made = ranks.agree(lambda: make() if ranks.rank == 0 else None)
    output = ranks.agree(lambda: made or Output(path))
    write_labels(ranks, prepared, output)
    return output


def write_labels(ranks: Ranks, prepared: Prepared, output: Output) -> None:
    """Write the label map's shards: every rank its part, where each can read the map in boxes. Collective."""
    job = prepared.job
    done = finished_shards(ranks, output)
    todo = [box for box in output.boxes(0) if (f"{LABELS}/0", box) not in done]
    shared = job.labels is None or reads_in_boxes(Path(job.labels))
    mine = todo[ranks.rank :: ranks.size] if shared else todo if ranks.rank == 0 else []

    def write() -> list[dict[str, Any]]:
        source = label_source(job, prepared.card, check=False) if mine else None
        return [output.write(f"{LABELS}/0", b, source.read(b, 1).astype(np.uint8)) for b in mine if source]

    record(ranks, output, ranks.agree(write))


def provenance(prepared: Prepared, device: str) -> dict[str, Any]:
    """What an output says of its making."""
    return {
        "job": prepared.job.plain(),
        "identity": prepared.identity,
        "seed": prepared.job.seed,
        "device": device.split(":")[0],
        "levels": len(prepared.timesteps),
        "model_hash": prepared.card.hash,
        "versions": {
            "slidefield": engine.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "zarr": ZARR_VERSION,
        },
    }


class Keeper:
    """Checkpoints of the canvas: two slots in turn, and a commit mark that names the whole one."""

    def __init__(self, ranks: Ranks, output: Output, canvas: Canvas, every: float) -> None:
        self.ranks, self.output, self.canvas, self.every = ranks, output, canvas, every
        self.last = time.monotonic()

    def due(self) -> bool:
        """Whether rank 0's clock asks for a checkpoint. Collective."""
        return self.ranks.share(time.monotonic() - self.last >= self.every)

    def save(self, level: int) -> None:
        """Write the canvas before ``level``; all ranks' shards are on disk before the mark is set. Collective."""
        canvas, ownership = self.canvas, self.canvas.ownership
        history = self.ranks.any(bool(canvas.previous))
        shape = (canvas.channels, *ownership.shape)
        slot = self.ranks.on_root(lambda: self.output.begin_checkpoint(shape, ownership.side))

        def write() -> None:
            for name, shards in (("x", canvas.x), ("previous", canvas.previous)):
                for shard, data in shards.items():
                    self.output.write_checkpoint(slot, name, ownership.shards[shard], data.cpu().numpy())

        self.ranks.agree(write)
        self.ranks.on_root(lambda: self.output.commit_checkpoint(slot, level, history))
        self.last = time.monotonic()

    def restore(self) -> int:
        """Fill the canvas from the last checkpoint, or with noise; returns the level to go on from. Collective."""
        canvas, ownership = self.canvas, self.canvas.ownership
        mark = self.ranks.on_root(self.output.checkpoint)
        if mark is None:
            canvas.start()
            return 0

        def read(name: str) -> Shards:
            return {
                s: torch.from_numpy(self.output.read_checkpoint(mark["slot"], name, ownership.shards[s])).to(
                    canvas.device
                )
                for s in ownership.owned(self.ranks.rank)
            }

        canvas.x = self.ranks.agree(lambda: read("x"))
        if mark["history"]:
            canvas.previous = self.ranks.agree(lambda: read("previous"))
        return int(mark["level"])


def finished_shards(ranks: Ranks, output: Output) -> set[tuple[str, Window]]:
    """The (array, box) of every shard in the ledger, read once for all. Collective."""
    return ranks.on_root(lambda: set(output.ledger()))


def record(ranks: Ranks, output: Output, lines: list[dict[str, Any]]) -> None:
    """Gather every rank's finished shards and enter them in the ledger; empties ``lines``. Collective."""
    gathered = [line for part in ranks.collect(lines) for line in part]
    ranks.on_root(lambda: output.record(gathered))
    lines.clear()


def build_pyramids(ranks: Ranks, output: Output) -> None:
    """Make the coarser levels of image and labels, each shard by one rank. Collective."""
    done = finished_shards(ranks, output)
    for level in range(1, len(output.layout.sizes())):
        ranks.barrier()  # the level below is whole
        todo = [
            (prefix, box)
            for prefix in ("", f"{LABELS}/")
            for box in output.boxes(level)
            if (f"{prefix}{level}", box) not in done
        ]
        mine = todo[ranks.rank :: ranks.size]
        lines = ranks.agree(lambda level=level, mine=mine: [output.halve(p, level, b) for p, b in mine])  # type: ignore[misc]
        record(ranks, output, lines)


def sign(output: Output, seconds: dict[str, float], size: int) -> None:
    """Declare the output finished. Rank 0 calls this."""
    output.annotate(state="finished", seconds=seconds, ranks=size)
    output.drop_checkpoints()
