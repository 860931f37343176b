"""An output that is looked at: meanwhile it may grow, be finished, be replaced, be damaged, or go away."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from engine.command_line import as_flags
from engine.messages import one_line
from engine.planning.geometry import Box
from engine.storage.files import Stamp, checksum, stamp_of
from engine.storage.image_layout import ROI
from engine.storage.integrity import DamagedShard, damaged_shards
from engine.storage.metadata import ROOT
from engine.storage.output import Output, output_to_read
from engine.storage.set_layout import SetLayout
from engine.viewing.live_picture import LivePicture, LiveWatch

MOST_DAMAGED = 1000  # shards that are remembered
MOST_SHOWN = 20  # of them that the page lists
SMALLEST = 256  # px, longest side of the coarsest level: the minimap is no larger
LEDGER_AGE = 1.0  # seconds for which the number of finished shards is taken as known
Entries = tuple[tuple[str, tuple[int, int, int]], ...]


class Gone(ValueError):
    """The output is not there any more, or is none that can be read."""


class Watched:
    """An output under watch. Threads share it.

    Args:
        path: The output's folder. Where nothing is yet, in a folder that is there, a run may be about to make it.
    Raises:
        Gone: there is none, and none can be awaited.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.Lock()
        self.opened: Output | None = None
        self.stamp: Stamp | None = None
        self.damaged: dict[tuple[str, Box], str] = {}
        self.counted: tuple[float, dict[str, int]] = (-LEDGER_AGE, {})
        self.live = LiveWatch()
        if not self.awaited:
            self.output()

    @property
    def awaited(self) -> bool:
        """Whether it never was there, and may come."""
        nothing = not self.path.exists() and not self.path.is_symlink()
        return self.opened is None and nothing and self.path.absolute().parent.is_dir()

    def output(self) -> Output:
        """The output as it is now: opened anew where its metadata changed.

        Raises:
            Gone: it was removed, or is no output any more.
        """
        with self.lock:
            stamp = stamp_of(self.path / ROOT)
            if stamp is None and self.opened is not None and not self.path.exists():
                raise Gone(f"{self.path} cannot be shown: it was removed")
            if self.opened is None or stamp != self.stamp:
                try:
                    self.opened, self.stamp = output_to_read(self.path), stamp
                except (ValueError, OSError, KeyError) as error:
                    raise Gone(str(error)) from None
                self.damaged.clear()
                threading.Thread(target=self.look_for_lost, args=(self.opened,), daemon=True).start()
            return self.opened

    def look_for_lost(self, output: Output) -> None:
        """Find the shards that are lost or of another size than the ledger says; no pixels are read."""
        with suppress(ValueError, OSError):
            for shard in damaged_shards(output, read=False) if output.finished else ():
                if self.opened is not output or not self.note(shard):
                    return

    def note(self, shard: DamagedShard) -> bool:
        """Remember a shard that cannot be shown; False: there are too many."""
        with self.lock:
            if len(self.damaged) < MOST_DAMAGED:
                self.damaged.setdefault((shard.array, shard.box), one_line(as_flags(shard.why)))
            return len(self.damaged) < MOST_DAMAGED

    # -- what the page is told --

    def facts(self, tile: int) -> dict[str, Any]:
        """What the page needs of the output, and its state: JSON values."""
        name = one_line(os.path.basename(os.path.realpath(self.path)))  # resolve() refuses a loop of links
        try:
            output = self.output()
            return {"name": name, **shape_of(output, tile), "state": self.state(output)}
        except (ValueError, OSError) as error:
            why = {"is": "awaited" if self.awaited else "gone", "says": one_line(as_flags(str(error))), "version": ""}
            return {"name": name, "state": why}

    def state(self, output: Output) -> dict[str, Any]:
        """Whether the output is finished, and how far.

        Its ``version`` changes when there is more to see, ``stored`` when shards are written. ``shards`` are those of
        the image at full size. ``live`` is what a run says of itself.
        """
        with self.lock:
            damaged = [str(DamagedShard(*key, why)) for key, why in list(self.damaged.items())[:MOST_SHOWN]]
            count = len(self.damaged)
        version = f"{self.stamp}"
        state: dict[str, Any] = {"is": "finished", "version": version, "stored": version}
        state |= {"damaged": damaged, "damaged_count": count}
        if output.finished:
            return state
        mark = None
        with suppress(
            ValueError, OSError
        ):  # a run writes it meanwhile, or it is damaged, which is no reason not to look
            mark = output.checkpoints.mark()
        done, image = self.finished_shards(output), output.layout.image
        progress = {"level": mark.level if mark else None, "levels": output.provenance.get("levels", 0)}
        live, stored = self.live_picture(output), f"{self.stamp} {sum(done.values())}"
        shown = checksum({"stamp": live.stamp}) if live else ""
        versions = {"stored": stored, "version": f"{stored} {shown}"}
        shards = {"shards": done.get(image, 0), "of": len(output.ledger.shards[image])}
        told = {"live": self.live.facts, "estimated": live is not None}
        return {**state, **progress, **versions, **shards, **told, "is": "unfinished"}

    def live_picture(self, output: Output) -> LivePicture | None:
        """The picture of what is not written yet; None: no run has left one."""
        if output.finished:
            self.live.forget()
        else:
            self.live.look(output.live)
        return self.live.picture

    def finished_shards(self, output: Output) -> dict[str, int]:
        """Number of shards that the ledger names, by array; it is read once a second at most."""
        when, counts = self.counted
        if time.monotonic() - when >= LEDGER_AGE:
            with suppress(OSError):  # it is merged at this moment
                counts = output.ledger.counts()
            self.counted = time.monotonic(), counts
        return counts


def shape_of(output: Output, tile: int) -> dict[str, Any]:
    """Sizes, maps and settings of an output."""
    layout = output.layout
    return {
        "kind": "set" if isinstance(layout, SetLayout) else "image",
        "size": layout.size,
        "count": layout.count if isinstance(layout, SetLayout) else 1,
        "um": output.provenance.get("pixel_size_um"),
        "sizes": level_sizes(output),
        "tile": tile,
        "maps": list(layers_of(output))[1:],
        "in_turn": output.provenance.get("in_turn") or [],
    }


def level_sizes(output: Output) -> list[tuple[int, int]]:
    """Height and width of every level that is shown: those of the pyramid, and halves of it down to a small picture."""
    sizes = output.layout.sizes()
    while max(sizes[-1]) > SMALLEST:
        height, width = sizes[-1]
        sizes.append((-(-height // 2), -(-width // 2)))
    return sizes


def layers_of(output: Output) -> dict[str, str]:
    """The layers, as addresses call them, and their arrays at full size: the image first, then the maps over it."""
    layout = output.layout
    return dict(zip(layer_names(output), layout.finest, strict=True))


def layer_names(output: Output) -> Iterator[str]:
    layout = output.layout
    yield "image"
    if layout.label is not None:
        yield layout.label.name
    if layout.roi is not None:
        yield ROI.name


def entries_of(output: Output, layer: str) -> Entries:
    """Names and colours of the values of a map; empty: they have none."""
    if layer == ROI.name and output.layout.roi is not None:
        return ROI.entries
    return output.layout.label.entries if output.layout.label is not None else ()


def dtype_of(output: Output, name: str) -> np.dtype:
    return np.dtype(output.layout.dtype_of(name))
