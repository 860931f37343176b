"""The viewer: tiles are the Zarr's pixels, nothing breaks it, and its page in Chromium shows what it should."""

import hashlib
import http.client
import io
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import numpy as np
import pytest
from browser import WIDTHS, chromium, listened_to, measured, started
from launching import ROOT, environment
from PIL import Image

import engine.view
import engine.viewing.server as serving
from engine.planning.geometry import Box
from engine.planning.preview_grid import PreviewGrid
from engine.storage.create import create
from engine.storage.files import halved
from engine.storage.image_layout import ImageLayout
from engine.storage.layout import LabelArray
from engine.storage.live_files import PicturePart
from engine.storage.output import Output
from engine.storage.set_layout import SetLayout
from engine.viewing.pictures import HATCH
from engine.viewing.server import Server
from engine.viewing.viewer import TILE, Viewer

ARTEFACTS = Path(os.environ.get("SLIDEFIELD_ARTEFACTS", ROOT / "build" / "tests")) / "view"
LABELS = LabelArray(
    "tissue", "uint8", (("unknown", (160, 160, 160)), ("tumour", (214, 39, 40)), ("stroma", (40, 90, 200)))
)
NUCLEI = LabelArray("nuclei", "uint32")
IMAGE = ImageLayout((700, 1100), 3, 512, 128, LABELS, region=True)
SET = SetLayout((96, 120), 3, 128, 64, LABELS, count=50, group=4)


def made(path, layout, finished=True, without=()):
    """An output of noise in waves, whose every pixel is known, with what it was made from.

    Args:
        without: Shards of the image at full size that it lacks.
    """
    facts = {"identity": {}, "levels": 4, "pixel_size_um": 0.5, "job": {}, "in_turn": [{"label": 1}, {"label": 2}]}
    create(path, layout, 0.5, facts)
    output, random = Output(path), np.random.default_rng(0)
    for name in layout.finest:
        for n, box in enumerate(layout.boxes()):
            shape = box.shape if isinstance(layout, ImageLayout) else (box.height, *layout.size)
            lead = (layout.channels,) if name == layout.image else ()
            shape = (*shape[:-2], *lead, *shape[-2:])
            y, x = np.mgrid[: shape[-2], : shape[-1]]
            waves = 120 + 60 * np.sin((y + box.y0) / 40) * np.cos((x + box.x0) / 30)
            values = waves + random.integers(-40, 40, shape) if lead else (waves > 100) * 1 + (waves > 140)
            values = np.broadcast_to(values * (n != 1), shape)  # of the maps one shard has label 0 alone
            if name != layout.image or n not in without:
                output.write(name, box, values.astype(layout.dtype_of(name)))
    for level in range(1, len(layout.sizes()) if finished else 0):
        for name in layout.finest:
            for box in layout.boxes(level):
                output.halve(name, level, box)
    if finished:
        output.ledger.merge()
        output.annotate(state="finished")
    return output


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    return made(tmp_path_factory.mktemp("view") / "an image ü.zarr", IMAGE).path


@pytest.fixture(scope="module")
def image_set(tmp_path_factory):
    return made(tmp_path_factory.mktemp("view") / "set.zarr", SET).path


@pytest.fixture
def copy(image, tmp_path):
    """A copy of the image to damage."""
    return Path(shutil.copytree(image, tmp_path / "copy.zarr"))


@contextmanager
def served(*paths, quality=None, token="", host="127.0.0.1"):
    """A server of outputs, while this lasts."""
    server = Server(Viewer(paths, quality), host, 0, token)
    thread = threading.Thread(target=lambda: server.serve_forever(0.02))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def viewed(image):
    with served(image) as server:
        yield server


def get(server, path, method="GET", **headers):
    """An answer: status, headers, content."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return SimpleNamespace(status=response.status, headers=response.headers, content=content)


def picture(server, path, mode="RGB"):
    answer = get(server, path)
    assert answer.status == 200, answer.content
    return np.asarray(Image.open(io.BytesIO(answer.content)).convert(mode))


def facts(server, index=0):
    return json.loads(get(server, "/outputs.json").content)["outputs"][index]


def stitched(server, array, level, size, mode="RGB"):
    """All tiles of a level, put together."""
    rows = range(-(-size[0] // TILE))
    columns = range(-(-size[1] // TILE))
    tiles = [[picture(server, f"/0/{array}/{level}/{r}_{c}.png", mode) for c in columns] for r in rows]
    return np.concatenate([np.concatenate(row, axis=1) for row in tiles])


def colors_of(labels):
    """Labels as a browser draws them: RGBA."""
    colors = np.array([(*color, 255) for _, color in LABELS.entries], np.uint8)
    colors[0, 3] = 0
    return colors[labels]


def hatched(pixels):
    """Where a picture is hatched, as bool (h, w)."""
    return (pixels[..., None, :3] == HATCH).all(-1).any(-1)


def opened_anew(path):
    """Touch the metadata of an output, so that the viewer opens it anew."""
    facts = (path / "zarr.json").stat()
    os.utime(path / "zarr.json", ns=(facts.st_atime_ns, facts.st_mtime_ns + 1000))


# ---- tiles ------------------------------------------------------------------------------------


def test_tiles_are_the_pixels_of_every_level(image, viewed):
    output = Output(image)
    sizes = facts(viewed)["sizes"]
    assert sizes == [[700, 1100], [350, 550], [175, 275], [88, 138]]
    for level, size in enumerate(sizes[:3]):
        whole = output.read(output.layout.level("0", level), Box(0, 0, *size))
        np.testing.assert_array_equal(stitched(viewed, "image", level, size), whole.transpose(1, 2, 0))
        labels = output.read(output.layout.level("labels/tissue/0", level), Box(0, 0, *size))
        drawn = stitched(viewed, "tissue", level, size, "RGBA")
        np.testing.assert_array_equal(drawn[labels > 0], colors_of(labels)[labels > 0])
        assert not drawn[labels == 0][:, 3].any()
    small = halved(output.read("2", Box(0, 0, 175, 275)))  # the pyramid ends before
    np.testing.assert_array_equal(picture(viewed, "/0/image/3/0_0.png"), small.transpose(1, 2, 0))
    assert picture(viewed, "/0/roi/0/0_0.png", "RGBA")[0, 0].tolist() == [255, 200, 0, 255]


def test_jpeg_is_near_and_lossless_is_asked_for_by_name(image):
    with served(image, quality=90) as server:
        jpeg, png = get(server, "/0/image/0/0_0.jpg"), get(server, "/0/image/0/0_0.png")
        assert (jpeg.headers["Content-Type"], png.headers["Content-Type"]) == ("image/jpeg", "image/png")
        difference = picture(server, "/0/image/0/0_0.jpg").astype(int) - picture(server, "/0/image/0/0_0.png")
        assert 0 < np.abs(difference.mean(2)).mean() < 8  # the noise is coloured, and JPEG halves colour
    with served(image) as server:
        assert get(server, "/0/image/0/0_0.jpg").headers["Content-Type"] == "image/png"


def test_images_of_a_set_have_levels_though_none_are_stored(image_set, tmp_path):
    with served(image_set) as server:
        assert facts(server)["count"] == 50
        whole = Output(image_set).read_part(37, Box(0, 0, 96, 120))
        np.testing.assert_array_equal(picture(server, "/0/image/37/0/0_0.png"), whole.transpose(1, 2, 0))
        assert get(server, "/0/image/50/0/0_0.png").status == 404
    big = made(tmp_path / "big.zarr", SetLayout((600, 1300), 3, 128, 64, NUCLEI, count=2))
    with served(big.path) as server:
        level = whole = big.read_part(1, Box(0, 0, 600, 1300))
        for n in range(1, 4):
            level = halved(level)
            shown = picture(server, f"/0/image/1/{n}/0_0.png")
            np.testing.assert_array_equal(shown, level[:, :TILE, :TILE].transpose(1, 2, 0))
        nuclei = picture(server, "/0/nuclei/0/0/0_0.png", "RGBA")
        numbers = big.read_part(0, Box(0, 0, TILE, TILE), "nuclei")
        np.testing.assert_array_equal(nuclei[..., 3] > 0, numbers > 0)
        assert [len(np.unique(nuclei[numbers == n], axis=0)) for n in (1, 2)] == [1, 1]


def test_the_browser_is_told_that_it_has_a_tile(copy):
    with served(copy) as server:
        path = "/0/image/0/0_1.png"
        first = get(server, path)
        tag = first.headers["ETag"]
        again = get(server, path, If_None_Match=tag)
        assert (again.status, again.content) == (304, b"")
        assert first.headers["Cache-Control"] == "private, no-cache"
        head = get(server, path, method="HEAD")
        assert (head.status, head.headers["ETag"], head.content) == (200, tag, b"")
        output = Output(copy)
        box = Box(0, 512, 512, 1024)
        output.write("0", box, 255 - output.read("0", box))
        new = get(server, path, If_None_Match=tag)
        assert new.status == 200, "the shard changed"
        assert new.content != first.content


def test_areas_are_those_of_the_map(image, viewed):
    legend = json.loads(get(viewed, "/0/tissue/legend.json").content)
    labels = Output(image).read("labels/tissue/1", Box(0, 0, 350, 550))
    expected = {name: 100 * (labels == n).mean() for n, (name, _) in enumerate(LABELS.entries)}
    assert {one["name"]: one["percent"] for one in legend["labels"]} == pytest.approx(expected)
    assert {one["name"]: one["drawn"] for one in legend["labels"]} == {"unknown": False, "tumour": True, "stroma": True}
    assert legend["counted"] == "one pixel in 4"
    assert legend["part"] == 1


# ---- what is damaged, unfinished, gone ----------------------------------------------------------


def test_damaged_and_lost_shards_are_hatched_and_named(copy):
    flipped, lost = copy / "0/c/0/0/1", copy / "labels/tissue/0/c/1/0"
    content = bytearray(flipped.read_bytes())
    content[: len(content) // 2] = bytes(len(content) // 2)
    flipped.write_bytes(content)
    lost.unlink()
    with served(copy) as server:
        for _ in range(100):  # what is lost is found without being looked at
            if facts(server)["state"]["damaged_count"]:
                break
            time.sleep(0.02)
        assert facts(server)["state"]["damaged"] == [
            "array labels/tissue/0 shard rows 512:700 columns 0:512 is missing"
        ]
        whole = Output(copy).read("0", Box(0, 0, 512, 512)).transpose(1, 2, 0)
        np.testing.assert_array_equal(picture(server, "/0/image/0/0_0.png"), whole)
        assert hatched(picture(server, "/0/image/0/0_1.png")).mean() > 0.95  # but for the word
        assert hatched(picture(server, "/0/tissue/0/1_0.png", "RGBA")).mean() > 0.95
        assert not hatched(picture(server, "/0/image/1/0_0.png")).any(), "other levels are whole"
        says = facts(server)["state"]["damaged"]
        assert len(says) == 2
        assert any("array 0 shard rows 0:512 columns 512:1024 cannot be read" in line for line in says)
        assert all("\n" not in line for line in says)


def test_what_is_no_file_in_a_shards_place_is_damaged(tmp_path):
    output = made(tmp_path / "o.zarr", IMAGE, finished=False, without=(0,))
    folder, empty = (tmp_path / "o.zarr/0/c/0/0" / name for name in "12")
    folder.unlink()
    folder.mkdir()
    empty.write_bytes(b"")
    with served(output.path) as server:
        assert not picture(server, "/0/image/0/0_0.png", "RGBA").any(), "what is not there yet is no damage"
        for column in (1, 2):
            assert hatched(picture(server, f"/0/image/0/0_{column}.png")).mean() > 0.8
        says = facts(server)["state"]["damaged"]
        assert [line.rpartition("columns ")[2] for line in says] == [
            "512:1024 is empty, or no file",
            "1024:1100 is empty, or no file",
        ]


def test_nobody_sees_damage_that_is_not_listed(copy):
    with served(copy) as server:
        assert get(server, "/0/image/0/0_1.png").headers["ETag"]
        for path, array, shard in (("/0/image/0/0_1.png", "0", "0/c/0/0/1"), ("/0/image/3/0_0.png", "2", "2/c/0/0/0")):
            content = (copy / shard).read_bytes()
            (copy / shard).write_bytes(content[::-1])  # of the same size: found when it is read
            for _ in range(2):
                answer = get(server, path)
                assert hatched(np.asarray(Image.open(io.BytesIO(answer.content)))).any()
                assert answer.headers["ETag"] is None, "a browser that kept it would not ask again"
                assert f"array {array} shard" in "".join(facts(server)["state"]["damaged"])
                opened_anew(copy)
                assert facts(server)["state"]["damaged_count"] == 0
            (copy / shard).write_bytes(content)


def test_an_unfinished_output_is_shown_as_far_as_it_is(tmp_path):
    output = made(tmp_path / "o.zarr", IMAGE, finished=False, without=(4,))
    with served(output.path, quality=90) as server:
        state = facts(server)["state"]
        assert (state["is"], state["level"], state["levels"], state["damaged_count"]) == ("unfinished", None, 4, 0)
        assert (state["shards"], state["of"]) == (5, 6), "of the image at full size, not of the map or the pyramid"
        tile = get(server, "/0/image/0/1_1.jpg")
        assert tile.headers["Content-Type"] == "image/png", "for JPEG knows no transparency"
        assert not picture(server, "/0/image/0/1_1.jpg", "RGBA").any()
        np.testing.assert_array_equal(
            picture(server, "/0/image/0/0_1.png"), output.read("0", Box(0, 512, 512, 1024)).transpose(1, 2, 0)
        )
        coarse = picture(server, "/0/image/1/0_0.png", "RGBA")  # no shard of this level is there
        below = halved(output.read("0", Box(0, 0, 700, 1100))).transpose(1, 2, 0)
        there = np.ones((350, 512), bool)
        there[256:, 256:] = False
        np.testing.assert_array_equal(coarse[..., 3] > 0, there)
        np.testing.assert_array_equal(coarse[there][:, :3], below[:, :512][there])
        assert json.loads(get(server, "/0/tissue/legend.json").content)["part"] == 1
        time.sleep(1)  # the ledger is read once a second
        output.write("0", output.layout.boxes()[4], np.full((3, 188, 512), 9))
        assert facts(server)["state"]["version"] != state["version"]
        assert get(server, "/0/image/0/1_1.jpg", If_None_Match=tile.headers["ETag"]).status == 200
        assert (picture(server, "/0/image/0/1_1.png") == 9).all()
        output.annotate(state="finished")
        assert facts(server)["state"]["is"] == "finished"
        assert hatched(picture(server, "/0/image/1/0_0.png")).any(), "what a finished output lacks is lost"


def test_an_output_that_is_removed_is_said_to_be_and_shown_again_when_it_is_back(copy, tmp_path):
    with served(copy) as server:
        before = get(server, "/0/image/0/0_0.png")
        copy.rename(tmp_path / "elsewhere")
        gone = get(server, "/0/image/0/0_0.png")
        assert (gone.status, gone.content) == (410, f"{copy} cannot be shown: it was removed\n".encode())
        assert facts(server)["state"]["is"] == "gone"
        (tmp_path / "elsewhere").rename(copy)
        assert get(server, "/0/image/0/0_0.png").content == before.content
        (copy / "zarr.json").write_text("{")
        assert get(server, "/0/image/0/0_0.png").status == 410
        assert get(server, "/").status == 200


def test_an_output_that_becomes_a_loop_of_links_is_said_to_be_gone(copy):
    with served(copy) as server:
        shutil.rmtree(copy)
        copy.symlink_to(copy.name)
        gone = facts(server)
        assert (gone["name"], gone["state"]["is"]) == (copy.name, "gone")
        assert get(server, "/0/image/0/0_0.png").status == 410


def test_the_page_names_flags_and_not_fields(copy):
    with served(copy) as server:
        (copy / "1/zarr.json").write_text("{}")
        opened_anew(copy)
        gone = get(server, "/0/image/0/0_0.png")
        assert gone.status == 410
        for text in (gone.content.decode(), facts(server)["state"]["says"]):
            assert "the same job with --mend makes it anew" in text


# ---- who may ask, and for what ------------------------------------------------------------------


def test_only_what_is_shown_has_an_address(viewed, image):
    for path in (
        "/1/image/0/0_0.png",
        "/0/image/4/0_0.png",
        "/0/image/0/2_0.png",
        "/0/image/0/0_3.png",
        "/0/image/3/0/0_0.png",
        "/0/none/0/0_0.png",
        "/0/image/-1/0_0.png",
        "/0/image/0/0_0.exe",
        "/0/image/0/99999999999_0.png",
        "/0/none/legend.json",
        "/0/image/legend.json",
        "/0/../../zarr.json",
        "/static/../server.py",
        "/static/%2e%2e/server.py",
        "/static//etc/passwd",
        "//etc/passwd",
        f"/static/{image}/zarr.json",
        "/index.html",
        "/\0",
        "/é".encode().decode("latin-1"),
    ):
        with socket.create_connection(("127.0.0.1", viewed.server_port), timeout=10) as connection:
            connection.sendall(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode("latin-1"))
            answer = b"".join(iter(lambda: connection.recv(2**16), b""))
        head, _, content = answer.partition(b"\r\n\r\n")
        assert head.split()[1] in (b"404", b"400"), (path, head)
        assert content.count(b"\n") == 1, content
        assert b"default-src 'none'" in head
    for method in ("POST", "PUT", "DELETE"):
        assert get(viewed, "/outputs.json", method=method).status == 501
    assert get(viewed, "/", Host="evil.example").status == 403, "a name that is led to this machine"
    assert get(viewed, "/", Host=f"localhost:{viewed.server_port}").status == 200


def test_a_host_header_is_the_name_of_this_machine_and_no_more(viewed):
    port = viewed.server_port
    for hosts, status in (
        (["localhost"], 200),
        ([f"[::1]:{port}"], 200),
        ([f"LOCALHOST:{port}"], 200),
        (["[::1]evil"], 403),
        (["[::1]evil:80"], 403),
        (["localhost:evil.com"], 403),
        (["localhost:80:80"], 403),
        (["localhost", "evil.com"], 403),
        (["localhost", "localhost"], 403),
        ([], 403),
    ):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            lines = "".join(f"Host: {host}\r\n" for host in hosts)
            connection.sendall(f"GET /outputs.json HTTP/1.0\r\n{lines}\r\n".encode())
            assert int(connection.recv(2**16).split()[1]) == status, hosts


def test_elsewhere_than_on_this_machine_the_address_needs_a_token(image):
    with served(image, token="secret") as server:
        for path in ("/", "/outputs.json", "/secre/", "/secrett/outputs.json", "/static/main.js"):
            assert get(server, path).status == 403, path
        page = get(server, "/secret/", Host="a.b")
        assert page.status == 200
        assert page.headers["Referrer-Policy"] == "no-referrer"
        assert not re.findall(rb'(?:src|href)="(?:/|\w+:)', page.content), "addresses are relative: they keep the token"
        assert picture(server, "/secret/0/image/0/0_0.png").shape == (512, 512, 3)
        assert (
            engine.view.address_of(server, "0.0.0.0") == f"http://{socket.gethostname()}:{server.server_port}/secret/"
        )


def test_many_requests_at_once_take_few_threads_and_little_memory(image, monkeypatch):
    monkeypatch.setattr(serving, "CONNECTIONS", 4)
    monkeypatch.setattr(serving, "WAITING", 40)
    with served(image, quality=90) as server:
        server.viewer.cache.most = 300_000
        before, sockets, renders = threading.active_count(), [], server.viewer.renders
        held = sum(iter(lambda: renders.acquire(blocking=False), False))  # nothing is made until all have asked
        for n in range(300):
            connection = socket.create_connection(("127.0.0.1", server.server_port), timeout=30)
            connection.sendall(f"GET /0/image/0/{n % 2}_{n % 3}.jpg HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
            sockets.append(connection)
        for _ in range(500):  # until all who are one too many have their answer: none is in the queue of the system
            if len(select.select(sockets, [], [], 0)[0]) == 300 - 44:
                break
            time.sleep(0.01)
        assert (server.threads, len(server.waiting)) == (4, 40)
        assert threading.active_count() <= before + 4
        renders.release(held)
        answers = []
        for connection in sockets:
            answers.append(b"".join(iter(lambda connection=connection: connection.recv(2**16), b"")))
            connection.close()
        status = [answer.split(b" ", 2)[1] for answer in answers]
        assert (status.count(b"200"), status.count(b"503")) == (44, 256)
        assert all(b"too many requests at once" in answer for answer in answers if b" 503 " in answer[:20])
        assert server.viewer.cache.bytes <= 300_000
        assert get(server, "/outputs.json").status == 200


def test_what_the_page_is_made_of_is_ours_or_named(viewed):
    note = (serving.STATIC / "README.md").read_text()
    library = (serving.STATIC / "openseadragon.min.js").read_bytes()
    assert f"`{hashlib.sha256(library).hexdigest()}`" in note
    assert re.search(rb"//! openseadragon ([\d.]+)", library)[1].decode() in note
    assert "Redistribution" in (serving.STATIC / "openseadragon.LICENSE.txt").read_text()
    page = get(viewed, "/").content.decode()
    named = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert all(get(viewed, f"/{name}").status == 200 for name in named)
    modules = {file.name for file in serving.STATIC.glob("*.js")} - {"openseadragon.min.js", "plane.js"}
    assert {name.removeprefix("static/") for name in named if name.endswith(".js")} >= modules, "fetched at once"
    of_planes = set(re.findall(r'from "\./([^"]+)"', (serving.STATIC / "plane.js").read_text())) | {"plane.js"}
    named = re.findall(r'(?:src|href)="static/([^"]+)"', (serving.STATIC / "plane.html").read_text())
    assert set(named) >= of_planes, "fetched at once"


# ---- the command --------------------------------------------------------------------------------


def test_bad_input_is_refused_in_one_line(image, image_set, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for arguments, expected in [
            ((tmp_path / "no" / "none.zarr",), r"none.zarr is not there"),
            ((tmp_path / "empty",), "empty is no output of engine.sample"),
            ((image, image, image), "3 outputs are named; one is shown, or two side by side"),
            ((image, image_set), "an image and a set of images cannot be shown side by side"),
            ((image, "--port", port), f"--port {port} is in use; choose another, or 0 for one that is free"),
            ((image, "--port", "70000"), "70000 is no port"),
            ((image, "--port", "٣"), "٣ is no port"),
            ((image, "--quality", "96"), "96 is not 1 to 95"),
            ((image, "--quality", "٣"), "٣ is not 1 to 95"),
            ((image, "--host", ""), "--host is empty; leave it out for this machine alone, or pass --host 0.0.0.0"),
            ((image, "--host", "a\0"), r"--host 'a\\x00' is no name of a machine"),
            ((image, "--host", "é" * 70), "--host 'é+' is no name of a machine"),
            ((f"{image}\0",), r"\\x00' is no path: no name has a NUL in it"),
            ((image, "--host", "203.0.113.7"), "--host 203.0.113.7 is no address of this machine"),
            ((image, "--prot", "1"), "did you mean '--port'"),
            ((), "the following arguments are required: out"),
        ]:
            assert engine.view.main([str(word) for word in arguments]) == 1, arguments
            said = capsys.readouterr().err
            assert said.startswith("error: "), said
            assert said.count("\n") == 1, said
            assert re.search(expected, said), said


def test_control_c_ends_it_quietly(image):
    words = [sys.executable, "-m", "engine", "view", str(image), "--port", "0"]
    process = subprocess.Popen(
        words, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    line = process.stdout.readline()
    assert re.fullmatch(rf"http://127\.0\.0\.1:\d+/ shows {re.escape(str(image))}; Ctrl-C ends it\n", line)
    server = SimpleNamespace(server_port=int(re.search(r":(\d+)/", line)[1]))
    keeps = socket.create_connection(("127.0.0.1", server.server_port))  # a browser that is still there
    assert facts(server)["name"] == "an image ü.zarr"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=10) == ("", "")
    assert process.returncode == 0
    keeps.close()


def test_an_output_that_is_not_there_yet_is_awaited_and_the_line_says_so(image):
    out = image.with_name("an imagé.zarr")
    words = [sys.executable, "-m", "engine.view", str(out), "--port", "0"]
    with subprocess.Popen(words, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        server = SimpleNamespace(server_port=int(re.search(r":(\d+)/", process.stdout.readline())[1]))
        said = process.stdout.readline()
        assert said == f"{out} is not there yet; it is shown when a run begins it (did you mean 'an image ü.zarr'?)\n"
        assert facts(server)["state"]["is"] == "awaited"
        out.symlink_to(image)
        assert facts(server)["state"]["is"] == "finished"
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 0


# ---- the page -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    chromium()
    with started() as one:
        yield one


WHOLE = "() => slidefield.panes().length && slidefield.panes().every(pane => pane.ready && pane.settled())"
PLACE = "() => slidefield.panes().map(pane => [...pane.place().at, pane.zoom()])"


@contextmanager
def shown(browser, server, place="", width=1280, height=800, waits=WHOLE, **options):
    """A page of the viewer, once all its tiles are there, and what was seen of it.

    At the end it must have said nothing and fetched nothing from elsewhere.
    """
    context = browser.new_context(viewport={"width": width, "height": height}, **options)
    page = context.new_page()
    seen = listened_to(page)
    base = f"http://127.0.0.1:{server.server_port}/{server.token}{'/' * bool(server.token)}"
    try:
        page.goto(base + place)
        page.wait_for_function(waits)
        yield page, seen
        assert seen.messages == []
        assert {urlsplit(url).netloc for url in seen.requests} == {f"127.0.0.1:{server.server_port}"}
        assert all(url.startswith(base) for url in seen.requests), "the token is kept"
    finally:
        context.close()


def settled(page):
    page.wait_for_function(WHOLE)


def screenshot(page):
    return np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB")).astype(int)


def compared(page, pixels):
    """The screenshot and the pixels of the image in a part of the page that no control covers: (h, w, 3) each."""
    left, top, row, column = page.evaluate(
        """() => {
          const [pane] = slidefield.panes(), box = pane.canvas.getBoundingClientRect();
          const at = pane.pixelAt(new OpenSeadragon.Point(200.5, 100.5));
          return [box.left + 200, box.top + 100, Math.floor(at[0]), Math.floor(at[1])];
        }"""
    )
    height, width = 240, 500
    here = screenshot(page)[int(top) : int(top) + height, int(left) : int(left) + width]
    return here, pixels[row : row + height, column : column + width].astype(int)


@pytest.mark.runs
def test_a_screenshot_has_the_zarrs_pixels_with_the_map_and_without(browser, image, viewed):
    output = Output(image)
    whole = output.read("0", Box(0, 0, 700, 1100)).transpose(1, 2, 0)
    colors = colors_of(output.read("labels/tissue/0", Box(0, 0, 700, 1100)))
    with shown(browser, viewed, "#at=350,600&zoom=1") as (page, seen):
        np.testing.assert_array_equal(*compared(page, whole))
        page.keyboard.press("l")
        settled(page)
        half = whole + (colors[..., :3].astype(int) - whole) * (colors[..., 3:] / 255 * 0.5)
        here, expected = compared(page, half.round())
        assert np.abs(here - expected).max() <= 1
        page.locator("#opacity").fill("100")
        settled(page)
        here, expected = compared(page, np.where(colors[..., 3:] > 0, colors[..., :3], whole))
        np.testing.assert_array_equal(here, expected)
        page.locator("#map").click()
        settled(page)
        np.testing.assert_array_equal(*compared(page, whole))
        assert len([url for url in seen.requests if "/tissue/0/" in url]) > 0


@pytest.mark.runs
def test_a_link_leads_to_the_same_place(browser, viewed):
    with shown(browser, viewed, permissions=["clipboard-read", "clipboard-write"]) as (page, _):
        for key in ("l", ">", "+", "+", "+", "ArrowRight", "ArrowDown"):
            page.keyboard.press(key)
        page.wait_for_timeout(600)
        before = page.evaluate(PLACE)
        page.keyboard.press("c")
        page.wait_for_function("() => document.getElementById('said').textContent == 'address copied'")
        link = page.evaluate("navigator.clipboard.readText()")
    assert "map=tissue&opacity=0.6" in link
    with shown(browser, viewed, link.partition("/#")[2] and "#" + link.partition("/#")[2]) as (page, _):
        assert page.evaluate(PLACE)[0] == pytest.approx(before[0], abs=0.02)
        assert page.locator("#map").get_attribute("aria-pressed") == "true"
        assert page.locator("#opacity").input_value() == "60"
        assert "tumour" in page.locator("#legend").inner_text()
        page.keyboard.press("0")
        page.wait_for_timeout(600)
        assert page.evaluate(PLACE)[0][:2] == pytest.approx([350, 550], abs=0.5)
        small = page.evaluate(PLACE)[0][2]
        page.set_viewport_size({"width": 1280, "height": 1000})
        page.wait_for_function(f"() => slidefield.panes()[0].zoom() > {small} + 0.1")
        settled(page)
        (_, _, width), (_, _, needed) = page.evaluate(PLACE)[0], [0, 0, 1280 / 1100]
        assert width == pytest.approx(needed, rel=0.01), "the whole image stays whole in a larger window"


@pytest.mark.runs
def test_a_region_is_dragged_out_shown_and_copied(browser, viewed):
    with shown(browser, viewed, "#at=350,550&zoom=1", permissions=["clipboard-read", "clipboard-write"]) as (page, _):
        box = page.locator(".osd").bounding_box()
        y, x = box["y"] + box["height"] / 2, box["x"] + box["width"] / 2

        def drag(y1, x1):
            page.mouse.move(x - 40.5, y - 30.5)
            page.mouse.down()
            page.mouse.move(x, y, steps=3)
            page.mouse.move(x + x1, y + y1, steps=3)
            page.mouse.up()
            page.wait_for_function("() => document.getElementById('said').textContent.includes('copied')")
            return page.locator("#region").inner_text()

        inside = np.s_[int(y) - 15 : int(y) + 5, int(x) - 15 : int(x) + 5]
        before = screenshot(page)[inside]
        page.keyboard.down("Shift")
        region = drag(19.5, 9.5)
        page.keyboard.up("Shift")
        y0, y1, x0, x1 = map(int, re.split("[:,]", region))
        assert (y0, y1, x0, x1) == pytest.approx((319, 372, 509, 560), abs=1)
        assert page.evaluate("navigator.clipboard.readText()") == region
        assert f"select={region}" in page.url
        assert page.locator(".region").count() == 1
        np.testing.assert_array_equal(screenshot(page)[inside], before, "its colours are the image's")
        page.locator("#select").click()
        assert drag(900, 900) != region
        _, y1, _, x1 = map(int, re.split("[:,]", page.locator("#region").inner_text()))
        assert (y1, x1) <= (700, 1100), "it ends with the image"
        assert page.locator("#select").get_attribute("aria-pressed") == "false"
        page.keyboard.press("Escape")
        assert page.locator(".region").count() == 0
        assert page.evaluate(PLACE)[0] == pytest.approx([350, 550, 1], abs=0.01), "the image did not move"


@pytest.mark.runs
def test_two_outputs_walk_in_step(browser, image, copy):
    with served(image, copy) as server, shown(browser, server) as (page, _):
        assert page.locator(".pane").count() == 2
        first, second = (page.locator(".osd").nth(n).bounding_box() for n in (0, 1))
        for box, dy in ((first, -120), (second, 200)):
            page.mouse.move(box["x"] + 200, box["y"] + 300)
            page.mouse.wheel(0, dy)
            page.mouse.down()
            page.mouse.move(box["x"] + 260, box["y"] + 360, steps=4)
            page.mouse.up()
            page.wait_for_timeout(700)
            one, other = page.evaluate(PLACE)
            assert one == pytest.approx(other, abs=0.51), "but for whole pixels"
        page.keyboard.press("+")
        page.wait_for_timeout(600)
        one, other = page.evaluate(PLACE)
        assert one == pytest.approx(other, abs=0.51), "but for whole pixels"
        page.keyboard.press("l")
        page.evaluate("document.getElementById('legend').open = true")
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 800})
            settled(page)
            page.wait_for_function("() => document.querySelectorAll('#legend td').length > 4")
            page.screenshot(path=ARTEFACTS / f"two-{width}.png")
            legend = page.locator("#legend").bounding_box()
            for pane in (page.locator(".pane").nth(n).bounding_box() for n in (0, 1)):
                beside = pane["x"] + pane["width"] <= legend["x"] + 1 or pane["y"] + pane["height"] <= legend["y"] + 1
                assert beside, "the legend covers neither"


@pytest.mark.runs
def test_a_set_is_a_sheet_of_pages_and_a_click_opens_an_image(browser, image_set):
    sheet = "() => [...document.images].length > 0 && [...document.images].slice(0, 2).every(i => i.complete)"
    with served(image_set, token="secret") as server, shown(browser, server, waits=sheet) as (page, _):
        assert page.locator("#cells a").count() == 48
        page.keyboard.press("l")
        page.locator("#after").click()
        assert page.locator("#cells a").all_inner_texts() == ["48: label 1", "49: label 2"]
        page.locator("#cells a").nth(1).click()
        settled(page)
        assert "#image=49&" in page.url
        assert page.url.endswith("&map=tissue&opacity=0.5"), "what lay over the sheet lies over the image"
        page.keyboard.press("l")
        whole = Output(image_set).read_part(49, Box(0, 0, 96, 120)).transpose(1, 2, 0)
        page.evaluate("() => slidefield.panes()[0].go({at: [48, 60], zoom: 1})")
        settled(page)
        box = page.locator(".osd").bounding_box()
        y, x = int(box["y"] + box["height"] / 2) - 48, int(box["x"] + box["width"] / 2) - 60
        here = screenshot(page)[y : y + 96, x : x + 120]
        assert np.abs(here[4:92, 4:116] - whole[4:92, 4:116]).mean() < 2
        page.keyboard.press("[")
        page.wait_for_function("() => document.getElementById('facts').textContent.startsWith('image 48: label 1')")
        settled(page)
        page.keyboard.press("Backspace")
        assert page.locator("#cells a").count() == 2
        assert page.url.endswith("#page=2")


@pytest.mark.runs
def test_the_page_says_what_happened_to_the_output(browser, copy):
    (copy / "0/c/0/0/2").unlink()
    with served(copy) as server:
        try:
            with shown(browser, server) as (page, _):
                notice = page.locator("#notice")
                page.wait_for_function("() => document.getElementById('notice').textContent.includes('damaged')")
                assert "a shard is damaged, drawn hatched" in notice.inner_text()
                shutil.rmtree(copy)
                page.wait_for_function("() => document.getElementById('notice').textContent.includes('removed')")
                assert f"{copy} cannot be shown: it was removed" in notice.inner_text()
        finally:
            copy.mkdir(exist_ok=True)


@pytest.mark.runs
def test_the_page_waits_for_an_output_that_a_run_is_about_to_begin(browser, tmp_path):
    out = tmp_path / "o.zarr"
    said = "() => document.getElementById('notice').textContent"
    with served(out) as server, shown(browser, server, waits=f"() => ({said})().includes('not there')") as (page, _):
        assert page.evaluate(said) == f"{out} is not there yet; it is shown when a run begins it."
        page.screenshot(path=ARTEFACTS / "awaited.png")
        made(tmp_path / "made.zarr", IMAGE).path.rename(out)
        page.wait_for_function("() => window.slidefield")
        settled(page)
        assert page.locator("#notice").is_hidden()


@pytest.mark.runs
def test_the_page_of_an_unfinished_output_shows_what_is_new(browser, tmp_path):
    output = made(tmp_path / "o.zarr", IMAGE, finished=False, without=(0,))
    with served(output.path) as server, shown(browser, server, "#at=300,600&zoom=1") as (page, _):
        assert "o.zarr is unfinished: 5 of 6 shards of the image are there." in page.locator("#notice").inner_text()
        before = compared(page, output.read("0", Box(0, 0, 700, 1100)).transpose(1, 2, 0))[0]
        assert (before[20:60, 150:190] == before[20, 150]).all(), "nothing is there yet"
        output.write("0", output.layout.boxes()[0], np.full((3, 512, 512), 77))
        page.wait_for_function("() => document.getElementById('notice').textContent.includes('6 of 6')")
        settled(page)
        here, expected = compared(page, output.read("0", Box(0, 0, 700, 1100)).transpose(1, 2, 0))
        np.testing.assert_array_equal(here[20:60, 150:190], expected[20:60, 150:190])
        assert page.locator(".extent").count() == 1


STATUS = {"text": "level 3/4", "share": 0.5, "gone": 61.0, "left": 3725.0, "rates": {"evaluations/s": 31.44}}
STATUS |= {"memory": 2**30, "pause": 0.0, "ended": False}
RANK = {"span": 2.0, "evaluations": 31, "memory": 2**29}


def says(output, level=2, value=60, **status):
    """Leave what a run of two ranks leaves: a picture whose pixels are 8 of the image's, brighter to the right."""
    grid = PreviewGrid((88, 138), 1, 1)
    pixels = np.full((*grid.shape, 4), 255, np.uint8)
    pixels[..., :3] = value + np.arange(138)[:, None]
    for rank, rows in enumerate((slice(0, 40), slice(40, 88))):
        output.live.write_part(rank, PicturePart(grid, 8, level, rows.start, pixels[rows]))
        output.live.write_rank(rank, {**RANK, "rank": rank, "seconds": {"evaluate": 1.8, "wait": 0.2 + 0.8 * rank}})
    output.live.write_status({**STATUS, **status})
    return pixels


def test_an_estimate_stands_where_there_are_no_pixels_yet(tmp_path):
    output = made(tmp_path / "o.zarr", IMAGE, finished=False, without=(0,))
    says(output)
    with served(output.path) as server:
        state = facts(server)["state"]
        assert (state["estimated"], state["live"]["level"], state["shards"]) == (True, 2, 5)
        assert [(rank["busy"], rank["speed"]) for rank in state["live"]["ranks"]] == [(0.9, 15.5), (0.5, 15.5)]
        first = picture(server, "/0/image/0/0_0.png", "RGBA")
        assert (first[..., 3] == 255).all()
        columns = np.clip((np.arange(512) + 0.5) / 8 - 0.5, 0, None) + 60
        assert np.abs(first[..., 0] - columns).max() <= 1, "enlarged, without steps"
        seen = Output(output.path).read("0", Box(0, 512, 512, 1024)).transpose(1, 2, 0)
        np.testing.assert_array_equal(picture(server, "/0/image/0/0_1.png"), seen, "what is written is as it is")
        small = picture(server, "/0/image/3/0_0.png")
        assert small.shape == (88, 138, 3)
        assert abs(int(small[10, 20, 0]) - 80) <= 1
        tag = get(server, "/0/image/0/0_0.png").headers["ETag"]
        stored = facts(server)["state"]["stored"]
        says(output, level=3, value=100)
        time.sleep(0.6)
        assert get(server, "/0/image/0/0_0.png", If_None_Match=tag).status == 200, "the picture changed"
        again = facts(server)["state"]
        assert again["version"] != state["version"]
        assert again["stored"] == stored
        for file in (output.private / "live").iterdir():
            file.write_bytes(b"damaged")
        time.sleep(0.6)
        assert facts(server)["state"]["live"] is None
        assert picture(server, "/0/image/0/0_0.png", "RGBA")[0, 0].tolist() == [0, 0, 0, 0]


def test_numbers_that_json_lacks_are_told_as_null(tmp_path):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    output = made(tmp_path / "o.zarr", IMAGE, finished=False)
    says(output, share=float("nan"), left=float("inf"), pause=10**400)
    with served(output.path) as server:
        content = json.loads(get(server, "/outputs.json").content, parse_constant=refuse)
    live = content["outputs"][0]["state"]["live"]
    assert (live["share"], live["left"], live["gone"]) == (None, None, 61.0)


@pytest.mark.runs
def test_the_page_of_a_run_becomes_that_of_the_finished_output(browser, tmp_path):
    output = made(tmp_path / "o.zarr", IMAGE, finished=False, without=(0,))
    says(output)
    run = "() => document.getElementById('live').textContent"
    with served(output.path) as server, shown(browser, server, "#at=300,600&zoom=1") as (page, _):
        page.evaluate("window.same = true")
        told = page.evaluate(run)
        for words in ("level 3/4", "50 % · 1:02:05 to go · 1:01 gone · 31.4 evaluations/s · 1.00 GiB a rank at most"):
            assert words in told
        assert (
            "5 of 6 shards of the image are there; what is not decoded yet is an estimate after level 2 of 4." in told
        )
        assert "2 ranks, busy 50 % to 90 %" in told
        page.locator("#live summary").click()
        page.wait_for_function("() => document.querySelectorAll('#live meter').length == 2")
        assert page.locator("#live tr").nth(2).inner_text().split() == ["rank", "1", "50", "%", "15.5", "0.50", "GiB"]
        here, _ = compared(page, np.zeros((700, 1100, 3)))
        assert len(np.unique(here[20:60, 150:190, 0])) > 4, "the estimate is there"
        output.write("0", output.layout.boxes()[0], np.full((3, 512, 512), 77))
        says(output, level=4, text="decoding", ended=True)
        page.wait_for_function(f"() => ({run})().includes('6 of 6')")
        assert "The run was ended here: the same command begins again." in page.evaluate(run)
        assert page.locator("#live details").evaluate("one => one.open"), "what is open stays open"
        for level in range(1, len(output.layout.sizes())):
            for name in output.layout.finest:
                for box in output.layout.boxes(level):
                    output.halve(name, level, box)
        output.ledger.merge()
        output.annotate(state="finished")
        output.tidy()
        page.wait_for_function("() => document.getElementById('live').hidden")
        page.wait_for_function("() => slidefield.panes()[0].output.state.is == 'finished'")
        settled(page)
        whole = output.read("0", Box(0, 0, 700, 1100)).transpose(1, 2, 0)
        assert page.evaluate(PLACE)[0] == pytest.approx([300, 600, 1], abs=1.01), "but for whole pixels"
        np.testing.assert_array_equal(*compared(page, whole))
        assert page.locator(".extent").count() == 0
        assert page.evaluate("window.same"), "it was not loaded again"


@pytest.mark.runs
def test_a_set_under_way_is_seen_on_its_sheet(browser, tmp_path):
    output = made(tmp_path / "set.zarr", SET, finished=False, without=range(13))
    bright = "() => { const c = document.createElement('canvas').getContext('2d'); "
    bright += "c.drawImage(document.images[3], 0, 0); return c.getImageData(5, 5, 1, 1).data[0]; }"

    def leave(value):
        pixels = np.full((48 * 12, 15, 4), value, np.uint8)
        pixels[..., 3] = 255
        output.live.write_part(0, PicturePart(PreviewGrid((12, 15), 48, 1), 8, 1, 0, pixels))
        output.live.write_status(STATUS)

    leave(40)
    loaded = "() => document.images.length > 40 && document.images[3].complete"
    with served(output.path) as server, shown(browser, server, waits=loaded) as (page, _):
        assert page.evaluate(bright) == 40
        leave(200)
        page.wait_for_function(f"() => ({bright})() == 200")


@pytest.mark.runs
def test_the_page_fits_a_phone_and_a_desk_and_its_text_stands_out(browser, image, image_set, tmp_path):
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    unnamed = "all => all.filter(one => !(one.ariaLabel || one.innerText || one.title)).length"
    outline = "() => getComputedStyle(document.activeElement).outlineStyle"
    under_way = made(tmp_path / "run.zarr", IMAGE, finished=False, without=(0,))
    says(under_way, ended=True)
    for name, path, place in (
        ("image", image, "#map=tissue&select=0:90,0:90"),
        ("set", image_set, "#page=1"),
        ("run", under_way.path, ""),
    ):
        waits = "() => document.images.length > 0" if name == "set" else WHOLE
        with served(path, quality=90) as server:
            for width in WIDTHS:
                with shown(browser, server, place, width, waits=waits) as (page, seen):
                    page.eval_on_selector_all("details", "all => all.forEach(one => { one.open = true; })")
                    for scheme in ("light", "dark"):
                        page.emulate_media(color_scheme=scheme)
                        measured(page, seen)
                        page.screenshot(path=str(ARTEFACTS / f"{name}-{width}-{scheme}.png"))
                        assert (seen.overflow, seen.wider) == (0, []), (name, width)
                        low = min(seen.contrasts, key=lambda one: one["ratio"])
                        assert low["ratio"] >= 4.5, low
                        assert min(one["size"] for one in seen.contrasts) >= 12
                    assert page.eval_on_selector_all("button, input, select, a", unnamed) == 0
                    page.keyboard.press("Tab")
                    assert page.evaluate(outline) == "solid", "the focus is seen"
