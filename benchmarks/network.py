"""``python -m benchmarks.network``: one evaluation of the prepared networks against the same weights in plain form.

Plain is the published arithmetic: weights standardised at every evaluation, score matrices materialised, features in
rows of their channels. "As trained" is this project's network before it is prepared; every rewrite is measured alone
upon that. With one thread its processor time is measured, which other programs hardly touch. Forms take turns, and each
ratio is the median over rounds of one round's ratio: noise that lasts longer than a round falls on both. "First" is
the wall time of a form's first call, in which it is compiled.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.report import report
from engine.models.card import read_card
from engine.models.codec import DECODE
from engine.models.files import EMBEDDED
from engine.models.folder import CLASSES, load_part, place
from engine.models.networks import mask_unet as diffinfinite
from engine.models.networks import spade_unet as sdm
from engine.models.networks.mask_unet import MaskAttention, MaskUNet
from engine.models.networks.spade_unet import SpadeUNet
from engine.models.optimize import REWRITES, compiled, prepare_for_inference

Case = tuple[nn.Module, Callable[..., Tensor], Callable[[int], tuple[Tensor, ...]]]  # what applies it, to a batch of


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
        if hasattr(layer, "set_processor"):  # of diffusers
            from diffusers.models.attention_processor import AttnProcessor

            layer.set_processor(AttnProcessor())  # type: ignore[operator]
    return network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def cases(size: int, dim: int) -> dict[str, Case]:
    """Networks of every family and their decoders."""
    embedded, decoder = load_part(EMBEDDED / "unet"), load_part(EMBEDDED / "vae")
    channels = read_card("embedded").channels
    known: dict[str, Case] = {
        f"DiffInfinite, {size} x {size}": (MaskUNet(dim, 6), evaluate, partial(masked, 4, size)),
        "embedded, 32 x 32": (embedded, evaluate, partial(masked, channels, 32)),
        "embedded decoder, 32 x 32": (decoder, DECODE["PatchAutoencoder"], partial(latents, channels, 32)),
        f"nuclei, {size} x {size}": (SpadeUNet(12, model_channels=dim), evaluate, partial(mapped, size)),
    }
    if find_spec("diffusers") is None:
        return known
    import diffusers

    widths, half = [dim, 2 * dim, 4 * dim], size // 2
    down, up = ["CrossAttnDownBlock2D"] * 2, ["CrossAttnUpBlock2D"] * 2
    kinds = {"down_block_types": ["DownBlock2D", *down], "up_block_types": [*up, "UpBlock2D"]}
    conditional = diffusers.UNet2DConditionModel(
        in_channels=3, out_channels=3, block_out_channels=widths, cross_attention_dim=512, **kinds
    )
    kinds = {"down_block_types": ["DownBlock2D", *["AttnDownBlock2D"] * 2]}
    kinds |= {"up_block_types": [*["AttnUpBlock2D"] * 2, "UpBlock2D"]}
    unconditional = diffusers.UNet2DModel(in_channels=3, out_channels=3, block_out_channels=widths, **kinds)
    kinds = {"down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3}
    kl = diffusers.AutoencoderKL(latent_channels=4, block_out_channels=widths, layers_per_block=2, **kinds)
    vq = diffusers.VQModel(latent_channels=3, block_out_channels=widths, layers_per_block=2, **kinds)
    more: dict[str, Any] = {  # for mypy diffusers' networks are no modules
        f"UNet2DConditionModel, {size} x {size}": (conditional, first, partial(asked, size)),
        f"UNet2DModel, {size} x {size}": (unconditional, first, partial(timed, size)),
        f"AutoencoderKL decoder, {half} x {half}": (kl, DECODE["AutoencoderKL"], partial(latents, 4, half)),
        f"VQModel decoder, {half} x {half}": (vq, DECODE["VQModel"], partial(latents, 3, half)),
    }
    return known | more


def evaluate(network: nn.Module, *given: Tensor) -> Tensor:
    return network(*given)


def first(network: nn.Module, *given: Tensor) -> Tensor:
    return network(*given, return_dict=False)[0]


def masked(channels: int, size: int, batch: int) -> tuple[Tensor, ...]:
    mask = (torch.rand(batch, 1, size, size) > 0.5).float()
    return torch.randn(batch, channels, size, size), torch.full((batch,), 500), torch.ones(batch).long(), mask


def mapped(size: int, batch: int) -> tuple[Tensor, ...]:
    return *timed(size, batch), (torch.rand(batch, 12, size, size) > 0.9).float()


def asked(size: int, batch: int) -> tuple[Tensor, ...]:
    return *timed(size, batch), torch.randn(batch, 2, 512)


def timed(size: int, batch: int) -> tuple[Tensor, ...]:
    return torch.randn(batch, 3, size, size), torch.full((batch,), 500)


def latents(channels: int, size: int, batch: int) -> tuple[Tensor, ...]:
    return (torch.randn(batch, channels, size, size),)


def order_of(network: nn.Module) -> torch.memory_format:
    """The memory order of a network's first kernel that has two."""
    kernel = next(p for p in network.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1)
    last = kernel.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def forms(network: nn.Module) -> dict[str, nn.Module]:
    """Plain, as trained, with each rewrite that finds a layer, prepared, and that in the other memory order."""
    layers = list(network.modules())
    made = {"plain": plain(network), "as trained": deepcopy(network)}
    ours = type(network).__name__ in CLASSES or "Autoencoder" in type(network).__name__ or hasattr(network, "quantize")
    for name, rewrite in REWRITES.items() if ours else ():
        if any(rewrite(layer) is not None for layer in layers):
            made[f"{name}, alone"] = prepare_for_inference(deepcopy(network), rewrites=[rewrite])
    made["prepared"] = prepare_for_inference(deepcopy(network)) if ours else deepcopy(network)
    made = {name: form if name == "plain" else place(form, torch.float32, "cpu") for name, form in made.items()}
    if order_of(made["prepared"]) != torch.channels_last:
        last: Any = deepcopy(made["prepared"])
        made["prepared, channels last"] = last.to(memory_format=torch.channels_last)
    return made


def race(entrants: dict[str, Callable[[], Tensor]], rounds: int) -> dict[str, np.ndarray]:
    """Seconds of every round, the first of which is wall time and not counted."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in entrants}
    for turn in range(rounds + 1):
        now = clock if turn else time.perf_counter
        for name, enter in entrants.items():
            begun = now()
            enter()
            seconds[name].append(now() - begun)
    return {name: np.array(values) for name, values in seconds.items()}


def measure(name: str, batch: int, case: Case, rounds: int, compile: bool) -> list[dict[str, Any]]:
    """A row for every form of a network."""
    network, apply, make = case
    x, *others = make(batch)
    entrants: dict[str, Callable[[], Tensor]] = {}
    for form, made in forms(network.eval().requires_grad_(False)).items():
        given = (x.contiguous(memory_format=order_of(made)), *others)
        entrants[form] = partial(apply, made, *given)
        if compile and form.startswith("prepared"):
            entrants[form.replace("prepared", "compiled")] = partial(compiled(partial(apply, made)), *given)
    seconds = race(entrants, rounds)
    expected = entrants["plain"]()
    return [
        {
            "network": name,
            "batch": batch,
            "form": form,
            "ms": float(np.median(seconds[form][1:])) * 1e3,
            "first, s": float(seconds[form][0]),
            "over plain": float(np.median((seconds["plain"] / seconds[form])[1:])),
            "over as trained": float(np.median((seconds["as trained"] / seconds[form])[1:])),
            "difference": f"{float((enter() - expected).norm() / expected.norm()):.1e}",
        }
        for form, enter in entrants.items()
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    top = argparse.ArgumentParser(prog="python -m benchmarks.network", description=__doc__)
    top.add_argument("--rounds", type=int, default=5)
    top.add_argument("--batches", type=int, nargs="+", default=[8, 1])
    top.add_argument("--size", type=int, default=64, help="latents of a side, for DiffInfinite's and the nuclei shape")
    top.add_argument("--dim", type=int, default=64, help="features at full size of the same")
    top.add_argument("--threads", type=int, default=1)
    top.add_argument("--compile", action="store_true", help="also as --compile makes them; takes minutes")
    top.add_argument("--only", default="", help="networks whose names begin so")
    top.add_argument("--json", help="write the report here")
    args = top.parse_args(arguments)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rows = []
    with torch.inference_mode():
        for name, case in cases(args.size, args.dim).items():
            for batch in args.batches if name.startswith(args.only) else ():
                torch.compiler.reset()
                rows += measure(name, batch, case, args.rounds, args.compile)
    report("network", rows, args.json, torch=torch.__version__, threads=args.threads, rounds=args.rounds)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
