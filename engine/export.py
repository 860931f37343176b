"""``python -m engine.export OUT DIR``: write an output as the folders of files that the nuclei system writes.

    samples/      the images
    labels/       label maps; where nuclei are stored, a mask of them, 0 and 255
    inst_masks/   instance maps of nuclei, TIFF of uint32
    cond/         for sets of nuclei, the condition: .npy, and a picture of its first three channels, -1..1 as 0..255
    classes.csv   the class of every image, for a set that stores classes
    export.json   the output that this came from, and its provenance

Files are named by the number of the image: 000000.png. A set is read one shard at a time. A large image is read one row
of tiles at a time for TIFF, and whole for PNG. The exit status is 0 (exported) or 1 (refused).
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from engine.command_line import print_error
from engine.inputs.maps import box_of
from engine.inputs.nuclei import channel_count
from engine.inputs.nuclei_scan import scan_nuclei
from engine.planning.geometry import Window
from engine.storage.files import bands
from engine.storage.output import Output, state_of
from engine.storage.set_layout import SetLayout

FORMATS = {"png": ".png", "tiff": ".tif"}
FOLDERS = ("samples", "labels", "inst_masks", "cond")
FILES = ("classes.csv", "export.json")
LARGEST_PNG = 16384  # px a side; a PNG is written from memory, so larger images become TIFF
LARGEST_TILE = 1024  # px a side of a TIFF's tiles
CONDITION = ("hv", "edges")  # channels of the condition where the output does not name those of its model


@dataclass(frozen=True)
class Part:
    """One folder of the export.

    Args:
        folder: Name of the folder.
        array: Name of the output's array that it is made from.
        make: From pixels of that array to those that are written.
    """

    folder: str
    array: str
    make: Callable[[np.ndarray], np.ndarray] = np.asarray

    def eight_bits(self, output: Output) -> bool:
        """Whether the pixels that are written are uint8."""
        return self.make is mask_of or output.array(self.array).dtype == np.uint8


def export(out: Path, folder: Path, kind: str = "png", *, overwrite: bool = False) -> list[str]:
    """Export an output to a folder, which appears at once when it is complete.

    Args:
        out: Path of a finished output of engine.sample.
        folder: Folder to be made; it may be there if it is empty.
        kind: "png" or "tiff": the format of samples and labels. An image larger than ``LARGEST_PNG`` and labels of
            more than 8 bits become TIFF anyway.
        overwrite: Whether to replace an earlier export.
    Returns:
        The names of the files and folders in it.
    Raises:
        ValueError: the output is unfinished, damaged or none, or the folder holds something.
    """
    folder = folder.resolve()
    output = finished_output(out)
    check_folder(out, folder, overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".exporting", dir=folder.parent))
    try:
        (building / "new").mkdir()
        if isinstance(output.layout, SetLayout):
            write_set(output, output.layout, building / "new", FORMATS[kind])
        else:
            write_image(output, building / "new", FORMATS[kind])
        write_facts(output, building / "new")
        written = sorted(path.name for path in (building / "new").iterdir())
        if folder.exists():
            folder.rename(building / "old")
        (building / "new").rename(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return written


def finished_output(path: Path) -> Output:
    """Open the output at a path.

    Raises:
        ValueError: there is none, or it is unfinished, or lacks shards, or has channels that no picture has.
    """
    try:
        provenance = state_of(path)
    except ValueError:
        raise ValueError(f"{path} is no output of engine.sample; give one") from None
    if provenance is None:
        raise ValueError(f"{path} is not there; give an output of engine.sample")
    output = Output(path)
    if not output.finished:
        state = output.provenance["state"]
        raise ValueError(f"{path} is {state}; give its command again to finish it, then export it")
    if output.layout.channels not in (1, 3):
        raise ValueError(f"{path} has {output.layout.channels} channels; PNG and TIFF are written of 1 or 3")
    check_shards(output)
    return output


def check_shards(output: Output) -> None:
    """Refuse an output that lacks a shard, which would be exported black."""
    for name in filter(None, (output.layout.image, output.layout.labels)):
        for box in output.layout.boxes():
            if not output.shard_file(name, box).exists():
                raise ValueError(
                    f"{output.path} lacks a shard of {name}, {box_text(box)}; "
                    f"python -m engine.verify {output.path} says what else is missing"
                )


def read(output: Output, name: str, box: Window) -> np.ndarray:
    """Read a box of an array as ``Output.read`` does; errors point to engine.verify.

    Raises:
        ValueError: a shard of the box is damaged.
    """
    try:
        return output.read(name, box)
    except Exception as error:  # codecs raise errors of many kinds
        why = " ".join(str(error).split())
        raise ValueError(
            f"{output.path}: {name}, {box_text(box)}, cannot be read ({why}); "
            f"python -m engine.verify {output.path} says what else is damaged"
        ) from None


def box_text(box: Window) -> str:
    """Name a box, for people."""
    return f"rows {box.y0}:{box.y1} columns {box.x0}:{box.x1}"


def check_folder(out: Path, folder: Path, overwrite: bool) -> None:
    """Refuse a folder that holds other files than an export's, or the output itself.

    Raises:
        ValueError: the message names the file.
    """
    if out.resolve().is_relative_to(folder) or folder.is_relative_to(out.resolve()):
        raise ValueError(f"{folder} and {out} lie in one another; choose another DIR")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; choose another DIR")
    others = sorted({path.name for path in folder.iterdir()} - {*FOLDERS, *FILES})
    if others and overwrite:
        raise ValueError(f"{folder} holds {others[0]}, which no export has; remove it yourself, or choose another DIR")
    if any(folder.iterdir()) and not overwrite:
        raise ValueError(f"{folder} is not empty; pass --overwrite to replace an earlier export, or choose another DIR")


def write_facts(output: Output, folder: Path) -> None:
    """Write ``export.json``: the output's path and provenance."""
    facts = {"source": str(output.path.absolute()), **{k: v for k, v in output.provenance.items() if k != "layout"}}
    (folder / "export.json").write_text(json.dumps(facts, indent=1) + "\n")


def write_set(output: Output, layout: SetLayout, folder: Path, suffix: str) -> None:
    """Write the files of a set of images, shard by shard."""
    digits = max(6, len(str(layout.count - 1)))
    parts = parts_of_set(output)
    for part in parts:
        (folder / part.folder).mkdir()
    for box in layout.boxes():
        for part in parts:
            for index, pixels in enumerate(part.make(read(output, part.array, box)), box.y0):
                write_one(folder / part.folder / f"{index:0{digits}}", pixels, part.folder, suffix)
    if layout.label and layout.label.name == "classes":
        write_classes(output, folder / "classes.csv", digits)


def parts_of_set(output: Output) -> list[Part]:
    """The folders that are written for a set."""
    label = output.layout.label and output.layout.label.name
    parts = [Part("samples", "images")]
    if label == "nuclei":
        parts += [Part("labels", label, mask_of), Part("inst_masks", label)]
        parts.append(Part("cond", label, partial(condition_of, output.provenance)))
    elif label:
        parts.append(Part("labels", label))
    return parts


def mask_of(instances: np.ndarray) -> np.ndarray:
    """Turn an instance map into a mask: uint8, 255 in nuclei and 0 outside."""
    return np.where(instances > 0, np.uint8(255), np.uint8(0))


def condition_of(provenance: Mapping[str, Any], instances: np.ndarray) -> np.ndarray:
    """Make the condition of instance maps, without colours if those were taken from an image.

    Args:
        provenance: The output's, which names the channels of the condition.
        instances: (images, h, w).
    Returns:
        float32 (images, channels, h, w).
    """
    shape, job = instances.shape, provenance.get("job", {})
    channels = tuple(provenance.get("condition_channels", CONDITION))
    colors = (job["nucleus_color"], job["background_color"]) if "color" in channels and not job["colors"] else None
    channels = tuple(part for part in channels if part != "color" or colors)
    if not instances.any():
        return np.zeros((shape[0], channel_count(channels), *shape[1:]), np.float32)
    nuclei = scan_nuclei(partial(box_of, instances), shape[1:], len(instances), colors=colors, border="keep")  # type: ignore[arg-type]
    box = Window(0, 0, *shape[1:])

    def maps(index: int, ids: np.ndarray) -> np.ndarray:
        return nuclei.image(index).maps(lambda part: ids[part.within(box)], box, channels)

    return np.stack([maps(index, ids) for index, ids in enumerate(instances)])


def write_classes(output: Output, path: Path, digits: int) -> None:
    """Write ``classes.csv``: every pixel of an image has its class, so the first is read."""
    labels = (int(label) for box in output.layout.boxes() for label in read(output, "classes", box)[:, 0, 0])
    lines = [f"{i:0{digits}},{label}" for i, label in enumerate(labels)]
    path.write_text("\n".join(["name,class", *lines]) + "\n")


def write_one(stem: Path, pixels: np.ndarray, folder: str, suffix: str) -> None:
    """Write one image (h, w) or (c, h, w) as the files of its folder, the name of which says which they are."""
    if folder == "cond":
        np.save(stem.with_suffix(".npy"), pixels)
        write_picture(stem.with_suffix(".png"), picture_of(pixels))
    elif folder == "inst_masks":
        write_tiff(stem.with_suffix(".tif"), pixels.astype(np.uint32))
    elif suffix == ".tif" or pixels.dtype != np.uint8:
        write_tiff(stem.with_suffix(".tif"), channels_last(pixels))
    else:
        write_picture(stem.with_suffix(".png"), channels_last(pixels))


def channels_last(pixels: np.ndarray) -> np.ndarray:
    """Put channels last: (c, h, w) becomes (h, w, c), or (h, w) if it has one channel; (h, w) stays."""
    if pixels.ndim == 2:
        return pixels
    return pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0))


def picture_of(condition: np.ndarray) -> np.ndarray:
    """Draw the first three channels as red, green and blue, -1..1 as 0..255: uint8 (h, w, 3).

    A colour whose channel is missing is 0.
    """
    shown = condition[:3]
    if shown.dtype.kind == "f":
        shown = np.clip(np.rint((np.nan_to_num(shown) + 1) * 127.5), 0, 255)
    picture = np.zeros((*condition.shape[1:], 3), np.uint8)
    picture[..., : len(shown)] = shown.transpose(1, 2, 0)
    return picture


def write_picture(path: Path, pixels: np.ndarray) -> None:
    from PIL import Image

    Image.fromarray(pixels).save(path)


def write_tiff(path: Path, pixels: np.ndarray) -> None:
    import tifffile

    photometric = "rgb" if pixels.ndim == 3 else "minisblack"
    tifffile.imwrite(path, pixels, photometric=photometric, compression="zlib", compressionargs={"level": 1})


def write_image(output: Output, folder: Path, suffix: str) -> None:
    """Write the files of one image: TIFF in tiles, or PNG if it is small enough."""
    tiff = suffix == ".tif" or max(output.layout.size) > LARGEST_PNG
    for part in parts_of_image(output):
        (folder / part.folder).mkdir()
        stem = folder / part.folder / "000000"
        if tiff or not part.eight_bits(output):
            write_tiles(output, part, stem.with_suffix(".tif"))
        else:
            write_picture(stem.with_suffix(".png"), whole_image(output, part))


def parts_of_image(output: Output) -> list[Part]:
    """The folders that are written for one image."""
    parts = [Part("samples", output.layout.image)]
    if output.layout.label and output.layout.labels:
        nuclei = output.layout.label.name == "nuclei"
        parts.append(Part("labels", output.layout.labels, mask_of if nuclei else np.asarray))
        parts += [Part("inst_masks", output.layout.labels)] * nuclei
    return parts


def whole_image(output: Output, part: Part) -> np.ndarray:
    """Put an image together from its shards: uint8 (h, w) or (h, w, c)."""
    channels = output.array(part.array).shape[:-2]
    image = np.empty((*output.layout.size, *(c for c in channels if c > 1)), np.uint8)
    for box in output.layout.boxes():
        image[box.y0 : box.y1, box.x0 : box.x1] = channels_last(part.make(read(output, part.array, box)))
    return image


def write_tiles(output: Output, part: Part, path: Path) -> None:
    """Write a BigTIFF whose tiles are the output's chunks, with the size of a pixel."""
    import tifffile

    array = output.array(part.array)
    side = min(max(output.layout.chunk // 16 * 16, 16), LARGEST_TILE)  # a TIFF's tiles have multiples of 16 px a side
    color = array.ndim == 3 and array.shape[0] == 3
    per_cm = 1e4 / pixel_size_um(output)
    tifffile.imwrite(
        path,
        tiles(output, part, side),
        shape=(*output.layout.size, *([3] if color else [])),
        dtype=np.uint8 if part.eight_bits(output) else array.dtype,
        bigtiff=True,
        tile=(side, side),
        photometric="rgb" if color else "minisblack",
        compression="zlib",
        compressionargs={"level": 1},
        resolution=(per_cm, per_cm),
        resolutionunit="CENTIMETER",
    )


def tiles(output: Output, part: Part, side: int) -> Iterator[np.ndarray]:
    """Read the tiles of an image, row by row: one row of tiles is in memory at a time."""
    height, width = output.layout.size
    for y0, y1 in bands(height, side):
        band = channels_last(part.make(read(output, part.array, Window(y0, 0, y1, width))))
        for x in range(0, width, side):
            yield band[:, x : x + side]


def pixel_size_um(output: Output) -> float:
    """Side of a pixel at full size, micrometres: the last scale in the OME-Zarr metadata."""
    ome: Any = output.group.attrs["ome"]
    return float(ome["multiscales"][0]["datasets"][0]["coordinateTransformations"][0]["scale"][-1])


def main(arguments: Sequence[str] | None = None) -> int:
    top = argparse.ArgumentParser(prog="python -m engine.export", description=(__doc__ or "").splitlines()[0])
    top.add_argument("out", type=Path, help="a finished output of engine.sample")
    top.add_argument("dir", type=Path, help="the folder to make")
    top.add_argument("--format", choices=FORMATS, default="png", help="format of images and labels (default: png)")
    top.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    given = top.parse_args(arguments)
    try:
        written = export(given.out, given.dir, given.format, overwrite=given.overwrite)
    except (ValueError, OSError, MemoryError) as error:
        print_error(error)
        return 1
    print(f"{given.dir} holds {', '.join(written)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
