"""Two regions of a plane that overlap are the same there: random pairs of every kind, on 1 to 3 ranks, far away too.

A few pairs of every kind are in ``make test``; ``make test-long`` has 200 around the origin and 16 at 2^31 px and
-2^31 px. ``-k "pixels and 12"`` runs a part of them.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from launching import launch
from tiny import make_tiny_label_model, make_tiny_model, make_tiny_pixel_model

from engine.pipeline.plane import read_region
from engine.planning.geometry import Box
from engine.storage.output import Output

pytestmark = pytest.mark.runs

JOB = ("--steps", 3, "--seed", 5, "--shard", 256, "--chunk", 128, "--guidance", 1, "--batch-size", 8)
LATENT, PIXELS = ("--model", "latent", "--decode-overlap", 2), ("--model", "pixels")
LABEL_MODEL = ("--label-model", "maps", "--prompt", "carcinoma")
KINDS = {
    "ddim": (*LATENT, "--labels", "places:tilted"),
    "dpmpp2m": (*LATENT, "--labels", "example", "--solver", "dpmpp2m"),
    "ancestral": (*LATENT, "--label", 1, "--eta", 0.7),
    "label model": (*LATENT, *LABEL_MODEL),
    "label model dpmpp2m held": (*LATENT, *LABEL_MODEL, "--solver", "dpmpp2m", "--hold", 2),
    "pixels": (*PIXELS, "--labels", "places:tilted"),
    "pixels dpmpp2m": (*PIXELS, "--labels", "example", "--solver", "dpmpp2m"),
    "pixels ancestral label model": (*PIXELS, *LABEL_MODEL, "--solver", "ddpm"),
}
PAIRS, FAR = 25, 2**31  # pairs of each kind around the origin; px


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[object, Path]:
    """Tiny models by the names that stand for them above; windows of 64 px, of the label map 128 px."""
    folder = tmp_path_factory.mktemp("models")
    return {
        "latent": make_tiny_model(folder / "latent", patch=8),
        "pixels": make_tiny_pixel_model(folder / "pixels", patch=64),
        "maps": make_tiny_label_model(folder / "maps", patch=16, scale=8),
    }


def random_pair(drawn: random.Random, most: int, middle: tuple[int, int]) -> tuple[Box, Box]:
    """Two boxes of 64 px to ``most`` a side, small ones as often as large ones, that overlap around a position."""

    def spans(position: int) -> tuple[tuple[int, int], tuple[int, int]]:
        a, b = (round(64 * (most / 64) ** drawn.random()) for _ in range(2))
        start = position - drawn.randint(0, a)
        shift = drawn.randint(1 - b, a - 1)
        return (start, start + a), (start + shift, start + shift + b)

    (ya, yb), (xa, xb) = (spans(position) for position in middle)
    return Box(ya[0], xa[0], ya[1], xa[1]), Box(yb[0], xb[0], yb[1], xb[1])


def arrays_of(plane: Path, box: Box) -> tuple[np.ndarray, np.ndarray]:
    """Image and labels of a box of a plane."""
    output = Output(plane)
    return read_region(plane, box), output.read(output.layout.labels, output.layout.on_arrays(box))


def check_pair(models: dict[object, Path], folder: Path, kind: str, number: int, most: int = 700, far: int = 0) -> None:
    """Ask two planes for a region each, compare what both have, and ask the one for the other's with what it keeps."""
    drawn = random.Random(f"{kind} {number}")
    middle = tuple(drawn.randint(-900, 900) + far * drawn.choice((-1, 1)) for _ in range(2))
    pair = random_pair(drawn, most, middle)
    options, ranks = [models.get(word, word) for word in KINDS[kind]], drawn.sample((1, 2 + number % 2), 2)

    def ask(count: int, name: str, box: Box) -> None:
        region = f"--region={box.y0}:{box.y1},{box.x0}:{box.x1}"
        done = launch(count, *options, *JOB, "--plane", folder / f"{name}.zarr", region)
        assert done.returncode == 0, done.stderr

    for count, name, box in zip(ranks, "ab", pair, strict=True):
        ask(count, name, box)
    overlap = pair[0] & pair[1]
    assert overlap
    of_a, of_b = (arrays_of(folder / f"{name}.zarr", overlap) for name in "ab")
    for a, b in zip(of_a, of_b, strict=True):
        assert np.array_equal(a, b), (kind, number, pair, ranks)
    assert of_a[0].std() > 0
    ask(ranks[1], "a", pair[1])
    for a, b in zip(*(arrays_of(folder / f"{name}.zarr", pair[1]) for name in "ab"), strict=True):
        assert np.array_equal(a, b), (kind, number, pair, ranks, "with kept levels")


def unless(kind: str, *kinds: str) -> object:
    """A kind, in ``make test-long`` alone unless it is one of some."""
    return pytest.param(kind, marks=() if kind in kinds else pytest.mark.long)


@pytest.mark.parametrize(
    "kind", [unless(kind, "dpmpp2m", "label model dpmpp2m held", "pixels ancestral label model") for kind in KINDS]
)
def test_a_pair_of_regions_agrees_where_it_overlaps(models, tmp_path, kind):
    check_pair(models, tmp_path, kind, -1, most=100)


@pytest.mark.parametrize("kind", ["pixels ancestral label model"])
def test_a_pair_far_away_agrees_where_it_overlaps(models, tmp_path, kind):
    check_pair(models, tmp_path, kind, -2, most=100, far=FAR)


@pytest.mark.long
@pytest.mark.parametrize("number", range(PAIRS))
@pytest.mark.parametrize("kind", KINDS)
def test_random_pairs_of_regions_agree_where_they_overlap(models, tmp_path, kind, number):
    check_pair(models, tmp_path, kind, number)


@pytest.mark.long
@pytest.mark.parametrize("number", range(PAIRS, PAIRS + 2))
@pytest.mark.parametrize("kind", KINDS)
def test_random_pairs_far_away_agree_where_they_overlap(models, tmp_path, kind, number):
    check_pair(models, tmp_path, kind, number, most=200, far=FAR)
