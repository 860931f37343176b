"""Compile every Triton kernel for an H100 or H200, which needs no GPU, and print its float32 operations that matter.

Printed are fused multiply-adds (there must be none, or the bits would differ from the oracles'), divisions, roots and
exponentials (which must be rounded to nearest: ``.rn``).
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

LISTS = {"facts", "starts", "items", "number", "keys", "corners"}
FIELDS = {"estimates", "lines_y", "lines_x", "x", "estimate", "previous", "conditional", "weights", "history", "canvas"}
FLOATS = {"a", "b", "c", "d", "e", "clip", "least", "most"}
NO_LINES, NO_WINNER = {"lines_y": None, "lines_x": None}, {"field": None, "number": None}
NOTHING = dict.fromkeys(["history", "previous", "conditional", "labels", "weights", "keys"])
SWITCHES = ["CLIP", "PREVIOUS", "NOISE", "ESTIMATE", "SPREAD", "GUIDED", "KEEP"]


def type_of(name, out):
    named = {"out": out, "labels": "*u8", "field": "*i32", "y0": "i64", "x0": "i64"}
    kinds = ((LISTS, "*i64"), (FIELDS, "*fp32"), (FLOATS, "fp32"))
    return named.get(name) or next((kind for names, kind in kinds if name in names), "i32")


def show(kernel, constants, out="*fp32"):
    signature = {n: "constexpr" if n in constants else type_of(n, out) for n in kernel.arg_names}
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, signature, places)
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=EXACT).asm["ptx"]
    found = sorted(set(re.findall(r"\b(?:fma|mad|div|sqrt|rsqrt|ex2|lg2|rcp|sin|cos)\.[a-z0-9_.]*f32", ptx)))
    print(f"{kernel.fn.__name__}: {' '.join(found)}".rstrip())


tile = {"BY": 4, "BX": 128}
show(triton_philox.draw_kernel, tile)
show(triton_gather.gather_kernel, {"PATCH": 64, "CHANNELS": 4, "LATENTS": 256, "stride_c": 1, "windows": 1}, "*bf16")
fusing = {"CHANNELS": 4, **tile}
show(triton_fuse.fuse_kernel, {"FACTS": 8, "LINES": True, "WINNER": False, **NO_WINNER, **fusing})
show(triton_fuse.fuse_kernel, {"FACTS": 6, "LINES": False, "WINNER": True, **NO_LINES, **fusing, "across": 1})
show(triton_step.step_kernel, {**dict.fromkeys(SWITCHES, True), **tile})
show(triton_step.step_kernel, {**dict.fromkeys(SWITCHES, False), **NOTHING, **tile, "channels": 1, "groups": 1})
