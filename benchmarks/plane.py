"""``[mpiexec -n N] python -m benchmarks.plane``: what do regions of a plane cost, and what does ``--hold`` do to seams?

- cones: windows of the cones of regions, over their own area, by ``--hold``; integers, a mean over seeds.
- counted: the same counted twice, as it is planned and as an emulated network is asked, in runs small enough.
- next door: strips beside regions that are known, over their own area; integers.
- seams: what holding does to them, of ordinary images whose lattices are held as a plane's are: inside an image the
  windows are those of a plane, and it takes a twentieth of the evaluations. Score and error are those of all lines of
  the last levels, of all seeds together; the lines of the very last lattice stand apart.
- time: a region of a plane against an ordinary image of as many windows, an emulated network for both.
- access: a region cold, and the one next door, with the model's own network.

With ``--folder`` what was measured stays there, and the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.held import sample_held
from benchmarks.report import report
from benchmarks.scaling import sleep_until
from engine.command_line import comma_separated
from engine.distributed.launch import run_main
from engine.distributed.ranks import Ranks
from engine.evaluation.seams import (
    LAST_LEVELS,
    boxes_of,
    frames_of,
    lines_of,
    measures_of,
    ratios_by_line,
    sums_over,
    window_lines,
)
from engine.models.card import ModelCard, read_card
from engine.models.folder import Model
from engine.parsing import parse
from engine.pipeline.plane import sample_request
from engine.pipeline.plane_request import PlaneRequest, prepare_request
from engine.pipeline.prepare import prepare
from engine.pipeline.prepared import Prepared
from engine.pipeline.run import run
from engine.planning.cover import shifted
from engine.planning.geometry import Box, Frames
from engine.planning.plane import area_ratio, latents_of, lattice_level, needed_windows, offsets
from engine.storage.files import discard
from engine.storage.output import Output

PUBLISHED = {"cold": 1.72, "next door": 0.66}  # seconds of InfiniteDiffusion (SIGGRAPH 2026) for 512 px, its own GPU
Row = dict[str, Any]


# ---- integers alone ---------------------------------------------------------------------------------


def cones(card: ModelCard, args: argparse.Namespace) -> list[Row]:
    """Windows of a region's cone over the region's own area: mean over seeds."""
    return [
        {"region px": side, **{f"hold {hold}": mean_ratio(card, args, side, hold) for hold in args.holds}}
        for side in args.sides
    ]


def mean_ratio(card: ModelCard, args: argparse.Namespace, side: int, hold: int) -> float:
    region = latents_of(Box(0, 0, side, side), card.factor)
    lattices = [offsets(seed, args.levels, card.patch, hold) for seed in range(args.lattices)]
    return float(np.mean([area_ratio(needed_windows(region, one, card.patch), region) for one in lattices]))


def next_door(card: ModelCard, args: argparse.Namespace) -> list[Row]:
    """Windows that a strip beside a known region takes, over the strip's own area: mean over seeds."""
    return [
        {"region px": side, "strip px": f"{side} x {width}"}
        | {f"hold {hold}": strip_ratio(card, args, side, width, hold) for hold in args.holds}
        for side in args.beside
        for width in (args.strip, side)
    ]


def strip_ratio(card: ModelCard, args: argparse.Namespace, side: int, width: int, hold: int) -> float:
    known, strip = (latents_of(box, card.factor) for box in (Box(0, 0, side, side), Box(0, side, side, side + width)))
    ratios = []
    for seed in range(args.lattices):
        lattices = offsets(seed, args.levels, card.patch, hold)
        before = [(windows,) for windows in needed_windows(known, lattices, card.patch)]
        ratios.append(area_ratio(needed_windows(strip, lattices, card.patch, before), strip))
    return float(np.mean(ratios))


# ---- runs -------------------------------------------------------------------------------------------


@dataclass
class Emulated:
    """A network that occupies no core, answers zeros after a while, and counts what it is asked.

    Args:
        milliseconds: For a micro-batch, and for a window of the decoder.
    """

    card: ModelCard
    milliseconds: float
    asked: int = 0

    def load(self, prepared: Prepared, device: str) -> list[Model]:
        return [Model(self.network, self.decode)]

    def network(self, x: Any, t: Any, inputs: Any) -> Any:
        sleep_until(time.perf_counter() + self.milliseconds / 1e3)
        self.asked += len(x)
        return x.new_zeros(len(x), self.card.channels, *x.shape[2:])

    def decode(self, latents: Any) -> Any:
        sleep_until(time.perf_counter() + self.milliseconds / 1e3)
        return latents.new_zeros(
            len(latents), self.card.image_channels, *(n * self.card.factor for n in latents.shape[2:])
        )


def common(args: argparse.Namespace, *options: object) -> list[str]:
    own = ("--model", args.model, "--preview", "none", "--steps", args.levels)
    return [str(word) for word in (*own, *options)]


def request_of(ranks: Ranks, args: argparse.Namespace, plane: Path, region: Box, *options: object) -> PlaneRequest:
    """A request to a plane, checked. Collective."""
    text = f"--region={region.y0}:{region.y1},{region.x0}:{region.x1}"
    job, run_options = parse(common(args, *options, "--plane", plane, text))
    return ranks.on_root(lambda: prepare_request(job, run_options, ranks.size, ranks.local_size))


def windows_of(request: PlaneRequest) -> int:
    assert request.prepared.cone is not None
    return sum(map(len, request.prepared.cone.needed))


def counted(ranks: Ranks, card: ModelCard, args: argparse.Namespace, folder: Path) -> list[Row]:
    """The windows of a region, and of one beside it, as they are planned, and as the network is asked."""
    rows, one = [], ("--label", 1, "--guidance", 1, "--batch-size", 1)  # a micro-batch is filled up
    for side in args.counted:
        for hold in args.holds:
            plane = folder / f"counted-{side}-{hold}.zarr"
            for name, region in (("cold", Box(0, 0, side, side)), ("beside", Box(0, side, side, 2 * side))):
                request = request_of(ranks, args, plane, region, *one, "--hold", hold)
                network = Emulated(card, 0)
                sample_request(ranks, request, network.load)
                asked = sum(ranks.allgather(network.asked))
                rows.append(
                    {"region px": side, "hold": hold, "what": name, "planned": windows_of(request), "asked": asked}
                )
            ranks.barrier()
            ranks.on_root(partial(discard, plane))
    return rows


def seams(ranks: Ranks, card: ModelCard, args: argparse.Namespace, folder: Path) -> list[Row]:
    """The seam score by ``hold``, all seeds together; and a difference line by line at the last lattice that was held.

    The image whose lattices are not held has that lattice too, in one level.
    """
    seen = {
        (hold, seed): kept(
            ranks, folder / f"seams-{hold}-{seed}.json", partial(seams_of, ranks, args, folder, hold, seed)
        )
        for seed in range(args.seeds)
        for hold in args.holds
    }
    rows = []
    for kind in next(iter(seen.values()))["scores"]:
        for hold in args.holds:
            scores = [seen[hold, seed]["scores"][kind] for seed in range(args.seeds)]
            for measure in measures_of(kind, *np.sum(scores, 0)):
                lines = int(sum(score[0] for score in scores))
                rows.append(
                    {"lines": kind, "hold": hold, "number": lines, "ratio": measure.value, "error": measure.error}
                )
    for hold in args.holds:
        held, alone = (
            np.concatenate([seen[which, seed]["held"][str(hold)] for seed in range(args.seeds)])
            for which in (hold, args.holds[0])
        )
        apart = held - alone
        error = float(apart.std(ddof=1) / len(apart) ** 0.5)
        name = f"of the held lattice, less those at hold {args.holds[0]}"
        rows.append({"lines": name, "hold": hold, "number": len(apart), "ratio": float(apart.mean()), "error": error})
    return rows


def seams_of(ranks: Ranks, args: argparse.Namespace, folder: Path, hold: int, seed: int) -> dict[str, Any]:
    """Of one image sums over the lines by kind, and the ratios at the lines of the last lattice that each ``hold``
    keeps for all of its levels. Collective.
    """
    out = folder / f"seams-{hold}-{seed}.zarr"
    sample_held(ranks, common(args, *args.options, "--size", args.size, "--seed", seed, "--out", out), hold)
    output = ranks.agree(lambda: Output(out))
    frames, count = frames_of(output), output.provenance["levels"]
    drawn = [
        held_lines(output, frames, level, hold) for level in range(count - 1, max(count - 1 - LAST_LEVELS, -1), -1)
    ]
    rows, columns = (np.unique(np.concatenate(axis)) for axis in zip(*drawn, strict=True))
    lines = {
        **lines_of(output.provenance, frames, levels=0),
        f"windows of the last {LAST_LEVELS} levels": (rows, columns),
        "windows of the last level": drawn[0],
    }
    layout = output.layout
    ratios = ratios_by_line(ranks, partial(output.read_part, 0), boxes_of(layout), layout.channels)
    ranks.barrier()
    held = {}
    for other in args.holds:
        at = held_lines(output, frames, count - 1, other)
        values = np.concatenate([ratio[np.unique(where)] for ratio, where in zip(ratios, at, strict=True)])
        held[str(other)] = values[~np.isnan(values)].tolist()
    return {"scores": {kind: sums_over(ratios, where).tolist() for kind, where in lines.items()}, "held": held}


def held_lines(output: Output, frames: Frames, level: int, hold: int) -> tuple[np.ndarray, np.ndarray]:
    """The edges of the windows of a level, whose lattice is held."""
    drawn = lattice_level(level, output.provenance["levels"], hold)
    provenance = {**output.provenance, "job": {**output.provenance["job"], "hold": 1}, "levels": drawn + 1}
    return window_lines(provenance, frames, 0, 1)


def compared_times(ranks: Ranks, card: ModelCard, args: argparse.Namespace, folder: Path) -> list[Row]:
    """A region of a plane, and an ordinary image of as many windows, in turns. Collective."""
    plane, image = folder / "time-plane.zarr", folder / "time-image.zarr"
    options = ("--label", 1, "--guidance", 1, "--batch-size", args.batch, "--shard", 512, "--chunk", 512)
    region, seconds = Box(0, 0, args.region, args.region), dict[str, list[float]](region=[], image=[])
    asked: dict[str, int] = {}
    hold = ("--hold", args.hold) if args.hold else ()
    for _ in range(args.repeats):
        request = request_of(ranks, args, plane, region, *options, *hold)
        size = size_of(card, args.levels, windows_of(request))
        for name, work in (
            ("region", lambda load, request=request: sample_request(ranks, request, load)),
            ("image", lambda load, size=size: run(ranks, image_of(ranks, args, image, size, *options), load)),
        ):
            network, begun = Emulated(card, args.milliseconds), time.monotonic()
            work(network.load)
            ranks.barrier()
            seconds[name].append(time.monotonic() - begun)
            asked[name] = sum(ranks.allgather(network.asked))
        for path in (plane, image):
            ranks.on_root(partial(discard, path))
    each = {name: [1e3 * one / asked[name] for one in times] for name, times in seconds.items()}
    ratios = [a / b for a, b in zip(each["region"], each["image"], strict=True)]
    return [
        {"what": name, "px": args.region if name == "region" else f"{size[0]} x {size[1]}", "windows": asked[name]}
        | {"seconds": median(seconds[name]), "ms a window": median(each[name])}
        | {"over the image": median(ratios) if name == "region" else 1.0, "each": ratios if name == "region" else None}
        for name in ("region", "image")
    ]


def image_of(ranks: Ranks, args: argparse.Namespace, out: Path, size: tuple[int, int], *options: object) -> Prepared:
    job, run_options = parse(common(args, *options, "--size", "{}x{}".format(*size), "--out", out))
    return ranks.on_root(lambda: prepare(job, run_options, ranks.size, ranks.local_size))


def size_of(card: ModelCard, levels: int, windows: int) -> tuple[int, int]:
    """The size, px, of an ordinary image of about so many windows in all levels."""
    side = int(math.sqrt(windows / levels) * card.patch)
    near = [(side, side + more) for more in range(-card.patch, card.patch)]
    best = min(near, key=lambda shape: abs(sum(len(shifted(shape, card.patch, 0, n)) for n in range(levels)) - windows))
    return best[0] * card.factor, best[1] * card.factor


def access(ranks: Ranks, card: ModelCard, args: argparse.Namespace, folder: Path) -> list[Row]:
    """A region that is asked for first, and the one next door: with the model's own network. Collective."""
    plane, rows = folder / "access.zarr", []
    hold = ("--hold", args.hold) if args.hold else ()
    side = args.access
    for name, region in (("cold", Box(0, 0, side, side)), ("next door", Box(0, side, side, 2 * side))):
        log, begun = folder / f"access-{name.replace(' ', '-')}.jsonl", time.monotonic()
        ranks.on_root(partial(discard, log))
        request = request_of(ranks, args, plane, region, *args.options, *hold, "--json-log", log)
        if not request.known:
            sample_request(ranks, request)
        ranks.barrier()
        seconds = time.monotonic() - begun
        rows.append(
            {"what": f"{side} px {name}", "windows": windows_of(request), "evaluations": evaluations_in(log)}
            | {"seconds": seconds, "InfiniteDiffusion's seconds": PUBLISHED[name]}
        )
    return rows


def evaluations_in(log: Path) -> int:
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return sum(line.get("evaluations", 0) for line in lines)


# ---- the whole --------------------------------------------------------------------------------------


def kept(ranks: Ranks, path: Path, measure: Callable[[], Any]) -> Any:
    """What was measured before, or is now. Collective."""
    if ranks.on_root(path.exists):
        return ranks.on_root(lambda: json.loads(path.read_text()))
    made = measure()
    ranks.on_root(lambda: path.write_text(json.dumps(made)))
    return made


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m benchmarks.plane", usage="%(prog)s [-- OPTIONS]", description=__doc__)
    numbers = lambda text: tuple(map(int, comma_separated(text)))  # noqa: E731
    parts = ("cones", "next door", "counted", "seams", "time", "access")
    top.add_argument("--parts", type=comma_separated, default=parts, help="(default: all)")
    top.add_argument("--model", default="embedded")
    top.add_argument("--levels", type=int, default=25)
    top.add_argument("--holds", type=numbers, default=(1, 2, 3, 5, 8))
    top.add_argument("--lattices", type=int, default=8, help="seeds that counts are means over")
    top.add_argument("--sides", type=numbers, default=(512, 1024, 2048, 4096, 8192, 16384, 65536), help="of cones, px")
    top.add_argument("--beside", type=numbers, default=(4096, 8192, 16384), help="of known regions, px")
    top.add_argument("--strip", type=int, default=512, help="width of a strip next door, px")
    top.add_argument("--counted", type=numbers, default=(256, 512), help="of regions whose evaluations are counted, px")
    top.add_argument("--seeds", type=int, default=3, help="of seams")
    top.add_argument("--size", default="1536x1536", help="of images whose seams are looked at")
    top.add_argument("--hold", type=int, help="of the plane in time and access (default: a plane's)")
    top.add_argument("--region", type=int, default=2048, help="of time, px")
    top.add_argument("--repeats", type=int, default=3, help="of time")
    top.add_argument("--batch", type=int, default=8, help="windows of a micro-batch, of time")
    top.add_argument("--milliseconds", type=float, default=100.0, help="of an emulated micro-batch, of time")
    top.add_argument("--access", type=int, default=512, help="of access, px")
    top.add_argument("--folder", type=Path, help="where what was measured stays (default: a temporary one)")
    top.add_argument("--json", help="write the report here")
    return top


def bench(ranks: Ranks, args: argparse.Namespace, folder: Path) -> None:
    """Measure part by part. Collective."""
    card = read_card(args.model)
    parts: dict[str, Callable[[], list[Row]]] = {
        "cones": lambda: cones(card, args),
        "next door": lambda: next_door(card, args),
        "counted": lambda: counted(ranks, card, args, folder),
        "seams": lambda: seams(ranks, card, args, folder),
        "time": lambda: compared_times(ranks, card, args, folder),
        "access": lambda: access(ranks, card, args, folder),
    }
    for part in args.parts:
        rows = kept(ranks, folder / f"{part.replace(' ', '-')}.json", parts[part])
        if ranks.rank == 0:
            report(part, rows, None)
    if ranks.rank == 0 and args.json:
        measured = {part: json.loads((folder / f"{part.replace(' ', '-')}.json").read_text()) for part in args.parts}
        first = next(iter(measured))
        facts = {"model": str(args.model), "levels": args.levels, "lattices": args.lattices, "options": args.options}
        report("plane", measured[first], args.json, **facts, ranks=ranks.size, measured=measured)


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    own, options = (given[: given.index("--")], given[given.index("--") + 1 :]) if "--" in given else (given, [])
    args = parser().parse_args(own)
    args.options = options or ["--labels", "example"]

    def whole(ranks: Ranks) -> int:
        with tempfile.TemporaryDirectory() as temporary:
            folder = ranks.on_root(lambda: (args.folder or Path(temporary)).absolute())
            ranks.on_root(lambda: folder.mkdir(parents=True, exist_ok=True))
            bench(ranks, args, folder)
        return 0

    return run_main(whole)


if __name__ == "__main__":
    raise SystemExit(main())
