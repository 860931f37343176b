"""Statistics through dask are numpy's, on threads and on a cluster."""

import sys

import numpy as np
import pytest
from launching import launch

from engine.distributed.launch import ranks_of
from engine.distributed.ranks import AgreedError
from engine.evaluation.arrays import array_measures
from engine.planning.geometry import Box
from engine.storage.output import Output

pytestmark = pytest.mark.runs


@pytest.fixture(scope="module")
def out(tiny_model, tmp_path_factory):
    """An image of several shards, the last ones cut."""
    path = tmp_path_factory.mktemp("arrays") / "o.zarr"
    options = ("--size", "360x520", "--steps", 1, "--shard", 256, "--chunk", 64, "--labels", "example")
    assert launch(2, "--model", tiny_model, *options, "--preview", "none", "--out", path).returncode == 0
    return path


@pytest.fixture(scope="module")
def statistics(out):
    return array_measures(ranks_of(), out)


def test_areas_densities_and_histograms_by_label_are_numpys(out, statistics):
    measures, (density, intensities) = statistics
    output = Output(out)
    box = Box(0, 0, *output.layout.size)
    image, labels = output.read("0", box), output.read(output.layout.labels, box)
    names = [name for name, _ in output.layout.label.entries]
    values = -np.log10((image + 1.0) / 256)
    assert sum(measure.value for measure in measures) == pytest.approx(100)
    assert [measure.label for measure in measures] == names
    for n, measure in enumerate(measures):
        assert measure.value == pytest.approx(100 * (labels == n).mean())
    assert len(density.rows) > 1
    for name, row in zip(density.rows, density.values, strict=True):
        inside = values[:, labels == names.index(name)]
        assert row == pytest.approx(np.stack([inside.mean(1), inside.std(1)], 1).ravel())
    assert density.columns[:2] == ("R mean", "R spread")
    for name, row in zip(intensities.rows, intensities.values, strict=True):
        label, channel = name.rsplit(" ", 1)
        inside = image["RGB".index(channel), labels == names.index(label)]
        assert row == pytest.approx(100 * np.histogram(inside, 16, (0, 256))[0] / inside.size)


def test_a_set_without_labels_is_of_one_kind(tiny_model, tmp_path):
    path = tmp_path / "set.zarr"
    options = ("--size", "64x64", "--count", 5, "--steps", 1, "--preview", "none")
    assert launch(2, "--model", tiny_model, *options, "--out", path).returncode == 0
    output = Output(path)
    image = np.asarray(output.array("images"))
    measures, (density, _) = array_measures(ranks_of(), path)
    assert sum(measure.value for measure in measures) == pytest.approx(100)
    if output.layout.labels is None:
        assert [measure.label for measure in measures] == ["all"]
        assert density.values[0][0] == pytest.approx(-np.log10((image[:, 0] + 1.0) / 256).mean())


def test_a_cluster_says_the_same(out, statistics, tmp_path):
    distributed = pytest.importorskip("distributed")
    threads = {"n_workers": 2, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(**threads, protocol="tcp", local_directory=str(tmp_path)) as cluster:
        assert array_measures(ranks_of(), out, cluster.scheduler_address) == statistics


def test_no_scheduler_no_dask_and_a_damaged_shard_are_said_in_one_line(out, statistics, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(AgreedError, match=r"`scheduler` tcp://a:1 needs dask.distributed: pip install distributed"):
        array_measures(ranks_of(), out, "tcp://a:1")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "dask", None)
        with pytest.raises(AgreedError, match="statistics of arrays need dask: pip install dask"):
            array_measures(ranks_of(), out)
    with pytest.raises(AgreedError, match=r"none.zarr is not there"):
        array_measures(ranks_of(), tmp_path / "none.zarr")
    shard = Output(out).shard_file("0", Box(0, 0, 256, 256))
    whole = shard.read_bytes()
    try:
        shard.write_bytes(whole[:4000] + bytes(100) + whole[4100:])
        with pytest.raises(AgreedError, match=r"dask could not read .*o.zarr .*engine.verify says whether it is whole"):
            array_measures(ranks_of(), out)
    finally:
        shard.write_bytes(whole)
    assert array_measures(ranks_of(), out) == statistics
