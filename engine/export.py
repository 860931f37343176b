"""``python -m engine.export OUT DIR``: an output as the folders of files that the nuclei system writes.

    samples/      the images
    labels/       label maps; of nuclei their mask, 0 and 255
    inst_masks/   instance maps, TIFF of uint32
    cond/         of sets of nuclei, the condition: .npy, and a picture of the first three channels, -1..1 as 0..255
    classes.csv   the class of every image of a set of classes
    export.json   where it came from

Files are named by the image's index: 000000.png. One shard of a set is in memory at a time, of a large image one row of
tiles, or the whole of it for PNG. Exit status: 0 exported, 1 refused.
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

FORMATS = {"png": ".png", "tiff": ".tif"}
FOLDERS = ("samples", "labels", "inst_masks", "cond")
FILES = ("classes.csv", "export.json")
LARGEST_PNG = 16384  # px a side: PNG is written from memory
LARGEST_TILE = 1024  # px a side
COND = ("hv", "edges")  # what is made of nuclei where the output does not say what its model took


@dataclass(frozen=True)
class Part:
    """One folder of the result.

    Args:
        folder: its name.
        array: of the output, that it is made from.
        make: from that array's images to what is written.
    """

    folder: str
    array: str
    make: Callable[[np.ndarray], np.ndarray] = np.asarray

    def eight_bits(self, output: Output) -> bool:
        """Whether what is written is uint8."""
        return self.make is mask_of or output.array(self.array).dtype == np.uint8


def export(out: Path, folder: Path, kind: str = "png", *, overwrite: bool = False) -> list[str]:
    """Write the folders; the whole folder appears at once, when it is complete.

    Args:
        out: a finished output of engine.sample.
        folder: to be made; an empty one will do.
        kind: "png" or "tiff", of samples, images and labels; TIFF anyway for a large image of more than
            ``LARGEST_PNG`` and for labels of more than 8 bits.
        overwrite: an earlier export goes.
    Returns:
        The names of what was written.
    Raises:
        ValueError: no finished output, or a damaged one; a folder that is not empty, or not an export.
    """
    folder = folder.resolve()
    output = finished_output(out)
    check_folder(out, folder, overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".exporting", dir=folder.parent))
    try:
        write = write_image if output.layout.count is None else write_set
        (building / "new").mkdir()
        write(output, building / "new", FORMATS[kind])
        write_facts(output, building / "new")
        written = sorted(path.name for path in (building / "new").iterdir())
        if folder.exists():
            folder.rename(building / "old")
        (building / "new").rename(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return written


def finished_output(path: Path) -> Output:
    """The output at a path.

    Raises:
        ValueError: there is none, or it is not finished or not whole.
    """
    try:
        there = state_of(path)
    except ValueError:
        raise ValueError(f"{path} is no output of engine.sample; give one") from None
    if there is None:
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
    """Refuse an output that lacks a shard: it would be exported black."""
    for name in filter(None, (output.layout.image, output.layout.labels)):
        for box in output.layout.boxes():
            if not output.shard_file(name, box).exists():
                raise ValueError(
                    f"{output.path} lacks a shard of {name}, {place(box)}; "
                    f"python -m engine.verify {output.path} says what else is missing"
                )


def read(output: Output, name: str, box: Window) -> np.ndarray:
    """A box of an array, as ``Output.read`` gives it.

    Raises:
        ValueError: it is damaged.
    """
    try:
        return output.read(name, box)
    except Exception as error:  # whatever the codecs raise
        said = " ".join(str(error).split())
        raise ValueError(
            f"{output.path}: {name}, {place(box)}, cannot be read ({said}); "
            f"python -m engine.verify {output.path} says what else is damaged"
        ) from None


def place(box: Window) -> str:
    return f"rows {box.y0}:{box.y1} columns {box.x0}:{box.x1}"


def check_folder(out: Path, folder: Path, overwrite: bool) -> None:
    """Refuse a place that holds something else, or the output itself.

    Raises:
        ValueError: naming it.
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
    facts = {"source": str(output.path.absolute()), **{k: v for k, v in output.provenance.items() if k != "layout"}}
    (folder / "export.json").write_text(json.dumps(facts, indent=1) + "\n")


def write_set(output: Output, folder: Path, suffix: str) -> None:
    """The files of a set of images, shard by shard."""
    count = output.layout.count or 0
    digits = max(6, len(str(count - 1)))
    parts = parts_of_set(output)
    for part in parts:
        (folder / part.folder).mkdir()
    for box in output.layout.boxes():
        for part in parts:
            for index, pixels in enumerate(part.make(read(output, part.array, box)), box.y0):
                write_one(folder / part.folder / f"{index:0{digits}}", pixels, part.folder, suffix)
    if output.layout.label and output.layout.label.name == "classes":
        write_classes(output, folder / "classes.csv", digits)


def parts_of_set(output: Output) -> list[Part]:
    """What there is to be written of a set."""
    label = output.layout.label and output.layout.label.name
    found = [Part("samples", "images")]
    if label == "nuclei":
        found += [Part("labels", label, mask_of), Part("inst_masks", label)]
        found.append(Part("cond", label, partial(condition_of, output.provenance)))
    elif label:
        found.append(Part("labels", label))
    return found


def mask_of(instances: np.ndarray) -> np.ndarray:
    """uint8: 255 in nuclei."""
    return np.where(instances > 0, np.uint8(255), np.uint8(0))


def condition_of(provenance: Mapping[str, Any], instances: np.ndarray) -> np.ndarray:
    """float32 (images, k, h, w): the condition of (images, h, w), without colours that were taken from an image."""
    shape, job = instances.shape, provenance.get("job", {})
    channels = tuple(provenance.get("condition_channels", COND))
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
    labels = (int(label) for box in output.layout.boxes() for label in read(output, "classes", box)[:, 0, 0])
    lines = [f"{i:0{digits}},{label}" for i, label in enumerate(labels)]
    path.write_text("\n".join(["name,class", *lines]) + "\n")


def write_one(stem: Path, pixels: np.ndarray, folder: str, suffix: str) -> None:
    """One image (h, w) or (c, h, w), in the files of its folder."""
    if folder == "cond":
        np.save(stem.with_suffix(".npy"), pixels)
        write_picture(stem.with_suffix(".png"), picture_of(pixels))
    elif folder == "inst_masks":
        write_tiff(stem.with_suffix(".tif"), pixels.astype(np.uint32))
    elif suffix == ".tif" or pixels.dtype != np.uint8:
        write_tiff(stem.with_suffix(".tif"), pixels_last(pixels))
    else:
        write_picture(stem.with_suffix(".png"), pixels_last(pixels))


def pixels_last(pixels: np.ndarray) -> np.ndarray:
    """(h, w) as it is; (c, h, w) -> (h, w, c), or (h, w) of one channel."""
    if pixels.ndim == 2:
        return pixels
    return pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0))


def picture_of(condition: np.ndarray) -> np.ndarray:
    """uint8 (h, w, 3): the first three channels, -1..1 as 0..255; channels that there are not are black."""
    shown = condition[:3]
    if shown.dtype.kind == "f":
        shown = np.clip(np.rint((np.nan_to_num(shown) + 1) * 127.5), 0, 255)
    found = np.zeros((*condition.shape[1:], 3), np.uint8)
    found[..., : len(shown)] = shown.transpose(1, 2, 0)
    return found


def write_picture(path: Path, pixels: np.ndarray) -> None:
    from PIL import Image

    Image.fromarray(pixels).save(path)


def write_tiff(path: Path, pixels: np.ndarray) -> None:
    import tifffile

    photometric = "rgb" if pixels.ndim == 3 else "minisblack"
    tifffile.imwrite(path, pixels, photometric=photometric, compression="zlib", compressionargs={"level": 1})


def write_image(output: Output, folder: Path, suffix: str) -> None:
    """The files of one image: TIFF in tiles, or PNG where it is small enough."""
    tiff = suffix == ".tif" or max(output.layout.size) > LARGEST_PNG
    for part in parts_of_image(output):
        (folder / part.folder).mkdir()
        stem = folder / part.folder / "000000"
        if tiff or not part.eight_bits(output):
            write_tiles(output, part, stem.with_suffix(".tif"))
        else:
            write_picture(stem.with_suffix(".png"), whole_image(output, part))


def parts_of_image(output: Output) -> list[Part]:
    """What there is to be written of one image."""
    found = [Part("samples", output.layout.image)]
    if output.layout.label and output.layout.labels:
        nuclei = output.layout.label.name == "nuclei"
        found.append(Part("labels", output.layout.labels, mask_of if nuclei else np.asarray))
        found += [Part("inst_masks", output.layout.labels)] * nuclei
    return found


def whole_image(output: Output, part: Part) -> np.ndarray:
    """uint8 (h, w) or (h, w, c), put together from its shards."""
    channels = output.array(part.array).shape[:-2]
    found = np.empty((*output.layout.size, *(c for c in channels if c > 1)), np.uint8)
    for box in output.layout.boxes():
        found[box.y0 : box.y1, box.x0 : box.x1] = pixels_last(part.make(read(output, part.array, box)))
    return found


def write_tiles(output: Output, part: Part, path: Path) -> None:
    """A BigTIFF in tiles of the output's chunks, with the size of a pixel."""
    import tifffile

    array = output.array(part.array)
    side = min(max(output.layout.chunk // 16 * 16, 16), LARGEST_TILE)  # TIFF wants multiples of 16
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
    """The tiles of an image, row by row; one row of them is in memory."""
    height, width = output.layout.size
    for y0, y1 in bands(height, side):
        band = pixels_last(part.make(read(output, part.array, Window(y0, 0, y1, width))))
        for x in range(0, width, side):
            yield band[:, x : x + side]


def pixel_size_um(output: Output) -> float:
    ome: Any = output.group.attrs["ome"]
    return float(ome["multiscales"][0]["datasets"][0]["coordinateTransformations"][0]["scale"][-1])


def main(arguments: Sequence[str] | None = None) -> int:
    top = argparse.ArgumentParser(prog="python -m engine.export", description=(__doc__ or "").splitlines()[0])
    top.add_argument("out", type=Path, help="a finished output of engine.sample")
    top.add_argument("dir", type=Path, help="the folder to be made")
    top.add_argument("--format", choices=FORMATS, default="png", help="of images and labels (default: png)")
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
