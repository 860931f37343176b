"""How the Triton kernels are launched: a field is cut into tiles, and one program works on each."""

from __future__ import annotations

import triton

# A GPU's compiler would round a * b + c once; rounded twice, the bits are those of the oracle.
EXACT = {"enable_fp_fusion": False}


def tile_shape(height: int, width: int, latents: int) -> tuple[int, int]:
    """Rows and columns of a tile of ``latents`` latents: powers of two, as wide as the field but 128 at most."""
    columns = min(triton.next_power_of_2(width), 128, latents)
    rows = min(triton.next_power_of_2(height), latents // columns)
    return rows, columns


def tiles(height: int, width: int, tile: tuple[int, int]) -> tuple[int, int]:
    """Number of rows and of columns of tiles that cover a field."""
    return -(-height // tile[0]), -(-width // tile[1])
