"""The levels of a plane that are kept: what the canvas was before each level, where it is known, for later requests.

    PLANE/slidefield/levels/00001/     the latents before level 1, and what the solver kept of the levels before:
                                       Zarr, float32 (1 + kept, C, y, x), raw with a CRC-32C a chunk, sparse
    ...
    PLANE/slidefield/known.json        the windows whose result is known, level by level, and a checksum

The arrays are as large as positions go, 2^52 px either way; position (0, 0) of the plane is in their middle.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.planning.geometry import Box
from engine.planning.plane import Windows
from engine.storage.files import read_signed, write_signed
from engine.storage.zarr_setup import zarr

SIDE = 256  # latents; side of a chunk
MIDDLE = 2**53  # beyond the farthest position, with its cone


class LevelArrays:
    """Canvases that are kept, an array a level in a folder; boxes are of the plane, in latents.

    Args:
        folder: Of the arrays.
        shape: Height and width of an array.
        sides: Rows and columns of a chunk.
        corner: Position of the plane at which the arrays begin.
    """

    def __init__(self, folder: Path, shape: tuple[int, int], sides: tuple[int, int], corner: tuple[int, int]) -> None:
        self.folder, self.shape, self.sides, self.corner = folder, shape, sides, corner
        self.opened: dict[int, zarr.Array] = {}

    def make(self, levels: Sequence[int], arrays: Sequence[int], channels: int) -> None:
        """Make the arrays that are not there yet. Rank 0 calls this.

        Args:
            levels: The levels before which the canvas is kept.
            arrays: How many canvases are kept before each: the latents, and what the solver keeps.
            channels: Channels of the canvas.
        """
        for level, count in zip(levels, arrays, strict=True):
            if not (self.path(level) / "zarr.json").exists():
                zarr.create_array(
                    str(self.path(level)),
                    shape=(count, channels, *self.shape),
                    chunks=(count, channels, *self.sides),
                    dtype="float32",
                    compressors=[zarr.codecs.Crc32cCodec()],
                    fill_value=0,
                )

    def path(self, level: int) -> Path:
        return self.folder / f"{level:05d}"

    def array(self, level: int) -> zarr.Array:
        if level not in self.opened:
            self.opened[level] = zarr.open_array(str(self.path(level)), mode="r+")
        return self.opened[level]

    def index_of(self, box: Box) -> tuple[slice, ...]:
        place = box.moved(-self.corner[0], -self.corner[1])
        return slice(None), slice(None), slice(place.y0, place.y1), slice(place.x0, place.x1)

    def read(self, level: int, box: Box) -> np.ndarray:
        """float32 (n, C, h, w): what is kept before a level in a box; 0 where nothing is.

        Raises:
            ValueError: it is damaged.
        """
        try:
            return np.asarray(self.array(level)[self.index_of(box)])
        except Exception as error:  # zarr raises what its codecs and stores raise
            why = " ".join(str(error).split())
            way = f"remove {self.folder} and known.json beside it: levels are then sampled anew"
            raise ValueError(f"{self.path(level)} cannot be read ({why}); {way}") from error

    def write(self, level: int, box: Box, values: np.ndarray) -> None:
        """Keep what is in a box. Whoever calls this is alone in its chunks.

        Args:
            values: float32 (n, C, h, w).
        """
        self.array(level)[self.index_of(box)] = values


def plane_levels(folder: Path) -> LevelArrays:
    """The kept levels of a plane, in a folder."""
    return LevelArrays(folder, (2 * MIDDLE, 2 * MIDDLE), (SIDE, SIDE), (-MIDDLE, -MIDDLE))


def chunks_of(box: Box) -> list[Box]:
    """The parts of a box in each of the chunks that it meets."""
    rows = range(box.y0 // SIDE, -(-box.y1 // SIDE))
    columns = range(box.x0 // SIDE, -(-box.x1 // SIDE))
    return [box & Box(y * SIDE, x * SIDE, (y + 1) * SIDE, (x + 1) * SIDE) for y in rows for x in columns]


def windows_as_json(windows: Windows) -> dict[str, Any]:
    mask = base64.b64encode(np.packbits(windows.mask).tobytes()).decode()
    return {"offset": windows.offset, "first": windows.first, "shape": windows.mask.shape, "mask": mask}


def windows_from_json(values: dict[str, Any], patch: int) -> Windows:
    (rows, columns), (y, x), (i, j) = values["shape"], values["offset"], values["first"]
    bits = np.frombuffer(base64.b64decode(values["mask"]), np.uint8)
    mask = np.unpackbits(bits, count=rows * columns).astype(bool).reshape(rows, columns)
    return Windows(patch, (y, x), (i, j), mask)


class KnownWindows:
    """The ledger of a plane: the windows whose result is known, of each level, request by request."""

    def __init__(self, path: Path, levels: int, patch: int) -> None:
        self.path, self.levels, self.patch = path, levels, patch

    def read(self) -> tuple[tuple[Windows, ...], ...]:
        """For each level the windows that are known.

        Raises:
            ValueError: the file is damaged.
        """
        requests = self.requests()
        of_levels = (
            [windows_from_json(request[level], self.patch) for request in requests] for level in range(self.levels)
        )
        return tuple(tuple(windows for windows in level if len(windows)) for level in of_levels)

    def add(self, needed: Sequence[Windows]) -> None:
        """Enter what a request has made known. Rank 0 calls this."""
        added = [windows_as_json(windows) for windows in needed]
        write_signed(self.path, {"requests": [*self.requests(), added]})

    def requests(self) -> list[Any]:
        """What the file says of every request; nothing where there is none."""
        try:
            return read_signed(self.path)["requests"]
        except FileNotFoundError:
            return []
