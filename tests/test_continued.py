"""A finished image is continued past its edge, from its known pixels."""

from __future__ import annotations

import json

import numpy as np
import pytest
from launching import launch, verify
from tiny import make_tiny_label_model, make_tiny_model

import engine
from engine.inputs.continued import Beside, Continued
from engine.parsing import parse
from engine.pipeline.prepare import prepare
from engine.planning.geometry import Box
from engine.storage.output import output_to_read

pytestmark = pytest.mark.runs
JOB = ("--steps", 2, "--guidance", 1, "--label", 1, "--shard", 64, "--chunk", 32, "--preview", "none")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("small"), patch=4)


@pytest.fixture(scope="module")
def image(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("continued") / "image.zarr"
    assert launch(1, "--model", model, *JOB, "--size", "80x100", "--out", out).returncode == 0
    return out


def test_what_is_known_stays_and_the_rest_is_painted_beside_it(model, image, tmp_path):
    outs = []
    for ranks in (1, 2):
        out = tmp_path / f"{ranks}.zarr"
        done = launch(ranks, "--model", model, *JOB, "--continue", image, "--region=-16:70,40:190", "--out", out)
        assert done.returncode == 0, done.stderr
        outs.append(np.asarray(engine.open(out)))
    assert np.array_equal(*outs)
    known = np.asarray(engine.open(image))
    assert outs[0].shape == (3, 86, 150)
    assert np.array_equal(outs[0][:, 16:, :60], known[:, :70, 40:])
    new = outs[0][:, :, 60:]
    assert new.std() > 0
    assert verify(out)[0] == 0
    dataset = json.loads((out / "zarr.json").read_text())["attributes"]["ome"]["multiscales"][0]["datasets"][0]
    assert dataset["coordinateTransformations"][1]["translation"] == [0, -16 * 0.5, 40 * 0.5]


def test_a_region_reads_the_image_where_it_is_and_mirrored_beyond(image):
    output, region = output_to_read(image), Box(-8, 90, 30, 120)
    pixels = np.pad(np.asarray(engine.open(image)), ((0, 0), (8, 0), (0, 20)), mode="symmetric")[:, :38, 90:]
    continued, beside = Continued(output, region), Beside(output, region)
    assert np.array_equal(continued[...,], pixels)
    assert np.array_equal(continued[1, 5:20], pixels[1, 5:20])
    assert np.array_equal(continued[..., 3:9, 8:30], pixels[..., 3:9, 8:30])
    outside = np.ones((38, 30))
    outside[8:, :10] = 0
    assert np.array_equal(beside[...,], outside)
    assert np.array_equal(beside[7:9, 8:11], outside[7:9, 8:11])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--region=0:64,0:64",), "lies inside"),
        (("--region=0:64,104:200",), "has no pixel of"),
        (("--region=-4:64,0:64",), "begin it at -8,0"),
        ((), "`region` Y0:Y1,X0:X1"),
        (("--region=-8:64,0:64", "--strength", 0.5), "`strength`"),
        (("--region=-8:64,0:64", "--size", "64x64"), "`size` 64x64 does not go with `continue_`"),
        (("--region=-8:2147483648,0:64",), "is larger than 2147483648 px a side"),
        (("--region=-800000000:64,-80000000:64",), "the plan needs"),  # at once: the image alone is read for it
    ],
)
def test_what_cannot_be_continued_is_said_in_one_line(model, image, tmp_path, options, expected):
    out = tmp_path / "o.zarr"
    words = ("--model", model, *JOB, "--continue", image, *options, "--out", out)
    with pytest.raises(ValueError, match=expected):
        prepare(*parse([str(word) for word in words]), 1, 1)
    assert not out.exists()


def test_an_image_is_not_replaced_by_what_continues_it(model, image):
    words = ("--model", model, *JOB, "--continue", image, "--region=-8:64,0:64", "--out", image, "--overwrite")
    with pytest.raises(ValueError, match=r"is read from `out` .*, which it replaces; choose another `out`"):
        prepare(*parse([str(word) for word in words]), 1, 1)


def test_a_label_model_makes_the_labels_of_a_continued_image(model, image, tmp_path):
    labels, out = make_tiny_label_model(tmp_path / "labels"), tmp_path / "o.zarr"
    job = ("--model", model, *JOB[:4], *JOB[6:], "--label-model", labels, "--prompt", 1)
    done = launch(2, *job, "--continue", image, "--region=-16:80,0:100", "--out", out)
    assert done.returncode == 0, done.stderr
    assert engine.open(out).shape == (3, 96, 100)


def test_a_region_without_a_plane_or_an_image_is_refused(model, tmp_path):
    words = ("--model", model, *JOB, "--region=-8:64,0:64", "--out", tmp_path / "o.zarr")
    with pytest.raises(ValueError, match="`plane` or `continue_`"):
        prepare(*parse([str(word) for word in words]), 1, 1)
