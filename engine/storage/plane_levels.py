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


class PlaneLevels:
    """The kept levels of a plane, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.opened = folder, dict[int, zarr.Array]()

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
                    shape=(count, channels, 2 * MIDDLE, 2 * MIDDLE),
                    chunks=(count, channels, SIDE, SIDE),
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

    def read(self, level: int, box: Box) -> np.ndarray:
        """float32 (n, C, h, w): what is kept before a level in a box of the plane, in latents; 0 where nothing is.

        Raises:
            ValueError: it is damaged.
        """
        try:
            return np.asarray(self.array(level)[index_of(box)])
        except Exception as error:  # zarr raises what its codecs and stores raise
            why = " ".join(str(error).split())
            raise ValueError(f"{self.path(level)} cannot be read ({why}); engine.trim drops what is kept") from error

    def merge(self, level: int, box: Box, values: np.ndarray, known: np.ndarray) -> None:
        """Put in what is known in a box, which lies in one chunk. Whoever calls this is alone in the chunk.

        Args:
            values: float32 (n, C, h, w).
            known: bool (h, w).
        """
        kept = self.read(level, box) if not known.all() else values
        self.array(level)[index_of(box)] = np.where(known, values, kept)


def index_of(box: Box) -> tuple[slice, ...]:
    y0, x0, y1, x1 = (n + MIDDLE for n in (box.y0, box.x0, box.y1, box.x1))
    return slice(None), slice(None), slice(y0, y1), slice(x0, x1)


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
        try:
            requests = read_signed(self.path)["requests"]
        except FileNotFoundError:
            requests = []
        of_levels = (
            [windows_from_json(request[level], self.patch) for request in requests] for level in range(self.levels)
        )
        return tuple(tuple(windows for windows in level if len(windows)) for level in of_levels)

    def add(self, needed: Sequence[Windows]) -> None:
        """Enter what a request has made known. Rank 0 calls this."""
        try:
            requests = read_signed(self.path)["requests"]
        except FileNotFoundError:
            requests = []
        write_signed(self.path, {"requests": [*requests, [windows_as_json(windows) for windows in needed]]})
