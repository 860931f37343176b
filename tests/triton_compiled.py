"""Compile every Triton kernel for an H100 or H200, which needs no GPU, and print its float32 operations that matter.

These are fused multiply-adds (one would change the bits from the oracle's), divisions, roots and exponentials (each
must round to nearest, ``.rn``).
"""

import re

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.triton import fuse as triton_fuse
from kernels.triton import gather as triton_gather
from kernels.triton import philox as triton_philox
from kernels.triton import step as triton_step
from kernels.triton.tiles import EXACT

LISTS = {"boxes", "starts", "items", "keys", "corners"}
FIELDS = {"estimates", "rows", "columns", "x", "estimate", "previous", "canvas"}
FLOATS = {"a", "b", "c", "d", "e", "clip", "least", "most"}
NO_ROWS, NO_WINNER = {"rows": None, "columns": None}, {"winner": None}
NOTHING = {"previous": None, "keys": None}
SWITCHES = ["CLIP", "PREVIOUS", "NOISE", "ESTIMATE", "PREDICTED_STD"]


def type_of(name, out):
    named = {"out": out, "winner": "*i32", "y0": "i64", "x0": "i64"}
    kinds = ((LISTS, "*i64"), (FIELDS, "*fp32"), (FLOATS, "fp32"))
    return named.get(name) or next((kind for names, kind in kinds if name in names), "i32")


def show(kernel, constants, out="*fp32"):
    signature = {n: "constexpr" if n in constants else type_of(n, out) for n in kernel.arg_names}
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, signature, places)
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=EXACT).asm["ptx"]
    operations = sorted(set(re.findall(r"\b(?:fma|mad|div|sqrt|rsqrt|ex2|lg2|rcp|sin|cos)\.[a-z0-9_.]*f32", ptx)))
    print(f"{kernel.fn.__name__}: {' '.join(operations)}".rstrip())


tile = {"BY": 4, "BX": 128}
show(triton_philox.draw_kernel, tile)
show(triton_gather.gather_kernel, {"PATCH": 64, "CHANNELS": 4, "LATENTS": 256, "stride_c": 1, "windows": 1}, "*bf16")
fusing = {"CHANNELS": 4, **tile}
show(triton_fuse.fuse_kernel, {"SEPARABLE": True, "WINNER": False, **NO_WINNER, **fusing})
show(triton_fuse.fuse_kernel, {"SEPARABLE": False, "WINNER": True, **NO_ROWS, **fusing, "across": 1})
show(triton_step.step_kernel, {**dict.fromkeys(SWITCHES, True), **tile})
show(triton_step.step_kernel, {**dict.fromkeys(SWITCHES, False), **NOTHING, **tile, "channels": 1, "groups": 1})
