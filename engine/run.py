"""A run: sample the levels, decode the shards, make the pyramid, sign the result."""

from __future__ import annotations

import platform
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

import engine
from engine.canvas import Canvas, Shards
from engine.comm import Ranks
from engine.decode import decode_canvas
from engine.denoiser import Denoiser
from engine.geometry import Window
from engine.job import RunOptions
from engine.models.folder import device_of, load_model
from engine.plan import LevelPlan, image_box
from engine.prepare import IMAGE_CHANNELS, Prepared, label_source
from engine.progress import Progress
from engine.sampler import sample
from engine.solvers import steps_of
from engine.store import LABELS, ZARR_VERSION, Output, create, lock, remove


def run(ranks: Ranks, prepared: Prepared) -> bool:
    """Sample and decode. Collective.

    Returns:
        Whether it came to the end; False: it was asked to stop, and left a checkpoint.
    """
    job, card, options = prepared.job, prepared.card, prepared.options
    device = ranks.agree(lambda: device_of(job.device, ranks.local_rank))
    if ranks.any(device == "cpu"):  # auto: all or none, for the bytes depend on the kind of device
        device = "cpu"
    torch.set_num_threads(job.threads)
    ranks.catch_signals()
    begun = time.monotonic()
    output = open_output(ranks, prepared)
    model = ranks.agree(lambda: load_model(card.folder, getattr(torch, job.dtype), device))

    schedule, timesteps = card.schedule, prepared.timesteps
    table = steps_of(
        str(job.solver), [schedule.alpha_bar[t] for t in timesteps], float(job.eta or 0), schedule.rederive_noise
    )
    canvas = Canvas(ranks, prepared.ownership, card.channels, job.seed, device)
    denoise = Denoiser(
        model.network, prepared.condition, schedule, int(job.batch_size or 1), getattr(torch, job.dtype), device
    )
    keeper = Keeper(ranks, output, canvas, options.checkpoint_every)
    first = keeper.restore()
    ledger = ranks.share(set(output.ledger()) if ranks.rank == 0 else set())
    boxes = {s: image_box(prepared.ownership.shards[s], card.factor, job.size) for s in prepared.wanted}
    remaining = [s for s in prepared.wanted if ("0", boxes[s]) not in ledger]
    about = prepared.planner()(first)[0].evaluations * (len(table) - first)
    decodes = sum(int(plan.costs.sum()) for plan in prepared.decode_plans(remaining)) if ranks.rank == 0 else 0
    progress = Progress(ranks.rank, about, decodes, options.json_log)
    if ranks.rank == 0:
        print(
            f"{job.size[0]} x {job.size[1]} px, {len(table)} levels, about {about} evaluations, "
            f"{decodes} decodes, {ranks.size} ranks on {device}" + (f", from level {first}" if first else ""),
            flush=True,
        )

    def after_level(level: int, plan: LevelPlan) -> bool:
        t = int(timesteps[level - 1])
        facts = {"level": level, "t": t, "windows": len(plan.cover)}
        progress.advance("evaluation", plan.evaluations, f"level {level}/{len(table)}", **facts)
        stop = ranks.stopping()
        if stop or level == len(table) or keeper.due():
            keeper.save(level)
        return stop

    if first < len(table) and not sample(
        canvas, prepared.planner(), denoise, schedule, timesteps, table, first, after_level
    ):
        progress.end(f"stopped; {options.out} holds a checkpoint: the same command goes on from it")
        return False

    new_lines: list[dict[str, Any]] = []

    def write(shard: int, image: np.ndarray) -> None:
        box = boxes[shard]
        origin = prepared.ownership.shards[shard].scaled(card.factor)
        new_lines.append(output.write("0", box, image[(slice(None), *box.within(origin))]))

    def after_round(decoded: int) -> bool:
        record(ranks, output, new_lines)
        progress.advance("decode", decoded, "decoding")
        return ranks.stopping()

    whole = decode_canvas(
        canvas,
        model.decode,
        patch=card.patch,
        factor=card.factor,
        overlap=int(job.decode_overlap or 0),
        channels=IMAGE_CHANNELS,
        remaining=remaining,
        write=write,
        after_round=after_round,
    )
    if not whole:
        progress.end(f"stopped while decoding; {options.out} holds a checkpoint: the same command goes on from it")
        return False
    build_pyramids(ranks, output)
    seconds = {"sampling": round(progress.spent["evaluation"], 2), "decoding": round(progress.spent["decode"], 2)}
    seconds["all"] = round(time.monotonic() - begun, 2)
    ranks.agree(lambda: sign(output, prepared, seconds, ranks.size, device) if ranks.rank == 0 else None)
    progress.end(f"finished {options.out} in {Progress.clock(seconds['all'])}")
    return True


def open_output(ranks: Ranks, prepared: Prepared) -> Output:
    """Create the output, or take up what is there; write the label map. Collective."""
    path = Path(prepared.options.out)

    def make() -> Output:
        if prepared.state == "replace":
            with lock(path):
                remove(path)
        if prepared.state != "unfinished":
            card = prepared.card
            named = list(zip(card.labels, card.colors, strict=True))
            create(path, prepared.layout, card.pixel_size_um, named, provenance(prepared))
        output = Output(path)
        output.held = lock(path)
        output.sweep()
        output.mend_ledger()
        source, done = label_source(prepared.job, prepared.card), output.ledger()
        for box in output.boxes(0):
            if (f"{LABELS}/0", box) not in done:
                output.record([output.write(f"{LABELS}/0", box, source.read(box).astype(np.uint8))])
        return output

    made = ranks.agree(lambda: make() if ranks.rank == 0 else None)
    return made or Output(path)


def provenance(prepared: Prepared) -> dict[str, Any]:
    """What an output says of its making."""
    job = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(prepared.job).items()}
    return {
        "job": job,
        "identity": prepared.identity,
        "seed": prepared.job.seed,
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
        self.ranks.agree(lambda: self.output.commit_checkpoint(slot, level, history) if self.ranks.rank == 0 else None)
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


def record(ranks: Ranks, output: Output, lines: list[dict[str, Any]]) -> None:
    """Gather every rank's finished shards and enter them in the ledger; empties ``lines``. Collective."""
    gathered = [line for part in ranks.collect(lines) for line in part]
    ranks.agree(lambda: output.record(gathered) if ranks.rank == 0 else None)
    lines.clear()


def build_pyramids(ranks: Ranks, output: Output) -> None:
    """Make the coarser levels of image and labels, each shard by one rank. Collective."""
    done = ranks.share(set(output.ledger()) if ranks.rank == 0 else set())
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


def sign(output: Output, prepared: Prepared, seconds: dict[str, float], size: int, device: str) -> None:
    """Declare the output finished. Rank 0 calls this."""
    output.annotate(state="finished", seconds=seconds, ranks=size, device=device)
    output.drop_checkpoints()


def preview(ranks: Ranks, options: RunOptions) -> None:
    """Write a picture beside the output, on rank 0. Collective."""
    picture = options.preview or str(Path(options.out).with_suffix(".png"))
    if picture != "none":
        ranks.agree(lambda: write_preview(Path(options.out), Path(picture)) if ranks.rank == 0 else None)


def write_preview(path: Path, picture: Path, most: int = 2048) -> None:
    """A PNG of the finest pyramid level of at most ``most`` px a side."""
    from PIL import Image

    output = Output(path)
    sizes = output.layout.sizes()
    level = next((i for i, size in enumerate(sizes) if max(size) <= most), len(sizes) - 1)
    pixels = output.read(str(level), Window(0, 0, *sizes[level]))
    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    temporary = picture.with_name(picture.name + ".partial")
    image.save(temporary, format="PNG")
    temporary.rename(picture)
    print(f"{picture} shows it", flush=True)
