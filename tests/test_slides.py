"""Outputs as slides and pictures for other programs: the files are read by those programs' own libraries."""

import io
import sys

import numpy as np
import pytest
import tifffile
from PIL import Image
from test_export import NUCLEI, TISSUE, draw, make_image, make_set, refused

import engine
import engine.exports.dicom
import engine.exports.one_picture
import engine.exports.slide
from engine.export import main
from engine.planning.geometry import Box
from engine.storage.files import halved
from engine.storage.image_layout import ImageLayout
from engine.storage.output import Output


def with_pyramid(path, size=(100, 150), shard=64, chunk=32, channels=3, label=TISSUE):
    """An output with the levels that engine.sample makes."""
    made = make_image(path, size, channels, label, shard, chunk)
    output = Output(made)
    assert isinstance(output.layout, ImageLayout)
    for level in range(1, len(output.layout.sizes())):
        for name in output.layout.finest:
            for box in output.layout.boxes(level):
                output.halve(name, level, box)
    return made


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """An output that tests only read."""
    return with_pyramid(tmp_path_factory.mktemp("image") / "o.zarr")


@pytest.fixture
def small(monkeypatch):
    """Slides with levels down to 32 px."""
    monkeypatch.setattr(engine.exports.slide, "COARSEST", 32)


def export(*arguments):
    assert main([str(a) for a in arguments]) == 0
    return arguments[1]


def rows_last(image):
    return image[0] if len(image) == 1 else image.transpose(1, 2, 0)


def levels_of(image):
    """A pyramid down to 32 px."""
    levels = [image]
    while max(levels[-1].shape[1:]) > 32:
        levels.append(halved(levels[-1]))
    return [rows_last(level) for level in levels]


def jpeg_tiles(page, file):
    """The tiles of a page, decoded by Pillow: tifffile needs imagecodecs for that."""
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        file.seek(offset)
        yield np.asarray(Image.open(io.BytesIO(file.read(count))))


# ---- slides -------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("compression", ["deflate", "none"])
def test_a_slide_has_every_pixel_of_every_level_for_tifffile(tmp_path, small, channels, compression):
    out = with_pyramid(tmp_path / "o.zarr", channels=channels)
    export(out, tmp_path / "s.ome.tiff", "--compression", compression)
    expected = levels_of(draw(channels, 100, 150))
    with tifffile.TiffFile(tmp_path / "s.ome.tiff") as file:
        assert file.is_bigtiff
        assert file.is_ome
        (series,) = file.series
        assert series.kind == "ome"
        assert [level.shape for level in series.levels] == [level.shape for level in expected]
        for level, pixels in zip(series.levels, expected, strict=True):
            np.testing.assert_array_equal(level.asarray(), pixels)
        assert len(file.pages) == len(expected), "the chain of pages has the levels too"
        assert [level.keyframe.subfiletype for level in series.levels] == [0, 1, 1, 1]
        assert [page.offset for page in file.pages][1:] == list(file.pages[0].subifds)
        assert [level.keyframe.get_resolution("MICROMETER")[0] for level in series.levels] == [2, 1, 0.5, 0.25]
        assert file.pages[0].software == f"slidefield {engine.__version__}"


@pytest.mark.parametrize("region", [Box(3, 9, 95, 141), Box(8, 32, 100, 150), Box(4, 6, 90, 40)])
def test_the_pyramid_of_a_region_is_that_of_its_pixels(tmp_path, image, small, region):
    place = f"{region.y0}:{region.y1},{region.x0}:{region.x1}"
    export(image, tmp_path / "s.ome.tiff", "--compression", "deflate", "--region", place)
    expected = levels_of(draw(3, 100, 150)[:, region.y0 : region.y1, region.x0 : region.x1])
    with tifffile.TiffFile(tmp_path / "s.ome.tiff") as file:
        for level, pixels in zip(file.series[0].levels, expected, strict=True):
            np.testing.assert_array_equal(level.asarray()[:-1, :-1], pixels[:-1, :-1])


def test_stored_levels_are_read_and_not_made_again(tmp_path, image, small, monkeypatch):
    asked: list[str] = []
    read = Output.read
    monkeypatch.setattr(Output, "read", lambda self, name, box: asked.append(name) or read(self, name, box))
    export(image, tmp_path / "s.ome.tiff")
    assert {"0", "1", "2"} <= set(asked)
    asked.clear()
    export(image, tmp_path / "t.ome.tiff", "--region", "2:100,6:150")
    assert "1" in asked
    assert set(asked) == {"0", "1"}, "what is no multiple of 4 is halved from level 1"


def test_a_slide_of_a_coarser_level_has_larger_pixels(tmp_path, image, small):
    export(image, tmp_path / "s.ome.tiff", "--level", 1, "--compression", "deflate", "--region", "10:51,0:150")
    with tifffile.TiffFile(tmp_path / "s.ome.tiff") as file:
        np.testing.assert_array_equal(file.asarray(), rows_last(halved(draw(3, 100, 150))[:, 5:26]))
        assert file.pages[0].get_resolution("MICROMETER") == (1, 1)
        assert 'PhysicalSizeX="1"' in file.pages[0].description


def test_jpeg_slides_look_like_the_image_and_say_what_they_are(tmp_path, small):
    smooth = np.add.outer(np.arange(100), np.arange(150)).astype(np.uint8)
    out = with_pyramid(tmp_path / "o.zarr", label=None)
    output = Output(out)
    output.annotate(state="unfinished")
    for box in output.layout.boxes():
        output.write("0", box, np.stack([smooth, smooth // 2, 255 - smooth])[output.layout.index(box)])
    output.annotate(state="finished")
    sizes = {}
    for quality in (30, 95):
        name = tmp_path / f"q{quality}.ome.tiff"
        export(out, name, "--quality", quality)
        sizes[quality] = name.stat().st_size
        with tifffile.TiffFile(name) as file, name.open("rb") as raw:
            page = file.pages[0]
            assert page.compression == tifffile.COMPRESSION.JPEG
            assert page.photometric == tifffile.PHOTOMETRIC.YCBCR
            first = next(jpeg_tiles(page, raw)).astype(int)
        expected = np.stack([smooth, smooth // 2, 255 - smooth], -1)[:32, :32].astype(int)
        assert np.abs(first - expected).mean() < (8 if quality == 30 else 2)
    assert sizes[30] < sizes[95]


def test_a_label_slide_keeps_the_numbers_and_shows_the_colours(tmp_path, image, small):
    export(image, tmp_path / "l.ome.tiff", "--labels")
    with tifffile.TiffFile(tmp_path / "l.ome.tiff") as file:
        page, labels = file.pages[0], draw(100, 150)
        assert page.photometric == tifffile.PHOTOMETRIC.PALETTE
        assert (page.colormap[:, 1] == (65535, 0, 0)).all(), "TISSUE's label 1 is red"
        for n, level in enumerate(file.series[0].levels):
            np.testing.assert_array_equal(level.asarray(), labels[:: 2**n, :: 2**n])
        assert "tissue #ff0000" in page.description
    nuclei = make_image(tmp_path / "n.zarr", label=NUCLEI, size=(30, 30))
    export(nuclei, tmp_path / "n.ome.tiff", "--labels")
    values = tifffile.imread(tmp_path / "n.ome.tiff")
    assert values.dtype == np.uint32
    assert values.max() == 4_000_000_000


def test_one_image_of_a_set_is_a_slide(tmp_path, capsys):
    out = make_set(tmp_path / "set.zarr")
    assert "holds 5 images; pass --image 0 to 4" in refused(capsys, out, tmp_path / "s.ome.tiff")
    assert "--image is 5" in refused(capsys, out, tmp_path / "s.ome.tiff", "--image", 5)
    export(out, tmp_path / "s.ome.tiff", "--image", 3, "--compression", "deflate")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "s.ome.tiff"), rows_last(draw(5, 3, 20, 24)[3]))


def test_the_description_is_ome_xml_alone_that_its_schema_allows(tmp_path, small):
    out = with_pyramid(tmp_path / "of a tümör.zarr")
    for more in ((), ("--labels",)):
        export(out, tmp_path / "s.ome.tiff", "--overwrite", *more)
        with tifffile.TiffFile(tmp_path / "s.ome.tiff") as file:
            assert [bool(page.description) for page in file.pages[1:]] == [False] * (len(file.pages) - 1)
            text = file.pages[0].description
        assert text.startswith("<?xml")
        assert text.endswith("</OME>")
        assert "&#" not in text, "Bio-Formats takes such for an error"
        assert "of a tümör.zarr" in text
        pytest.importorskip("lxml", reason="ome-types checks OME-XML with lxml")
        ome = pytest.importorskip("ome_types", reason="ome-types checks OME-XML").from_xml(text, validate=True)
        pixels = ome.images[0].pixels
        assert (pixels.size_x, pixels.size_y, pixels.physical_size_x) == (150, 100, 0.5)


def test_openslide_reads_every_level_and_the_size_of_a_pixel(tmp_path, image, small):
    openslide = pytest.importorskip("openslide", reason="OpenSlide reads slides", exc_type=ImportError)
    for compression in ("deflate", "zstd", "none"):
        export(image, tmp_path / "s.ome.tiff", "--compression", compression, "--overwrite")
        with openslide.OpenSlide(tmp_path / "s.ome.tiff") as slide:
            assert slide.level_count == 4
            assert float(slide.properties["openslide.mpp-x"]) == 0.5
            for n, expected in enumerate(levels_of(draw(3, 100, 150))):
                shown = slide.read_region((0, 0), n, slide.level_dimensions[n])
                np.testing.assert_array_equal(np.asarray(shown)[..., :3], expected)
    export(image, tmp_path / "l.ome.tiff", "--labels")
    with openslide.OpenSlide(tmp_path / "l.ome.tiff") as slide:
        shown = np.asarray(slide.read_region((0, 0), 0, (150, 100)))[draw(100, 150) == 1]
    assert (shown == (255, 0, 0, 255)).all()


def test_a_slide_reads_no_more_at_once_however_wide_it_is(tmp_path, monkeypatch):
    out, most = with_pyramid(tmp_path / "o.zarr", size=(32, 600), label=None), []
    read = Output.read
    monkeypatch.setattr(Output, "read", lambda self, name, box: most.append(box.area) or read(self, name, box))
    export(out, tmp_path / "s.ome.tiff", "--region", "1:32,1:600")
    assert max(most) <= 5 * 32 * 32


# ---- pictures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_is_written_in_strips_and_is_the_image(tmp_path, monkeypatch, channels):
    monkeypatch.setattr(engine.exports.one_picture, "STRIP", 150 * channels * 7)
    out = with_pyramid(tmp_path / "o.zarr", channels=channels)
    export(out, tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), rows_last(draw(channels, 100, 150)))
        assert picture.info["dpi"][0] == pytest.approx(50800)
    export(out, tmp_path / "r.png", "--region", "10:20,30:50", "--level", 1)
    np.testing.assert_array_equal(
        np.asarray(Image.open(tmp_path / "r.png")), rows_last(halved(draw(channels, 100, 150))[:, 5:10, 15:25])
    )


def test_a_label_png_has_the_numbers_and_the_palette(tmp_path, image, capsys):
    export(image, tmp_path / "l.png", "--labels")
    with Image.open(tmp_path / "l.png") as picture:
        assert picture.mode == "P"
        assert picture.getpalette()[:6] == [0, 0, 0, 255, 0, 0]
        np.testing.assert_array_equal(np.asarray(picture), draw(100, 150))
    nuclei = with_pyramid(tmp_path / "n.zarr", label=NUCLEI)
    assert "are numbers of uint32; choose .tiff" in refused(capsys, nuclei, tmp_path / "n.png", "--labels")


def test_a_tiff_is_one_picture_without_loss_and_a_jpeg_one_with(tmp_path, image, monkeypatch, capsys):
    export(image, tmp_path / "t.tif")
    with tifffile.TiffFile(tmp_path / "t.tif") as file:
        assert (len(file.pages), file.pages[0].is_tiled, file.pages[0].description) == (1, True, "")
        np.testing.assert_array_equal(file.asarray(), rows_last(draw(3, 100, 150)))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "t.tif")), rows_last(draw(3, 100, 150)))
    export(image, tmp_path / "j.JPG", "--quality", 100)
    assert Image.open(tmp_path / "j.JPG").size == (150, 100)
    monkeypatch.setattr(engine.exports.one_picture, "LARGEST_JPEG", 149)
    assert "a JPEG has at most 149 px a side" in refused(capsys, image, tmp_path / "no.jpg")


# ---- DICOM --------------------------------------------------------------------------------------


def test_a_dicom_slide_has_every_level_its_size_and_looks_like_the_image(tmp_path, small, monkeypatch, capsys):
    wsidicom = pytest.importorskip("wsidicom", reason="wsidicom reads DICOM slides")
    pydicom = pytest.importorskip("pydicom")
    pytest.importorskip("wsidicomizer", reason="wsidicomizer writes them", exc_type=ImportError)
    monkeypatch.setattr(engine.exports.dicom, "COARSEST", 80)
    out = with_pyramid(tmp_path / "o.zarr", label=None)
    export(out, tmp_path / "d", "--format", "dicom", "--quality", 100)
    assert sorted(p.name for p in (tmp_path / "d").iterdir()) == ["export.json", "level0.dcm", "level1.dcm"]
    with wsidicom.WsiDicom.open(tmp_path / "d") as slide:
        assert [(level.size.width, level.size.height, level.mpp.width) for level in slide.levels] == [
            (150, 100, 0.5),
            (75, 50, 1.0),
        ]
    facts = pydicom.dcmread(tmp_path / "d" / "level0.dcm", stop_before_pixels=True)
    assert str(facts.PatientName) == "Synthetic^Slidefield"
    assert facts.ImageComments.startswith("Synthetic image, sampled by slidefield")
    export(out, tmp_path / "one.dcm", "--level", 1)
    again = pydicom.dcmread(tmp_path / "one.dcm", stop_before_pixels=True)
    assert (again.TotalPixelMatrixRows, again.TotalPixelMatrixColumns) == (50, 75)
    assert again.SOPInstanceUID != facts.SOPInstanceUID
    export(out, tmp_path / "d", "--format", "dicom", "--quality", 100, "--overwrite")
    same = pydicom.dcmread(tmp_path / "d" / "level0.dcm", stop_before_pixels=True)
    assert same.SOPInstanceUID == facts.SOPInstanceUID
    (tmp_path / "d" / "notes.txt").write_text("looked at")
    assert "holds notes.txt, which no export wrote" in refused(
        capsys, out, tmp_path / "d", "--format", "dicom", "--overwrite"
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d", "o.zarr", "one.dcm"]


def test_where_wsidicomizer_is_not_installed_one_line_says_how_to_get_it(tmp_path, image, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wsidicomizer", None)
    said = refused(capsys, image, tmp_path / "d", "--format", "dicom")
    assert "pip install wsidicomizer" in said
    assert "not installed" in refused(capsys, image, tmp_path / "one.dcm")
    assert not list(tmp_path.iterdir())


# ---- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["s.ome.tiff", "p.png", "p.jpg", "t.tiff"])
def test_an_earlier_file_stays_whole_unless_it_is_replaced(tmp_path, capsys, target):
    out = with_pyramid(tmp_path / "o.zarr")
    (tmp_path / target).write_text("years of work")
    assert "is there already; pass --overwrite" in refused(capsys, out, tmp_path / target)
    output = Output(out)
    shard = output.shard_file("0", output.layout.boxes()[-1])
    whole = shard.read_bytes()
    shard.write_bytes(b"x" * len(whole))
    assert "cannot be read" in refused(capsys, out, tmp_path / target, "--overwrite")
    assert (tmp_path / target).read_text() == "years of work"
    shard.write_bytes(whole)
    export(out, tmp_path / target, "--overwrite")
    assert (tmp_path / target).read_bytes()[:13] != b"years of work"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["o.zarr", target]), "nothing is left beside it"
    level = output.shard_file("1", output.layout.boxes(1)[0])
    level.unlink()
    assert "lacks a shard of 1" in refused(capsys, out, tmp_path / target, "--overwrite")


def test_what_a_slide_cannot_be_is_said_in_one_line(tmp_path, image, capsys):
    out, plain = image, make_image(tmp_path / "plain.zarr", (30, 30), label=None)
    slide = tmp_path / "s.ome.tiff"
    cases = {
        (out, slide, "--level", 7): "--level is 7 and",
        (out, slide, "--level", -1): "--level is -1; give a whole number, 0 or more",
        (out, slide, "--quality", 101): "--quality is 101; give a whole number, 1 to 100",
        (out, slide, "--region", "0:101,0:10"): "--region 0:101,0:10 passes the image's edge, which is 100 x 150 px",
        (out, slide, "--compression", "lzw"): "--compression is 'lzw'; choose jpeg, deflate, zstd, none",
        (out, slide, "--compression", "zstd", "--quality", 9): "--quality is of JPEG, and zstd keeps every pixel",
        (out, slide, "--labels", "--quality", 9): "JPEG would change the numbers of labels",
        (out, slide, "--format", "png"): "--format is not for NAME.ome.tiff, a slide, which takes --region",
        (plain, slide, "--labels"): "stores no label map; leave out --labels",
        (out, out / "s.ome.tiff"): "lies in",
    }
    for arguments, said in cases.items():
        assert said in refused(capsys, *arguments)
    (tmp_path / "folder.png").mkdir()
    assert "is a folder" in refused(capsys, out, tmp_path / "folder.png", "--overwrite")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.png", "plain.zarr"]


def test_an_image_exports_itself_from_python(tmp_path, image):
    opened = engine.open(image)
    assert opened.export(tmp_path / "s.ome.tiff", level=1, compression="deflate") == tmp_path / "s.ome.tiff"
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "s.ome.tiff"), rows_last(halved(draw(3, 100, 150))))
    opened.export(str(tmp_path / "p.png"), region="0:10,0:20", labels=True)
    assert Image.open(tmp_path / "p.png").size == (20, 10)
    opened.export(tmp_path / "folders")
    assert (tmp_path / "folders" / "samples" / "000000.png").is_file()
    with pytest.raises(ValueError, match="`region` is '5': it is no region"):
        opened.export(tmp_path / "q.png", region="5")
    with pytest.raises(ValueError, match="`level` is '1'; give a whole number"):
        opened.export(tmp_path / "q.png", level="1")
    with pytest.raises(TypeError, match="colour"):
        opened.export(tmp_path / "q.png", colour=True)
