"""Create an output: its groups, its empty arrays and their metadata."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.storage.files import sync, sync_tree
from engine.storage.layout import Layout
from engine.storage.metadata import keep_metadata
from engine.storage.zarr_setup import PIXEL_CODECS, zarr

PRIVATE = "the files in this folder are slidefield's own: the ledger, checkpoints, a copy of the metadata"


def create(
    path: Path, layout: Layout, pixel_size_um: float, provenance: Mapping[str, Any], name: str | None = None
) -> None:
    """Create an output's groups and arrays. Rank 0 calls this.

    They are made in a folder beside the path, which is then renamed: neither a kill nor a loss of power leaves half of
    an output.

    Args:
        name: Of the image, which viewers show; None: the path's.
    Raises:
        ValueError: another run made something at the path meanwhile.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".creating", dir=path.parent))
    building.chmod(0o755)
    group = zarr.open_group(building, mode="w", zarr_format=3)
    create_arrays(group, layout)
    shown = path.name.removesuffix(".zarr") if name is None else name
    for part, metadata in layout.ome_groups(shown, pixel_size_um).items():
        described = {"ome": metadata}
        if "omero" in metadata:  # neuroglancer (2.41) looks for the colours of channels here, not in "ome"
            described["omero"] = metadata["omero"]
        (group[part] if part else group).attrs.update(described)
    known: dict[str, Any] = {"state": "unfinished", "layout": layout.attributes(), "metadata_copy": True}
    group.attrs["slidefield"] = {**provenance, **known}
    # An array without values: what lies in its folder is ours, and no program takes it for a broken part of the group.
    group.create_array("slidefield", shape=(0,), dtype="uint8", chunks=(1,), attributes={"about": PRIVATE})
    keep_metadata(building)
    sync_tree(building)
    try:
        building.rename(path)
    except OSError:
        shutil.rmtree(building)
        raise ValueError(f"{path} was made by another run meanwhile; wait for it, or choose another `out`") from None
    sync(path.parent)


def create_arrays(group: zarr.Group, layout: Layout) -> None:
    """Create every array of a layout, and the groups on the way to it."""
    for array in layout.arrays():
        group.create_array(
            array.name,
            shape=array.shape,
            chunks=array.chunks,
            shards=array.shards,
            dtype=array.dtype,
            compressors=PIXEL_CODECS,
            dimension_names=array.axes,
            fill_value=array.fill,
        )
