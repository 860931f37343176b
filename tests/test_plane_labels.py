"""Where a plane's labels and embeddings come from: functions of position, or a label model on a plane of its own."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import places
import pytest
from families import make_model
from hypothesis import given
from hypothesis import strategies as st
from launching import Running, launch, verify
from tiny import make_tiny_label_model, make_tiny_model

from engine import Pipeline
from engine.inputs.label_cleanup import MARGIN, clean_labels, cleaned_on_plane, majority_box
from engine.inputs.position_function import function_hash, name_of_given
from engine.pipeline.plane import read_region
from engine.pipeline.plane_growth import plane_layout
from engine.pipeline.plane_labels import read_for
from engine.planning.geometry import Box
from engine.storage.output import Output
from engine.storage.plane_layout import label_plane
from engine.storage.plane_trim import trim

JOB = {"steps": 2, "seed": 5, "shard": 128, "chunk": 64, "guidance": 1, "decode_overlap": 2}
OPTIONS = [text for name, value in JOB.items() for text in (f"--{name.replace('_', '-')}", value)]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with windows of 32 px."""
    return make_tiny_model(tmp_path_factory.mktemp("small"), patch=4)


def asking(model: Path, plane: Path, region: Box, *options: object) -> tuple[object, ...]:
    text = f"--region={region.y0}:{region.y1},{region.x0}:{region.x1}"
    return ("--model", model, *OPTIONS, *options, "--plane", plane, text)


def ask(ranks: int, model: Path, plane: Path, region: Box, *options: object) -> tuple[np.ndarray, np.ndarray, str]:
    """Ask for a region: its image and labels, and what the command said."""
    done = launch(ranks, *asking(model, plane, region, *options))
    assert done.returncode == 0, done.stderr
    return read_region(plane, region), labels_of(plane, region), done.stdout


def labels_of(plane: Path, region: Box) -> np.ndarray:
    """The labels that are stored beside the image."""
    output = Output(plane)
    assert output.layout.labels is not None
    return output.read(output.layout.labels, plane_layout(output).on_arrays(region))


def refusal(ranks: int, *arguments: object) -> str:
    done = launch(ranks, *arguments)
    assert done.returncode == 1, done.stdout
    assert done.stderr.startswith("error: "), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


# ---- a function of position -------------------------------------------------------------------


@pytest.mark.runs
def test_labels_are_those_that_a_function_gives_for_their_positions(small, tmp_path):
    plane, region = tmp_path / "plane.zarr", Box(-30, 2**31 - 20, 40, 2**31 + 60)
    image, labels, _ = ask(2, small, plane, region, "--labels", "places:tilted")
    assert np.array_equal(labels, places.tilted(region))
    assert image.std() > 0
    span = (region.y0, region.y1), (region.x0, region.x1)
    pipe = Pipeline(small, **JOB)
    pipe.plane(plane, *span, labels=places.tilted, progress=False)  # is there already
    pipe.plane(tmp_path / "python.zarr", *span, labels=lambda box: places.tilted(box).astype(np.int8), progress=False)
    assert np.array_equal(read_region(tmp_path / "python.zarr", region), image)
    with pytest.raises(ValueError, match="its labels_function is places:tilted"):
        pipe.plane(plane, (0, 9), (0, 9), labels=lambda box: places.tilted(box), progress=False)


@pytest.mark.runs
def test_a_function_makes_the_labels_of_an_image_too(small, tmp_path):
    out = tmp_path / "image.zarr"
    done = launch(3, "--model", small, *OPTIONS, "--size", "40x70", "--labels", "places:tilted", "--out", out)
    assert done.returncode == 0, done.stderr
    assert np.array_equal(Output(out).read("labels/tissue/0", Box(0, 0, 40, 70)), places.tilted(Box(0, 0, 40, 70)))


def test_functions_are_told_apart_by_name_and_source():
    def one(box):
        return np.zeros(box.shape, int)

    def other(box):
        return np.ones(box.shape, int)

    hashes = {function_hash(name_of_given(function), "labels") for function in (one, other, places.tilted)}
    assert len(hashes) == 3
    assert function_hash(name_of_given(places.tilted), "labels") == function_hash("places:tilted", "labels")


def test_functions_are_told_apart_by_what_they_bring_along():
    def every(step, table):
        return lambda box: np.full(box.shape, table[step])

    def with_step(box, step):
        return np.full(box.shape, step)

    table = np.arange(3)
    given = [
        every(1, table),
        every(2, table),
        every(1, table + 1),
        partial(with_step, step=1),
        partial(with_step, step=2),
    ]
    assert len({function_hash(name_of_given(function), "labels") for function in given}) == len(given)
    again = [function_hash(name_of_given(every(1, np.arange(3))), "labels") for _ in range(2)]
    assert again[0] == again[1]
    with pytest.raises(ValueError, match=r"brings along .*, which nothing tells from another; pass a function"):
        function_hash(name_of_given(every(1, object())), "labels")


@pytest.mark.runs
def test_what_a_function_does_wrong_is_said_in_one_line_before_work_starts(small, tmp_path):
    plane, region = tmp_path / "plane.zarr", Box(-30, 20, 70, 90)
    for name, expected in {
        "of_wrong_shape": "returned int64 of shape (64, 1); return an array of integers of shape (64, 64)",
        "of_floats": "returned float64",
        "unknown": "the model knows 0 unknown, 1 carcinoma",
        "failing": "failed: RuntimeError: the scanner is",
        "leaving": "failed: SystemExit: 3",
        "missing": "cannot be imported",
        "np": "is not a function",
    }.items():
        said = refusal(2, *asking(small, plane, region, "--labels", f"places:{name}"))
        assert f"--labels places:{name}" in said
        assert expected in said, said
        assert not plane.exists()
    said = refusal(1, "--model", small, "--count", 2, "--labels", "places:tilted", "--out", tmp_path / "set.zarr")
    assert "leave out --count" in said
    said = refusal(1, *asking(small, plane, region, "--labels", tmp_path / "map.png"))
    assert "--labels module:function" in said
    said = refusal(3, *asking(small, plane, region, "--labels", "places:failing_on_the_right"))
    assert said.endswith("failed: RuntimeError: nothing is known there\n")
    ask(2, small, plane, Box(0, 0, 20, 20), "--labels", "places:tilted")  # what was left is in nobody's way


# ---- embeddings -------------------------------------------------------------------------------


@pytest.mark.runs
def test_embeddings_by_a_function_are_those_of_a_windows_place(tmp_path):
    model = make_model("large-image-diffusion", tmp_path / "model")
    by = ("--guidance", 2, "--embeddings", "places:embedded", "--region-embeddings", "places:around")
    options = ("--model", model, "--steps", 2, "--seed", 5, *by)
    pairs = [(Box(-30, 2**31 - 20, 40, 2**31 + 60), "a"), (Box(0, 2**31, 60, 2**31 + 90), "b")]
    for ranks, (region, name) in enumerate(pairs, 1):
        text = f"--region={region.y0}:{region.y1},{region.x0}:{region.x1}"
        done = launch(ranks, *options, "--plane", tmp_path / f"{name}.zarr", text)
        assert done.returncode == 0, done.stderr
    overlap = pairs[0][0] & pairs[1][0]
    one, other = (read_region(tmp_path / f"{name}.zarr", overlap) for _, name in pairs)
    assert np.array_equal(one, other)
    pipe, options = Pipeline(model, steps=2, seed=5, guidance=2), {"size": (64, 64), "progress": False}
    same, elsewhere = (
        pipe(**options, embeddings=function, region_embeddings="places:around", out=tmp_path / f"{name}.zarr")
        for name, function in (("here", places.embedded), ("there", lambda box: places.embedded(box) + 1))
    )
    assert not np.array_equal(np.asarray(same), np.asarray(elsewhere)), "what the function says changes nothing"


@pytest.mark.runs
def test_what_a_function_of_embeddings_does_wrong_is_said_in_one_line(tmp_path):
    model = make_model("large-image-diffusion", tmp_path / "model")
    out = ("--out", tmp_path / "out.zarr", "--preview", "none")
    base, image = ("--model", model, "--steps", 2), ("--size", "64x160", *out)
    for words, expected in [
        (("places:around",), "returned float32 of shape (7,); return floating-point numbers of shape (12,)"),
        (("places:tilted",), "returned int64"),
        (("places:not_finite",), "not finite"),
        (("places:embedded", "--pitch", 64), "is for embeddings in a file"),
        (("places:embedded", "--region-embeddings", tmp_path / "r.npy"), "pass functions for both"),
        ((tmp_path / "e.npy", "--plane", tmp_path / "p.zarr", "--region=0:9,0:9"), "has edges; pass --embeddings mod"),
    ]:
        place = () if "--plane" in words else image
        said = refusal(1, *base, *place, "--embeddings", *words)
        assert expected in said, said
    said = refusal(2, *base, *image, "--embeddings", "places:embedded_on_the_left")
    assert said.endswith("columns 64:128 failed: RuntimeError: nothing is known there (rank 1)\n"), said


# ---- a label model ----------------------------------------------------------------------------


@pytest.mark.runs
@pytest.mark.parametrize("grey", [False, True], ids=["a channel a label", "grey"])
def test_labels_are_what_the_label_models_plane_has_there_cleaned_and_enlarged(small, tmp_path, grey):
    scale, plane = 4, tmp_path / "plane.zarr"
    maps = make_tiny_label_model(tmp_path / "maps", 4 if grey else 8, scale, grey)
    options = ("--label-model", maps, "--prompt", 2)
    first, second = Box(-41, -20, 30, 35), Box(-10, 5, 38, 77)
    image, labels, said = ask(2, small, plane, first, *options)
    assert said.count("none is known") == 2
    assert len(np.unique(labels)) > 1
    around = read_for(first, scale)
    sampled = read_region(label_plane(plane), around)[0]
    if grey:
        cleaned = clean_labels((sampled + np.float32(0.5)) / 255, tuple(n - 5 for n in sampled.shape), 5)[4:, 4:]
    else:
        whole = Box(0, 0, *sampled.shape)
        read = {"read": lambda box: np.round(sampled[box.y0 : box.y1, box.x0 : box.x1] * (4 / 255))}
        cleaned = majority_box(read["read"], sampled.shape, whole, 5)[MARGIN:, MARGIN:]
    rows, columns = (np.arange(a, b) // scale - a // scale for a, b in ((-41, 30), (-20, 35)))
    assert np.array_equal(labels, cleaned[np.ix_(rows, columns)])
    *both, said = ask(1, small, plane, second, *options)
    assert said.count("are known") == 2
    alone = ask(3, small, tmp_path / "alone.zarr", second, *options)
    for together, by_itself in zip(both, alone, strict=False):
        assert np.array_equal(together, by_itself)
    assert np.array_equal(read_region(plane, first), image)
    assert verify(plane)[0] == 0
    said = refusal(2, *asking(small, plane, first, "--label-model", maps, "--prompt", "carcinoma"))
    assert "its prompt is necrosis, yours is carcinoma" in said
    levels = label_plane(plane) / "slidefield" / "levels"
    assert levels.exists()
    assert trim(plane)[1] == 0
    assert not levels.exists()
    assert verify(plane)[0] == verify(label_plane(plane))[0] == 0


@pytest.mark.runs
@pytest.mark.long
def test_a_request_that_is_killed_while_its_labels_are_made_goes_on_or_gives_way(small, tmp_path):
    maps, plane = make_tiny_label_model(tmp_path / "maps"), tmp_path / "plane.zarr"
    options = ("--label-model", maps, "--label-steps", 5)
    first, second = Box(0, 0, 50, 50), Box(20, -30, 70, 45)
    alone = ask(1, small, tmp_path / "alone.zarr", first, *options)
    mark = label_plane(plane) / "slidefield" / "request.zarr" / "slidefield" / "checkpoint.json"
    for killed, wanted in ((first, first), (Box(300, 300, 340, 350), second)):
        run = Running(2, *asking(small, plane, killed, *options, "--checkpoint-every", 0))
        assert run.wait_until(mark.exists)
        run.kill()
        image, labels, _ = ask(3, small, plane, wanted, *options)
        both = first & wanted
        here, there = both.within(wanted), both.within(first)
        assert np.array_equal(image[(..., *here)], alone[0][(..., *there)])
        assert np.array_equal(labels[here], alone[1][there])


@given(st.integers(-50, 50), st.integers(-50, 50), st.integers(1, 30), st.integers(1, 30))
def test_a_box_of_a_cleaned_plane_is_that_crop_of_a_larger_one(y, x, h, w):
    def read(box):
        rows, columns = np.arange(box.y0, box.y1)[:, None], np.arange(box.x0, box.x1)
        return ((rows // 9 + columns // 13) % 5) / 4

    whole, box = Box(-60, -60, 90, 90), Box(y, x, y + h, x + w)
    assert np.array_equal(cleaned_on_plane(read, box, 5), cleaned_on_plane(read, whole, 5)[box.within(whole)])
