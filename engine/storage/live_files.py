"""How far a run is, and a small picture of what it has so far: files of an unfinished output.

They are::

    OUT/slidefield/live/status.json     how far the job is; rank 0 writes it every few seconds
    OUT/slidefield/live/00000.json, ... what each rank does
    OUT/slidefield/live/00000.npz, ...  each rank's part of the picture, with its place in it

A file is there whole or not at all. Nothing waits for the disk: a loss of power may take them, and a run goes on
without.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from engine.planning.preview_grid import PreviewGrid
from engine.storage.files import discard

Stamps = tuple[tuple[str, int, int], ...]
MOST_PIXELS = 2**22  # of the whole picture of a part that is read


@dataclass(frozen=True, eq=False)
class PicturePart:
    """One rank's part of the picture: rows of its whole width.

    Args:
        grid: What the pixels of the whole picture stand for.
        factor: Pixels of the image per latent.
        level: Levels that are done.
        top: The first row.
        pixels: uint8 (h, w, 4), RGBA; transparent where the part is another rank's.
    """

    grid: PreviewGrid
    factor: int
    level: int
    top: int
    pixels: np.ndarray


class LiveFiles:
    """The files of an output about the run under way.

    Args:
        private: The output's folder ``slidefield``.
    """

    def __init__(self, private: Path) -> None:
        self.folder = private / "live"
        self.made = False  # once: what is late finds no folder any more, and leaves nothing in a finished output

    # -- written by a run --

    def write_status(self, facts: Mapping[str, Any]) -> None:
        """Say how far the job is. Rank 0 calls this."""
        self._write("status.json", lambda stream: stream.write(json.dumps(facts).encode()))

    def write_rank(self, rank: int, facts: Mapping[str, Any]) -> None:
        """Say what a rank does."""
        self._write(f"{rank:05}.json", lambda stream: stream.write(json.dumps(facts).encode()))

    def write_part(self, rank: int, part: PicturePart) -> None:
        """Put a rank's part of the picture in the place of the one before."""
        facts = {**asdict(part.grid), "factor": part.factor, "level": part.level, "top": part.top}
        text = np.frombuffer(json.dumps(facts).encode(), np.uint8)
        self._write(f"{rank:05}.npz", lambda stream: np.savez(stream, facts=text, pixels=part.pixels))

    def _write(self, name: str, write: Callable[[IO[bytes]], Any]) -> None:
        if not self.made:
            self.folder.mkdir(exist_ok=True)
            self.made = True
        temporary = self.folder / f"{name}.partial"
        try:
            with temporary.open("wb") as stream:
                write(stream)
            temporary.rename(self.folder / name)
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise

    def remove(self) -> None:
        """Remove all of it; a run that begins afterwards writes it anew. Rank 0 calls this."""
        discard(self.folder)

    # -- read by those who watch --

    def stamps(self, suffix: str) -> Stamps:
        """What changes when files with an ending do: the name, time and size of each, by name."""
        try:
            files = sorted(self.folder.glob(f"*{suffix}"))
            facts = [(file.name, file.stat()) for file in files]
        except OSError:  # one was removed meanwhile
            return ()
        return tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in facts)

    def status(self) -> dict[str, Any] | None:
        """How far the job is; None: nothing is said of it."""
        return self._read("status.json")

    def ranks(self, most: int) -> list[dict[str, Any]]:
        """What the first ``most`` ranks do, of those that say so."""
        names = sorted(file.name for file in self.folder.glob("[0-9]*.json"))[:most]
        return [facts for facts in map(self._read, names) if facts is not None]

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            facts = json.loads((self.folder / name).read_text())
        except (OSError, ValueError, RecursionError):
            return None
        return facts if isinstance(facts, dict) else None

    def parts(self) -> Iterator[PicturePart]:
        """The parts of the picture that are there and can be read."""
        for file in sorted(self.folder.glob("[0-9]*.npz")):
            with suppress(Exception):  # of a damaged file numpy, zipfile and json raise errors of many kinds
                yield read_part(file)


def read_part(file: Path) -> PicturePart:
    """Read a part of the picture.

    Raises:
        Exception: it is damaged.
    """
    with np.load(file, allow_pickle=False) as content:
        if any(entry.file_size > 4 * MOST_PIXELS for entry in content.zip.infolist()):
            raise ValueError(f"{file} is too large for a part of a picture")
        facts, pixels = json.loads(content["facts"].tobytes()), content["pixels"]
    height, width = map(int, facts["frame"])
    grid = PreviewGrid((height, width), int(facts["images"]), int(facts["step"]))
    part = PicturePart(grid, int(facts["factor"]), int(facts["level"]), int(facts["top"]), pixels)
    rows, columns = grid.shape
    whole = pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[1:] == (columns, 4)
    whole = whole and min(height, width, grid.images, grid.step, part.factor) >= 1
    if not whole or rows * columns > MOST_PIXELS or not 0 <= part.top <= rows - len(pixels):
        raise ValueError(f"{file} is no part of a picture")
    return part
