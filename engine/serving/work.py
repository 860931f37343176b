"""The work on a plane that is served: all ranks sample one region after the other, as pages want them."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from engine.command_line import print_error
from engine.distributed.ranks import AgreedError, Ranks
from engine.job import RunOptions, SampleJob
from engine.models.folder import Model
from engine.pipeline.plane import sample_locked
from engine.pipeline.plane_cost import ratio_of, windows_of
from engine.pipeline.plane_request import PlaneRequest, prepare_request
from engine.pipeline.prepared import Prepared
from engine.pipeline.run import kept_models
from engine.pipeline.watch import Silent, Watch
from engine.planning.geometry import Box
from engine.planning.plane import corners_of
from engine.serving.service import Cost, Service
from engine.storage.files import discard
from engine.storage.metadata import kept_provenance
from engine.storage.plane_layout import request_of
from engine.storage.plane_swap import locked, old_of, recover

PAUSE = 0.1  # seconds that ranks wait for work before they look whether they are to end
BUSY = 0.5  # seconds between two looks whether another process has done with the plane
AGAIN = 30.0  # seconds after which what was refused is tried again: a disk may have room then


@dataclass(frozen=True)
class Chosen:
    """What is sampled next.

    Args:
        region: Of the plane, px; None: nothing is wanted any more.
        since: When a page first showed a part of it.
        left: Whether a kill has left it unfinished: it may be large, and is not cancelled.
    """

    region: Box | None
    since: float
    left: bool = False


class Work:
    """The loop of all ranks.

    Args:
        job, options: Of every request; its region comes from the pages.
        service: What pages want and are told; on rank 0 alone.
    """

    def __init__(self, ranks: Ranks, job: SampleJob, options: RunOptions, service: Service | None) -> None:
        self.ranks, self.job, self.options, self.service = ranks, job, options, service
        self.models: dict[Any, list[Model]] = {}
        self.later = 0.0  # until when nothing is sampled, since what a kill has left was refused

    @property
    def plane(self) -> Path:
        return Path(str(self.options.plane)).resolve()

    def run(self) -> None:
        """Sample what is wanted, until a signal. Collective."""
        while not self.ranks.any(self.ranks.stop_requested):
            held = self.hold()
            try:
                if self.ranks.bcast(held is not None):
                    self.one()
            except AgreedError as error:
                self.refused(str(error))
            finally:
                if held is not None:
                    held.close()

    def hold(self) -> IO[str] | None:
        """Lock the plane once something is wanted of it; None: nothing is, or another process has it. Local."""
        service = self.service
        if service is None:
            return None
        try:
            service.learn()
            if service.wanted.next(PAUSE) is None or time.monotonic() < self.later:
                return None
            if old_of(self.plane).exists():
                time.sleep(BUSY)  # another process may be between two renamings
                recover(self.plane)
            return locked(self.plane)
        except (ValueError, OSError) as error:
            service.say(str(error))
            time.sleep(BUSY)
            return None

    def choose(self) -> Chosen:
        """What is sampled next: what a kill has left, or what is wanted most. Rank 0 calls this.

        Raises:
            ValueError: the plane is damaged.
        """
        assert self.service is not None
        left = region_left(self.plane)
        if left is not None:
            return Chosen(left, time.monotonic(), left=True)
        self.service.learn()  # another process may have added to the plane before it was locked
        region, since = self.service.wanted.next(0) or (None, 0.0)
        return Chosen(region, since)

    def one(self) -> None:
        """Sample the region that comes next. Collective.

        Raises:
            AgreedError: it is refused.
        """
        service, ranks = self.service, self.ranks
        chosen = ranks.on_root(self.choose)
        region, begun = chosen.region, time.monotonic()
        if region is None:
            return
        if service is not None:
            service.begin(region)
        try:
            options = replace(self.options, region=corners_of(region))
            request = ranks.on_root(lambda: prepare_request(self.job, options, ranks.size, ranks.local_size))
            watch = Watch(Silent(), lambda level, levels, _: self.after_level(chosen, level, levels))
            done = request.known or sample_locked(ranks, request, self.load, watch)
            ranks.flush()
        except AgreedError:
            self.later = time.monotonic() + AGAIN if chosen.left else 0.0
            if service is not None:
                service.wanted.fail(region, AGAIN)
            self.drop_request(chosen)
            raise
        if not done:
            self.drop_request(chosen)
        if service is not None:
            service.end(cost_of(request, service, begun, chosen.since) if done else None)
            if done and service.last is not None:
                with suppress(ValueError):  # of a damaged plane, which is said when it is looked at next
                    service.learn()
                say(service.last.line())
            elif not ranks.stop_requested:
                say(f"rows {region.y0}:{region.y1}, columns {region.x0}:{region.x1}: cancelled, it left the screen")

    def after_level(self, chosen: Chosen, level: int, levels: int) -> bool:
        """Whether a region is to be left: no page shows any of it. Every rank calls this."""
        if self.service is None or chosen.region is None:
            return False
        self.service.level(level, levels)
        return level < levels and not chosen.left and not self.service.wanted.in_sight(chosen.region)

    def drop_request(self, chosen: Chosen) -> None:
        """Remove a request that does not go on, but for one that was there before. Collective."""
        if not chosen.left:
            self.ranks.on_root(lambda: discard(request_of(self.plane)))

    def refused(self, why: str) -> None:
        """Say what was refused, and go on. Local."""
        if self.service is not None:
            print_error(ValueError(why))
            self.service.end(None, why)

    def load(self, prepared: Prepared, device: str) -> list[Model]:
        return kept_models(self.models, prepared, device)


def region_left(plane: Path) -> Box | None:
    """The region of a request that a kill has left; one that cannot be read is removed. Rank 0 calls this."""
    request = request_of(plane)
    if not request.exists():
        return None
    try:
        provenance = kept_provenance(request) or {}
        return Box(*provenance["identity"]["region"])
    except (KeyError, TypeError, ValueError):
        discard(request)
        return None


def cost_of(request: PlaneRequest, service: Service, begun: float, since: float) -> Cost:
    now, counts, blocks = time.monotonic(), windows_of(request), len(service.wanted.blocks(request.region))
    windows, ratio = (0, 0.0) if request.known else (counts["windows"], ratio_of(request))
    known = sum(counts.values()) - windows
    return Cost(corners_of(request.region), blocks, now - min(since, begun), now - begun, windows, known, ratio)


def say(text: str) -> None:
    """Print a line; where nobody listens, go on."""
    try:
        print(text, flush=True)
    except OSError:
        sys.stdout = open("/dev/null", "w")  # noqa: SIM115
