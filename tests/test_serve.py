"""A plane on demand: what a page shows is sampled, appears with the bytes of engine.sample, or is cancelled."""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from browser import listened_to, measured, started
from hypothesis import given, settings
from hypothesis import strategies as st
from launching import Running, launch, ranks_below, verify
from PIL import Image
from tiny import make_tiny_model

from engine.pipeline.plane import read_region
from engine.planning.geometry import Box
from engine.serving.wanted import AWAY, Wanted

JOB = ("--steps", 2, "--seed", 5, "--shard", 128, "--chunk", 64, "--guidance", 1, "--label", 1)
BLOCK = 64


# ---- what is wanted next ------------------------------------------------------------------------


@settings(max_examples=25)
@given(st.integers(-500, 500), st.integers(-500, 500), st.integers(1, 4), st.integers(1, 6))
def test_what_is_in_the_middle_comes_first_and_each_block_comes_once(y, x, blocks, together):
    wanted, seen = Wanted(BLOCK, together), []
    screen = Box(y, x, y + blocks * BLOCK, x + blocks * BLOCK)
    waiting = wanted.look("page", screen)
    middle = ((screen.y0 + screen.y1) // 2, (screen.x0 + screen.x1) // 2)
    while found := wanted.next(0):
        region = found[0]
        assert region.area <= together * BLOCK**2
        if not seen:
            assert region.y0 - BLOCK <= middle[0] <= region.y1 + BLOCK
            assert region.x0 - BLOCK <= middle[1] <= region.x1 + BLOCK
        assert not any(region & before for before in seen)
        seen.append(region)
        wanted.know(seen)
    assert sum(len(wanted.blocks(region)) for region in seen) == waiting
    assert all(region & screen for region in seen)


def test_what_left_every_screen_is_not_wanted():
    now = [0.0]
    wanted = Wanted(BLOCK, 1, lambda: now[0])
    wanted.look("one", Box(0, 0, 192, 192))
    wanted.look("other", Box(960, 960, 970, 970))
    region = wanted.next(0)[0]
    assert region == Box(64, 64, 128, 128), "the block in the middle of a page"
    assert wanted.in_sight(region)
    wanted.look("one", Box(640, 0, 650, 10))
    assert not wanted.in_sight(region)
    wanted.fail(Box(640, 0, 704, 64), 30)
    assert wanted.next(0)[0] == Box(960, 960, 1024, 1024), "what was refused is not tried again at once"
    now[0] += AWAY
    assert wanted.next(0) is None, "pages that say nothing are closed"
    assert wanted.look("far", Box(0, 0, 10**6, 10**6)) == 0, "a page that shows too much is not sampled for"


# ---- a real server ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with windows of 32 px."""
    return make_tiny_model(tmp_path_factory.mktemp("small"), patch=4)


class Page:
    """What a page does, without one."""

    def __init__(self, address: str) -> None:
        self.host = address.split("/")[2]

    def ask(self, method: str, path: str, body: str | None = None, **headers: str):
        connection = http.client.HTTPConnection(self.host, timeout=60)
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        content = response.read()
        connection.close()
        return response.status, content

    def look(self, box: Box | None, name: str = "test") -> dict:
        shown = None if box is None else [box.y0, box.x0, box.y1, box.x1]
        body = json.dumps({"page": name, "box": shown})
        status, content = self.ask("POST", "/look", body, Origin=f"http://{self.host}")
        assert status == 200, content
        return json.loads(content)

    def wait(self, box: Box | None, reached, seconds: float = 300) -> dict:
        """What it is told, once that is so."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            told = self.look(box)
            if reached(told):
                return told
            time.sleep(0.1)
        raise AssertionError(f"not in {seconds} s: {told}")

    def tile(self, level: int, row: int, column: int, layer: str = "tiles") -> np.ndarray:
        """uint8 (512, 512, 4)."""
        status, content = self.ask("GET", f"/{layer}/{level}/{row}_{column}.png")
        assert status == 200, content
        return np.asarray(Image.open(io.BytesIO(content)).convert("RGBA"))


@contextmanager
def served(ranks: int, plane: Path, *options: object):
    """A server of a plane, and its address, while this lasts; SIGTERM to one of its ranks ends it."""
    run = Running(ranks, plane, "--port", 0, "--block", BLOCK, *options, module="engine.serve")
    try:
        line = run.process.stdout.readline()
        assert "http://" in line, line + run.process.stdout.read()
        yield run, re.search(r"http://\S+", line)[0]
        os.kill(ranks_below(run.process.pid, "engine.serve")[-1], signal.SIGTERM)
        status, said = run.end(120)
        assert status == 0, said
    finally:
        if run.process.poll() is None:
            run.kill()


def sampled(small: Path, plane: Path, region: Box) -> np.ndarray:
    text = f"{region.y0}:{region.y1},{region.x0}:{region.x1}"
    done = launch(1, "--model", small, *JOB, "--plane", plane, f"--region={text}")
    assert done.returncode == 0, done.stderr
    return read_region(plane, region)


@pytest.mark.runs
@pytest.mark.parametrize("ranks", [1, 3])
def test_what_is_looked_at_appears_with_the_bytes_of_engine_sample(small, tmp_path, ranks):
    plane, box = tmp_path / "plane.zarr", Box(-60, -60, 60, 60)
    expected = sampled(small, tmp_path / "alone.zarr", Box(-64, -64, 64, 64))
    with served(ranks, plane, "--model", small, *JOB, "--lossless") as (_, address):
        page = Page(address)
        assert not page.tile(0, -1, -1).any(), "nothing is known"
        assert not page.tile(0, -1, -1, "labels")[..., 3].any()
        assert page.look(None)["labels"] == []
        told = page.wait(box, lambda told: told["total"]["blocks"] == 4 and not told["now"])
        assert told["bounds"] == [-64, -64, 64, 64]
        assert told["last"]["windows"] > 0
        assert told["last"]["waited"] >= told["last"]["took"] > 0
        quarters = [[page.tile(0, row, column) for column in (-1, 0)] for row in (-1, 0)]
        shown = np.concatenate([np.concatenate(row, axis=1) for row in quarters])
        known = shown[512 - 64 : 512 + 64, 512 - 64 : 512 + 64]
        assert (known[..., 3] == 255).all()
        assert (shown[..., 3] == 255).sum() == known.shape[0] * known.shape[1], "what is not known is transparent"
        np.testing.assert_array_equal(known[..., :3], expected.transpose(1, 2, 0))
        small_tile = page.tile(12, -1, -1)
        assert small_tile[-1, -1, 3] == 255, "the coarsest level shows it too"
        assert (small_tile[..., 3] > 0).sum() == 1
        drawn = [(label["color"], label["drawn"]) for label in told["labels"]]
        assert [is_drawn for _, is_drawn in drawn] == [False, *[True] * (len(drawn) - 1)]
        color = [*bytes.fromhex(drawn[1][0][1:]), 255]
        for level, known in ((0, np.s_[-64:, -64:]), (12, np.s_[-1:, -1:])):
            tile = page.tile(level, -1, -1, "labels")
            assert (tile[known] == color).all()
            assert (tile[..., 3] > 0).sum() == tile[known][..., 3].size, "what is not known is transparent"
    assert verify(plane)[0] == 0
    np.testing.assert_array_equal(read_region(plane, Box(-64, -64, 64, 64)), expected)
    assert not (plane / "slidefield" / "request.zarr").exists()


@pytest.mark.runs
def test_what_left_the_screen_is_cancelled_and_the_plane_stays_whole(small, tmp_path):
    plane = tmp_path / "plane.zarr"
    job = ("--model", small, *JOB, "--steps", 60)  # whose first levels take long: the cone is wide there
    with served(2, plane, *job) as (_, address):
        page = Page(address)
        page.wait(Box(0, 0, 60, 60), lambda told: told["now"] and told["now"]["level"])
        told = page.wait(Box(10**9, 0, 10**9 + 60, 60), lambda told: told["total"]["cancelled"] == 1)
        page.wait(Box(10**9, 0, 10**9 + 60, 60), lambda told: told["now"] and told["now"]["level"])
        assert told["total"]["blocks"] == 0
    assert not (plane / "slidefield" / "request.zarr").exists(), "the end cancels what is under way"
    done = launch(1, *job[:-2], "--steps", 2, "--plane", plane, "--region", "0:30,0:30")
    assert done.returncode == 0, done.stderr
    assert verify(plane)[0] == 0


@pytest.mark.runs
def test_a_plane_has_its_own_settings_takes_turns_and_refuses_in_one_line(small, tmp_path):
    plane = tmp_path / "plane.zarr"
    before = sampled(small, plane, Box(0, 0, 70, 70))
    for options, expected in [
        (("--seed", 6), "its seed is 5, yours is 6"),
        (("--region", "0:9,0:9"), "--region does not go with a plane that is served"),
        (("--cover", "random"), "drawn over a whole canvas"),
        (("--block", 7), "64 to 4096"),
        (("--sed", 7), "unrecognized argument --sed"),
    ]:
        done = launch(2, plane, *options, module="engine.serve")
        assert done.returncode == 1, done.stdout
        assert done.stderr.count("\n") == 1, done.stderr
        assert expected in done.stderr
    with served(1, plane) as (_, address):
        page, host = Page(address), re.search(r"//([^/]+)", address)[1]
        for status, content in [
            page.ask("POST", "/look", "{}"),
            page.ask("POST", "/look", "{}", Origin="http://elsewhere"),
            page.ask("GET", "/plane.json", Host="elsewhere"),
        ]:
            assert status == 403, content
        for body in ("{", "[]", '{"page": "a", "box": [0, 0, 0, 9]}', '{"page": "a b", "box": null}'):
            assert page.ask("POST", "/look", body, Origin=f"http://{host}")[0] == 400
        assert page.ask("GET", "/tiles/99/0_0.png")[0] == 404
        sampled(small, plane, Box(200, 0, 270, 70))  # by another process meanwhile
        told = page.wait(Box(0, 0, 128, 128), lambda told: not told["waiting"])
        assert told["bounds"] == [0, 0, 270, 128]
        tile = page.tile(0, 0, 0)
        assert (tile[200:270, :70, 3] == 255).all()
        assert not tile[130:199, :, 3].any()
    np.testing.assert_array_equal(read_region(plane, Box(0, 0, 70, 70)), before)


# ---- the page -----------------------------------------------------------------------------------


def until(page, true: str, seconds: float = 300) -> None:
    """Wait until JavaScript is true; playwright's own way needs eval, which the page's policy forbids."""
    end = time.monotonic() + seconds
    while not page.evaluate(true):
        assert time.monotonic() < end, (true, page.inner_text("footer"), page.inner_text("#notice"))
        time.sleep(0.1)


def shown_of(page, box: Box) -> np.ndarray:
    """uint8 (h, w, 3): what the page draws of a box of the plane, at zoom 2."""
    middle = page.evaluate("slidefield.middle()")
    shot = np.asarray(Image.open(io.BytesIO(page.locator(".osd").screenshot())).convert("RGB"))
    ends = zip(shot.shape[:2], (box.y0, box.x0), middle, strict=False)
    y, x = (round(length / 2 + 2 * (start - at)) for length, start, at in ends)
    return shot[y : y + 2 * box.height, x : x + 2 * box.width]


@pytest.mark.runs
def test_the_page_shows_what_it_asked_for_and_keeps_its_place_while_the_plane_grows(small, tmp_path):
    plane, artefacts = tmp_path / "plane.zarr", Path(os.environ.get("SLIDEFIELD_ARTEFACTS", tmp_path))
    far = 2**40
    with started() as browser, served(1, plane, "--model", small, *JOB, "--lossless") as (_, address):
        page = browser.new_page(viewport={"width": 390, "height": 420})
        seen = listened_to(page)
        page.goto(f"{address}#at=20,{far}&zoom=2")
        there = "slidefield.plane().regions > 0 && !slidefield.plane().waiting && slidefield.settled()"
        until(page, f"Boolean(window.slidefield && slidefield.plane()) && {there}")
        page.wait_for_timeout(2500)  # what the foot of the page says has made the pane smaller: it looks once more
        until(page, there)
        middle = page.evaluate("slidefield.middle()")
        assert np.allclose(middle, [20, far], atol=2), "but for what the foot of the page took of it"
        measured(page, seen)
        page.evaluate(f"slidefield.go({{at: [-300, {far}]}})")  # grows to a side that moves the arrays' corner
        until(page, f"slidefield.plane().bounds[0] <= -300 && {there}")
        page.evaluate(f"slidefield.go({{at: [20, {far}]}})")
        until(page, there)
        corner = Box(10, far - 10, 30, far + 10)
        shot = shown_of(page, corner)
        page.screenshot(path=artefacts / "plane-390.png")
        page.click("#map")
        page.evaluate("document.getElementById('opacity').value = 100")
        page.dispatch_event("#opacity", "input")
        until(page, there)
        labelled, color = shown_of(page, corner), page.evaluate("slidefield.plane().labels[1].color")
        page.keyboard.press("l")
        until(page, there)
        without = shown_of(page, corner)
        page.close()
        pixels = read_region(plane, corner).transpose(1, 2, 0).repeat(2, 0).repeat(2, 1)
        np.testing.assert_array_equal(shot, pixels)
        assert (labelled == list(bytes.fromhex(color[1:]))).all()
        np.testing.assert_array_equal(without, pixels)
    assert not seen.messages
    assert not [url for url in seen.requests if not url.startswith(address)]
    assert seen.overflow <= 0
    assert not seen.wider
    low = [one for one in seen.contrasts if one["ratio"] < 4.5]
    assert not low


# ---- engine.trim --------------------------------------------------------------------------------


@pytest.mark.runs
def test_levels_are_dropped_and_the_plane_can_be_asked_for_as_before(small, tmp_path):
    plane, first, second = tmp_path / "plane.zarr", Box(0, 0, 60, 60), Box(0, 20_000, 60, 20_060)
    kept = [sampled(small, plane, region) for region in (first, second)]
    before = verify(plane)
    levels = plane / "slidefield" / "levels"

    def chunks() -> int:
        return len(list(levels.glob("*/*/c/0/0/*/*")))

    def ask(region: str) -> str:
        done = launch(1, "--model", small, *JOB, "--plane", plane, f"--region={region}", "--dry-run")
        assert done.returncode == 0, done.stderr
        return done.stdout

    beside = (ask("0:60,30:90"), ask("0:60,20030:20090"))
    assert all("are known" in said for said in beside)
    both = chunks()
    done = launch(1, plane, "--region", "0:60,0:60", module="engine.trim")
    assert done.returncode == 0, done.stderr
    assert re.search(r": [1-9][\d,]* bytes of kept levels dropped", done.stdout)
    assert 0 < chunks() < both
    assert (ask("0:60,30:90"), "none is known" in ask("0:60,20030:20090")) == (beside[0], True)
    assert launch(1, plane, module="engine.trim").returncode == 0
    assert not levels.exists()
    assert "none is known" in ask("0:60,30:90")
    assert verify(plane) == before
    for region, pixels in zip((first, second), kept, strict=True):
        np.testing.assert_array_equal(read_region(plane, region), pixels)
    again = Box(0, 30, 60, 90)
    np.testing.assert_array_equal(sampled(small, plane, again), sampled(small, tmp_path / "alone.zarr", again))
    done = launch(1, tmp_path / "absent.zarr", module="engine.trim")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
