"""How the Triton kernels are launched: tiles of a field, one program each."""

from __future__ import annotations

import triton

# A GPU's compiler would contract a * b + c into one rounding; without that the bits are those of the oracle.
EXACT = {"enable_fp_fusion": False}


def tile_shape(height: int, width: int, latents: int) -> tuple[int, int]:
    """Rows and columns, powers of two, of tiles of so many latents: as wide as the field, 128 at most."""
    columns = min(triton.next_power_of_2(width), 128, latents)
    rows = min(triton.next_power_of_2(height), latents // columns)
    return rows, columns


def tiles(height: int, width: int, tile: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of tiles that cover a field."""
    return -(-height // tile[0]), -(-width // tile[1])
