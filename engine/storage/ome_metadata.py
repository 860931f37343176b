"""OME-Zarr 0.5 says in a group's attributes what its pyramid, channels and labels are; here they are made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

VERSION = "0.5"
COLORS = {1: [("grey", "FFFFFF")], 3: [("R", "FF0000"), ("G", "00FF00"), ("B", "0000FF")]}


def image_metadata(name: str, channels: int, levels: int, pixel_size_um: float) -> dict[str, Any]:
    """Describe an image: its pyramid, and the colours in which viewers show its channels.

    Args:
        name: Of the image, which viewers show.
        channels: Number of channels.
        levels: Number of pyramid levels.
        pixel_size_um: Side of a pixel at full size, micrometres.
    """
    pyramid = multiscale(name, levels, pixel_size_um, axes="cyx", method="2x2 mean, round half to even")
    colors = COLORS[1] if channels == 1 else COLORS[3]
    return {
        "version": VERSION,
        "multiscales": [pyramid],
        "omero": {"channels": [channel(name, color) for name, color in colors]},
    }


def label_metadata(
    name: str, entries: Sequence[tuple[str, tuple[int, int, int]]], levels: int, pixel_size_um: float
) -> dict[str, Any]:
    """Describe a label map, whose group is ``labels/NAME``: its pyramid, and the names and colours of its values.

    Args:
        entries: (name, RGB) of every value; empty where values have no names.
    """
    image_label: dict[str, Any] = {"source": {"image": "../../"}}
    if entries:
        image_label["colors"] = [  # value 0 is transparent
            {"label-value": i, "rgba": [*color, 255 if i else 0]} for i, (_, color) in enumerate(entries)
        ]
        image_label["properties"] = [{"label-value": i, "name": entry} for i, (entry, _) in enumerate(entries)]
    pyramid = multiscale(name, levels, pixel_size_um, axes="yx", method="nearest")
    return {"version": VERSION, "multiscales": [pyramid], "image-label": image_label}


def labels_metadata(names: Sequence[str]) -> dict[str, Any]:
    """Describe the group ``labels``: list the label maps in it."""
    return {"version": VERSION, "labels": list(names)}


def multiscale(name: str, levels: int, pixel_size_um: float, *, axes: str, method: str) -> dict[str, Any]:
    """Describe one pyramid, each level of which is half the one before.

    Args:
        axes: "cyx" or "yx".
        method: How levels are made; "nearest" takes every second pixel, which stays where it is.
    """
    lead = [{"name": "c", "type": "channel"}] if axes == "cyx" else []
    datasets = []
    for level in range(levels):
        scale = pixel_size_um * 2**level
        # The mean of 2 x 2 pixels is centred half a pixel further in.
        shift = pixel_size_um * (2**level - 1) / 2 if method != "nearest" else 0.0
        transforms = [
            {"type": "scale", "scale": [*(1.0 for _ in lead), scale, scale]},
            {"type": "translation", "translation": [*(0.0 for _ in lead), shift, shift]},
        ]
        datasets.append({"path": str(level), "coordinateTransformations": transforms})
    space = [{"name": n, "type": "space", "unit": "micrometer"} for n in "yx"]
    return {"name": name, "axes": [*lead, *space], "datasets": datasets, "type": method}


def channel(name: str, color: str) -> dict[str, Any]:
    """Describe one channel: viewers show its values 0 to 255 in shades of this colour (RGB in hexadecimal)."""
    return {"label": name, "color": color, "active": True, "window": {"min": 0, "max": 255, "start": 0, "end": 255}}
