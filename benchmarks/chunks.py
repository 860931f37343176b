"""``python -m benchmarks.chunks``: what a viewer reads of an output whose chunks hold one channel, or all three.

Boxes as large as a screen are read at random places of one sharded image, by dask and zarr, in two ways: "all
channels" at once, as trainers, dask and neuroglancer's RGB shader do (the shader refuses chunks of one channel), and
"each channel alone", as napari's layers and viv's tiles do. Requests and MiB are what the store is asked for, a screen;
ms is the median; "size" is the image's on disk, over that with chunks of one channel.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import dask
import dask.array
import numpy as np
import zarr
from zarr.storage import LocalStore, WrapperStore

from benchmarks.report import report
from benchmarks.storage import tissue
from engine.storage.zarr_setup import PIXEL_CODECS, ZARR_VERSION

SCREEN = (1080, 1920)


class Counting(WrapperStore[LocalStore]):
    """A store that counts what it is asked for."""

    requests, nbytes = 0, 0

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        data = await super().get(key, prototype, byte_range)
        self.requests += 1
        self.nbytes += 0 if data is None else len(data)
        return data


def stored(folder: str, image: np.ndarray, chunk: tuple[int, int, int], shard: int) -> tuple[Counting, int]:
    """Store an image in a folder; the store, and bytes on disk."""
    store = Counting(LocalStore(folder))
    shards = (3, shard, shard)
    zarr.create_array(store, data=image, chunks=chunk, shards=shards, compressors=PIXEL_CODECS)
    return store, sum(path.stat().st_size for path in store._store.root.rglob("*") if path.is_file())


def all_channels(image: dask.array.Array, box: tuple[slice, slice]) -> np.ndarray:
    return np.asarray(image[:, *box].compute())


def each_channel(image: dask.array.Array, box: tuple[slice, slice]) -> np.ndarray:
    return np.stack([np.asarray(image[c, *box].compute()) for c in range(3)])


def rows_of(store: Counting, image: np.ndarray, screens: int) -> list[dict[str, Any]]:
    """Read screens at random places in both ways."""
    ways: dict[str, Callable[..., np.ndarray]] = {"all channels": all_channels, "each channel alone": each_channel}
    random, rows, array = np.random.default_rng(0), [], zarr.open_array(store, mode="r+")
    lazy = dask.array.from_zarr(array, chunks=array.chunks)
    size = [min(side, n) for side, n in zip(SCREEN, image.shape[1:], strict=True)]
    corners = [[int(random.integers(n - side + 1)) for side, n in zip(size, image.shape[1:], strict=True)]
               for _ in range(screens + 1)]  # fmt: skip
    for way, read in ways.items():
        seconds = []
        for number, (y, x) in enumerate(corners):
            if number == 1:  # the first does not count
                store.requests = store.nbytes = 0
            box = (slice(y, y + size[0]), slice(x, x + size[1]))
            begun = time.perf_counter()
            pixels = read(lazy, box)
            seconds.append(time.perf_counter() - begun)
            if not np.array_equal(pixels, image[:, *box]):
                raise ValueError("the store holds something else than was written")
        asked = {"requests": store.requests / screens, "MiB": store.nbytes / screens / 2**20}
        rows.append({"read": way, **asked, "ms": float(np.median(seconds[1:])) * 1e3})
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    top = argparse.ArgumentParser(prog="python -m benchmarks.chunks", description=__doc__)
    top.add_argument("--size", type=int, default=8192, help="px")
    top.add_argument("--shard", type=int, default=2048, help="px")
    top.add_argument("--chunk", type=int, default=512, help="px")
    top.add_argument("--screens", type=int, default=20)
    top.add_argument("--json", help="write the report here")
    args = top.parse_args(arguments)
    image, rows, first = tissue(args.size, 0), [], 0
    for channels in (1, 3):
        with tempfile.TemporaryDirectory() as folder, dask.config.set(scheduler="threads", num_workers=2):
            store, nbytes = stored(folder, image, (channels, args.chunk, args.chunk), args.shard)
            first = first or nbytes
            chunk = {"chunk": f"{channels} x {args.chunk} x {args.chunk}", "size": nbytes / first}
            rows += [{**chunk, **row} for row in rows_of(store, image, args.screens)]
    report("chunks", rows, args.json, zarr=ZARR_VERSION, image=args.size, shard=args.shard, screens=args.screens)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
