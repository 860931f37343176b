"""``python -m benchmarks.viewing [--side PX]``: how fast engine.view answers for an output as large as a slide.

The output is made cheaply: its shards are links to one whose pixels are those of ``benchmarks/notes/sample.jpg``, so
that decoding and encoding cost what they do of tissue. Measured are tiles that are made, kept, and known to the
browser; the page in headless Chromium, where there is one; and thousands of requests at once, with the server's threads
and memory.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.report import report
from engine.storage.create import create
from engine.storage.image_layout import ImageLayout
from engine.storage.layout import LabelArray
from engine.storage.ledger import FinishedShard
from engine.storage.output import Output

SAMPLE = Path(__file__).parent / "notes" / "sample.jpg"
TISSUE = 768  # px of it that are tissue; the label map stands beside
LABELS = LabelArray("tissue", "uint8", (("unknown", (160, 160, 160)), ("carcinoma", (214, 39, 40))))
ROOT = Path(__file__).parents[1]
CHROMIUM = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")


def build(path: Path, side: int, shard: int, chunk: int) -> None:
    """Make an output of a size, all of whose shards are links to one of each array."""
    layout = ImageLayout((side, side), 3, shard, chunk, LABELS)
    create(path, layout, 0.5, {"identity": {}, "levels": 1, "pixel_size_um": 0.5, "job": {}})
    output = Output(path)
    tissue = np.asarray(Image.open(SAMPLE).convert("RGB"))[:TISSUE, :TISSUE].transpose(2, 0, 1)
    times = -(-shard // TISSUE)
    image = np.tile(tissue, (1, times, times))[:, :shard, :shard]
    values = {layout.image: image, str(layout.labels): (image[1] > 150).astype(np.uint8)}
    first = layout.boxes()[0]
    for name, pixels in values.items():
        output.write(name, first, pixels[..., : first.height, : first.width])
    lines = []
    for array in layout.arrays():
        source = output.shard_file(layout.image if len(array.shape) == 3 else str(layout.labels), first)
        for box in layout.boxes(array.level):
            file = output.shard_file(array.name, box)
            file.parent.mkdir(parents=True, exist_ok=True)
            if not file.exists():
                os.link(source, file)
            lines.append(FinishedShard(array.name, box, "", size=source.stat().st_size).line())
    output.ledger.merge()
    output.ledger.merged.write_text("".join(lines))
    output.annotate(state="finished")


@contextmanager
def served(path: Path) -> Iterator[tuple[int, int]]:
    """The port and the process of ``engine.view``, while this lasts."""
    words = [sys.executable, "-m", "engine.view", str(path), "--port", "0"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline().split("/")[2].rpartition(":")[2]), process.pid
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)


def timed(call: Callable[[], Any]) -> float:
    """Milliseconds of a call."""
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def row(what: str, ms: Sequence[float]) -> dict[str, Any]:
    """A row of the report."""
    ordered = sorted(ms)
    tail = ordered[min(int(0.95 * len(ordered)), len(ordered) - 1)]
    return {"what": what, "times": len(ms), "median ms": statistics.median(ms), "95 % ms": tail, "most ms": ordered[-1]}


def tile_rows(port: int, side: int, tiles: int) -> list[dict[str, Any]]:
    """Tiles at full size, one after the other on one connection, as a browser's are."""
    connection = http.client.HTTPConnection("127.0.0.1", port)

    def get(path: str, tag: str = "") -> http.client.HTTPResponse:
        connection.request("GET", path, headers={"If-None-Match": tag} if tag else {})
        response = connection.getresponse()
        response.read()
        return response

    rows, most = [], -(-side // 512)
    random = np.random.default_rng(0)
    for array, extension in (("image", "jpg"), ("tissue", "png")):
        numbers = random.choice(most * most, min(tiles, most * most), replace=False).tolist()
        paths = [f"/0/{array}/0/{n // most}_{n % most}.{extension}" for n in numbers]
        get(f"/0/{array}/1/0_0.{extension}")  # opens the array
        rows.append(row(f"{array} tile, made", [timed(partial(get, path)) for path in paths]))
        kept = paths[-min(len(paths), 100) :]
        rows.append(row(f"{array} tile, kept", [timed(partial(get, path)) for path in kept]))
        tags = {path: get(path).headers["ETag"] for path in kept}
        known = [timed(partial(get, path, tags[path])) for path in kept]
        rows.append(row(f"{array} tile, known to the browser", known))
    connection.close()
    return rows


def page_rows(port: int, times: int) -> list[dict[str, Any]]:
    """First paint of the page; empty: there is no Chromium, or nothing that drives it."""
    path = os.environ.get("SLIDEFIELD_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        path = None
    if path is None:
        print("no Chromium, or no playwright: the page is not measured")
        return []
    first: list[float] = []
    whole: list[float] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(CHROMIUM))
        for _ in range(times):
            context = browser.new_context(viewport={"width": 1280, "height": 800})  # its cache is empty
            page = context.new_page()
            page.goto(f"http://127.0.0.1:{port}/")
            page.wait_for_function("() => performance.getEntriesByName('sharp').length > 0")
            marks = "['first-tile', 'sharp'].map(name => performance.getEntriesByName(name)[0].startTime)"
            for values, value in zip((first, whole), page.evaluate(marks), strict=True):
                values.append(value)
            context.close()
        browser.close()
    return [row("page, the image is there", first), row("page, the image is sharp", whole)]


async def at_once(port: int, requests: int, side: int) -> Counter[str]:
    """Send so many requests for tiles at once, each on a connection of its own; returns how many had which answer."""
    most = -(-side // 512)

    async def one(n: int) -> str:
        place = n % (most * most)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET /0/image/0/{place // most}_{place % most}.jpg HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        return answer[9:12].decode()

    return Counter(await asyncio.gather(*map(one, range(requests))))


def status_of(pid: int, name: str) -> int:
    """A number out of /proc/PID/status: Threads, VmHWM (KiB)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def crowd(port: int, pid: int, requests: int, side: int) -> dict[str, Any]:
    """Thousands of requests at once, and what they cost the server."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    before, threads = status_of(pid, "VmHWM"), 0

    async def watched() -> Counter[str]:
        nonlocal threads
        job = asyncio.ensure_future(at_once(port, requests, side))
        while not job.done():
            threads = max(threads, status_of(pid, "Threads"))
            await asyncio.sleep(0.05)
        return job.result()

    start = time.perf_counter()
    answers = asyncio.run(watched())
    return {
        "requests": requests,
        "tiles": answers["200"],
        "told to come again": answers["503"],
        "seconds": time.perf_counter() - start,
        "threads": threads,
        "MiB before": before / 1024,
        "MiB at most": status_of(pid, "VmHWM") / 1024,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    top = argparse.ArgumentParser(prog="python -m benchmarks.viewing", description=__doc__)
    top.add_argument("--side", type=int, default=100_000, help="px of the image (default: 100000)")
    top.add_argument("--shard", type=int, default=2048, help="px of a shard (default: 2048)")
    top.add_argument("--chunk", type=int, default=512, help="px of a chunk (default: 512)")
    top.add_argument("--tiles", type=int, default=200, help="tiles of each kind (default: 200)")
    top.add_argument("--pages", type=int, default=7, help="times that the page is opened (default: 7; 0: not)")
    top.add_argument("--requests", type=int, default=10_000, help="requests at once (default: 10000)")
    top.add_argument("--work", type=Path, help="where the output is made (default: a temporary folder)")
    top.add_argument("--json", help="file for the report")
    args = top.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        path = Path(folder) / "large.zarr"
        build(path, args.side, args.shard, args.chunk)
        with served(path) as (port, pid):
            pages = page_rows(port, args.pages) if args.pages else []
            rows = pages + tile_rows(port, args.side, args.tiles)
            crowded = crowd(port, pid, args.requests, args.side)
    print(", ".join(f"{name} {value:.0f}" for name, value in crowded.items()))
    report("viewing", rows, args.json, side=args.side, shard=args.shard, chunk=args.chunk, crowd=crowded)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
