"""What a run leaves for those who watch: no byte of the image differs, and whatever happens to it, the run goes on."""

import errno
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from launching import launch, lines_of, sha, start_and_kill
from PIL import Image

import engine
import engine.sample
from engine.api.call import Stopped
from engine.job import RunOptions
from engine.models.card import read_card
from engine.models.folder import load_codec
from engine.models.latent_colors import colors_of_pixels, fitted_colors
from engine.parsing import parse
from engine.pipeline.live import colored_latents, put_shots, shots_of
from engine.planning.geometry import Box, Frames
from engine.planning.ownership import Ownership
from engine.planning.preview_grid import LONGEST_SIDE, PreviewGrid
from engine.storage.live_files import LiveFiles, PicturePart, read_part
from engine.storage.output import Output
from engine.viewing.live_picture import live_picture_of
from engine.viewing.watched import Watched

JOB = ("--size", "300x420", "--shard", 128, "--chunk", 64, "--labels", "example", "--preview", "none", "--steps", 4)


@pytest.fixture(scope="module")
def plain(tiny_model, tmp_path_factory):
    """The pixels' sha256 of the job without a picture."""
    out = tmp_path_factory.mktemp("plain") / "o.zarr"
    assert launch(1, "--model", tiny_model, *JOB, "--out", out).returncode == 0
    return sha(out)


@pytest.mark.runs
@pytest.mark.parametrize("ranks", [1, 3])
def test_the_bytes_are_the_same_and_nothing_of_it_is_left(tiny_model, plain, tmp_path, ranks):
    done = launch(ranks, "--model", tiny_model, *JOB, "--live", 0, "--out", tmp_path / "o.zarr")
    assert done.returncode == 0, done.stderr
    assert sha(tmp_path / "o.zarr") == plain
    assert not (tmp_path / "o.zarr/slidefield/live").exists()
    assert not list((tmp_path / "o.zarr").rglob("*.partial"))


@pytest.mark.runs
def test_a_killed_run_has_its_picture_and_goes_on_with_it_and_without(tiny_model, plain, tmp_path):
    out, log = tmp_path / "o.zarr", tmp_path / "log"
    job = ("--model", tiny_model, *JOB, "--live", 0, "--checkpoint-every", 0)
    start_and_kill(
        lambda: len(lines_of(log)) >= 2 and (out / "slidefield/live/00000.npz").exists(), out, 2, *job, log=log
    )
    (out / "slidefield/live/00001.npz.partial").write_bytes(b"half")
    state = Watched(out).facts(512)["state"]
    assert state["estimated"]
    assert state["live"]["text"].startswith(("level", "decoding")), "where it was when the kill came"
    assert not state["live"]["ended"], "it had no time to say so"
    assert launch(1, "--model", tiny_model, *JOB, "--out", out).returncode == 0
    assert sha(out) == plain
    assert not (out / "slidefield/live").exists()


def stopped_run(tiny_model, out, level=2, **options):
    """A run that is asked to stop after a level, and what it left."""
    pipe = engine.Pipeline(tiny_model, size=(300, 420), shard=128, chunk=64, labels="example", steps=4, **options)
    with pytest.raises(Stopped):
        pipe(out=out, live=0, progress=False, on_level=lambda now, levels, preview: now == level)
    return Output(out)


def test_a_run_that_stops_says_so_and_leaves_the_estimate_of_its_last_level(tiny_model, tmp_path):
    output = stopped_run(tiny_model, tmp_path / "o.zarr")
    status = output.live.status()
    assert status["ended"]
    assert status["text"] == "level 3/4"
    assert 0 < status["share"] < 1
    picture = live_picture_of(output.live.parts(), ())
    assert (picture.level, picture.factor, picture.grid) == (2, 8, PreviewGrid((38, 53), 1, 1))
    assert (picture.pixels[..., 3] == 255).all()
    (work,) = output.live.ranks(9)
    assert work["rank"] == 0
    assert work["evaluations"] > 0
    assert sum(work["seconds"].values()) == pytest.approx(work["span"], abs=0.1)


@pytest.mark.runs
def test_the_picture_is_near_the_image(tmp_path):
    """The embedded model's map, from the card: the estimate of a late level against the decoded image."""
    pipe = engine.Pipeline(size=(256, 256), labels="example", steps=4)
    pictures = []

    def look(level, levels, preview):
        pictures.append(preview())
        return level == 3

    with pytest.raises(Stopped):
        pipe(out=tmp_path / "o.zarr", live=0, progress=False, on_level=look)
    small = live_picture_of(Output(tmp_path / "o.zarr").live.parts(), ()).pixels[..., :3].astype(float)
    decoded = np.asarray(Image.fromarray(pictures[-1]).reduce(8)).astype(float)
    assert np.abs(small - decoded).mean() < 12  # grey levels; an unfitted map is off by more than 40
    assert np.corrcoef(small.ravel(), decoded.ravel())[0, 1] > 0.8


@pytest.mark.runs
@pytest.mark.parametrize("wrong", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("a fault of ours")])
def test_a_picture_that_cannot_be_written_ends_no_run(tiny_model, plain, tmp_path, monkeypatch, capsys, wrong):
    def full(*_):
        raise wrong

    monkeypatch.setattr(LiveFiles, "_write", full)
    words = ("--model", tiny_model, *JOB, "--live", 0, "--out", tmp_path / "o.zarr")
    assert engine.sample.main([str(word) for word in words]) == 0
    said = capsys.readouterr().out
    assert said.count("the picture for --live could not be made") == 1
    assert sha(tmp_path / "o.zarr") == plain


def test_a_set_shows_its_first_images(tiny_model, tmp_path):
    pipe = engine.Pipeline(tiny_model, size=(120, 128), count=60, shard=256, chunk=64, label=1, steps=2)
    with pytest.raises(Stopped):
        pipe(out=tmp_path / "o.zarr", live=0, progress=False, on_level=lambda level, *_: True)
    picture = live_picture_of(Output(tmp_path / "o.zarr").live.parts(), ())
    assert picture.grid == PreviewGrid((16, 16), 48, 1)  # padded to a window
    assert (picture.pixels[..., 3] == 255).all()
    assert picture.read(0, 0, Box(0, 0, 120, 128)).shape == (120, 128, 4)
    assert picture.read(48, 0, Box(0, 0, 120, 128)) is None


# ---- its parts --------------------------------------------------------------------------------


@given(
    size=st.tuples(st.integers(1, 9000), st.integers(1, 9000)),
    factor=st.sampled_from([1, 4, 8]),
    count=st.none() | st.integers(1, 70),
    shard=st.sampled_from([64, 200, 1024]),
    ranks=st.integers(1, 5),
)
def test_every_pixel_of_the_picture_is_one_shards_and_its_size_is_bounded(size, factor, count, shard, ranks):
    frames = Frames(size, factor, 8, count)
    grid = PreviewGrid.of(frames)
    assert grid.shape[0] * grid.shape[1] <= 1.3 * LONGEST_SIDE**2
    assert count is not None or max(grid.shape) <= LONGEST_SIDE
    ownership = Ownership(frames.shape, frames.shard_sides(shard), ranks)
    if ownership.count > 3000:
        return
    times = np.zeros(grid.shape, int)
    for shard_box in ownership.shards:
        for latents, pixels in grid.pieces(shard_box):
            assert latents & shard_box == latents
            assert pixels.shape == tuple(-(-n // grid.step) for n in latents.shape)
            times[pixels.within(Box(0, 0, *grid.shape))] += 1
    assert (times == 1).all()


def test_parts_are_put_together_and_damaged_ones_are_left_out(tmp_path):
    files, grid = LiveFiles(tmp_path), PreviewGrid((8, 4), 1, 1)
    upper, lower = np.full((5, 4, 4), 255, np.uint8), np.full((4, 4, 4), 9, np.uint8)
    upper[4, 2:] = 0  # of the row that the two share, the right half is the other's
    lower[0, :2] = 0
    files.write_part(0, PicturePart(grid, 8, 3, 0, upper))
    files.write_part(1, PicturePart(grid, 8, 2, 4, lower))
    (tmp_path / "live/00002.npz").write_bytes(b"PK damaged")
    files.write_part(3, PicturePart(grid, 8, 2, 7, lower))  # beyond the end
    files.write_part(4, PicturePart(PreviewGrid((4, 4), 1, 1), 8, 1, 0, lower))  # of another job
    (tmp_path / "live/status.json").write_text('["no status"]')
    picture = live_picture_of(files.parts(), ())
    assert picture.level == 2
    assert (picture.pixels[:4] == 255).all()
    assert picture.pixels[4, :, 0].tolist() == [255, 255, 9, 9]
    assert (picture.pixels[5:] == 9).all()
    assert files.status() is None
    files.remove()
    with pytest.raises(FileNotFoundError):
        files.write_status({})
    assert not files.folder.exists(), "what is late leaves nothing in a finished output"


@pytest.mark.parametrize(
    "facts", [{"frame": (60_000, 60_000)}, {"frame": (0, 4)}, {"step": 0}, {"factor": float("inf")}]
)
def test_a_part_of_no_picture_that_a_run_makes_is_left_out(tmp_path, facts):
    files = LiveFiles(tmp_path)
    grid = PreviewGrid(facts.get("frame", (8, 4)), 1, 1)
    (tmp_path / "live").mkdir()
    text = {"frame": grid.frame, "images": 1, "step": 1, "factor": 8, "level": 1, "top": 0, **facts}
    with (tmp_path / "live/00000.npz").open("wb") as stream:
        pixels = np.zeros((0, grid.shape[1], 4), np.uint8)
        np.savez(stream, facts=np.frombuffer(json.dumps(text).encode(), np.uint8), pixels=pixels)
    assert list(files.parts()) == []


def test_a_part_that_unpacks_to_very_much_is_left_out(tmp_path):
    files, grid = LiveFiles(tmp_path), PreviewGrid((8, 4), 1, 1)
    files.write_part(0, PicturePart(grid, 8, 1, 0, np.zeros((8, 4, 4), np.uint8)))
    file = tmp_path / "live/00000.npz"
    assert read_part(file).top == 0
    with np.load(file) as content:
        np.savez_compressed(file, facts=content["facts"], pixels=np.zeros((2**20, 4, 5), np.uint8))
    with pytest.raises(ValueError, match="too large"):
        read_part(file)


def test_a_linear_decoder_is_found_again():
    table = torch.tensor([[0.1, -0.2, 0.05, 0.1], [0.0, 0.1, 0.1, -0.1], [0.05, 0.0, 0.1, 0.2]])

    def decode(latents):
        return (
            (torch.einsum("kc,bchw->bkhw", table[:, :3], latents) + table[:, 3:, None])
            .repeat_interleave(4, 2)
            .repeat_interleave(4, 3)
        )

    np.testing.assert_allclose(fitted_colors(decode, 3), table.numpy(), atol=0.02)
    assert colors_of_pixels(4, (-1.0, 1.0))[1] == (0.0, 1.0, 0.0, 0.0, 0.0)


def test_colours_of_latents_are_pixels():
    latents = np.array([[[-1.0, 0.0, 5.0]], [[1.0, np.nan, 0.0]]], np.float32)
    grey = colored_latents(latents, ((1.0, 0.0, 0.0),))
    assert grey[0, :, 0].tolist()[::2] == [0, 255]
    assert (grey[..., :3] == grey[..., :1]).all()
    assert (grey[..., 3] == 255).all()


def test_the_map_is_in_the_card_of_what_is_trained_and_is_that_of_its_decoder(tiny_model):
    card = read_card(str(tiny_model))
    assert len(card.latent_colors) == 3
    assert card.latent_colors == fitted_colors(load_codec(tiny_model).decode, card.channels)
    embedded = read_card("embedded")
    expected = fitted_colors(load_codec(embedded.folder).decode, embedded.channels)
    np.testing.assert_allclose(embedded.latent_colors, expected, atol=2e-4)


def test_a_card_with_a_map_for_other_latents_is_refused(tiny_model, tmp_path):
    import shutil

    folder = shutil.copytree(tiny_model, tmp_path / "m")
    facts = json.loads((folder / "card.json").read_text())
    for value, expected in (([[1, 2, 3]], "rows of 3 numbers, not 5"), ([1, 2], "expected one or three lists")):
        (folder / "card.json").write_text(json.dumps({**facts, "latent_colors": value}))
        with pytest.raises(ValueError, match=expected):
            read_card(str(folder))


def test_the_option_takes_a_number_or_none(tmp_path):
    for arguments, expected in (([], None), (["--live"], 2.0), (["--live", "0.5"], 0.5), (["--live", "--json"], 2.0)):
        assert parse(arguments)[1].live == expected
    (tmp_path / "job.yaml").write_text("live: true\n")
    assert parse(["--job", str(tmp_path / "job.yaml")])[1].live == 2.0
    assert RunOptions(live=False).live is None
    with pytest.raises(ValueError, match="`live` is 'often': expected a number"):
        parse(["--live", "often"])


def test_decoded_shards_take_their_place_in_the_picture(tiny_model):
    card, grid = read_card(str(tiny_model)), PreviewGrid((50, 40), 1, 3)
    part = PicturePart(grid, 8, 4, 2, np.full((10, 14, 4), 255, np.uint8))
    part.pixels[:, 12:] = 0  # of another rank
    pixels = torch.full((3, 16 * 8, 16 * 8), -1.0)
    pixels[1, :, 64:] = 1.0
    put_shots(part, shots_of(grid, card, Box(16, 24, 32, 40), pixels))
    own = part.pixels[4:9, 8:12]  # latents 18 to 32 and 24 to 40, of which those from 36 on are the other rank's
    assert (own[..., 3] == 255).all()
    assert own[0, :, 0].tolist() == [0, 0, 0, 0]
    assert own[0, :2, 1].tolist() == [0, 0]
    assert own[0, 2:, 1].tolist() == [85, 255]  # a third of the third pixel is beyond the middle
    assert (part.pixels[:4] == 255)[:, :12].all()
    assert (part.pixels[:, 12:] == 0).all()
