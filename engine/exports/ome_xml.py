"""OME-XML: what the ImageDescription of an OME-TIFF says of it, and nothing else does.

Schema: http://www.openmicroscopy.org/Schemas/OME/2016-06.
"""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

from engine import __version__
from engine.exports.cutout import Cutout, corner_of
from engine.messages import one_line

OME = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
SCHEMA = f"{OME} {OME}/ome.xsd"
NAMESPACE = "slidefield"  # of what the schema has no word for


def ome_xml(cutout: Cutout, name: str) -> str:
    """OME-XML of one image, whose reduced levels it does not name: they hang below its one plane.

    Characters beyond ASCII are written as they are, in UTF-8: Bio-Formats (7.3.1) takes the & from &#181;, and then the
    file for no OME-TIFF.
    """
    root = ElementTree.Element("OME", {"xmlns": OME, "Creator": f"slidefield {__version__}"})
    root.set("xmlns:xsi", "http://www.w3.org/2001/XMLSchema-instance")
    root.set("xsi:schemaLocation", SCHEMA)
    image = ElementTree.SubElement(root, "Image", ID="Image:0", Name=one_line(name))
    ElementTree.SubElement(image, "Description").text = described(cutout)
    height, width = cutout.size()
    color = cutout.channels == 3
    size = {"SizeX": width, "SizeY": height, "SizeC": cutout.channels, "SizeZ": 1, "SizeT": 1}
    facts = {"ID": "Pixels:0", "DimensionOrder": "XYCZT", "Type": cutout.dtype.name, "BigEndian": "false"}
    pixels = ElementTree.SubElement(image, "Pixels", facts | {k: str(v) for k, v in size.items()})
    if color:
        pixels.set("Interleaved", "true")
    if cutout.pixel_size_um:
        for axis in "XY":
            pixels.set(f"PhysicalSize{axis}", f"{cutout.pixel_size_um:.9g}")
            pixels.set(f"PhysicalSize{axis}Unit", "µm")
    shown = cutout.label.name if cutout.label else "RGB" if color else "grey"
    ElementTree.SubElement(pixels, "Channel", ID="Channel:0:0", Name=shown, SamplesPerPixel=str(cutout.channels))
    ElementTree.SubElement(pixels, "TiffData", IFD="0", PlaneCount="1")
    ElementTree.SubElement(image, "AnnotationRef", ID="Annotation:0")
    notes = ElementTree.SubElement(root, "StructuredAnnotations")
    add_map(notes, "Annotation:0", f"{NAMESPACE}/provenance", provenance(cutout))
    if cutout.label and cutout.label.entries:
        ElementTree.SubElement(image, "AnnotationRef", ID="Annotation:1")
        entries = {str(i): f"{name} #{bytes(color[:3]).hex()}" for i, (name, color) in enumerate(cutout.label.entries)}
        add_map(notes, "Annotation:1", f"{NAMESPACE}/labels", entries)
    return '<?xml version="1.0" encoding="UTF-8"?>' + ElementTree.tostring(root, "unicode")


def add_map(notes: ElementTree.Element, ID: str, namespace: str, values: dict[str, str]) -> None:
    """Add names and their values."""
    note = ElementTree.SubElement(notes, "MapAnnotation", ID=ID, Namespace=namespace)
    value = ElementTree.SubElement(note, "Value")
    for key, text in values.items():
        ElementTree.SubElement(value, "M", K=key).text = one_line(text)


def described(cutout: Cutout) -> str:
    """What is shown, for people: a synthetic image must not pass for a patient's."""
    what = f"Map of {cutout.label.name} of a synthetic image" if cutout.label else "Synthetic image"
    y, x = corner_of(cutout.output.layout)
    box = cutout.box.moved(y >> cutout.level, x >> cutout.level)
    where = f"rows {box.y0}:{box.y1}, columns {box.x0}:{box.x1} of level {cutout.level}"
    return f"{what}, sampled by slidefield {__version__}; {where}"


def provenance(cutout: Cutout) -> dict[str, str]:
    """Where it comes from: the output's name, model and seed."""
    facts: dict[str, Any] = cutout.output.provenance
    known = {"output": cutout.output.path.name, "seed": facts.get("seed"), "model_hash": facts.get("model_hash")}
    return {name: str(value) for name, value in known.items() if value is not None}
