"""Labels and nuclei as polygons in GeoJSON, as QuPath reads and writes it.

A region of a label map is an annotation with the name and the colour of its label, an instance of nuclei a detection.
Coordinates are pixels at full size, x before y, from the upper left corner of what is exported: the image's, or that of
the region, so that polygons lie where they belong on a slide of the same region. Regions that share an edge share its
points (``simplify.py``). What value 0 of a label map or an instance map covers is left out, as viewers leave it
transparent; of classes, whose every number is a class, nothing is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

import numpy as np

from engine.exports.asked import Asked
from engine.exports.bar import with_bar
from engine.exports.cutout import Cutout, corner_of, cutout_of, region_on_arrays
from engine.exports.folder import check_export_folder, write_facts
from engine.exports.nuclei_set import names_of
from engine.exports.regions import Polygon, polygons
from engine.exports.source import finished_output
from engine.exports.target import check_export_file, resolved, whole_target
from engine.models.card import color
from engine.planning.geometry import Box
from engine.storage.set_layout import SetLayout

STRIP = 2**24  # pixels that are looked at together
TOLERANCE = 1.0  # px of the level that is read
NUCLEUS = ("Nucleus", (200, 110, 60))  # the class of instances that have none
Properties = Callable[[int], dict[str, Any]]  # of a value of the map


def export_geojson(asked: Asked) -> str:
    """Export the label map of an image, or of one image of a set, to a file, and count what it holds.

    Raises:
        ValueError: there is no such map, or the target is there.
    """
    cutout = cutout_of(replace(asked, labels=True))
    check = partial(check_export_file, asked)
    check()
    with whole_target(asked.target, check) as new:
        count = write_features(cutout, asked, new)
    return counted(count, cutout)


def export_geojson_folder(asked: Asked) -> str:
    """Export the label map of every image of a set to a file of its own, and count what they hold.

    Raises:
        ValueError: the output is no set or has no map, or the folder holds something else.
    """
    layout = finished_output(asked.out).layout
    if not isinstance(layout, SetLayout):
        raise ValueError(f"{asked.out} holds one image; give NAME.geojson as TARGET")
    target = resolved(asked.target)
    check = partial(check_export_folder, asked)
    check()
    cutout, count = cutout_of(replace(asked, labels=True, image=0)), 0
    names = names_of(cutout.output, layout.count)
    with whole_target(target, check) as new:
        new.mkdir()
        for index, name in with_bar(enumerate(names), len(names), "polygons"):
            count += write_features(replace(cutout, image=index), asked, new / f"{name}.geojson", bar=False)
        write_facts(cutout.output, new)
    return f"{counted(count, cutout)} in {len(names)} files"


def counted(count: int, cutout: Cutout) -> str:
    """So many objects, in words."""
    one = "detection" if nuclei_in(cutout) else "annotation"
    return f"{count} {one}{'s' * (count != 1)}"


def nuclei_in(cutout: Cutout) -> bool:
    """Whether the values of a map are the numbers of instances."""
    return cutout.label is not None and cutout.label.name == "nuclei"


def write_features(cutout: Cutout, asked: Asked, path: Path, bar: bool = True) -> int:
    """Write one file, a feature a line, as they are found; returns their number. A strip is in memory at a time."""
    tolerance, rows = TOLERANCE if asked.tolerance is None else asked.tolerance, bands_of(cutout)
    strips = (codes_of(cutout, y0, y1) for y0, y1 in with_bar(rows, len(rows), "polygons", bar))
    batches: Iterable[list[list[Polygon]]]
    if nuclei_in(cutout):
        last = last_strips(codes_of(cutout, y0, y1) for y0, y1 in with_bar(rows, len(rows), "instances", bar))
        batches = whole_instances(polygons(strips, tolerance), last)
    else:
        batches = ([[region] for region in ended] for ended in polygons(strips, tolerance))
    region = region_on_arrays(asked, cutout.output.layout)
    y, x = corner_of(cutout.output.layout)
    facts = {"of": cutout.output.provenance.get("identity"), "map": cutout.name, "image": cutout.image}
    facts |= {"corner": (region.y0 + y, region.x0 + x)}
    namespace, count = uuid5(NAMESPACE_URL, json.dumps(facts, sort_keys=True)), 0
    properties = properties_of(cutout)
    with path.open("w", encoding="utf-8") as file:
        file.write('{"type":"FeatureCollection","features":[')
        for batch in batches:
            for parts in batch:
                text = feature(parts, properties(parts[0].code), lambda ring: placed(ring, cutout, region), namespace)
                file.write(f"{',' * (count > 0)}\n{text}")
                count += 1
        file.write("\n]}\n")
    return count


def bands_of(cutout: Cutout) -> list[tuple[int, int]]:
    """The first row of every strip of a cutout, and the row after its last: strips end where chunks do."""
    box, chunk = cutout.box, cutout.output.layout.chunk
    side = max(STRIP // (max(box.width, 1) * chunk), 1) * chunk
    ends = [*range((box.y0 // side + 1) * side, box.y1, side), box.y1]
    return [(y0 - box.y0, y1 - box.y0) for y0, y1 in zip([box.y0, *ends], ends, strict=False)]


def codes_of(cutout: Cutout, y0: int, y1: int) -> np.ndarray:
    """A strip of a map, in which 0 is what no polygon is of."""
    values = cutout.read(Box(y0, 0, y1, cutout.box.width))
    return values.astype(np.int32) + 1 if first_value(cutout) else values


def first_value(cutout: Cutout) -> int:
    """What is added to values: 1 of classes, the first of which is 0."""
    return int(cutout.label is not None and cutout.label.name == "classes")


def properties_of(cutout: Cutout) -> Properties:
    """What QuPath is told of the polygons of a code."""
    assert cutout.label is not None
    entries, word, first = cutout.label.entries, cutout.label.name, first_value(cutout)

    def of_label(code: int) -> dict[str, Any]:
        value = code - first
        name, rgb = entries[value] if value < len(entries) else (f"{word} {value}", color(value))
        return {"objectType": "annotation", "classification": {"name": name, "color": list(rgb[:3])}}

    def of_nucleus(code: int) -> dict[str, Any]:
        name, rgb = NUCLEUS
        return {"objectType": "detection", "name": str(code), "classification": {"name": name, "color": list(rgb)}}

    return of_nucleus if nuclei_in(cutout) else of_label


def placed(ring: np.ndarray, cutout: Cutout, region: Box) -> np.ndarray:
    """Put points of a cutout's level, (n, 2) of (x, y), where they lie in the region at full size, within its edge."""
    at_full_size = (ring + [cutout.box.x0, cutout.box.y0]) * 2**cutout.level
    return np.clip(at_full_size - [region.x0, region.y0], 0, [region.width, region.height])


def feature(
    parts: Sequence[Polygon], properties: dict[str, Any], place: Callable[[np.ndarray], np.ndarray], namespace: UUID
) -> str:
    """One object in GeoJSON. Its id is a function of the output, the place and the shape."""
    rings = [[place(ring).tolist() for ring in part.rings] for part in parts]
    many = len(rings) > 1
    geometry = {"type": "MultiPolygon" if many else "Polygon", "coordinates": rings if many else rings[0]}
    text = json.dumps(geometry, separators=(",", ":"))
    facts = {"type": "Feature", "id": str(uuid5(namespace, text)), "properties": properties}
    return f'{json.dumps(facts, separators=(",", ":"))[:-1]},"geometry":{text}}}'


def last_strips(strips: Iterable[np.ndarray]) -> dict[int, int]:
    """The last strip that every id of an instance map occurs in, of those that occur in more than one."""
    ids, last = np.zeros(0, np.uint32), dict[int, int]()
    for number, strip in enumerate(strips):
        here = np.unique(strip)
        again = here[np.isin(here, ids, assume_unique=True)]
        last |= dict.fromkeys(again.tolist(), number)
        ids = np.union1d(ids, here)
    return last


def whole_instances(batches: Iterable[list[Polygon]], last: dict[int, int]) -> Iterator[list[list[Polygon]]]:
    """The polygons of every instance together, as soon as all of them have ended.

    Args:
        batches: The regions that ended in every strip, and those that ended after all.
        last: Of ids that occur in several strips, the last.
    """
    waiting: dict[int, list[Polygon]] = {}
    latest: dict[int, int] = {}  # strip that an instance that waits may have pixels in
    for number, batch in enumerate(batches):
        for polygon in batch:
            waiting.setdefault(polygon.code, []).append(polygon)
            latest.setdefault(polygon.code, max(number, last.get(polygon.code, 0)))
        ready = [code for code in waiting if latest[code] < number]
        yield [waiting.pop(code) for code in ready]
    yield list(waiting.values())
