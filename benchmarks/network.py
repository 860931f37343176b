"""``python -m benchmarks.network``: one evaluation of the prepared networks against the same weights in plain form.

Plain is the published arithmetic: weights standardised at every evaluation, score matrices materialised, features in
rows of their channels. "As trained" is this project's network before it is prepared; every rewrite is measured alone
upon that. Forms take turns, and each ratio is the median over rounds of one round's ratio: noise that lasts longer
than a round falls on both.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.report import report
from engine.models import diffinfinite, sdm
from engine.models.card import EMBEDDED
from engine.models.diffinfinite import MaskAttention, MaskUNet
from engine.models.folder import load_part, place
from engine.models.inference import REWRITES, prepare_for_inference
from engine.models.sdm import SpadeUNet

Call = Callable[[nn.Module], Tensor]


class PlainMaskAttention(MaskAttention):
    """As published: every position's query against every position's key."""

    def forward(self, x: Tensor, mask_B1HW: Tensor) -> Tensor:
        k, v = self.to_kv(x).flatten(2).unflatten(1, (2, self.heads, -1)).unbind(1)  # (B, h, d, N)
        q = self.to_q(mask_B1HW.expand(-1, x.shape[1], -1, -1)).flatten(2).unflatten(1, (self.heads, -1))
        weights = ((q * self.scale).mT @ k).softmax(-1)
        out = (weights @ v.mT).mT.flatten(1, 2)
        return self.to_out(out.unflatten(-1, x.shape[-2:]))


class PlainAttention(sdm.Attention):
    """As published: the matrix of scores is made."""

    def forward(self, x: Tensor, time: Tensor, map_BKHW: Tensor) -> Tensor:
        assert self.heads_first
        q, k, v = self.qkv(self.norm(x.flatten(2))).unflatten(1, (self.heads, 3, -1)).unbind(2)
        weights = (q.mT @ k * q.shape[2] ** -0.5).softmax(-1)
        return x + self.proj_out((v @ weights.mT).flatten(1, 2)).unflatten(-1, x.shape[-2:])


class PlainNorm(diffinfinite.ChannelNorm):
    """As published: by ``torch.var``."""

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var(x, 1, unbiased=False, keepdim=True), x.mean(1, keepdim=True)
        return (x - mean) * (variance + 1e-5).rsqrt() * self.g


PLAIN: dict[type[nn.Module], type[nn.Module]] = {
    MaskAttention: PlainMaskAttention,
    sdm.Attention: PlainAttention,
    diffinfinite.ChannelNorm: PlainNorm,
}


def plain(network: nn.Module) -> nn.Module:
    """The same weights, computed as published."""
    network = deepcopy(network)
    for layer in network.modules():
        layer.__class__ = PLAIN.get(type(layer), type(layer))
    return network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def cases(size: int, dim: int) -> dict[str, tuple[nn.Module, Callable[[int], Call]]]:
    """Networks, and what evaluates a batch of them."""
    embedded, decoder = load_part(EMBEDDED / "unet"), load_part(EMBEDDED / "vae")
    return {
        f"DiffInfinite, {size} x {size}": (MaskUNet(dim, 6), lambda batch: masked(batch, 4, size)),
        "embedded, 32 x 32": (embedded, lambda batch: masked(batch, 8, 32)),
        "embedded decoder, 32 x 32": (decoder, decoded),
        f"nuclei, {size} x {size}": (SpadeUNet(12, model_channels=dim), lambda batch: mapped(batch, size)),
    }


def masked(batch: int, channels: int, size: int) -> Call:
    x, mask = torch.randn(batch, channels, size, size), (torch.rand(batch, 1, size, size) > 0.5).float()
    t, label = torch.full((batch,), 500), torch.ones(batch).long()
    return lambda network: network(x.contiguous(memory_format=order_of(network)), t, label, mask)


def mapped(batch: int, size: int) -> Call:
    x, given = torch.randn(batch, 3, size, size), (torch.rand(batch, 12, size, size) > 0.9).float()
    t = torch.full((batch,), 500)
    return lambda network: network(x, t, given)


def decoded(batch: int) -> Call:
    z = torch.randn(batch, 8, 32, 32)
    return lambda network: network.decode(z.contiguous(memory_format=order_of(network)))  # type: ignore[operator]


def order_of(network: nn.Module) -> torch.memory_format:
    """The memory order of a network's first kernel that has two."""
    kernel = next(p for p in network.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1)
    last = kernel.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def forms(network: nn.Module) -> dict[str, nn.Module]:
    """Plain, as trained, with each rewrite that finds a layer, and prepared."""
    layers = list(network.modules())
    found = {"plain": plain(network), "as trained": deepcopy(network)}
    for name, rewrite in REWRITES.items():
        if any(rewrite(layer) is not None for layer in layers):
            found[f"{name}, alone"] = prepare_for_inference(deepcopy(network), rewrites=[rewrite])
    found["prepared"] = prepare_for_inference(deepcopy(network))
    return {name: form if name == "plain" else place(form, torch.float32, "cpu") for name, form in found.items()}


def race(call: Call, entrants: dict[str, nn.Module], rounds: int) -> dict[str, np.ndarray]:
    """Seconds of every form in every round, after one that does not count; the order turns from round to round."""
    names = list(entrants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            begun = time.perf_counter()
            call(entrants[name])
            seconds[name].append(time.perf_counter() - begun)
    return {name: np.array(values[1:]) for name, values in seconds.items()}


def measure(name: str, batch: int, network: nn.Module, call: Call, rounds: int) -> list[dict[str, Any]]:
    """A row for every form of a network."""
    entrants = forms(network.eval().requires_grad_(False))
    expected = call(entrants["plain"])
    seconds = race(call, entrants, rounds)
    return [
        {
            "network": name,
            "batch": batch,
            "form": form,
            "ms": float(np.median(seconds[form])) * 1e3,
            "over plain": float(np.median(seconds["plain"] / seconds[form])),
            "over as trained": float(np.median(seconds["as trained"] / seconds[form])),
            "difference": f"{float((call(entrants[form]) - expected).norm() / expected.norm()):.1e}",
        }
        for form in entrants
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    top = argparse.ArgumentParser(prog="python -m benchmarks.network", description=__doc__)
    top.add_argument("--rounds", type=int, default=5)
    top.add_argument("--batches", type=int, nargs="+", default=[8, 1])
    top.add_argument("--size", type=int, default=64, help="latents of a side, for DiffInfinite's and the nuclei shape")
    top.add_argument("--dim", type=int, default=64, help="features at full size of the same")
    top.add_argument("--threads", type=int, default=1)
    top.add_argument("--json", help="write the report here")
    args = top.parse_args(arguments)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rows = []
    with torch.inference_mode():
        for name, (network, caller) in cases(args.size, args.dim).items():
            for batch in args.batches:
                rows += measure(name, batch, network, caller(batch), args.rounds)
    report("network", rows, args.json, torch=torch.__version__, threads=args.threads, rounds=args.rounds)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
