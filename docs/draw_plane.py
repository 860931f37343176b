"""``python docs/draw_plane.py``: the film strip of planes, docs/plane.jpg, from requests that are sampled for it.

One plane of the embedded model after each of three requests, and the last region asked for alone, on a new plane:
the script compares the two and says how many pixels differ. It takes some minutes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from engine.pipeline.plane import read_region
from engine.planning.geometry import Box
from engine.storage.output import Output
from engine.storage.plane_layout import PlaneLayout

ROOT = Path(__file__).parents[1]
JOB = ("--labels", "example", "--seed", "3", "--shard", "256", "--chunk", "256")
REGIONS = (Box(-128, -192, 256, 256), Box(0, 64, 448, 576), Box(-192, 320, 192, 704))
WHOLE = Box(-192, -192, 448, 704)
COLORS = ((30, 110, 200), (210, 90, 20), (20, 140, 80))
STRIP, GAP = 26, 10  # px: height of the words below, and between panels


def ask(plane: Path, region: Box) -> None:
    text = f"--region={region.y0}:{region.y1},{region.x0}:{region.x1}"
    subprocess.run([sys.executable, "-m", "engine.sample", *JOB, "--plane", str(plane), text], cwd=ROOT, check=True)


def picture(plane: Path) -> np.ndarray:
    """uint8 (h, w, 3): what a plane has of the whole box; white where nothing was asked for."""
    output = Output(plane)
    assert isinstance(output.layout, PlaneLayout)
    there = output.layout.on_arrays(WHOLE) & Box(0, 0, *output.layout.size)
    pixels = np.full((3, *WHOLE.shape), 255, np.uint8)
    place = there.within(output.layout.on_arrays(WHOLE))
    pixels[(slice(None), *place)] = output.read(output.layout.image, there)
    return pixels.transpose(1, 2, 0)


def panel(pixels: np.ndarray, framed: list[int], words: str) -> Image.Image:
    shown = Image.fromarray(pixels).resize((WHOLE.width // 2, WHOLE.height // 2), Image.Resampling.LANCZOS)
    drawn = Image.new("RGB", (shown.width, shown.height + STRIP), "white")
    drawn.paste(shown)
    draw = ImageDraw.Draw(drawn)
    for number in framed:
        box = REGIONS[number].moved(-WHOLE.y0, -WHOLE.x0)
        corners = (box.x0 // 2, box.y0 // 2, box.x1 // 2 - 1, box.y1 // 2 - 1)
        draw.rectangle(corners, outline=COLORS[number], width=2)
    draw.rectangle((0, 0, shown.width - 1, shown.height - 1), outline=(200, 200, 200))
    draw.text((4, shown.height + 5), words, "black", ImageFont.load_default(14))
    return drawn


def main() -> None:
    top = argparse.ArgumentParser(prog="python docs/draw_plane.py", description=__doc__)
    top.add_argument("--out", type=Path, default=ROOT / "docs" / "plane.jpg")
    args = top.parse_args()
    panels = []
    with tempfile.TemporaryDirectory() as folder:
        plane, alone = Path(folder) / "plane.zarr", Path(folder) / "alone.zarr"
        for number, region in enumerate(REGIONS):
            ask(plane, region)
            words = ("first request", "second, of which the overlap is known", "third: above, and beside")[number]
            panels.append(panel(picture(plane), list(range(number + 1)), words))
        ask(alone, REGIONS[-1])
        differing = int((read_region(plane, REGIONS[-1]) != read_region(alone, REGIONS[-1])).any(0).sum())
        words = f"the third alone, on a new plane: {differing} pixels differ"
        panels.append(panel(picture(alone), [len(REGIONS) - 1], words))
    width, height = panels[0].size
    strip = Image.new("RGB", (2 * width + GAP, 2 * height), "white")
    for number, one in enumerate(panels):
        strip.paste(one, (number % 2 * (width + GAP), number // 2 * height))
    strip.save(args.out, quality=85)
    print(f"{args.out}: {args.out.stat().st_size / 1e3:.0f} kB, {words}")


if __name__ == "__main__":
    main()
