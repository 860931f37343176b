"""Labels and nuclei as polygons: what was traced is the map, and what is simplified stays a division of the plane."""

import json
import tracemalloc
from itertools import pairwise
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_export import draw, make, make_image, make_set, nuclei, refused

from engine.export import main
from engine.exports import geojson
from engine.exports.regions import Polygon, area_of, polygons
from engine.storage.image_layout import ImageLayout
from engine.storage.layout import LabelArray
from engine.storage.output import Output
from engine.storage.plane_layout import PlaneLayout

TISSUE = LabelArray("tissue", "uint8", (("unknown", (9, 9, 9)), ("stroma", (1, 2, 3)), ("necrosis", (250, 0, 7))))


@st.composite
def maps(draw):
    """Small maps: noise, whose pixels touch at corners in every way, checkerboards, and both in blocks."""
    height, width, labels = draw(st.integers(1, 12)), draw(st.integers(1, 12)), draw(st.integers(2, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    cells = rng.integers(0, labels, (height, width))
    if draw(st.booleans()):
        cells = np.where(rng.random(cells.shape) < 0.8, sum(np.indices(cells.shape)) % 2, cells)
    return np.kron(cells, np.ones((draw(st.integers(1, 3)), draw(st.integers(1, 3))), int))


def traced(codes, rows, tolerance=0):
    strips = (codes[y : y + rows] for y in range(0, len(codes), rows))
    return [polygon for ended in polygons(strips, tolerance) for polygon in ended]


def filled(rings, shape):
    """Which pixels lie within rings along the edges of pixels: an upright edge begins or ends what lies right of it."""
    edges = np.zeros((shape[0], shape[1] + 1), bool)
    for ring in rings:
        for (x, y), (next_x, next_y) in pairwise(ring):
            assert x == next_x or y == next_y
            edges[min(y, next_y) : max(y, next_y), x] ^= True
    return np.logical_xor.accumulate(edges, axis=1)[:, :-1]


def drawn(polygons, shape):
    """The map that polygons are of; no pixel lies in two."""
    codes = np.zeros(shape, int)
    for polygon in polygons:
        inside = filled(polygon.rings, shape)
        assert not codes[inside].any()
        assert inside.sum() == sum(area_of(ring[:-1]) for ring in polygon.rings)
        codes[inside] = polygon.code
    return codes


def sorted_rings(polygons):
    """Polygons in an order, and their rings from a point, that do not depend on how they were found."""
    each = []
    for polygon in polygons:
        rings = [ring[:-1].tolist() for ring in polygon.rings]
        turned = (ring[ring.index(min(ring)) :] + ring[: ring.index(min(ring))] for ring in rings)
        each.append((polygon.code, sorted(turned)))
    return sorted(each)


@given(maps(), st.integers(1, 9))
@settings(max_examples=150)
def test_polygons_drawn_again_are_the_map_whatever_the_strips(codes, rows):
    ndimage = pytest.importorskip("scipy.ndimage")
    regions = traced(codes, rows)
    assert (drawn(regions, codes.shape) == codes).all()
    for code in range(1, codes.max() + 1):
        assert sum(region.code == code for region in regions) == ndimage.label(codes == code)[1]
    assert sorted_rings(regions) == sorted_rings(traced(codes, len(codes)))
    for region in regions:
        assert area_of(region.rings[0][:-1]) > 0
        assert all(area_of(ring[:-1]) < 0 for ring in region.rings[1:])
        for ring in region.rings:
            assert (ring[0] == ring[-1]).all()
            assert len(np.unique(ring[:-1], axis=0)) == len(ring) - 1 >= 4


@given(maps(), st.integers(1, 9), st.sampled_from([0, 0.75, 1, 1.5, 3, 20]))
@settings(max_examples=100)
def test_simplified_polygons_are_valid_do_not_overlap_and_none_is_lost(codes, rows, tolerance):
    shapely = pytest.importorskip("shapely")
    exact, simple = traced(codes, rows), traced(codes, rows, tolerance)
    assert sorted(p.code for p in simple) == sorted(p.code for p in exact)
    assert sorted(len(p.rings) for p in simple) == sorted(len(p.rings) for p in exact)
    shapes = [shapely.Polygon(p.rings[0], p.rings[1:]) for p in simple]
    for shape in shapes:
        assert shape.is_valid, shapely.is_valid_reason(shape)
        assert shape.area > 0
    assert shapely.union_all(shapes).area == pytest.approx(sum(shape.area for shape in shapes)), "they overlap"
    lines = shapely.MultiLineString([ring for polygon in exact for ring in polygon.rings])
    for ring in (ring for polygon in simple for ring in polygon.rings):
        between = ring[:-1, None] * np.array([[[1], [0.7], [0.5]]]) + ring[1:, None] * np.array([[[0], [0.3], [0.5]]])
        assert shapely.distance(lines, shapely.points(between.reshape(-1, 2))).max() <= tolerance + 1e-9


def test_neighbours_share_the_points_of_their_edge():
    """Three regions that meet: with a tolerance, the area between them stays nobody's but theirs."""
    y, x = np.mgrid[:300, :300]
    codes = 1 + (np.hypot(y - 150, x - 150) < 90) + (np.hypot(y - 90, x - 200) < 60)
    simple = traced(codes, 64, 2.0)
    exact = traced(codes, 64)
    assert sum(len(r) for p in simple for r in p.rings) < sum(len(r) for p in exact for r in p.rings) / 4
    assert sum(area_of(ring[:-1]) for p in simple for ring in p.rings) == codes.size


def test_a_region_of_100_000_rows_is_one_polygon_in_the_memory_of_a_strip():
    rows, height, width = 500, 100_000, 100

    def strip(y0):
        """A band with a hole every 500 rows, that moves to and fro; the first hole is a notch."""
        y, x = np.mgrid[y0 : y0 + rows, :width]
        left = abs((y // 20) % 40 - 20)
        hole = (y % 500 < 60) & (x - left > 30) & (x - left < 50)
        return ((x >= left) & (x < left + 70) & ~hole).astype(np.uint8)

    tracemalloc.start()
    found = [p for ended in polygons(map(strip, range(0, height, rows))) for p in ended]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == 1
    assert len(found[0].rings) == height // 500
    assert peak < height * width / 2, "less than the map has bytes"


def test_pixels_that_touch_at_a_corner_are_two_regions_and_a_hole_may_touch_the_outline():
    corner = np.array([[1, 0], [0, 1]])
    assert [len(p.rings) for p in traced(corner, 1)] == [1, 1]
    ring = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 0]])
    (polygon,) = traced(ring, 2)
    assert [abs(area_of(r[:-1])) for r in polygon.rings] == [8, 1]


# ---- files ------------------------------------------------------------------------------------------


def exported(capsys, *arguments):
    """The features of the file that the command writes."""
    assert main([str(a) for a in arguments]) == 0, capsys.readouterr().err
    content = json.loads(arguments[1].read_text())
    assert content["type"] == "FeatureCollection"
    assert len({UUID(f["id"]) for f in content["features"]}) == len(content["features"])
    return content["features"]


def polygons_in(feature):
    """The polygons of a feature, of code 1."""
    geometry = feature["geometry"]
    several = [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]
    return [Polygon(1, [np.array(ring) for ring in rings]) for rings in several]


def labels_of(features, shape, names):
    labels = np.zeros(shape, int)
    for feature in features:
        inside = drawn(polygons_in(feature), shape) > 0
        labels[inside] = names.index(feature["properties"]["classification"]["name"])
    return labels


def blobs(height, width, labels=3):
    """A map of few regions, in squares of 5 px."""
    cells = np.random.default_rng(4).integers(0, labels, (-(-height // 5), -(-width // 5)))
    return np.kron(cells, np.ones((5, 5), int))[:height, :width].astype(np.uint8)


def make_tissue(path, size=(100, 150)):
    layout = ImageLayout(size, 3, 64, 32, TISSUE, coarsest=32)
    labels = blobs(*size)
    make(path, layout, draw(3, *size), labels)
    output = Output(path)
    for level in range(1, len(layout.sizes())):
        for box in layout.boxes(level):
            for name in layout.finest:
                output.halve(name, level, box)
    return path, labels


def test_labels_become_annotations_with_their_names_and_colours(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(geojson, "STRIP", 1)  # strips of one row of chunks
    out, labels = make_tissue(tmp_path / "o.zarr")
    features = exported(capsys, out, tmp_path / "labels.geojson", "--tolerance", 0)
    assert {json.dumps(f["properties"]) for f in features} == {
        json.dumps({"objectType": "annotation", "classification": {"name": name, "color": color}})
        for name, color in (("stroma", [1, 2, 3]), ("necrosis", [250, 0, 7]))
    }
    assert f"labels.geojson holds {len(features)} annotations" in capsys.readouterr().out
    assert (labels_of(features, labels.shape, ["unknown", "stroma", "necrosis"]) == labels).all()
    text = (tmp_path / "labels.geojson").read_text()
    exported(capsys, out, tmp_path / "again.geojson", "--tolerance", 0)
    assert (tmp_path / "again.geojson").read_text() == text, "ids too are functions of the output"
    assert len(exported(capsys, out, tmp_path / "simple.geojson")) == len(features)


def test_polygons_of_a_region_lie_on_a_slide_of_the_same_region_at_full_size(tmp_path, capsys):
    out, labels = make_tissue(tmp_path / "o.zarr")
    names = ["unknown", "stroma", "necrosis"]
    part = exported(capsys, out, tmp_path / "part.geojson", "--tolerance", 0, "--region", "10:77,31:150")
    assert (labels_of(part, (67, 119), names) == labels[10:77, 31:150]).all()
    coarse = exported(capsys, out, tmp_path / "c.geojson", "--tolerance", 0, "--level", 1, "--region", "11:77,31:150")
    enlarged = np.kron(labels[::2, ::2], np.ones((2, 2), int))[11:77, 31:150]
    assert (labels_of(coarse, (66, 119), names) == enlarged).all()


def test_polygons_of_a_plane_lie_on_its_slide_whatever_its_positions(tmp_path, capsys):
    labels, names = blobs(128, 192), ["unknown", "stroma", "necrosis"]
    layout = PlaneLayout((128, 192), 3, 64, 32, TISSUE, coarsest=256, corner=(-64, -192))
    out = make(tmp_path / "plane.zarr", layout, draw(3, 128, 192), labels)
    whole = exported(capsys, out, tmp_path / "whole.geojson", "--tolerance", 0)
    assert (labels_of(whole, labels.shape, names) == labels).all()
    place = "--region=-30:50,-100:-9"
    part = exported(capsys, out, tmp_path / "part.geojson", "--tolerance", 0, place)
    assert main([str(out), str(tmp_path / "part.png"), "--labels", place]) == 0
    slide = np.asarray(Image.open(tmp_path / "part.png"))
    assert (slide == labels[34:114, 92:183]).all()
    assert (labels_of(part, slide.shape, names) == slide).all()
    beside = exported(capsys, out, tmp_path / "beside.geojson", "--tolerance", 0, "--region=-30:50,-99:-9")
    assert not {f["id"] for f in part} & {f["id"] for f in beside}, "another place, other objects"
    assert main([str(out), str(tmp_path / "t"), "--tiles", "16", place]) == 0
    lines = (tmp_path / "t" / "tiles.csv").read_text().splitlines()
    assert lines[1].startswith("y-00030_x-00100,all,0,-30,-100,")


def test_of_classes_the_first_is_a_class_too_and_what_has_no_name_has_a_colour(tmp_path, capsys):
    layout = ImageLayout((40, 30), 3, 64, 32, LabelArray("classes"))
    classes = blobs(40, 30)
    out = make(tmp_path / "o.zarr", layout, draw(3, 40, 30), classes)
    features = exported(capsys, out, tmp_path / "c.geojson", "--tolerance", 0)
    names = [f"classes {i}" for i in range(3)]
    assert (labels_of(features, (40, 30), names) == classes).all()
    assert len({tuple(f["properties"]["classification"]["color"]) for f in features}) == 3
    assert sum(sum(area_of(r[:-1]) for r in p.rings) for f in features for p in polygons_in(f)) == 1200


def test_every_nucleus_is_one_detection_also_where_it_is_torn_or_lies_in_several_strips(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(geojson, "STRIP", 1)
    layout = ImageLayout((100, 60), 3, 128, 32, LabelArray("nuclei", "uint32"))
    ids = np.zeros((100, 60), np.uint32)
    ids[3:9, 4:12], ids[28:40, 5:9] = 7, 9
    ids[31, 20:30], ids[40:50, 20:30], ids[90:, 5:8] = 4_000_000_000, 4_000_000_000, 4_000_000_000  # torn
    ids[30:32, 50:54], ids[32:33, 40:41] = 11, 12
    ids[10, 50], ids[31, 48] = 13, 13  # torn, and at a strip's lower edge
    out = make(tmp_path / "o.zarr", layout, draw(3, 100, 60), ids)
    features = exported(capsys, out, tmp_path / "n.geojson", "--tolerance", 0)
    assert sorted(int(f["properties"]["name"]) for f in features) == [7, 9, 11, 12, 13, 4_000_000_000]
    for feature in features:
        inside = drawn(polygons_in(feature), ids.shape) > 0
        assert (inside == (ids == int(feature["properties"]["name"]))).all()
        assert feature["properties"]["objectType"] == "detection"
        assert feature["properties"]["classification"] == {"name": "Nucleus", "color": [200, 110, 60]}
    assert len(exported(capsys, out, tmp_path / "s.geojson")) == 6


def test_of_a_set_one_image_is_a_file_or_each_in_a_folder(tmp_path, capsys):
    out = make_set(tmp_path / "set.zarr")
    assert "pass --image 0 to 4" in refused(capsys, out, tmp_path / "n.geojson")
    features = exported(capsys, out, tmp_path / "n.geojson", "--image", 1, "--tolerance", 0)
    assert len(features) == len(np.unique(nuclei(5, 20, 24)[1])) - 1
    assert main([str(out), str(tmp_path / "all"), "--format", "geojson", "--tolerance", "0"]) == 0
    assert "all holds 6 detections in 5 files" in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "all").iterdir()) == [
        *(f"{i:06d}.geojson" for i in range(5)),
        "export.json",
    ]
    assert (tmp_path / "all" / "000001.geojson").read_text() == (tmp_path / "n.geojson").read_text()
    assert main([str(out), str(tmp_path / "all"), "--format", "geojson", "--overwrite"]) == 0


def test_polygons_of_what_has_no_labels_are_refused_and_a_failure_leaves_the_earlier_file(tmp_path, capsys):
    image = make_image(tmp_path / "image.zarr", label=None, shard=256)
    assert "stores no label map" in refused(capsys, image, tmp_path / "l.geojson")
    single, _ = make_tissue(tmp_path / "tissue.zarr")
    assert "give NAME.geojson as TARGET" in refused(capsys, single, tmp_path / "d", "--format", "geojson")
    assert "--tolerance is -1.0: expected a number from 0" in refused(
        capsys, single, tmp_path / "l.geojson", "--tolerance=-1"
    )
    assert "--level is 9" in refused(capsys, single, tmp_path / "l.geojson", "--level", "9")
    assert "--layout is not for NAME.geojson" in refused(capsys, single, tmp_path / "l.geojson", "--layout", "pairs")
    assert main([str(single), str(tmp_path / "l.geojson")]) == 0
    text = (tmp_path / "l.geojson").read_text()
    capsys.readouterr()
    assert "is there already; pass --overwrite" in refused(capsys, single, tmp_path / "l.geojson")
    shard = next(p for p in sorted((single / "labels/tissue/0/c").rglob("*")) if p.is_file())
    shard.write_bytes(shard.read_bytes()[:50])
    assert "cannot be read" in refused(capsys, single, tmp_path / "l.geojson", "--overwrite")
    assert (tmp_path / "l.geojson").read_text() == text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["image.zarr", "l.geojson", "tissue.zarr"]
