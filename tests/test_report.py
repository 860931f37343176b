"""Reports: what they say is what the output holds, the command they name makes it again, they look as they should."""

import base64
import html
import io
import json
import os
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from browser import WIDTHS, chromium, looked_at
from launching import ROOT, launch, refused, sha
from PIL import Image

import engine
import engine.report
from engine.evaluation.measures import Evaluation, Measure, Neighbour, Table
from engine.reporting import pictures, views
from engine.reporting.page import write_report
from engine.reporting.times import rank_bars, times_of
from engine.storage.output import Output, output_to_read
from engine.storage.run_times import kept_times, times_file

pytestmark = pytest.mark.runs
ARTEFACTS = Path(os.environ.get("SLIDEFIELD_ARTEFACTS", ROOT / "build" / "tests"))
SMALL = ("--shard", 128, "--chunk", 64, "--steps", 4, "--preview", "none")
SIZE = (300, 420)


@pytest.fixture(scope="module")
def image(tiny_model, tmp_path_factory):
    """A finished image with its report."""
    out = tmp_path_factory.mktemp("report") / "image.zarr"
    arguments = ("--model", tiny_model, *SMALL, "--size", "300x420", "--labels", "example", "--report", "--out", out)
    done = launch(2, *arguments)
    assert done.returncode == 0, done.stderr
    assert f"{out.with_name('image-report.html')} reports it" in done.stdout
    return out


@pytest.fixture(scope="module")
def image_set(tiny_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "set.zarr"
    arguments = ("--model", tiny_model, *SMALL, "--size", "96x120", "--count", 7, "--label", "1,3", "--out", out)
    assert launch(1, *arguments).returncode == 0
    return out


@pytest.fixture
def unfinished(tiny_model, tmp_path):
    """An output that was stopped at its second level."""
    pipe = engine.Pipeline.from_pretrained(tiny_model)
    out = tmp_path / "stopped.zarr"
    options = {"out": out, "size": (96, 120), "labels": "example", "steps": 4, "shard": 128, "chunk": 64}
    with pytest.raises(engine.Stopped):
        pipe(**options, on_level=lambda level, levels, preview: level == 2, progress=False)
    return pipe, options, out


def report_of(out):
    return out.with_name(f"{out.stem}-report.html")


def page_of(out, *arguments):
    """The text of a new report."""
    assert engine.report.main([str(out), "--overwrite", *map(str, arguments)]) == 0
    return report_of(out).read_text()


def shown(page, alt):
    """The picture with a text for those who cannot see it."""
    (uri,) = re.findall(rf'<img src="data:image/\w+;base64,([^"]+)"[^>]* alt="{re.escape(alt)}"', page)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri))).convert("RGB"))


def listings(page):
    return [html.unescape(text) for text in re.findall(r"<pre>(.*?)</pre>", page, re.DOTALL)]


# ---- what it says -----------------------------------------------------------------------------


def test_a_report_is_one_file_that_fetches_nothing(image):
    page = report_of(image).read_text()
    assert set(re.findall(r'(?:src|href)="([a-z]+:)', page)) == {"data:"}
    assert "http:" not in page
    assert "https:" not in page
    assert "url(" not in page
    assert "<script" not in page
    assert "default-src 'none'" in page


def test_of_several_ranks_one_does_what_they_do_not_share(image, tmp_path):
    file = tmp_path / "page.html"
    done = launch(2, image, "--html", file, module="engine.report")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{file} reports it\n", "")
    done = launch(2, image, module="engine.verify")
    assert done.returncode == 0
    assert done.stdout.count("finished; ") == 1
    assert launch(2, tmp_path / "absent.zarr", module="engine.verify").returncode == 1


def test_pictures_are_those_of_the_output(image):
    output, page = Output(image), page_of(image)
    whole = np.asarray(output.array("0")[:]).transpose(1, 2, 0)
    boxes = views.crop_boxes(output)
    for letter, box in zip("ABCD", boxes, strict=False):
        crop = shown(page, f"Crop {letter} at full resolution.").astype(float)
        assert np.abs(crop - whole[box.y0 : box.y1, box.x0 : box.x1]).mean() < 6  # JPEG, of noise
        colors = np.array([color for _, color in output.layout.label.entries])
        labels = np.asarray(output.array("labels/tissue/0")[box.y0 : box.y1, box.x0 : box.x1])
        np.testing.assert_array_equal(shown(page, f"Crop {letter} of the map."), colors[labels])
    assert shown(page, "The whole image of 300 by 420 px, reduced.").shape == (*SIZE, 3)


def test_shares_hashes_and_settings_are_those_of_the_output(image):
    output, page = Output(image), page_of(image)
    labels = np.asarray(output.array("labels/tissue/0")[:])
    for label, (name, _) in enumerate(output.layout.label.entries):
        if share := 100 * (labels == label).mean():
            assert re.search(rf"</i>{name}</th><td class=\"n\">{share:.1f}</td>", page), name
    assert sha(image) in page
    assert output.provenance["model_hash"] in page
    assert output.provenance["versions"]["torch"] in page


def test_a_set_is_shown_with_what_each_image_was_asked_for(image_set):
    page = page_of(image_set)
    assert "All images of the set." in page
    assert re.findall(r"<span>(\d: label \d)</span>", page) == [
        f"{n}: label {1 if n % 2 == 0 else 3}" for n in range(7)
    ]
    one = shown(page, "Image 4 of the set.")
    assert np.abs(one - np.asarray(Output(image_set).array("images")[4]).transpose(1, 2, 0).astype(float)).mean() < 6


def test_nothing_as_large_as_the_image_is_read(image, image_set, monkeypatch):
    read, sizes = Output._read, []
    monkeypatch.setattr(Output, "_read", lambda *given: sizes.append((out := read(*given)).size) or out)
    monkeypatch.setattr(views, "THUMBNAIL", 60)
    monkeypatch.setattr(views, "SIDE", 32)
    monkeypatch.setattr(views, "COUNTED", 128**2)
    write_report(image)
    assert sizes
    assert max(sizes) < 3 * SIZE[0] * SIZE[1] / 4
    sizes.clear()
    monkeypatch.setattr(views, "OF_A_SET", 24)
    monkeypatch.setattr(pictures, "BAND", 1)
    write_report(image_set)
    assert max(sizes) < 3 * 96 * 120 / 2


# ---- times ------------------------------------------------------------------------------------


def test_times_by_rank_and_by_level_add_up_and_evaluations_are_those_planned(image, tiny_model):
    (run,) = kept_times(image)
    assert [phase for _, phase in run["phases"]] == [
        "start",
        *(f"level {n}" for n in range(1, 5)),
        "decoding",
        "pyramid",
    ]
    assert run["ranks"] == len(run["seconds_by_rank"]) == 2
    by_phase, by_rank = np.array(run["seconds"]) * 2, np.array(run["seconds_by_rank"])
    np.testing.assert_allclose(by_phase.sum(0), by_rank.sum(0), atol=0.01)
    planned = ("--model", tiny_model, *SMALL, "--size", "300x420", "--labels", "example", "--dry-run", "--json")
    facts = json.loads(launch(1, *planned).stdout)
    assert run["planned"] == run["evaluations"] == [0, *facts["evaluations_per_level"], 0, 0]
    assert sum(run["evaluations_by_rank"]) == facts["evaluations"]
    assert min(run["evaluations_by_rank"]) > 0
    assert by_rank.sum() / 2 <= Output(image).provenance["seconds"]["all"] + 1
    times = times_of(Output(image))
    assert times.complete
    assert len(times.by_rank) == 2


def test_times_of_a_run_that_was_stopped_count(unfinished):
    pipe, options, out = unfinished
    assert pipe(**options, progress=False, report=True).state == "finished"
    assert len(kept_times(out)) == 2
    times = times_of(Output(out))
    assert [(one.stage, one.levels) for one in times.counts] == [("image", 4)]
    assert times.counts[0].planned == times.counts[0].made > 0
    assert times.complete
    assert "of 2 runs one after the other" in report_of(out).read_text()


def test_an_output_without_times_of_ranks_is_reported_all_the_same(image, tmp_path):
    copy = tmp_path / "old.zarr"
    shutil.copytree(image, copy)
    times_file(copy).write_text("{torn")
    assert "The output keeps no times by level and by rank." in page_of(copy)


def test_evaluations_of_a_planes_requests_are_counted_and_its_report_makes_it_again(tiny_model, tmp_path, monkeypatch):
    plane, job = tmp_path / "plane.zarr", ("--model", tiny_model, *SMALL[:-2], "--label", 1, "--guidance", 1)
    log, regions = tmp_path / "log.jsonl", ("-20:70,0:80", "0:60,80:100")
    for ranks, region in zip((2, 1), regions, strict=True):
        asked = ("--plane", plane, f"--region={region}", "--json-log", log)
        assert launch(ranks, *job, *asked).returncode == 0
    made = [json.loads(line) for line in log.read_text().splitlines()]
    times = times_of(output_to_read(plane))
    assert (times.runs, [(one.stage, one.levels) for one in times.counts]) == (2, [("image", 4)])
    assert times.counts[0].planned == times.counts[0].made == sum(line.get("evaluations", 0) for line in made)
    page = page_of(plane)
    assert "of 2 runs one after the other" in page
    command, lines = listings(page)
    assert command.startswith(f"for region in {' '.join(regions)}; do\nslidefield sample")
    assert "--size" not in page
    monkeypatch.chdir(tmp_path)
    plane.rename(tmp_path / "first.zarr")
    exec(compile(lines, "report", "exec"), {})
    assert sha(plane) == sha(tmp_path / "first.zarr")


def test_of_many_ranks_some_are_drawn():
    kinds = ["evaluate", "wait"]
    run = {"kinds": kinds, "seconds_by_rank": [[5, n] for n in range(100)], "evaluations_by_rank": [1] * 100}
    names = [bar.name for bar in rank_bars(run)]
    assert len(names) == 32
    assert {"rank 0", "rank 99"} < set(names)


# ---- how to make it again ---------------------------------------------------------------------


def test_the_command_and_the_lines_of_a_report_make_the_same_bytes(image, tmp_path, monkeypatch):
    command, lines = listings(report_of(image).read_text())
    words = shlex.split(command.replace("\\\n", " "))
    assert words[:5] == ["mpiexec", "-n", "2", "slidefield", "sample"]
    assert words[-2:] == ["--out", "image.zarr"]
    assert launch(1, *words[5:-1], tmp_path / "again.zarr", "--preview", "none").returncode == 0
    assert sha(tmp_path / "again.zarr") == sha(image)
    monkeypatch.chdir(tmp_path)
    exec(compile(lines, "report", "exec"), {})
    assert sha(tmp_path / "image.zarr") == sha(image)


def test_arrays_of_python_are_named_as_files_to_save(tiny_model, tmp_path):
    labels = np.ones((64, 64), np.uint8)
    pipe = engine.Pipeline.from_pretrained(tiny_model)
    pipe(size=64, labels=labels, steps=1, shard=64, chunk=64, progress=False, out=tmp_path / "o.zarr", report=True)
    page = (tmp_path / "o-report.html").read_text()
    assert "--labels labels.npy" in page
    assert "These were arrays in Python" in page
    with pytest.raises(ValueError, match="`report` is written beside the output; pass `out` too"):
        pipe(size=64, labels=labels, steps=1, report=True, progress=False)


# ---- measures and references ------------------------------------------------------------------


def png(value):
    file = io.BytesIO()
    Image.fromarray(np.full((16, 16, 3), value, np.uint8)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def evaluation():
    """An evaluation with everything that one may have, and names that are no HTML."""
    names = ("carcinoma", "tumour <stroma>")
    wide = tuple(tuple(float(n * m) for n in range(40)) for m in (0, 1))
    return Evaluation(
        {"path": f"/{'long' * 40}/a.zarr", "crops": 64},
        {"path": "tiles", "crops": 80},
        {"name": "autoencoder"},
        measures=(
            Measure("distances", "FID", 34.211, "lower", reference=9.87, says="Of the <features>."),
            Measure("distances", "KID", -0.0123, "lower", error=0.002, unit="e-3", label="carcinoma"),
            Measure("seams", "windows", float("nan"), "one"),
            Measure("nuclei", "area", 30.0, reference=31.0),
            Measure("seams", "<script>alert(1)</script>", 123456.0, "one", reference=float("nan")),
        ),
        tables=(
            Table("accuracy", "confusion", names, names, ((0.75, 0.25), (float("nan"), 0.5)), "Rows were asked for."),
            Table("accuracy", "spectrum", names, tuple(f"{n} px" for n in range(40)), wide),
        ),
        neighbours=(
            Neighbour("crop 1", "tile 7", 0.5, png(10), png(200)),
            Neighbour("crop 2", "tile 3", 0.25, png(30), "no picture"),
        ),
        warnings=("fid: <few> crops; pass `crops` N",),
        version="0.1.0",
        seconds=71.0,
    )


@pytest.fixture
def measured(tmp_path):
    (tmp_path / "e.json").write_text(json.dumps(evaluation().as_json()))
    return tmp_path / "e.json"


@pytest.fixture
def tiles(tmp_path):
    """A folder of pictures of several sizes, one of bare background, with label maps beside them."""
    folder, random = tmp_path / "tiles", np.random.default_rng(0)
    folder.mkdir()
    for n, size in enumerate([(300, 300), (280, 400), (100, 90), (256, 256), (270, 270)]):
        coarse = random.integers(60, 200, (8, 8, 3)).astype(np.uint8)
        values = np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC))
        Image.fromarray(values if n else np.full_like(values, 250)).save(folder / f"{n}.png")
        Image.fromarray(values[..., 0]).save(folder / f"{n}_mask.png")
    return folder


def test_measures_tables_and_neighbours_are_shown(image, measured):
    page = page_of(image, "--evaluation", measured)
    text = re.sub(r"\s+", " ", html.unescape(re.sub(r"<style>.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL)))
    for words in (
        "FID",
        "34.21",
        "9.87",
        "lower is better",
        "best as the reference",
        "Note. These are measures of a.zarr, and this report is of image.zarr.",
        "Note. fid: <few> crops; pass --crops N.",
        "Of the <features>.",
        "KID, carcinoma",
        "\N{MINUS SIGN}0.0123 ± 0.002",
    ):
        assert words in text, words
    assert "windows none" in text
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert re.findall(r'<td style="background:(#\w+)">([\d.]+|none)</td>', page) == [
        ("#8fb6d6", "0.75"),
        ("#dae7f1", "0.25"),
        ("#ffffff", "none"),
        ("#b4cee4", "0.50"),
    ]
    assert page.count('title="') == 80, "of a wide table the numbers are not written out"
    assert [float(d) for d in re.findall(r"<b>distance ([\d.]+)</b>", page)] == [0.25, 0.5]
    assert abs(int(shown(page, "Nearest to it: tile 7.").mean()) - 200) < 3
    assert page.count("no picture") == 1


def test_crops_of_a_folder_a_slide_and_an_output_stand_beside(image, image_set, tiles):
    page = page_of(image, "--against", tiles)
    names = [name for name in re.findall(r"The middle of ([^\"]*)\.\"", page) if name.endswith("png")]
    assert names == ["1.png", "2.png", "3.png", "4.png"], "not the white one, nor the maps"
    pixels = np.asarray(Image.open(tiles / "4.png"))[7:263, 7:263].astype(float)
    assert np.abs(shown(page, "The middle of 4.png.") - pixels).mean() < 3
    assert "A crop of 1.png." in page_of(image_set, "--against", tiles / "1.png")
    assert "The middle of image 6 of set.zarr." in page_of(image, "--against", image_set)
    assert "A crop of image.zarr." in page_of(image_set, "--against", image)


# ---- what is refused --------------------------------------------------------------------------


def test_bad_input_is_refused_in_one_line_and_leaves_the_report_as_it_was(image, tmp_path, capsys):
    before = report_of(image).read_bytes()
    (tmp_path / "empty").mkdir()
    (tmp_path / "no.json").write_text("{}")
    (tmp_path / "other.html").write_text("mine")
    again = ("--overwrite",)
    for arguments, expected in [
        ((tmp_path / "none.zarr",), "none.zarr is not there"),
        ((tmp_path / "empty",), "is no output of engine.sample"),
        ((image,), "image-report.html is there already; pass --overwrite to replace it"),
        ((image, *again, "--against", tmp_path / "none"), "--against .* is not there; name an output, a slide"),
        ((image, *again, "--against", tmp_path / "empty"), "--against .* has no pictures"),
        ((image, *again, "--against", tmp_path / "no.json"), "--against .*no.json"),
        ((image, *again, "--evaluation", tmp_path / "no.json"), "no.json is no evaluation of this version"),
        ((image, *again, "--evaluation", tmp_path / "none.json"), "none.json: No such file"),
        ((image, "--html", tmp_path / "none" / "r.html"), "--html .* is not a folder; make it"),
        ((image, "--html", image / "r.html"), "which holds arrays alone; choose another --html"),
        ((image, *again, "--html", tmp_path / "other.html"), "other.html is there and is no report of ours"),
        ((image, *again, "--html", tmp_path / "empty"), "empty is a folder; choose another --html"),
    ]:
        assert engine.report.main([str(word) for word in arguments]) == 1, arguments
        said = capsys.readouterr().err
        assert said.startswith("error: "), said
        assert said.count("\n") == 1, said
        assert re.search(expected, said), said
    assert report_of(image).read_bytes() == before
    assert (tmp_path / "other.html").read_text() == "mine"
    assert not list(image.rglob("*.html"))


def test_an_unfinished_output_is_refused_with_the_command_that_finishes_it(unfinished, capsys):
    *_, out = unfinished
    assert engine.report.main([str(out)]) == 1
    said = capsys.readouterr().err
    assert "is unfinished, at level 2 of 4; finish it, then report it: slidefield sample --model" in said
    words = shlex.split(said.split("report it: slidefield sample ")[1])
    assert launch(1, *words, "--preview", "none").returncode == 0
    assert engine.report.main([str(out)]) == 0


def test_a_lost_shard_is_named_and_not_shown_black(image, tmp_path, capsys):
    copy = tmp_path / "copy.zarr"
    shutil.copytree(image, copy)
    (copy / "0" / "c" / "0" / "1" / "1").unlink()
    assert engine.report.main([str(copy)]) == 1
    assert "array 0 shard rows 128:256 columns 128:256 is missing" in capsys.readouterr().err
    assert not report_of(copy).exists()


def test_a_file_of_somebody_else_is_refused_before_anything_is_sampled(tiny_model, tmp_path):
    (tmp_path / "o-report.html").write_text("<p>mine</p>")
    arguments = ("--model", tiny_model, *SMALL, "--size", 64, "--label", 1, "--out", tmp_path / "o.zarr", "--report")
    assert "the report would replace" in refused(tmp_path, *arguments)


# ---- how it looks -----------------------------------------------------------------------------


# Where the marks of crops lie on the picture, in percent of it: [left, top, width, height] of each.
MARKS = """[...document.querySelectorAll('.mark')].map(mark => {
  const [at, on] = [mark, mark.parentElement.querySelector('img')].map(one => one.getBoundingClientRect());
  return [(at.left - on.left) / on.width, (at.top - on.top) / on.height, at.width / on.width, at.height / on.height];
})"""


def test_a_report_looks_as_it_should_on_a_phone_and_on_a_desk(image, image_set, measured, tiles):
    chromium()
    page_of(image, "--evaluation", measured, "--against", tiles)
    page_of(image_set)
    marks = [[m.left, m.top, m.width, m.height] for m in views.view_of(Output(image)).marks]
    assert marks
    for out in (image, image_set):
        for width, seen in looked_at(report_of(out), ARTEFACTS / "report", MARKS).items():
            if out == image:
                np.testing.assert_allclose(100 * np.array(seen.answer), marks, atol=0.5)
            assert seen.messages == [], width
            assert seen.requests == [], width
            assert (seen.overflow, seen.wider) == (0, []), width
            assert seen.broken == 0, width
            assert len(seen.contrasts) > 40
            assert min(seen.contrasts, key=lambda one: one["ratio"])["ratio"] >= 4.5, width
            assert min(one["size"] for one in seen.contrasts) >= 12, "text of 12 px or more"
            assert (ARTEFACTS / "report" / f"{out.stem}-report-{width}.png").stat().st_size > 10_000


def test_a_page_that_is_wrong_is_seen(tmp_path):
    chromium()
    (tmp_path / "wrong.html").write_text(
        "<body style='background:#fff'><p style='color:#999'>pale</p><p style='width:2000px'>wide</p>"
        "<img src='http://127.0.0.1:9/x.png'><script>console.error('oh'); nowhere();</script></body>"
    )
    seen = looked_at(tmp_path / "wrong.html", tmp_path)
    assert set(seen) == set(WIDTHS)
    for one in seen.values():
        assert any("oh" in text for text in one.messages)
        assert any("nowhere" in text for text in one.messages)
        assert one.requests == ["http://127.0.0.1:9/x.png"]
        assert one.overflow > 0
        assert one.wider
        assert one.broken == 1
        assert 2.5 < min(contrast["ratio"] for contrast in one.contrasts) < 3
