"""``python docs/draw_live.py``: the animation in README, docs/live.gif, from what a run leaves while it samples.

A small job of the embedded model is run with ``--live 0`` and watched as the viewer watches it: whenever there is
something new, the picture that the viewer would show of the whole image is a frame.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from engine.planning.geometry import Box
from engine.storage.output import Output
from engine.viewing.cache import Cache
from engine.viewing.live_picture import live_picture_of
from engine.viewing.pixels import Source, filled_in, pixels
from engine.viewing.watched import Watched

ROOT = Path(__file__).parents[1]
JOB = ("--size", "768x768", "--labels", "example", "--seed", "3", "--shard", "256", "--chunk", "256")
JOB = (*JOB, "--preview", "none", "--live", "0")
LEVEL = 1  # of the pyramid, that frames are made of
STRIP = 22  # px, height of the words below
COLORS = 48
SHOWN, DECODED, LAST = 140, 90, 2500  # ms: a frame of a level, one of decoding, the finished image


def frame(watched: Watched) -> tuple[np.ndarray, str] | None:
    """uint8 (h, w, 3) as the viewer shows it, and how far the run is; None: it has nothing to show yet."""
    output = watched.output()
    source = Source(output, output.layout.image, 0, Cache(2**20, lambda pair: pair[0].nbytes))
    box = Box(0, 0, *output.layout.sizes()[LEVEL])
    values, state = pixels(source, LEVEL, box, lambda shard: None)
    text = "finished"
    if not output.finished:
        estimate, status = live_picture_of(output.live.parts(), ()), output.live.status()
        if estimate is None or status is None:
            return None
        text = f"level {estimate.level} of {output.provenance['levels']}"
        text = "decoding" if status["text"] == "decoding" else text
        small = estimate.read(0, LEVEL, box)
        if small is not None:
            values, state = filled_in(values, state, small)
    return values.transpose(1, 2, 0), text


def frames_of(out: Path, process: subprocess.Popen) -> list[tuple[np.ndarray, str]]:
    """Every picture that a run has to show until it ends, each once."""
    frames: list[tuple[np.ndarray, str]] = []
    while not (out / "zarr.json").exists() and process.poll() is None:
        time.sleep(0.05)
    if not out.exists():
        raise SystemExit(f"the run ended with status {process.wait()}")
    watched = Watched(out)
    while True:
        ended = process.poll() is not None
        now = frame(watched)
        if now and not (frames and np.array_equal(now[0], frames[-1][0])):
            frames.append(now)
        if ended and frames:
            return [*frames[:-1], (frames[-1][0], "finished")]
        if ended:
            raise SystemExit(f"the run ended with status {process.returncode} and had nothing to show")
        time.sleep(0.05)


def drawn(picture: np.ndarray, text: str) -> Image.Image:
    """A frame: the picture, and below it the words."""
    height, width = picture.shape[:2]
    image = Image.new("RGB", (width, height + STRIP), "white")
    image.paste(Image.fromarray(picture), (0, 0))
    font = ImageFont.load_default(size=14)
    ImageDraw.Draw(image).text((6, height + STRIP / 2), text, "#24324a", font, anchor="lm")
    return image


def save(frames: list[tuple[np.ndarray, str]], path: Path, side: int, most: int) -> None:
    """The frames as a GIF with one palette, that of the finished image; of the levels ``most`` frames at most."""
    levels = [one for one in frames if one[1].startswith("level")]
    kept = {round(n) for n in np.linspace(0, len(levels) - 1, min(most, len(levels)))}
    chosen = [one for n, one in enumerate(levels) if n in kept] + frames[len(levels) :]
    images = [
        drawn(np.asarray(Image.fromarray(p).resize((side, side), Image.Resampling.LANCZOS)), t) for p, t in chosen
    ]
    palette = images[-1].quantize(COLORS, Image.Quantize.MEDIANCUT)
    flat = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    times = [SHOWN if text.startswith("level") else DECODED for _, text in chosen[:-1]] + [LAST]
    flat[0].save(path, save_all=True, append_images=flat[1:], duration=times, loop=0, optimize=True)


def main() -> int:
    top = argparse.ArgumentParser(prog="python docs/draw_live.py", description=__doc__)
    top.add_argument("--out", type=Path, default=ROOT / "docs" / "live.gif")
    top.add_argument("--side", type=int, default=400, help="px")
    top.add_argument("--frames", type=int, default=18, help="of levels, at most")
    top.add_argument("--keep", type=Path, help="also write the frames, PNG, into this folder")
    args = top.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "o.zarr"
        words = [sys.executable, "-m", "engine.sample", *JOB, "--out", str(out)]
        process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL)
        frames = frames_of(out, process)
        if process.returncode or not Output(out).finished:
            raise SystemExit(f"the run ended with status {process.returncode}")
    save(frames, args.out, args.side, args.frames)
    if args.keep:
        args.keep.mkdir(parents=True, exist_ok=True)
        for n, (picture, text) in enumerate(frames):
            drawn(picture, text).save(args.keep / f"{n:03}.png")
    print(f"{args.out}: {len(frames)} frames seen, {args.out.stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
