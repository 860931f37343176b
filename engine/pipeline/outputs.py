"""An output from its creation to its signature: the parts that each rank writes, and the provenance."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor

import engine
from engine.diffusion.boxes import ReadImageBox, in_blocks
from engine.diffusion.latent_map import LatentMap
from engine.distributed.ranks import Ranks
from engine.inputs.input_file import InputFile
from engine.inputs.labels import label_count, label_source
from engine.inputs.masks import roi_map
from engine.inputs.nuclei import published_channels
from engine.inputs.semantic import instance_source, style_map
from engine.inputs.values import LabelSource
from engine.models.card import ModelCard
from engine.options import names_function
from engine.pipeline.decode import to_label_levels, to_uint8
from engine.pipeline.inpaint import Inpainting
from engine.pipeline.label_stage import stage_source
from engine.pipeline.mending import look_at, named
from engine.pipeline.output_checks import what_is_there
from engine.pipeline.plane_labels import plane_source
from engine.pipeline.prepared import Prepared
from engine.pipeline.progress import Progress
from engine.planning.geometry import Box
from engine.planning.ownership import image_box
from engine.storage.checkpoint import SamplingRound
from engine.storage.create import create
from engine.storage.files import lock, remove
from engine.storage.metadata import ROOT, restore_metadata
from engine.storage.output import Output
from engine.storage.readers import reads_in_boxes
from engine.storage.remote_output import claim, provenance_in
from engine.storage.remote_shards import RemoteShards, Unreachable
from engine.storage.zarr_setup import ZARR_VERSION

WHITE = 255  # value of pixels outside the region of interest
KEPT = 64  # number of chunks of labels that a rank keeps in memory


def open_output(ranks: Ranks, prepared: Prepared, device: str) -> Output:
    """Create the output, or take up what is there. Collective."""
    path = Path(prepared.options.out).resolve()

    def make() -> Output:
        if prepared.state == "replace":
            replace_output(path)
        if prepared.state not in ("absent", "replace"):
            return take()
        there = what_is_there(path)
        create(path, prepared.layout, prepared.card.pixel_size_um, provenance(prepared, device))
        try:
            return take()
        except BaseException:
            leave_nothing(path, there)
            raise

    def take() -> Output:
        held = lock(path)
        try:
            restore_metadata(path)
            output = Output(path)
            check_device(output, device)
            if isinstance(output.shards, RemoteShards):
                claim_store(prepared, output, output.shards)
            output.sweep()
            output.ledger.merge()
        except BaseException:
            held.close()
            raise
        output.held = held
        return output

    made = ranks.agree(lambda: make() if ranks.rank == 0 else None)
    output = ranks.agree(lambda: made or Output(path, ranks.rank))
    if prepared.state in ("unfinished", "damaged"):
        take_up(ranks, output)
    output.earlier = ranks.on_root(output.ledger.latest)  # a byte a shard, of arrays that earlier runs wrote to
    return output


def claim_store(prepared: Prepared, output: Output, shards: RemoteShards) -> None:
    """Put the metadata where the shards will be, which shows whether they can be; rank 0 calls this.

    Raises:
        ValueError: another run began an output there meanwhile, or the store cannot be written.
    """
    ours = output.provenance["store_id"]
    if prepared.state == "replace" and provenance_in(shards) is not None:
        shards.clear(last=ROOT)
    try:
        claim(shards, output.path, ours)
    except Unreachable:
        with suppress(ValueError):
            if prepared.state in ("absent", "replace") and (provenance_in(shards) or {}).get("store_id") == ours:
                shards.clear(last=ROOT)
        raise


def leave_nothing(path: Path, there: Path) -> None:
    """Remove an output that was just made, and the folders that were made for it.

    Args:
        there: The nearest folder above that was there before.
    """
    remove(path)
    for folder in path.parents:
        if folder == there:
            return
        folder.rmdir()


def replace_output(path: Path) -> None:
    """Remove what lies where the output is to be, if no run is writing it. Rank 0 calls this."""
    if not path.exists() and not path.is_symlink():  # what is replaced lies in a store
        return
    if not (path / "slidefield").is_dir():
        remove(path)
        return
    with lock(path):
        remove(path)


def take_up(ranks: Ranks, output: Output) -> None:
    """Go on with an output: what is damaged of it is forgotten, to be made anew. Collective."""
    damaged = look_at(ranks, output, read=True)

    def forget() -> None:
        output.forget([(shard.array, shard.box) for shard in damaged])
        if damaged:
            print(f"{output.path} is damaged: {named(damaged)}; made anew", flush=True)
        if output.finished:
            output.annotate(state="unfinished")

    ranks.on_root(forget)
    if output.finished:  # here, on the ranks that did not write it
        output.provenance["state"] = "unfinished"


def check_device(output: Output, device: str) -> None:
    """Refuse to resume an output that was begun on another kind of device.

    Raises:
        ValueError: naming both.
    """
    kind = output.provenance["device"]
    if kind != device.split(":")[0]:
        raise ValueError(
            f"{output.path} was begun on {kind} and this run is on {device}, whose last digits differ; "
            f"resume it with `device` {kind}, or start anew with `resume` never"
        )


def provenance(prepared: Prepared, device: str) -> dict[str, Any]:
    """The facts that an output keeps about how it was made."""
    card = prepared.card
    return {
        "kind": "image" if prepared.job.count is None else "set",
        "job": prepared.plain_job,
        "identity": prepared.identity,
        "seed": prepared.job.seed,
        "device": device.split(":")[0],
        "levels": len(prepared.timesteps),
        "model_hash": card.hash,
        "window": {"patch": card.patch, "factor": card.factor},
        "pixel_size_um": card.pixel_size_um,
        **(
            {"condition_channels": published_channels(card.semantic_channels)}
            if prepared.inputs.nuclei is not None
            else {}
        ),
        **sources_of(prepared),
        **({"label_stage": prepared.label_stage.identity} if prepared.label_stage else {}),
        **({"in_turn": prepared.job.in_turn()} if prepared.job.in_turn() else {}),
        **facts_of_label_maps(card),
        "versions": present_versions(),
        **({"store": prepared.store, "store_id": uuid4().hex} if prepared.store else {}),
    }


def facts_of_label_maps(card: ModelCard) -> dict[str, Any]:
    """How a label model's maps are read: facts of the provenance; none of other models."""
    return {"label_scale": card.label_scale, "one_hot": card.factor == 1} if card.role == "labels" else {}


def sources_of(prepared: Prepared) -> dict[str, Any]:
    """What each image of a set of nuclei is made from, where that has names or was drawn: facts of the provenance."""
    sources = prepared.inputs.sources
    if sources is None:
        return {}
    return {"sources": {"names": sources.names, "chosen": sources.chosen, "references": sources.references}}


def present_versions() -> dict[str, str]:
    """The versions of this program and of what its bytes depend on."""
    return {
        "slidefield": engine.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "zarr": ZARR_VERSION,
    }


def copy_inputs(ranks: Ranks, prepared: Prepared, output: Output) -> Prepared:
    """Copy files that can only be read whole to where every rank reads them by box. Collective.

    Rank 0 has each of them in memory from when it was checked, and lets go of it here. Label and instance maps are not
    among them, because they are stored beside the image.

    Returns:
        The same job, whose inputs are read from the copies.
    """
    inputs = prepared.inputs

    def copy() -> dict[str, InputFile]:
        copies = {}
        for name, file in inputs.files.items():
            if file.in_memory:
                copies[name] = replace(file, path=Path(output.keep_input(name, file.source)))
            file.close()
        return copies

    copies = ranks.on_root(copy)
    if not copies:
        return prepared
    files = {**inputs.files, **copies}
    roi = roi_map(files["roi"], prepared.frames) if "roi" in files else None
    styles = style_map(files["style_map"], prepared.job) if "style_map" in files else None
    labels = LatentMap(prepared.frames, styles.read) if styles else inputs.labels
    return replace(prepared, inputs=replace(inputs, files=files, roi=roi, labels=labels))


# ---- labels, classes or nuclei beside the image -------------------------------------------------


def write_label_array(ranks: Ranks, prepared: Prepared, output: Output) -> Prepared:
    """Store the labels, classes or nuclei beside the image: each rank its part, where all can read them. Collective.

    Returns:
        The same job; a label map that was sampled, or is a file's or a function's, is from now on read from the output.
    """
    layout = output.layout
    if layout.labels is None or layout.label is None:
        return prepared
    name, dtype = layout.labels, layout.label.dtype
    by_all = every_rank_reads_labels(prepared)
    turn, turns = (ranks.rank, ranks.size) if by_all else (0, 1)
    mine = unfinished_shards(output, [name], 0, turn, turns) if by_all or ranks.rank == 0 else iter(())
    job = prepared.job
    drawn = prepared.label_stage is None and job.label_model is None and job.labels in (None, "example")
    if drawn:  # of the others the run reads what its region does not need
        mine = ((array, box) for array, box in mine if layout.expects(box))

    def write() -> None:
        source = None  # opened by ranks that have something to write, and by no others
        for _, box in mine:
            source = source or label_array_source(prepared, output)
            output.write(name, box, labels_in(source, box))

    def labels_in(source: LabelSource, box: Box) -> np.ndarray:
        return layout.assemble(box, lambda image, part: source.read(image, part, 1)).astype(dtype)

    ranks.agree(write)
    if drawn:
        return prepared
    read = label_array_reader(output)
    assert read is not None
    labels = LatentMap(prepared.frames, lambda image, box, step: read(image, box)[::step, ::step])
    return replace(prepared, inputs=replace(prepared.inputs, labels=labels), label_stage=None)


def within_region(prepared: Prepared, box: Box) -> np.ndarray:
    """bool (h, w): the pixels of the region of interest, which the job must have."""
    return np.asarray(prepared.inputs.files["roi"].array[box.y0 : box.y1, box.x0 : box.x1]) != 0


def write_region(ranks: Ranks, prepared: Prepared, output: Output) -> None:
    """Store the region of interest beside the image, 1 inside: each rank its part. Collective."""
    name = output.layout.roi
    if name is None:
        return

    def write() -> None:
        for _, box in unfinished_shards(output, [name], 0, ranks.rank, ranks.size):
            output.write(name, box, within_region(prepared, box).astype(np.uint8))

    ranks.agree(write)


def clear_labels_outside_region(ranks: Ranks, prepared: Prepared, output: Output) -> None:
    """Set the stored labels to 0 outside the region of interest, once the image was sampled from them. Collective."""
    name = output.layout.labels
    if name is None or "roi" not in prepared.inputs.files:
        return

    def clear() -> None:
        boxes = output.layout.boxes()
        for index in range(ranks.rank, len(boxes), ranks.size):
            box = boxes[index]
            inside = within_region(prepared, box)
            if not inside.all():
                labels = output.read(name, box)
                output.write(name, box, labels * inside.astype(labels.dtype), round_index=1)  # the ledger's later line

    ranks.agree(clear)


def lacks_labels(output: Output) -> bool:
    """Whether labels beside the image are still to be written. Local."""
    labels = output.layout.labels
    return labels is not None and next(unfinished_shards(output, [labels], 0, 0, 1), None) is not None


def unfinished_shards(
    output: Output, finest: Sequence[str], level: int, turn: int, turns: int
) -> Iterator[tuple[str, Box]]:
    """Every ``turns``-th shard of a pyramid level, from the ``turn``-th on, that no earlier run finished.

    Args:
        finest: Names of the finest arrays of the pyramids.
    Returns:
        (name of the finest array, box).
    """
    boxes = output.layout.boxes(level)
    for number in range(turn, len(finest) * len(boxes), turns):
        array, index = divmod(number, len(boxes))
        done = output.earlier.get(output.layout.level(finest[array], level))
        if done is None or done[index] < 0:
            yield finest[array], boxes[index]


def every_rank_reads_labels(prepared: Prepared) -> bool:
    """Whether every rank can read its own part of the label or instance map; if not, rank 0 reads the file whole."""
    file = prepared.job.instances if prepared.inputs.nuclei is not None else prepared.job.labels
    return file in (None, "example") or names_function(file) or reads_in_boxes(Path(file))


def label_array_source(prepared: Prepared, output: Output) -> LabelSource:
    """Where the labels, classes or nuclei that are stored beside the image come from."""
    job, card = prepared.job, prepared.card
    if prepared.label_stage is not None:
        return stage_source(Output(Path(prepared.label_stage.options.out).resolve()), card, job.size)
    if job.label_model and prepared.plane is not None:
        y, x = (n * card.factor for n in prepared.frames.corner)
        return plane_source(prepared.plane, card, (y, x))
    if prepared.inputs.nuclei is not None:
        return instance_source(job, prepared.inputs.nuclei)
    return label_source(job, card, label_count(card, prepared.inputs.table), prepared.frames.corner)


def label_array_reader(output: Output) -> ReadImageBox | None:
    """A reader of what is stored beside the images, which keeps chunks for a while; None: nothing is."""
    layout = output.layout
    if layout.labels is None:
        return None
    array = output.array(layout.labels)

    def read(image: int, box: Box) -> np.ndarray:
        return np.asarray(array[layout.index_in(image, box)])

    return in_blocks(read, layout.size, array.dtype, layout.chunk, KEPT)


class ImageWriter:
    """Writes decoded shards of one image or of a set; the rank that writes a shard calls it with that shard.

    Args:
        inpainting: The known image and the mask; None: everything is sampled.
    """

    def __init__(
        self, prepared: Prepared, output: Output, sampling_round: SamplingRound, inpainting: Inpainting | None
    ) -> None:
        self.prepared, self.output, self.sampling_round, self.inpainting = prepared, output, sampling_round, inpainting

    def box(self, shard: int) -> Box:
        """The box of the output that a shard of the canvas fills."""
        prepared = self.prepared
        window = prepared.ownership.shard(shard)
        if prepared.job.count is None:
            return image_box(window, prepared.card.factor, prepared.job.size)
        rows = prepared.frames.frame[0]
        return Box(window.y0 // rows, 0, window.y1 // rows, 1)

    def remaining(self) -> range | np.ndarray:
        """The shards of this round that no earlier run finished, in order: the same on every rank. Local.

        Returns:
            int64 (shards,), or a range where that is enough.
        """
        wanted, layout, images = self.prepared.wanted, self.output.layout, self.sampling_round.images
        done = self.output.earlier.get(layout.image)
        if done is None and images is None:
            return wanted
        if done is not None and self.prepared.cone is not None:
            done = done[wanted]
        # Else the wanted shards of the canvas are the shards of the output, in the same order.
        left = np.ones(len(wanted), bool) if done is None else done < self.sampling_round.index
        if images is not None:
            left &= np.isin(np.arange(len(wanted)), layout.shards_with(images))
        return np.asarray(wanted)[left]

    def __call__(self, shard: int, pixels: Tensor) -> None:
        """Write one shard.

        Args:
            pixels: float32 (c, h, w), about [-1, 1].
        """
        prepared, box = self.prepared, self.box(shard)
        card = prepared.card
        image = (
            to_label_levels(pixels, card.label_count) if card.role == "labels" else to_uint8(pixels, card.pixel_range)
        )
        if prepared.job.count is None:
            part = image[(slice(None), *box.within(prepared.ownership.shard(shard).scaled(card.factor)))]
            part = part if self.inpainting is None else self.inpainting.blend(box, part)
            if "roi" in prepared.inputs.files:
                part = np.where(within_region(prepared, box), part, np.uint8(WHITE))
        else:
            part = self.images(image, box)
        self.output.write(self.output.layout.image, box, part, self.sampling_round.index)

    def leave_white(self, shards: Sequence[int]) -> None:
        """Write shards that lie outside the region of interest."""
        for shard in shards:
            box, layout = self.box(shard), self.output.layout
            white = np.full((layout.channels, *box.shape), WHITE, np.uint8)
            self.output.write(layout.image, box, white)

    def images(self, image: np.ndarray, box: Box) -> np.ndarray:
        """uint8 (images, c, h, w): the images of a shard; those that this round does not sample stay as they were."""
        height, width = self.prepared.job.size
        apart = image.reshape(len(image), box.height, -1, image.shape[2]).transpose(1, 0, 2, 3)
        apart = apart[:, :, :height, :width]
        if self.sampling_round.images is None:
            return apart
        kept = self.output.read(self.output.layout.image, box)
        drawn = np.isin(np.arange(box.y0, box.y1), self.sampling_round.images)
        return np.where(drawn[:, None, None, None], apart, kept)


def build_pyramids(ranks: Ranks, output: Output, progress: Progress) -> None:
    """Make the coarser levels of image and labels, each shard by one rank. Collective."""
    layout, done = output.layout, 0
    levels = range(1, len(layout.sizes()))
    progress.begin("pyramid")
    progress.expect("shard", len(layout.finest) * sum(len(layout.boxes(level)) for level in levels))

    def build(level: int) -> None:
        nonlocal done
        for name, box in unfinished_shards(output, layout.finest, level, ranks.rank, ranks.size):
            output.halve(name, level, box)
            done += ranks.size
            progress.within("shard", done)

    for level in levels:
        ranks.barrier()  # until the level below is whole
        ranks.agree(partial(build, level))


def sign(output: Output, seconds: dict[str, Any], size: int, rejected: Sequence[int], scores: Sequence[float]) -> None:
    """Declare the output finished. Rank 0 calls this.

    Args:
        seconds: Seconds of the run, by part and kind of work.
        size: Number of ranks.
        rejected: Number of images of each round that were not accepted; empty where all are.
        scores: The score of each image by the rule that accepted it; empty where it has none.
    """
    output.ledger.merge(check=True)
    lost = next(output.ledger.lacking(output.ledger.latest()), None)
    if lost:
        raise ValueError(
            f"{output.where(*lost)} was there and is gone; give the same command again to make it anew, "
            "or start anew with `resume` never"
        )
    if other := len(output.ledger.made_otherwise()):
        was, versions = output.provenance["versions"], present_versions()
        now = ", ".join(f"{name} {was.get(name)} then, {versions[name]} now" for name in ("torch", "numpy"))
        print(f"{other} shards were made anew with other bytes than the ledger had of them ({now})", flush=True)
    facts = {} if "seconds" in output.provenance else {"seconds": seconds, "ranks": size}  # a mended one keeps its own
    facts |= {"rejected": rejected} if rejected and facts else {}
    facts |= {"scores": scores} if scores and facts else {}
    output.annotate(state="finished", **facts)
    output.tidy()
