"""Zarr, configured for this room.

The room's other files import zarr from here, so that it is configured before any of them opens an array.
"""

from __future__ import annotations

import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

__all__ = ["LATENT_CODECS", "PIXEL_CODECS", "ZARR_VERSION", "zarr"]

zarr.config.set(
    {
        "threading.max_workers": 2,  # every rank has its own pool, and many ranks share a node
        "async.concurrency": 4,
        # By default zarr writes no chunks of zeros. Here a finished shard always has a file: an absent one is damage.
        "array.write_empty_chunks": True,
    }
)

ZARR_VERSION = zarr.__version__
PIXEL_CODECS = [ZstdCodec(level=1, checksum=True)]  # for images, labels and copies of inputs
LATENT_CODECS = [Crc32cCodec()]  # floats hardly compress: a checksum alone
