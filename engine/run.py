"""A run: sample the levels, decode the shards, make the pyramid, sign the result."""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import engine
from engine.accept import MOST_DRAWINGS, accepting
from engine.canvas import Canvas, Shards
from engine.comm import Ranks
from engine.decode import decode_canvas, to_label_levels, to_uint8, write_pixels
from engine.denoiser import Denoiser, Network
from engine.geometry import Window
from engine.hierarchy import stage_source
from engine.inputs import LabelSource, Read, condition_of, instance_source, label_source, latent_labels
from engine.models.folder import Model, check_folder, device_of, load_model
from engine.plan import LevelPlan, image_box
from engine.prepare import Prepared
from engine.progress import Progress, clock
from engine.repaint import Repaint
from engine.sampler import sample
from engine.solvers import steps_of
from engine.store import ZARR_VERSION, Output, create, lock, remove


def run(ranks: Ranks, prepared: Prepared) -> bool:
    """Sample and decode. Collective.

    Returns:
        Whether it came to the end; False: it was asked to stop, and left a checkpoint.
    """
    begun = time.monotonic()
    device = common_device(ranks, prepared.job.device)
    torch.set_num_threads(prepared.job.threads)
    ranks.on_root(lambda: [check_folder(card.folder) for card in prepared.cards])
    output = open_output(ranks, prepared, device)
    if prepared.first is not None and prepared.first.state != "finished" and not run(ranks, prepared.first):
        return False
    prepared = write_stored(ranks, prepared, output)
    models = ranks.agree(lambda: load_models(prepared, device))
    spent = {"evaluation": 0.0, "decode": 0.0}
    accepted = {}
    while True:
        drawing = ranks.on_root(output.drawing)
        if not draw(ranks, prepared, models, output, device, drawing, spent):
            return False
        again = judge(ranks, prepared, output, drawing) if prepared.job.accept else []
        accepted[f"rejected of drawing {drawing['attempt']}"] = len(again)
        if not again or drawing["attempt"] + 1 == MOST_DRAWINGS:
            break
        ranks.on_root(lambda again=again, drawing=drawing: output.begin_drawing(drawing["attempt"] + 1, again))  # type: ignore[misc]
    build_pyramids(ranks, output)
    seconds = {"sampling": round(spent["evaluation"], 2), "decoding": round(spent["decode"], 2)}
    seconds["all"] = round(time.monotonic() - begun, 2)
    ranks.on_root(lambda: sign(output, seconds, ranks.size, accepted if prepared.job.accept else {}))
    if ranks.rank == 0:
        print(f"finished {prepared.options.out} in {clock(seconds['all'])}", flush=True)
    return True


def load_models(prepared: Prepared, device: str) -> list[Model]:
    """The model, and the networks of its styles."""
    dtype = getattr(torch, prepared.job.dtype)
    return [load_model(card.folder, dtype, device) for card in prepared.cards]


def network_of(model: Model) -> Network:
    """A model's network, with its embedder before it."""

    def answer(x: Tensor, t: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        if "embedding" not in inputs:
            return model.network(x, t, inputs)
        embedding = inputs["embedding"]
        tokens = model.embed(embedding, inputs.get("region")) if model.embed else embedding[:, None]
        return model.network(x, t, {"tokens": tokens.to(x.dtype)})

    return answer


def draw(
    ranks: Ranks,
    prepared: Prepared,
    models: Sequence[Model],
    output: Output,
    device: str,
    drawing: dict[str, Any],
    spent: dict[str, float],
) -> bool:
    """Sample and decode the image, or the images of a set that are drawn this time. Collective.

    Args:
        drawing: the attempt, and the images that it draws.
        spent: seconds of each kind of work, added to.
    Returns:
        Whether it came to the end.
    """
    job, card, options = prepared.job, prepared.card, prepared.options
    canvas = Canvas(ranks, prepared.ownership, card.channels, job.seed, device, drawing["attempt"])
    keeper = Keeper(ranks, output, canvas, options.checkpoint_every)
    repaint = ranks.agree(lambda: Repaint(prepared)) if job.image else None
    if repaint:
        repaint.fill(canvas, models[0].encode)
    writer = Writer(prepared, output, drawing, repaint)
    remaining = ranks.on_root(writer.remaining)
    if drawing["attempt"] and not remaining:
        return True
    first = keeper.restore()
    progress = begin_progress(ranks, prepared, first, remaining, drawing, device)
    condition = condition_of(prepared.inputs, job, card, prepared.frames, stored_reader(output))
    networks = [network_of(model) for model in models]
    dtype = getattr(torch, job.dtype)
    denoise = Denoiser(networks, condition, card.schedule, int(job.batch_size or 1), dtype, device)
    on_the_way = (
        ("sampling", lambda: run_levels(prepared, canvas, denoise, keeper, progress, first, drawing)),
        ("decoding", lambda: run_decode(prepared, canvas, models[0], progress, writer, remaining, drawing)),
    )
    for what, work in on_the_way:
        if not work():
            progress.end(f"stopped while {what}; {options.out} holds a checkpoint: {way_on(prepared)}")
            return False
    spent.update({kind: spent[kind] + seconds for kind, seconds in progress.spent.items()})
    progress.end()
    return True


def way_on(prepared: Prepared) -> str:
    """How a stopped run is taken up."""
    without = ", without --resume never," if prepared.options.resume == "never" else ""
    return f"the same command{without} goes on from it"


def common_device(ranks: Ranks, name: str) -> str:
    """This rank's device; with ``auto`` the GPUs only if every rank has one, for bytes belong to a kind. Collective."""
    device = ranks.agree(lambda: device_of(name, ranks.local_rank))
    return "cpu" if ranks.any(device == "cpu") else device


def begin_progress(
    ranks: Ranks, prepared: Prepared, first: int, remaining: list[int], drawing: dict[str, Any], device: str
) -> Progress:
    """Say what is to be done and start to count. Collective."""
    job, levels = prepared.job, len(prepared.timesteps)
    evaluations = decodes = 0
    if ranks.rank == 0:
        plan_of = prepared.planner(drawing["images"], drawing["attempt"])
        evaluations = plan_of(first)[0].evaluations * (levels - first) if first < levels else 0
        if prepared.card.factor > 1:
            decodes = sum(int(p.costs.sum()) for p in prepared.decode_plans(remaining, drawing["images"]))
        print(headline(prepared, drawing, ranks.size, device, first, evaluations, decodes), flush=True)
        least = prepared.card.patch * prepared.card.factor
        if min(job.size) < least:
            print(f"smaller than a window of {least} px: sampled on a padded canvas and cropped", flush=True)
    return ranks.agree(lambda: Progress(ranks.rank, evaluations, decodes, prepared.options.json_log))


def headline(
    prepared: Prepared, drawing: dict[str, Any], size: int, device: str, first: int, evaluations: int, decodes: int
) -> str:
    """What a run is about to do, in one line."""
    job = prepared.job
    images = "" if job.count is None else f"{len(drawing['images'] or range(job.count))} images of "
    again = f"drawing {drawing['attempt'] + 1} of " if drawing["attempt"] else ""
    what = "label map, " if prepared.card.role == "labels" else ""
    weight = float(job.guidance or 1)
    guided = "" if weight == 1 else f"guidance {weight:g} (1 is off: omega {weight - 1:g}), "
    return (
        f"{again}{images}{what}{job.size[0]} x {job.size[1]} px, {len(prepared.timesteps)} levels, {guided}"
        f"about {evaluations} evaluations, {decodes} decodes, {size} ranks on {device}"
        + (f", from level {first}" if first else "")
    )


def run_levels(
    prepared: Prepared,
    canvas: Canvas,
    denoise: Denoiser,
    keeper: Keeper,
    progress: Progress,
    first: int,
    drawing: dict[str, Any],
) -> bool:
    """Sample the levels that are left, with checkpoints; whether it came to the end. Collective."""
    ranks, job, schedule, timesteps = canvas.ranks, prepared.job, prepared.card.schedule, prepared.timesteps
    alpha_bar = [schedule.alpha_bar[t] for t in timesteps]
    table = steps_of(str(job.solver), alpha_bar, float(job.eta or 0), schedule.rederive_noise, schedule.variance)

    def after_level(done: int, plan: LevelPlan) -> bool:
        ranks.agree(canvas.check)
        facts = {"level": done, "t": int(timesteps[done - 1]), "windows": len(plan.cover)}
        progress.advance("evaluation", plan.evaluations, f"level {done}/{len(table)}", **facts)
        stop = ranks.stopping()
        if stop or done == len(table) or keeper.due():
            keeper.save(done)
        return stop

    planner = prepared.planner(drawing["images"], drawing["attempt"])
    return first == len(table) or sample(canvas, planner, denoise, schedule, timesteps, table, first, after_level)


def run_decode(
    prepared: Prepared,
    canvas: Canvas,
    model: Model,
    progress: Progress,
    writer: Writer,
    remaining: list[int],
    drawing: dict[str, Any],
) -> bool:
    """Decode the shards that are left, entering each round in the ledger; whether all are done. Collective."""
    card, ranks = prepared.card, canvas.ranks

    def after_round(decoded: int) -> bool:
        record(ranks, writer.output, writer.lines)
        progress.advance("decode", decoded, "decoding")
        return ranks.stopping()

    if model.decode is None:
        return write_pixels(canvas, remaining, writer, after_round)
    decode = model.decode
    cover, pixels = prepared.decode_covers(drawing["images"])
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


class Writer:
    """Writes decoded shards, as they belong to one image or to a set; each is called by the shard's one writer.

    Args:
        repaint: what of the image is known.
    """

    def __init__(self, prepared: Prepared, output: Output, drawing: dict[str, Any], repaint: Repaint | None) -> None:
        self.prepared, self.output, self.drawing, self.repaint = prepared, output, drawing, repaint
        self.lines: list[dict[str, Any]] = []

    def box(self, shard: int) -> Window:
        """Where a shard of the canvas lies in the output."""
        prepared = self.prepared
        window = prepared.ownership.shards[shard]
        if prepared.job.count is None:
            return image_box(window, prepared.card.factor, prepared.job.size)
        rows = prepared.frames.frame[0]
        return Window(window.y0 // rows, 0, window.y1 // rows, 1)

    def remaining(self) -> list[int]:
        """The shards of this drawing that are not yet in the ledger."""
        done = self.output.ledger(self.drawing["attempt"])
        chosen = self.drawing["images"]
        return [
            shard
            for shard in self.prepared.wanted
            if (self.output.layout.image, self.box(shard)) not in done
            and (chosen is None or any(self.box(shard).y0 <= i < self.box(shard).y1 for i in chosen))
        ]

    def __call__(self, shard: int, pixels: Tensor) -> None:
        """Write one shard.

        Args:
            pixels: (c, h, w), about [-1, 1].
        """
        prepared, box = self.prepared, self.box(shard)
        card = prepared.card
        image = (
            to_label_levels(pixels, card.label_count) if card.role == "labels" else to_uint8(pixels, card.pixel_range)
        )
        if prepared.job.count is None:
            part = image[(slice(None), *box.within(prepared.ownership.shards[shard].scaled(card.factor)))]
            part = part if self.repaint is None else self.repaint.blend(box, part)
        else:
            part = self.images(image, box)
        line = self.output.write(self.output.layout.image, box, part)
        self.lines.append({**line, "attempt": self.drawing["attempt"]} if self.drawing["attempt"] else line)

    def images(self, image: np.ndarray, box: Window) -> np.ndarray:
        """uint8 (images, c, h, w): the images of a shard; those that are not drawn this time as they were."""
        height, width = self.prepared.job.size
        apart = image.reshape(len(image), box.height, -1, image.shape[2]).transpose(1, 0, 2, 3)
        apart = apart[:, :, :height, :width]
        if self.drawing["images"] is None:
            return apart
        kept = self.output.read(self.output.layout.image, box)
        drawn = np.isin(np.arange(box.y0, box.y1), self.drawing["images"])
        return np.where(drawn[:, None, None, None], apart, kept)


def judge(ranks: Ranks, prepared: Prepared, output: Output, drawing: dict[str, Any]) -> list[int]:
    """The images of this drawing that are to be drawn again; each rank looks at its share. Collective."""
    job, frames = prepared.job, prepared.frames
    accept = ranks.agree(lambda: accepting(str(job.accept)))
    chosen = drawing["images"] if drawing["images"] is not None else range(frames.images)
    labels = prepared.inputs.labels

    def rejected() -> list[int]:
        found = []
        for index in chosen[ranks.rank :: ranks.size]:
            image = output.read(output.layout.image, Window(index, 0, index + 1, 1))[0]
            label = 0 if labels is None else int(labels[index * frames.frame[0], 0])
            if not accept(image, label):
                found.append(index)
        return found

    again = sorted(index for part in ranks.collect(ranks.agree(rejected)) for index in part)
    if ranks.rank == 0:
        print(f"drawing {drawing['attempt'] + 1}: {len(chosen) - len(again)} of {len(chosen)} accepted", flush=True)
    return again


def stored_reader(output: Output) -> Read | None:
    """A function from a box of an image to what is stored beside it, read in blocks that are kept for a while."""
    layout, side = output.layout, output.layout.chunk
    if layout.labels is None:
        return None
    array = output.array(layout.labels)
    height, width = layout.size

    @lru_cache(maxsize=64)
    def block(image: int, row: int, column: int) -> np.ndarray:
        where = (slice(row * side, (row + 1) * side), slice(column * side, (column + 1) * side))
        return np.asarray(array[where] if layout.count is None else array[(image, *where)])

    def read(image: int, box: Window) -> np.ndarray:
        found = np.empty(box.shape, array.dtype)
        for row in range(box.y0 // side, (box.y1 - 1) // side + 1):
            for column in range(box.x0 // side, (box.x1 - 1) // side + 1):
                place = Window(row * side, column * side, (row + 1) * side, (column + 1) * side)
                common = box & place & Window(0, 0, height, width)
                found[common.within(box)] = block(image, row, column)[common.within(place)]
        return found

    return read


def open_output(ranks: Ranks, prepared: Prepared, device: str) -> Output:
    """Create the output, or take up what is there. Collective."""
    path = Path(prepared.options.out).resolve()

    def make() -> Output:
        if prepared.state == "replace":
            with lock(path):
                remove(path)
        if prepared.state != "unfinished":
            create(path, prepared.layout, prepared.card.pixel_size_um, provenance(prepared, device))
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
    return ranks.agree(lambda: made or Output(path))


def write_stored(ranks: Ranks, prepared: Prepared, output: Output) -> Prepared:
    """Write what is stored beside the image: every rank its part, where each can read the source. Collective.

    Returns:
        The same job; with the label of every latent, where the label map was sampled.
    """
    layout = output.layout
    if layout.labels is None or layout.label is None:
        return prepared
    name, dtype = layout.labels, layout.label.dtype
    done = finished_shards(ranks, output)
    todo = [box for box in layout.boxes() if (name, box) not in done]
    source = ranks.agree(lambda: stored_source(prepared, output))
    mine = todo[ranks.rank :: ranks.size] if source.everywhere else todo if ranks.rank == 0 else []

    def labels_in(box: Window) -> np.ndarray:
        if layout.count is None:
            return source.read(0, box, 1).astype(dtype)
        whole = Window(0, 0, *layout.size)
        return np.stack([source.read(image, whole, 1) for image in range(box.y0, box.y1)]).astype(dtype)

    record(ranks, output, ranks.agree(lambda: [output.write(name, box, labels_in(box)) for box in mine]))
    if prepared.first is None:
        return prepared

    def stored(image: int, box: Window, step: int) -> np.ndarray:
        return output.read(name, box)[::step, ::step]

    labels = ranks.on_root(lambda: latent_labels(LabelSource(stored, "sampled"), prepared.frames)[0])
    return replace(prepared, inputs=replace(prepared.inputs, labels=labels), first=None)


def stored_source(prepared: Prepared, output: Output) -> LabelSource:
    """Where what is stored beside the image comes from."""
    job, card = prepared.job, prepared.card
    if prepared.first is not None:
        return stage_source(Output(Path(prepared.first.options.out).resolve()), card, job.size)
    if prepared.inputs.nuclei is not None:
        return instance_source(job, prepared.inputs.nuclei)
    known = len(card.labels) if prepared.inputs.table is None else len(prepared.inputs.table)
    return label_source(job, card, known, check=False)


def provenance(prepared: Prepared, device: str) -> dict[str, Any]:
    """What an output says of its making."""
    card = prepared.card
    return {
        "kind": "image" if prepared.job.count is None else "set",
        "job": prepared.job.plain(),
        "identity": prepared.identity,
        "seed": prepared.job.seed,
        "device": device.split(":")[0],
        "levels": len(prepared.timesteps),
        "model_hash": card.hash,
        **({"label_scale": card.label_scale, "one_hot": card.factor == 1} if card.role == "labels" else {}),
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
        slot = self.ranks.on_root(lambda: self.output.begin_checkpoint(shape, ownership.sides))

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
    done, layout = finished_shards(ranks, output), output.layout
    for level in range(1, len(layout.sizes())):
        ranks.barrier()  # the level below is whole
        todo = [
            (finest, box)
            for finest in (layout.image, layout.labels)
            for box in layout.boxes(level)
            if finest and (layout.level(finest, level), box) not in done
        ]
        mine = todo[ranks.rank :: ranks.size]
        lines = ranks.agree(lambda level=level, mine=mine: [output.halve(name, level, b) for name, b in mine])  # type: ignore[misc]
        record(ranks, output, lines)


def sign(output: Output, seconds: dict[str, float], size: int, accepted: dict[str, int]) -> None:
    """Declare the output finished. Rank 0 calls this."""
    output.annotate(state="finished", seconds=seconds, ranks=size, **({"accept": accepted} if accepted else {}))
    output.drop_checkpoints()
    shutil.rmtree(output.private / "labels.zarr", ignore_errors=True)
