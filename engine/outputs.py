"""An output from its creation to its signature: what every rank writes into it, and what it says of its making."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import engine
from engine.comm import Ranks
from engine.decode import to_label_levels, to_uint8
from engine.geometry import Window
from engine.hierarchy import stage_source
from engine.inputs import LabelSource, Read, instance_source, label_source, latent_labels, read_region
from engine.nuclei import published_channels
from engine.plan import image_box
from engine.prepare import Prepared
from engine.repaint import Repaint
from engine.store import ZARR_VERSION, Drawing, Output, create, lock, reads_in_boxes, remove

WHITE = 255  # of what is not wanted


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
        **(
            {"condition_channels": published_channels(card.semantic_channels)}
            if prepared.inputs.nuclei is not None
            else {}
        ),
        **({"label_stage": prepared.label_stage.identity} if prepared.label_stage else {}),
        **({"label_scale": card.label_scale, "one_hot": card.factor == 1} if card.role == "labels" else {}),
        "versions": {
            "slidefield": engine.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "zarr": ZARR_VERSION,
        },
    }


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
    everywhere = stored_everywhere(prepared)
    mine = todo[ranks.rank :: ranks.size] if everywhere else todo if ranks.rank == 0 else []
    source = ranks.agree(lambda: stored_source(prepared, output) if mine else None)

    def labels_in(box: Window) -> np.ndarray:
        assert source is not None
        if layout.count is None:
            return source.read(0, box, 1).astype(dtype)
        whole = Window(0, 0, *layout.size)
        return np.stack([source.read(image, whole, 1) for image in range(box.y0, box.y1)]).astype(dtype)

    record(ranks, output, ranks.agree(lambda: [output.write(name, box, labels_in(box)) for box in mine]))
    if prepared.label_stage is None:
        return prepared

    def stored(image: int, box: Window, step: int) -> np.ndarray:
        return output.read(name, box)[::step, ::step]

    labels = ranks.on_root(lambda: latent_labels(LabelSource(stored, "sampled"), prepared.frames)[0])
    return replace(prepared, inputs=replace(prepared.inputs, labels=labels), label_stage=None)


def stored_everywhere(prepared: Prepared) -> bool:
    """Whether every rank can read its own part of what is stored, or rank 0 reads a file whole."""
    file = prepared.job.instances if prepared.inputs.nuclei is not None else prepared.job.labels
    return file in (None, "example") or reads_in_boxes(Path(file))


def stored_source(prepared: Prepared, output: Output) -> LabelSource:
    """Where what is stored beside the image comes from."""
    job, card = prepared.job, prepared.card
    if prepared.label_stage is not None:
        return stage_source(Output(Path(prepared.label_stage.options.out).resolve()), card, job.size)
    if prepared.inputs.nuclei is not None:
        return instance_source(job, prepared.inputs.nuclei)
    known = len(card.labels) if prepared.inputs.table is None else len(prepared.inputs.table)
    return label_source(job, card, known, check=False)


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


class Writer:
    """Writes decoded shards, as they belong to one image or to a set; each is called by the shard's one writer.

    Args:
        repaint: what of the image is known.
    """

    def __init__(self, prepared: Prepared, output: Output, drawing: Drawing, repaint: Repaint | None) -> None:
        self.prepared, self.output, self.drawing, self.repaint = prepared, output, drawing, repaint
        self.lines: list[dict[str, Any]] = []
        self.region = read_region(prepared.job) if prepared.job.roi else None

    def box(self, shard: int) -> Window:
        """Where a shard of the canvas lies in the output."""
        prepared = self.prepared
        window = prepared.ownership.shard(shard)
        if prepared.job.count is None:
            return image_box(window, prepared.card.factor, prepared.job.size)
        rows = prepared.frames.frame[0]
        return Window(window.y0 // rows, 0, window.y1 // rows, 1)

    def remaining(self) -> range | np.ndarray:
        """The shards of this drawing that are not yet in the ledger."""
        done = self.output.ledger(self.drawing.attempt)
        chosen = self.drawing.images
        boxes = {int(shard): self.box(int(shard)) for shard in self.prepared.wanted}
        return np.array(
            [
                shard
                for shard, box in boxes.items()
                if (self.output.layout.image, box) not in done
                and (chosen is None or any(box.y0 <= image < box.y1 for image in chosen))
            ],
            np.int64,
        )

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
            part = image[(slice(None), *box.within(prepared.ownership.shard(shard).scaled(card.factor)))]
            part = part if self.repaint is None else self.repaint.blend(box, part)
            part = part if self.region is None else np.where(self.within_region(box), part, np.uint8(WHITE))
        else:
            part = self.images(image, box)
        line = self.output.write(self.output.layout.image, box, part)
        self.lines.append({**line, "attempt": self.drawing.attempt} if self.drawing.attempt else line)

    def taken(self) -> list[dict[str, Any]]:
        """The ledger's lines of what was written since the last call; while others are being written."""
        return [self.lines.pop(0) for _ in range(len(self.lines))]

    def within_region(self, box: Window) -> np.ndarray:
        """bool (h, w): the pixels of the region of interest."""
        assert self.region is not None
        return np.asarray(self.region[box.y0 : box.y1, box.x0 : box.x1]) != 0

    def leave_white(self, shards: Sequence[int]) -> None:
        """Write shards that lie outside the region of interest."""
        for shard in shards:
            box, layout = self.box(shard), self.output.layout
            white = np.full((layout.channels, *box.shape), WHITE, np.uint8)
            self.lines.append(self.output.write(layout.image, box, white))

    def images(self, image: np.ndarray, box: Window) -> np.ndarray:
        """uint8 (images, c, h, w): the images of a shard; those that are not drawn this time as they were."""
        height, width = self.prepared.job.size
        apart = image.reshape(len(image), box.height, -1, image.shape[2]).transpose(1, 0, 2, 3)
        apart = apart[:, :, :height, :width]
        if self.drawing.images is None:
            return apart
        kept = self.output.read(self.output.layout.image, box)
        drawn = np.isin(np.arange(box.y0, box.y1), self.drawing.images)
        return np.where(drawn[:, None, None, None], apart, kept)


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


def sign(output: Output, seconds: dict[str, Any], size: int, rejected: list[int]) -> None:
    """Declare the output finished. Rank 0 calls this.

    Args:
        rejected: how many images of each drawing were not accepted; empty where nobody asked.
    """
    output.annotate(state="finished", seconds=seconds, ranks=size, **({"rejected": rejected} if rejected else {}))
    output.tidy()
