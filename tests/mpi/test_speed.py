"""Ranks of different speed: less work for the slow, the same bytes; and what a level's messages cost nobody's time."""

import json
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import make_tiny_model

from engine.parsing import parse
from engine.pipeline.prepare import prepare
from engine.pipeline.run import load_models, run
from engine.storage.integrity import pixels_sha256
from engine.storage.output import Output

SLOWNESS = 4  # times that the slow rank takes for a micro-batch, as itself measures: whatever else the machine does


@pytest.fixture
def folder(ranks):
    made = ranks.on_root(lambda: tempfile.mkdtemp(prefix="slidefield-"))
    yield Path(made)
    ranks.barrier()
    if ranks.rank == 0:
        shutil.rmtree(made)


def sampled(ranks, folder, name, slowness):
    """The sha256 of a run in which rank 0 is slow, and how many micro-batches each rank asked for, level by level."""
    asked = {}

    def load(prepared, device):
        (model,) = load_models(prepared, device)

        def network(x, t, inputs):
            asked[int(t[0])] = asked.get(int(t[0]), 0) + 1
            begun = time.perf_counter()
            estimate = model.network(x, t, inputs)
            time.sleep((slowness - 1) * (time.perf_counter() - begun) if ranks.rank == 0 else 0.0)
            return estimate

        return [replace(model, network=network)]

    arguments = ["--model", str(folder / "model"), "--size", "384x512", "--shard", "128", "--chunk", "64"]
    arguments += ["--labels", "example", "--steps", "8", "--batch-size", "1", "--preview", "none"]
    job, options = parse([*arguments, "--out", str(folder / name)])
    assert run(ranks, ranks.on_root(lambda: prepare(job, options, ranks.size, 1)), load)
    counts = ranks.allgather([count for _, count in sorted(asked.items(), reverse=True)])
    output = Output(folder / name)
    return ranks.on_root(lambda: pixels_sha256(output)), counts, output.provenance["seconds"]


def test_a_slow_rank_is_dealt_less_and_the_bytes_are_the_same(ranks, folder):
    if ranks.size == 1:
        pytest.skip("one rank is as fast as itself; run with mpiexec -n 2")
    ranks.on_root(lambda: make_tiny_model(folder / "model"))
    expected, even, _ = sampled(ranks, folder, "even.zarr", 1)
    sha, counts, seconds = sampled(ranks, folder, "slow.zarr", SLOWNESS)
    assert sha == expected
    assert json.dumps(seconds["split"])
    total = [sum(level) for level in zip(*counts, strict=True)]
    assert total == [sum(level) for level in zip(*even, strict=True)]
    assert counts[0][0] >= total[0] // ranks.size - 6  # nothing is known of anybody's speed yet
    assert sum(counts[0][3:]) < 0.7 * sum(total[3:]) / ranks.size
