"""Create an output: its groups, arrays and OME-Zarr 0.5 metadata."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import zarr
from zarr.codecs import ZstdCodec

from engine.storage.layout import Layout


def create(path: Path, layout: Layout, pixel_size_um: float, provenance: Mapping[str, Any]) -> None:
    """Create an output's groups and arrays, beside its place and then by a rename. Rank 0 calls this."""
    path.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".creating", dir=path.parent))
    building.chmod(0o755)
    group = zarr.open_group(building, mode="w", zarr_format=3)
    if layout.count is None:
        create_image(group, layout, pixel_size_um)
    else:
        create_set(group, layout)
    group.attrs["slidefield"] = {**provenance, "state": "unfinished", "layout": asdict(layout)}
    (building / "slidefield").mkdir()
    try:
        building.rename(path)
    except OSError:
        shutil.rmtree(building)
        raise ValueError(f"{path} was made by another run meanwhile; wait for it, or choose another `out`") from None


CODECS = [ZstdCodec(level=1, checksum=True)]


def create_image(group: zarr.Group, layout: Layout, pixel_size_um: float) -> None:
    """The arrays and metadata of one image with its pyramid and labels."""
    for name, level in layout.arrays():
        is_image = not name.startswith("labels/")
        lead = (layout.channels,) if is_image else ()
        group.create_array(
            name,
            shape=(*lead, *layout.sizes()[level]),
            chunks=(*(1 for _ in lead), layout.chunk, layout.chunk),
            shards=(*lead, layout.shard, layout.shard),
            dtype="uint8" if is_image or layout.label is None else layout.label.dtype,
            compressors=CODECS,
            dimension_names=["c", "y", "x"] if is_image else ["y", "x"],
            fill_value=0,
        )
    colors = {1: [("grey", "FFFFFF")]}.get(
        layout.channels, list(zip("RGB", ("FF0000", "00FF00", "0000FF"), strict=True))
    )
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [multiscale(layout, pixel_size_um, "image", method="2x2 mean, round half to even")],
        "omero": {"channels": [channel(name, color) for name, color in colors]},
    }
    if layout.label is None:
        return
    label = layout.label
    group["labels"].attrs["ome"] = {"version": "0.5", "labels": [label.name]}
    facts: dict[str, Any] = {"source": {"image": "../../"}}
    if label.entries:
        facts["colors"] = [
            {"label-value": i, "rgba": [*color, 255 if i else 0]} for i, (_, color) in enumerate(label.entries)
        ]
        facts["properties"] = [{"label-value": i, "name": name} for i, (name, _) in enumerate(label.entries)]
    group[f"labels/{label.name}"].attrs["ome"] = {
        "version": "0.5",
        "multiscales": [multiscale(layout, pixel_size_um, label.name, method="nearest")],
        "image-label": facts,
    }


def create_set(group: zarr.Group, layout: Layout) -> None:
    """The arrays of a set of images: index c y x, and index y x of what they were made from."""
    for name, _ in layout.arrays():
        lead = (layout.channels,) if name == layout.image else ()
        inner = tuple(min(layout.chunk, -(-n // 8) * 8) for n in layout.size)
        outer = tuple(-(-n // m) * m for n, m in zip(layout.size, inner, strict=True))
        group.create_array(
            name,
            shape=(layout.count, *lead, *layout.size),  # type: ignore[arg-type]
            chunks=(1, *lead, *inner),
            shards=(layout.group, *lead, *outer),
            dtype="uint8" if name == layout.image or layout.label is None else layout.label.dtype,
            compressors=CODECS,
            dimension_names=["index", *(["c"] if lead else []), "y", "x"],
            fill_value=0,
        )


def multiscale(layout: Layout, pixel_size_um: float, name: str, *, method: str) -> dict[str, Any]:
    """The OME-Zarr 0.5 metadata of one pyramid."""
    lead = [{"name": "c", "type": "channel"}] if name == "image" else []
    datasets = []
    for level in range(len(layout.sizes())):
        scale = pixel_size_um * 2**level
        # A pixel of a coarser level is centred half a pixel further in.
        shift = pixel_size_um * (2**level - 1) / 2 if method != "nearest" else 0.0
        transforms = [
            {"type": "scale", "scale": [*(1.0 for _ in lead), scale, scale]},
            {"type": "translation", "translation": [*(0.0 for _ in lead), shift, shift]},
        ]
        datasets.append({"path": str(level), "coordinateTransformations": transforms})
    axes = [*lead, *({"name": n, "type": "space", "unit": "micrometer"} for n in "yx")]
    return {"name": name, "axes": axes, "datasets": datasets, "type": method}


def channel(name: str, color: str) -> dict[str, Any]:
    return {"label": name, "color": color, "active": True, "window": {"min": 0, "max": 255, "start": 0, "end": 255}}
