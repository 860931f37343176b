"""The levels of a plane that are kept: what the canvas was before each, where a request made it known, for later ones.

    PLANE/slidefield/levels/00001/00001/   of one request the latents before level 1, and what the solver kept of the
                                           levels before: Zarr, float32 (1 + kept, C, y, x), the request's canvas, raw
                                           with a CRC-32C a chunk; chunks without anything of use to others are absent
    ...
    PLANE/slidefield/known.json            of each request its folder and the windows whose result it has made known,
                                           level by level, and a checksum

A file that lies where another belongs is refused: the ledger names its plane's job, and of each request the checksum of
its job, which its arrays have too, with their level. Chunks are protected against damage alone.

Every request's arrays stay as they were written, in a folder of their own: nothing is written twice.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.planning.geometry import Box
from engine.planning.plane import KnownWindows, Windows
from engine.storage.files import checksum, read_signed, sync_new, write_signed
from engine.storage.zarr_setup import zarr


class LevelArrays:
    """Canvases that one request keeps, an array a level in a folder; boxes are of the plane, in latents.

    Args:
        request: Checksum of the request's job.
    """

    def __init__(self, folder: Path, request: str) -> None:
        self.folder, self.request = folder, request
        self.opened: dict[int, tuple[zarr.Array, Box]] = {}
        self.synced: set[Path] = set()

    def make(
        self, levels: Sequence[int], arrays: Sequence[int], channels: int, canvas: Box, sides: tuple[int, int]
    ) -> None:
        """Make the arrays that are not there yet. Rank 0 calls this.

        Args:
            levels: The levels before which the canvas is kept.
            arrays: How many canvases are kept before each: the latents, and what the solver keeps.
            channels: Channels of the canvas.
            canvas: Where the canvas lies on the plane.
            sides: Rows and columns of a chunk: a shard of the canvas.
        """
        for level, count in zip(levels, arrays, strict=True):
            if not (self.path(level) / "zarr.json").exists():
                zarr.create_array(
                    str(self.path(level)),
                    shape=(count, channels, *canvas.shape),
                    chunks=(count, channels, *(min(pair) for pair in zip(sides, canvas.shape, strict=True))),
                    dtype="float32",
                    compressors=[zarr.codecs.Crc32cCodec()],
                    fill_value=float("nan"),
                    attributes={"corner": [canvas.y0, canvas.x0], "request": self.request, "level": level},
                )
                sync_new(self.path(level) / "zarr.json", self.folder.parent, self.synced)

    def path(self, level: int) -> Path:
        return self.folder / f"{level:05d}"

    def open(self, level: int) -> tuple[zarr.Array, Box]:
        """An array, and where it lies on the plane.

        Raises:
            ValueError: it cannot be read, or is another's.
        """
        if level not in self.opened:
            try:
                array = zarr.open_array(str(self.path(level)), mode="r+")
                facts: Any = dict(array.attrs)
                if (facts["request"], facts["level"]) != (self.request, level):
                    raise ValueError("it is of another request or level")
                (y, x), (height, width) = facts["corner"], array.shape[2:]
            except Exception as error:  # zarr raises what its codecs and stores raise
                raise self.unreadable(level, error) from error
            self.opened[level] = array, Box(y, x, y + height, x + width)
        return self.opened[level]

    def read(self, level: int, box: Box) -> np.ndarray:
        """float32 (n, C, h, w): what is kept before a level in a box; not a number where nothing is.

        Raises:
            ValueError: it is damaged.
        """
        array, canvas = self.open(level)
        try:
            here = box & canvas
            values = np.full((*array.shape[:2], *box.shape), np.nan, np.float32)
            if here:
                values[(..., *here.within(box))] = array[(..., *here.within(canvas))]
            return values
        except Exception as error:
            raise self.unreadable(level, error) from error

    def unreadable(self, level: int, error: Exception) -> ValueError:
        why = " ".join(str(error).split())
        return ValueError(f"{self.path(level)} cannot be read ({why}); {self.way}")

    @property
    def way(self) -> str:
        return way_of(self.folder.parents[2])

    def write(self, level: int, box: Box, values: np.ndarray) -> None:
        """Keep what is in a box, and have the disk keep it. The shard's owner calls this.

        Args:
            box: A chunk.
            values: float32 (n, C, h, w).
        """
        array, canvas = self.open(level)
        place = box.within(canvas)
        array[(..., *place)] = values
        names = (str(part.start // side) for part, side in zip(place, array.chunks[2:], strict=True))
        sync_new(self.path(level).joinpath("c", "0", "0", *names), self.folder.parent, self.synced)

    def chunks(self, level: int) -> dict[Path, Box]:
        """The files of an array's chunks, and what each holds."""
        array, canvas = self.open(level)
        rows, columns = array.chunks[2:]
        boxes = {}
        for file in self.path(level).glob("c/0/0/*/*"):
            y, x = canvas.y0 + int(file.parent.name) * rows, canvas.x0 + int(file.name) * columns
            boxes[file] = Box(y, x, y + rows, x + columns)
        return boxes


class KnownLedger:
    """The ledger of a plane: the windows whose result is known, of each level, request by request.

    Args:
        identity: What all requests to the plane share: JSON values.
    """

    def __init__(self, path: Path, patch: int, identity: Mapping[str, Any]) -> None:
        self.path, self.patch, self.plane = path, patch, checksum(identity)

    def read(self) -> tuple[KnownWindows, ...]:
        """What each request has made known.

        Raises:
            ValueError: the file is damaged, or another plane's.
        """
        way = way_of(self.path.parents[1])
        try:
            values = read_signed(self.path)
            if values["plane"] != self.plane:
                raise ValueError(f"{self.path} is another plane's")
            return tuple(
                KnownWindows(
                    one["folder"],
                    tuple(windows_from_json(level, self.patch) for level in one["levels"]),
                    one["request"],
                )
                for one in values["requests"]
            )
        except FileNotFoundError:
            return ()
        except (LookupError, TypeError):
            raise ValueError(f"{self.path} is of another version; {way}") from None
        except ValueError as error:
            raise ValueError(f"{error}; {way}") from None

    def write(self, known: Sequence[KnownWindows]) -> None:
        """Say what is known, in place of what the file said. Rank 0 calls this."""
        requests = [
            {"folder": one.folder, "levels": list(map(windows_as_json, one.levels)), "request": one.request}
            for one in known
        ]
        write_signed(self.path, {"plane": self.plane, "requests": requests})


def next_folder(known: Sequence[KnownWindows]) -> str:
    """A name for the folder of the request that comes next."""
    return f"{1 + max((int(one.folder) for one in known), default=0):05d}"


def way_of(plane: Path) -> str:
    """What helps where a plane's kept levels, or their ledger, are damaged."""
    return f"python -m engine.trim {plane} drops what the plane keeps, which is then sampled anew"


def windows_as_json(windows: Windows) -> dict[str, Any]:
    mask = base64.b64encode(np.packbits(windows.mask).tobytes()).decode()
    return {"offset": windows.offset, "first": windows.first, "shape": windows.mask.shape, "mask": mask}


def windows_from_json(values: dict[str, Any], patch: int) -> Windows:
    (rows, columns), (y, x), (i, j) = values["shape"], values["offset"], values["first"]
    bits = np.frombuffer(base64.b64decode(values["mask"]), np.uint8)
    mask = np.unpackbits(bits, count=rows * columns).astype(bool).reshape(rows, columns)
    return Windows(patch, (y, x), (i, j), mask)
