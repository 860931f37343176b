"""What a job's files hold: read and checked on rank 0, then turned into the condition on every rank."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from engine.conditions import ClassMap, Condition, EmbeddingGrid, LabelMap, SemanticMap, example_labels
from engine.cover import LARGEST_LABEL
from engine.geometry import Frames, Window, grid
from engine.job import SampleJob
from engine.latent_map import LatentMap, ReadSteps
from engine.models.card import CLASSES, Card
from engine.nuclei import Nuclei, published_channels, scan_nuclei, scan_stack
from engine.store import LabelArray, read_array, read_integers, read_picture, reads_in_boxes

READ_SIDE = 2048  # px of a label map read at once
READ_BYTES = 2**27  # of a file read at once
Read = Callable[[int, Window], np.ndarray]  # a box of an image of the job


@dataclass(frozen=True)
class Inputs:
    """What the files hold: plain values, sent from rank 0 to all.

    Args:
        hashes: of the files' contents, by what they are.
        stored: what is stored beside the image; None: nothing.
        labels: of the latents of the canvas; None: 0 throughout, or not known yet.
        grid, region: embeddings.
        table: of the classes.
        nuclei: of the instance map.
        roi: 1 at the latents of the region of interest; None: everywhere.
    """

    hashes: dict[str, str] = field(default_factory=dict)
    stored: LabelArray | None = None
    labels: LatentMap | None = None
    grid: np.ndarray | None = None
    region: np.ndarray | None = None
    table: np.ndarray | None = None
    nuclei: Nuclei | None = None
    roi: LatentMap | None = None

    @property
    def nbytes(self) -> int:
        nuclei = None if self.nuclei is None else self.nuclei.table
        held = (self.labels, self.grid, self.region, self.table, nuclei, self.roi)
        return sum(array.nbytes for array in held if array is not None)


class LabelSource(NamedTuple):
    """The label map of the images at full size: plain values.

    Args:
        read: (image, box, step) -> every ``step``-th label of a box, from its corner.
        identity: what tells it from another map, without reading it; empty: its content does.
    """

    read: ReadSteps
    identity: str


@dataclass(frozen=True)
class MapFile:
    """A map of the canvas in a file, or a stack of one an image; opened where it is first read, and sent as its name.

    Args:
        option: of the command line, for messages.
        size: of the canvas: a map of another size is read at the nearest pixels.
        stack: whether it may be a stack.
        known: values from 0 on that there are; None: any will do.
        names: of the values, for messages.
    """

    path: Path
    option: str
    size: tuple[int, int]
    stack: bool = False
    known: int | None = None
    names: tuple[str, ...] = ()

    @cached_property
    def array(self) -> np.ndarray:
        return read_integers(self.path, self.option, self.stack)

    def read(self, image: int, box: Window, step: int) -> np.ndarray:
        """Every ``step``-th value of a box of an image.

        Raises:
            ValueError: a value that there is not.
        """
        height, width = self.array.shape[-2:]
        rows = np.arange(box.y0, box.y1, step) * height // self.size[0]
        columns = np.arange(box.x0, box.x1, step) * width // self.size[1]
        of_image = () if self.array.ndim == 2 else (image,)
        part = self.array[(*of_image, slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))]
        values = np.asarray(part)[np.ix_(rows - rows[0], columns - columns[0])]
        if self.known is not None and (wrong := (values < 0) | (values >= self.known)).any():
            row, column = (int(v[0]) for v in np.nonzero(wrong))
            which = f", map {image}," if self.array.ndim > 2 else ""
            listed = ", ".join(f"{i} {name}" for i, name in enumerate(self.names))
            raise ValueError(
                f"{self.option} {self.path}{which} has value {int(values[row, column])} at row {rows[row]}, "
                f"column {columns[column]}; the model knows {listed}"
            )
        return values

    def __reduce__(self) -> tuple[Any, ...]:
        return MapFile, (self.path, self.option, self.size, self.stack, self.known, self.names)


def read_inputs(job: SampleJob, card: Card, frames: Frames) -> Inputs:
    """Read and check all files that a job names, but for its in-painting. Rank 0 calls this.

    Raises:
        ValueError: a file that does not suit the model or the canvas, with the way out.
    """
    if card.condition == "embedding":
        return read_embeddings(job, card, frames)
    if card.condition == "semantic":
        return read_semantic(job, card, frames)
    if card.condition == "none":
        return Inputs()
    table, known, hashes = None, len(card.labels), {}
    if card.condition == "class" and card.embedding_width:
        table = read_class_table(job, card)
        known = len(table)
        hashes["embeddings_hash"] = digest_of(table)
    entries = tuple(zip(card.labels, card.colors, strict=True)) if known == len(card.labels) else ()
    stored = LabelArray("tissue" if card.condition == "label-map" else "classes", "uint8", entries)
    if job.label_model:
        return Inputs({}, stored)
    source = label_source(job, card, known)
    digest = labels_digest(source, frames)
    return Inputs({**hashes, "labels_hash": digest}, stored, LatentMap(frames, source.read), table=table)


# ---- labels and classes -------------------------------------------------------------------------


def label_source(job: SampleJob, card: Card, known: int) -> LabelSource:
    """Where the label map comes from: a file, labels throughout, or the drawn example.

    Args:
        known: how many labels the model has; other values are refused where they are read.
    Raises:
        ValueError: a file that is no label map of this size.
    """
    drawn = card.condition == "label-map" and known >= 5 and job.image is None
    if job.label is not None or (job.labels is None and not drawn):
        labels = job.label if isinstance(job.label, tuple) else (job.label or 0,)
        if max(labels) >= known:
            raise ValueError(f"label is {max(labels)} but the model knows {known} classes: 0 to {known - 1}")
        return LabelSource(partial(uniform_labels, labels), f"label {','.join(map(str, labels))}")
    if job.labels in (None, "example"):
        if known < 5:
            raise ValueError(
                f"--labels example draws 5 labels but the model knows {known}; pass a label map, or --label N"
            )
        return LabelSource(partial(example_of_image, job.size[0]), "example")
    path = Path(str(job.labels))
    file = MapFile(path, "--labels", job.size, job.count is not None, known, card.labels)
    check_size(file.array.shape, job, f"label map {path}", "; or --resize-labels nearest", job.resize_labels)
    return LabelSource(file.read, "")


def uniform_labels(labels: tuple[int, ...], image: int, box: Window, step: int) -> np.ndarray:
    return np.full((-(-box.height // step), -(-box.width // step)), labels[image % len(labels)], np.uint8)


def example_of_image(height: int, image: int, box: Window, step: int) -> np.ndarray:
    """The drawn example; the images of a set lie below one another in it."""
    rows = image * (-(-height // step) * step)
    return example_labels(Window(box.y0 + rows, box.x0, box.y1 + rows, box.x1), step)


def check_size(shape: tuple[int, ...], job: SampleJob, what: str, way: str = "", resize: str | None = None) -> None:
    """Refuse a map of another size than the canvas, or a stack of another length than the set."""
    height, width = shape[-2:]
    if (height, width) != job.size and resize is None:
        raise ValueError(
            f"{what} is {height} x {width} px but the canvas is {job.size[0]} x {job.size[1]} px; "
            f"pass --size {height}x{width}{way}"
        )
    if len(shape) == 3 and shape[0] != job.count:
        raise ValueError(f"{what} is a stack of {shape[0]} maps but --count is {job.count}; pass --count {shape[0]}")


def labels_digest(source: LabelSource, frames: Frames) -> str:
    """A hash of the whole map, read once in boxes, all of whose values are looked at then."""
    total = hashlib.sha256(f"{source.identity} {frames.size[0]}x{frames.size[1]}".encode())
    for image in range(frames.images if not source.identity else 0):
        for box in grid(frames.size, READ_SIDE):
            total.update(np.ascontiguousarray(source.read(image, box, 1), dtype=np.uint8).tobytes())
    return total.hexdigest()


def read_class_table(job: SampleJob, card: Card) -> np.ndarray:
    """float32 (classes, D): the embeddings of the classes, from the job or the model folder."""
    kept = card.folder / "embedder" / CLASSES
    if job.embeddings is None and kept.exists():
        from safetensors.numpy import load_file

        return load_file(kept)["embeddings"].astype(np.float32)
    if job.embeddings is None:
        raise ValueError(
            f"the model {card.folder.name} is asked for classes by embeddings and holds none; "
            "pass --embeddings FILE.npy with one row a class"
        )
    table = np.asarray(read_array(Path(job.embeddings), "--embeddings"))
    if table.ndim != 2 or table.shape[1] != card.embedding_width or table.dtype.kind != "f":
        raise ValueError(
            f"--embeddings {job.embeddings} has shape {table.shape} of {table.dtype}; the model takes one row of "
            f"{card.embedding_width} numbers a class"
        )
    if not np.isfinite(table).all():
        raise ValueError(f"--embeddings {job.embeddings} holds values that are not finite; compute them again")
    if len(table) > LARGEST_LABEL + 1:
        raise ValueError(f"--embeddings {job.embeddings} has {len(table)} classes; at most {LARGEST_LABEL + 1}")
    return table.astype(np.float32)


# ---- embeddings ---------------------------------------------------------------------------------


def read_embeddings(job: SampleJob, card: Card, frames: Frames) -> Inputs:
    """Embeddings on a grid over the canvas, or one for every image of a set."""
    hashes, found = {}, {}
    for option, width in (("embeddings", card.embedding_width), ("region_embeddings", card.region_width)):
        value = getattr(job, option)
        if value is None:
            continue
        name = f"--{option.replace('_', '-')}"
        if not width:
            raise ValueError(f"{name} {value} is given but the model has no such token; leave it out")
        array = np.asarray(read_array(Path(value), name))
        found[option] = on_grid(array, job, card, frames, f"{name} {value}", width)
        hashes[f"{option}_hash"] = digest_of(found[option])
    return Inputs(hashes, None, grid=found["embeddings"], region=found.get("region_embeddings"))


def on_grid(array: np.ndarray, job: SampleJob, card: Card, frames: Frames, what: str, width: int) -> np.ndarray:
    """float32 (rows, columns, width), or (images, width) of a set."""
    if array.dtype.kind != "f" or not np.isfinite(array).all():
        raise ValueError(f"{what} holds {array.dtype}; embeddings are finite floating-point numbers")
    if array.shape[-1] != width:
        raise ValueError(
            f"{what} has shape {array.shape}: {array.shape[-1]} numbers each, but the model takes {width}; "
            "give embeddings of the extractor that the model was trained with"
        )
    if job.count is not None:
        if array.shape != (job.count, width):
            raise ValueError(f"{what} has shape {array.shape}; a set of {job.count} takes one row an image")
        return array.astype(np.float32)
    pitch = job.pitch or card.patch * card.factor
    rows, columns = (-(-n // pitch) for n in job.size)
    given = job.grid or (array.shape[:2] if array.ndim == 3 else (rows, columns))
    listed = array.reshape(-1, width)
    if len(listed) != given[0] * given[1]:
        raise ValueError(
            f"{what} holds {len(listed)} embeddings, not {given[0]} x {given[1]}; pass --grid HxW of that many"
        )
    if given != (rows, columns):
        raise ValueError(
            f"{what} is a grid of {given[0]} x {given[1]} "
            f"but {job.size[0]} x {job.size[1]} px take {rows} x {columns}, one every {pitch} px; "
            f"pass --size {given[0] * pitch}x{given[1] * pitch}, or another --pitch"
        )
    return listed.reshape(rows, columns, width).astype(np.float32)


# ---- semantic maps ------------------------------------------------------------------------------


def read_semantic(job: SampleJob, card: Card, frames: Frames) -> Inputs:
    """The table of the nuclei, or the check of a map given whole; and the map of styles."""
    labels, hashes = read_styles(job, frames)
    if job.map is not None:
        array = read_map(job, card)
        if array.dtype.kind == "f" and not all(np.isfinite(band).all() for band in bands_of(array)):
            raise ValueError(f"--map {job.map} holds values that are not finite; mend the map")
        return Inputs({**hashes, "map_hash": digest_of(array)}, None, labels)
    published_channels(card.semantic_channels)
    path = Path(str(job.instances))
    instances = read_integers(path, "--instances", stack=job.count is not None)
    check_size(instances.shape, job, f"instance map {path}")
    colors = None if job.colors else (to_color(job.nucleus_color), to_color(job.background_color))
    name = f"--instances {path}"
    if instances.ndim == 3:
        picture = read_array(Path(job.colors), "--colors", color=True) if job.colors else None
        nuclei = scan_stack(
            lambda first, last: np.asarray(instances[first:last]),
            instances.shape,  # type: ignore[arg-type]
            image=picture if picture is None else lambda first, last: np.asarray(picture[first:last]),
            colors=colors,
            border=job.border_nuclei,
            name=name,
        )
    else:
        shown = read_picture(Path(job.colors), "--colors", 3, job.size) if job.colors else None
        nuclei = scan_nuclei(
            lambda box: np.asarray(instances[box.y0 : box.y1, box.x0 : box.x1]),
            job.size,
            image=shown if shown is None else lambda box: np.asarray(shown[:, box.y0 : box.y1, box.x0 : box.x1]),
            colors=colors,
            border=job.border_nuclei,
            name=name,
        )
    hashes |= {"instances_hash": digest_of(instances, np.uint32), "nuclei_hash": digest_of(nuclei.table)}
    return Inputs(hashes, LabelArray("nuclei", "uint32"), labels, nuclei=nuclei)


def to_color(color: tuple[int, ...]) -> tuple[float, float, float]:
    red, green, blue = (float(v) for v in color)
    return red, green, blue


def read_map(job: SampleJob, card: Card) -> np.ndarray:
    """A semantic map (K, h, w), or a stack of them, read where it is sliced."""
    path = Path(str(job.map))
    array = read_array(path, "--map")
    if not reads_in_boxes(path):
        raise ValueError(f"--map {path} is read in boxes by every rank; save it as .npy or Zarr, channels first")
    stack = job.count is not None and array.ndim == 4
    channels = array.shape[-3] if array.ndim >= 3 else 0
    if channels != card.semantic_channels or not (stack or array.ndim == 3):
        raise ValueError(
            f"--map {path} has shape {array.shape}; the model takes {card.semantic_channels} channels first, "
            f"({card.semantic_channels}, height, width)"
        )
    check_size((*array.shape[:1], *array.shape[-2:]) if stack else array.shape[-2:], job, f"--map {path}")
    if array.dtype.kind not in "fuib":
        raise ValueError(f"--map {path} holds {array.dtype}; a semantic map holds numbers")
    return array


def read_styles(job: SampleJob, frames: Frames) -> tuple[LatentMap | None, dict[str, str]]:
    """Which style is asked for at the latents, and the hash of that."""
    source = style_source(job)
    if source is None:
        return None, {}
    return LatentMap(frames, source.read), {"style_map_hash": labels_digest(source, frames)}


def style_source(job: SampleJob) -> LabelSource | None:
    """Where the map of styles comes from; None: the first throughout."""
    styles = styles_of(job)
    if job.style_map is None and (len(styles) == 1 or job.count is None):
        if len(styles) > 1:
            raise ValueError(f"--style {job.style} names {len(styles)} styles; pass --style-map FILE, or one style")
        return None
    if job.style_map is None:
        return LabelSource(partial(uniform_labels, tuple(range(len(styles)))), f"{len(styles)} styles in turn")
    file = MapFile(Path(job.style_map), "--style-map", job.size, job.count is not None, len(styles), tuple(styles))
    check_size(file.array.shape, job, f"--style-map {job.style_map}")
    return LabelSource(file.read, "")


def styles_of(job: SampleJob) -> list[str]:
    """The model folders whose networks are used; the model's own where no style is named."""
    return [name for name in (job.style or "").split(",") if name] or [job.model]


# ---- the condition, on every rank ---------------------------------------------------------------


def condition_of(inputs: Inputs, job: SampleJob, card: Card, frames: Frames, stored: Read | None = None) -> Condition:
    """What the windows of the canvas are asked for.

    Args:
        stored: reads what is stored beside the images; needed only to evaluate, not to plan.
    """
    weight = float(job.guidance or 0)
    if card.condition == "label-map":
        return LabelMap(weight, inputs.labels)
    if card.condition == "class":
        return ClassMap(weight, inputs.labels, card.has_null, inputs.table)
    if card.condition == "embedding":
        pitch = (job.pitch or card.patch * card.factor) / card.factor
        rows = None if job.count is None else frames.frame[0]
        return EmbeddingGrid(weight, None, inputs.grid, inputs.region, pitch, str(job.interpolation), rows)
    if card.condition == "semantic":
        read = partial(read_condition, in_frame_reader(inputs, job, card, stored), frames)
        return SemanticMap(weight, inputs.labels, read, card.semantic_channels, len(styles_of(job)))
    return Condition(weight)


def read_condition(of_image: Read, frames: Frames, window: Window) -> np.ndarray:
    """float32 (K, p, p): the semantic map of a window of the canvas."""
    image = window.y0 // frames.frame[0]
    rows = image * frames.frame[0]
    return of_image(image, Window(window.y0 - rows, window.x0, window.y1 - rows, window.x1))


def in_frame_reader(inputs: Inputs, job: SampleJob, card: Card, stored: Read | None) -> Read:
    """A function from a box of an image, which may reach beyond it, to its semantic map."""
    if inputs.nuclei is None:
        array = read_map(job, card)

        def given(image: int, window: Window) -> np.ndarray:
            found = np.zeros((card.semantic_channels, *window.shape), np.float32)
            inner = window & Window(0, 0, *job.size)
            of_image = array if array.ndim == 3 else array[image]
            found[(slice(None), *inner.within(window))] = of_image[:, inner.y0 : inner.y1, inner.x0 : inner.x1]
            return found

        return given
    nuclei, channels = inputs.nuclei, published_channels(card.semantic_channels)
    alike = not nuclei.table["key"][-1] >> np.uint64(32)  # one map for all images
    table = lru_cache(maxsize=64)(lambda image: nuclei if alike else nuclei.image(image))

    def made(image: int, window: Window) -> np.ndarray:
        assert stored is not None
        return table(image).maps(partial(stored, image), window, channels)

    return made


def instance_source(job: SampleJob, nuclei: Nuclei) -> LabelSource:
    """The instance map as it is stored beside the images: without the nuclei that are dropped."""
    file = MapFile(Path(str(job.instances)), "--instances", job.size, job.count is not None)

    def read(image: int, box: Window, step: int) -> np.ndarray:
        of_image = nuclei if file.array.ndim == 2 else nuclei.image(image)
        return of_image.without_dropped(file.read(image, box, step))

    return LabelSource(read, "")


# ---- hashes -------------------------------------------------------------------------------------


def digest_of(array: np.ndarray, dtype: type | np.dtype | None = None) -> str:
    """sha256 of an array's shape, type and bytes, read in bands.

    Args:
        dtype: that its values are taken in; None: its own.
    """
    total = hashlib.sha256(f"{array.shape} {np.dtype(dtype or array.dtype)}".encode())
    for band in bands_of(array):
        total.update(np.ascontiguousarray(band, dtype).tobytes())
    return total.hexdigest()


def bands_of(array: np.ndarray) -> Iterator[np.ndarray]:
    """An array's values in their order, at most ``READ_BYTES`` at a time, or one row."""
    if array.ndim < 2:
        yield np.asarray(array)
        return
    rows = max(READ_BYTES // max(array.shape[-1] * array.dtype.itemsize, 1), 1)
    for index in np.ndindex(*array.shape[:-2]):
        for y in range(0, array.shape[-2], rows):
            yield np.asarray(array[(*index, slice(y, y + rows))])


# ---- region of interest -------------------------------------------------------------------------


def read_roi(job: SampleJob, frames: Frames) -> tuple[LatentMap | None, dict[str, str]]:
    """The latents that hold any pixel of the region of interest, and the hash of its mask."""
    if job.roi is None:
        return None, {}
    mask = read_region(job)
    if not any(band.any() for band in bands_of(mask)):
        raise ValueError(f"--roi {job.roi} is 0 throughout: nothing is wanted; mark the region with 1 or 255")
    return roi_map(job, frames), {"roi_hash": digest_of(mask)}


def roi_map(job: SampleJob, frames: Frames) -> LatentMap:
    """1 at the latents that hold any pixel of the region of interest."""
    return LatentMap(frames, partial(wanted_latents, MapFile(Path(str(job.roi)), "--roi", job.size)), repeats=False)


def wanted_latents(mask: MapFile, image: int, box: Window, factor: int) -> np.ndarray:
    return latents_with_any(mask.array, box, factor)


def latents_with_any(mask: np.ndarray, box: Window, factor: int) -> np.ndarray:
    """bool (h, w): the latents of a box that hold any pixel of a mask; as many as the mask reaches.

    Args:
        box: px, from a latent's corner on; what of it lies beyond the mask is left out.
    """
    part = np.asarray(mask[box.y0 : box.y1, box.x0 : box.x1]) != 0
    part = np.pad(part, [(0, -n % factor) for n in part.shape])
    height, width = part.shape
    return np.asarray(part.reshape(height // factor, factor, width // factor, factor).any((1, 3)))


def read_region(job: SampleJob) -> np.ndarray:
    """The mask (h, w) of what is wanted: not 0."""
    mask = read_integers(Path(str(job.roi)), "--roi")
    check_size(mask.shape, job, f"--roi {job.roi}")
    return mask


# ---- in-painting --------------------------------------------------------------------------------


def check_repaint(job: SampleJob, card: Card) -> dict[str, str]:
    """Read the known image and the mask of an in-painting; returns the hashes of what they hold."""
    if job.image is None:
        return {}
    mask = read_mask(job)
    if not any(np.asarray(band).any() for band in bands_of(mask)):
        raise ValueError(f"--repaint {job.repaint} is 0 throughout: there is nothing to repaint; mark it with 1 or 255")
    return {"image_hash": digest_of(read_known(job, card)), "repaint_hash": digest_of(mask)}


def read_known(job: SampleJob, card: Card) -> np.ndarray:
    """The known image, uint8 (c, h, w)."""
    return read_picture(Path(str(job.image)), "--image", card.image_channels, job.size)


def read_mask(job: SampleJob) -> np.ndarray:
    """The mask (h, w) of what is to be repainted: not 0."""
    mask = read_integers(Path(str(job.repaint)), "--repaint")
    check_size(mask.shape, job, f"--repaint {job.repaint}")
    return mask
