"""Outputs whose arrays lie in an object store: real runs against an S3 server on the loopback."""

import json
import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import zarr
from launching import Running, launch_alone, sha, tree, verify

import engine
import engine.export
from engine.api.image import Damaged
from engine.command_line import STOPPED
from engine.storage.metadata import keep_metadata
from engine.storage.output import Output
from engine.storage.remote_output import claim
from engine.storage.remote_shards import RemoteShards, Unreachable

pytest.importorskip("s3fs", reason="pip install s3fs")
pytest.importorskip("moto.server", reason="pip install 'moto[server]'")
from object_store import BUCKET, ObjectStore

pytestmark = pytest.mark.runs
OPTIONS = {"size": (256, 300), "shard": 128, "chunk": 64, "steps": 2, "label": 1}
FLAGS = ("--size", "256x300", "--shard", 128, "--chunk", 64, "--steps", 2, "--label", 1)
SHARD = "x.zarr/0/c/"  # in the address of every shard of the image at full size


@pytest.fixture(scope="module")
def store():
    """The server, in the environment of this process."""
    server, before = ObjectStore(), dict(os.environ)
    os.environ.update(server.environment)
    server.files.mkdir(BUCKET)
    yield server
    server.close()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def pipe(tiny_model):
    return engine.Pipeline(tiny_model)


@pytest.fixture(scope="module")
def local(pipe, tmp_path_factory):
    """The same job as all of these, whose output lies on the disk."""
    return pipe(**OPTIONS, out=tmp_path_factory.mktemp("local") / "x.zarr", progress=False)


@pytest.fixture(scope="module")
def sampled(pipe, store, tmp_path_factory):
    """A finished output in the store, which tests leave as it is."""
    return pipe(**OPTIONS, out=f"s3://{BUCKET}/kept/x.zarr", scratch=tmp_path_factory.mktemp("kept"), progress=False)


@pytest.fixture
def copy(sampled, store, request, tmp_path):
    """A copy of it, to be damaged: (image, its name in the bucket)."""
    name, handle = f"{request.node.name}/x.zarr", tmp_path / "x.zarr"
    store.files.copy(f"{BUCKET}/kept/x.zarr", f"{BUCKET}/{name}", recursive=True)
    shutil.copytree(sampled.path, handle)
    root = handle / "zarr.json"
    root.write_text(root.read_text().replace("/kept/", f"/{request.node.name}/"))
    keep_metadata(handle)
    Output(handle).annotate(state="finished")  # and so says the store
    return engine.open(handle), name


@pytest.mark.smoke
def test_the_image_is_the_same_in_a_store(local, sampled, store):
    assert sampled.verify() == local.verify()
    assert np.array_equal(sampled[:, 100:200, 50:], local[:, 100:200, 50:])
    shards = {name: size for name, size in tree(local.path).items() if "/c/" in name and (local.path / name).is_file()}
    there = store.names("kept/x.zarr")
    assert {name: size for name, size in there.items() if "/c/" in name} == shards
    here = {name for name in tree(sampled.path) if (sampled.path / name).is_file()}
    assert not {name for name in here if "/c/" in name}
    assert {name for name in there if "/c/" not in name} == here - {"slidefield/lock", "slidefield/times.json"}
    assert sampled.provenance["store"] == f"s3://{BUCKET}/kept/x.zarr"
    facts = {*local.provenance} | {"store", "store_id"}
    assert {*sampled.provenance} == facts


def test_others_read_what_lies_in_the_store(local, sampled):
    group = zarr.open_group(f"s3://{BUCKET}/kept/x.zarr", mode="r")
    assert np.array_equal(np.asarray(group["0"]), local[...])
    assert group.attrs["ome"] == zarr.open_group(local.path, mode="r").attrs["ome"]
    assert group.attrs["slidefield"]["state"] == "finished"
    assert {name for name, _ in group.members()} == {name for name, _ in zarr.open_group(local.path).members()}


@pytest.mark.long
def test_three_ranks_put_the_same_shards(tiny_model, store, local, tmp_path):
    out = f"s3://{BUCKET}/three/x.zarr"
    flags = ("--model", tiny_model, *FLAGS, "--out", out, "--scratch", tmp_path)
    done = launch_alone(3, *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"finished {out} in" in done.stdout
    assert not done.stderr.strip()
    assert sha(tmp_path / "x.zarr") == local.verify()
    assert (tmp_path / "x.png").exists()


def test_a_run_that_is_refused_and_killed_goes_on_to_the_same_bytes(tiny_model, pipe, store, local, tmp_path):
    out = f"s3://{BUCKET}/killed/x.zarr"
    flags = ("--model", tiny_model, *FLAGS, "--out", out, "--scratch", tmp_path)
    with store.refusing(lambda method, path: 403 if method == "PUT" and f"{SHARD}0/1/" in path else 0):
        done = launch_alone(2, *flags)
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith(f"error: {out}/0/c/0/1/")
    assert "cannot be written (AccessDenied here)" in lines[0]
    first = {name for name in store.names("killed/x.zarr") if name.startswith("0/c/")}
    assert len(first) < 6
    assert verify(tmp_path / "x.zarr")[0] == STOPPED

    put = []

    def few(method, path):  # one more, and the others wait for the kill
        put.extend([path] if method == "PUT" and SHARD in path else [])
        return 503 if len(put) > 1 and method == "PUT" else 0

    with store.refusing(few):
        run = Running(2, *flags)
        assert run.wait_until(lambda: len(put) > 1)
        run.kill()
    assert verify(tmp_path / "x.zarr")[0] == STOPPED
    second = {name for name in store.names("killed/x.zarr") if name.startswith("0/c/")}
    assert first < second
    assert len(second) < 6

    before = len(store.asked)
    assert pipe(**OPTIONS, out=out, scratch=tmp_path, progress=False).verify() == local.verify()
    again = {path.partition("x.zarr/")[2] for method, path in store.asked[before:] if method == "PUT"}
    assert not first & again  # what the ledger has is not put again


def test_an_error_that_passes_is_asked_again(pipe, store, local, tmp_path):
    refusals = []

    def twice(method, path):
        if method == "PUT" and SHARD in path and len(refusals) < 2:
            refusals.append(path)
            return 503
        return 0

    with store.refusing(twice):
        image = pipe(**OPTIONS, out=f"s3://{BUCKET}/again/x.zarr", scratch=tmp_path, progress=False)
    assert len(refusals) == 2
    assert image.verify() == local.verify()


def test_a_store_that_cannot_be_read_is_no_damage(copy, store):
    image, _ = copy
    with store.refusing(lambda method, path: 403 if method == "GET" and SHARD in path else 0):
        with pytest.raises(Unreachable, match="0/c/0/0/0 cannot be read"):
            image[:, :9, :9]
        status, line = verify(image.path)
    assert (status, line.count("\n")) == (1, 0)
    assert "cannot be read (AccessDenied here); look at the connection" in line
    assert sha(image.path)


def test_lost_and_truncated_objects_are_named_and_mended(copy, store, pipe, local):
    image, name = copy
    top = f"{BUCKET}/{name}"
    store.files.rm_file(f"{top}/0/c/0/0/1")
    store.files.pipe_file(f"{top}/0/c/0/1/2", store.files.cat_file(f"{top}/0/c/0/1/2")[:-7])
    store.files.pipe_file(f"{top}/1/c/0/0/0", b"\0" * store.files.size(f"{top}/1/c/0/0/0"))
    store.files.rm_file(f"{top}/1/zarr.json")
    status, lines = verify(image.path)
    assert status == 1
    assert f"s3://{top}/1/zarr.json is missing" in lines
    assert "array 0 shard rows 0:128 columns 128:256 is missing" in lines
    assert "array 0 shard rows 128:256 columns 256:300 has" in lines
    assert "array 1 shard rows 0:128 columns 0:128 cannot be read" in lines
    assert "damaged: 4 files" in lines
    with pytest.raises(Damaged, match=f"s3://{top}/0/c/0/0/1 is gone"):
        image[:, :9, 130]
    again = {**OPTIONS, "out": f"s3://{top}", "scratch": image.path.parent, "progress": False}
    with pytest.raises(ValueError, match="with `mend` samples it again"):
        pipe(**again)
    mended = pipe(**again, mend=True)
    assert mended.verify() == local.verify()
    assert verify(image.path)[0] == 0


def test_every_command_reads_through_the_handle(sampled, local, tmp_path, store):
    from engine.exports.source import finished_output
    from engine.reporting.page import write_report
    from engine.viewing.viewer import Viewer

    tiles = [Viewer([image.path], quality=None).tile(0, "image", 0, 0, 0, 0, True).make() for image in (sampled, local)]
    assert tiles[0] == tiles[1]
    for image, name in ((sampled, "a"), (local, "b")):
        assert engine.export.main([str(image.path), str(tmp_path / name)]) == 0
    files = [tree(tmp_path / name) for name in "ab"]
    assert all(of_one.pop("export.json") for of_one in files)  # it has the provenance
    assert files[0] == files[1]
    assert finished_output(sampled.path).finished
    measured = [image.evaluate(local.path, metrics="seams") for image in (sampled, local)]
    assert [m.value for m in measured[0].measures] == [m.value for m in measured[1].measures]
    assert write_report(sampled.path, tmp_path / "report.html").exists()
    assert np.array_equal(sampled.to_dask()[:, :200, :200].compute(), local[:, :200, :200])


def test_a_damaged_shard_is_hatched_and_not_black(copy, store):
    from engine.viewing.viewer import Viewer

    image, name = copy
    viewer = Viewer([image.path], quality=None)
    before = viewer.tile(0, "image", 0, 0, 0, 0, True)
    store.files.pipe_file(f"{BUCKET}/{name}/0/c/0/0/0", b"nothing")
    after = viewer.tile(0, "image", 0, 0, 0, 0, True)
    assert before.tag != after.tag
    after.make()
    assert "array 0 shard rows 0:128" in json.dumps(viewer.facts()[0]["state"]["damaged"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"out": f"s3://{BUCKET}/x.zarr"}, "pass `scratch` DIR too"),
        ({"out": "x.zarr", "scratch": "here"}, "and `out` .*x.zarr is a path; leave `scratch` out"),
        ({"out": "http://host/x.zarr", "scratch": "here"}, "outputs are not written to http://; pass a path"),
        ({"out": "s3:///x.zarr", "scratch": "here"}, "names no output in a store"),
        ({"out": "s3://x.zarr", "scratch": "here"}, "names no output in a store"),
        ({"out": "s3://nowhere/x.zarr", "scratch": "here"}, "zarr.json cannot be read .The specified bucket does not"),
        ({"out": Path(f"s3://{BUCKET}/x.zarr")}, "is a URL that lost a slash"),
        ({"out": f"s3://{BUCKET}/kept/x.zarr", "scratch": "here"}, "holds an output of another `scratch` folder"),
        ({"out": f"s3://{BUCKET}/kept", "scratch": "here", "overwrite": True}, "is no output of engine.sample; remove"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(pipe, store, sampled, tmp_path, monkeypatch, options, says):
    monkeypatch.chdir(tmp_path)
    before, there = tree(tmp_path), store.names()
    with pytest.raises(ValueError, match=says) as refusal:
        pipe(**OPTIONS, **options, progress=False)
    assert "\n" not in str(refusal.value)
    assert tree(tmp_path) == before
    assert store.names() == there


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"AWS_ACCESS_KEY_ID": None}, "Unable to locate credentials"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "Could not connect to the endpoint"),
    ],
)
def test_a_store_out_of_reach_is_said_before_sampling(pipe, store, tmp_path, monkeypatch, changes, says):
    for name, value in changes.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    with pytest.raises(ValueError, match=says):
        pipe(**OPTIONS, out=f"s3://{BUCKET}/far/x.zarr", scratch=tmp_path / "new", progress=False)
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("part", ["/zarr.json", "/0/zarr.json"])
def test_without_the_right_to_write_nothing_is_sampled(pipe, store, tmp_path, part):
    levels = []
    with (
        store.refusing(lambda method, path: 403 if method == "PUT" and path.endswith(part) else 0),
        pytest.raises(ValueError, match=r"zarr.json cannot be written .AccessDenied here"),
    ):
        pipe(
            **OPTIONS,
            out=f"s3://{BUCKET}/closed/x.zarr",
            scratch=tmp_path / "new",
            progress=False,
            on_level=lambda *level: levels.append(level),
        )
    assert not levels
    assert tree(tmp_path) == {}
    assert store.names("closed") == {}


def test_another_run_at_the_place_is_refused_whoever_comes_second(copy, store):
    image, name = copy
    with pytest.raises(ValueError, match="holds an output of another"):
        claim(RemoteShards(f"s3://{BUCKET}/{name}"), image.path, "another's")


def test_overwrite_replaces_an_output_of_ours_and_all_of_it(pipe, store, local, copy, tmp_path):
    image, name = copy
    assert "0/c/0/1/2" in store.names(name)
    smaller = pipe(
        **{**OPTIONS, "size": (128, 128)},
        out=f"s3://{BUCKET}/{name}",
        scratch=tmp_path / "other",
        overwrite=True,
        progress=False,
    )
    assert [n for n in store.names(name) if n.startswith("0/c/")] == ["0/c/0/0/0"]
    assert smaller.verify()
    status, lines = verify(image.path)  # the first handle is of an output that is no more
    assert status == 1
    assert "is missing" in lines


def test_a_handle_is_of_one_url(pipe, sampled, store):
    with pytest.raises(ValueError, match=r"is the handle of s3://field/kept/x.zarr, and `out` is s3://field/b/x.zarr"):
        pipe(**OPTIONS, out=f"s3://{BUCKET}/b/x.zarr", scratch=sampled.path.parent, progress=False)
    assert pipe(**OPTIONS, out=sampled.path, progress=False).verify() == sampled.verify()  # it stands for the output


def test_the_memory_of_a_process_is_for_one_rank(pipe, local, tmp_path):
    place = {"out": "memory://x.zarr", "scratch": tmp_path}
    assert pipe(**OPTIONS, **place, progress=False).verify() == local.verify()
    with pytest.raises(ValueError, match=r"`out` memory://x.zarr is the memory of one process and 2 ranks write"):
        pipe.plan(**OPTIONS, **place, ranks=2)


@pytest.mark.parametrize(("package", "url"), [("gcsfs", "gs://bucket/x.zarr"), ("adlfs", "az://bucket/x.zarr")])
def test_another_store_without_its_library_is_one_line_before_sampling(package, url, tiny_model, tmp_path):
    if find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    done = launch_alone(1, "--model", tiny_model, *FLAGS, "--out", url, "--scratch", tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: {url}: {url[:5]} needs {package}: pip install {package}\n"
    assert not any(tmp_path.iterdir())


def test_a_library_that_is_not_there_is_named(pipe, store, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ValueError, match=r"^s3://field/n/x.zarr: s3:// needs s3fs: pip install s3fs$"):
        pipe(**OPTIONS, out=f"s3://{BUCKET}/n/x.zarr", scratch=tmp_path, progress=False)
    assert tree(tmp_path) == {}


def test_a_url_is_refused_by_those_who_read(sampled):
    with pytest.raises(ValueError, match=r"s3://field/kept/x.zarr is in an object store; give its handle .*DIR/x.zarr"):
        sampled.evaluate(f"s3://{BUCKET}/kept/x.zarr")
    status, line = verify(f"s3://{BUCKET}/kept/x.zarr")
    assert status == 1
    assert "give its handle instead" in line


def test_a_plan_says_where_things_go(pipe, tmp_path):
    plan = pipe.plan(**OPTIONS, out=f"s3://{BUCKET}/x.zarr", scratch=tmp_path)
    there = pipe.plan(**OPTIONS, out=tmp_path / "x.zarr")
    assert plan.facts["store"] == f"s3://{BUCKET}/x.zarr"
    assert f"arrays         s3://{BUCKET}/x.zarr; the rest: {tmp_path / 'x.zarr'}" in repr(plan)
    assert plan.facts["disk_bytes_at_least"] < there.facts["disk_bytes_at_least"]
